"""How unlike the reference a cell is, on the scale of the reference's own held-out cells."""

import numpy as np

from totalvi.mapping.comparison import Neighbours


def tail_probability(distance: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return the share of held-out cells that are at least as far away, the cell itself counted, (N,).

    It is a conformal p-value: of cells that are drawn like the held-out ones, a share of at most p has
    one of p or less, whatever the distribution (Vovk, Gammerman and Shafer, 2005).

    Examples
    --------
    >>> tail_probability(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0]))
    array([1.  , 0.5 , 0.25])
    """
    n_nearer = np.searchsorted(np.sort(held_out), distance, side="left")
    result: np.ndarray = (1 + len(held_out) - n_nearer) / (1 + len(held_out))
    return result


def distance_to(neighbours: Neighbours) -> np.ndarray:
    """Return each cell's mean distance to its neighbours in the reference, (N,)."""
    result: np.ndarray = neighbours.distance.mean(axis=1)
    return result
