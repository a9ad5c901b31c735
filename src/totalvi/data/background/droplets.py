"""Detect the empty droplets among the barcodes of a raw matrix."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.columns import Columns, joined_obs, names_of
from totalvi.data.counts import evenly_spaced
from totalvi.data.find import genes_and_proteins
from totalvi.errors import DataError, did_you_mean, listed

ANY_BATCH = ""  # name for cells and droplets whose batch does not matter
MOST_DROPLETS = 20_000
# Shares of the median cell; barcodes with more are debris, or cells that were not called.
_MOST_RNA_OF_A_CELL = 0.1
_MOST_PROTEIN_OF_A_CELL = 0.5
_BIN = 0.25  # of log totals
_WIDTH = np.log(4.0)
_OUTLIER = 4.0  # robust standard deviations
_BARCODE = re.compile("[ACGT]{12,}")


class Barcodes(NamedTuple):
    """Totals and proteins of all barcodes of a raw matrix.

    Parameters
    ----------
    where
        Name of the matrix, for messages.
    names, obs
        Names and annotation of the barcodes.
    rna_total, protein
        Their RNA counts, (N,), and protein counts, (N, T).
    protein_names
        Names of the T proteins.
    """

    where: str
    names: pd.Index
    obs: pd.DataFrame
    rna_total: np.ndarray
    protein: sparse.csr_matrix
    protein_names: pd.Index

    def are_cells(self, cells: pd.Index) -> np.ndarray:
        """Mark the barcodes that are cells: by name, or by nucleotides if no name matches."""
        by_name = np.asarray(self.names.isin(cells))
        if by_name.any() or not len(cells):
            return by_name
        found = {match.group() for match in map(_BARCODE.search, cells) if match}
        if not found:
            return by_name
        matches = map(_BARCODE.search, self.names)
        is_cell = [match is not None and match.group() in found for match in matches]
        return np.array(is_cell, dtype=bool)

    def require_proteins(self, proteins: pd.Index) -> None:
        """Refuse a raw matrix that lacks some of the proteins of the cells."""
        missing = proteins[~proteins.isin(self.protein_names)]
        if len(missing):
            raise DataError(
                f"{self.where} lacks {len(missing)} of the {len(proteins)} proteins of the cells, "
                f"{listed(missing, at_most=3)}; give the raw matrix of the same run."
            )

    def require_cells(self, cells: pd.Index) -> None:
        """Refuse a raw matrix that lacks some of the cells."""
        if len(self.names) < len(cells):
            raise DataError(
                f"{self.where} holds {len(self.names):,} barcodes and there are {len(cells):,} cells; "
                "the raw matrix holds them all, so the two may be swapped."
            )
        n_missing = len(cells) - int(self.are_cells(cells).sum())
        if n_missing > 0:
            raise DataError(
                f"{self.where} lacks {n_missing:,} of the {len(cells):,} cells; give the raw matrix of "
                "the same run."
            )


def batches_of_cells(data: MuData | AnnData, columns: Columns) -> pd.Series:
    """Return the batch of each cell, by cell name; `ANY_BATCH` without a column of batches."""
    if isinstance(data, MuData):
        obs = joined_obs(data, data[columns.rna_modality], data[columns.protein_modality])
    else:
        obs = pd.DataFrame(data.obs)
    key = columns.batch_key
    if key is not None and key not in obs:
        raise DataError(
            f'no column "{key}" in obs of the cells; {did_you_mean(key, map(str, obs))}.'
        )
    values = ANY_BATCH if key is None else obs[key].astype(str).to_numpy(object)
    return pd.Series(values, index=names_of(obs.index), dtype=object)


def find_barcodes(raw: MuData | AnnData, columns: Columns, where: str) -> Barcodes:
    """Find the counts of all barcodes in a raw matrix, which must have RNA and proteins.

    Raises
    ------
    DataError
        When it lacks one of the two, or does not hold counts.
    """
    if isinstance(raw, AnnData):
        is_gene, is_protein = genes_and_proteins(raw.var)
        if not is_protein.any():
            raise _no_proteins(where)
        genes, proteins = raw[:, is_gene], raw[:, is_protein]
        raw = MuData({columns.rna_modality: genes, columns.protein_modality: proteins})
    if columns.protein_modality not in raw.mod:
        raise _no_proteins(where)
    if columns.rna_modality not in raw.mod:
        raise DataError(f"{where} holds no RNA; give the matrix with both RNA and proteins.")
    rna, protein = raw[columns.rna_modality], raw[columns.protein_modality]
    if not rna.obs_names.equals(protein.obs_names):
        raise DataError(
            f"{where} holds other barcodes for RNA than for proteins; give both of the same."
        )
    found = Barcodes(
        where,
        names_of(protein.obs_names),
        joined_obs(raw, rna, protein),
        np.asarray(rna.X.sum(axis=1), dtype=np.float64).ravel(),
        sparse.csr_matrix(protein.X),
        names_of(protein.var_names),
    )
    values = found.protein.data
    if (values < 0).any() or np.isinf(values).any():
        raise DataError(f"{where} holds negative or infinite values; give raw counts.")
    return found


def _no_proteins(where: str) -> DataError:
    return DataError(
        f"{where} holds no antibodies, whose ambient counts are asked for; give the raw matrix with "
        "RNA and proteins."
    )


def choose_empty_droplets(
    rna_total: np.ndarray, protein: np.ndarray | sparse.csr_matrix, is_cell: np.ndarray
) -> np.ndarray:
    """Return the positions of the barcodes that are droplets without a cell.

    Barcodes that are cells, or have as much RNA or protein as damaged cells, are left out. Most of the
    other barcodes may be blank, with a count or two from sequencing errors, but most molecules are in
    empty droplets. The droplets are therefore those within fourfold of the protein total at which most
    molecules are. Barcodes with unusual RNA or protein proportions, such as debris of cells and clumps
    of antibody, are then left out too.

    Parameters
    ----------
    rna_total
        RNA counts of each barcode, (N,).
    protein
        Protein counts, (N, T).
    is_cell
        Which barcodes are cells, (N,); without cells, totals of cells set no limit.

    Returns
    -------
    Positions, at most 20,000 evenly spaced ones; none if no barcode looks like a droplet.

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
    chosen = evenly_spaced(chosen, MOST_DROPLETS, rounding="down")
    is_droplet = _not_high(np.log(_misfit(protein[chosen].toarray())))
    return np.asarray(chosen[is_droplet])


