"""A UMAP of the cells: the graph and the forces of McInnes, Healy and Melville (2018), in parallel.

umap-learn moves one cell after the other, so several threads would change the map, and it compiles
for seconds in each process. Here all cells of an epoch move at the same time, from their positions
in the previous epoch, so that any number of threads gives the same map. Sums keep their order (no
reassociation), so that the map also does not depend on how the loop was compiled.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange, uint64
from scipy import sparse

from totalvi.compiled import compiled
from totalvi.mapping.reference_neighbours import Nearest
from totalvi.nn.cpu.math import exp, log
from totalvi.posterior.noise import GOLDEN, mixed

FEW_CELLS = 8192
EPOCHS_OF_FEW, EPOCHS = 500, 100  # of many cells, twice as many keep 2 % more of the neighbours
REPELLED_BY = 5  # random cells, for each neighbour that attracts
# 1 / (1 + a d^2b) is near 1 up to a distance of 0.5 and falls like exp(0.5 - d) beyond.
A, B = 0.5830300203414425, 1.3341669924314327
_BISECTIONS = 48
_CHUNKS = 64  # of cells
_EXTENT = 10.0


class _Edges(NamedTuple):
    """The graph by cell: cell i's neighbours are ``neighbour[first[i]:first[i + 1]]``."""

    first: np.ndarray
    neighbour: np.ndarray
    share: np.ndarray  # of the epochs in which the neighbour attracts


def neighbour_weights(found: Nearest) -> sparse.csr_matrix:
    """Return UMAP's graph: symmetric, with weights up to 1.

    Parameters
    ----------
    found
        The nearest neighbours of each cell, the cell itself first.
    """
    distances = found.distances[:, 1:].astype(np.float64)
    n_cells, n_others = distances.shape
    nearest = np.where(distances > 0, distances, np.inf).min(axis=1, keepdims=True)
    beyond = np.maximum(distances - np.where(np.isfinite(nearest), nearest, 0.0), 0.0)
    low, high = np.zeros((n_cells, 1)), np.full((n_cells, 1), np.inf)
    scale, target = np.ones((n_cells, 1)), np.log2(n_others + 1)
    for _ in range(_BISECTIONS):
        too_wide = np.exp(-beyond / scale).sum(axis=1, keepdims=True) > target
        low, high = np.where(too_wide, low, scale), np.where(too_wide, scale, high)
        scale = np.where(np.isinf(high), 2 * scale, (low + high) / 2)
    mean = distances.mean(axis=1, keepdims=True)
    scale = np.maximum(scale, 1e-3 * np.where(mean > 0, mean, 1.0))
    one_way = sparse.csr_matrix(
        (
            np.exp(-beyond / scale).astype(np.float32).ravel(),
            found.points[:, 1:].ravel(),
            np.arange(0, n_cells * n_others + 1, n_others),
        ),
        shape=(n_cells, n_cells),
    )
    other_way = one_way.T.tocsr()
    both: sparse.csr_matrix = one_way + other_way - one_way.multiply(other_way)
    both.eliminate_zeros()
    both.sort_indices()
    return both


def lay_out(latent: np.ndarray, graph: sparse.csr_matrix, seed: int) -> np.ndarray:
    """Return places of the cells on a map, float32 (n_cells, 2), from those on two principal axes.

    Parameters
    ----------
    latent
        Latent representation, (n_cells, n_latent).
    graph
        From `neighbour_weights`.
    seed
        The same seed gives the same map.
    """
    share = graph.data / graph.data.max()
    edges = _Edges(graph.indptr.astype(np.int64), graph.indices.astype(np.int64), share)
    places = _principal(latent, np.random.default_rng(seed))
    moved = np.empty_like(places)
    n_epochs = EPOCHS_OF_FEW if len(latent) <= FEW_CELLS else EPOCHS
    stream = np.random.SeedSequence(seed).generate_state(n_epochs, np.uint64)
    for epoch in range(n_epochs):
        _move(places, moved, *edges, epoch, np.float32(1 - epoch / n_epochs), stream[epoch])
        places, moved = moved, places
    return places


def _principal(latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the cells on their two widest axes, as wide as a map, and no two at one place."""
    centered = latent - latent.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    chosen = axes[:, [-1, -2]]
    chosen = chosen * np.sign(
        chosen[np.abs(chosen).argmax(axis=0), [0, 1]]
    )  # else it may be mirrored
    places = centered @ chosen
    places *= _EXTENT / np.ptp(places, axis=0).max()
    apart: np.ndarray = places + rng.normal(scale=1e-4, size=places.shape)
    return apart.astype(np.float32)


_FLOAT: Any = np.float32
_ONE, _TWO, _NEAR = _FLOAT(1), _FLOAT(2), _FLOAT(0.001)
_A, _B, _LIMIT = _FLOAT(A), _FLOAT(B), _FLOAT(4)
_LEAST = _FLOAT(1e-12)  # squared distance, so that cells at one place are no exception


@compiled(parallel=True, fastmath={"contract", "nnan", "ninf", "nsz"}, error_model="numpy")
def _move(
    places: np.ndarray, moved: np.ndarray, first: np.ndarray, neighbour: np.ndarray,
    share: np.ndarray, epoch: int, step: np.floating, stream: np.uint64,
) -> None:  # fmt: skip
    """Move each cell towards its neighbours of this epoch and away from random cells."""
    n_cells = len(places)
    now, then = np.float32(epoch), np.float32(epoch + 1)
    size = -(-n_cells // _CHUNKS)
    for chunk in prange(_CHUNKS):
        ox, oy = np.empty(REPELLED_BY, np.float32), np.empty(REPELLED_BY, np.float32)
        for i in range(min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)):
            x, y = places[i, 0], places[i, 1]
            word = mixed(stream ^ (uint64(i) * uint64(GOLDEN)))
            for edge in range(first[i], first[i + 1]):
                # An edge of share 0.4 attracts in 2 of 5 epochs, spread evenly.
                if np.floor(then * share[edge]) == np.floor(now * share[edge]):
                    continue
                for other in range(REPELLED_BY):
                    word = mixed(word + uint64(GOLDEN))
                    k = ((word >> uint64(32)) * uint64(n_cells)) >> uint64(32)
                    ox[other], oy[other] = places[k, 0], places[k, 1]
                j = neighbour[edge]
                dx, dy = x - places[j, 0], y - places[j, 1]
                squared = dx * dx + dy * dy + _LEAST
                power = exp(_B * log(squared))
                pull = -_TWO * _A * _B * power / (squared * (_ONE + _A * power))
                to_x = min(max(pull * dx, -_LIMIT), _LIMIT)
                to_y = min(max(pull * dy, -_LIMIT), _LIMIT)
                # All from one place, so that the processor need not wait for one before the next.
                for other in range(REPELLED_BY):
                    dx, dy = x - ox[other], y - oy[other]
                    squared = dx * dx + dy * dy + _LEAST
                    power = exp(_B * log(squared))
                    push = _B / ((_NEAR + squared) * (_ONE + _A * power))
                    ox[other] = min(max(push * dx, -_LIMIT), _LIMIT)
                    oy[other] = min(max(push * dy, -_LIMIT), _LIMIT)
                for other in range(REPELLED_BY):
                    to_x += ox[other]
                    to_y += oy[other]
                x += step * to_x
                y += step * to_y
            moved[i, 0], moved[i, 1] = x, y
