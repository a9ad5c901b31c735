"""Random draws of a simulation: parameters of the population, then cells, then their counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from totalvi.errors import DataError, argument

CELLS_AT_A_TIME = 1000
N_PROGRAMS = 3
_DROPLET_DISPERSION = 10.0  # inverse dispersion of ambient counts


@dataclass(frozen=True)
class Arguments:
    """The arguments of `totalvi.simulate` that affect the counts."""

    n_cells: int
    n_genes: int
    n_proteins: int
    n_batches: int
    n_cell_types: int
    n_isotype_controls: int
    n_unmeasured: int
    n_ubiquitous: int
    median_foreground_factor: float
    median_library_size: float
    batch_effect: float
    seed: int


class Parameters(NamedTuple):
    """Parameters of all cells: K cell types, G genes, T proteins, S batches, P programs."""

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
    foreground_factor: np.ndarray  # (K, T), of the mean cell of each type
    protein_programs: np.ndarray  # (P, T)
    foreground_probability: np.ndarray  # (K, T)
    protein_inverse_dispersion: np.ndarray  # (T,)


class Cells(NamedTuple):
    """Parameters of each cell."""

    cell_type: np.ndarray  # (N,)
    batch: np.ndarray  # (N,)
    programs: np.ndarray  # (N, P)
    library_size: np.ndarray  # (N,)


def draw_parameters(rng: np.random.Generator, arguments: Arguments) -> Parameters:
    """Draw the parameters of all cells."""
    n_genes, n_proteins = arguments.n_genes, arguments.n_proteins
    n_batches, n_cell_types = arguments.n_batches, arguments.n_cell_types
    n_isotype_controls, batch_effect = arguments.n_isotype_controls, arguments.batch_effect
    marker_of = _marker_genes(rng, n_cell_types, n_genes)
    baseline = rng.normal(0.0, 2.0, n_genes)
    fold = rng.normal(2.2, 0.5, (n_cell_types, n_genes))
    varies = rng.random((N_PROGRAMS, n_genes)) < 0.3
    is_control = np.arange(n_proteins) >= n_proteins - n_isotype_controls
    positive = _positive_proteins(rng, n_cell_types, n_proteins - n_isotype_controls)
    positive[:, positive.shape[1] - arguments.n_ubiquitous :] = True
    positive = np.pad(positive, ((0, 0), (0, n_isotype_controls)))
    probability = np.where(
        positive, rng.uniform(0.92, 1.0, positive.shape), rng.uniform(0.0, 0.02, positive.shape)
    )
    strength = rng.normal(np.log(arguments.median_foreground_factor), 0.7, n_proteins)
    log_fold = strength + rng.normal(0.0, 0.4, positive.shape)
    background = np.clip(rng.normal(np.log(12), 0.8, n_proteins), np.log(2), np.log(50))
    least_log_fold = np.log(min(5.0, arguments.median_foreground_factor / 2))
    return Parameters(
        type_proportions=rng.dirichlet(np.full(n_cell_types, 8.0)),
        marker_of=marker_of,
        log_expression=baseline + fold * marker_of,
        gene_programs=rng.normal(0.0, 0.3, (N_PROGRAMS, n_genes)) * varies,
        log_batch_effect=rng.normal(0.0, batch_effect, (n_batches, n_genes)) * (n_batches > 1),
        gene_inverse_dispersion=np.exp(rng.normal(1.2, 0.6, n_genes)),
        log_library_mean=np.log(arguments.median_library_size)
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
    """Return which cell types are close relatives of the type before them: 1, 4, 7, ..."""
    return np.asarray(np.arange(n_cell_types) % 3 == 1)


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
    """Draw which types carry which proteins: protein k marks type k, and relatives differ least."""
    positive = rng.random((n_cell_types, n_proteins)) < 0.3
    relative = _is_relative(n_cell_types)
    positive[relative] = positive[np.flatnonzero(relative) - 1]
    for k in range(min(n_cell_types, n_proteins)):
        positive[k, k] = True
        if relative[k]:
            positive[k, k - 1] = positive[k - 1, k] = False
    if n_cell_types > 1:  # each protein needs cells that carry it and cells that do not
        anyone = rng.integers(n_cell_types, size=n_proteins)
        nowhere, everywhere = ~positive.any(axis=0), positive.all(axis=0)
        positive[anyone[nowhere], np.flatnonzero(nowhere)] = True
        other = np.where(anyone == np.arange(n_proteins), (anyone + 1) % n_cell_types, anyone)
        positive[other[everywhere], np.flatnonzero(everywhere)] = False
    return positive


def draw_cells(rng: np.random.Generator, parameters: Parameters, n_cells: int) -> Cells:
    """Draw the cell type, batch, programs and library size of each cell."""
    n_batches, n_types = len(parameters.log_library_mean), len(parameters.type_proportions)
    batch = rng.permutation(np.arange(n_cells) % n_batches)
    log_size = rng.normal(parameters.log_library_mean[batch], parameters.log_library_sd[batch])
    return Cells(
        cell_type=rng.choice(n_types, n_cells, p=parameters.type_proportions),
        batch=batch,
        programs=rng.normal(size=(n_cells, N_PROGRAMS)).astype(np.float32),
        library_size=np.exp(log_size),
    )


def negative_binomial(
    rng: np.random.Generator, mean: np.ndarray, inverse_dispersion: np.ndarray
) -> np.ndarray:
    """Draw counts of variance ``mean + mean^2 / inverse_dispersion``, as a gamma-Poisson mixture.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts = negative_binomial(rng, np.full(100_000, 6.0), np.array(2.0))
    >>> round(float(counts.mean()), 1), round(float(counts.var()))
    (6.0, 24)
    """
    rate = rng.standard_gamma(np.broadcast_to(inverse_dispersion, mean.shape))
    return np.asarray(rng.poisson(rate * (mean / inverse_dispersion)))


def draw_protein(rng: np.random.Generator, p: Parameters, cells: Cells) -> AnnData:
    """Draw the protein counts, and return them with their parameters."""
    background_log_mean = p.log_background_mean[cells.batch]
    background = np.exp(rng.normal(background_log_mean, p.log_background_sd))
    factor = p.foreground_factor[cells.cell_type] - 1
    factor = 1 + factor * np.exp(cells.programs @ p.protein_programs)  # alpha > 1 in every cell
    foreground = rng.random(background.shape) < p.foreground_probability[cells.cell_type]
    mean = np.where(foreground, background * factor, background)
    counts = negative_binomial(rng, mean, p.protein_inverse_dispersion)
    n_controls = int(p.is_control.sum())
    names = [f"protein_{t}" for t in range(len(p.is_control) - n_controls)]
    names += [f"isotype_{t}" for t in range(n_controls)]
    var = pd.DataFrame(
        {"control": p.is_control, "inverse_dispersion": p.protein_inverse_dispersion}, index=names
    )
    var["log_background_sd"] = p.log_background_sd
    return AnnData(
        counts.astype(np.float32),
        var=var,
        varm={
            "foreground_factor": p.foreground_factor.T,
            "foreground_probability": p.foreground_probability.T,
            "log_background_mean": p.log_background_mean.T,
        },
        layers={
            "foreground": foreground.astype(np.uint8),
            "background_mean": background.astype(np.float32),
            "denoised": np.where(foreground, mean, 0.0).astype(np.float32),
        },
    )


def draw_rna(rng: np.random.Generator, p: Parameters, cells: Cells, store_truth: bool) -> AnnData:
    """Draw the RNA counts, some cells at a time, so that memory holds only sparse counts of all."""
    log_expression = p.log_expression.astype(np.float32)
    gene_programs = p.gene_programs.astype(np.float32)
    log_batch_effect = p.log_batch_effect.astype(np.float32)
    n_cells = len(cells.batch)
    blocks, proportions = [], []
    for start in range(0, n_cells, CELLS_AT_A_TIME):
        some = slice(start, start + CELLS_AT_A_TIME)
        logits = log_expression[cells.cell_type[some]] + log_batch_effect[cells.batch[some]]
        logits += cells.programs[some] @ gene_programs
        rho = np.exp(logits - logits.max(axis=1, keepdims=True))
        rho /= rho.sum(axis=1, keepdims=True)
        mean = cells.library_size[some, None] * rho
        counts = negative_binomial(rng, mean, p.gene_inverse_dispersion)
        blocks.append(sparse.csr_matrix(counts.astype(np.float32)))
        if store_truth:
            proportions.append(rho)
    types = np.array([f"type_{k}" for k in range(len(p.type_proportions))])
    var = pd.DataFrame(
        {
            "marker_of": [", ".join(types[of]) for of in p.marker_of.T],
            "inverse_dispersion": p.gene_inverse_dispersion,
        },
        index=[f"gene_{g}" for g in range(len(p.gene_inverse_dispersion))],
    )
    layers = {"denoised": np.concatenate(proportions)} if store_truth else {}
    return AnnData(sparse.vstack(blocks, format="csr"), var=var, layers=layers)


def some_cells(cells: Cells, rows: slice, rng: np.random.Generator) -> Cells:
    """Return some of the cells, with programs drawn for them."""
    batch = cells.batch[rows]
    programs = rng.normal(size=(len(batch), N_PROGRAMS)).astype(np.float32)
    return Cells(cells.cell_type[rows], batch, programs, cells.library_size[rows])


def cell_names(n_cells: int) -> list[str]:
    """Return the names of the cells."""
    return [f"cell_{i}" for i in range(n_cells)]


def annotation(cells: Cells, p: Parameters) -> pd.DataFrame:
    """Return the ``obs`` of the cells."""
    columns: dict[str, Any] = {}
    for column, codes, n in (
        ("cell_type", cells.cell_type, len(p.type_proportions)),
        ("batch", cells.batch, len(p.log_library_mean)),
    ):
        word = column.removeprefix("cell_")
        columns[column] = pd.Categorical.from_codes(
            codes.astype(np.intp), pd.Index([f"{word}_{i}" for i in range(n)])
        )
    return pd.DataFrame(columns | {"library_size": cells.library_size})


def ambient_protein(
    rng: np.random.Generator, log_mean: np.ndarray, spread: np.ndarray | None
) -> np.ndarray:
    """Draw the protein counts of empty droplets, whose volumes differ, and whose proteins may."""
    log_rate = log_mean + rng.normal(0.0, 0.4, (len(log_mean), 1))
    if spread is not None:
        log_rate = log_rate + rng.normal(0.0, 1.0, log_rate.shape) * spread - spread**2 / 2
    return negative_binomial(rng, np.exp(log_rate), np.array(_DROPLET_DISPERSION))


def spread_of_proteins(given: Sequence[float] | None, n_proteins: int) -> np.ndarray | None:
    """Return the spread of each protein between droplets, (T,), after a check."""
    if given is None:
        return None
    spread = np.asarray(given, dtype=np.float64)
    if spread.shape != (n_proteins,) or not (np.isfinite(spread) & (spread >= 0)).all():
        raise DataError(
            f"{argument('protein_spread')} has shape {spread.shape}; give {n_proteins} numbers from 0, "
            "one a protein."
        )
    return spread


def ambient_rna(
    rng: np.random.Generator, cells: sparse.csr_matrix, n_droplets: int
) -> sparse.csr_matrix:
    """Draw a hundredth of a cell's counts for each droplet, from the profile of the mean cell."""
    mean = 0.01 * np.asarray(cells.mean(axis=0)).ravel()
    genes = rng.choice(len(mean), int(rng.poisson(mean.sum() * n_droplets)), p=mean / mean.sum())
    droplets = rng.integers(n_droplets, size=len(genes))
    ones = np.ones(len(genes), dtype=np.float32)
    return sparse.csr_matrix((ones, (droplets, genes)), shape=(n_droplets, len(mean)))


def debris_rna(rng: np.random.Generator, cells: sparse.csr_matrix) -> sparse.csr_matrix:
    """Draw a tenth of the RNA counts of cells."""
    thinned = cells.copy()
    thinned.data = rng.poisson(0.1 * thinned.data).astype(np.float32)
    thinned.eliminate_zeros()
    return thinned


def blank_protein(rng: np.random.Generator, log_mean: np.ndarray) -> np.ndarray:
    """Draw one to three counts for each barcode, from the ambient profile."""
    share = np.exp(log_mean)
    share /= share.sum(axis=1, keepdims=True)
    return rng.multinomial(rng.integers(1, 4, len(share)), share)
