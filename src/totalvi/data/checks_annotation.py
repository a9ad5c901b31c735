"""Check the annotation of the cells: batches, panels, labels, size factors and covariates."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from totalvi.data.finding import Finding, did_you_mean, first_and_count

MANY_CATEGORIES = 100
SMALL_GROUP = 10


def annotation_findings(
    obs: pd.DataFrame,
    *,
    batch_key: str | None,
    panel_key: str | None,
    labels_key: str | None,
    size_factor_key: str | None,
    categorical_covariate_keys: Sequence[str],
    continuous_covariate_keys: Sequence[str],
) -> Iterator[Finding]:
    """Check the columns of ``obs`` that the arguments name."""
    named = {"batch_key": batch_key, "panel_key": panel_key, "labels_key": labels_key}
    for argument, key in named.items():
        if key is None:
            continue
        faults = list(_categories(obs, argument, key))
        yield from faults
        if not faults and argument != "labels_key":
            yield from _group_sizes(obs[key], argument.removesuffix("_key"), key)
    if size_factor_key is not None:
        yield from _size_factor(obs, size_factor_key)
    for argument, keys, check in (
        ("categorical_covariate_keys", categorical_covariate_keys, _categories),
        ("continuous_covariate_keys", continuous_covariate_keys, _continuous),
    ):
        if isinstance(keys, str):
            message = f'{argument} must be a list of column names: give ["{keys}"], not "{keys}"'
            yield Finding("error", "keys_not_a_list", message)
            continue
        for key in keys:
            yield from check(obs, argument, key)


def _absent(obs: pd.DataFrame, argument: str, key: str) -> Finding | None:
    """Find fault with a column that is missing or lacks values."""
    if key not in obs:
        hint = did_you_mean(str(key), obs.columns)
        message = f'{argument}: no column "{key}" in obs, {hint}'
        return Finding("error", "key_missing", message)
    missing = obs.index[obs[key].isna().to_numpy()]
    if len(missing):
        where = first_and_count(missing, "cell")
        message = f'{argument}: obs["{key}"] has no value for {where}: fill it, or drop the cells'
        return Finding("error", "value_missing", message)
    return None


def _categories(obs: pd.DataFrame, argument: str, key: str) -> Iterator[Finding]:
    absent = _absent(obs, argument, key)
    if absent is not None:
        yield absent
        return
    values = obs[key]
    found = values.unique()
    if pd.api.types.is_float_dtype(values.dtype) and len(found) > MANY_CATEGORIES:
        yield Finding(
            "error",
            "category_continuous",
            f'{argument}: obs["{key}"] looks continuous, with {len(found):,} different numbers: '
            "name a column of categories, or give it as a continuous covariate",
        )
    elif len(found) == len(values) > SMALL_GROUP:
        yield Finding(
            "error",
            "category_per_cell",
            f'{argument}: obs["{key}"] differs in every one of the {len(values):,} cells, first '
            f'"{found[0]}": name a column whose categories cells share',
        )
    texts = pd.Index(map(str, found))
    if texts.has_duplicates:
        text = texts[texts.duplicated()][0]
        yield Finding(
            "error",
            "category_ambiguous",
            f'{argument}: obs["{key}"] holds "{text}" both as text and as a number: make the '
            f'column text with obs["{key}"].astype(str)',
        )
    if argument == "categorical_covariate_keys" and len(found) == 1:
        message = f'{argument}: obs["{key}"] is "{found[0]}" in all cells and has no effect'
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
            f'{word} "{single[0]}"{others} of obs["{key}"] has a single cell ("{cell}"): drop it, '
            f"or merge the {word} with another",
        )
    for name, size in small.items():
        yield Finding(
            "warning",
            "group_small",
            f'{word} "{name}" of obs["{key}"] has only {size} cells: its effect will be estimated '
            f"poorly, so drop it or merge the {word} with another",
        )
    if len(single) < len(sizes):
        largest = ", ".join(f'"{name}" {size:,}' for name, size in sizes.head(5).items())
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        plural = {"batch": "batches", "panel": "panels"}[word]
        counted = f"the {len(sizes)} {plural}" if len(sizes) > 1 else f"the only {word}"
        message = f'cells in {counted} of obs["{key}"]: {largest}{more}'
        yield Finding("note", "group_sizes", message)


def _numbers(obs: pd.DataFrame, argument: str, key: str) -> tuple[np.ndarray, Finding | None]:
    """Return a numeric column as float64, or an empty array and the fault with it."""
    nothing = np.empty(0)
    absent = _absent(obs, argument, key)
    if absent is not None:
        return nothing, absent
    values = obs[key]
    if not pd.api.types.is_numeric_dtype(values.dtype):
        message = (
            f'{argument}: obs["{key}"] holds {values.dtype} values, first "{values.iloc[0]}", '
            "where numbers are needed: convert it, or give it as a categorical covariate"
        )
        return nothing, Finding("error", "not_numeric", message)
    numbers = values.to_numpy(dtype=np.float64)
    infinite = obs.index[~np.isfinite(numbers)]
    if len(infinite):
        where = first_and_count(infinite, "cell")
        message = f'{argument}: obs["{key}"] is infinite in {where}: correct it, or drop the cells'
        return nothing, Finding("error", "value_infinite", message)
    return numbers, None


def _continuous(obs: pd.DataFrame, argument: str, key: str) -> Iterator[Finding]:
    numbers, fault = _numbers(obs, argument, key)
    if fault is not None:
        yield fault
    elif numbers.size and numbers.min() == numbers.max():
        message = f'{argument}: obs["{key}"] is {numbers[0]:g} in all cells: leave it out'
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
            f'size_factor_key: obs["{key}"] is not positive in {first_and_count(bad, "cell")}: '
            "correct it, or drop the cells",
        )
