"""The whole run: what it writes, that it repeats, and that a failure leaves nothing."""

import json
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from totalvi import Model
from totalvi.data.simulate import simulate
from totalvi.errors import DataError, OutputError
from totalvi.report.build import build_report
from totalvi.run import after_fit
from totalvi.run.record import sha256
from totalvi.run.run import RunResult, run

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

N_CELLS, N_GENES, N_PROTEINS = 150, 60, 28
N_CONTROLS = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("run")
    data = simulate(n_cells=N_CELLS, n_genes=N_GENES, n_proteins=N_PROTEINS, n_batches=2, seed=2)
    data.write(folder / "cells.h5mu")
    return run(
        folder / "cells.h5mu",
        folder / "out",
        batch_key="batch",
        labels_key="cell_type",
        n_genes=40,
        max_epochs=2,
    )


@pytest.fixture(scope="module")
def results(made: RunResult) -> mudata.MuData:
    with mudata.set_options(pull_on_update=False):
        return mudata.read_h5mu(made.folder / "results.h5mu")


def test_all_files_are_there(made: RunResult) -> None:
    assert {path.as_posix() for path in made.files if path.parts[0] != "model.totalvi"} == {
        "figures/protein_histograms_1.png",
        "figures/protein_histograms_2.png",
        "figures/training.png",
        "figures/umap_batches.png",
        "figures/umap_clusters.png",
        "figures/umap_labels.png",
        "figures/umap_proteins_1.png",
        "figures/umap_proteins_2.png",
        "results.h5mu",
        "run.json",
        "tables/background.csv",
        "tables/batches.csv",
        "tables/isotype_controls.csv",
        "tables/cells.csv.gz",
        "tables/differential_expression.csv.gz",
        "tables/predictive_calibration.csv",
        "tables/predictive_checks.csv",
        "tables/clusters.csv",
        "tables/doublets.csv",
        "tables/history.csv",
        "tables/markers.csv",
        "tables/proteins.csv",
    }
    assert all((made.folder / path).stat().st_size > 0 for path in made.files)
    assert {p.name for p in made.folder.parent.iterdir()} == {"cells.h5mu", "out"}


def test_results_hold_counts_and_estimates(made: RunResult, results: mudata.MuData) -> None:
    with mudata.set_options(pull_on_update=False):
        given = mudata.read_h5mu(made.folder.parent / "cells.h5mu")
    rna, protein = results["rna"], results["prot"]
    assert results.obs_names.equals(given.obs_names)
    np.testing.assert_array_equal(
        rna.X.toarray(), given["rna"][:, rna.var_names].X.astype(np.float32).toarray()
    )
    is_control = given["prot"].var["control"].to_numpy(dtype=bool)
    assert is_control.sum() == N_CONTROLS
    np.testing.assert_array_equal(protein.X, given["prot"].X[:, ~is_control])
    np.testing.assert_array_equal(results["isotype"].X, given["prot"].X[:, is_control])
    assert rna.n_vars == 40
    for layer in (
        rna.layers["denoised"],
        protein.layers["denoised"],
        protein.layers["foreground_probability"],
    ):
        assert layer.dtype == np.float32
        assert np.isfinite(layer).all()
        assert (layer >= 0).all()
    np.testing.assert_allclose(rna.layers["denoised"].sum(axis=1), 1e4, rtol=1e-4)
    assert protein.layers["foreground_probability"].max() <= 1
    for holder in (results, rna, protein):
        assert holder.obsm["X_totalvi"].shape == (N_CELLS, 20)
        assert holder.obsm["X_umap"].shape == (N_CELLS, 2)
        assert holder.obs["leiden_totalvi"].notna().all()
        assert holder.obs["batch"].tolist() == given.obs["batch"].tolist()


def test_scanpy_works_on_the_results(results: mudata.MuData) -> None:
    rna = results["rna"].copy()
    sc.pp.neighbors(rna, use_rep="X_totalvi")
    assert sparse.issparse(rna.obsp["connectivities"])
    embedded = sc.get.obs_df(results["prot"], ["leiden_totalvi"], [("X_umap", 0)])
    assert embedded.shape == (N_CELLS, 2)


