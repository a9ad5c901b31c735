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
from scipy.sparse.csgraph import connected_components

from totalvi.errors import DataError
from totalvi.posterior.differential.comparison import (
    Comparison,
    Level,
    Pseudocounts,
    detection_limit,
    group_level,
)
from totalvi.posterior.differential.groups import Groups, Samples, indicators
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
_LEAST_SHARE_OF_BATCH = 0.1  # of a sample's cells; a few stray ones join no batches
PAIRED, IN_BLOCKS, CONFOUNDED = "paired", "in blocks", ", confounded with batches"


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
    design
        What samples were compared by, in words: "unpaired", "paired + batches", ...; "": nothing.
    """

    found: Moderated
    first_scale: np.ndarray
    second_scale: np.ndarray
    n_samples: np.ndarray
    pseudocount: np.ndarray
    units: pd.DataFrame
    levels: np.ndarray
    design: str


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
        design, words, found = sample_design(units, samples, comparison, names)
        notes |= dict.fromkeys(found)
        result = _compare(both, units, design, pseudocounts, scale_protein=scale_protein)
        results.append(result._replace(design=words))
        units["sample"] = np.array(samples.names, dtype=object)[units["sample"]]
        units["group"] = np.array(names, dtype=object)[units["group"]]
    for note in notes:
        warnings.warn(note, stacklevel=5)
    if all(np.isnan(result.found.p_value).all() for result in results):
        counts = [
            [int(result.units["group"].eq(name).sum()) for name in names]
            for result, names in zip(results, groups.names, strict=True)
        ]
        most = max(range(len(counts)), key=lambda number: sorted(counts[number]))
        (first, second), few = groups.names[most], counts[most]
        if min(few) >= _FEWEST_SAMPLES:
            raise DataError(
                f"{first} and {second} cannot be compared beside the blocks and covariates, which tell "
                "them apart by themselves or leave no sample over; leave out one of these."
            )
        raise DataError(
            f"{first} and {second} have {few[0]} and {few[1]} samples with {min_cells} cells or more; "
            "how much samples of a group differ shows only with two or more in each, and a sample left "
            "over beside the blocks and covariates. With fewer, only these cells can be compared: by "
            "Model.differential_expression without sample_key."
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
    return SampleDifferences(found, scales[0], scales[1], n_samples, c, units, log_level, "")


def _enough_counts(sums: StratumMoments) -> np.ndarray:
    """Return which features have the counts for a test; that does not depend on the groups.

    Where hardly any cell is foreground, the level of a protein is that of a few doubtful ones.
    """
    enough = [sums.rna.counted.sum(axis=0), sums.foreground.counted.sum(axis=0)]
    if sums.background.total.any():  # it is part of the level
        enough[1] += sums.background.counted.sum(axis=0)
        foreground = np.full(len(enough[1]), True)
    else:
        fewest = _FEWEST_FOREGROUND_CELLS * len(sums.foreground.present)
        foreground = sums.foreground.present.sum(axis=0) >= fewest
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
    if not (len(levels) and tested.any()):
        return np.zeros((len(levels), 1))
    precision = sampling[:, tested].mean(axis=0)
    well = levels[:, tested][:, precision <= np.median(precision)]
    shift: np.ndarray = np.median(well - well.mean(axis=0), axis=1, keepdims=True)
    return shift


def sample_design(
    units: pd.DataFrame, samples: Samples, comparison: Comparison, names: tuple[str, str]
) -> tuple[np.ndarray | None, str, list[str]]:
    """Return the design of a comparison, its first column that of the first group, words, and notes.

    None: the units do not tell the groups apart.
    """
    sample, group = units["sample"].to_numpy(), units["group"].to_numpy()
    sizes = np.bincount(group, minlength=2)
    if sizes.min() < _FEWEST_SAMPLES:
        return None, "", []
    columns, terms = [(group == 0).astype(float), np.ones(len(units))], []
    if 2 * (sizes.sum() - len(np.unique(sample))) >= sizes.min():  # most samples have both groups
        columns += indicators(sample)
        terms.append(PAIRED)
    if samples.blocks is not None:
        columns += indicators(samples.blocks[sample])
        terms.append(IN_BLOCKS)
    words = ", ".join(terms) or "unpaired"
    words += " + covariates" if samples.covariates.shape[1] else ""
    design = np.column_stack([*columns, samples.covariates[sample]])
    if independent_columns(design) is None:
        first, second = names
        return None, "", [
            f"blocks or covariates tell {first} from {second} by themselves (each holds samples of one "
            "of them only), so that an effect of the one cannot be told from one of the other; their "
            "rows are empty."
        ]  # fmt: skip
    of_groups = [samples.n_in_batches[list(parts)].sum(axis=0) for parts in comparison]
    n_in_batches = np.array(of_groups)[group, sample]
    return _with_batches(design, words, separate_batches(n_in_batches), group, names)


def separate_batches(n_in_batches: np.ndarray) -> np.ndarray:
    """Return a code of each unit's batch, those that some unit has cells in being one, (units,).

    Parameters
    ----------
    n_in_batches
        Cells of each unit in each batch, (units, batches).

    Examples
    --------
    >>> separate_batches(np.array([[90, 80, 0], [0, 70, 0], [1, 0, 60]])).tolist()
    [0, 0, 1]
    """
    share = n_in_batches / np.maximum(n_in_batches.sum(axis=1, keepdims=True), 1)
    held = (share >= _LEAST_SHARE_OF_BATCH).astype(int)
    codes: np.ndarray = connected_components(held @ held.T)[1]
    return codes


def _with_batches(
    design: np.ndarray, words: str, batch: np.ndarray, group: np.ndarray, names: tuple[str, str]
) -> tuple[np.ndarray, str, list[str]]:
    """Add the batches to a design if they can be told from the groups, else say what follows."""
    if len(np.unique(batch)) in (1, len(batch)):
        return design, words, []  # a batch of each unit is part of what units differ by
    full = np.column_stack([design, *indicators(batch)])
    basis = independent_columns(full)
    if basis is not None and len(basis) > basis.shape[1]:
        adds = np.linalg.matrix_rank(full) > np.linalg.matrix_rank(design)
        return full, words + " + batches" * bool(adds), []
    first, second = names
    shared = set(batch[group == 0]) & set(batch[group == 1])
    if shared:
        note = (
            f"too few samples to tell the batches from {first} and {second}: what batches add is left "
            "in the effects and, where it differs between samples of a group, in their errors."
        )
    else:
        note = (
            f"every batch has samples of only {first} or only {second}, so a difference between these "
            "batches cannot be told from one between the groups, by any method: effects hold both. "
            "Errors account for how samples of a group differ, not for what a batch shifts in all of "
            "its samples. Decoding into common batches would take out both. With several batches in "
            "each group, the batches can be given as the samples."
        )
        words += CONFOUNDED
    return design, words, [note]
