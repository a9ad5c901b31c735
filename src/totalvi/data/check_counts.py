"""Check that the values of the counts are raw, whole, non-negative and finite."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.data.cells import has_rna
from totalvi.data.find import CountSource
from totalvi.errors import Finding, Severity, argument, counted, first_and_count, listed, setting


def named(names: Sequence[str] | pd.Index, singular: str, at_most: int = 10) -> str:
    """Return the number of names and the names themselves, or the first few if there are many.

    Examples
    --------
    >>> named(["CD4"], "protein")
    'protein "CD4"'
    >>> named(["CD4", "CD8", "CD3"], "protein", at_most=2)
    '3 proteins ("CD4", "CD8" and 1 more)'
    """
    if len(names) == 1:
        return f'{singular} "{names[0]}"'
    return f"{counted(len(names), singular)} ({listed(names, at_most)})"


class Place(NamedTuple):
    """A value and its place."""

    value: float
    row: int
    column: int


class Values(NamedTuple):
    """Faults among the stored values of one modality: their number, and the first of each kind.

    Attributes
    ----------
    number, first
        By kind: "nan", "infinite", "negative", "fractional", "positive".
    largest
        The first of the largest values; None if all are NaN.
    """

    number: dict[str, int]
    first: dict[str, Place]
    largest: Place | None


class CountTally(NamedTuple):
    """Sums of paired counts of N cells, G genes and T proteins.

    Attributes
    ----------
    rna, protein
        Faults among their values.
    rna_total, n_rna
        Total RNA count of each cell, (N,) float64, and the number of its non-zero counts.
    gene_total
        Total count of each gene, (G,).
    protein_total, protein_measured
        Total protein count of each cell without NaN, and whether any count is not NaN, (N,).
    smallest, largest
        Smallest and largest count of each protein without NaN, (T,).
    n_unmeasured, n_positive
        Number of cells of each group whose count of each protein is NaN, or above zero, (groups, T).
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
    with np.errstate(over="ignore", invalid="ignore"):  # these values are then reported
        rna, protein = tally.rna, tally.protein
        for start, rna_block in source.rna.blocks():
            rna = _with_values(rna, rna_block.data, start, rna_block)
            _add_rna(tally, rna_block, slice(start, start + rna_block.shape[0]))
        for start, block in source.protein.blocks():
            rows = slice(start, start + len(block))
            protein = _with_values(protein, block.ravel(), start, block)
            _add_protein(tally, block, rows, group[rows])
    return tally._replace(rna=rna, protein=protein)


_STANDING_FOR_NAN = (-1, -9, -99, -999, -9999)
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


EXACT_FLOAT32 = 2**24
LOG_MAXIMUM = 20.0  # log1p of any realistic count is smaller
HIGH_RNA, HIGH_PROTEIN = 50_000, 500_000
FEW_GENES = 200
_FIRST_CELLS = slice(200)


class _Modality(NamedTuple):
    """The values of one modality, and the words to name it, its cells and its features."""

    values: Values
    kind: str  # "rna" or "protein"
    where: str
    layers: tuple[str, ...]
    cell_names: pd.Index
    feature: str  # "gene" or "protein"
    feature_names: pd.Index
    first_cells: list[np.ndarray]  # positive values of the first cells

    def place(self, place: Place) -> str:
        """Return the words for the place of a value."""
        cell, name = self.cell_names[place.row], self.feature_names[place.column]
        return f'cell "{cell}", {self.feature} "{name}"'


