"""What is counted as antibodies and is not to be modelled: isotype controls, hashtags, totals.

Isotype controls bind nothing: their counts are background and no more.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.check_counts import HIGH_PROTEIN, CountTally
from totalvi.data.columns import CellGroups, Columns
from totalvi.data.counts import to_dense
from totalvi.data.find import CountSource, genes_and_proteins
from totalvi.data.io.features import UNMAPPED, are_controls
from totalvi.data.panels.antibody_names import has_known_target
from totalvi.errors import DataError, Finding, did_you_mean, first_and_count, listed, setting

ISOTYPE_MODALITY = "isotype"


def split_controls(
    data: MuData | AnnData, source: CountSource, columns: Columns
) -> tuple[CountSource, pd.DataFrame]:
    """Separate the isotype controls from the proteins.

    Parameters
    ----------
    data, source
        The user's object and the counts found in it.
    columns
        Names the modality of the proteins and, in ``isotype_controls``, the controls; ``()`` means no
        controls. None: those marked in ``var["control"]``, or named like isotype controls.

    Returns
    -------
    The counts of the other proteins, and those of the controls, cells x controls. The controls include
    those of a modality "isotype", which `totalvi run` writes.

    Raises
    ------
    DataError
        When a name is not known, or no other protein is left.

    Examples
    --------
    >>> import numpy as np
    >>> from totalvi.data.find import find_counts
    >>> cells = AnnData(np.ones((2, 3)))
    >>> cells.obsm["adt"] = pd.DataFrame({"CD3": [9, 4], "IgG1": [1, 0]}, index=cells.obs_names)
    >>> columns = Columns(protein_expression_obsm_key="adt")
    >>> proteins, controls = split_controls(cells, find_counts(cells, columns), columns)
    >>> proteins.protein_names.tolist(), controls.columns.tolist()
    (['CD3'], ['IgG1'])
    """
    chosen = columns.isotype_controls
    is_control = _are_controls(data, source, columns.protein_modality, chosen)
    if is_control.all():
        raise DataError(
            f"all {len(is_control)} antibodies of {source.protein_where} are isotype controls "
            f"({listed(source.protein_names, at_most=2)}), and none is left to model; keep them with "
            f"{setting('isotype_controls', ())}."
        )
    names = tuple(source.protein_names[is_control])
    controls = control_counts(data, source, (*names, *_names_apart(data, names, chosen)))
    if is_control.any():
        source = source._replace(
            protein=source.protein.columns(np.flatnonzero(~is_control)),
            protein_names=source.protein_names[~is_control],
        )
    return source, controls


def control_counts(
    data: MuData | AnnData, source: CountSource, names: Sequence[str]
) -> pd.DataFrame:
    """Return the counts of those isotype controls in ``names`` that the data have, cells x controls."""
    if not names:
        return pd.DataFrame(index=source.cell_names, dtype=np.float32)
    positions = source.protein_names.get_indexer(pd.Index(names))
    found = positions[positions >= 0]
    among = pd.DataFrame(
        source.protein.columns(found).read() if len(found) else None,
        index=source.cell_names,
        columns=source.protein_names[found],
    )
    apart = _apart(data, source)
    columns = {
        name: (among if name in among else apart)[name].to_numpy()
        for name in names
        if name in among or name in apart
    }
    return pd.DataFrame(columns, index=source.cell_names, dtype=np.float32)


def control_findings(controls: pd.DataFrame) -> list[Finding]:
    """Note which antibodies are isotype controls, and their number of ``counts`` (cells, controls)."""
    if not controls.shape[1]:
        return []
    means = ", ".join(f'"{name}" {mean:.3g}' for name, mean in controls.mean().items())
    count = f"{controls.shape[1]} isotype control" + "s" * (controls.shape[1] > 1)
    message = f"kept out of the model, to check its background: {count}, with mean counts {means}."
    return [Finding("note", "isotype_controls", message)]


_SPECIES = re.compile("mouse|rat|hamster|rabbit|goat|human", re.IGNORECASE)
_SUBCLASS = re.compile(r"ig[ _-]?([gmade])[ _-]?([1-4]?)([a-c]?)", re.IGNORECASE)


def controls_like(name: str, controls: Sequence[str]) -> list[str]:
    """Return the controls of the antibody's species and class, as far as the names say them.

    If the antibody's name says neither, or no control is like it, they are all controls.

    Examples
    --------
    >>> controls = ["MouseIgG1kappaisotype", "Mouse IgG2b isotype", "RatIgG2bkIsotype"]
    >>> controls_like("CD44 (IM7, rat IgG2b)", controls)
    ['RatIgG2bkIsotype']
    >>> controls_like("CD3 mouse", controls)
    ['MouseIgG1kappaisotype', 'Mouse IgG2b isotype']
    >>> controls_like("CD3", controls) == controls
    True
    """
    found = list(controls)
    for said in (_species, _subclass):
        own = said(name)
        alike = [control for control in found if own and said(control) == own]
        found = alike or found
    return found


def _species(name: str) -> str:
    match = _SPECIES.search(name)
    return "" if match is None else match[0].lower()


def _subclass(name: str) -> str:
    match = _SUBCLASS.search(name)
    return "" if match is None or not match[2] else "".join(match.groups()).lower()


def _are_controls(
    data: MuData | AnnData, source: CountSource, protein_modality: str, chosen: Sequence[str] | None
) -> np.ndarray:
    names = source.protein_names
    if chosen is None:
        var = _protein_var(data, source, protein_modality)
        return are_controls(var, None, source.protein_where)
    for name in chosen:
        if name not in names and not (isinstance(data, MuData) and ISOTYPE_MODALITY in data.mod):
            raise DataError(
                f'isotype_controls holds "{name}", which is no protein of {source.protein_where}; '
                f"{did_you_mean(str(name), names)}."
            )
    return np.asarray(names.isin(list(chosen)))


def _protein_var(
    data: MuData | AnnData, source: CountSource, protein_modality: str
) -> pd.DataFrame:
    """Return the names of the proteins and, where the data mark controls, the marks."""
    var = pd.DataFrame(index=source.protein_names)
    if isinstance(data, MuData):
        annotation = data[protein_modality].var
    else:
        annotation = data.var[genes_and_proteins(data.var)[1]]
    if "control" in annotation and len(annotation) == len(var):
        var["control"] = annotation["control"].to_numpy()
    return var


def _apart(data: MuData | AnnData, source: CountSource) -> pd.DataFrame:
    """Return the counts of the modality of isotype controls, if it has the same cells."""
    if not isinstance(data, MuData) or ISOTYPE_MODALITY not in data.mod:
        return pd.DataFrame(index=source.cell_names)
    adata = data[ISOTYPE_MODALITY]
    if not np.array_equal(adata.obs_names, source.cell_names):
        return pd.DataFrame(index=source.cell_names)
    where = f'modality "{ISOTYPE_MODALITY}"'
    counts = to_dense(adata.X, where, adata.obs_names, adata.var_names)
    return pd.DataFrame(counts, index=source.cell_names, columns=adata.var_names)


def _names_apart(
    data: MuData | AnnData, names: Sequence[str], chosen: Sequence[str] | None
) -> list[str]:
    if not isinstance(data, MuData) or ISOTYPE_MODALITY not in data.mod:
        return []
    apart = [str(name) for name in data[ISOTYPE_MODALITY].var_names if name not in names]
    return apart if chosen is None else [name for name in apart if name in chosen]


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
    """Find rows that are no antibodies, and cells that are none, by names and counts."""
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
    """Find antibodies of no known target of which nearly every cell has exactly one."""
    columns = [
        i
        for i, name in enumerate(source.protein_names)
        if not has_known_target(name) and not UNMAPPED.fullmatch(name.strip())
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
