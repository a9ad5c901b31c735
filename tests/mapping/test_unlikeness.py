"""Unlikeness is calibrated within depth; a shift that all cells share is told from unlike states."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import totalvi
from counts import SMALL, annotated
from totalvi.mapping.reference_neighbours import Reference, tail_within_depth, thinned
from totalvi.posterior.latent import LatentDistribution
from totalvi.run.map_cells import _unlike_words

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
CENTRES = np.random.default_rng(5).normal(0, 4, (6, 10))


def cells(rng: np.random.Generator, n_cells: int, kinds: int = 5) -> np.ndarray:
    """Draw latent means around the centres of some kinds."""
    return CENTRES[rng.integers(kinds, size=n_cells)] + rng.normal(0, 0.7, (n_cells, 10))


def reference(rng: np.random.Generator) -> Reference:
    mean = cells(rng, 3000)
    return Reference(LatentDistribution(mean, np.ones_like(mean)), 15)


@pytest.mark.parametrize("seed", range(3))
def test_p_values_are_uniform_at_any_depth(seed: int) -> None:
    """Distances rise with depth, and the query has other depths than the held-out cells."""
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.normal(7, 0.5, 3000))
    own = np.exp(rng.normal(7.2, 0.3, 6000))
    distance, asked = (
        d ** 0.3 * rng.gamma(20, 1 / 20, len(d)) for d in (depth, own)
    )  # fmt: skip
    p = tail_within_depth(asked, own, distance, depth)
    low, middle, high = np.array_split(np.argsort(own), 3)
    for some in (low, middle, high):
        assert np.mean(p[some] < 0.05) == pytest.approx(0.05, abs=0.025)
        assert np.median(p[some]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("n_held_out", [1, 50, 700])
def test_p_values_against_a_loop(n_held_out: int) -> None:
    rng = np.random.default_rng(0)
    held_out, depth = rng.random(n_held_out), rng.integers(1, 9, n_held_out)
    asked, own = rng.random(40), rng.integers(0, 12, 40)
    p = tail_within_depth(asked, own, held_out, depth)
    assert ((p > 0) & (p <= 1)).all()
    if n_held_out <= 200:  # all of them are compared with
        expected = [(1 + (held_out >= value).sum()) / (1 + n_held_out) for value in asked]
        np.testing.assert_allclose(p, expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_common_shift_is_found_beside_an_unlike_state(seed: int) -> None:
    rng = np.random.default_rng(seed)
    search, held_out = reference(rng), cells(rng, 600)
    known, strange = cells(rng, 800), CENTRES[5] + rng.normal(0, 0.7, (200, 10))
    shift = rng.normal(0, 0.6, 10)
    query = np.concatenate([known, strange]) + shift
    found = search.common_shift(query, held_out)
    assert np.linalg.norm(found - shift) < 0.3 * np.linalg.norm(shift)
    depth, usual = np.ones(len(query)), search.distance(held_out)
    before, after = (
        tail_within_depth(search.distance(mean), depth, usual, np.ones(600))
        for mean in (query, query - found)
    )
    assert np.mean(before[:800] < 0.05) > 0.2
    assert np.mean(after[:800] < 0.05) < 0.1
    assert np.mean(after[800:] < 0.05) > 0.95


def test_without_a_shift_none_is_found() -> None:
    rng = np.random.default_rng(0)
    search, held_out, query = reference(rng), cells(rng, 600), cells(rng, 600)
    assert np.linalg.norm(search.common_shift(query, held_out)) < 0.5
    p = tail_within_depth(
        search.distance(query), np.ones(600), search.distance(held_out), np.ones(600)
    )
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_thinned_counts_are_binomial() -> None:
    counts = sparse.csr_matrix(np.tile([0.0, 4.0, 100.0], (2000, 1)))
    kept = thinned(counts, 0.3, np.random.default_rng(0)).toarray()
    np.testing.assert_allclose(kept.mean(axis=0), [0, 1.2, 30], rtol=0.05)
    np.testing.assert_allclose(kept[:, 1:].var(axis=0), [4 * 0.21, 21], rtol=0.1)
    assert counts.sum() == 208_000
    assert thinned(counts, 1.7, np.random.default_rng(0)) is counts


def test_both_p_values_are_in_the_table() -> None:
    mdata = annotated()
    model = totalvi.Model(mdata[:80].copy(), **SMALL)
    model.train(max_epochs=2, accelerator="cpu")
    query = model.map_query(mdata[80:].copy())
    found = model.get_unlikeness(query)
    assert found[["p_value", "p_value_after_shift"]].min(axis=None) > 0
    assert found[["p_value", "p_value_after_shift"]].max(axis=None) <= 1
    np.testing.assert_allclose(found["unlikeness"], 1 - found["p_value_after_shift"])
    pd.testing.assert_frame_equal(found, model.get_unlikeness(query))


@pytest.mark.parametrize(
    ("before", "after", "noted"),
    [(0.35, 0.11, "shift that they all share"), (0.35, 0.3, "beyond a shift"), (0.05, 0.05, "")],
)
def test_one_sentence_tells_the_two_apart(before: float, after: float, noted: str) -> None:
    p = [pd.Series(np.where(np.arange(100) < 100 * share, 0.01, 0.5)) for share in (before, after)]
    said, notes = _unlike_words(*p)
    assert f"{100 * before:.1f} % of the cells unlike" in said
    assert f"{100 * after:.1f} % after the shift that all cells share" in said
    assert noted in "".join(notes)
    assert len(notes) == bool(noted)
