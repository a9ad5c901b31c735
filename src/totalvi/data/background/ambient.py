"""Each protein's ambient distribution, from empty droplets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.data.finding import listed
from totalvi.errors import DataError

_LOG_SCALE_RANGE = (0.1, 1.5)


class Ambient(NamedTuple):
    """Of the count of each protein in empty droplets, (T,).

    Attributes
    ----------
    log_mean
        Log of the mean count.
    log_sd
        Standard deviation of the log of the rate that counts are drawn at.
    standard_error
        Of ``log_mean``, given the number of droplets.
    """

    log_mean: np.ndarray
    log_sd: np.ndarray
    standard_error: np.ndarray


def estimate_ambient(protein: np.ndarray) -> Ambient:
    """Estimate the ambient distribution of each protein from counts in empty droplets, (N, T).

    A count is Poisson at a log-normal rate: of mean m and variance ``m + m^2 (exp(sd^2) - 1)``. Half
    a count is added to each protein's sum, so that one without any has a finite, uncertain level.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rate = np.exp(rng.normal(np.log([1.0, 8.0, 60.0]), 0.4, (4000, 3)))
    >>> ambient = estimate_ambient(rng.poisson(rate))
    >>> (ambient.log_mean - np.log([1.0, 8.0, 60.0]) - 0.08).round(1) + 0, ambient.log_sd.round(1)
    (array([0., 0., 0.]), array([0.4, 0.4, 0.4]))
    """
    n_droplets = len(protein)
    mean = (protein.sum(axis=0, dtype=np.float64) + 0.5) / n_droplets
    excess = (protein.var(axis=0, dtype=np.float64) - mean) / mean**2
    return _ambient(mean, excess, n_droplets)


def pooled_ambient(log_mean: np.ndarray, log_sd: np.ndarray, n_droplets: np.ndarray) -> Ambient:
    """Return what the droplets of several estimates hold together.

    Parameters
    ----------
    log_mean, log_sd, n_droplets
        Of each estimate, (estimates, T); NaN where one lacks a protein.
    """
    mean = np.exp(log_mean)
    total = np.nansum(n_droplets, axis=0)
    pooled = np.nansum(n_droplets * mean, axis=0) / total
    square = np.nansum(n_droplets * mean**2 * np.exp(log_sd**2), axis=0) / total
    return _ambient(pooled, square / pooled**2 - 1, total)


def _ambient(mean: np.ndarray, excess: np.ndarray, n_droplets: float | np.ndarray) -> Ambient:
    """Return the distribution with this mean and squared coefficient of variation of the rate."""
    excess = np.clip(excess, *np.expm1(np.square(_LOG_SCALE_RANGE)))
    return Ambient(
        log_mean=np.log(mean),
        log_sd=np.sqrt(np.log1p(excess)),
        standard_error=np.sqrt((1 / mean + excess) / n_droplets),
    )


AMBIENT = "ambient"  # entry of uns
ANY_BATCH = ""
NUMBERS = ["log_mean", "log_sd", "standard_error", "n_droplets"]
COLUMNS = ["batch", "protein", *NUMBERS]


def ambient_in(uns: Mapping[str, Any]) -> pd.DataFrame | None:
    """Return the table that `totalvi.read` or `concat` left; None where there is none, or another's.

    Raises
    ------
    DataError
        When it has the columns of such a table and cannot be used.
    """
    found = uns.get(AMBIENT)
    if not isinstance(found, pd.DataFrame) or not set(COLUMNS) <= set(found):
        return None
    return checked_table(found, f'uns["{AMBIENT}"]')


def checked_table(given: Any, where: str) -> pd.DataFrame:
    """Return a table of `totalvi.ambient_profile`, its names as texts, once it is one.

    Raises
    ------
    DataError
        When it is something else, or a batch and protein have no row of finite numbers of their own.
    """
    fault = _fault(given)
    if fault is not None:
        raise DataError(
            f"{where} is not a table of totalvi.ambient_profile ({fault}): remove it, or give "
            "empty_droplets=False"
        )
    texts = {column: given[column].astype(str).astype(object) for column in ("batch", "protein")}
    return pd.DataFrame(
        given.assign(**texts, **{name: pd.to_numeric(given[name]) for name in NUMBERS})
    )


def _fault(given: Any) -> str | None:
    if not isinstance(given, pd.DataFrame):
        return f"but a {type(given).__name__}"
    missing = [column for column in COLUMNS if column not in given]
    if missing:
        return f"without {listed(missing)}"
    if given.empty:
        return "without rows"
    numbers = given[NUMBERS].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    least = [-np.inf, 0, 0, 1]
    for column, values, at_least in zip(NUMBERS, numbers.T, least, strict=True):
        if not (np.isfinite(values) & (values >= at_least)).all():
            return f'"{column}" has values that cannot be'
    names = given[["batch", "protein"]].astype(str)
    if names.duplicated().any():
        batch, protein = names[names.duplicated()].iloc[0]
        of_batch = f' in batch "{batch}"' if batch else ""
        return f'"{protein}" has several rows{of_batch}'
    return None


def of_batches(table: pd.DataFrame, batches: Sequence[str], prefix: str) -> pd.DataFrame:
    """Return what a data set's table says of each of its batches in the joined data.

    Rows of a batch that is there under the same name behind ``prefix`` are of it alone. The others,
    of lanes that were not kept apart or of all batches, are pooled, and stand for each batch that has
    none of its own.
    """
    named = prefix + table["batch"]
    others = table[~named.isin(batches)]
    parts = []
    for batch in batches:
        own = table[named == batch]
        rows = own if len(own) else others
        if len(rows):
            parts.append(_pooled(rows).assign(batch=batch))
    return pd.concat(parts, ignore_index=True)


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each protein, as if its droplets were estimated from together."""
    if not rows["protein"].duplicated().any():
        return rows
    tables = [
        rows.pivot(index="batch", columns="protein", values=column)[rows["protein"].unique()]
        for column in ("log_mean", "log_sd", "n_droplets")
    ]
    log_mean, log_sd, n_droplets = (table.to_numpy(float) for table in tables)
    ambient = pooled_ambient(log_mean, log_sd, n_droplets)
    pooled = pd.DataFrame({"protein": tables[0].columns.to_numpy(object), **ambient._asdict()})
    total = np.nansum(n_droplets, axis=0).astype(np.int64)
    return pooled.assign(batch=ANY_BATCH, n_droplets=total)[COLUMNS]


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
