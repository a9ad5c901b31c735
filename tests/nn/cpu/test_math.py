"""Functions of compiled loops against NumPy in twice the digits, and against arbitrary precision."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from numba import njit

from totalvi.nn.cpu import math as arithmetic


def applied(function: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    @njit
    def loop(x: np.ndarray) -> np.ndarray:
        result = np.empty_like(x)
        for i in range(len(x)):
            result[i] = function(x[i])
        return result

    return loop  # type: ignore[no-any-return]


CASES = [
    (arithmetic.exp, np.exp, np.linspace(-86.9, 87.9, 100_001)),
    (arithmetic.log, np.log, np.exp(np.linspace(-80, 80, 100_001))),
    (arithmetic.log1p, np.log1p, np.exp(np.linspace(-80, 80, 100_001))),
]


@pytest.mark.parametrize(("ours", "reference", "x"), CASES, ids=["exp", "log", "log1p"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-14)])
def test_relative_error(
    ours: Callable[[float], float],
    reference: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    dtype: type,
    tolerance: float,
) -> None:
    x = x.astype(dtype)
    values = applied(ours)(x)
    assert values.dtype == dtype
    expected = reference(x.astype(np.float64))
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance / 10)
    # outside compiled loops they are the C library's
    assert ours(1.5) == pytest.approx(float(reference(np.array(1.5))))


def test_exp_is_bounded_where_float32_ends() -> None:
    values = applied(arithmetic.exp)(np.array([-1e30, -200, 200, 1e30], dtype=np.float32))
    assert np.isfinite(values).all()
    assert (values[:2] < 1e-37).all()
    assert (values[2:] > 1e38).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_bfloat16_is_that_of_torch(compiled: bool) -> None:
    x = torch.randn(7, 300, generator=torch.Generator().manual_seed(0)) * 100
    expected = x.to(torch.bfloat16)

    def copy(source: np.ndarray, target: np.ndarray) -> None:
        for i in range(source.shape[0]):
            for j in range(source.shape[1]):
                arithmetic.store(target, i, j, arithmetic.load(source, i, j))

    if compiled:
        copy = njit(copy)
    stored = torch.empty(x.shape, dtype=torch.bfloat16)
    copy(x.numpy(), stored.view(torch.uint16).numpy())
    assert torch.equal(stored, expected)
    loaded = torch.empty(x.shape)
    copy(stored.view(torch.uint16).numpy(), loaded.numpy())
    assert torch.equal(loaded, expected.float())


# ------------------------------------------------------------------- ratios of gamma functions

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
        ours = arithmetic.rising(dtype(r), dtype(count))
        # where r is large, the ratio is what little is left of terms as large as the count
        np.testing.assert_allclose(
            ours, expected(r, float(dtype(count))), rtol=tolerance, atol=5e-7 * max(count, 1)
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-6)])
def test_tables_and_counts_beyond_them(dtype: type, tolerance: float) -> None:
    r = np.array([R, R[::-1]], dtype=dtype)
    ratio, difference = arithmetic.rising_tables(r, 16)
    assert ratio.shape == difference.shape == (2, 17, len(R))
    for k, g in np.ndindex(*r.shape):
        value = float(r[k, g])
        for count in (0, 1, 2, 7, 16):
            ours = ratio[k, count, g], difference[k, count, g]
            np.testing.assert_allclose(ours, expected(value, count), rtol=tolerance, atol=2e-6)
        for count in (17.0, 19.5, 1e3, 1e6):
            beyond = arithmetic.rising_beyond(
                r[k, g], 16, ratio[k, 16, g], difference[k, 16, g], dtype(count)
            )
            np.testing.assert_allclose(
                beyond, expected(value, count), rtol=tolerance, atol=5e-7 * count
            )


@pytest.mark.parametrize("count", [0.0, 1.0, 5.0, 1023.0, 1024.0, 3.5, 1e6])
def test_log_factorial(count: float) -> None:
    exact = float(mpmath.loggamma(count + 1))
    assert float(arithmetic.log_factorial(np.float64(count))) == pytest.approx(exact, rel=1e-8)
    assert float(arithmetic.log_factorial(np.float32(count))) == pytest.approx(exact, rel=1e-5)
