"""No file that is read can run anything, or lead out of its folder."""

import builtins
import contextlib
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import totalvi
from fuzzing.samples import SAMPLES, Reading
from totalvi.errors import FormatError, ReadError, TotalviError

FORBIDDEN = [
    (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (builtins, "eval"), (builtins, "exec"),
    (os, "system"), (os, "popen"), (subprocess, "Popen"), (subprocess, "run"),
    (subprocess, "check_output"),
]  # fmt: skip
# of mudata and anndata, about defaults to come
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Reading]]:
    """A good file of every format with what it holds; read once, so that all is imported."""
    found = {}
    for name, sample in SAMPLES.items():
        path = sample.write(tmp_path_factory.mktemp("sample"))
        found[name] = (path, sample.read(path))
    return found


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whatever could run what a file says takes down its name instead."""
    called: list[str] = []
    with monkeypatch.context() as patch:
        for place, name in FORBIDDEN:
            patch.setattr(place, name, _refusing(f"{place.__name__}.{name}", called))
        yield called


def _refusing(name: str, called: list[str]) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        called.append(name)
        raise AssertionError(f"{name} was called")

    return refuse


@pytest.mark.parametrize("name", SAMPLES)
def test_reading_runs_nothing(
    name: str, good: dict[str, tuple[Path, Reading]], poisoned: list[str]
) -> None:
    path, expected = good[name]
    with pytest.raises(AssertionError):
        pickle.loads(b"N.")
    poisoned.clear()
    assert SAMPLES[name].read(path) == expected
    assert poisoned == []


def test_every_format_has_a_sample() -> None:
    from totalvi.data.io.read import FORMATS

    suffixes = {suffix for group, _ in FORMATS for suffix in group}
    assert {".h5", ".h5ad", ".h5mu", ".zarr", ".csv", ".tsv.gz"} <= suffixes
    assert {"h5ad", "h5mu", "zarr 2", "csv", "tsv.gz", "model folder"} <= set(SAMPLES)


@pytest.mark.parametrize("part", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_model_folder_holds_its_own_files(
    good: dict[str, tuple[Path, Reading]], tmp_path: Path, part: str, kind: str
) -> None:
    folder = shutil.copytree(good["model folder"][0], tmp_path / "model")
    target = (folder / part).rename(tmp_path / "elsewhere")
    if kind == "link":
        (folder / part).symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(folder / part)
    else:
        (folder / part).mkdir()
    with pytest.raises(FormatError, match=part):
        totalvi.Model.load(folder)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_zarr_store_holds_its_own_files(
    good: dict[str, tuple[Path, Reading]], tmp_path: Path, kind: str
) -> None:
    store = shutil.copytree(good["zarr 2"][0], tmp_path / "cells.zarr")
    chunk = next(file for file in sorted((store / "X" / "data").iterdir()) if file.name[0] != ".")
    target = chunk.rename(tmp_path / "elsewhere")
    if kind == "link":
        chunk.symlink_to(target)
    else:
        os.mkfifo(chunk)
    with pytest.raises(ReadError, match=r"link out of|is not a file"):
        totalvi.read(store)


@pytest.mark.parametrize("kind", ["link", "storage", "virtual"])
def test_a_file_of_counts_takes_nothing_from_another(tmp_path: Path, kind: str) -> None:
    path = SAMPLES["Cell Ranger 3 .h5"].write(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.arange(4)
    with h5py.File(path, "r+") as file:
        del file["matrix/data"]
        if kind == "link":
            file["matrix/data"] = h5py.ExternalLink("other.h5", "/x")
        elif kind == "storage":
            file.create_dataset("matrix/data", (4,), "i8", external=[("other.h5", 0, 32)])
        else:
            layout = h5py.VirtualLayout((4,), "i8")
            layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
            file.create_virtual_dataset("matrix/data", layout)
    with pytest.raises(ReadError, match="from another place"):
        totalvi.read(path)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/../../escaped"])
def test_names_in_files_are_no_paths(tmp_path: Path, name: str) -> None:
    place = SAMPLES["csv"].write(tmp_path)
    table = place / "protein.csv"
    table.write_text(table.read_text().replace("CD19", name))
    before = sorted(tmp_path.parent.iterdir())
    data = totalvi.read(place / "rna.csv", protein_path=table)
    assert name in data["prot"].var_names
    model = totalvi.Model(data, n_hidden=4, n_latent=2)
    model.train(max_epochs=1, accelerator="cpu", progress=False)
    model.save(tmp_path / "model")
    assert totalvi.Model.load(tmp_path / "model").schema.protein_names == model.schema.protein_names
    assert sorted(tmp_path.parent.iterdir()) == before
    assert {file.name for file in tmp_path.iterdir()} == {"tables", "model"}


def test_a_hostile_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    import zipfile

    from totalvi.persistence import load_scvi

    folder = SAMPLES["scvi-tools model"].write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with zipfile.ZipFile(folder / "model.pt", "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("../../escaped", b"x")
        archive.writestr("/tmp/escaped-by-totalvi", b"x")
    with contextlib.suppress(TotalviError):
        load_scvi(folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/tmp/escaped-by-totalvi").exists()
