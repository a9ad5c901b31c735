"""Compare groups over samples: one level of each sample, and the design of their comparison.

A sample (a donor, a mouse, a well) is what an experiment repeats. Its cells are not: they share what
sets the donor apart. Comparing groups of cells asks whether these cells differ, which they do if the
donors differ. Comparing samples asks whether the populations differ that the samples were drawn from.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData
from totalvi.data.columns import column_of
from totalvi.errors import DataError, argument
from totalvi.posterior.differential.comparison import (
    Level,
    Pseudocounts,
    detection_limit,
    group_level,
)
from totalvi.posterior.differential.groups import Groups
from totalvi.posterior.differential.moderated import (
    Moderated,
    compare_samples,
    independent_columns,
)
from totalvi.posterior.differential.moments import Moments, StratumMoments

_COUNTS_AT_PSEUDOCOUNT = 2  # of the sample of median size
_FEWEST_COUNTS = 10  # of a feature, in all samples of a comparison
_FEWEST_FOREGROUND_CELLS = 2  # of a protein, in the mean sample
_FEWEST_SAMPLES = 2  # of a group


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
    batch
        Code of each sample's batch; -1: it is in several.
    """

    code: np.ndarray
    names: list[str]
    blocks: np.ndarray | None
    covariates: np.ndarray
    batch: np.ndarray


class SampleDifferences(NamedTuple):
    """One comparison over samples; genes first, then proteins.

    Parameters
    ----------
    found
        Effects, in log2.
    first_scale, second_scale
        Mean level of the samples of each group, (features,).
    n_samples
        Samples that measured each feature, (2, features).
    pseudocount
        c of each feature.
    units
        Row for each sample and group: ``sample``, ``group``, ``n_cells``.
    levels
        log2(h + c) of each unit, genes up to a common factor, (units, features).
    """

    found: Moderated
    first_scale: np.ndarray
    second_scale: np.ndarray
    n_samples: np.ndarray
    pseudocount: np.ndarray
    units: pd.DataFrame
    levels: np.ndarray


def describe_samples(
    data: CiteData,
    used: np.ndarray,
    sample_key: str,
    block_key: str | None,
    covariate_keys: Sequence[str],
) -> Samples:
    """Return the samples of some cells, ``used`` (N,) bool, by columns of ``obs``.

    Raises
    ------
    DataError
        When a column is missing, a sample is in two blocks, or has several values of a category.
    """
    obs = data.annotation.obs()
    column = column_of(obs, "sample_key", sample_key).where(used)
    sample = column.astype("category").cat.remove_unused_categories()
    code = sample.cat.codes.to_numpy(np.int64)
    names = [str(name) for name in sample.cat.categories]
    if not names:
        raise DataError(f"obs[{sample_key!r}] holds no sample of the cells compared; fill it.")
    blocks = None if block_key is None else _of_samples(obs, "block_key", block_key, code, names)
    columns = [part for key in covariate_keys for part in _columns(obs, key, code, names)]
    batch = np.full(len(names), -1)
    for k in range(len(names)):
        batches = np.unique(data.batch[code == k])
        batch[k] = batches[0] if len(batches) == 1 else -1
    covariates = np.column_stack(columns) if columns else np.empty((len(names), 0))
    return Samples(code, names, blocks, covariates, batch)


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
    """Return the columns of a covariate: a number standardised, or an indicator of each category."""
    column = column_of(obs, "covariate_keys", key)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        values = pd.Series(column.to_numpy(float)[code >= 0]).groupby(code[code >= 0]).mean()
        if values.isna().any():
            wrong = names[int(values.isna().to_numpy().argmax())]
            raise DataError(f"obs[{key!r}] has no value for sample {wrong!r}; fill it.")
        centred = values.to_numpy() - values.mean()
        return [centred / max(float(np.abs(centred).max()), np.finfo(float).tiny)]
    return _indicators(_of_samples(obs, "covariate_keys", key, code, names))


def _indicators(values: np.ndarray) -> list[np.ndarray]:
    return [(values == value).astype(float) for value in np.unique(values)[1:]]


