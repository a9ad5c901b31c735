"""The latent staining level: its divergence, what it multiplies, and whether it is found."""

from typing import Any

import numpy as np
import pytest
import torch
from mudata import MuData
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import totalvi
from totalvi.errors import FormatError
from totalvi.nn.coders import CellPosterior
from totalvi.nn.v06 import TOTALVI

SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(n_cells: int = 30) -> tuple[Tensor, Tensor]:
    x = torch.poisson(torch.full((n_cells, 20), 2.0), generator=generator(1))
    return x, torch.poisson(torch.full((n_cells, 6), 9.0), generator=generator(2))


def stained(seed: int, spread: float, n_cells: int = 800) -> tuple[MuData, np.ndarray]:
    """Return simulated cells whose protein counts are multiplied by exp(level), and the levels."""
    mdata = totalvi.simulate(n_cells, 60, 25, n_cell_types=4, seed=seed)
    rng = np.random.default_rng(seed)
    level = spread * rng.standard_normal(n_cells)
    protein = mdata["prot"]
    rate = np.where(
        protein.layers["foreground"] == 1,
        protein.layers["denoised"], protein.layers["background_mean"],
    )  # fmt: skip
    r = protein.var["inverse_dispersion"].to_numpy()
    rate = rate * np.exp(level)[:, None] * rng.standard_gamma(np.broadcast_to(r, rate.shape)) / r
    protein.X = rng.poisson(rate).astype(np.float32)
    return mdata, level


@pytest.fixture(scope="module")
def small() -> totalvi.Model:
    mdata = totalvi.simulate(60, 30, 5, n_batches=2, seed=1)
    model = totalvi.Model(mdata, batch_key="batch", staining_level=True, **SMALL)
    model.train(max_epochs=2, progress=False)
    return model


def test_divergence_is_that_of_two_normal_distributions() -> None:
    mean = torch.randn(7, 1, generator=generator())
    variance = torch.rand(7, 1, generator=generator(1)) + 0.1
    zeros = torch.zeros(7, 2)
    found = CellPosterior(zeros, zeros + 1, level_m=mean, level_v=variance).level_kl()
    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0))[:, 0]
    torch.testing.assert_close(found, expected)
    assert (CellPosterior(zeros, zeros + 1).level_kl() == 0).all()


def test_a_level_multiplies_both_means_of_counts_and_no_denoised_value() -> None:
    network = TOTALVI(20, 6, 2, staining_level=True, **SMALL, generator=generator()).eval()
    x, y = counts()
    context = network.context(x, y, torch.arange(30) % 2)
    level = torch.linspace(-2, 2, 30)[:, None]
    at_level = network.at_level(context, level)
    decoded = network.decode(torch.zeros(30, 4), context)
    b = decoded.background_mean
    for of_mean in ("background_mean", "foreground_mean"):
        plain, shifted, denoised = (
            getattr(network.proteins(decoded, b, where, efficiency=is_count), of_mean)()
            for where, is_count in ((context, True), (at_level, True), (at_level, False))
        )
        factor = (network.staining.log_scale.exp() * level).exp()
        torch.testing.assert_close(shifted, plain * factor)
        torch.testing.assert_close(denoised, plain)


def test_a_network_without_a_level_has_no_weight_more_and_the_same_numbers() -> None:
    x, y = counts()
    networks = [
        TOTALVI(20, 6, staining_level=has, **SMALL, generator=generator()).eval()
        for has in (False, True)
    ]
    states = [network.state_dict() for network in networks]
    further = set(states[1]) - set(states[0])
    assert further == {name for name in states[1] if name.startswith("staining.")} != set()
    prior = torch.full((30, 1), 3.0), torch.full((30, 1), 0.1)
    without, with_level = (
        network(x, y, *prior, generator=generator(3)).kl_div_z for network in networks
    )
    torch.testing.assert_close(without, with_level)


def test_cells_without_any_protein_have_the_prior() -> None:
    mask = [[True] * 6, [True] * 3 + [False] * 3]
    network = TOTALVI(
        20, 6, 2, protein_batch_mask=mask, staining_level=True, **SMALL, generator=generator()
    )
    assert network.staining is not None
    seen = torch.tensor([[True] * 6, [False] * 6, [True, False] * 3])
    y = torch.where(seen, torch.full((3, 6), 5.0), 0.0)
    mean, variance = network.staining(y, seen, torch.ones(3, 6))
    assert (mean[1], variance[1]) == (0, 1)
    assert (mean[[0, 2]] != 0).all()


