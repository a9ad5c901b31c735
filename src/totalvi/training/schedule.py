"""Learning rate and KL weight by training step."""

import math

from totalvi.training.plan import LearningRateSchedule

_RISE = 0.1  # share of the steps in which the one-cycle rate rises
_FIRST, _LAST = 1 / 25, 1e-3  # first and last rate, as shares of the peak


def learning_rate_factor(step: int, n_steps: int, schedule: LearningRateSchedule) -> float:
    """Return the learning rate at ``step`` as a share of the peak.

    One-cycle (Smith and Topin, 2019): half a cosine up over the first tenth of the steps, half a
    cosine down over the rest.

    Examples
    --------
    >>> [round(learning_rate_factor(step, 1001, "one-cycle"), 3) for step in (0, 100, 1000)]
    [0.04, 1.0, 0.001]
    """
    if schedule == "constant":
        return 1.0
    peak = _RISE * max(n_steps - 1, 1)
    if step < peak:
        return _half_cosine(_FIRST, 1.0, step / peak)
    return _half_cosine(1.0, _LAST, min((step - peak) / (max(n_steps - 1, 1) - peak), 1.0))


def kl_weight(step: int, n_warmup_steps: int) -> float:
    """Return the weight of the divergences at ``step``: a straight rise from 0 to 1.

    Examples
    --------
    >>> [kl_weight(step, 10) for step in (0, 5, 10, 50)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(step / n_warmup_steps, 1.0) if n_warmup_steps else 1.0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
