"""The groups of cells that a comparison is about, and the raw counts of each."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData
from totalvi.data.columns import column_of, same_number
from totalvi.errors import DataError, DataWarning, argument, did_you_mean
from totalvi.posterior.arguments import Cells, cell_positions
from totalvi.posterior.differential.comparison import Comparison

REST = "Rest"
_FEW_CELLS, _TIMES_FOR_FEW = 200, 10
_MOST_CELLS_FOR_PAIRS = 10_000


class Groups(NamedTuple):
    """Cells cut into disjoint parts, and the comparisons between them.

    Parameters
    ----------
    part
        Of each cell, (N,); -1: in no comparison.
    comparisons
        Between parts.
    names
        Of the two groups of each comparison.
    n_parts
        Number of parts.
    """

    part: np.ndarray
    comparisons: list[Comparison]
    names: list[tuple[str, str]]
    n_parts: int

    def with_rna(self, data: CiteData, *, drop: bool = False) -> Self:
        """Return the groups of those cells that have RNA, and warn of the others.

        Raises
        ------
        DataError
            When a group has no such cell, unless its comparison may ``drop`` and others are left.
        """
        lacking = ~data.has_rna & (self.part >= 0)
        if not lacking.any():
            return self
        part = np.where(lacking, -1, self.part)
        has = np.array([[np.isin(p, part).any() for p in pair] for pair in self.comparisons])
        kept = np.flatnonzero(has.all(axis=1))
        lonely = [self.names[c][side] for c, side in np.argwhere(~has)]
        if lonely and not (drop and len(kept)):
            raise DataError(
                f'no cell of "{lonely[0]}" has RNA, which differential expression needs; name groups '
                "of cells that have."
            )
        also = f", with all of {', '.join(lonely)}" if lonely else ""
        warnings.warn(
            f"{lacking.sum():,} cells of the groups have no RNA and are left out{also}.",
            DataWarning,
            stacklevel=4,
        )
        left_over = [self.comparisons[c] for c in kept], [self.names[c] for c in kept]
        return type(self)(part, *left_over, self.n_parts)


def chosen_groups(
    data: CiteData,
    groupby: str | None,
    group1: str | Sequence[str] | None,
    group2: str | None,
    idx1: Cells | str,
    idx2: Cells | str,
) -> Groups:
    """Return the groups of a comparison, by a column of ``obs`` or by cells."""
    if (groupby is None) == (idx1 is None):
        raise ValueError("groupby and idx1 are two ways to give groups; give one of them.")
    if groupby is None:
        if group1 is not None or group2 is not None:
            raise ValueError("group1 and group2 are categories of groupby; give it, or idx2.")
        return groups_by_cells(data.annotation.obs(), idx1, idx2)
    if idx2 is not None:
        raise ValueError("idx2 goes with idx1; with groupby give group2.")
    return groups_by_column(data.annotation.obs(), groupby, group1, group2)


def groups_by_column(
    obs: pd.DataFrame, groupby: str, group1: str | Sequence[str] | None, group2: str | None
) -> Groups:
    """Return the groups that a column of ``obs`` makes.

    Parameters
    ----------
    group1
        One or several categories, each compared on its own. None: every one.
    group2
        What with. None: all other cells that have a category.

    Raises
    ------
    ValueError
        When the column or a category is not there, or there is nothing to compare with.
    """
    if groupby not in obs.columns:
        raise ValueError(
            f"{argument('groupby')} is {groupby!r}; {did_you_mean(str(groupby), obs.columns)}."
        )
    column = obs[groupby].astype("category").cat.remove_unused_categories()
    names = [str(name) for name in column.cat.categories]
    part = column.cat.codes.to_numpy(np.int64)

    every = list(range(len(names)))
    firsts = every if group1 is None else _positions("group1", group1, names)
    second = None if group2 is None else _positions("group2", group2, names)[0]
    if second is not None and group1 is None:
        firsts.remove(second)
    if not firsts or len(names) < 2:
        raise ValueError(
            f"obs[{groupby!r}] leaves nothing to compare: it has {len(names)} categories with cells, "
            "and two are needed; give another groupby, or idx1."
        )
    if second in firsts:
        raise ValueError(
            f"{argument('group1')} and {argument('group2')} are both {group2!r}; give two categories."
        )
    comparisons, titles = [], []
    for first in firsts:
        others = tuple(i for i in range(len(names)) if i != first) if second is None else (second,)
        comparisons.append(Comparison((first,), others))
        titles.append((names[first], REST if second is None else names[second]))
    if second is not None:
        part = np.where(np.isin(part, [*firsts, second]), part, -1)
    return Groups(part, comparisons, titles, int(part.max()) + 1)


def _positions(which: str, given: Any, names: Sequence[str]) -> list[int]:
    """Return the positions of one or several categories, by their names or as the same number."""
    found = []
    for name in [given] if np.isscalar(given) else list(given):
        same = [place for place, one in enumerate(names) if one == str(name)]
        same = same or [place for place, one in enumerate(names) if same_number(one, name)]
        if not same:
            raise ValueError(f"{argument(which)} is {name!r}; {did_you_mean(str(name), names)}.")
        found.append(same[0])
    return found


def conditions_within(
    obs: pd.DataFrame,
    condition_key: str,
    group1: str | Sequence[str] | None,
    group2: str | None,
    groupby: str | None,
    cells: Cells | str = None,
) -> tuple[Groups, list[str]]:
    """Return the comparisons of conditions within each category of ``groupby``, and its categories.

    Parameters
    ----------
    group2
        Condition that others are compared with. None: the first that is not in ``group1``.
    cells
        Which cells take part. None: all.
    """
    condition = column_of(obs, "condition_key", condition_key).astype("category")
    categories = condition.cat.remove_unused_categories().cat.categories
    if groupby == condition_key:
        raise ValueError(
            f"{argument('groupby')} and {argument('condition_key')} are both {groupby!r}; conditions "
            "are compared within each category of another column, or of none."
        )
    if group2 is None and len(categories):
        every = [str(name) for name in categories]
        taken = set() if group1 is None else set(_positions("group1", group1, every))
        group2 = every[min(set(range(len(every))) - taken, default=0)]
    conditions = groups_by_column(obs, condition_key, group1, group2)
    n_conditions = conditions.n_parts
    types, of_cell = [""], np.zeros(len(obs), dtype=int)
    if groupby is not None:
        column = column_of(obs, "groupby", groupby).astype("category")
        column = column.cat.remove_unused_categories()
        types = [str(name) for name in column.cat.categories]
        of_cell[:] = column.cat.codes
    part = np.where(
        (of_cell >= 0) & (conditions.part >= 0),
        of_cell * n_conditions + conditions.part,
        -1,
    )
    if cells is not None:
        part = np.where(cell_mask(obs, cells, "idx1"), part, -1)
    comparisons, names, within = [], [], []
    for number, name in enumerate(types):
        for comparison, groups in zip(conditions.comparisons, conditions.names, strict=True):
            shifted = [tuple(p + number * n_conditions for p in parts) for parts in comparison]
            comparisons.append(Comparison(*shifted))
            names.append(groups)
            within.append(name)
    # the last parts may be empty
    return Groups(part, comparisons, names, len(types) * n_conditions), within


def groups_by_cells(obs: pd.DataFrame, idx1: Cells | str, idx2: Cells | str) -> Groups:
    """Return the groups that masks, positions or query strings of ``obs`` name.

    Parameters
    ----------
    idx1
        The first group.
    idx2
        The second, which may share cells with it. None: all cells not in the first.
    """
    first = cell_mask(obs, idx1, "idx1")
    second = ~first if idx2 is None else cell_mask(obs, idx2, "idx2")
    if not second.any():
        raise ValueError("idx1 selects all cells, so none is left to compare with; give idx2.")
    only_first, only_second, both = first & ~second, second & ~first, first & second
    part = np.full(len(obs), -1)
    parts: list[tuple[bool, bool]] = []
    for cells, of in (
        (only_first, (True, False)),
        (only_second, (False, True)),
        (both, (True,) * 2),
    ):
        if cells.any():
            part[cells] = len(parts)
            parts.append(of)
    comparison = Comparison(
        *(tuple(i for i, of in enumerate(parts) if of[group]) for group in range(2))
    )
    second_name = REST if idx2 is None else _title(idx2, "group 2")
    names = [(_title(idx1, "group 1"), second_name)]
    return Groups(part, [comparison], names, len(parts))


def _title(idx: Cells | str, otherwise: str) -> str:
    return idx if isinstance(idx, str) else otherwise


def cell_mask(obs: pd.DataFrame, idx: Cells | str, argument: str) -> np.ndarray:
    """Return which cells a mask, positions or a query string of ``obs`` name, (N,)."""
    mask = np.zeros(len(obs), dtype=bool)
    if isinstance(idx, str):
        mask[:] = _queried(obs, idx, argument)
        if not mask.any():
            raise ValueError(f"{argument} is {idx!r}, which no cell fulfils; give another query.")
        return mask
    mask[cell_positions(idx, len(obs), argument)] = True
    return mask


def _queried(obs: pd.DataFrame, query: str, argument: str) -> np.ndarray:
    numbered = obs.set_axis(pd.RangeIndex(len(obs)), axis=0)  # because cell names may repeat
    try:
        positions = numbered.query(query).index.to_numpy()
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        raise ValueError(
            f"{argument} is {query!r}, but obs has no column {name!r}; "
            f"{did_you_mean(name, obs.columns)}."
        ) from error
    except (SyntaxError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{argument} is {query!r}, which is no query of obs ({error}); give one such as "
            "\"cell_type == 'B'\"."
        ) from error
    mask = np.zeros(len(obs), dtype=bool)
    mask[positions] = True
    return mask


def by_group_size(part: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the cells of large groups and those of small ones, and how often each is sampled."""
    cells = np.flatnonzero(part >= 0)
    few = np.bincount(part[cells])[part[cells]] < _FEW_CELLS
    for times, some in ((1, cells[~few]), (_TIMES_FOR_FEW, cells[few])):
        if len(some):
            yield times, some


