"""The parameters of a simulated population of cells: cell types, markers, batches, background."""

from typing import NamedTuple

import numpy as np

N_PROGRAMS = 3


class Parameters(NamedTuple):
    """What is true of all cells; K cell types, G genes, T proteins, S batches, P programs."""

    type_proportions: np.ndarray  # (K,)
    marker_of: np.ndarray  # (K, G) bool
    log_expression: np.ndarray  # (K, G), up to a constant per type
    gene_programs: np.ndarray  # (P, G) loadings of the variation within cell types
    log_batch_effect: np.ndarray  # (S, G)
    gene_inverse_dispersion: np.ndarray  # (G,)
    log_library_mean: np.ndarray  # (S,)
    log_library_sd: np.ndarray  # (S,)
    is_control: np.ndarray  # (T,) bool
    log_background_mean: np.ndarray  # (S, T)
    log_background_sd: np.ndarray  # (T,)
    foreground_factor: np.ndarray  # (K, T), of the mean cell of the type
    protein_programs: np.ndarray  # (P, T)
    foreground_probability: np.ndarray  # (K, T)
    protein_inverse_dispersion: np.ndarray  # (T,)


def draw_parameters(
    rng: np.random.Generator,
    *,
    n_genes: int,
    n_proteins: int,
    n_batches: int,
    n_cell_types: int,
    n_isotype_controls: int,
    median_library_size: float,
    batch_effect: float,
    n_ubiquitous: int = 0,
    median_foreground_factor: float = 30.0,
) -> Parameters:
    """Draw what is true of all cells; see `simulate` for the arguments."""
    marker_of = _marker_genes(rng, n_cell_types, n_genes)
    baseline = rng.normal(0.0, 2.0, n_genes)
    fold = rng.normal(2.2, 0.5, (n_cell_types, n_genes))
    varies = rng.random((N_PROGRAMS, n_genes)) < 0.3
    is_control = np.arange(n_proteins) >= n_proteins - n_isotype_controls
    positive = _positive_proteins(rng, n_cell_types, n_proteins - n_isotype_controls)
    positive[:, positive.shape[1] - n_ubiquitous :] = True
    positive = np.pad(positive, ((0, 0), (0, n_isotype_controls)))
    probability = np.where(
        positive, rng.uniform(0.92, 1.0, positive.shape), rng.uniform(0.0, 0.02, positive.shape)
    )
    strength = rng.normal(np.log(median_foreground_factor), 0.7, n_proteins)
    log_fold = strength + rng.normal(0.0, 0.4, positive.shape)
    background = np.clip(rng.normal(np.log(12), 0.8, n_proteins), np.log(2), np.log(50))
    least_log_fold = np.log(min(5.0, median_foreground_factor / 2))
    return Parameters(
        type_proportions=rng.dirichlet(np.full(n_cell_types, 8.0)),
        marker_of=marker_of,
        log_expression=baseline + fold * marker_of,
        gene_programs=rng.normal(0.0, 0.3, (N_PROGRAMS, n_genes)) * varies,
        log_batch_effect=rng.normal(0.0, batch_effect, (n_batches, n_genes)) * (n_batches > 1),
        gene_inverse_dispersion=np.exp(rng.normal(1.2, 0.6, n_genes)),
        log_library_mean=np.log(median_library_size)
        + rng.normal(0.0, 0.2, n_batches) * (n_batches > 1),
        log_library_sd=rng.uniform(0.4, 0.6, n_batches),
        is_control=is_control,
        log_background_mean=background
        + rng.normal(0.0, 1.5 * batch_effect, (n_batches, n_proteins)) * (n_batches > 1),
        log_background_sd=rng.uniform(0.3, 0.5, n_proteins),
        foreground_factor=np.where(is_control, 1.0, np.exp(np.maximum(log_fold, least_log_fold))),
        protein_programs=rng.normal(0.0, 0.15, (N_PROGRAMS, n_proteins)),
        foreground_probability=np.where(is_control, 0.0, probability),
        protein_inverse_dispersion=np.exp(rng.normal(2.3, 0.4, n_proteins)),
    )


def _is_relative(n_cell_types: int) -> np.ndarray:
    """Which cell types are close relatives of the one before: 1, 4, 7, ..."""
    return np.arange(n_cell_types) % 3 == 1


def _marker_genes(rng: np.random.Generator, n_cell_types: int, n_genes: int) -> np.ndarray:
    """Draw the marker genes of each type, a fifth of all genes; relatives share 60 % of theirs."""
    n_each = max(1, n_genes // (5 * n_cell_types))
    order = rng.permutation(n_genes)
    markers = np.zeros((n_cell_types, n_genes), dtype=bool)
    relative = _is_relative(n_cell_types)
    for k in range(n_cell_types):
        own = order[k * n_each : (k + 1) * n_each]
        markers[k, own] = True
        if relative[k]:
            shared = int(0.6 * n_each)
            elder = order[(k - 1) * n_each : k * n_each]
            markers[k, own[:shared]] = False
            markers[k, elder[:shared]] = True
    return markers


def _positive_proteins(rng: np.random.Generator, n_cell_types: int, n_proteins: int) -> np.ndarray:
    """Draw which types carry which proteins; protein k marks type k, relatives differ least."""
    positive = rng.random((n_cell_types, n_proteins)) < 0.3
    relative = _is_relative(n_cell_types)
    positive[relative] = positive[np.flatnonzero(relative) - 1]
    for k in range(min(n_cell_types, n_proteins)):
        positive[k, k] = True
        if relative[k]:
            positive[k, k - 1] = positive[k - 1, k] = False
    if n_cell_types > 1:  # each protein needs cells with and cells without it
        anyone = rng.integers(n_cell_types, size=n_proteins)
        nowhere, everywhere = ~positive.any(axis=0), positive.all(axis=0)
        positive[anyone[nowhere], np.flatnonzero(nowhere)] = True
        other = np.where(anyone == np.arange(n_proteins), (anyone + 1) % n_cell_types, anyone)
        positive[other[everywhere], np.flatnonzero(everywhere)] = False
    return positive
