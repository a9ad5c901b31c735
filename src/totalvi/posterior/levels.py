"""The mean expression of a group of cells, and how well it is known.

The mean of the decoded scale over a group, H, is the decoder's word for it, and the decoder shrinks
towards what cells have in common. The group's own counts say by how much it is off: with an unknown
factor f on the group's scale and a Gamma(a, a) prior of f, counts of sum ``counted`` where
``expected`` was expected make f ~ Gamma(a + counted, a + expected). For proteins the frequency of the
component is corrected alike, by one step of expectation maximisation. The level is H f, and its
variance has three parts: what the counts leave open, the posterior of each cell, and the choice of
cells.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import polygamma

from totalvi.posterior.moments import Moments, StratumMoments

_PRIOR_COUNT = 0.5  # a above


class Level(NamedTuple):
    """Mean expression of each feature in a group, (features,), and its variance. NaN: no cell.

    The variance is that of the logarithm times the squared mean, as effects are logarithms.
    """

    mean: np.ndarray
    variance: np.ndarray


def group_level(moments: Moments, weight: np.ndarray) -> Level:
    """Return the level of a group whose cells are in several batches.

    Parameters
    ----------
    moments
        Sums of the group, one row a batch.
    weight
        Of each batch's mean in that of the group, (batches, features); 0 where no cell is.
    """
    n = np.maximum(moments.n_cells, 1)
    batch_mean = moments.total / n
    batch_variance = np.maximum(moments.square / n - batch_mean**2, 0) / n
    decoded = (weight * batch_mean).sum(axis=0)
    of_cell = np.where(moments.n_cells > 0, weight / n, 0) * moments.n_cells.sum(axis=0)
    counted = _reweighted(moments.counted, of_cell)
    present = _reweighted(moments.present, of_cell)
    factor = (counted.total + _PRIOR_COUNT) / ((of_cell * moments.expected).sum(0) + _PRIOR_COUNT)
    factor *= (present.total + _PRIOR_COUNT) / ((of_cell * moments.prior).sum(0) + _PRIOR_COUNT)
    elsewhere = 1 - present.total / np.maximum((of_cell * moments.n_cells).sum(axis=0), 1)
    relative = polygamma(1, counted.effective + _PRIOR_COUNT)  # variance of the log of a Gamma
    relative += np.maximum(elsewhere, 0) / (present.effective + _PRIOR_COUNT)
    mean = decoded * factor
    variance = mean**2 * relative + factor**2 * (weight**2 * batch_variance).sum(axis=0)
    unseen = weight.sum(axis=0) == 0
    return Level(np.where(unseen, np.nan, mean), np.where(unseen, np.nan, variance))


class _Reweighted(NamedTuple):
    total: np.ndarray
    effective: np.ndarray  # the unweighted sum that would be known as well


def _reweighted(part: np.ndarray, weight: np.ndarray) -> _Reweighted:
    total = (weight * part).sum(axis=0)
    square = (weight**2 * part).sum(axis=0)
    return _Reweighted(
        total, np.divide(total**2, square, out=np.zeros_like(total), where=square > 0)
    )


def shared_batch_weights(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each batch in the means of two groups, each (batches, features).

    Both groups get the same weights, n m / (n + m) for n and m cells, so that a difference between
    batches is none between groups. Where no batch has cells of both, each group keeps its own.

    Parameters
    ----------
    first, second
        Cells of the groups in each batch, (batches, features).

    Examples
    --------
    >>> import numpy as np
    >>> shared_batch_weights(np.array([[10.0], [5.0], [0.0]]), np.array([[10.0], [0.0], [9.0]]))[0].T
    array([[1., 0., 0.]])
    """
    both = first * second / np.maximum(first + second, 1)
    shared = both.sum(axis=0) > 0
    return tuple(_normalized(np.where(shared, both, own)) for own in (first, second))  # type: ignore[return-value]


def _normalized(weight: np.ndarray) -> np.ndarray:
    total = weight.sum(axis=0)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)


def pair_levels(
    first: StratumMoments, second: StratumMoments, *, scale_protein: bool
) -> tuple[Level, Level]:
    """Return the levels of two groups, genes first and then proteins.

    Parameters
    ----------
    first, second
        Sums of the groups, one row a batch.
    scale_protein
        Whether proteins are shares of all proteins; the corrected shares then add up to the same.
    """
    gene_weights = shared_batch_weights(first.rna.n_cells, second.rna.n_cells)
    protein_weights = shared_batch_weights(first.foreground.n_cells, second.foreground.n_cells)
    levels = []
    for group, of_genes, of_proteins in zip(
        (first, second), gene_weights, protein_weights, strict=True
    ):
        rna = group_level(group.rna, of_genes)
        parts = [group_level(part, of_proteins) for part in (group.foreground, group.background)]
        protein = Level(*(a + b for a, b in zip(*parts, strict=True)))
        if scale_protein:
            shrink = 1 / np.maximum(np.nansum(protein.mean), np.finfo(float).tiny)
            protein = Level(protein.mean * shrink, protein.variance * shrink**2)
        levels.append(Level(*(np.concatenate(both) for both in zip(rna, protein, strict=True))))
    return levels[0], levels[1]
