"""Which barcodes of a raw matrix are empty droplets."""

import numpy as np
from scipy import sparse

LEAST_DROPLETS = 20
MOST_DROPLETS = 20_000
_MOST_RNA_OF_A_CELL = 0.1  # of the median cell; more of it is debris, or a cell that was not called
_MOST_PROTEIN_OF_A_CELL = 0.5
_BIN = 0.25  # of log totals
_WIDTH = np.log(4.0)
_OUTLIER = 4.0  # robust standard deviations


def choose_empty_droplets(
    rna_total: np.ndarray, protein: np.ndarray | sparse.csr_matrix, is_cell: np.ndarray
) -> np.ndarray:
    """Return the positions of the barcodes that are droplets without a cell.

    Of the barcodes that are no cells, those with as much RNA or protein as damaged cells have are
    left out. Most molecules of the others are in empty droplets, although most of these barcodes may
    be blank, with a count or two each from errors of sequencing: so the droplets are looked for
    within fourfold of the protein total at which most molecules are. What then stands out by its RNA,
    or by proteins in other proportions than the rest, such as debris of cells and clumps of
    antibody, is left out too.

    Parameters
    ----------
    rna_total
        RNA counts of each barcode, (N,).
    protein
        Protein counts, (N, T).
    is_cell
        Which barcodes are cells, (N,); with none of them, their totals set no limit.

    Returns
    -------
    Positions, at most 20,000 evenly spaced ones; none when nothing looks like a droplet.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> protein = rng.poisson(np.repeat([[200], [10], [0.1]], [50, 300, 500], axis=0) * np.ones(5))
    >>> chosen = choose_empty_droplets(np.zeros(850), protein, np.arange(850) < 50)
    >>> len(chosen) > 280, bool(chosen.min() >= 50), bool(chosen.max() < 350)
    (True, True, True)
    """
    protein = sparse.csr_matrix(protein)
    total = _total(protein)
    likely = ~is_cell & (total > 0)
    if is_cell.any():
        most_rna = _MOST_RNA_OF_A_CELL * np.median(rna_total[is_cell])
        most_protein = _MOST_PROTEIN_OF_A_CELL * np.median(total[is_cell])
        likely &= (rna_total <= max(most_rna, 1)) & (total <= max(most_protein, 1))
    chosen = np.flatnonzero(likely)
    if not len(chosen):
        return chosen
    log_total = np.log(total[chosen])
    chosen = chosen[np.abs(log_total - _where_most_molecules_are(log_total)) <= _WIDTH]
    chosen = chosen[_not_high(np.log1p(rna_total[chosen]))]
    chosen = _thinned(chosen, MOST_DROPLETS)
    return chosen[_not_high(np.log(_misfit(protein[chosen].toarray())))]


def _total(protein: sparse.csr_matrix) -> np.ndarray:
    """Return the sum of each row, NaN (unmeasured) left out."""
    measured = protein.copy()
    measured.data = np.nan_to_num(measured.data)
    return np.asarray(measured.sum(axis=1), dtype=np.float64).ravel()


def _where_most_molecules_are(log_total: np.ndarray) -> float:
    """Return the middle of the bin of log totals that holds most molecules, smoothed over three."""
    edges = np.arange(0.0, log_total.max() + 2 * _BIN, _BIN)
    molecules = np.histogram(log_total, edges, weights=np.exp(log_total))[0]
    smooth = np.convolve(molecules, [0.5, 1.0, 0.5], mode="same")
    return float(edges[smooth.argmax()] + _BIN / 2)


def _not_high(values: np.ndarray) -> np.ndarray:
    """Mark the values that are not far above the median, in robust standard deviations."""
    if not len(values):
        return np.zeros(0, dtype=bool)
    centre = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - centre))), 0.1)
    return values <= centre + _OUTLIER * spread


def _misfit(protein: np.ndarray) -> np.ndarray:
    """Return how far each droplet's proteins are from the pooled proportions: mean squared residual.

    Residuals are Pearson's, with an inverse dispersion of 4 so that a few counts more of an abundant
    protein, as every droplet has, count little.
    """
    protein = protein[:, ~np.isnan(protein).any(axis=0)]
    share = (protein.sum(axis=0) + 0.5) / (protein.sum() + 0.5 * protein.shape[1])
    expected = protein.sum(axis=1, keepdims=True) * share
    squared = (protein - expected) ** 2 / (expected + expected**2 / 4)
    return np.asarray(squared.mean(axis=1) + 1e-3)


def _thinned(positions: np.ndarray, at_most: int) -> np.ndarray:
    """Return evenly spaced positions where there are more than ``at_most``."""
    if len(positions) <= at_most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, at_most).astype(np.int64)]
