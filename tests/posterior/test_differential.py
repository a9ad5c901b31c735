"""Comparisons of groups and of cells from made-up sums and scales with a known answer."""

import numpy as np
import pytest

from totalvi.posterior.differential.comparison import (
    Comparison,
    Differences,
    Pseudocounts,
    compare_cells,
    compare_groups,
)
from totalvi.posterior.differential.moments import Moments, StratumMoments

N_GENES, N_PROTEINS, N_PARTS, N_BATCHES = 300, 4, 3, 2
LIBRARY = 1e4
ONE, REST = Comparison((0,), (1, 2)), Comparison((1,), (0, 2))


def made_up(mean: np.ndarray, n: np.ndarray, rng: np.random.Generator, scale: float) -> Moments:
    """Sums of Poisson counts of cells that all have the mean, (strata, features)."""
    n = np.broadcast_to(n[:, None], mean.shape).astype(float)
    expected = n * mean * scale
    counted = rng.poisson(expected).astype(float)
    nothing = np.zeros_like(n)
    return Moments(
        n, n * mean, n * mean**2, counted, expected, nothing, n, n, nothing, nothing, nothing
    )


def sums(effects: np.ndarray, batch_effect: float = 0.0, seed: int = 0) -> StratumMoments:
    """Part 0 differs from the others by ``effects`` in log2, (features,)."""
    rng = np.random.default_rng(seed)
    level = rng.dirichlet(np.full(N_GENES, 3.0))
    protein = rng.uniform(5, 50, N_PROTEINS)
    n = np.array([100, 300, 200, 200, 150, 250])  # parts times batches
    part, batch = np.arange(6) // N_BATCHES, np.arange(6) % N_BATCHES
    factor = np.where((part == 0)[:, None], 2.0 ** effects[None], 1.0)
    factor = factor * (1 + batch_effect * batch[:, None])
    rna = made_up(level * factor[:, :N_GENES], n, rng, LIBRARY)
    foreground = made_up(protein * factor[:, N_GENES:], n, rng, 1.0)
    nothing = Moments.zeros(6, N_PROTEINS)._replace(n_cells=foreground.n_cells)
    return StratumMoments(rna, foreground, nothing, n * LIBRARY)


def compare(total: StratumMoments, delta: float | None = 0.25, **options: bool) -> Differences:
    arguments = {"within_batches": True, "scale_protein": False} | options
    return compare_groups(
        total, [ONE, REST], N_BATCHES, Pseudocounts(None, 0.1), delta, **arguments
    )


@pytest.fixture(scope="module")
def effects() -> np.ndarray:
    rng = np.random.default_rng(5)
    changed = rng.random(N_GENES + N_PROTEINS) < 0.2
    return np.where(changed, rng.choice([-2.0, 1.5], changed.shape), 0.0)


def test_known_effects_come_out(effects: np.ndarray) -> None:
    found = compare(sums(effects))
    np.testing.assert_allclose(found.effects.mean[0], effects, atol=0.4)
    assert np.polyfit(effects, found.effects.mean[0], 1)[0] == pytest.approx(1, abs=0.05)
    changed = effects != 0
    assert (found.effects.beyond[0, changed] > 0.95).all()
    assert (found.effects.beyond[0, ~changed] < 0.5).all()
    np.testing.assert_allclose(
        np.log2(found.first_scale[0] / found.second_scale[0]), effects, atol=0.4
    )
    inside = (found.effects.low[0] <= effects) & (effects <= found.effects.high[0])
    assert inside.mean() > 0.9


def test_estimates_are_given_as_they_were_before_they_were_shrunk(effects: np.ndarray) -> None:
    found = compare(sums(effects))
    assert found.estimate is not None
    assert found.error is not None
    ratio = (found.first_scale + found.pseudocount) / (found.second_scale + found.pseudocount)
    np.testing.assert_allclose(found.estimate, np.log2(ratio))
    z = (found.estimate[0] - effects)[:N_GENES] / found.error[0, :N_GENES]
    assert z.std() == pytest.approx(1, abs=0.2)
    distance = np.abs(found.estimate), np.abs(found.effects.mean)
    assert distance[1][0, N_GENES:].sum() < distance[0][0, N_GENES:].sum()


