"""Check which proteins were measured in which panel or batch."""

from collections.abc import Iterator

import numpy as np

from totalvi.data.check_counts import CountTally
from totalvi.data.find import CountSource
from totalvi.data.finding import CellGroups, Finding, listed, named
from totalvi.errors import argument, setting

_CHANCE_OF_ZEROS = 1e-3  # that cells like those elsewhere are all zero


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
            "protein_unmeasured",
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
    how = setting("unmeasured", "zeros")
    if how.startswith("-"):
        return how
    groups = ", batch_key=..." if word != "data set" else ""
    return f"totalvi.declare_unmeasured(data, {how}{groups})"


def _zero(
    source: CountSource,
    n_cells: np.ndarray,
    groups: CellGroups,
    unmeasured: np.ndarray,
    tally: CountTally,
) -> Iterator[Finding]:
    """Find proteins without a count, in all cells or in a group where chance does not explain it."""
    n_positive = tally.n_positive
    measured = ~unmeasured.all(axis=0)
    everywhere = np.asarray(measured & ~n_positive.any(axis=0))
    declared = _declaring_zeros(groups.word)
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
        counts = "it counts" if len(names) == 1 else "they count"
        yield Finding(
            "warning",
            "protein_zero_in_group",
            f"{source.protein_where} is zero in all cells of {groups.name(int(group))}, but not "
            f"elsewhere, for {named(names, 'protein')}; if {it} not measured there, set {them} to NaN "
            f"with {declared} (scvi-tools takes such zeros as missing); else {counts} as absent.",
        )
