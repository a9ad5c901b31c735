"""The numbers of a fit are checked once."""

from typing import Any

import pytest

from totalvi.fit.plan import TrainingPlan, default_max_epochs


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
