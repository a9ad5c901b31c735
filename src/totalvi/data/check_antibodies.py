"""What is counted as antibodies and is none (hashtags, totals, RNA), and barcodes that are no cells."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.data.check_counts import HIGH_PROTEIN, CountTally
from totalvi.data.columns import CellGroups
from totalvi.data.find import CountSource
from totalvi.data.io.features import CONTROL, UNMAPPED
from totalvi.data.panels.antibody_names import has_known_target
from totalvi.errors import Finding, argument, first_and_count, listed, setting

# What may be named as a gene is not; all else is few, and compared with the names of metrics.
_NOT_AS_GENES = re.compile(r"[_*]|[a-z]\w*[_.]|nCount|nFeature|nGene|nUMI|un|no|ambig|multi", re.I)
_METRIC = re.compile(
    r"(total|sum|mean|max|min|log1?p?10?)_\w*(counts?|reads|umis?|rna|genes?)\w*|nUMI|nGene"
    r"|n_(genes?|umis?|reads|counts|unmapped|multimapping|nofeature|ambiguous)\w*"  # also of STAR
    r"|(fraction|frac|ratio)[_.]\w*(mt|mito|ribo)\w*|(mt|mito|ribo)\w*[_.](frac|ratio|pct|percent)\w*",
    re.IGNORECASE,
)
_STRETCHES, _CELLS_IN_STRETCH = 8, 256  # of cells that are looked at: neighbours are read together
_FEWEST_CELLS = 30
_NEARLY_ALL = 0.95  # of the cells in which a total is the sum of the rest
_WITH_ONE_TAG = 0.85  # of the cells that have exactly one of a set of hashtags
_LEAST_STEP = np.log(4.0)  # between the counts of cells with a hashtag and those without
_MOST_TAGS = 40
_MOST_OF_RNA = 0.05  # of the variance of genes, that hashtags explain beyond chance
_GENES_COMPARED = 200
_FEW_ANTIBODIES = 3  # a cell may well have none of so few
_AGGREGATE = 50  # times the antibody counts of the median cell
_DROPLET = 0.02  # of the RNA of the cells that have most
_RNA_OF_A_DROPLET = 100
_CELLS_OF_A_RUN = 100


def antibody_findings(
    source: CountSource, tally: CountTally, groups: CellGroups | None
) -> Iterator[Finding]:
    """Find rows that are no antibodies or genes, and cells that are none, by names and counts."""
    yield from _no_genes(source)
    if source.protein.shape[1] and not tally.n_positive.any() and tally.protein_measured.any():
        yield Finding(
            "error",
            "protein_all_zero",
            f"{source.protein_where} holds no count at all; give the matrix of the antibodies as it "
            "was counted.",
        )
        return
    cells = _some_cells(source.protein.shape[0])
    counts = np.nan_to_num(source.protein.rows(cells)) if len(cells) >= _FEWEST_CELLS else None
    yield from _of_the_rna(source, cells, counts)
    yield from _no_antibodies(source, counts)
    if counts is not None and np.isfinite(tally.rna_total).all() and (tally.rna_total >= 0).all():
        yield from _hashtags(source, cells, counts)
    yield from _cells_that_are_none(source, tally, groups)


def _some_cells(n_cells: int) -> np.ndarray:
    """Return the positions of stretches of cells, evenly spaced."""
    if n_cells <= _STRETCHES * _CELLS_IN_STRETCH:
        return np.arange(n_cells)
    starts = np.linspace(0, n_cells - _CELLS_IN_STRETCH, _STRETCHES).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_CELLS_IN_STRETCH))


def _of_the_rna(
    source: CountSource, cells: np.ndarray, counts: np.ndarray | None
) -> Iterator[Finding]:
    """Find proteins that are the RNA given again, and those that were given in its place."""
    n_genes, n_proteins = source.rna.shape[1], source.protein.shape[1]
    genes = source.gene_names.drop_duplicates(keep=False)
    shared = source.protein_names.isin(genes)
    if counts is not None and shared.sum() > n_proteins / 2:
        some = np.flatnonzero(shared)[:_GENES_COMPARED]
        columns = source.gene_names.get_indexer_for(source.protein_names[some])
        same = source.rna.rows(cells)[:, columns].toarray() == counts[:, some]
        if same.all() and counts[:, some].any():
            yield Finding(
                "error",
                "protein_is_rna",
                f"{source.protein_where} holds the counts of {source.rna_where} again, under the same "
                f'names (the first is "{source.protein_names[some[0]]}"); give the counts of the '
                f"antibodies, as {argument('protein_path')} where they have a file of their own.",
            )
    elif 0 < n_genes < n_proteins and _known(source.gene_names) > _known(source.protein_names):
        yield Finding(
            "warning",
            "modalities_swapped",
            f"there are fewer genes ({n_genes:,}) than proteins ({n_proteins:,}), as if RNA and "
            f"proteins were swapped; give the RNA first, and the proteins as "
            f"{argument('protein_path')} or by {argument('protein_modality')}.",
        )


def _known(names: pd.Index) -> float:
    """Return the share of names that are of known antibodies."""
    return float(np.mean([has_known_target(str(name)) for name in names[:_GENES_COMPARED]]))


def _no_genes(source: CountSource) -> Iterator[Finding]:
    """Find metrics of cells and reads of no gene among the genes, which would count as RNA."""
    likely = (str(name) for name in source.gene_names if _NOT_AS_GENES.match(str(name)))
    found = [name for name in likely if UNMAPPED.fullmatch(name) or _METRIC.fullmatch(name)]
    if found:
        verb = "is no gene" if len(found) == 1 else "are no genes"
        yield Finding(
            "warning",
            "rna_no_gene",
            f"{source.rna_where} has {listed(found)} among the genes, which {verb} by name and would "
            "count as RNA; drop what is none from the data.",
        )


def _no_antibodies(source: CountSource, counts: np.ndarray | None) -> Iterator[Finding]:
    """Find rows named as no antibody is, and those that are the sum of the others."""
    names = source.protein_names
    named = np.array([UNMAPPED.fullmatch(name.strip()) is not None for name in names], dtype=bool)
    sums = np.zeros(len(names), dtype=bool)
    if counts is not None and counts.shape[1] > 2:
        for others in (~np.zeros_like(named), ~named):
            total = counts[:, others].sum(axis=1)
            for column in range(counts.shape[1]):
                rest = total - counts[:, column] * others[column]
                some = rest > 0
                if some.sum() >= _FEWEST_CELLS:
                    same = counts[some, column] == rest[some]
                    sums[column] |= bool(same.mean() >= _NEARLY_ALL)
    found = named | sums
    if found.any() and not found.all():
        which = listed(names[found])
        why = "are named as no antibody is" if found.sum() > 1 else "is named as no antibody is"
        if not named[found].any():
            why = "is the sum of all the others in nearly every cell"
        fix = setting("leave_out", _pattern(list(names[found])))
        yield Finding(
            "warning",
            "protein_no_antibody",
            f"{source.protein_where} has {which} among the proteins, which {why}; leave it out when "
            f"the file is read, with {fix}, or drop it from the data.",
        )


def _hashtags(source: CountSource, cells: np.ndarray, counts: np.ndarray) -> Iterator[Finding]:
    """Find antibodies of no known target, no controls, of which nearly every cell has exactly one."""
    columns = [
        i
        for i, name in enumerate(source.protein_names)
        if not (has_known_target(name) or UNMAPPED.fullmatch(name.strip()) or CONTROL.search(name))
    ]
    has = {column: _has_tag(counts[:, column]) for column in columns}
    tags = [column for column in columns if has[column] is not None][:_MOST_TAGS]
    calls = np.array([has[column] for column in tags], dtype=bool)
    while len(tags) > 1:
        n_tags = calls.sum(axis=0)
        share = (n_tags == 1).mean()
        without = [((n_tags - row) == 1).mean() for row in calls]
        if len(tags) == 2 or max(without) <= share:
            break
        worst = int(np.argmax(without))
        tags.pop(worst)
        calls = np.delete(calls, worst, axis=0)
    if len(tags) < 2 or (calls.sum(axis=0) == 1).mean() < _WITH_ONE_TAG:
        return
    one = calls.sum(axis=0) == 1
    if _explained(source.rna.rows(cells[one]), calls[:, one].argmax(axis=0)) > _MOST_OF_RNA:
        return  # markers of cell types, which share out the cells as well
    names = [str(source.protein_names[column]) for column in tags]
    yield Finding(
        "warning",
        "protein_hashtags",
        f"{source.protein_where} has {listed(names)}, of which nearly every cell has exactly one, as "
        "of hashtags, which are no proteins to model; set them apart when the file is read, with "
        f"{setting('hashtags', _pattern(names))}, or drop them from the data.",
    )


def _has_tag(counts: np.ndarray) -> np.ndarray | None:
    """Return which cells have a tag; None where the counts do not fall into two groups."""
    logs = np.log1p(counts)
    edges = np.linspace(logs.min(), logs.max(), 41)[1:-1]
    n_high = np.array([(logs > edge).sum() for edge in edges])
    best, threshold = 0.0, None
    for edge, n in zip(edges, n_high, strict=True):
        if not 0 < n < len(logs):
            continue
        is_high = logs > edge
        step = logs[is_high].mean() - logs[~is_high].mean()
        between = n * (len(logs) - n) * step**2
        if step >= _LEAST_STEP and between > best:
            best, threshold = between, edge
    return None if threshold is None else logs > threshold


def _explained(rna: sparse.csr_matrix, group: np.ndarray) -> float:
    """Return the mean share of the variance of expressed genes between groups, beyond chance."""
    total = np.asarray(rna.sum(axis=1)).ravel()
    most = np.argsort(-np.asarray(rna.sum(axis=0)).ravel())[:_GENES_COMPARED]
    values = np.log1p(rna[:, most].toarray() / np.maximum(total, 1)[:, None] * 1e4)
    values -= values.mean(axis=0)
    within = (values**2).sum(axis=0)
    codes = np.unique(group)
    between = np.zeros(len(most))
    for code in codes:
        own = values[group == code]
        between += len(own) * own.mean(axis=0) ** 2
    some = within > 0
    if not some.any():
        return 0.0
    return float((between[some] / within[some]).mean() - (len(codes) - 1) / len(values))


def _pattern(names: Sequence[str]) -> str:
    """Return a regular expression of whole names."""
    quoted = "|".join(re.escape(name).replace("\\ ", " ").replace("\\-", "-") for name in names)
    return f"^({quoted})$"


def _cells_that_are_none(
    source: CountSource, tally: CountTally, groups: CellGroups | None
) -> Iterator[Finding]:
    """Find cells without antibodies, aggregates, and barcodes that are mostly empty droplets."""
    empty = tally.protein_measured & (tally.protein_total == 0)
    if groups is not None:  # of a batch without any protein count the checks say more
        empty &= (tally.n_positive.sum(axis=1) > 0)[groups.codes]
    if empty.any() and source.protein.shape[1] > _FEW_ANTIBODIES:
        yield Finding(
            "warning",
            "cell_without_protein",
            f"{source.protein_where} has no protein count at all in "
            f"{first_and_count(source.cell_names[empty], 'cell')}; drop what is not a stained cell.",
        )
    stained = tally.protein_total[tally.protein_total > 0]
    if len(stained) >= _FEWEST_CELLS:
        median = np.median(stained)
        clumped = tally.protein_total > _AGGREGATE * max(float(median), 1.0)
        clumped &= tally.protein_total < HIGH_PROTEIN  # which is said of as such
        if clumped.any():
            yield Finding(
                "warning",
                "cell_aggregate",
                f"{source.protein_where} has more than {_AGGREGATE} times the antibody counts of a "
                f"median cell in {first_and_count(source.cell_names[clumped], 'cell')}, as aggregates "
                "of antibodies have; look at them, and drop what is no single cell.",
            )
    n_cells = len(tally.rna_total)
    if n_cells > 10 * _CELLS_OF_A_RUN:
        most = np.partition(tally.rna_total, -_CELLS_OF_A_RUN)[-_CELLS_OF_A_RUN]
        are_droplets = tally.rna_total < min(_DROPLET * most, _RNA_OF_A_DROPLET)
        if are_droplets.mean() > 0.5:
            yield Finding(
                "warning",
                "mostly_empty_droplets",
                f"{are_droplets.sum():,} of {n_cells:,} barcodes have so little RNA that they look "
                "like empty droplets, as in a raw matrix; give the filtered matrix of the cells, and "
                "the raw one only beside it.",
            )