def test_batches_do_not_pass_for_groups(effects: np.ndarray) -> None:
    total = sums(np.zeros(N_GENES + N_PROTEINS), batch_effect=8.0)
    within, across = compare(total), compare(total, within_batches=False)
    proteins = slice(N_GENES, None)  # parts have other shares of the batches
    assert np.abs(within.effects.mean[0, proteins]).max() < 0.1
    assert np.abs(across.effects.mean[0, proteins]).min() > 0.1


def test_the_pseudocount_is_ten_counts_of_the_smaller_group(effects: np.ndarray) -> None:
    found = compare(sums(effects))
    np.testing.assert_allclose(found.pseudocount[0, :N_GENES], 10 / (400 * LIBRARY))
    assert (found.pseudocount[:, N_GENES:] == 0.1).all()
    fixed = compare_groups(
        sums(effects), [ONE], N_BATCHES, Pseudocounts(1e-3, 2.0), 0.25,
        within_batches=True, scale_protein=False,
    )  # fmt: skip
    assert set(fixed.pseudocount.ravel()) == {1e-3, 2.0}


def test_the_pseudocount_of_a_protein_is_the_foreground_that_a_comparison_detects(
    effects: np.ndarray,
) -> None:
    total = sums(effects)
    n, variance = total.rna.n_cells[:, :1], np.array([0.0, 4.0, 900.0, 2500.0])
    silent = total._replace(background=total.background._replace(noise=n * variance))

    def pseudocounts(protein: float | None, *, scale_protein: bool = False) -> np.ndarray:
        found = compare_groups(
            silent, [ONE], N_BATCHES, Pseudocounts(None, protein), 0.25,
            within_batches=True, scale_protein=scale_protein,
        )  # fmt: skip
        return found.pseudocount[0, N_GENES:]

    smaller = 400  # cells, of 1200
    expected = np.maximum(0.1, 3 * np.sqrt(variance / smaller))
    np.testing.assert_allclose(pseudocounts(None), expected)
    assert (pseudocounts(0.3) == 0.3).all()
    assert (pseudocounts(None, scale_protein=True) == 0.1).all()


def test_delta_is_estimated_from_the_bulk(effects: np.ndarray) -> None:
    assert compare(sums(effects), None).delta[0] < 0.5
    wide = np.random.default_rng(0).normal(0, 1, N_GENES + N_PROTEINS)
    assert compare(sums(wide), None).delta[0] == pytest.approx(3, rel=0.4)


def test_pairs_of_cells() -> None:
    rng = np.random.default_rng(1)
    part, batch = np.arange(300) % 3, np.arange(300) % 2
    values = np.exp(rng.normal(0, 0.1, (N_GENES + N_PROTEINS, 300))).astype(np.float32) * 1e-3
    values[5, part == 0] *= 4
    arguments = (part, batch, [ONE, REST], np.full(300, LIBRARY), Pseudocounts(None, 0.0))
    found = compare_cells(values, *arguments, 0.25, 500, N_GENES, 0)
    assert found.effects.mean[0, 5] == pytest.approx(2, abs=0.1)
    assert found.effects.beyond[0, 5] == 1
    assert found.first_scale[0, 5] == pytest.approx(4 * found.second_scale[0, 5], rel=0.1)
    again = compare_cells(values, *arguments, 0.25, 500, N_GENES, 0)
    np.testing.assert_array_equal(again.effects.mean, found.effects.mean)
    estimated = compare_cells(values, *arguments, None, 500, N_GENES, 0)
    assert (estimated.delta == 0.1).all()
