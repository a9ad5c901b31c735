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
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import Draw
from totalvi.posterior.expression import normalized_expression
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.question import Question

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


def question(
    data: CiteData, network: TOTALVI, cells: np.ndarray, seed: int = 0, **given: Any
) -> Question:
    """A question about cells, with noise of its own."""
    return Question(network, data, cells, CellNoise(seed), progress=False, **given)


def denoised(asked: Question, *, return_mean: bool = True, **given: Any) -> tuple[Any, Any]:
    """Denoised RNA and protein of all cells of a question, as `Model.get_normalized_expression`."""
    given = {"genes": np.arange(N_GENES), "proteins": np.arange(N_PROTEINS)} | given
    tables = {"rna": asked.table(given["genes"]), "protein": asked.table(given["proteins"])}

    def rows(batch: Minibatch) -> dict[str, np.ndarray]:
        rna, protein = normalized_expression(asked, batch, return_mean=return_mean, **given)
        return {"rna": rna.numpy(), "protein": protein.numpy()}

    found = asked.rows("denoised", tables, rows, each_sample=not return_mean)
    assert isinstance(found, dict)
    return found["rna"], found["protein"]


def parameters_of(network: TOTALVI, draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters of RNA and protein counts at a draw, as ``px_`` and ``py_`` of 0.6.x."""
    genes = network.gene_parameters(draw.decoded, draw.library_size, draw.context)
    log_background = draw.proteins.log_background
    return genes, network.protein_parameters(draw.decoded, log_background, draw.context)