def rna_findings(
    source: CountSource, tally: CountTally, *, allow_fractional: bool
) -> Iterator[Finding]:
    """Check the values and the names of the RNA counts."""
    first = source.rna.rows(_FIRST_CELLS)
    rows = np.split(first.data, first.indptr[1:-1])
    modality = _Modality(
        tally.rna, "rna", source.rna_where, source.rna_layers, source.cell_names, "gene",
        source.gene_names, [row[row > 0] for row in rows],
    )  # fmt: skip
    faults = list(_value_findings(modality, allow_fractional))
    yield from faults
    yield from _repeated(source.gene_names, "gene", source.rna_where)
    if source.rna.shape[1] < FEW_GENES:
        yield Finding(
            "warning",
            "few_genes",
            f"{source.rna_where} has only {source.rna.shape[1]} genes; give more, as totalVI is meant "
            "for hundreds or thousands of variable genes.",
        )
    if any(f.severity == "error" for f in faults):
        return  # totals of values that are not counts have no meaning
    yield from _rna_zeros(source, tally)
    if tally.rna.largest is not None and tally.rna.largest.value == 1:
        yield Finding(
            "warning",
            "rna_binary",
            f"no RNA count in {source.rna_where} is above 1; give counts, not presence and absence.",
        )


def _rna_zeros(source: CountSource, tally: CountTally) -> Iterator[Finding]:
    empty = source.cell_names[(tally.rna_total == 0) & has_rna(source.obs)]
    silent = source.gene_names[tally.gene_total == 0]
    if len(empty):
        yield Finding(
            "error",
            "cell_without_rna",
            f"{source.rna_where} has no RNA count at all in {first_and_count(empty, 'cell')}; "
            "filter it out (`totalvi run` does).",
        )
    if len(silent):
        yield Finding(
            "warning",
            "gene_zero",
            f"{source.rna_where} is zero in all cells for {first_and_count(silent, 'gene')}; "
            "remove them, as they tell nothing.",
        )


def protein_value_findings(
    source: CountSource, tally: CountTally, *, allow_fractional: bool
) -> Iterator[Finding]:
    """Check the values and the names of the protein counts; NaN (unmeasured) is allowed."""
    modality = _Modality(
        tally.protein, "protein", source.protein_where, source.protein_layers, source.cell_names,
        "protein", source.protein_names, [row[row > 0] for row in source.protein.rows(_FIRST_CELLS)],
    )  # fmt: skip
    yield from _value_findings(modality, allow_fractional)
    yield from _repeated(source.protein_names, "protein", source.protein_where)
    constant = source.protein_names[(tally.smallest == tally.largest) & (tally.largest > 0)]
    if len(constant) and len(source.cell_names) > 1:
        yield Finding(
            "warning",
            "protein_constant",
            f"{source.protein_where} has the same count in all cells for "
            f"{named(constant, 'protein')}; check that these are measured counts.",
        )


def _value_findings(modality: _Modality, allow_fractional: bool) -> Iterator[Finding]:
    """Check that all values are finite, non-negative and whole."""
    number, first = modality.values.number, modality.values.first
    where, kind = modality.where, modality.kind
    if kind == "rna":
        yield from _not_finite(modality, "nan", "NaN value")
    yield from _not_finite(modality, "infinite", "infinite value")
    if number["negative"]:
        looks = ""
        if number["fractional"]:
            transformed = (
                "scaled or regressed" if kind == "rna" else "like CLR, dsb or scaled values"
            )
            looks = f", so it looks {transformed}"
        fix = _fix(modality)
        if kind == "protein" and first["negative"].value in _STANDING_FOR_NAN and not looks:
            value = f"{first['negative'].value:g}"
            fix = f"make {value} NaN if it stands for what was not measured; else {fix}"
        yield Finding(
            "error",
            f"{kind}_negative",
            f"{where} holds {_number(number['negative'], 'negative value')}{looks}, first "
            f"{first['negative'].value:g} for {modality.place(first['negative'])}; "
            f"{fix}.",
        )
    elif number["fractional"]:
        found = (
            f"{_number(number['fractional'], 'fractional value')}, first "
            f"{first['fractional'].value:g} for {modality.place(first['fractional'])}"
        )
        looks = _looks(modality) if number["fractional"] > 0.5 * number["positive"] else ""
        yield _fractional(modality, found, looks, allow_fractional)
    yield from _too_high(modality)


