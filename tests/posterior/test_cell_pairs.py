"""Effects by pairs of cells against NumPy."""

import numpy as np
import pytest
import torch

from counts import N_GENES, N_PROTEINS, SMALL, described, question
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.differential.effects import draw_pairs, pair_effects
from totalvi.posterior.differential.moments import ScaleQuery, batch_weights, sampled_scales
from totalvi.posterior.draws import ProteinScale


def test_pairs_are_of_the_same_batch_in_their_shares() -> None:
    first = [np.arange(0, 30), np.arange(30, 40), np.arange(40, 45)]
    second = [np.arange(100, 130), np.arange(130, 160), np.arange(0)]
    a, b = draw_pairs(first, second, 20_000, np.random.default_rng(0))
    in_first = a < 30
    assert ((b < 130) == in_first).all()
    assert (a < 40).all()
    assert in_first.mean() == pytest.approx(15 / (15 + 7.5), abs=0.02)
    assert len(np.unique(a)) == 40
    assert len(np.unique(b)) == 60


def test_without_a_common_batch_any_cells_are_paired() -> None:
    a, b = draw_pairs(
        [np.arange(5), np.arange(0)], [np.arange(0), np.arange(7, 9)], 50, np.random.default_rng(0)
    )
    assert set(a) == set(range(5))
    assert set(b) == {7, 8}


def test_summaries() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 1, (4, 30)).astype(np.float32)
    values[2, :10] = np.nan
    values[3] = np.nan
    first, second = rng.integers(0, 15, 401), rng.integers(15, 30, 401)
    c = np.array([0.1, 1.0, 0.5, 0.5])
    found = pair_effects(values, first, second, c, 0.7)
    for f in range(3):
        a, b = values[f, first].astype(float), values[f, second].astype(float)
        kept = ~np.isnan(a) & ~np.isnan(b)
        r = (np.log2(a + c[f]) - np.log2(b + c[f]))[kept]
        got = [part[f] for part in found.effects]
        low, median, high = np.quantile(r, [0.025, 0.5, 0.975])
        expected = [r.mean(), r.std(), median, low, high, (np.abs(r) >= 0.7).mean(), (r > 0).mean()]
        np.testing.assert_allclose(got[:3], expected[:3], rtol=1e-5)
        np.testing.assert_allclose(got[3:5], expected[3:5], atol=0.25)
        np.testing.assert_allclose(got[5:], expected[5:])
        assert found.first_mean[f] == pytest.approx(a[kept].mean())
        assert found.second_mean[f] == pytest.approx(b[kept].mean())
    assert all(np.isnan(part[3]) for part in found.effects)


def test_sampled_scales_know_what_was_measured() -> None:
    data = described()
    mask = np.ones((2, N_PROTEINS), dtype=bool)
    mask[1, 2] = False
    generator = torch.Generator().manual_seed(0)
    network = TOTALVI(
        N_GENES, N_PROTEINS, 2, generator=generator, library="observed",
        protein_batch_mask=mask, **SMALL,
    ).eval()  # fmt: skip
    cells = np.arange(5, 60)

    def values(batch_size: int, codes: tuple[int, ...] = ()) -> np.ndarray:
        asked = question(
            data, network, cells, batch_size=batch_size, transform_batch=(None, *codes)
        )
        return sampled_scales(asked, ScaleQuery(ProteinScale(), batch_weights(mask, codes)))

    own = values(100)
    np.testing.assert_allclose(own, values(9), rtol=1e-4)
    np.testing.assert_allclose(own[:N_GENES].sum(axis=0), 1, rtol=1e-5)
    missing = np.zeros_like(own, dtype=bool)
    missing[N_GENES + 2] = data.batch[cells] == 1
    np.testing.assert_array_equal(np.isnan(own), missing)
    assert np.isfinite(values(100, (0,))).all()
