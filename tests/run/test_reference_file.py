"""`totalvi convert --to minified`, `totalvi info` and `totalvi map` of a minified reference."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import totalvi
from counts import SMALL, annotated
from totalvi.cli.main import execute
from totalvi.run.map_cells import _BY_MODEL_ALONE

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its cells beside it, the reference made of them, and a query of RNA alone."""
    place = tmp_path_factory.mktemp("files")
    mdata = annotated(200)
    reference = mdata[:150].copy()
    reference.obsm["X_umap"] = np.random.default_rng(0).normal(size=(150, 2))
    model = totalvi.Model(reference, batch_key="batch", **SMALL)
    model.train(max_epochs=1, accelerator="cpu")
    model.save(place / "run" / "model.totalvi")
    reference.write(place / "run" / "results.h5mu")
    mdata["rna"][150:].copy().write(place / "query.h5ad")
    command = ["convert", str(place / "run"), str(place / "reference.totalvi"), "--to", "minified"]
    assert execute(command) == 0
    return place


def test_map_gives_the_tables_of_the_whole_reference(folder: Path, tmp_path: Path) -> None:
    for name in ("run", "reference.totalvi"):
        command = ["map", str(folder / name), str(folder / "query.h5ad"), "--labels", "lane"]
        assert execute([*command, "-o", str(tmp_path / name)]) == 0
    names = {path.name for path in (tmp_path / "run" / "tables").iterdir()}
    assert names == {path.name for path in (tmp_path / "reference.totalvi" / "tables").iterdir()}
    for name in names:
        whole, small = (
            pd.read_csv(tmp_path / place / "tables" / name, index_col=0)
            for place in ("run", "reference.totalvi")
        )
        pd.testing.assert_frame_equal(whole, small)
    assert {"label", "reference_p_value", "reference_umap_1"} <= set(
        pd.read_csv(tmp_path / "run" / "tables" / "cells.csv.gz", index_col=0)
    )


def test_other_cells_than_the_references_give_labels_and_no_reliability(
    folder: Path, tmp_path: Path
) -> None:
    other = totalvi.read(folder / "run" / "results.h5mu")[::-1].copy()
    other.write(tmp_path / "other.h5mu")
    command = ["map", str(folder / "run" / "model.totalvi"), str(folder / "query.h5ad")]
    command += ["--reference", str(tmp_path / "other.h5mu"), "--labels", "lane"]
    assert execute([*command, "-o", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert _BY_MODEL_ALONE in record["notes"]
    tables = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert "imputed_proteins.csv.gz" in tables
    assert "reliability.csv" not in tables
    assert "label" in pd.read_csv(tmp_path / "out" / "tables" / "cells.csv.gz", index_col=0)


def test_info_of_a_reference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["info", str(folder / "reference.totalvi")]) == 0
    printed = capsys.readouterr().out
    for said in ("a minified reference of 150 cells", "lane", "RNA alone", "protein_0", "Measured"):
        assert said in printed
    assert execute(["info", str(folder / "reference.totalvi"), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)["card"]
    about = card["labels"]["lane"]
    assert 0 <= about["accuracy_rna"] <= 1
    assert about["labels"] == 3
    assert set(card["imputed_proteins"]) == {f"protein_{i}" for i in range(card["proteins"])}
    assert sum(card["batches"].values()) == card["cells"] == 150


def test_info_of_other_folders(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mapped"
    command = ["map", str(folder / "run"), str(folder / "query.h5ad"), "-o", str(output)]
    assert execute(command) == 0
    capsys.readouterr()
    assert execute(["info", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "50 cells on 2 reference batches" in printed
    assert 'mapped      "query"' in printed
    assert execute(["info", str(folder / "run" / "model.totalvi")]) == 0
    assert "135 training cells" in capsys.readouterr().out
    assert execute(["info", str(folder / "query.h5ad")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_info_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.checkpoint"
    model = totalvi.Model(annotated(80), batch_key="batch", **SMALL)
    model.train(max_epochs=2, accelerator="cpu", checkpoint=path, progress=False)
    assert execute(["info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "a checkpoint, of a fit that has ended" in printed
    assert "2 of 2 epochs" in printed
    assert execute(["info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "checkpoint"
    assert found["held_out_loss"] == model.history["validation_loss"].iloc[-1]
    path.write_bytes(b"nothing")
    assert execute(["info", str(path)]) == 2
    assert "is no checkpoint, or damaged" in capsys.readouterr().err


def test_commands_that_need_counts_say_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = str(folder / "reference.totalvi")
    assert execute(["denoise", reference, "-o", str(tmp_path / "a.h5mu")]) == 2
    assert "holds no counts" in capsys.readouterr().err
    bare = str(folder / "bare.totalvi")
    assert execute(["convert", reference, bare, "--to", "totalvi"]) == 0
    capsys.readouterr()
    assert execute(["convert", bare, str(tmp_path / "b.totalvi"), "--to", "minified"]) == 2
    assert "holds no counts" in capsys.readouterr().err
    assert not (tmp_path / "b.totalvi").exists()
