"""Ratios of gamma functions against arbitrary precision."""

import mpmath
import numpy as np
import pytest

from totalvi.nn.cpu import math as rising

R = [1e-6, 1e-3, 0.1, 1.0, 7.99, 8.0, 30.0, 1e3, 1e6]
COUNTS = [0.0, 1.0, 2.0, 2.5, 16.0, 17.0, 300.0, 1e4, 1e6]


def expected(r: float, count: float) -> tuple[float, float]:
    with mpmath.workdps(50):
        ratio = mpmath.loggamma(count + r) - mpmath.loggamma(r) - count * mpmath.log(r)
        return float(ratio), float(mpmath.digamma(count + r) - mpmath.digamma(r))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-6)])
@pytest.mark.parametrize("r", R)
def test_rising(r: float, dtype: type, tolerance: float) -> None:
    r = float(dtype(r))
    for count in COUNTS:
        ours = rising.rising(dtype(r), dtype(count))
        # where r is large, the ratio is what little is left of terms as large as the count
        np.testing.assert_allclose(
            ours, expected(r, float(dtype(count))), rtol=tolerance, atol=5e-7 * max(count, 1)
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-6)])
def test_tables_and_counts_beyond_them(dtype: type, tolerance: float) -> None:
    r = np.array([R, R[::-1]], dtype=dtype)
    ratio, difference = rising.rising_tables(r, 16)
    assert ratio.shape == difference.shape == (2, 17, len(R))
    for k, g in np.ndindex(*r.shape):
        value = float(r[k, g])
        for count in (0, 1, 2, 7, 16):
            ours = ratio[k, count, g], difference[k, count, g]
            np.testing.assert_allclose(ours, expected(value, count), rtol=tolerance, atol=2e-6)
        for count in (17.0, 19.5, 1e3, 1e6):
            beyond = rising.rising_beyond(
                r[k, g], 16, ratio[k, 16, g], difference[k, 16, g], dtype(count)
            )
            np.testing.assert_allclose(
                beyond, expected(value, count), rtol=tolerance, atol=5e-7 * count
            )


@pytest.mark.parametrize("count", [0.0, 1.0, 5.0, 1023.0, 1024.0, 3.5, 1e6])
def test_log_factorial(count: float) -> None:
    exact = float(mpmath.loggamma(count + 1))
    assert float(rising.log_factorial(np.float64(count))) == pytest.approx(exact, rel=1e-8)
    assert float(rising.log_factorial(np.float32(count))) == pytest.approx(exact, rel=1e-5)
