"""Check which proteins were measured where: NaN means unmeasured, zero means measured."""

from collections.abc import Iterator

import numpy as np

from totalvi.data.check_counts import CountTally
from totalvi.data.find import CountSource
from totalvi.data.finding import CellGroups, Finding, first_and_count, listed


def panel_findings(source: CountSource, groups: CellGroups, tally: CountTally) -> Iterator[Finding]:
    """Check each protein in each panel (or batch, or the whole data set).

    Parameters
    ----------
    source
        Counts; a protein that is NaN in all cells of a group is unmeasured there.
    groups
        The panel or batch of each cell.
    tally
        Sums of the counts, by these groups.
    """
    n_cells = np.bincount(groups.codes, minlength=len(groups.names))
    n_unmeasured = tally.n_unmeasured
    unmeasured = n_unmeasured == n_cells[:, None]
    yield from _unmeasured(source, groups, unmeasured)
    yield from _partly_unmeasured(source, groups, (n_unmeasured > 0) & ~unmeasured, n_unmeasured)
    yield from _zero(source, groups, unmeasured, tally.n_positive)
    yield from _cells_without_counts(source, tally)


def _unmeasured(
    source: CountSource, groups: CellGroups, unmeasured: np.ndarray
) -> Iterator[Finding]:
    nowhere = np.asarray(unmeasured.all(axis=0))
    if nowhere.any():
        name = first_and_count(source.protein_names[nowhere], "protein")
        yield Finding(
            "error",
            "protein_unmeasured_everywhere",
            f"{source.protein_where} has no value in any cell for {name}: remove what was never "
            "measured",
        )
    for group in np.flatnonzero((unmeasured & ~nowhere).any(axis=1)):
        names = source.protein_names[unmeasured[group] & ~nowhere]
        yield Finding(
            "note",
            "protein_unmeasured",
            f"unmeasured in {groups.name(int(group))}, and to be imputed there: {len(names)} of "
            f"{len(source.protein_names)} proteins, {listed(names)}",
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
    mend = (
        "set it to NaN in the whole of it if it was not measured there, or drop the cells"
        if groups.word != "data set"
        else "drop the cells, or name the obs column of the panels (or batches) with panel_key if "
        "some did not measure it"
    )
    others = f", and so in {partly.sum() - 1} more" if partly.sum() > 1 else ""
    yield Finding(
        "error",
        "protein_partly_unmeasured",
        f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" in '
        f"{n_unmeasured[group, protein]:,} of {(groups.codes == group).sum():,} cells of "
        f'{groups.name(int(group))}, first cell "{cell}"{others}: {mend}',
    )


def _zero(
    source: CountSource, groups: CellGroups, unmeasured: np.ndarray, n_positive: np.ndarray
) -> Iterator[Finding]:
    measured = ~unmeasured.all(axis=0)
    everywhere = np.asarray(measured & ~n_positive.any(axis=0))
    if everywhere.any():
        name = first_and_count(source.protein_names[everywhere], "protein")
        yield Finding(
            "warning",
            "protein_zero",
            f"{source.protein_where} is zero in all cells for {name}: remove it if it was not in "
            "the antibody panel",
        )
    only_here = (n_positive == 0) & ~unmeasured & ~everywhere
    for group in np.flatnonzero(only_here.any(axis=1)):
        names = source.protein_names[only_here[group]]
        yield Finding(
            "warning",
            "protein_zero_in_group",
            f"{source.protein_where} is zero in all cells of {groups.name(int(group))}, but not "
            f"elsewhere, for {first_and_count(names, 'protein')}: if it was not measured there, set "
            f"it to NaN in that {groups.word}; else it counts as absent",
        )


def _cells_without_counts(source: CountSource, tally: CountTally) -> Iterator[Finding]:
    empty = tally.protein_measured & (tally.protein_total == 0)
    if empty.any():
        yield Finding(
            "warning",
            "cell_without_protein",
            f"{source.protein_where} has no protein count at all in "
            f"{first_and_count(source.cell_names[empty], 'cell')}: drop what is not a stained cell",
        )
