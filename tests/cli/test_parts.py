"""A fit, its denoised counts and its comparisons as commands of their own."""

import shutil
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest

import totalvi
from totalvi.cli.main import execute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    cells = totalvi.simulate(n_cells=200, n_genes=60, n_proteins=6, n_batches=2, seed=2)
    cells.write(folder / "cells.h5mu")
    command = ["train", str(folder / "cells.h5mu"), "-o", str(folder / "model"), "--batch", "batch"]
    assert execute([*command, "--epochs", "3"]) == 0
    return folder


def loaded(folder: Path) -> totalvi.Model:
    return totalvi.Model.load(folder / "model", totalvi.read(folder / "cells.h5mu"))


def test_the_model_is_the_one_of_the_api(folder: Path) -> None:
    assert len(loaded(folder).history) == 3
    assert not (folder / "model.checkpoint").exists()
    assert execute(["train", str(folder / "cells.h5mu"), "-o", str(folder / "model")]) == 2


@pytest.mark.parametrize("batches", [(), ("batch_1",), ("batch_0", "batch_1")])
def test_denoised_counts_are_those_of_the_api(folder: Path, batches: tuple[str, ...]) -> None:
    path = folder / f"denoised{len(batches)}.h5mu"
    options = [part for batch in batches for part in ("--as-batch", batch)]
    command = ["denoise", str(folder / "model"), str(folder / "cells.h5mu"), "-o", str(path)]
    assert execute([*command, "--samples", "3", *options]) == 0
    found = mudata.read_h5mu(path)
    model, batch = loaded(folder), list(batches) or None
    rna, protein = model.get_normalized_expression(
        transform_batch=batch, library_size=1e4, n_samples=3
    )
    np.testing.assert_allclose(found["rna"].to_df(), rna, rtol=1e-5)
    np.testing.assert_allclose(found["prot"].to_df(), protein, rtol=1e-5)
    foreground = model.get_protein_foreground_probability(transform_batch=batch, n_samples=3)
    layer = found["prot"].layers["foreground_probability"]
    np.testing.assert_allclose(layer, foreground, rtol=1e-5)
    assert found.obs["batch"].tolist() == totalvi.read(folder / "cells.h5mu").obs["batch"].tolist()


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
def test_what_a_panel_lacks_is_nan_and_said_or_imputed(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = totalvi.simulate(80, 40, 6, n_batches=2, n_unmeasured=2, seed=2, store_truth=False)
    model = totalvi.Model(cells, batch_key="batch", n_hidden=8, n_latent=3)
    model.train(max_epochs=1, progress=False)
    model.save(tmp_path / "model")
    cells.write(tmp_path / "cells.h5mu")
    command = ["denoise", str(tmp_path / "model"), str(tmp_path / "cells.h5mu"), "--samples", "1"]
    found = []
    for name, options in (("nan", ()), ("imputed", ("--impute-unmeasured",))):
        output = tmp_path / f"{name}{suffix}"
        assert execute([*command, "-o", str(output), *options]) == 0
        is_file = suffix == ".h5mu"
        stored = (
            mudata.read_h5mu(output)["prot"] if is_file else anndata.read_zarr(output / "protein")
        )
        found.append(stored.X)
        said = capsys.readouterr().out
        assert ("are NaN in 40 of 80 cells" in said) is (name == "nan")
        assert ("--impute-unmeasured gives" in said) is (name == "nan")
    assert np.array_equal(np.isnan(found[0]), np.isnan(cells["prot"].X))
    assert np.isfinite(found[1]).all()


def test_a_store_is_replaced_only_when_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "denoised.zarr"
    command = ["denoise", str(folder / "model"), str(folder / "cells.h5mu"), "-o", str(path)]
    assert execute([*command, "--samples", "1"]) == 0
    assert execute([*command, "--samples", "3"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert execute([*command, "--samples", "3", "--overwrite"]) == 0
    rna, protein = loaded(folder).get_normalized_expression(library_size=1e4, n_samples=3)
    for name, expected in (("rna", rna), ("protein", protein)):
        np.testing.assert_allclose(anndata.read_zarr(path / name).X, expected, rtol=1e-4)
    (folder / "thesis.zarr").mkdir()
    (folder / "thesis.zarr" / "thesis.tex").touch()
    command[4] = str(folder / "thesis.zarr")
    assert execute([*command, "--overwrite"]) == 2
    assert [path.name for path in (folder / "thesis.zarr").iterdir()] == ["thesis.tex"]
    assert not list(folder.glob(".*"))


def test_a_comparison_is_that_of_the_api(folder: Path) -> None:
    path = folder / "de.csv"
    command = ["de", str(folder / "model"), str(folder / "cells.h5mu"), "-o", str(path)]
    asked = ["--groupby", "cell_type", "--group", "type_0", "--against", "type_1"]
    assert execute([*command, *asked]) == 0
    table = pd.read_csv(path, index_col="name")
    expected = loaded(folder).differential_expression(
        groupby="cell_type", group1="type_0", group2="type_1"
    )
    assert table.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(table["lfc_mean"], expected["lfc_mean"], rtol=1e-6)
    assert set(table["group1"]) == {"type_0"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["de", "{model}"], "name the file with the counts as INPUT"),
        (["de", "{model}", "{cells}", "--groupby", "cell_typ"], 'did you mean "cell_type"'),
        (["denoise", "{model}", "{cells}", "--as-batch", "batch_7"], "batch_7"),
        (["denoise", "{cells}", "{cells}"], "is not a totalvi model"),
        (["denoise", "{model}", "{cells}", "-o", "denoised.csv"], "does not end in .h5mu"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    folder: Path,
    command: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"model": folder / "model", "cells": folder / "cells.h5mu"}
    assert execute([part.format(**places) for part in command]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_mapping_does_not_replace_its_reference(folder: Path) -> None:
    model, cells = folder / "model", folder / "cells.h5mu"
    assert execute(["map", str(model), str(cells), "-o", str(model), "--overwrite"]) == 2
    assert execute(["map", str(model), str(cells), "-o", str(folder), "--overwrite"]) == 2
    assert len(loaded(folder).history) == 3


@pytest.mark.parametrize("command", ["denoise", "de", "convert"])
def test_no_command_replaces_what_it_reads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Counts, the counts beside a model, and a model in the folder that would be replaced."""
    model, store = tmp_path / "run.zarr" / "model.totalvi", tmp_path / "cells.zarr"
    shutil.copytree(folder / "model", model)
    shutil.copy(folder / "cells.h5mu", tmp_path / "run.zarr" / "results.h5mu")
    mudata.write_zarr(str(store), mudata.read_h5mu(folder / "cells.h5mu"))
    (tmp_path / "link.zarr").symlink_to(store)
    results = tmp_path / "run.zarr" / "results.h5mu"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = {
        "denoise": [
            [model, store, "-o", store], [model, store, "-o", tmp_path / "link.zarr"],
            [model, tmp_path / "link.zarr", "-o", store],
            [results.parent, "-o", results], [results.parent, store, "-o", results.parent],
        ],
        "de": [[model, results, "-o", results, "--groupby", "cell_type"]],
        "convert": [[store, "-o", store], [results, "-o", results.parent]],
    }[command]  # fmt: skip
    for arguments in given:
        assert execute([command, *map(str, arguments), "--overwrite"]) == 2, arguments
        assert "would be replaced" in capsys.readouterr().err, arguments
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
