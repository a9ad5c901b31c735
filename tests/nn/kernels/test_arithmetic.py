"""Elementary functions of compiled loops against those of NumPy in twice the digits."""

from collections.abc import Callable

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
