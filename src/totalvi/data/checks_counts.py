"""Check the values of the counts: raw, whole, non-negative, finite."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.data.finding import Finding, first_and_count, listed
from totalvi.data.source import CountSource

EXACT_FLOAT32 = 2**24
LOG_MAXIMUM = 20.0  # log1p of any count that occurs is smaller
HIGH_RNA, HIGH_PROTEIN = 50_000, 500_000
FEW_GENES = 200
_BLOCK = 1 << 22


class _Values(NamedTuple):
    """The stored values of one modality, and how to name the place of each."""

    data: np.ndarray
    kind: str  # "rna" or "protein"
    where: str
    layers: tuple[str, ...]
    place: Callable[[int], str]
    rows: Callable[[], Iterator[np.ndarray]]  # positive values of the first cells


def rna_findings(source: CountSource, *, allow_fractional: bool) -> Iterator[Finding]:
    """Check the values and the names of the RNA counts."""
    rna = source.rna

    def place(position: int) -> str:
        cell = int(np.searchsorted(rna.indptr, position, side="right")) - 1
        gene = source.gene_names[rna.indices[position]]
        return f'cell "{source.cell_names[cell]}", gene "{gene}"'

    def rows() -> Iterator[np.ndarray]:
        for i in range(min(200, rna.shape[0])):
            row = rna.data[rna.indptr[i] : rna.indptr[i + 1]]
            yield row[row > 0]

    values = _Values(rna.data, "rna", source.rna_where, source.rna_layers, place, rows)
    faults = list(_value_findings(values, allow_fractional))
    yield from faults
    yield from _repeated(source.gene_names, "gene", source.rna_where)
    if rna.shape[1] < FEW_GENES:
        yield Finding(
            "warning",
            "few_genes",
            f"{source.rna_where} has only {rna.shape[1]} genes: totalVI is meant for hundreds or "
            "thousands of variable genes",
        )
    if any(f.severity == "error" for f in faults):
        return  # totals of values that are not counts say nothing
    yield from _rna_zeros(source)
    if rna.nnz and rna.data.max() == 1:
        yield Finding(
            "warning",
            "rna_binary",
            f"no RNA count in {source.rna_where} is above 1: give counts, not presence and absence",
        )


def _rna_zeros(source: CountSource) -> Iterator[Finding]:
    per_cell = np.asarray(source.rna.sum(axis=1)).ravel()
    per_gene = np.asarray(source.rna.sum(axis=0)).ravel()
    empty, silent = source.cell_names[per_cell == 0], source.gene_names[per_gene == 0]
    if len(empty):
        yield Finding(
            "error",
            "cell_without_rna",
            f"{source.rna_where} has no RNA count at all in {first_and_count(empty, 'cell')}: "
            "filter it out (`totalvi run` does)",
        )
    if len(silent):
        yield Finding(
            "warning",
            "gene_zero",
            f"{source.rna_where} is zero in all cells for {first_and_count(silent, 'gene')}: "
            "nothing can be learned of it, so better remove it",
        )


def protein_value_findings(source: CountSource, *, allow_fractional: bool) -> Iterator[Finding]:
    """Check the values and the names of the protein counts; NaN (unmeasured) is passed over."""
    protein = source.protein

    def place(position: int) -> str:
        cell, column = divmod(position, protein.shape[1])
        name = source.protein_names[column]
        return f'cell "{source.cell_names[cell]}", protein "{name}"'

    def rows() -> Iterator[np.ndarray]:
        for row in protein[:200]:
            yield row[row > 0]

    values = _Values(
        protein.ravel(), "protein", source.protein_where, source.protein_layers, place, rows
    )
    yield from _value_findings(values, allow_fractional)
    yield from _repeated(source.protein_names, "protein", source.protein_where)
    smallest, largest = np.fmin.reduce(protein, axis=0), np.fmax.reduce(protein, axis=0)
    constant = source.protein_names[(smallest == largest) & (largest > 0)]
    if len(constant) and len(protein) > 1:
        yield Finding(
            "warning",
            "protein_constant",
            f"{source.protein_where} has the same count in all cells for "
            f"{first_and_count(constant, 'protein')}: check that it is a measured count",
        )


def _value_findings(values: _Values, allow_fractional: bool) -> Iterator[Finding]:
    """Check that all values are finite, non-negative and whole."""
    data, where, kind = values.data, values.where, values.kind
    if kind == "rna":
        yield from _not_finite(values, np.isnan, "nan", "NaN value")
    yield from _not_finite(values, np.isinf, "infinite", "infinite value")
    n_negative, first_negative = _count(data, lambda block: block < 0)
    n_fractional, first_fractional = _count(data, _is_fractional)
    if n_negative:
        looks = ""
        if n_fractional:
            transformed = (
                "scaled or regressed" if kind == "rna" else "like CLR, dsb or scaled values"
            )
            looks = f", so it looks {transformed}"
        yield Finding(
            "error",
            f"{kind}_negative",
            f"{where} holds {_number(n_negative, 'negative value')}{looks}, first "
            f"{data[first_negative]:g} for {values.place(first_negative)}: {_mend(values)}",
        )
    elif n_fractional:
        found = (
            f"{_number(n_fractional, 'fractional value')}, first {data[first_fractional]:g} for "
            f"{values.place(first_fractional)}"
        )
        n_positive, _ = _count(data, lambda block: block > 0)
        looks = _looks(values) if n_fractional > 0.5 * n_positive else ""
        yield _fractional(values, found, looks, allow_fractional)
    yield from _too_high(values)


def _not_finite(
    values: _Values, test: Callable[[np.ndarray], np.ndarray], code: str, noun: str
) -> Iterator[Finding]:
    number, first = _count(values.data, test)
    if number:
        yield Finding(
            "error",
            f"{values.kind}_{code}",
            f"{values.where} holds {_number(number, noun)}, first for {values.place(first)}: "
            "give the counts as they were measured",
        )


def _fractional(values: _Values, found: str, looks: str, allowed: bool) -> Finding:
    """Say that values are fractional, and what they look like."""
    if looks:
        return Finding(
            "warning" if allowed else "error",
            f"{values.kind}_normalised",
            f"{values.where} looks {looks}, with {found}: {_mend(values)}",
        )
    if allowed:
        message = f"{values.where} holds {found}, as allowed"
        return Finding("note", f"{values.kind}_fractional", message)
    return Finding(
        "error",
        f"{values.kind}_fractional",
        f"{values.where} holds {found}: {_mend(values)}, or accept fractions on purpose with "
        "allow_fractional=True",
    )


def _looks(values: _Values) -> str:
    """Say how mostly fractional values may have come about; empty when that is unclear."""
    rows = [row.astype(np.float64) for row in values.rows()]
    small = float(np.fmax.reduce(values.data)) < LOG_MAXIMUM
    if small and _are_scaled_counts([np.expm1(row) for row in rows]):
        return "log-normalised"
    if _are_scaled_counts(rows):
        return "normalised to a common total"
    return ("log-normalised" if values.kind == "rna" else "log- or CLR-normalised") if small else ""


def _are_scaled_counts(rows: list[np.ndarray]) -> bool:
    """Whether most rows are whole multiples of their smallest value, as one count then is."""
    verdicts = []
    for row in rows:
        multiples = row / row.min() if row.size else row
        if np.unique(np.round(multiples)).size > 2:
            verdicts.append(np.abs(multiples - np.round(multiples)).max() < 0.02)
    return len(verdicts) > 0 and float(np.mean(verdicts)) > 0.5


def _too_high(values: _Values) -> Iterator[Finding]:
    largest = float(np.fmax.reduce(values.data)) if values.data.size else 0.0
    if not np.isfinite(largest) or largest <= (HIGH_RNA if values.kind == "rna" else HIGH_PROTEIN):
        return
    impossible = largest > EXACT_FLOAT32
    mend = (
        "no assay counts that many molecules, so give raw counts"
        if impossible
        else "check that the values are counts of molecules, not of reads or intensities"
    )
    yield Finding(
        "error" if impossible else "warning",
        f"{values.kind}_too_high" if impossible else f"{values.kind}_high",
        f"{values.where} holds {largest:,.0f} for {values.place(int(np.nanargmax(values.data)))}: "
        f"{mend}",
    )


def _repeated(names: pd.Index, noun: str, where: str) -> Iterator[Finding]:
    repeated = names[names.duplicated()].unique()
    if len(repeated):
        rename = "rename the columns" if where.startswith("obsm") else "use var_names_make_unique()"
        yield Finding(
            "error",
            f"{noun}_name_repeated",
            f"{where} has the same name for several {noun}s, in "
            f"{first_and_count(repeated, noun + ' name')}: {rename}",
        )


def _mend(values: _Values) -> str:
    """Say where the raw counts may be."""
    argument = "rna_layer" if values.kind == "rna" else "protein_layer"
    others = [layer for layer in values.layers if f'["{layer}"]' not in values.where]
    likely = [layer for layer in others if "count" in layer.lower() or "raw" in layer.lower()]
    if likely:
        return f'give the raw counts, likely with {argument}="{likely[0]}"'
    if others:
        return f"give the raw counts (there are the layers {listed(others)}: {argument})"
    if values.where.startswith("obsm"):
        return "give the raw counts with protein_expression_obsm_key"
    return f'give the raw counts (kept in a layer, name it, as in {argument}="counts")'


def _is_fractional(block: np.ndarray) -> np.ndarray:
    return (block != np.floor(block)) & ~np.isnan(block)


def _count(data: np.ndarray, test: Callable[[np.ndarray], np.ndarray]) -> tuple[int, int]:
    """Count the values that pass a test, in blocks to spare memory; also the first's position."""
    number, first = 0, -1
    for start in range(0, data.size, _BLOCK):
        passed = test(data[start : start + _BLOCK])
        if first < 0 and passed.any():
            first = start + int(passed.argmax())
        number += int(np.count_nonzero(passed))
    return number, first


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number > 1 else "")
