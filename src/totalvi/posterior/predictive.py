"""Counts drawn from the posterior predictive distribution."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse

from totalvi.feed import Minibatch
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.counts import negative_binomial_counts
from totalvi.posterior.draws import draws
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.parameters import (
    GeneLikelihood,
    ProteinLikelihood,
    gene_likelihood,
    protein_likelihood,
)


@torch.no_grad()
def predictive_samples(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    noise: CellNoise,
    genes: np.ndarray,
    proteins: np.ndarray,
    *,
    n_samples: int,
    transform_batch: int | None,
) -> tuple[list[sparse.csr_matrix], np.ndarray]:
    """Return counts drawn for each cell: z, l, b and background or foreground, then the counts.

    Parameters
    ----------
    genes, proteins
        Positions of the wanted features.
    transform_batch
        Code of the batch to decode into; None: each cell's own.

    Returns
    -------
    RNA, one CSR matrix (cells, genes) a sample, and protein (n_samples, cells, proteins), float32.
    """
    rna: list[list[sparse.csr_matrix]] = [[] for _ in range(n_samples)]
    protein = []
    for batch in batches:
        by_sample = []
        samples = draws(module, batch, n_samples, noise, (transform_batch,))
        for draw in samples:
            counts = np.empty((len(batch.cells), 0), dtype=np.float32)
            if len(genes):
                parameters = gene_likelihood(module, draw, genes)
                counts = gene_counts(parameters, noise, draw.sample, batch.keys, genes)
            rna[draw.sample].append(sparse.csr_matrix(counts))
            by_sample.append(
                protein_counts(
                    module, protein_likelihood(module, draw, proteins), noise, draw.sample,
                    batch.keys, proteins,
                )
            )  # fmt: skip
        protein.append(np.stack(by_sample))
    return [sparse.vstack(parts, format="csr") for parts in rna], np.concatenate(protein, axis=1)


def gene_counts(
    parameters: GeneLikelihood,
    noise: CellNoise,
    sample: int,
    keys: np.ndarray,
    genes: np.ndarray,
) -> np.ndarray:
    """Return RNA counts (B, g) of cells with ``keys`` for the genes at positions ``genes``."""
    dropout = parameters.dropout_logit
    return negative_binomial_counts(
        noise,
        sample,
        keys,
        genes,
        parameters.log_mean.exp().cpu().numpy(),
        parameters.log_r.exp().cpu().numpy(),
        None if dropout is None else dropout.sigmoid().cpu().numpy(),
    )


def protein_counts(
    module: TOTALVI,
    parameters: ProteinLikelihood,
    noise: CellNoise,
    sample: int,
    keys: np.ndarray,
    proteins: np.ndarray,
) -> np.ndarray:
    """Return protein counts (B, t) of cells with ``keys`` for the proteins at positions ``proteins``.

    Which counts are background is the same draw as in denoised expression with
    ``sample_protein_mixing``.
    """
    uniform = noise.uniform("mixing", sample, keys, module.n_input_proteins)[:, proteins]
    is_background = uniform.to(parameters.background_logit.device) < torch.sigmoid(
        parameters.background_logit
    )
    log_mean = torch.where(is_background, parameters.log_background, parameters.log_foreground)
    return negative_binomial_counts(
        noise,
        sample,
        keys,
        module.n_input_genes + proteins,  # proteins are numbered after the genes
        log_mean.exp().cpu().numpy(),
        parameters.log_r.exp().cpu().numpy(),
    )
