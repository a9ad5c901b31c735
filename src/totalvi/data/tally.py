"""What the checks need to know of the counts, taken in one pass, some cells at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from totalvi.data.on_disk import row_blocks
from totalvi.data.source import CountSource


class Place(NamedTuple):
    """One value and where it is."""

    value: float
    row: int
    column: int


class Values(NamedTuple):
    """The stored values of one modality: how many are faulty, and the first of each kind.

    Attributes
    ----------
    number, first
        By kind: "nan", "infinite", "negative", "fractional", "positive".
    largest
        The first of the largest values, or None where all are NaN.
    """

    number: dict[str, int]
    first: dict[str, Place]
    largest: Place | None


class CountTally(NamedTuple):
    """Sums of paired counts of N cells, G genes and T proteins.

    Attributes
    ----------
    rna, protein
        Their values.
    rna_total, n_rna
        Total RNA count of each cell, (N,) float64, and how many of its counts are not zero.
    gene_total
        Of each gene, (G,).
    protein_total, protein_measured
        Total protein count of each cell, NaN passed over, and whether any is not NaN, (N,).
    smallest, largest
        Count of each protein, NaN passed over, (T,).
    n_unmeasured, n_positive
        Cells of each group whose count of each protein is NaN, or above zero, (groups, T).
    """

    rna: Values
    protein: Values
    rna_total: np.ndarray
    n_rna: np.ndarray
    gene_total: np.ndarray
    protein_total: np.ndarray
    protein_measured: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    n_unmeasured: np.ndarray
    n_positive: np.ndarray


def tally_counts(source: CountSource, group: np.ndarray, n_groups: int) -> CountTally:
    """Read all counts of ``source`` once; ``group`` is the panel or batch of each cell."""
    n_cells, n_genes = source.rna.shape
    n_proteins = source.protein.shape[1]
    tally = CountTally(
        rna=Values(dict.fromkeys(_TESTS, 0), {}, None),
        protein=Values(dict.fromkeys(_TESTS, 0), {}, None),
        rna_total=np.zeros(n_cells),
        n_rna=np.zeros(n_cells, dtype=np.int64),
        gene_total=np.zeros(n_genes),
        protein_total=np.zeros(n_cells),
        protein_measured=np.zeros(n_cells, dtype=bool),
        smallest=np.full(n_proteins, np.nan, dtype=np.float32),
        largest=np.full(n_proteins, np.nan, dtype=np.float32),
        n_unmeasured=np.zeros((n_groups, n_proteins), dtype=np.int64),
        n_positive=np.zeros((n_groups, n_proteins), dtype=np.int64),
    )
    with np.errstate(over="ignore", invalid="ignore"):  # of values that are then reported
        rna, protein = tally.rna, tally.protein
        for start, rna_block in row_blocks(source.rna):
            rna = _with_values(rna, rna_block.data, start, rna_block)
            _add_rna(tally, rna_block, slice(start, start + rna_block.shape[0]))
        for start, block in row_blocks(source.protein):
            rows = slice(start, start + len(block))
            protein = _with_values(protein, block.ravel(), start, block)
            _add_protein(tally, block, rows, group[rows])
    return tally._replace(rna=rna, protein=protein)


_TESTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nan": np.isnan,
    "infinite": np.isinf,
    "negative": lambda values: values < 0,
    "fractional": lambda values: (values != np.floor(values)) & ~np.isnan(values),
    "positive": lambda values: values > 0,
}


def _with_values(values: Values, stored: np.ndarray, start: int, block: Any) -> Values:
    """Count the faults among the stored values of a block that begins at row ``start``."""

    def place(position: int) -> Place:
        if isinstance(block, np.ndarray):
            row, column = divmod(position, block.shape[1])
        else:
            row = int(np.searchsorted(block.indptr, position, side="right")) - 1
            column = int(block.indices[position])
        return Place(float(stored[position]), start + row, column)

    for kind, test in _TESTS.items():
        passed = test(stored)
        number = int(np.count_nonzero(passed))
        if number and not values.number[kind]:
            values.first[kind] = place(int(passed.argmax()))
        values.number[kind] += number
    highest = np.fmax.reduce(stored) if stored.size else np.nan
    if not np.isnan(highest) and (values.largest is None or highest > values.largest.value):
        return values._replace(largest=place(int(np.nanargmax(stored))))
    return values


def _add_rna(tally: CountTally, block: sparse.csr_matrix, rows: slice) -> None:
    tally.rna_total[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    tally.n_rna[rows] = block.count_nonzero(axis=1)
    tally.gene_total[:] += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()


def _add_protein(tally: CountTally, block: np.ndarray, rows: slice, group: np.ndarray) -> None:
    unmeasured = np.isnan(block)
    tally.protein_total[rows] = np.nansum(block, axis=1, dtype=np.float64)
    tally.protein_measured[rows] = ~unmeasured.all(axis=1)
    np.fmin(tally.smallest, np.fmin.reduce(block, axis=0), out=tally.smallest)
    np.fmax(tally.largest, np.fmax.reduce(block, axis=0), out=tally.largest)
    for code in np.unique(group):
        of_group = group == code
        tally.n_unmeasured[code] += unmeasured[of_group].sum(axis=0)
        tally.n_positive[code] += (block[of_group] > 0).sum(axis=0)
