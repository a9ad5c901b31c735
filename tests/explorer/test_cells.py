"""The cells of a small written folder: values, gates, exports and pixels."""

from pathlib import Path
from typing import Any

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.io import read_elem
from bokeh.document import Document
from mudata import MuData
from scipy import sparse

from totalvi.data.counts import SparseOnDisk
from totalvi.errors import OutputError, ReadError
from totalvi.explorer.app import Explorer
from totalvi.explorer.axes import Axis
from totalvi.explorer.drawn_cells import draw_cells, rgba
from totalvi.explorer.fcs import channels_of
from totalvi.explorer.gate_files import gates_from_text, gates_to_json
from totalvi.explorer.gated_results import gate_columns, write_gated
from totalvi.explorer.gates import Gate, Gating
from totalvi.explorer.run_cells import RunCells
from totalvi.explorer.workspace import open_workspace

N = 60
PROTEINS = ["CD3", "<script>alert(1)</script>"]


def gating() -> Gating:
    axes = (Axis("protein_denoised", PROTEINS[0], "asinh"), Axis("protein_denoised", PROTEINS[1]))
    corners = ((1.0, 0.0), (2.5, 0.0), (2.5, 30.0), (1.0, 30.0))
    on_map = (Axis("umap", "1"), Axis("umap", "2"))
    right = ((0.0, -9.0), (9.0, -9.0), (9.0, 9.0), (0.0, 9.0))
    return Gating((Gate("T", axes, corners), Gate("right", on_map, right, "T")))


def test_values_are_those_of_the_file(folder: Path) -> None:
    mdata = mudata.read_h5mu(folder / "results.h5mu")
    with RunCells(folder) as cells:
        for kind, name, expected in (
            ("protein_raw", PROTEINS[0], mdata["prot"].X[:, 0]),
            ("protein_denoised", PROTEINS[1], mdata["prot"].layers["denoised"][:, 1]),
            ("gene_raw", "2", mdata["rna"].X[:, 2].toarray().ravel()),
            ("gene_denoised", "3", mdata["rna"].layers["denoised"][:, 3]),
            ("umap", "2", mdata.obsm["X_umap"][:, 1]),
        ):
            np.testing.assert_array_equal(cells.values(kind, name), expected)
        with pytest.raises(ReadError, match="no protein 'CD4'"):
            cells.values("protein_raw", "CD4")
        some = np.array([3, 7, 20])
        counts = cells.counts_of(some)
        np.testing.assert_array_equal(counts["rna"].X.toarray(), mdata["rna"].X[some].toarray())
        assert list(counts.obs_names) == ["cell_3", "cell_7", "cell_20"]


def test_a_run_on_disk_is_read_alike(folder: Path, tmp_path: Path) -> None:
    mdata = mudata.read_h5mu(folder / "results.h5mu")
    del mdata["rna"].layers["denoised"]
    (tmp_path / "on_disk").mkdir()
    mdata.write_zarr(tmp_path / "on_disk" / "results.zarr")
    with RunCells(folder) as expected, RunCells(tmp_path / "on_disk") as cells:
        assert set(expected.kinds) - set(cells.kinds) == {"gene_denoised"}
        pd.testing.assert_frame_equal(cells.obs, expected.obs)
        for kind in cells.kinds:
            for name in ("1", "2") if kind.startswith("gene") else PROTEINS:
                np.testing.assert_array_equal(cells.values(kind, name), expected.values(kind, name))
        np.testing.assert_array_equal(cells.umap, expected.umap)
        some = np.array([3, 7, 20, 0])
        counts, others = (each.counts_of(some) for each in (cells, expected))
        np.testing.assert_array_equal(counts["rna"].X.toarray(), others["rna"].X.toarray())
        np.testing.assert_array_equal(counts["prot"].X, others["prot"].X)
        assert isinstance(cells.rna, SparseOnDisk)
        pd.testing.assert_frame_equal(
            gate_columns(cells, gating()), gate_columns(expected, gating())
        )
        with pytest.raises(OutputError, match="take the gates of each cell as CSV"):
            write_gated(cells, gating(), tmp_path / "gated.h5mu")
    (tmp_path / "on_disk" / "results.zarr" / "zarr.json").unlink(missing_ok=True)
    (tmp_path / "on_disk" / "results.zarr" / ".zgroup").unlink(missing_ok=True)
    with pytest.raises(ReadError, match="not what"):
        RunCells(tmp_path / "on_disk")


