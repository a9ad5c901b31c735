"""The empirical prior of the background finds the lower mode."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.data.background.prior import empirical_background_prior
from totalvi.data.counts import CountsInMemory


def counts(n_cells: int, share: float, log_background: float, seed: int = 0) -> np.ndarray:
    """One protein: background around exp(log_background), foreground 30 times as high."""
    rng = np.random.default_rng(seed)
    log_mean = rng.normal(log_background, 0.3, n_cells)
    log_mean[rng.random(n_cells) < share] += np.log(30)
    return rng.poisson(np.exp(log_mean)).astype(np.float32)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("log_background", [1.5, 3.0, 5.0])
def test_lower_mode(share: float, log_background: float) -> None:
    protein = counts(2000, share, log_background)[:, None]
    mean, scale, _ = empirical_background_prior(
        CountsInMemory(protein), np.zeros(2000, dtype=int), np.array([[True]])
    )
    assert mean[0, 0] == pytest.approx(log_background, abs=0.25)
    assert 0.2 <= scale[0, 0] <= 0.8


def test_panels_apart_and_unmeasured_proteins() -> None:
    protein = np.stack(
        [counts(900, 0.3, m, seed) for seed, m in enumerate((2.0, 3.0, 4.0))], axis=1
    )
    panel = np.arange(900) % 3
    protein[panel == 1] *= 8
    measured = np.array([[True, True, True], [True, False, True], [True, True, True]])
    protein[panel == 1, 1] = 0
    mean, scale, _ = empirical_background_prior(CountsInMemory(protein), panel, measured)
    np.testing.assert_allclose(mean[[0, 2]], [[2, 3, 4]] * 2, atol=0.35)
    np.testing.assert_allclose(mean[1, [0, 2]], np.array([2, 4]) + np.log(8), atol=0.35)
    assert mean[1, 1] == pytest.approx((mean[0, 1] + mean[2, 1]) / 2)
    assert scale[1, 1] == pytest.approx((scale[0, 1] + scale[2, 1]) / 2)


@pytest.mark.parametrize(
    "protein",
    [
        np.zeros((300, 2)),
        np.full((300, 2), 17.0),
        np.eye(300, 2) * 1e5,
        np.zeros((5, 2)),
        np.full((1, 2), 3.0),
        np.random.default_rng(0).poisson(2e4, (300, 2)),
    ],
    ids=["zero", "constant", "one cell", "few cells", "single cell", "high"],
)
def test_always_finite_with_a_sane_scale(protein: np.ndarray) -> None:
    mean, scale, _ = empirical_background_prior(
        CountsInMemory(protein.astype(np.float32)),
        np.zeros(len(protein), dtype=int),
        np.ones((1, 2), dtype=bool),
    )
    assert mean.shape == scale.shape == (1, 2)
    assert np.isfinite(mean).all()
    assert (mean >= np.log(0.05) - 1e-9).all()
    assert (mean <= np.log1p(protein.max()) + 1).all()
    assert ((scale >= 0.2) & (scale <= 1.5)).all()


def test_input_is_left_alone() -> None:
    protein = counts(100, 0.3, 2.0)[:, None]
    before = protein.copy()
    empirical_background_prior(
        CountsInMemory(protein), np.zeros(100, dtype=int), np.array([[True]])
    )
    assert np.array_equal(protein, before)


@st.composite
def panels_of_counts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few or many cells and proteins, many or only zeros, constant proteins, unmeasured ones."""
    n_cells = draw(st.sampled_from([1, 2, 5, 19, 20, 60]))
    n_proteins = draw(st.sampled_from([1, 3, 8]))
    n_panels = draw(st.integers(1, min(3, n_cells)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mean = rng.choice([0.0, 0.001, 0.3, 5.0, 2e4], n_proteins)
    protein = rng.negative_binomial(2, 2 / (2 + mean), (n_cells, n_proteins)).astype(np.float32)
    protein[:, rng.random(n_proteins) < 0.2] = rng.integers(1000)
    panel = np.arange(n_cells) % n_panels
    measured = rng.random((n_panels, n_proteins)) < 0.8
    measured[rng.integers(n_panels, size=n_proteins), np.arange(n_proteins)] = True
    return protein * measured[panel], panel, measured


@settings(max_examples=60, deadline=None)
@given(panels_of_counts())
def test_whatever_the_counts_the_prior_is_finite_and_within_them(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    protein, panel, measured = case
    mean, scale, _ = empirical_background_prior(CountsInMemory(protein), panel, measured)
    assert mean.shape == scale.shape == measured.shape
    assert np.isfinite(mean).all()
    assert np.isfinite(scale).all()
    assert ((scale >= 0.2) & (scale <= 1.5)).all()
    highest = np.log(np.maximum(protein.max(axis=0), 0.05))
    assert (mean >= np.log(0.05) - 1e-9).all()
    assert (mean <= highest + 1e-6).all()


def test_many_cells_are_thinned() -> None:
    few, many = counts(9000, 0.3, 3.0)[:, None], counts(45_000, 0.3, 3.0)[:, None]
    (a, _, _), (b, _, _) = (
        empirical_background_prior(
            CountsInMemory(c), np.zeros(len(c), dtype=int), np.array([[True]])
        )
        for c in (few, many)
    )
    assert a[0, 0] == pytest.approx(b[0, 0], abs=0.05)
