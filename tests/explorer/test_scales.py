"""Axis scales and their inverses."""

import numpy as np
import pytest

from totalvi.explorer.axes import SCALES, from_scale, scale_ticks, to_scale


@pytest.mark.parametrize("scale", SCALES)
def test_scales_are_inverted_and_rise(scale: str) -> None:
    values = np.r_[0, np.geomspace(1e-3, 1e6, 50)]
    places = to_scale(values, scale)
    assert (np.diff(places) > 0).all()
    np.testing.assert_allclose(from_scale(places, scale), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", ["asinh", "log"])
@pytest.mark.parametrize("high", [0.3, 2.0, 40.0, 1e5])
def test_ticks_are_on_the_axis(scale: str, high: float) -> None:
    ticks = scale_ticks(high, scale)
    assert ticks[0] == 0
    assert len(ticks) >= 2
    assert max(ticks) <= high
