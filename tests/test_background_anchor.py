"""The background of a model follows the profile of empty droplets; without them nothing changes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import totalvi
from totalvi.data.background.ambient import AmbientProfile
from totalvi.data.background.prior import PanelBatches, anchored_background_prior
from totalvi.errors import CheckpointError
from totalvi.nn.likelihoods import profile_penalty

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

SMALL = {"n_hidden": 16, "n_latent": 4}


@pytest.fixture(scope="module")
def cells():
    return totalvi.simulate(
        n_cells=300, n_genes=60, n_proteins=9, n_ubiquitous=3, median_foreground_factor=10, seed=1
    )


@pytest.fixture(scope="module")
def raw(cells):
    return totalvi.simulate_raw(cells, n_empty=500, seed=1)


def background_error(model: totalvi.Model, cells) -> float:
    estimate = model.get_protein_background_mean(n_samples=5, return_numpy=True).mean(axis=0)
    truth = cells["prot"][:, list(model.schema.protein_names)].layers["background_mean"]
    return float(np.abs(np.log(estimate / truth.mean(axis=0))).mean())


@pytest.mark.slow
def test_droplets_at_least_halve_the_error_of_the_background() -> None:
    errors = np.empty((3, 2))
    for seed in range(3):
        cells = totalvi.simulate(
            n_cells=800,
            n_genes=150,
            n_proteins=20,
            n_ubiquitous=8,
            median_foreground_factor=10,
            seed=seed,
        )
        raw = totalvi.simulate_raw(cells, n_empty=1500, seed=seed)
        for i, empty_droplets in enumerate((False, raw)):
            model = totalvi.Model(cells, n_hidden=64, seed=seed, empty_droplets=empty_droplets)
            model.train(max_epochs=60)
            errors[seed, i] = background_error(model, cells)
    without, with_droplets = errors.mean(axis=0)
    assert with_droplets < 0.5 * without, errors
    assert (errors[:, 1] < errors[:, 0]).all()


def test_droplets_lower_the_error_of_a_short_fit(cells, raw) -> None:
    errors = []
    for empty_droplets in (False, raw):
        model = totalvi.Model(cells, **SMALL, empty_droplets=empty_droplets)
        model.train(max_epochs=60)
        errors.append(background_error(model, cells))
    assert errors[1] < 0.9 * errors[0], errors


def test_penalty_is_a_normal_prior_with_the_best_shift() -> None:
    rng = np.random.default_rng(0)
    values, profile = rng.normal(size=(2, 3, 6))
    precision = rng.uniform(0, 4, (3, 6))
    precision[1, 2:] = 0
    shifts = np.linspace(-6, 6, 4001)
    cost = [0.5 * (precision * (values - profile - s) ** 2).sum(axis=1) for s in shifts]
    expected = np.min(cost, axis=0).sum()
    found = profile_penalty(*map(torch.from_numpy, (values, profile, precision)))
    assert found.item() == pytest.approx(expected, abs=1e-4)
    nothing = profile_penalty(*map(torch.from_numpy, (values, profile, 0 * precision)))
    assert nothing.item() == 0


def test_the_level_is_that_of_most_proteins() -> None:
    profile = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    ambient = pd.DataFrame(
        {
            "batch": "",
            "protein": list("abcde"),
            "log_mean": profile,
            "log_sd": 0.4,
            "standard_error": 0.0,
            "n_droplets": 100,
        }
    )
    mean = (profile + 2)[None].copy()
    mean[0, [1, 3]] += 3  # every cell carries them: no lower mode
    profile = AmbientProfile.from_table(ambient, "droplets")
    panels = PanelBatches(list("abcdef"), ["one"], [np.array([0])])
    start = np.append(mean, [[7.0]], axis=1)
    found, scale, anchor = anchored_background_prior(start, np.ones((1, 6)), profile, panels)
    np.testing.assert_allclose(found[0], [2, 3, 4, 5, 6, 7])
    np.testing.assert_allclose(scale[0], [0.4] * 5 + [1])
    np.testing.assert_allclose(anchor.mean_precision[0], [100] * 5 + [0])


def test_droplets_of_one_batch_leave_the_others_alone(cells, raw) -> None:
    cells = cells.copy()
    cells.obs["donor"] = np.arange(cells.n_obs) % 2
    free = totalvi.Model(cells, batch_key="donor", **SMALL)
    assert free.module.background_anchor is None
    assert free.module.anchor_penalty() == 0
    model = totalvi.Model(cells, batch_key="donor", **SMALL, empty_droplets={"1": raw})
    precision = model.module.background_anchor[2]
    assert (precision[0] == 0).all()
    assert (precision[1] > 0).all()
    prior = model.module.background_prior_mean
    assert torch.equal(prior[0], free.module.background_prior_mean[0])
    assert not torch.equal(prior[1], free.module.background_prior_mean[1])


def test_a_saved_model_keeps_its_anchor(cells, raw, tmp_path: Path) -> None:
    model = totalvi.Model(cells, **SMALL, empty_droplets=raw)
    model.train(max_epochs=1)
    model.save(tmp_path / "model")
    again = totalvi.Model.load(tmp_path / "model", cells)
    assert torch.equal(again.module.background_anchor, model.module.background_anchor)
    assert "background_anchor" not in model.module.state_dict()
    for fitted in (model, again):
        fitted.train(max_epochs=2)
    np.testing.assert_array_equal(
        model.get_latent_representation(), again.get_latent_representation()
    )


@pytest.mark.parametrize("wrong", [3, pd.DataFrame({"batch": ["a"]})])
def test_what_are_no_droplets_is_refused(cells, wrong: object) -> None:
    with pytest.raises(ValueError, match=r"empty_droplets is (a|not a)"):
        totalvi.Model(cells, **SMALL, empty_droplets=wrong)


def test_a_fit_does_not_go_on_with_other_droplets(cells, raw, tmp_path: Path) -> None:
    fit = {"max_epochs": 3, "checkpoint": tmp_path / "fit", "checkpoint_every": 1}
    without = totalvi.Model(cells, **SMALL)
    without.train(**fit)
    assert without._anchor_digest() is None
    with_droplets = totalvi.Model(cells, **SMALL, empty_droplets=raw)
    with pytest.raises(CheckpointError, match="background_anchor"):
        with_droplets.train(max_epochs=3, resume=tmp_path / "fit")
