"""Small random counts for tests."""

from typing import Any

import numpy as np
import torch
from mudata import MuData
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.data.columns import Columns
from totalvi.data.describe import describe
from totalvi.data.simulate import simulate

N_GENES, N_PROTEINS = 30, 6
SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 4}


def minibatch(
    n_cells: int = 7, n_genes: int = 12, n_proteins: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """RNA (B, G), mostly zeros, and protein counts (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.full((n_cells, n_genes), 0.6), generator=generator)
    x[:, 0] += 1  # no cell without RNA
    return x, torch.poisson(torch.full((n_cells, n_proteins), 20.0), generator=generator)


def library_prior(n_cells: int = 7) -> tuple[Tensor, Tensor]:
    """Prior mean and variance of the log library size, each (B, 1)."""
    return torch.full((n_cells, 1), 2.0), torch.full((n_cells, 1), 0.5)


def annotated(n_cells: int = 120, n_unmeasured: int = 0, n_batches: int = 2) -> MuData:
    """Simulated counts with every kind of annotation in ``obs``."""
    mdata = simulate(
        n_cells,
        N_GENES,
        N_PROTEINS,
        n_batches=n_batches,
        n_cell_types=3,
        n_unmeasured=n_unmeasured,
        store_truth=False,
        seed=3,
    )
    rng = np.random.default_rng(0)
    mdata.obs["age"] = rng.normal(50, 10, n_cells)
    mdata.obs["sex"] = rng.choice(["f", "m"], n_cells)
    mdata.obs["lane"] = rng.choice(["1", "2", "3"], n_cells)
    mdata.obs["size_factor"] = rng.uniform(0.5, 2, n_cells)
    return mdata


def described(n_cells: int = 120, **keys: Any) -> CiteData:
    """The same as arrays."""
    return describe(annotated(n_cells), Columns(**({"batch_key": "batch"} | keys)))
