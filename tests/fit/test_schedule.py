"""Learning rate and KL weight by step."""

import numpy as np
import pytest

from totalvi.fit.plan import kl_weight, learning_rate_factor


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 1000])
def test_one_cycle_rises_then_falls(n_steps: int) -> None:
    factors = np.array([learning_rate_factor(i, n_steps, "one-cycle") for i in range(n_steps)])
    assert (factors > 0).all()
    assert (factors <= 1).all()
    assert factors[0] == pytest.approx(1 / 25)
    peak = factors.argmax()
    assert (np.diff(factors[: peak + 1]) > 0).all()
    assert (np.diff(factors[peak:]) < 0).all()
    if n_steps >= 10:
        assert factors.max() > 0.95
        assert peak <= 0.1 * n_steps + 1
        assert factors[-1] == pytest.approx(1e-3)


def test_one_cycle_is_continuous() -> None:
    factors = [learning_rate_factor(i, 5000, "one-cycle") for i in range(5000)]
    assert np.abs(np.diff(factors)).max() < 0.004


def test_constant() -> None:
    assert {learning_rate_factor(i, 7, "constant") for i in range(7)} == {1.0}


@pytest.mark.parametrize("n_warmup", [0, 1, 7, 100])
def test_kl_weight_rises_straight_from_zero_to_one(n_warmup: int) -> None:
    weights = np.array([kl_weight(step, n_warmup) for step in range(2 * n_warmup + 2)])
    assert (weights[n_warmup:] == 1).all()
    np.testing.assert_allclose(weights[:n_warmup], np.arange(n_warmup) / max(n_warmup, 1))
