"""Folders of runs, small enough to make for the tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from explorer.mouse import CHROMIUM, opened

EVIL = "<script>alert(1)</script>"
N_CELLS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's client")
    with playwright.sync_playwright() as client:
        yield client.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """Return the page of the explorer that a module's fixture ``url`` serves."""
    with opened(browser, url) as shown:
        yield shown


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
        donor = np.arange(400) % 6
        data.obs["donor"] = [f"donor {number}" for number in donor]
        data.obs["treatment"] = np.where(donor % 2, "drug", "none")
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


MARKERS = ("CD3", "CD19", "CD4", "CD8a", "CD14", "CD16")
# Of T4, T8, B and two kinds of monocytes: which markers have many counts.
TYPES = ((0, 2), (0, 3), (1,), (4,), (4, 5))
N_BLOOD = 500
EVIL_NAME = "<img src=x onerror=alert(3)>"


@pytest.fixture(scope="session")
def blood(tmp_path_factory: pytest.TempPathFactory) -> MuData:
    """Return cells of blood with real names of markers, two donors and no model."""
    rng = np.random.default_rng(3)
    kind = rng.integers(0, len(TYPES), N_BLOOD)
    high = np.array([[marker in shown for marker in range(6)] for shown in TYPES])[kind]
    counts = rng.poisson(rng.gamma(4, np.where(high, 200, 2)))
    obs = pd.DataFrame({"donor": rng.choice(["d1", "d2"], N_BLOOD), "kind": kind.astype(str)})
    obs["bad_sample"] = obs["donor"] + EVIL_NAME
    obs.index = [f"cell_{i}" for i in range(N_BLOOD)]
    protein = AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs.copy())
    protein.var_names = [f"{name}_TotalSeqB" for name in MARKERS]
    genes = rng.poisson(0.4 + 3 * high[:, :4])
    rna = AnnData(sparse.csr_matrix(genes.astype(np.float32)), obs=obs.copy())
    rna.var_names = ["CD3D", "MS4A1", "CD4", "CD8A"]
    with mudata.set_options(pull_on_update=False):
        mdata = MuData({"rna": rna, "prot": protein})
        mdata.obs = obs
    return mdata


@pytest.fixture(scope="session")
def blood_file(blood: MuData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blood") / "blood.h5mu"
    with mudata.set_options(pull_on_update=False):
        blood.write(path)
    return path
