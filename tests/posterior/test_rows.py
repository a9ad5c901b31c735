"""Results on disk are what they would be in memory, and whole or absent."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import totalvi
from counts import annotated
from totalvi.errors import OutputError
from totalvi.posterior.rows import ROWS_PER_CHUNK, Table, create_tables, open_tables, row_targets

TABLES = {"rna": Table(pd.Index(["a", "b", "c"]), np.array(["x", "y"], dtype=object))}


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    model = totalvi.Model(annotated(), batch_key="batch", n_hidden=16, n_latent=4)
    model.train(max_epochs=1)
    return model


def test_a_store_reads_as_anndata(tmp_path: Path, model: totalvi.Model) -> None:
    rna, protein = model.get_normalized_expression(n_samples=2)
    path = model.get_normalized_expression(n_samples=2, out=tmp_path / "denoised", batch_size=31)
    assert path == tmp_path / "denoised"
    for name, frame in (("rna", rna), ("protein", protein)):
        stored = anndata.read_zarr(path / name).to_df()
        pd.testing.assert_frame_equal(
            stored,
            frame,
            check_names=False,
            check_index_type=False,
            check_column_type=False,
            rtol=1e-4,
        )
    path = model.get_protein_foreground_probability(out=tmp_path / "foreground")
    stored = anndata.read_zarr(path / "protein").X
    np.testing.assert_allclose(stored, model.get_protein_foreground_probability(return_numpy=True))


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path, model: totalvi.Model) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="exists already"):
        model.get_normalized_expression(out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_rows_are_written_by_several_in_any_order(tmp_path: Path) -> None:
    cells = pd.Index([f"cell_{i}" for i in range(ROWS_PER_CHUNK + 9)])
    tables = {"rna": Table(cells, np.array(["x", "y"], dtype=object))}
    values = np.random.default_rng(0).normal(size=(len(cells), 2)).astype(np.float32)
    create_tables(tmp_path / "out", tables)
    for rows in (slice(ROWS_PER_CHUNK, None), slice(0, ROWS_PER_CHUNK)):
        open_tables(tmp_path / "out", tables)["rna"][rows] = values[rows]
    np.testing.assert_array_equal(anndata.read_zarr(tmp_path / "out" / "rna").X, values)


def test_an_unfinished_store_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with row_targets(TABLES, tmp_path / "out") as targets:
            targets["rna"][0:1] = np.ones((1, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_samples_are_not_for_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="means only"),
        row_targets(TABLES, tmp_path / "out", n_samples=3),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be written"),
        row_targets(TABLES, tmp_path / "file" / "out"),
    ):
        pass
