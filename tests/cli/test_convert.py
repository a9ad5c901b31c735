"""`totalvi convert` takes models from one format to another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import totalvi
from counts import SMALL, annotated
from totalvi.cli.main import execute
from totalvi.persistence import load_scvi

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = totalvi.Model(annotated(), batch_key="batch", **SMALL)
    model.train(max_epochs=1, accelerator="cpu")
    return model.save(tmp_path_factory.mktemp("models") / "pbmc.totalvi")


def test_there_and_back(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scvi, back = tmp_path / "scvi", tmp_path / "back.totalvi"
    assert execute(["convert", str(ours), "-o", str(scvi), "--to", "scvi"]) == 0
    assert capsys.readouterr().out == f"{scvi}\n"
    assert execute(["convert", str(scvi), "-o", str(back)]) == 0
    mdata = annotated()
    expected = totalvi.Model.load(ours, mdata).get_latent_representation()
    for found in (load_scvi(scvi, mdata), totalvi.Model.load(back, mdata)):
        np.testing.assert_allclose(found.get_latent_representation(), expected, atol=1e-6)


def test_a_stored_model_of_scvi_tools(shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "scvi_tools_1.4.2_latent_library_covariates"
    assert execute(["convert", str(folder), "-o", str(tmp_path / "a.totalvi")]) == 0
    assert totalvi.Model.load(tmp_path / "a.totalvi").schema == load_scvi(folder).schema


def test_weights_of_06(shared: Path, tmp_path: Path) -> None:
    stored = np.load(shared / "golden" / "seed_default_nb_ln.npz")
    state = {
        key.removeprefix("param/"): torch.as_tensor(stored[key])
        for key in stored
        if key.startswith("param/")
    }
    torch.save(state, tmp_path / "weights.pkl")
    config = {
        "gene_names": [f"g{i}" for i in range(120)],
        "protein_names": [f"p{i}" for i in range(14)],
        "library_log_mean": [5.0],
        "library_log_variance": [0.2],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["convert", str(tmp_path / "weights.pkl"), "-o", str(tmp_path / "a.totalvi")]
    assert execute([*command, "--config", str(tmp_path / "config.json")]) == 0
    assert totalvi.Model.load(tmp_path / "a.totalvi").schema.protein_names[13] == "p13"


def test_failures_name_options(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "scvi"
    target.mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pkl")
    (tmp_path / "config.json").write_text("[1]")
    weights = ["convert", str(tmp_path / "weights.pkl"), "-o", str(tmp_path / "b")]
    for command, words in {
        ("convert", str(ours), "-o", str(target)): "--overwrite",
        ("convert", str(tmp_path / "nothing"), "-o", str(tmp_path / "b")): "not a file",
        tuple(weights): "--config",
        (*weights, "--config", str(tmp_path / "config.json")): "not a JSON object",
        (*weights, "--config", str(tmp_path / "none.json")): "No such file",
    }.items():
        assert execute(command) == 2, command
        printed = capsys.readouterr()
        assert words in printed.err
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a.zarr --title blood", "--title is not for a store of counts"),
        ("a.zarr --config c.json", "--config is not for a store of counts"),
        ("a.zarr --to scvi", "--to is not for a store of counts"),
        ("a.h5ad --to cellxgene --batch donor", "--batch is not for --to cellxgene"),
        ("a.h5ad --to cellxgene --config c.json", "--config is not for --to cellxgene"),
        ("a.totalvi --to minified --genome hg38", "--genome is not for --to minified"),
        ("a.totalvi --obs donor_id=a", "--obs is not for a model folder"),
        ("a.totalvi --protein adt.csv", "--protein is not for a model folder"),
    ],
)
def test_options_of_other_outputs_are_refused(
    given: str, words: str, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *others = given.split()
    assert execute(["convert", str(ours), str(tmp_path / name), *others]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
