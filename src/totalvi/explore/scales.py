"""The scales of plot axes, as in flow cytometry: linear, asinh and log."""

from typing import Literal, get_args

import numpy as np

Scale = Literal["linear", "asinh", "log"]
SCALES: tuple[Scale, ...] = get_args(Scale)
COFACTOR = 5.0  # of asinh: linear well below this many counts, logarithmic above


def to_scale(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Return where values lie on an axis: x, asinh(x / 5), or log10(1 + x).

    Examples
    --------
    >>> to_scale(np.array([0.0, 9.0]), "log")
    array([0., 1.])
    """
    if scale == "asinh":
        return np.arcsinh(values / COFACTOR)
    return np.log10(1 + values) if scale == "log" else values


def from_scale(places: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the values that lie at ``places`` on an axis.

    Examples
    --------
    >>> from_scale(np.array([0.0, 1.0]), "log")
    array([0., 9.])
    """
    if scale == "asinh":
        return np.sinh(places) * COFACTOR
    return 10.0**places - 1 if scale == "log" else places


def scale_ticks(high: float, scale: Scale) -> list[float] | None:
    """Return the counts to mark on an axis that reaches the value ``high``; None: evenly spaced.

    Examples
    --------
    >>> scale_ticks(2500.0, "asinh")
    [0.0, 10.0, 100.0, 1000.0]
    """
    if scale == "linear":
        return None
    powers = [10.0**power for power in range(-3, 9) if 10.0**power <= high]
    least = 10.0 if scale == "asinh" else 1.0
    return [0.0, *(power for power in powers if power >= min(least, high / 5))]