def test_the_model_loads_on_the_results(made: RunResult, results: mudata.MuData) -> None:
    model = Model.load(made.folder / "model.totalvi", results)
    np.testing.assert_allclose(
        model.get_latent_representation(), results.obsm["X_totalvi"], atol=1e-5
    )


def test_tables_agree_with_the_results(made: RunResult, results: mudata.MuData) -> None:
    tables = made.folder / "tables"
    cells = pd.read_csv(tables / "cells.csv.gz", index_col="cell", dtype={"cluster": str})
    assert cells.index.tolist() == results.obs_names.tolist()
    assert cells["cluster"].tolist() == results.obs["leiden_totalvi"].tolist()
    np.testing.assert_allclose(
        cells[["umap_1", "umap_2"]], results.obsm["X_umap"], rtol=1e-4, atol=1e-4
    )
    proteins = pd.read_csv(tables / "proteins.csv", index_col="protein", keep_default_na=False)
    assert proteins.index.tolist() == results["prot"].var_names.tolist()
    clusters = pd.read_csv(tables / "clusters.csv", index_col="cluster")
    assert clusters["cells"].sum() == N_CELLS
    assert len(pd.read_csv(tables / "history.csv")) == 2
    markers = pd.read_csv(tables / "markers.csv")
    assert set(markers["feature"]) <= {*results["rna"].var_names, *results["prot"].var_names}


def test_the_record_says_what_was_done(made: RunResult, results: mudata.MuData) -> None:
    record = json.loads((made.folder / "run.json").read_text())
    assert record == json.loads(json.dumps(made.record))
    assert record["arguments"]["max_epochs"] == 2
    assert record["arguments"]["seed"] == 0
    assert list(record["input_sha256"].values()) == [sha256(made.folder.parent / "cells.h5mu")]
    assert (record["cells"], record["genes"], record["proteins"]) == (
        N_CELLS,
        40,
        N_PROTEINS - N_CONTROLS,
    )
    assert np.isfinite(record["held_out_loss_per_cell"])
    assert {"read", "train", "clusters and UMAP", "figures", "save"} <= set(record["seconds"])


def test_the_same_seed_gives_the_same_results(made: RunResult, tmp_path: Path) -> None:
    with mudata.set_options(pull_on_update=False):
        given = mudata.read_h5mu(made.folder.parent / "cells.h5mu")
    again = run(
        given,
        tmp_path / "out",
        batch_key="batch",
        labels_key="cell_type",
        n_genes=40,
        max_epochs=2,
    )
    for name in ("tables/cells.csv.gz", "tables/proteins.csv", "tables/markers.csv"):
        pd.testing.assert_frame_equal(
            pd.read_csv(again.folder / name), pd.read_csv(made.folder / name)
        )
    weights = "model.totalvi/weights.safetensors"
    assert (again.folder / weights).read_bytes() == (made.folder / weights).read_bytes()
    assert again.record["input_sha256"] == {}


def test_a_failed_run_leaves_what_was_there(
    made: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.folder.parent.rglob("*")}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(after_fit, "cluster_all", fail)
    for name in ("out", "new"):
        with pytest.raises(OutputError, match="No space left"):
            run(
                made.folder.parent / "cells.h5mu",
                made.folder.parent / name,
                max_epochs=1,
                overwrite=True,
            )
        (made.folder.parent / f"{name}.checkpoint").unlink()  # the fit itself had succeeded
        assert {p: p.stat().st_mtime_ns for p in made.folder.parent.rglob("*")} == before


def test_an_existing_output_is_refused_before_reading(made: RunResult) -> None:
    with pytest.raises(OutputError, match="not empty"):
        run(made.folder.parent / "nothing.h5mu", made.folder)
    with pytest.raises(OutputError, match="lies in the output"):
        run(made.folder / "results.h5mu", made.folder, overwrite=True)


