"""Both sides of the thresholds in numbers of cells; see docs/scaling.md.

With a dozen genes and four proteins, tens of thousands of cells take no longer than hundreds otherwise.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import totalvi
from totalvi.data.background.ambient import choose_empty_droplets
from totalvi.data.cells import fingerprint
from totalvi.data.columns import Columns
from totalvi.data.describe import describe
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.errors import DataError
from totalvi.explorer.axes import Axis
from totalvi.explorer.comparer import MOST_CELLS, Comparer
from totalvi.explorer.gates import Gate
from totalvi.explorer.run_cells import RunCells
from totalvi.fit.batches import WINDOW
from totalvi.fit.plan import DEFAULT_SIZES, choose_split
from totalvi.report.build import MAX_DRAWN, REPORT, build_report
from totalvi.report.report_data import read_results
from totalvi.run.clusters import batch_mixing
from totalvi.run.convert import convert_counts
from totalvi.run.run import run

pytestmark = [
    pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*have no batch in common"),  # after so short a fit
]

SMALL = {"n_hidden": 16, "n_latent": 4}


def cells(n_cells: int, n_controls: int = 0) -> MuData:
    return totalvi.simulate(
        n_cells, 12, 4 + n_controls, n_batches=2, n_cell_types=3, n_isotype_controls=n_controls,
        store_truth=False, seed=1,
    )  # fmt: skip


@pytest.mark.parametrize("n_cells", [8_100, 10_300])
def test_a_run_its_report_and_its_explorer(tmp_path: Path, n_cells: int) -> None:
    folder = run(cells(n_cells), tmp_path / "out", batch_key="batch", max_epochs=1).folder
    require_whole(folder, n_cells)
    mdata = totalvi.read(folder / "results.h5mu")
    assert np.isfinite(mdata["rna"].layers["denoised"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("n_cells", [8_100, 10_300])
def test_a_run_on_disk_its_report_and_its_explorer(tmp_path: Path, n_cells: int) -> None:
    cells(n_cells).write(tmp_path / "cells.h5mu")
    made = run(
        tmp_path / "cells.h5mu", tmp_path / "out", batch_key="batch", max_epochs=1, on_disk=True
    )
    require_whole(made.folder, n_cells)


def require_whole(folder: Path, n_cells: int) -> None:
    """Look at every result that depends on a number of cells."""
    table = pd.read_csv(folder / "tables" / "cells.csv.gz")
    assert len(table) == n_cells
    assert not table.isna().any(axis=None)
    clusters = pd.read_csv(folder / "tables" / "clusters.csv")
    assert clusters["cells"].sum() == n_cells
    assert table["cluster"].value_counts().sort_index().tolist() == clusters["cells"].tolist()
    differences = pd.read_csv(folder / "tables" / "differential_expression.csv.gz")
    assert len(differences) == 16 * len(clusters)
    assert np.isfinite(differences[["lfc_median", "proba_de"]]).all(axis=None)

    build_report(folder)
    assert f"of {n_cells:,} cells" in (folder / REPORT).read_text() or n_cells <= MAX_DRAWN
    drawn = read_results(folder, MAX_DRAWN).drawn
    assert MAX_DRAWN * 0.99 < len(drawn.rows) <= MAX_DRAWN or len(drawn.rows) == n_cells
    assert drawn.weights.sum() == pytest.approx(n_cells, rel=1e-3)

    with RunCells(folder) as of_run:
        x, y = of_run.umap.astype(float).T
        middle, far = float(np.median(x)), float(np.abs(of_run.umap).max()) + 1
        corners = ((middle, -far), (far, -far), (far, far), (middle, far))
        inside = of_run.inside(Gate("right", (Axis("umap", "1"), Axis("umap", "2")), corners))
        np.testing.assert_array_equal(inside, (x >= middle) & (abs(y) < far))
        found = Comparer(of_run).compare(inside, ~inside)
    sizes = found.n_first, found.n_second
    assert sizes == (inside.sum(), n_cells - inside.sum())
    assert (found.n_first_used, found.n_second_used) == tuple(min(n, MOST_CELLS) for n in sizes)
    assert np.isfinite(found.table["lfc_median"]).all()


@pytest.mark.parametrize("n_cells", [8_100, 8_300])
def test_cells_are_read_in_one_piece_or_in_two(tmp_path: Path, n_cells: int) -> None:
    mdata = cells(n_cells)
    mdata.write(tmp_path / "cells.h5mu")
    latent = []
    for data in (mdata, convert_counts(tmp_path / "cells.h5mu", tmp_path / "cells.zarr")):
        model = totalvi.Model(data, batch_key="batch", **SMALL)
        model.train(max_epochs=1, progress=False)
        latent.append(model.get_latent_representation())
    np.testing.assert_array_equal(*latent)


@pytest.mark.parametrize("n_training", [WINDOW - 36, WINDOW + 64])
def test_a_fit_on_disk_of_one_window_or_of_two(tmp_path: Path, n_training: int) -> None:
    mdata = cells(n_training + 500)
    mdata.write(tmp_path / "cells.h5mu")
    store = convert_counts(tmp_path / "cells.h5mu", tmp_path / "cells.zarr")
    order = np.random.default_rng(0).permutation(n_training + 500)
    split = [np.sort(part) for part in np.split(order, [n_training, n_training + 500])]
    losses = []
    for data in (mdata, store):
        model = totalvi.Model(data, batch_key="batch", **SMALL)
        model.train(max_epochs=1, batch_size=2048, split=split, progress=False)
        losses.append(model.history["validation_loss"].item())
    if n_training <= WINDOW:
        assert losses[0] == losses[1]
    else:
        assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("n_cells", [900, 26_000])
def test_questions_that_are_answered_by_a_sample_of_many_cells(n_cells: int) -> None:
    """Controls of 20,000; 5,000 hidden or held out; new cells: 256 tell of genes, 500 of batches."""
    n_new = 60 if n_cells < 1000 else 700
    mdata = cells(n_cells + n_new, n_controls=1)
    model = totalvi.Model(mdata[:n_cells].copy(), batch_key="batch", **SMALL)
    model.train(max_epochs=1, train_size=0.75, batch_size=1024, progress=False)
    controls = model.check_isotype_controls(n_samples=1).controls
    assert controls["n_cells"].tolist() == [min(n_cells, 20_000)]
    reliability = model.get_imputation_reliability(n_samples=20, progress=False)
    n_reporting = n_cells // 4 - len(model.calibration_cells)
    assert set(reliability["n_cells"]) == {min(n_reporting, 5_000)}
    with pytest.warns(UserWarning, match="lacks 2 of the 12 genes"):
        query = model.map_query(mdata["rna"][n_cells:, 2:].copy())
    transfer = model.transfer_labels(query, "cell_type")
    np.testing.assert_allclose(transfer.probabilities.sum(axis=1), 1, atol=1e-6)
    unlike = model.get_unlikeness(query)
    assert unlike["p_value"].between(0, 1).all()
    # nearest are cells of the reference, all that it was trained on among them
    of_query, of_reference = query.get_latent_representation(), model.get_latent_representation()
    of_query = of_query[:50]
    pairs = np.linalg.norm(of_query[:, None] - of_reference[None], axis=2)
    assert model.split is not None
    lowest, highest = (
        np.sort(among, axis=1)[:, :15].mean(axis=1)
        for among in (pairs, pairs[:, model.split.train])
    )
    assert (unlike["distance"][:50] > lowest - 1e-4).all()
    assert (unlike["distance"][:50] < highest + 1e-4).all()


@pytest.mark.parametrize("n_cells", [9_990, 10_010])
def test_the_fingerprint_of_counts_in_memory_is_that_on_disk(tmp_path: Path, n_cells: int) -> None:
    mdata = cells(n_cells)
    mdata.write(tmp_path / "cells.h5mu")
    keys = Columns(batch_key="batch")
    of_memory = fingerprint(describe(mdata, keys))
    on_disk = describe(open_on_disk(tmp_path / "cells.h5mu"), keys, on_disk=True)
    assert on_disk.on_disk
    assert fingerprint(on_disk) == of_memory
    counts = mdata["rna"].X
    assert np.diff(counts.indptr)[-1] >= 2
    counts.data[-2:] += [1, -1]  # of the last cell, which any sample holds, with the same total
    assert fingerprint(describe(mdata, keys))["RNA counts"] != of_memory["RNA counts"]


@pytest.mark.parametrize(
    ("n_cells", "n_latent"), [(4_900, 2), (5_100, 16), (49_900, 16), (50_100, 2)]
)
def test_batches_at_random_mix_whatever_their_size(n_cells: int, n_latent: int) -> None:
    rng = np.random.default_rng(0)
    batch = pd.Series(rng.choice(["a", "b", "b"], n_cells))
    latent = rng.normal(size=(n_cells, n_latent)).astype(np.float32)
    found = batch_mixing(latent, batch)
    assert found["cells"].to_dict() == batch.value_counts().to_dict()
    assert found["mixing"].to_numpy() == pytest.approx(1, abs=0.03)
    latent[batch == "a"] += 50
    assert batch_mixing(latent, batch)["mixing"].tolist() == [0, 0]


@pytest.mark.parametrize("n_cells", [499_990, 500_010])
def test_so_many_cells_validate(n_cells: int) -> None:
    split = choose_split(None, n_cells, DEFAULT_SIZES, np.random.default_rng(0))
    assert len(split.train) == int(np.ceil(0.9 * n_cells))
    assert len(split.validation) == min(n_cells - len(split.train), 50_000)
    together = np.concatenate(split)
    assert len(np.unique(together)) == len(together) == n_cells


@pytest.mark.parametrize("n_droplets", [19_000, 21_000])
def test_so_many_empty_droplets_are_looked_at(n_droplets: int) -> None:
    rng = np.random.default_rng(0)
    protein = rng.poisson(np.repeat([[200.0], [10.0]], [50, n_droplets], axis=0) * np.ones(5))
    chosen = choose_empty_droplets(np.zeros(len(protein)), protein, np.arange(len(protein)) < 50)
    assert 0.98 * min(n_droplets, 20_000) < len(chosen) <= 20_000
    assert chosen.min() >= 50
    assert np.diff(chosen).max() <= 12  # spread over all of them
    assert chosen.max() > 0.99 * len(protein)


@pytest.mark.parametrize("n_batches", [127, 129, 260])
def test_batches_beyond_what_a_byte_tells_apart(n_batches: int) -> None:
    mdata = cells(n_batches * 10)
    names = [f"batch_{i % n_batches}" for i in range(mdata.n_obs)]
    mdata.obs["batch"] = pd.Categorical(names)
    data = describe(mdata, Columns(batch_key="batch"))
    assert [data.schema.batch_names[code] for code in data.batch] == names


@pytest.mark.parametrize("n_cells", [150, 250])
def test_the_first_cells_tell_how_values_were_normalised(n_cells: int) -> None:
    mdata = cells(n_cells)
    counts = mdata["rna"].X.astype(np.float64)
    scaled = sparse.diags_array(1e4 / np.asarray(counts.sum(axis=1)).ravel()) @ counts
    mdata["rna"].X = sparse.csr_matrix(scaled).log1p()
    with pytest.raises(DataError, match="looks log-normalised"):
        describe(mdata, Columns())


@pytest.mark.parametrize("suffix", ["h5mu", "zarr"])
@pytest.mark.parametrize("n_cells", [8_000, 8_400])
def test_a_matrix_of_64_mb_is_believed(tmp_path: Path, n_cells: int, suffix: str) -> None:
    """Above, what a file declares must be no more than its compression can give."""
    mdata = cells(n_cells)
    counts = np.random.default_rng(0).poisson(0.002, (n_cells, 2048)).astype(np.float32)
    rna = AnnData(counts, obs=mdata["rna"].obs)
    path = tmp_path / f"cells.{suffix}"
    whole = MuData({"rna": rna, "prot": mdata["prot"]})
    whole.write(path, compression="gzip") if suffix == "h5mu" else whole.write_zarr(path)
    stored = sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())
    assert stored < counts.nbytes / 20
    np.testing.assert_array_equal(totalvi.read(path)["rna"].X.toarray(), counts)