def cells_for_pairs(part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return all cells, or where they are too many, as many of each group as there is room for."""
    cells = np.flatnonzero(part >= 0)
    if len(cells) <= _MOST_CELLS_FOR_PAIRS:
        return cells
    order = rng.permutation(cells)
    rank = pd.Series(part[order]).groupby(part[order]).cumcount().to_numpy()
    kept = np.argsort(rank, kind="stable")[:_MOST_CELLS_FOR_PAIRS]
    return np.sort(order[kept])


def warn_without_shared_batch(data: CiteData, groups: Groups) -> None:
    """Warn of comparisons whose groups are in no common batch."""
    pairs = {*zip(groups.part.tolist(), data.batch.tolist(), strict=True)}
    for comparison, (first, second) in zip(groups.comparisons, groups.names, strict=True):
        batches = [{b for part, b in pairs if part in parts} for parts in comparison]
        if not batches[0] & batches[1]:
            warnings.warn(
                f"{first} and {second} have no batch in common, so a difference between batches cannot "
                "be told from one between them; batch_correction=True would take out both. If each has "
                "several samples (donors), sample_key accounts for how much samples of a group differ.",
                stacklevel=4,
            )


class Samples(NamedTuple):
    """What is known of the samples.

    Parameters
    ----------
    code
        Sample of each cell, (N,); -1: none.
    names
        Of the samples.
    blocks
        Block of each sample, as text; None: they are in none.
    covariates
        Numbers of each sample, (samples, columns).
    n_in_batches
        Cells of each part and sample in each batch, (parts, samples, batches).
    """

    code: np.ndarray
    names: list[str]
    blocks: np.ndarray | None
    covariates: np.ndarray
    n_in_batches: np.ndarray


def describe_samples(
    data: CiteData,
    groups: Groups,
    sample_key: str,
    block_key: str | None,
    covariate_keys: str | Sequence[str],
) -> Samples:
    """Return the samples of the cells in groups, by columns of ``obs``.

    Raises
    ------
    DataError
        When a column is missing, a sample is in two blocks, or has several values of a category.
    """
    obs = data.annotation.obs()
    column = column_of(obs, "sample_key", sample_key).where(groups.part >= 0)
    sample = column.astype("category").cat.remove_unused_categories()
    code = sample.cat.codes.to_numpy(np.int64)
    names = [str(name) for name in sample.cat.categories]
    if not names:
        raise DataError(f"obs[{sample_key!r}] holds no sample of the cells compared; fill it.")
    blocks = None if block_key is None else _of_samples(obs, "block_key", block_key, code, names)
    keys = [covariate_keys] if isinstance(covariate_keys, str) else covariate_keys
    columns = [part for key in keys for part in _columns(obs, key, code, names)]
    covariates = np.column_stack(columns) if columns else np.empty((len(names), 0))
    n_in_batches = np.zeros((groups.n_parts, len(names), len(data.schema.batch_names)), np.int64)
    some = code >= 0
    np.add.at(n_in_batches, (groups.part[some], code[some], data.batch[some]), 1)
    return Samples(code, names, blocks, covariates, n_in_batches)


def _of_samples(
    obs: pd.DataFrame, name: str, key: str, code: np.ndarray, names: list[str]
) -> np.ndarray:
    """Return the one value, as text, that the cells of each sample share."""
    column = column_of(obs, name, key)
    used = code >= 0
    values = column.astype(str).where(column.notna())[used]
    table = pd.DataFrame({"sample": code[used], "value": values.to_numpy()}).drop_duplicates()
    several = table["sample"].duplicated(keep=False) | table["value"].isna()
    if several.any():
        wrong = int(table["sample"][several].iloc[0])
        held = table["value"][table["sample"] == wrong].tolist()
        raise DataError(
            f"obs[{key!r}] must hold one value for each sample, but sample {names[wrong]!r} has "
            f"{held}; give {argument(name)} another column."
        )
    return table.sort_values("sample")["value"].to_numpy(dtype=object)


def _columns(obs: pd.DataFrame, key: str, code: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Return the columns of a covariate: a number (or date) scaled, or indicators of categories."""
    column = column_of(obs, "covariate_keys", key)
    if pd.api.types.is_datetime64_any_dtype(column):
        column = (column - column.min()).dt.total_seconds()
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        values = pd.Series(column.to_numpy(float)[code >= 0]).groupby(code[code >= 0]).mean()
        if values.isna().any():
            wrong = names[int(values.isna().to_numpy().argmax())]
            raise DataError(f"obs[{key!r}] has no value for sample {wrong!r}; fill it.")
        centred = values.to_numpy() - values.mean()
        return [centred / max(float(np.abs(centred).max()), np.finfo(float).tiny)]
    return indicators(_of_samples(obs, "covariate_keys", key, code, names))


def indicators(values: np.ndarray) -> list[np.ndarray]:
    """Return a column for each value but the first."""
    return [(values == value).astype(float) for value in np.unique(values)[1:]]
