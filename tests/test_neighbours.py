"""The search for nearest neighbours, against distances taken one by one."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from totalvi.mapping.reference_neighbours import nearest, nearest_to_each


def points(n: int, dimensions: int, n_groups: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    centers = 5 * rng.normal(size=(n_groups, dimensions))
    return (centers[rng.integers(n_groups, size=n)] + rng.normal(size=(n, dimensions))).astype(
        np.float32
    )


@pytest.mark.parametrize("n_groups", [1, 12])
def test_every_neighbour_is_found_of_many(n_groups: int) -> None:
    among = points(9000, 20, n_groups)
    asked = among[::30]
    distance, expected = cKDTree(among.astype(np.float64)).query(asked, k=15)
    found = nearest(asked, among, 15)
    assert (found.points == expected).mean() > 0.999  # those as far as each other in float32 swap
    np.testing.assert_allclose(found.distances, distance, rtol=1e-4, atol=1e-3)


def test_no_more_neighbours_than_points() -> None:
    among = points(4, 3, 1)
    assert nearest(among, among, 9).points.shape == (4, 4)
    assert sorted(nearest(among[:1], among, 9).points[0]) == [0, 1, 2, 3]


def test_a_point_is_first_among_its_neighbours_even_of_equals() -> None:
    among = np.repeat(points(5, 4, 1), 10, axis=0)
    found = nearest_to_each(among, 6)
    np.testing.assert_array_equal(found.points[:, 0], np.arange(50))
    np.testing.assert_array_equal(found.distances[:, 0], 0)
    assert all(len(set(row)) == 6 for row in found.points.tolist())
    np.testing.assert_array_equal(found.points // 10, (np.arange(50) // 10)[:, None].repeat(6, 1))


def test_half_the_points_asked_about_get_the_same_neighbours() -> None:
    among = points(3000, 20, 5)
    whole = nearest(among, among, 15)
    half = nearest(among[1500:], among, 15)
    np.testing.assert_array_equal(half.points, whole.points[1500:])
