"""Check paired counts and their annotation before anything is computed."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from totalvi.data.cells import has_rna
from totalvi.data.check_antibodies import antibody_findings
from totalvi.data.check_counts import (
    CountTally,
    named,
    protein_value_findings,
    rna_findings,
    tally_counts,
)
from totalvi.data.columns import CellGroups, Columns, cell_groups, column, no_column
from totalvi.data.contents import with_panels
from totalvi.data.find import CountSource
from totalvi.data.known_labels import known_labels, label_findings
from totalvi.data.mosaic import modality_findings, summary
from totalvi.errors import DataError, Finding, argument, first_and_count, in_order, listed, setting

MANY_CATEGORIES = 100
_CHANCE_OF_ZEROS = 1e-3  # that cells like those elsewhere are all zero
SMALL_GROUP = 10
UNMEASURED = "protein_unmeasured"


def annotation_findings(obs: pd.DataFrame, columns: Columns) -> Iterator[Finding]:
    """Check the columns of ``obs`` that ``columns`` names."""
    if columns.unlabeled_category is not None and columns.labels_key is None:
        category = setting("unlabeled_category", columns.unlabeled_category)
        message = f"{category} is of a column of labels; give {argument('labels_key')} as well."
        yield Finding("error", "labels_key_missing", message)
    for name in ("batch_key", "panel_key", "labels_key"):
        key = getattr(columns, name)
        if key is None:
            continue
        partly = name == "labels_key" and columns.unlabeled_category is not None and key in obs
        faults = list(
            _partly_labelled(obs[key], columns) if partly else _categories(obs, name, key)
        )
        yield from faults
        if not faults and name != "labels_key":
            yield from _group_sizes(obs[key], name.removesuffix("_key"), key)
    if columns.size_factor_key is not None:
        yield from _size_factor(obs, columns.size_factor_key)
    for name, check in (
        ("categorical_covariate_keys", _categories),
        ("continuous_covariate_keys", _continuous),
    ):
        keys = getattr(columns, name)
        if isinstance(keys, str):
            message = f'{argument(name)} must be a list of columns; give ["{keys}"], not "{keys}".'
            yield Finding("error", "keys_not_a_list", message)
            continue
        for key in keys:
            yield from check(obs, name, key)


def _partly_labelled(values: pd.Series, columns: Columns) -> Iterator[Finding]:
    """Check labels that are known of some cells only."""
    key, unlabelled = str(columns.labels_key), str(columns.unlabeled_category)
    faults = list(label_findings(values, column("labels_key", key), unlabelled))
    yield from faults
    if not any(fault.severity == "error" for fault in faults):
        known = known_labels(values, unlabelled).dropna()
        yield from _categories(known.to_frame(key), "labels_key", key)


def _absent(obs: pd.DataFrame, name: str, key: str) -> Finding | None:
    """Return the fault of a column that is missing or lacks values, if it has one."""
    if key not in obs:
        return Finding("error", "key_missing", no_column(name, key, obs.columns))
    missing = obs.index[obs[key].isna().to_numpy()]
    if len(missing):
        where = first_and_count(missing, "cell")
        message = f"{column(name, key)} has no value for {where}; fill it, or drop the cells"
        if name == "labels_key":
            message += f", or give {argument('unlabeled_category')} to predict their labels"
        return Finding("error", "value_missing", f"{message}.")
    return None


def _categories(obs: pd.DataFrame, name: str, key: str) -> Iterator[Finding]:
    absent = _absent(obs, name, key)
    if absent is not None:
        yield absent
        return
    values = obs[key]
    found = values.unique()
    if pd.api.types.is_float_dtype(values.dtype) and len(found) > MANY_CATEGORIES:
        yield Finding(
            "error",
            "category_continuous",
            f"{column(name, key)} looks continuous, with {len(found):,} different numbers; "
            "name a column of categories, or give it as a continuous covariate.",
        )
    elif len(found) == len(values) > SMALL_GROUP:
        yield Finding(
            "error",
            "category_per_cell",
            f"{column(name, key)} differs in every one of the {len(values):,} cells, first "
            f'"{found[0]}"; name a column whose categories cells share.',
        )
    texts = pd.Index(map(str, found))
    if texts.has_duplicates:
        text = texts[texts.duplicated()][0]
        yield Finding(
            "error",
            "category_ambiguous",
            f'{column(name, key)} holds "{text}" both as text and as a number; make the '
            f'column text with obs["{key}"].astype(str).',
        )
    if name == "categorical_covariate_keys" and len(found) == 1:
        message = f'{column(name, key)} is "{found[0]}" in all cells and has no effect.'
        yield Finding("warning", "covariate_constant_category", message)


def _group_sizes(values: pd.Series, word: str, key: str) -> Iterator[Finding]:
    sizes = values.value_counts()
    sizes = sizes[sizes > 0]
    single, small = sizes.index[sizes == 1], sizes[(sizes > 1) & (sizes < SMALL_GROUP)]
    if len(single):
        cell = values.index[(values == single[0]).to_numpy()][0]
        others = f" and {len(single) - 1} more" if len(single) > 1 else ""
        yield Finding(
            "error",
            "group_of_one_cell",
            f'{word} "{single[0]}"{others} of obs["{key}"] has a single cell ("{cell}"); drop it, '
            f"or merge the {word} with another.",
        )
    for name, size in small.items():
        yield Finding(
            "warning",
            "group_small",
            f'{word} "{name}" of obs["{key}"] has only {size} cells; its effect will be estimated '
            f"poorly, so drop it or merge the {word} with another.",
        )
    if len(single) < len(sizes):
        largest = ", ".join(f'"{name}" {size:,}' for name, size in sizes.head(5).items())
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        plural = {"batch": "batches", "panel": "panels"}[word]
        counted = f"the {len(sizes)} {plural}" if len(sizes) > 1 else f"the only {word}"
        message = f'cells in {counted} of obs["{key}"]: {largest}{more}.'
        yield Finding("note", "group_sizes", message)


def _numbers(obs: pd.DataFrame, name: str, key: str) -> tuple[np.ndarray, Finding | None]:
    """Return a numeric column as float64, or an empty array and the fault."""
    nothing = np.empty(0)
    absent = _absent(obs, name, key)
    if absent is not None:
        return nothing, absent
    values = obs[key]
    if not pd.api.types.is_numeric_dtype(values.dtype):
        message = (
            f'{column(name, key)} holds {values.dtype} values, first "{values.iloc[0]}", '
            "where numbers are needed; convert it, or give it as a categorical covariate."
        )
        return nothing, Finding("error", "not_numeric", message)
    numbers = values.to_numpy(dtype=np.float64)
    infinite = obs.index[~np.isfinite(numbers)]
    if len(infinite):
        where = first_and_count(infinite, "cell")
        message = f"{column(name, key)} is infinite in {where}; correct it, or drop the cells."
        return nothing, Finding("error", "value_infinite", message)
    return numbers, None


def _continuous(obs: pd.DataFrame, name: str, key: str) -> Iterator[Finding]:
    numbers, fault = _numbers(obs, name, key)
    if fault is not None:
        yield fault
    elif numbers.size and numbers.min() == numbers.max():
        message = f"{column(name, key)} is {numbers[0]:g} in all cells; leave it out."
        yield Finding("error", "covariate_constant", message)


def _size_factor(obs: pd.DataFrame, key: str) -> Iterator[Finding]:
    numbers, fault = _numbers(obs, "size_factor_key", key)
    if fault is not None:
        yield fault
        return
    bad = obs.index[numbers <= 0]
    if len(bad):
        yield Finding(
            "error",
            "size_factor_not_positive",
            f"{column('size_factor_key', key)} is not positive in {first_and_count(bad, 'cell')}; "
            "correct it, or drop the cells.",
        )


MINIMUM_CELLS = 10
TRAINING_ONLY = frozenset(
    {"few_cells", "group_of_one_cell", "covariate_constant", "protein_unmeasured_everywhere"}
)
"""Codes of errors that prevent a fit, but not queries of a fitted model."""


def check_counts(
    source: CountSource, columns: Columns, tally: CountTally | None = None
) -> list[Finding]:
    """Check counts and annotation; report everything found, errors first.

    Parameters
    ----------
    source
        What `find_counts` returned.
    columns
        Columns of ``source.obs``, and whether fractional counts are accepted, such as those after
        removal of ambient RNA. A protein is unmeasured in a panel (or, without ``panel_key``, in a
        batch) if all of its values there are NaN.
    tally
        Result of `tally_by_group` for the same data, if it exists already.

    Returns
    -------
    list of Finding
        Errors, then warnings, then notes.

    Examples
    --------
    >>> from totalvi.data.simulate import simulate
    >>> from totalvi.data.find import find_counts
    >>> source = find_counts(simulate(n_cells=200, n_genes=100, n_proteins=5), Columns())
    >>> [finding.message for finding in check_counts(source, Columns(batch_key="bacth"))][0]
    'batch_key: no column "bacth" in obs; did you mean "batch"? There are: "cell_type", "batch", \
"library_size".'
    """
    if tally is None:
        tally = tally_by_group(source, columns)
    columns = with_panels(source.obs, columns)
    groups = _groups(source, columns)
    counts = [
        *rna_findings(source, tally, allow_fractional=columns.allow_fractional),
        *protein_value_findings(source, tally, allow_fractional=columns.allow_fractional),
    ]
    findings = [
        *annotation_findings(source.obs, columns),
        *_cell_findings(source),
        *counts,
        *(panel_findings(source, groups, tally) if groups is not None else ()),
        *modality_findings(has_rna(source.obs), tally, source.cell_names),
        *antibody_findings(source, tally, groups),
        summary(source, tally, are_counts=all(finding.severity != "error" for finding in counts)),
    ]
    return in_order(findings)


def tally_by_group(source: CountSource, columns: Columns) -> CountTally:
    """Read all counts once for the checks, which group cells by panel or batch."""
    groups = _groups(source, with_panels(source.obs, columns))
    if groups is None:
        return tally_counts(source, np.zeros(len(source.obs), dtype=np.intp), 1)
    return tally_counts(source, groups.codes, len(groups.names))


def _groups(source: CountSource, columns: Columns) -> CellGroups | None:
    word = "batch" if columns.panel_key is None else "panel"
    return cell_groups(source.obs, word, columns.panel_key or columns.batch_key)


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise `DataError` with the message of the first error among the findings, if there is one.

    Examples
    --------
    >>> raise_errors([Finding("note", "summary", "100 cells")])
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    more = len(errors) - 1
    problems = "problem" if more == 1 else "problems"
    tail = f" (and {more} more {problems}; run `totalvi check`)." if more else "."
    raise DataError(errors[0].message.removesuffix(".") + tail)


def _cell_findings(source: CountSource) -> list[Finding]:
    """Check the number of cells and the names of the cells."""
    findings = []
    n_cells = source.rna.shape[0]
    if n_cells < MINIMUM_CELLS:
        message = f"only {n_cells} cells, and a model needs {MINIMUM_CELLS}; give more."
        findings.append(Finding("error", "few_cells", message))
    repeated = source.cell_names[source.cell_names.duplicated()].unique()
    if len(repeated):
        findings.append(
            Finding(
                "error",
                "cell_name_repeated",
                f"several cells share {first_and_count(repeated, 'cell name')}; make the names "
                "unique, for example with obs_names_make_unique() or a prefix per sample.",
            )
        )
    return findings


def panel_findings(source: CountSource, groups: CellGroups, tally: CountTally) -> Iterator[Finding]:
    """Check each protein in each panel (or batch, or the whole data set): ``groups`` of ``tally``."""
    n_cells = np.bincount(groups.codes, minlength=len(groups.names))
    n_unmeasured = tally.n_unmeasured
    unmeasured = n_unmeasured == n_cells[:, None]
    yield from _unmeasured(source, groups, unmeasured)
    yield from _partly_unmeasured(source, groups, (n_unmeasured > 0) & ~unmeasured, n_unmeasured)
    yield from _zero(source, n_cells, groups, unmeasured, tally)


def _unmeasured(
    source: CountSource, groups: CellGroups, unmeasured: np.ndarray
) -> Iterator[Finding]:
    nowhere = np.asarray(unmeasured.all(axis=0))
    if nowhere.any():
        which = named(source.protein_names[nowhere], "protein")
        yield Finding(
            "error",
            "protein_unmeasured_everywhere",
            f"{source.protein_where} has no value in any cell for {which}; remove what was never "
            "measured.",
        )
    for group in np.flatnonzero((unmeasured & ~nowhere).any(axis=1)):
        names = source.protein_names[unmeasured[group] & ~nowhere]
        yield Finding(
            "note",
            UNMEASURED,
            f"unmeasured in {groups.name(int(group))}, and to be imputed there: {len(names)} of "
            f"{len(source.protein_names)} proteins, {listed(names)}.",
        )


def _partly_unmeasured(
    source: CountSource, groups: CellGroups, partly: np.ndarray, n_unmeasured: np.ndarray
) -> Iterator[Finding]:
    """Find proteins that lack values in some cells of a group but not in all."""
    if not partly.any():
        return
    group, protein = map(int, np.argwhere(partly)[0])
    missing = np.concatenate(
        [np.isnan(values[:, protein]) for _, values in source.protein.blocks()]
    )
    cell = source.cell_names[int((missing & (groups.codes == group)).argmax())]
    fix = (
        "set it to NaN in the whole of it if it was not measured there, or drop the cells"
        if groups.word != "data set"
        else "drop the cells, or name the obs column of the panels (or batches) with "
        f"{argument('panel_key')} if some did not measure it"
    )
    others = f", and so in {partly.sum() - 1} more" if partly.sum() > 1 else ""
    yield Finding(
        "error",
        "protein_partly_unmeasured",
        f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" in '
        f"{n_unmeasured[group, protein]:,} of {(groups.codes == group).sum():,} cells of "
        f'{groups.name(int(group))}, first cell "{cell}"{others}; {fix}.',
    )


def _declaring_zeros(word: str) -> str:
    """Return how zeros are declared unmeasured, as it is said where the message is read."""
    how, groups = setting("unmeasured", "zeros"), ", batch_key=..." if word != "data set" else ""
    return how if how.startswith("-") else f"totalvi.declare_unmeasured(data, {how}{groups})"


def _zero(
    source: CountSource,
    n_cells: np.ndarray,
    groups: CellGroups,
    unmeasured: np.ndarray,
    tally: CountTally,
) -> Iterator[Finding]:
    """Find proteins without a count, in all cells or in a group where chance does not explain it."""
    n_positive, declared = tally.n_positive, _declaring_zeros(groups.word)
    everywhere = np.asarray(~unmeasured.all(axis=0) & ~n_positive.any(axis=0))
    if everywhere.any():
        which = named(source.protein_names[everywhere], "protein")
        it, was = ("it", "it was") if everywhere.sum() == 1 else ("them", "they were")
        yield Finding(
            "warning",
            "protein_zero",
            f"{source.protein_where} is zero in all cells for {which}; remove {it} if {was} not in "
            f"the antibody panel, or, if cells of other batches or of a reference have {it}, declare "
            f"{it} unmeasured (NaN) with {declared}.",
        )
    n_measured = n_cells[:, None] - tally.n_unmeasured
    share = n_positive.sum(axis=0) / np.maximum(n_measured.sum(axis=0) - n_measured, 1)
    by_chance = (1 - np.minimum(share, 1)) ** n_measured > _CHANCE_OF_ZEROS
    only_here = (n_positive == 0) & ~unmeasured & ~everywhere & ~by_chance
    for group in np.flatnonzero(only_here.any(axis=1)):
        names = source.protein_names[only_here[group]]
        it, them = ("it was", "it") if len(names) == 1 else ("they were", "them")
        yield Finding(
            "warning",
            "protein_zero_in_group",
            f"{source.protein_where} is zero in all cells of {groups.name(int(group))}, but not "
            f"elsewhere, for {named(names, 'protein')}; if {it} not measured there, set {them} to NaN "
            f"with {declared} (scvi-tools takes such zeros as missing); else the zeros mean absent.",
        )