def sample_strata(groups: Groups, samples: Samples) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the stratum of each part and sample, that of each cell (-1: none), and their number.

    Only those with cells have a stratum; the last has no cell, and stands for all others.
    """
    n_samples = len(samples.names)
    used = (groups.part >= 0) & (samples.code >= 0)
    codes, of_cell = np.unique((groups.part * n_samples + samples.code)[used], return_inverse=True)
    place = np.full(groups.n_parts * n_samples, len(codes))
    place[codes] = np.arange(len(codes))
    stratum = np.full(len(used), -1)
    stratum[used] = of_cell
    return place.reshape(groups.n_parts, n_samples), stratum, len(codes) + 1


def compare_over_samples(
    sums: StratumMoments,
    place: np.ndarray,
    groups: Groups,
    samples: Samples,
    pseudocounts: Pseudocounts,
    min_cells: int,
    *,
    scale_protein: bool,
) -> list[SampleDifferences]:
    """Compare groups over samples, warning where batches cannot be told from groups.

    Parameters
    ----------
    sums
        Of strata: the cells of a part and a sample.
    place
        Stratum of each part and sample, (parts, samples); the last stratum holds no cell.
    min_cells
        A sample with fewer cells in a group does not count there.

    Raises
    ------
    DataError
        When no comparison has two samples in each group.
    """
    results, notes = [], dict[str, None]()
    for comparison, names in zip(groups.comparisons, groups.names, strict=True):
        of_groups = [sums.sum(place[list(parts)]) for parts in comparison]
        enough = [group.rna.n_cells[:, 0] >= min_cells for group in of_groups]
        units = pd.DataFrame(
            {
                "sample": np.concatenate([np.flatnonzero(some) for some in enough]),
                "group": np.repeat([0, 1], [some.sum() for some in enough]),
            }
        )
        moments = [_rows(group, some) for group, some in zip(of_groups, enough, strict=True)]
        both = _stacked(moments)
        units["n_cells"] = both.rna.n_cells[:, 0].astype(int)
        design, found = sample_design(units, samples, names)
        notes |= dict.fromkeys(found)
        results.append(_compare(both, units, design, pseudocounts, scale_protein=scale_protein))
        units["sample"] = np.array(samples.names, dtype=object)[units["sample"]]
        units["group"] = np.array(names, dtype=object)[units["group"]]
    for note in notes:
        warnings.warn(note, stacklevel=4)
    if all(np.isnan(result.found.p_value).all() for result in results):
        first, second = groups.names[0]
        few = [int(results[0].units["group"].eq(name).sum()) for name in (first, second)]
        raise DataError(
            f"{first} and {second} have {few[0]} and {few[1]} samples with {min_cells} cells or more; "
            "how much samples of a group differ shows only with two or more in each, and a sample left "
            "over beside the blocks and covariates. Leave out the samples to compare these cells alone."
        )
    return results


def _rows(sums: StratumMoments, some: np.ndarray) -> StratumMoments:
    rna, foreground, background = (
        Moments(*(part[some] for part in moments))
        for moments in (sums.rna, sums.foreground, sums.background)
    )
    return StratumMoments(rna, foreground, background, sums.library_size[some])


def _stacked(sums: Sequence[StratumMoments]) -> StratumMoments:
    rna, foreground, background = (
        Moments(*map(np.concatenate, zip(*moments, strict=True)))
        for moments in (
            [group.rna for group in sums],
            [group.foreground for group in sums],
            [group.background for group in sums],
        )
    )
    library_size = np.concatenate([group.library_size for group in sums])
    return StratumMoments(rna, foreground, background, library_size)


def _compare(
    sums: StratumMoments,
    units: pd.DataFrame,
    design: np.ndarray | None,
    pseudocounts: Pseudocounts,
    *,
    scale_protein: bool,
) -> SampleDifferences:
    n_genes, n_proteins = sums.rna.total.shape[1], sums.foreground.total.shape[1]
    size = float(np.median(sums.library_size)) if len(units) else np.inf
    rna = _COUNTS_AT_PSEUDOCOUNT / size if pseudocounts.rna is None else pseudocounts.rna
    c = pseudocounts._replace(rna=rna).of((), n_genes, n_proteins)
    if pseudocounts.protein is None and not scale_protein and len(units):
        # of a sample of the mean size: the variances of all add up over all of their cells
        limit = np.sqrt(len(units)) * detection_limit([sums])
        c[n_genes:] = np.maximum(c[n_genes:], limit)
    level = sample_levels(sums, scale_protein=scale_protein)
    log_level = np.log2(level.mean + c)
    sampling = level.variance / (level.mean + c) ** 2 / np.log(2) ** 2
    log_level[:, ~_enough_counts(sums)] = np.nan
    genes = slice(n_genes)
    log_level[:, genes] -= _common_factor(log_level[:, genes], sampling[:, genes])
    nothing = np.full(n_genes + n_proteins, np.nan)
    found = Moderated(*(nothing for _ in Moderated._fields))
    if design is not None:
        parts = [
            compare_samples(log_level[:, some], sampling[:, some], design)
            for some in (genes, slice(n_genes, None))
        ]
        found = Moderated(*map(np.concatenate, zip(*parts, strict=True)))
    measured = np.isfinite(level.mean)
    inside = [(units["group"] == group).to_numpy() for group in (0, 1)]
    n_samples = np.array([measured[some].sum(axis=0) for some in inside])
    scales = [
        np.where(measured[some], level.mean[some], 0).sum(axis=0) / np.where(n > 0, n, np.nan)
        for some, n in zip(inside, n_samples, strict=True)
    ]
    return SampleDifferences(found, scales[0], scales[1], n_samples, c, units, log_level)


def _enough_counts(sums: StratumMoments) -> np.ndarray:
    """Return which features have the counts for a test; that does not depend on the groups.

    Where hardly any cell is foreground, the level of a protein is that of a few doubtful ones.
    """
    enough = [sums.rna.counted.sum(axis=0), sums.foreground.counted.sum(axis=0)]
    if sums.background.total.any():  # it is part of the level
        enough[1] += sums.background.counted.sum(axis=0)
        foreground = np.full(len(enough[1]), True)
    else:
        foreground = sums.foreground.present.mean(axis=0) >= _FEWEST_FOREGROUND_CELLS
    rna, protein = (counts >= _FEWEST_COUNTS for counts in enough)
    return np.concatenate([rna, protein & foreground])


def sample_levels(sums: StratumMoments, *, scale_protein: bool) -> Level:
    """Return the level of each stratum as a group of its own, (strata, features); NaN: no cell."""
    levels = []
    for moments in sums[:3]:
        # every stratum and feature is a feature of one batch
        shape = moments.total.shape
        flat = Moments(*(np.broadcast_to(part, shape).reshape(1, -1) for part in moments))
        level = group_level(flat, (flat.n_cells > 0).astype(float))
        levels.append([part.reshape(shape) for part in level])
    rna, foreground, background = levels
    mean, variance = (a + b for a, b in zip(foreground, background, strict=True))
    if scale_protein:
        total = np.maximum(np.nansum(mean, axis=1, keepdims=True), np.finfo(float).tiny)
        mean, variance = mean / total, variance / total**2
    return Level(np.hstack([rna[0], mean]), np.hstack([rna[1], variance]))


def _common_factor(levels: np.ndarray, sampling: np.ndarray) -> np.ndarray:
    """Return the shift of each unit that most genes share, (units, 1), in log2.

    Where some genes rise, the proportions of all others fall. The median of well-counted genes is free
    of that (Anders and Huber, Genome Biology 2010).
    """
    tested = np.isfinite(levels).all(axis=0)
    if not tested.any():
        return np.zeros((len(levels), 1))
    precision = sampling[:, tested].mean(axis=0)
    well = levels[:, tested][:, precision <= np.median(precision)]
    shift: np.ndarray = np.median(well - well.mean(axis=0), axis=1, keepdims=True)
    return shift


def sample_design(
    units: pd.DataFrame, samples: Samples, names: tuple[str, str]
) -> tuple[np.ndarray | None, list[str]]:
    """Return the design of a comparison, its first column that of the first group, and notes.

    None: the units do not tell the groups apart.
    """
    sample, group = units["sample"].to_numpy(), units["group"].to_numpy()
    sizes = np.bincount(group, minlength=2)
    if sizes.min() < _FEWEST_SAMPLES:
        return None, []
    columns = [(group == 0).astype(float), np.ones(len(units))]
    block = sample if samples.blocks is None else samples.blocks[sample]
    if samples.blocks is not None or 2 * (sizes.sum() - len(np.unique(sample))) >= sizes.min():
        columns += _indicators(block)  # most samples have both groups, or blocks were given
    design = np.column_stack([*columns, samples.covariates[sample]])
    if independent_columns(design) is None:
        first, second = names
        return None, [
            f"blocks or covariates hold the same samples as {first} and {second}, so that an effect of "
            "the one cannot be told from one of the other; their rows are empty."
        ]
    return _with_batches(design, samples.batch[sample], sample, group, names)


def _with_batches(
    design: np.ndarray,
    batch: np.ndarray,
    sample: np.ndarray,
    group: np.ndarray,
    names: tuple[str, str],
) -> tuple[np.ndarray, list[str]]:
    """Add the batches to a design if they can be told from the groups, else say what follows."""
    present = np.unique(batch)
    n_samples = len(np.unique(sample))
    if -1 in present or len(present) == 1 or len(present) == n_samples:
        return design, []  # a batch of each sample is part of what samples differ by
    full = np.column_stack([design, *_indicators(batch)])
    basis = independent_columns(full)
    if basis is not None and len(basis) > basis.shape[1]:
        return full, []
    first, second = names
    shared = set(batch[group == 0]) & set(batch[group == 1])
    if shared:
        return design, [
            f"too few samples to tell the batches from {first} and {second}: what batches add is left "
            "in the effects and, where it differs between samples of a group, in their errors."
        ]
    return design, [
        f"every batch has samples of only {first} or only {second}, so a difference between these "
        "batches cannot be told from one between the groups, by any method: effects hold both. Errors "
        "account for how samples of a group differ, not for what a batch shifts in all of its samples. "
        "batch_correction=True would take out both. With several batches in each group, the batches "
        "can be given as the samples."
    ]
