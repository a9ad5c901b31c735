"""Counts drawn from the posterior predictive distribution."""

from collections.abc import Iterable, Iterator

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
def predictive_counts(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    noise: CellNoise,
    genes: np.ndarray,
    proteins: np.ndarray,
    *,
    n_samples: int,
    transform_batch: int | None,
) -> Iterator[tuple[list[sparse.csr_matrix], np.ndarray]]:
    """Yield counts drawn for each minibatch: z, l, b and background or foreground, then the counts.

    Parameters
    ----------
    genes, proteins
        Positions of the wanted features.
    transform_batch
        Code of the batch to decode into; None: each cell's own.

    Yields
    ------
    RNA, one CSR matrix (B, genes) a sample, and protein (n_samples, B, proteins), float32.
    """
    for batch in batches:
        rna = []
        protein = np.empty((n_samples, len(batch.cells), len(proteins)), dtype=np.float32)
        for draw in draws(module, batch, n_samples, noise, (transform_batch,)):
            counts = np.empty((len(batch.cells), 0), dtype=np.float32)
            if len(genes):
                parameters = gene_likelihood(module, draw, genes)
                counts = gene_counts(parameters, noise, draw.sample, batch.keys, genes)
            rna.append(sparse.csr_matrix(counts))
            protein[draw.sample] = protein_counts(
                module, protein_likelihood(module, draw, proteins), noise, draw.sample,
                batch.keys, proteins,
            )  # fmt: skip
        yield rna, protein


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
