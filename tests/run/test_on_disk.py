import numpy as np
import pytest

import totalvi
from totalvi.data.columns import Columns
from totalvi.data.counts import SparseOnDisk
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.errors import OutputError
from totalvi.explorer.run_cells import RunCells
from totalvi.report.build import build_report
from totalvi.run import after_fit, clusters
from totalvi.run.prepare import prepare, prepare_on_disk
from totalvi.run.run import repeat, run
from totalvi.run.variable_genes import select_genes, select_genes_on_disk

KEYS = Columns(batch_key="batch")


@pytest.fixture(scope="module")
def mdata():
    return totalvi.simulate(1500, 300, 6, 2, seed=4, median_library_size=900, store_truth=False)


@pytest.fixture(scope="module")
def path(mdata, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5mu"
    mdata.write(path)
    return path


@pytest.mark.parametrize("by_batch", [False, True])
def test_genes_are_those_chosen_in_memory(mdata, path, by_batch):
    batch = mdata.obs["batch"].astype(str).to_numpy() if by_batch else None
    rna = mdata["rna"]
    often = np.asarray((rna.X > 0).sum(axis=0)).ravel() > 20  # rarer ones tie
    chosen = select_genes(rna.X, rna.var_names, n_genes=60, batch=batch)
    found = select_genes_on_disk(
        SparseOnDisk(open_on_disk(path)["rna"].X, "rna"), n_genes=60, batch=batch
    )
    assert found.sum() == 60
    np.testing.assert_array_equal(found[often], chosen[often])


def test_prepared_data_are_those_in_memory(mdata, tmp_path):
    gaps = mdata.copy()
    rna = gaps["rna"].X.tolil()
    rna[[3, 70]] = 0
    rna[:, 11] = 0
    gaps["rna"].X = rna.tocsr()
    gaps.write(tmp_path / "gaps.h5mu")
    expected = prepare(gaps, KEYS)
    store = tmp_path / "store.zarr"
    findings = prepare_on_disk(open_on_disk(tmp_path / "gaps.h5mu"), KEYS, store)
    found = totalvi.read(store)
    assert found.obs_names.equals(expected.mdata.obs_names)
    assert found["rna"].var_names.equals(expected.mdata["rna"].var_names)
    assert (found["rna"].X != expected.mdata["rna"].X).nnz == 0
    codes = {f.code for f in expected.findings}
    assert {f.code for f in findings} == codes
    assert {"cells_left_out", "genes_left_out"} <= codes


OPTIONS = {"batch_key": "batch", "labels_key": "cell_type", "progress": False}


@pytest.mark.slow
def test_a_run_on_disk_writes_what_one_in_memory_does(path, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "MAP_CELLS", 400)
    options = OPTIONS | {"max_epochs": 4}
    result = run(path, tmp_path / "disk", on_disk=True, **options)
    memory = run(path, tmp_path / "memory", **options)
    held_out = [r.record["held_out_loss_per_cell"] for r in (result, memory)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-6)
    names = {str(file) for file in memory.files} - {"results.h5mu"}
    assert {str(file) for file in result.files} == names | {"results.zarr"}
    store = totalvi.read(tmp_path / "disk" / "results.zarr")
    in_memory = totalvi.read(tmp_path / "memory" / "results.h5mu")
    np.testing.assert_array_equal(store.obs["leiden_totalvi"], in_memory.obs["leiden_totalvi"])
    np.testing.assert_array_equal(store.obsm["X_umap"], in_memory.obsm["X_umap"])
    assert {"X_totalvi", "X_umap"} <= set(store.obsm)
    assert store.obs["leiden_totalvi"].notna().all()
    assert store["prot"].layers["denoised"].shape == store["prot"].shape
    assert result.record["cells_on_map"] <= 402
    explored = RunCells(tmp_path / "disk")
    assert explored.on_disk
    assert explored.umap.shape == (store.n_obs, 2)
    page = build_report(tmp_path / "disk").read_text(encoding="utf-8")
    assert "<code>results.zarr</code>" in page
    assert "totalvi run --from" in page


@pytest.mark.slow
def test_a_run_on_disk_goes_on_and_is_repeated_with_controls_and_droplets(tmp_path):
    mdata = totalvi.simulate(300, 60, 8, 2, n_isotype_controls=2, seed=4, store_truth=False)
    mdata.write(tmp_path / "cells.h5mu")
    totalvi.simulate_raw(mdata, n_empty=400, seed=4).write(tmp_path / "raw.h5mu")
    options = OPTIONS | {"max_epochs": 3, "on_disk": True, "raw": tmp_path / "raw.h5mu"}
    whole = run(tmp_path / "cells.h5mu", tmp_path / "whole", **options)
    assert {"isotype_controls.csv", "background.csv", "ambient.csv"} <= {
        file.name for file in whole.files
    }
    store = totalvi.read(tmp_path / "whole" / "results.zarr")
    assert list(store["isotype"].var_names) == ["isotype_0", "isotype_1"]
    assert store["prot"].n_vars == 6
    assert any("empty droplets" in note for note in whole.record["notes"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(after_fit, "cluster_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cells.h5mu", tmp_path / "again", **options)
    assert (tmp_path / "again.checkpoint").exists()
    with pytest.raises(OutputError, match="go on with resume"):
        run(tmp_path / "cells.h5mu", tmp_path / "again", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("totalvi.fit.loop.Fit.step", None)  # the fit is there
        again = run(tmp_path / "cells.h5mu", tmp_path / "again", resume=True, **options)
    third = repeat(tmp_path / "whole" / "run.json", tmp_path / "third", progress=False)
    for other in (again, third):
        for name in ("held_out_loss_per_cell", "fingerprint", "clusters"):
            assert other.record[name] == whole.record[name]
    assert not (tmp_path / "again.checkpoint").exists()


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_data_in_memory_are_refused(mdata, tmp_path):
    with pytest.raises(ValueError, match="on_disk is for the path of a file"):
        run(mdata, tmp_path / "out", on_disk=True, progress=False)