def test_counts_of_unmeasured_proteins_do_not_matter() -> None:
    mask = [[True] * 6, [True] * 3 + [False] * 3]
    network = TOTALVI(
        20, 6, 2, protein_batch_mask=mask, staining_level=True, **SMALL, generator=generator()
    ).eval()
    x, y = counts()
    batch = torch.arange(30) % 2
    other = y.clone()
    other[1::2, 3:] = torch.nan
    y[1::2, 3:] = 0
    found = [network.encode(x, given, network.context(x, given, batch)) for given in (y, other)]
    torch.testing.assert_close(found[0].level_m, found[1].level_m)


def test_a_simulated_level_is_found() -> None:
    mdata, level = stained(0, spread=0.4)
    model = totalvi.Model(mdata, staining_level=True, n_hidden=64, n_latent=10)
    model.train(max_epochs=60, progress=False)
    found = model.get_staining_level(progress=False)
    assert np.corrcoef(found, level)[0, 1] >= 0.9
    slope = np.polyfit(level, found, 1)[0]
    assert 0.6 < slope < 1.1  # a posterior mean is nearer to 0 than the level
    assert 0.25 < model.module.staining.log_scale.exp().mean() < 0.6


def test_without_a_level_its_scale_is_near_zero() -> None:
    mdata, _ = stained(0, spread=0.0)
    model = totalvi.Model(mdata, staining_level=True, n_hidden=64, n_latent=10)
    model.train(max_epochs=60, progress=False)
    assert model.get_staining_level(progress=False).std() < 0.1


def test_estimates_of_the_evidence_bound_each_other(small: totalvi.Model) -> None:
    paper = small.get_elbo(integrate_background=False, progress=False)
    bound = small.get_elbo(progress=False)
    assert paper < bound < small.get_marginal_ll(n_mc_samples=50, progress=False)


def test_a_saved_model_answers_the_same(small: totalvi.Model, tmp_path: Any) -> None:
    mdata = totalvi.simulate(60, 30, 5, n_batches=2, seed=1)
    loaded = totalvi.Model.load(small.save(tmp_path / "model"), mdata)
    for query in ("get_staining_level", "get_normalized_expression"):
        of_both = [getattr(model, query)(progress=False) for model in (small, loaded)]
        np.testing.assert_array_equal(*(np.asarray(found[0] if isinstance(found, tuple) else found)
                                        for found in of_both))  # fmt: skip


def test_what_cannot_hold_a_level_says_so(small: totalvi.Model, tmp_path: Any) -> None:
    with pytest.raises(FormatError, match="staining_level"):
        small.save_scvi(tmp_path / "scvi")
    mdata = totalvi.simulate(60, 30, 5, seed=1)
    without = totalvi.Model(mdata, **SMALL)
    without.train(max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="staining_level=True"):
        without.get_staining_level()


def test_a_minified_reference_keeps_the_levels(small: totalvi.Model, tmp_path: Any) -> None:
    path = small.save(tmp_path / "reference.totalvi", minified=True)
    minified = totalvi.Model.load(path)
    found, expected = (
        model.get_staining_level(progress=False).to_numpy() for model in (minified, small)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)
    query = totalvi.simulate(40, 30, 5, seed=2)
    query.obs["batch"] = "new"
    of_both = [model.map_query(query).get_staining_level() for model in (minified, small)]
    np.testing.assert_allclose(*of_both, atol=1e-5)


def test_a_mapped_query_has_levels(small: totalvi.Model) -> None:
    query = totalvi.simulate(40, 30, 5, seed=2)
    query.obs["batch"] = "new"
    mapped = small.map_query(query)
    assert np.isfinite(mapped.get_staining_level(progress=False)).all()


def test_cells_of_a_mosaic_without_proteins_have_the_average_level() -> None:
    mdata = totalvi.simulate(60, 30, 5, seed=1)
    modalities = np.resize(["both", "both", "rna", "prot"], 60)
    mdata.obs["measured_modalities"] = modalities
    mdata["prot"].X[modalities == "rna"] = np.nan
    mdata["rna"].X = mdata["rna"].X.multiply((modalities != "prot")[:, None]).tocsr()
    model = totalvi.Model(mdata, staining_level=True, **SMALL)
    model.train(max_epochs=2, progress=False)
    level = model.get_staining_level(progress=False).to_numpy()
    np.testing.assert_array_equal(level == 0, modalities == "rna")


def test_counts_on_disk_tell_the_same(small: totalvi.Model, tmp_path: Any) -> None:
    totalvi.simulate(60, 30, 5, n_batches=2, seed=1).write(tmp_path / "cells.h5mu")
    from_disk = totalvi.Model.load(small.save(tmp_path / "model"), tmp_path / "cells.h5mu")
    found, expected = (
        model.get_staining_level(progress=False).to_numpy() for model in (from_disk, small)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
