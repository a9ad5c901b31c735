"""The background of a model follows the profile of empty droplets; without them nothing changes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import totalvi
from totalvi.data.background.ambient import AmbientProfile, AmbientRates
from totalvi.data.background.lower_modes import (
    LowerModes,
    agreement_finding,
    combined,
    compare_with_modes,
)
from totalvi.data.background.prior import (
    BackgroundStart,
    PanelBatches,
    anchored_background_prior,
)
from totalvi.errors import CheckpointError
from totalvi.nn.likelihoods import profile_penalty
from totalvi.run.after_fit import background_tables

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


def droplets(log_mean: np.ndarray, log_sd: float = 0.4) -> AmbientRates:
    return AmbientRates(log_mean, np.full_like(log_mean, log_sd), np.full_like(log_mean, 0.01))


def modes(log_mean: np.ndarray, is_clear: np.ndarray) -> LowerModes:
    return LowerModes(log_mean, np.full_like(log_mean, 0.4), droplets(log_mean), is_clear)


def test_lower_modes_decide_where_clear_and_droplets_elsewhere() -> None:
    """Also: of proteins that are out of the droplets' panel, nothing is said."""
    profile = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    ambient = AmbientProfile.of_rates(
        droplets(profile), np.array(list("abcdef"), dtype=object), np.full(6, 100), ""
    )
    cells = np.append(profile + 2, 7.0)
    cells[[1, 3]] += 3  # every cell carries them: no lower mode, or one that must be signal
    clear = np.array([True, False, True, True, True, True, True])
    start = BackgroundStart(cells[None], np.ones((1, 7)), [modes(cells, clear)])
    panels = PanelBatches(list("abcdefg"), ["one"], [np.array([0])])
    found = anchored_background_prior(start, ambient, panels)
    np.testing.assert_allclose(found.anchor.log_mean[0], [2, 3, 4, 5, 6, 7, 0], atol=1e-9)
    np.testing.assert_allclose(found.scale[0], [0.4] * 6 + [1])
    np.testing.assert_allclose(found.mean[0, :6], profile + 2 - 0.08, atol=1e-9)
    assert found.mean[0, 6] == 7
    np.testing.assert_allclose(found.anchor.mean_precision[0], [100] * 6 + [0], rtol=0.02)


@pytest.mark.parametrize("deviation", [0.1, 0.3, 0.8])
def test_the_deviation_of_droplets_is_estimated_and_said(deviation: float) -> None:
    rng = np.random.default_rng(0)
    levels = rng.normal(2, 1, 400)
    off = rng.normal(0, deviation, 400)
    clear = np.arange(400) < 300
    agreement = compare_with_modes(droplets(levels + off - 1), modes(levels, clear))
    assert agreement.deviation == pytest.approx(deviation, rel=0.2)
    assert agreement.level == pytest.approx(1, abs=0.15)
    assert agreement.n_compared == 300
    said = agreement_finding(agreement, "")
    assert said.severity == ("warning" if deviation > 0.7 else "note")
    assert f"{agreement.deviation:.2f} between proteins" in said.message
    anchor = combined(droplets(levels + off - 1), modes(levels, clear), agreement)
    error = np.abs(anchor[0] - levels)
    assert error[clear].mean() < 0.1  # what the cells show overrides the droplets
    np.testing.assert_allclose(error[~clear], np.abs(off + agreement.level - 1)[~clear])


def test_few_clear_modes_leave_the_usual_deviation() -> None:
    levels = np.arange(5.0)
    agreement = compare_with_modes(droplets(levels), modes(levels, np.zeros(5, dtype=bool)))
    assert agreement.deviation == pytest.approx(0.35)
    assert agreement.n_compared == 0
    assert np.isnan(agreement.differences).all()


def test_the_anchor_is_of_the_mean_whatever_the_spread(cells, raw) -> None:
    model = totalvi.Model(cells, **SMALL, empty_droplets=raw)
    module = model.module
    assert module.anchor_penalty().item() == pytest.approx(0, abs=1e-4)
    mean = module.background_anchor[0]
    with torch.no_grad():
        for scale in (0.2, 1.1):
            module.set_background_prior(mean - scale**2 / 2, torch.full_like(mean, scale))
            held = module.anchor_penalty().item()
            of_spread = profile_penalty(
                module.background_prior_log_scale, *module.background_anchor[[1, 3]]
            )
            assert held == pytest.approx(of_spread.item(), abs=1e-4)
        module.set_background_prior(mean - 0.5**2 / 2 + 0.1, torch.full_like(mean, 0.5))
        off = module.anchor_penalty().item() - held
    expected = 0.5 * (module.background_anchor[2] * 0.1**2).sum().item()
    assert off + held - of_spread.item() == pytest.approx(expected, rel=0.01)


def test_a_model_says_how_droplets_and_cells_agree(cells, raw) -> None:
    found = totalvi.Model(cells, **SMALL, empty_droplets=raw).findings
    said = [finding for finding in found if finding.code == "empty_droplets_agreement"]
    assert len(said) == 1
    assert said[0].severity == "note"
    off = totalvi.ambient_profile(raw, cells)
    off["log_mean"] += np.tile([3.0, -3.0, 0.0], 3)
    with pytest.warns(totalvi.DataWarning, match="empty droplets and the lower modes"):
        totalvi.Model(cells, **SMALL, empty_droplets=off)


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


def test_the_table_of_a_run_shows_how_the_fit_deviates(cells, raw) -> None:
    cells = cells.copy()
    cells.uns["ambient"] = totalvi.ambient_profile(raw, cells)
    model = totalvi.Model(cells, **SMALL)
    table = background_tables(model, cells)[0]["ambient"]
    anchor = pd.Series(model.module.background_anchor[0, 0], index=model.schema.protein_names)
    np.testing.assert_allclose(table["log_background"], anchor[table.index], rtol=1e-4)
    away = table["log_background"] - table["log_mean"]
    np.testing.assert_allclose(table["deviation"], away - away.median(), atol=1e-6)