def _total(protein: sparse.csr_matrix) -> np.ndarray:
    """Return the sum of each row without NaN (unmeasured)."""
    measured = protein.copy()
    measured.data = np.nan_to_num(measured.data)
    return np.asarray(measured.sum(axis=1), dtype=np.float64).ravel()


def _where_most_molecules_are(log_total: np.ndarray) -> float:
    """Return the middle of the bin of log totals with the most molecules, smoothed over three bins."""
    edges = np.arange(0.0, log_total.max() + 2 * _BIN, _BIN)
    molecules = np.histogram(log_total, edges, weights=np.exp(log_total))[0]
    smooth = np.convolve(molecules, [0.5, 1.0, 0.5], mode="same")
    return float(edges[smooth.argmax()] + _BIN / 2)


def _not_high(values: np.ndarray) -> np.ndarray:
    """Mark the values that are not far above the median, measured in robust standard deviations."""
    if not len(values):
        return np.zeros(0, dtype=bool)
    centre = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - centre))), 0.1)
    return np.asarray(values <= centre + _OUTLIER * spread)


def _misfit(protein: np.ndarray) -> np.ndarray:
    """Return each droplet's mean squared residual of proteins from the pooled proportions.

    The residuals are Pearson's. Their inverse dispersion of 4 gives little weight to a few more
    counts of an abundant protein, which every droplet has.
    """
    protein = protein[:, ~np.isnan(protein).any(axis=0)]
    share = (protein.sum(axis=0) + 0.5) / (protein.sum() + 0.5 * protein.shape[1])
    expected = protein.sum(axis=1, keepdims=True) * share
    squared = (protein - expected) ** 2 / (expected + expected**2 / 4)
    return np.asarray(squared.mean(axis=1) + 1e-3)