@pytest.mark.parametrize("as_stored", [np.asarray, sparse.csr_matrix])
def test_isotype_controls_are_offered_with_their_counts(folder: Path, as_stored: Any) -> None:
    mdata = mudata.read_h5mu(folder / "results.h5mu")
    counts = np.random.default_rng(1).poisson(3, (N, 2)).astype(np.float32)
    controls = AnnData(as_stored(counts), obs=pd.DataFrame(index=mdata.obs_names))
    controls.var_names = ["IgG1", "IgG2a"]
    with mudata.set_options(pull_on_update=False):
        with_controls = MuData({**mdata.mod, "isotype": controls})
        with_controls.obs, with_controls.obsm["X_umap"] = mdata.obs, mdata.obsm["X_umap"]
        with_controls.write(folder / "results.h5mu")
    workspace = open_workspace(folder)
    with workspace.cells as cells:
        np.testing.assert_array_equal(cells.values("isotype_raw", "IgG2a"), counts[:, 1])
        with pytest.raises(ReadError, match="no isotype 'CD3'"):
            cells.values("isotype_raw", "CD3")
        page = Explorer(Document(), workspace)
        assert "IgG1 (isotype control)" in page.choices.labels
        page.plots.cards[1].x.value = "IgG2a (isotype control)"
        axis = Axis("isotype_raw", "IgG2a", "asinh")
        assert page.plots[1].axes[0] == axis
        np.testing.assert_allclose(page.plots[1].places[0], np.arcsinh(counts[:, 1] / 5), rtol=1e-6)
        assert page.choices.title(axis) == "IgG2a, isotype control, raw counts"
        color = "IgG1 (isotype control, raw counts)"
        assert color in page.plots.view.color.completions
        page.plots.view.color.value = color
        assert page.plots.color_bar.visible
        gating = Gating((Gate("sticky", (axis,), ((1.0,), (50.0,)), None, "range"),))
        assert gates_from_text(gates_to_json(gating)) == gating
        assert axis.name in {channel.name for channel in channels_of(cells, gating)}
        workspace.executor.shutdown()


def test_exports_hold_just_the_gated_cells(folder: Path) -> None:
    mdata = mudata.read_h5mu(folder / "results.h5mu")
    denoised, umap = mdata["prot"].layers["denoised"], mdata.obsm["X_umap"]
    x = np.arcsinh(denoised[:, 0] / 5)
    t = (x >= 1) & (x < 2.5) & (denoised[:, 1] < 30)
    right = t & (umap[:, 0] >= 0)
    assert 0 < right.sum() < t.sum() < N
    with RunCells(folder) as cells:
        table = gate_columns(cells, gating())
        np.testing.assert_array_equal(table["in_gate T"], t)
        np.testing.assert_array_equal(table["gate"] == "T/right", right)
        written = write_gated(cells, gating(), folder / "gated.h5mu")
        with pytest.raises(OutputError, match="exists"):
            write_gated(cells, gating(), folder / "gated.h5mu")
    with h5py.File(written) as file:
        for where in ("obs", "mod/rna/obs", "mod/prot/obs"):
            obs = read_elem(file[where])
            np.testing.assert_array_equal(obs["in_gate right"], right)
            assert list(obs["gate"]) == list(table["gate"])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="holds no results"):
        RunCells(tmp_path)
    (tmp_path / "results.h5mu").write_text("text")
    with pytest.raises(ReadError, match="not what"):
        RunCells(tmp_path)


def test_cells_are_drawn_where_they_lie() -> None:
    red, blue = rgba(["#FF0000", "#0000FF"])
    image = draw_cells(
        np.array([0.5, 9.5, np.nan, 99.0]), np.array([0.5, 4.5, 1.0, 1.0]),
        np.array([red, blue, red, red]), (0, 10, 0, 5), (5, 10), 1.0,
    )  # fmt: skip
    assert image[0, 0] == red
    assert image[4, 9] == blue
    assert (image != 0).sum() == 2