@pytest.mark.parametrize("option", ["input", "protein_path"])
@pytest.mark.parametrize(
    "place", ["out/tables/adt.csv", "out/tables/link.csv", "link.csv", "also_out/tables/adt.csv"]
)
def test_nothing_that_is_read_may_lie_in_the_output(
    tmp_path: Path, option: str, place: str
) -> None:
    (tmp_path / "out" / "tables").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text('{"versions": {"totalvi": "1"}}')
    for name in ("out/tables/adt.csv", "outside.csv"):
        (tmp_path / name).write_text("cell,CD3\na,1\n")
    (tmp_path / "out" / "tables" / "link.csv").symlink_to(tmp_path / "outside.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "out" / "tables" / "adt.csv")
    (tmp_path / "also_out").symlink_to("out")
    paths = {"input": tmp_path / "outside.csv", option: tmp_path / place}
    for output in ("out", "also_out"):
        with pytest.raises(OutputError, match="lies in the output"):
            run(**paths, output=tmp_path / output, overwrite=True)


def test_unmeasured_proteins_and_odd_names_come_through(tmp_path: Path) -> None:
    data = simulate(
        n_cells=60, n_genes=30, n_proteins=6, n_batches=2, n_unmeasured=2, seed=1, store_truth=False
    )
    data["prot"].var_names = ["CD3/CD4", "a b", "βeta", "x,y", 'q"q', "HLA-DR"]
    data.obs["donor (id)"] = data.obs["batch"].astype(str)
    data["rna"].uns["title"] = "Blood of <two> donors"
    made = run(data, tmp_path / "out", batch_key="donor (id)", max_epochs=1)
    with mudata.set_options(pull_on_update=False):
        results = mudata.read_h5mu(made.folder / "results.h5mu")
    np.testing.assert_array_equal(results["prot"].X, data["prot"].X)
    for name in ("denoised", "foreground_probability"):
        values = results["prot"].layers[name]
        assert np.array_equal(np.isnan(values), np.isnan(data["prot"].X))
    report = build_report(made.folder).read_text(encoding="utf-8")
    assert "<title>Blood of &lt;two&gt; donors: totalVI report</title>" in report


@pytest.mark.parametrize(
    ("item", "options"),
    [
        pytest.param(
            "bmmc_134proteins.h5mu",
            {"batch_key": "batch", "labels_key": "cell_type"},
            marks=pytest.mark.slow,
        ),
        pytest.param("pbmc10k.h5mu", {}, marks=pytest.mark.slow),
        pytest.param(  # 500 cells, and few steps an epoch
            "eccite_pbmc_49proteins.h5ad", {"max_epochs": 30}, marks=pytest.mark.slow
        ),
        ("10x_pbmc_10k_protein_v3_subset", {}),
    ],
)
def test_real_data_run(item: str, options: dict, shared: Path, tmp_path: Path) -> None:
    made = run(shared / "data" / item, tmp_path / "out", **({"max_epochs": 5} | options))
    assert np.isfinite(made.record["held_out_loss_per_cell"])
    assert made.record["clusters"] >= 1


def test_rna_without_proteins_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no proteins at all"):
        run(shared / "data" / "pbmc5k_rna.h5ad", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_size_factors_take_the_place_of_library_sizes(tmp_path: Path) -> None:
    data = simulate(n_cells=60, n_genes=30, n_proteins=4, seed=1, store_truth=False)
    data.obs["factor"] = np.linspace(1.0, 2.0, 60)
    made = run(data, tmp_path / "out", size_factor_key="factor", max_epochs=1)
    model = Model.load(made.folder / "model.totalvi", data)
    assert model.schema.columns.size_factor_key == "factor"
    assert made.record["arguments"]["size_factor_key"] == "factor"


def test_staining_levels_are_in_the_results_and_the_table_of_cells(tmp_path: Path) -> None:
    data = simulate(n_cells=60, n_genes=30, n_proteins=4, seed=1, store_truth=False)
    made = run(data, tmp_path / "out", staining_level=True, max_epochs=2, hierarchy="none")
    levels = mudata.read_h5mu(made.folder / "results.h5mu").obs["staining_level"]
    model = Model.load(made.folder / "model.totalvi", data)
    np.testing.assert_allclose(levels, model.get_staining_level(), rtol=1e-5)
    table = pd.read_csv(made.folder / "tables" / "cells.csv.gz", index_col=0)
    np.testing.assert_allclose(table["staining_level"], levels, rtol=1e-3)
