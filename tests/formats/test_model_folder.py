"""A model folder is written whole or not at all, and a damaged one is refused."""

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from safetensors.torch import save

import totalvi
from totalvi.atomic import locked
from totalvi.errors import FormatError, OutputError
from totalvi.formats import model_folder as model_format
from totalvi.formats.model_folder import read_model, write_model

WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
    "mask": torch.tensor([True, False]),
    "count": torch.tensor(7),
}
DESCRIPTION: dict[str, Any] = {"options": {"n_latent": 3}, "history": {"loss": [1.5, float("nan")]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "my.totalvi"
    write_model(path, WEIGHTS, DESCRIPTION, overwrite=False)
    return path


def test_round_trip(folder: Path) -> None:
    weights, description = read_model(folder)
    assert weights.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(weights[name], tensor)
        assert weights[name].dtype == tensor.dtype
    assert description["options"] == DESCRIPTION["options"]
    assert description["history"]["loss"][0] == 1.5
    assert description["format_version"] == 2


def test_numpy_values_are_kept_as_numbers(tmp_path: Path) -> None:
    given = {"n": np.int64(3), "rate": np.float32(0.5), "prior": (np.zeros(2), torch.ones(2))}
    write_model(tmp_path / "m", {}, given, overwrite=False)
    description = read_model(tmp_path / "m")[1]
    assert {key: description[key] for key in given} == {
        "n": 3,
        "rate": 0.5,
        "prior": [[0, 0], [1, 1]],
    }


def test_nothing_else_is_left_beside_the_model(folder: Path) -> None:
    write_model(folder, WEIGHTS, DESCRIPTION, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["my.totalvi"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]


def test_overwriting_replaces_the_whole(folder: Path) -> None:
    write_model(folder, {"b": torch.ones(1)}, {"options": 1}, overwrite=True)
    weights, description = read_model(folder)
    assert list(weights) == ["b"]
    assert description["options"] == 1


def test_overwriting_through_a_link_keeps_the_link(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    write_model(link, {"b": torch.ones(1)}, {"options": 1}, overwrite=True)
    assert link.is_symlink()
    assert list(read_model(folder)[0]) == ["b"]


def test_a_folder_with_other_files_is_never_replaced(folder: Path) -> None:
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        write_model(folder, {}, {}, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_the_description_is_json_whatever_the_history_holds(folder: Path) -> None:
    write_model(folder, {}, {"history": {"loss": [1.0, float("nan")]}}, overwrite=True)
    assert "NaN" not in (folder / "model.json").read_text()
    assert read_model(folder)[1]["history"] == {"loss": [1.0, None]}


def test_an_existing_model_is_not_overwritten_unasked(folder: Path) -> None:
    with pytest.raises(OutputError, match="exists; give overwrite=True"):
        write_model(folder, {}, {}, overwrite=False)
    assert read_model(folder)[0].keys() == WEIGHTS.keys()


def test_a_model_that_another_process_saved_meanwhile_stays(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other"
    with ThreadPoolExecutor() as pool:
        with locked(path):
            waiting = pool.submit(write_model, path, {}, {}, overwrite=False)
            time.sleep(0.2)  # longer than it takes to come to the lock
            shutil.copytree(folder, path)
        with pytest.raises(OutputError, match="exists; give overwrite=True"):
            waiting.result()
    assert read_model(path)[0].keys() == WEIGHTS.keys()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_no_model_is_never_replaced(tmp_path: Path, what: str) -> None:
    path = tmp_path / "thesis"
    if what == "file":
        path.write_text("years of work")
    else:
        path.mkdir()
        (path / "chapter.txt").write_text("years of work")
    with pytest.raises(OutputError, match="totalvi model; choose another path"):
        write_model(path, WEIGHTS, DESCRIPTION, overwrite=True)
    assert path.exists()


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_model(tmp_path / "file" / "model", WEIGHTS, DESCRIPTION, overwrite=False)


def rewrite(folder: Path, **changes: Any) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def replace_weights(folder: Path) -> None:
    """Other tensors, with a checksum that fits them."""
    packed = save({"a": torch.zeros(7)})
    (folder / "weights.safetensors").write_bytes(packed)
    description = json.loads((folder / "model.json").read_text())
    del description["sha256"]
    description["weights_sha256"] = hashlib.sha256(packed).hexdigest()
    description["sha256"] = model_format._checksum(description)
    (folder / "model.json").write_text(json.dumps(description))


def damage(folder: Path, how: str) -> None:
    weights, description = folder / "weights.safetensors", folder / "model.json"
    {
        "json cut short": lambda: description.write_text(description.read_text()[:-20]),
        "json not text": lambda: description.write_bytes(b"\xff\xfe\x00garbage"),
        "json a list": lambda: description.write_text("[1, 2]"),
        "json missing": description.unlink,
        "weights cut short": lambda: weights.write_bytes(weights.read_bytes()[:-5]),
        "weights garbage": lambda: weights.write_bytes(b"garbage" * 99),
        "weights empty": lambda: weights.write_bytes(b""),
        "weights missing": weights.unlink,
        "another format": lambda: rewrite(folder, format="scvi"),
        "newer version": lambda: rewrite(folder, format_version=3),
        "json changed": lambda: rewrite(folder, options=2),
        "a tensor changed": lambda: flip(weights, -1),
        "another's weights": lambda: replace_weights(folder),
        "no version": lambda: rewrite(folder, format_version=None),
    }[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("json cut short", r"model.json is damaged"),
        ("json not text", r"model.json is damaged"),
        ("json a list", "does not describe a totalvi model"),
        ("json missing", "it has no model.json"),
        ("weights cut short", "weights.safetensors is damaged"),
        ("weights garbage", "weights.safetensors is damaged"),
        ("weights empty", "weights.safetensors is damaged"),
        ("weights missing", "weights.safetensors is damaged"),
        ("json changed", r"model.json is damaged \(checksum\)"),
        ("a tensor changed", r"weights.safetensors is damaged \(checksum\)"),
        ("another's weights", r"does not hold the tensors that model.json lists"),
        ("another format", "does not describe a totalvi model"),
        ("newer version", "format version 3, and this totalvi reads 1 to 2; update totalvi"),
        ("no version", "format version None"),
    ],
)
def test_a_damaged_model_is_refused(folder: Path, how: str, message: str) -> None:
    damage(folder, how)
    with pytest.raises(FormatError, match=message):
        read_model(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a totalvi model"):
        read_model(tmp_path / "absent")


def test_a_model_of_scvi_tools_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    for path in (tmp_path, tmp_path / "model.pt"):
        with pytest.raises(FormatError, match=r"use totalvi\.persistence\.load_scvi"):
            read_model(path)


def test_the_model_says_what_wrote_it(folder: Path) -> None:
    description = read_model(folder)[1]
    assert description["versions"].keys() == {"python", "totalvi", "torch", "numpy"}
    assert description["tensors"]["a"] == ["float32", [3, 2]]


@pytest.mark.parametrize("version", [1, 2])
def test_models_of_every_version_are_read(version: int) -> None:
    stored = Path(__file__).parent / "stored"
    answer = json.loads((stored / f"version_{version}.json").read_text())
    cells = pd.Index(answer["cells"])
    rna, protein = (
        AnnData(np.array(answer[name], dtype=np.float32), obs=pd.DataFrame(index=cells))
        for name in ("rna", "protein")
    )
    model = totalvi.Model.load(stored / f"version_{version}.totalvi")
    rna.var_names, protein.var_names = model.schema.gene_names, model.schema.protein_names
    rna.obs["batch"] = answer["batch"]
    with mudata.set_options(pull_on_update=False):
        data = mudata.MuData({"rna": rna, "prot": protein})
    np.testing.assert_allclose(
        model.get_latent_representation(data), answer["latent"], rtol=1e-4, atol=1e-4
    )
    assert model.history["validation_loss"].tolist() == answer["history"]
    assert (model.fingerprint is None) == (version == 1)
    assert model.plan is not None
    assert model.plan.max_epochs == 3
