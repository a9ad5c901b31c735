"""The levels of markers: found where they are, and only there."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from totalvi.posterior.gates.marker_levels import find_levels


def mixture(means: list[float], sizes: list[int], scale: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(np.repeat(means, sizes), scale)


def test_the_boundary_of_two_equal_levels_is_between_them() -> None:
    level = mixture([0.0, 3.0], [2000, 2000])
    found = find_levels(level, (level > 1.5).astype(float))
    assert found.positive.at == pytest.approx(1.5, abs=0.35)
    assert found.high == found.positive
    # the slope of the log odds of two normal distributions
    assert found.positive.slope == pytest.approx(3.0 / 0.3**2, rel=0.1)


def test_probabilities_are_those_of_the_mixture() -> None:
    level = mixture([0.0, 2.0], [3000, 3000], 0.5)
    found = find_levels(level, (level > 1).astype(float))
    at = np.linspace(-0.5, 2.5, 31)
    p = norm.pdf(at, 2, 0.5) / (norm.pdf(at, 2, 0.5) + norm.pdf(at, 0, 0.5))
    ours = found.positive.above(torch.from_numpy(at)).numpy()
    assert np.abs(ours - p).max() < 0.2
    assert np.abs(ours - p).mean() < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_one_level_has_no_boundary(seed: int) -> None:
    level = mixture([1.0], [500], 0.6, seed)
    found = find_levels(level, np.full(500, 0.2))
    assert not found.positive.found
    assert not found.high.found


def test_rare_levels_are_found() -> None:
    level = mixture([0.0, 4.0], [1980, 20])
    found = find_levels(level, (level > 2).astype(float))
    assert 1 < found.positive.at < 3.5


def test_the_first_level_of_foreground_is_above_low() -> None:
    """Two levels of background are both low; with two of foreground, the last is high."""
    level = mixture([0.0, 2.0, 4.0, 6.0], [400, 400, 400, 400])
    found = find_levels(level, (level > 3).astype(float))
    assert found.positive.at == pytest.approx(3, abs=0.4)
    assert found.high.at == pytest.approx(5, abs=0.4)


def test_where_all_is_foreground_the_lowest_level_is_low() -> None:
    level = mixture([3.0, 6.0], [300, 300])
    found = find_levels(level, np.ones(600))
    assert found.positive.at == pytest.approx(4.5, abs=0.5)


def test_levels_move_with_the_values() -> None:
    level = mixture([0.0, 3.0], [500, 300])
    here, there = find_levels(level), find_levels(level + 2.0)
    assert there.positive.at - here.positive.at == pytest.approx(2.0, abs=0.05)
    assert there.positive.slope == pytest.approx(here.positive.slope, rel=1e-6)


@pytest.mark.parametrize("level", [np.zeros(1), np.zeros(100), np.arange(3.0)])
def test_few_or_equal_cells_show_nothing(level: np.ndarray) -> None:
    assert not find_levels(level, np.ones(len(level))).positive.found