def _not_finite(modality: _Modality, code: str, noun: str) -> Iterator[Finding]:
    number = modality.values.number[code]
    if number:
        yield Finding(
            "error",
            f"{modality.kind}_{code}",
            f"{modality.where} holds {_number(number, noun)}, first for "
            f"{modality.place(modality.values.first[code])}; give the counts as they were measured.",
        )


def _fractional(modality: _Modality, found: str, looks: str, allowed: bool) -> Finding:
    """Return the finding that values are fractional, with their likely origin."""
    if looks:
        severity: Severity = "warning" if allowed else "error"
        code, message = "normalised", f"looks {looks}, with {found}; {_fix(modality)}."
    elif allowed:
        severity, code, message = "note", "fractional", f"holds {found}, as allowed."
    else:
        severity, code = "error", "fractional"
        message = (
            f"holds {found}; {_fix(modality)}, or accept fractions on purpose with "
            f"{setting('allow_fractional', True)}."
        )
    return Finding(severity, f"{modality.kind}_{code}", f"{modality.where} {message}")


def _looks(modality: _Modality) -> str:
    """Return the likely origin of mostly fractional values; empty if it is unclear."""
    rows = [row.astype(np.float64) for row in modality.first_cells]
    largest = modality.values.largest
    small = largest is not None and largest.value < LOG_MAXIMUM
    if small and _are_scaled_counts([np.expm1(row) for row in rows]):
        return "log-normalised"
    if _are_scaled_counts(rows):
        return "normalised to a common total"
    return (
        ("log-normalised" if modality.kind == "rna" else "log- or CLR-normalised") if small else ""
    )


def _are_scaled_counts(rows: list[np.ndarray]) -> bool:
    """Return whether most rows are whole multiples of their smallest value, which is then one count."""
    verdicts = []
    for row in rows:
        multiples = row / row.min() if row.size else row
        if np.unique(np.round(multiples)).size > 2:
            verdicts.append(np.abs(multiples - np.round(multiples)).max() < 0.02)
    return len(verdicts) > 0 and float(np.mean(verdicts)) > 0.5


def _too_high(modality: _Modality) -> Iterator[Finding]:
    largest = modality.values.largest
    high = HIGH_RNA if modality.kind == "rna" else HIGH_PROTEIN
    if largest is None or not np.isfinite(largest.value) or largest.value <= high:
        return
    impossible = largest.value > EXACT_FLOAT32
    fix = (
        "no assay counts that many molecules, so give raw counts"
        if impossible
        else "check that the values are counts of molecules, not of reads or intensities"
    )
    yield Finding(
        "error" if impossible else "warning",
        f"{modality.kind}_too_high" if impossible else f"{modality.kind}_high",
        f"{modality.where} holds {largest.value:,.0f} for {modality.place(largest)}; {fix}.",
    )


def _repeated(names: pd.Index, noun: str, where: str) -> Iterator[Finding]:
    repeated = names[names.duplicated()].unique()
    if len(repeated):
        rename = "rename the columns" if where.startswith("obsm") else "use var_names_make_unique()"
        yield Finding(
            "error",
            f"{noun}_name_repeated",
            f"{where} has the same name for several {noun}s, in "
            f"{first_and_count(repeated, noun + ' name')}; {rename}.",
        )


def _fix(modality: _Modality) -> str:
    """Return the words for the likely place of the raw counts."""
    layer = "rna_layer" if modality.kind == "rna" else "protein_layer"
    others = [name for name in modality.layers if f'["{name}"]' not in modality.where]
    likely = [name for name in others if "count" in name.lower() or "raw" in name.lower()]
    if likely:
        return f"give the raw counts, likely with {setting(layer, likely[0])}"
    if others:
        return f"give the raw counts (there are the layers {listed(others)}: {argument(layer)})"
    if modality.where.startswith("obsm"):
        return f"give the raw counts with {argument('protein_expression_obsm_key')}"
    return (
        "there are no counts in a layer or in raw either, so give the data with the raw counts that "
        f"the counting tool wrote, in X or in a layer, as in {setting(layer, 'counts')}"
    )


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number > 1 else "")
