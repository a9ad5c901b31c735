"""The numbers of a fit are checked once; learning rate and KL weight follow their schedules."""

from typing import Any

import numpy as np
import pytest

from totalvi.fit.plan import TrainingPlan, default_max_epochs, kl_weight, learning_rate_factor


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_epochs": 0}, "max_epochs is 0; allowed are whole numbers from 1"),
        ({"max_epochs": 2.0}, "max_epochs is 2.0"),
        ({"max_epochs": True}, "max_epochs is True"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"kl_warmup_epochs": -1}, "kl_warmup_epochs is -1; allowed are whole numbers from 0"),
        ({"patience": 0}, "patience is 0"),
        ({"learning_rate": 0}, "learning_rate is 0; allowed are numbers above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": "high"}, "learning_rate is 'high'"),
        ({"gradient_clip_norm": float("inf")}, "gradient_clip_norm is inf"),
        ({"weight_decay": -1e-3}, "weight_decay is -0.001; allowed are numbers from 0"),
        ({"schedule": "linear"}, "schedule is 'linear'; allowed are 'one-cycle', 'constant'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_numbers(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingPlan(**({"max_epochs": 3} | wrong))


def test_allowed_numbers() -> None:
    TrainingPlan(max_epochs=1, kl_warmup_epochs=0, patience=None, weight_decay=0)


def test_default_epochs_fall_with_the_number_of_cells() -> None:
    epochs = [default_max_epochs(n) for n in (2, 100, 2000, 6000, 50_000, 10**6, 10**8)]
    assert epochs == sorted(epochs, reverse=True)
    assert all(isinstance(n, int) and n >= 1 for n in epochs)


def test_few_cells_get_600_steps_and_others_100_epochs_or_600_000_cells() -> None:
    assert default_max_epochs(2) == default_max_epochs(150) == 400
    assert default_max_epochs(500) == 154  # of 3.9 steps
    assert {default_max_epochs(n) for n in (768, 1000, 2999, 3000, 6000)} == {100}
    assert default_max_epochs(12_000) == 50
    assert default_max_epochs(200_000) == 10


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
