"""Folders of runs, small enough to make for the tests."""

import shutil
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

EVIL = "<script>alert(1)</script>"
N_CELLS = 60


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the explorer reads of a run; a protein's name is a script."""
    from totalvi.data.simulate import simulate
    from totalvi.model import Model

    data = simulate(n_cells=400, n_genes=60, n_proteins=6, n_batches=2, seed=0)
    with mudata.set_options(pull_on_update=False):
        data["prot"].var_names = [EVIL, *data["prot"].var_names[1:]]
        data.update()
        model = Model(data, batch_key="batch", n_hidden=16, n_latent=4)
        model.train(max_epochs=2, progress=False)
        rna, protein = model.get_normalized_expression(progress=False)
        data["rna"].layers["denoised"] = rna.to_numpy("float32")
        data["prot"].layers["denoised"] = protein.to_numpy("float32")
        data.obsm["X_umap"] = model.get_latent_representation(progress=False)[:, :2]
        folder = tmp_path_factory.mktemp("explored") / "results"
        folder.mkdir()
        data.write(folder / "results.h5mu")
    model.save(folder / "model.totalvi")
    return folder


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of made-up results, which no test may change."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"leiden_totalvi": pd.Categorical(list("ab") * (N_CELLS // 2))})
    obs.index = [f"cell_{i}" for i in range(N_CELLS)]
    rna = AnnData(
        sparse.csr_matrix(rng.poisson(0.5, (N_CELLS, 4)).astype(np.float32)), obs=obs.copy()
    )
    rna.layers["denoised"] = rng.gamma(1, 1, (N_CELLS, 4)).astype(np.float32)
    protein = AnnData(rng.poisson(9, (N_CELLS, 2)).astype(np.float32), obs=obs.copy())
    protein.var_names = ["CD3", EVIL]
    protein.X[0, 0] = np.nan
    protein.layers["denoised"] = rng.gamma(2, 9, (N_CELLS, 2)).astype(np.float32)
    protein.layers["foreground_probability"] = rng.uniform(size=(N_CELLS, 2)).astype(np.float32)
    with mudata.set_options(pull_on_update=False):
        mdata = MuData({"rna": rna, "prot": protein})
        mdata.obs = obs
        mdata.obsm["X_umap"] = rng.normal(size=(N_CELLS, 2)).astype(np.float32)
        path = tmp_path_factory.mktemp("made_up") / "results.h5mu"
        mdata.write(path)
    return path


@pytest.fixture
def folder(made_up: Path, tmp_path: Path) -> Path:
    """Return a folder with made-up results and no model."""
    shutil.copy(made_up, tmp_path)
    return tmp_path
