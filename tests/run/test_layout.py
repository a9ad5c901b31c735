"""The map, against umap-learn: its graph, its forces, and what both keep of the cells."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

from totalvi.mapping.reference_neighbours import nearest, nearest_to_each
from totalvi.run.map_layout import A, B, lay_out, neighbour_weights


def groups(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    of = rng.integers(5, size=n)
    centers = 4 * rng.normal(size=(5, 8))
    return (centers[of] + rng.normal(size=(n, 8))).astype(np.float32), of


def test_the_curve_is_that_of_umap() -> None:
    np.testing.assert_allclose((A, B), find_ab_params(1.0, 0.5), rtol=1e-3)


def test_the_graph_is_that_of_umap() -> None:
    latent, _ = groups(500)
    latent[100] = latent[7]  # two cells at one place
    found = nearest_to_each(latent, 15)
    expected = fuzzy_simplicial_set(
        latent, 15, None, None, knn_indices=found.points, knn_dists=found.distances
    )[0]
    difference = neighbour_weights(found) - sparse.csr_matrix(expected)
    assert abs(difference).max() < 1e-3
    assert difference.nnz


@pytest.mark.parametrize(
    ("n_cells", "n_epochs"), [(3000, 500), pytest.param(9000, 200, marks=pytest.mark.slow)]
)
def test_it_keeps_as_much_of_the_neighbours_as_umap(n_cells: int, n_epochs: int) -> None:
    latent, of = groups(n_cells)
    found = nearest_to_each(latent, 15)
    graph = neighbour_weights(found)
    ours = lay_out(latent, graph, 0)
    theirs = simplicial_set_embedding(
        latent, graph.tocoo(), 2, 1.0, A, B, 1.0, 5, n_epochs, PCA(2).fit_transform(latent),
        np.random.RandomState(0), "euclidean", {}, False, {}, False,
    )[0]  # fmt: skip

    def kept(places: np.ndarray) -> float:
        near = nearest(places, places, 50).points
        return np.mean([np.isin(found.points[i], near[i]).mean() for i in range(len(near))])

    assert kept(ours) > 0.95 * kept(theirs)
    centers = np.stack([ours[of == i].mean(axis=0) for i in range(5)])
    nearest_center = np.linalg.norm(ours[:, None] - centers, axis=2).argmin(axis=1)
    assert (nearest_center == of).mean() > 0.98


@pytest.mark.parametrize("seed", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_the_number_of_threads_changes_nothing(seed: int) -> None:
    latent, _ = groups(400)
    code = f"""
import sys, numpy
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_layout import groups, lay_out, nearest_to_each, neighbour_weights
latent, _ = groups(400)
places = lay_out(latent, neighbour_weights(nearest_to_each(latent, 15)), {seed})
sys.stdout.buffer.write(places.tobytes())
"""
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"NUMBA_NUM_THREADS": n},
            capture_output=True,
            check=True,
        ).stdout
        for n in ("1", "2")
    ]
    assert done[0] == done[1]
    here = lay_out(latent, neighbour_weights(nearest_to_each(latent, 15)), seed)
    assert here.tobytes() == done[0]
    assert not np.array_equal(
        here, lay_out(latent, neighbour_weights(nearest_to_each(latent, 15)), 1)
    )


def test_cells_at_one_place_part() -> None:
    latent = np.zeros((60, 3), dtype=np.float32)
    latent[30:, 0] = 1
    places = lay_out(latent, neighbour_weights(nearest_to_each(latent, 15)), 0)
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == 60
