"""Parameters of the counts of a minibatch, and counts that are drawn with them."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from totalvi.fit.batches import Minibatch
from totalvi.nn.likelihoods import ProteinMixture
from totalvi.nn.network import Network
from totalvi.posterior.calibration import predictive_proteins
from totalvi.posterior.draws import (
    Draw,
    GeneParameters,
    gene_parameters,
    protein_mixture,
)
from totalvi.posterior.noise import CellNoise, negative_binomial_counts
from totalvi.posterior.question import Question


def mean_parameters(
    question: Question, batch: Minibatch, genes: np.ndarray, proteins: np.ndarray
) -> dict[str, Tensor]:
    """Return the posterior mean of each parameter of the counts' distributions, (B, features).

    They are "mean" and, for "zinb", "dropout" of RNA; "protein_background_mean",
    "protein_foreground_mean" and "protein_mixing". What a panel lacks is answered as the question says.
    """
    n_batches = len(question.transform_batch)
    totals: dict[str, Tensor] = {}
    for i, draw in enumerate(question.draws(batch)):
        of_rna = genes if i % question.n_decoded < n_batches else genes[:0]
        share = question.share(i, batch)
        of_protein = share[:, proteins] if isinstance(share, Tensor) else share
        for name, value in _parameters(question, draw, of_rna, proteins).items():
            value *= of_protein if name.startswith("protein_") else 1 / n_batches
            totals[name] = totals[name].add_(value) if name in totals else value
    return {name: total / question.n_samples for name, total in totals.items()}


def _parameters(
    question: Question, draw: Draw, genes: np.ndarray, proteins: np.ndarray
) -> dict[str, Tensor]:
    protein = protein_mixture(question.network, draw, proteins)
    values = {
        "protein_background_mean": protein.background_mean(),
        "protein_foreground_mean": protein.log_foreground.exp(),
        "protein_mixing": protein.background_probability(),
    }
    if len(genes):
        gene = gene_parameters(question.network, draw, genes)
        values["mean"] = gene.log_mean.exp()
        if gene.dropout_logit is not None:
            values["dropout"] = gene.dropout_logit.sigmoid()
    return values


def predictive_counts(
    question: Question, batch: Minibatch, genes: np.ndarray, proteins: np.ndarray
) -> tuple[list[sparse.csr_matrix], np.ndarray]:
    """Draw counts for a minibatch: z, l, b and background or foreground, then the counts.

    Returns
    -------
    RNA, one CSR matrix (B, genes) for each sample, and protein (n_samples, B, proteins), float32; what
    a panel lacks is answered as the question says, each count by one of the batches decoded into.
    """
    network, noise = question.network, question.noise
    rna = []
    protein = np.full((question.n_samples, len(batch.cells), len(proteins)), np.nan, np.float32)
    for i, draw in enumerate(question.draws(batch)):
        position = i % question.n_decoded
        if position < len(question.transform_batch):
            counts = np.empty((len(batch.cells), 0), dtype=np.float32)
            if len(genes):
                parameters = gene_parameters(network, draw, genes)
                counts = gene_counts(parameters, noise, draw.sample, batch.keys, genes)
            rna.append(sparse.csr_matrix(counts))
        of_draw = protein_counts(
            network, predictive_proteins(question, draw, proteins), noise, draw.sample,
            batch.keys, proteins,
        )  # fmt: skip
        answers = _answers(question, batch, draw.sample, position)[:, proteins]
        protein[draw.sample] = np.where(answers, of_draw, protein[draw.sample])
    return rna, protein


def _answers(question: Question, batch: Minibatch, sample: int, position: int) -> np.ndarray:
    """Return which protein counts of a sample are of the batch decoded into at a position, (B, T).

    Each is of one batch, drawn with the shares that the batches have in its mean; NaN of none.
    """
    if question.shares is None:
        return np.ones(batch.y.shape, dtype=bool)
    ends = question.shares[batch.context.panel].cumsum(dim=1)
    uniform = question.noise.uniform("batch", sample, batch.keys, 1).to(ends.device)
    at = uniform * ends[:, -1]
    answers = at < ends[:, position]
    if position:
        answers &= at >= ends[:, position - 1]
    found: np.ndarray = answers.cpu().numpy()
    return found


def gene_counts(
    parameters: GeneParameters,
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
    network: Network,
    mixture: ProteinMixture,
    noise: CellNoise,
    sample: int,
    keys: np.ndarray,
    proteins: np.ndarray,
) -> np.ndarray:
    """Return protein counts (B, t) of cells with ``keys`` for the proteins at positions ``proteins``.

    Which counts are background is the same draw as in denoised expression with
    ``sample_protein_mixing``.
    """
    uniform = noise.uniform("mixing", sample, keys, network.n_input_proteins)[:, proteins]
    in_background = mixture.background_probability()
    is_background = uniform.to(in_background.device) < in_background
    log_mean = torch.where(is_background, mixture.log_background, mixture.log_foreground)
    return negative_binomial_counts(
        noise,
        sample,
        keys,
        network.n_input_genes + proteins,  # proteins are numbered after the genes
        log_mean.exp().cpu().numpy(),
        mixture.log_r.exp().cpu().numpy(),
    )
