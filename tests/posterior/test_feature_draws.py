"""Draws of rates and foreground: against posterior means, and ranks of what is true."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import totalvi
from counts import SMALL, annotated
from totalvi.posterior.gates import feature_draws
from totalvi.posterior.gates.feature_draws import FeatureDraws, draw_features

N_CELLS, N_SAMPLES = 60, 100
LACKING = 4  # position of a protein that the first lane did not measure


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "efficiency"])
def model(request: pytest.FixtureRequest) -> totalvi.Model:
    mdata = annotated(N_CELLS)
    mdata["prot"].X[(mdata.obs["lane"] == "1").to_numpy(), LACKING] = np.nan
    model = totalvi.Model(
        mdata, batch_key="batch", panel_key="lane", protein_efficiency=request.param, **SMALL
    )
    model.train(max_epochs=5, accelerator="cpu", progress=False)
    if request.param:
        torch.nn.init.normal_(model.module.log_efficiency.data)
    return model


@pytest.fixture(scope="module")
def drawn(model: totalvi.Model) -> FeatureDraws:
    return draw_features(
        model, None, list(model.schema.gene_names[:2]), list(model.schema.protein_names), N_SAMPLES
    )


def test_their_means_are_the_denoised_values(model: totalvi.Model, drawn: FeatureDraws) -> None:
    asked: dict[str, Any] = {"n_samples": N_SAMPLES, "progress": False, "return_numpy": True}
    rna, protein = model.get_normalized_expression(
        gene_list=list(model.schema.gene_names[:2]), **asked
    )
    foreground = np.asarray(model.get_protein_foreground_probability(**asked))
    np.testing.assert_allclose(drawn.share.mean(axis=0), rna, rtol=1e-4)
    n = len(drawn.rate)
    for values, expected in ((drawn.rate, protein), (drawn.foreground, foreground)):
        np.testing.assert_array_equal(np.isnan(values.mean(axis=0)), np.isnan(expected))
        error = values.std(axis=0) / np.sqrt(n)
        away = (values.mean(axis=0) - expected) / (error + 0.002 * np.abs(expected) + 1e-4)
        assert np.nanmax(np.abs(away)) < 6
        assert abs(np.nanmean(away)) < 0.1  # no bias, over cells and proteins


def test_a_rate_is_above_zero_where_the_protein_is_foreground(drawn: FeatureDraws) -> None:
    measured = np.isfinite(drawn.foreground)
    assert set(np.unique(drawn.foreground[measured])) == {0.0, 1.0}
    np.testing.assert_array_equal(drawn.rate[measured] > 0, drawn.foreground[measured] == 1)
    assert measured.mean(axis=(0, 1))[LACKING] < 1


def test_draws_of_a_feature_do_not_depend_on_the_others(
    model: totalvi.Model, drawn: FeatureDraws
) -> None:
    names = list(model.schema.protein_names)
    alone = draw_features(model, None, [], [names[3], names[1]], N_SAMPLES)
    assert alone.share.shape == (len(drawn.share), N_CELLS, 0)
    np.testing.assert_array_equal(alone.rate, drawn.rate[:, :, [3, 1]])
    np.testing.assert_array_equal(alone.foreground, drawn.foreground[:, :, [3, 1]])
    genes = draw_features(model, None, list(model.schema.gene_names[1:2]), [], N_SAMPLES)
    assert genes.rate.shape == (N_SAMPLES, N_CELLS, 0)
    every = len(drawn.share) // N_SAMPLES
    np.testing.assert_allclose(genes.share, drawn.share[::every, :, 1:], rtol=1e-5)


@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize("r", [0.8, 12.0])
@pytest.mark.parametrize("mean", [-2.0, 2.0, 6.0])
def test_the_true_log_mean_has_a_uniform_rank(mean: float, r: float, scale: float) -> None:
    """Of parameters drawn from their prior and counts given them, the posterior gives uniform ranks."""
    rng = np.random.default_rng(0)
    x = rng.normal(mean, scale, 4000)
    counts = rng.poisson(rng.gamma(r, np.exp(x) / r))[:, None]
    given = (torch.full((4000, 1), value, dtype=torch.float64) for value in (mean, scale))
    log_r = torch.full((1, 1), np.log(r), dtype=torch.float64)
    nodes, cumulative = feature_draws._cumulative(torch.as_tensor(counts).double(), *given, log_r)
    rank = [
        np.interp(v, *np.asarray(pair))
        for v, pair in zip(x, _pairs(nodes, cumulative), strict=True)
    ]
    assert stats.kstest(rank, "uniform").pvalue > 1e-3
    share = torch.as_tensor(rng.random((4000, 1)))
    again = feature_draws._at_share(nodes, cumulative, share).numpy()[:, 0]
    assert stats.ks_2samp(again, x).pvalue > 1e-3  # the mean posterior is the prior


def _pairs(nodes: torch.Tensor, cumulative: torch.Tensor) -> np.ndarray:
    return torch.stack([nodes[:, 0], cumulative[:, 0]], dim=1).numpy()
