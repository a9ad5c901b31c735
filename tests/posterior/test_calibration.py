"""The calibration of counts: its formulas, where it is used, and where it is kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import totalvi
from counts import SMALL
from totalvi.errors import FormatError
from totalvi.fit.model_state import CountCalibration, FitResult, seed_of_calibration
from totalvi.nn.likelihoods import Dispersion, ProteinMixture
from totalvi.posterior.calibration import (
    Grid,
    best_narrowing,
    calibrate_fit,
    log_likelihood,
    mixture_distribution,
    shrunken,
    spread_of_proteins,
)

FAST = {"accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    """A fit to cells of two batches, of which the second lacks two proteins."""
    data = totalvi.simulate(
        700, 30, 6, n_batches=2, n_cell_types=3, n_unmeasured=2, store_truth=False, seed=3
    )
    model = totalvi.Model(data, batch_key="batch", **SMALL)
    model.train(max_epochs=20, train_size=0.5, validation_size=0.3, **FAST)
    return model


def without(model: totalvi.Model) -> totalvi.Model:
    """Return the same model as it was fitted."""
    state = model._state()
    result = replace(state.result, calibration=None)
    return totalvi.Model._from_state(replace(state, result=result), model._data)


def calibration_of(model: totalvi.Model) -> CountCalibration:
    assert model._result is not None
    assert model._result.calibration is not None
    return model._result.calibration


def test_another_spread_of_the_background_has_the_same_mean() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    noise = torch.from_numpy(nodes)[:, None]
    scale, mean = torch.tensor([[0.5, 1.2]]).double(), torch.tensor([[1.0, 3.0]]).double()
    mixture = ProteinMixture(
        mean + scale * noise, torch.ones(1), torch.ones(1),
        Dispersion(torch.zeros(1, 2), torch.zeros(60, dtype=torch.int64)),
    )  # fmt: skip
    log_scale = torch.tensor([-0.7, 0.4]).double()
    spread = spread_of_proteins(mixture, scale, noise, torch.tensor([0.5, 0.0]), log_scale)
    level = spread.log_background.numpy()
    weights = weights / weights.sum()
    np.testing.assert_allclose(
        weights @ np.exp(level), np.exp((mean + scale**2 / 2).numpy())[0], rtol=1e-9
    )
    centred = level - weights @ level
    np.testing.assert_allclose(
        weights @ centred**2, (scale * log_scale.exp())[0].numpy() ** 2, rtol=1e-9
    )
    assert spread.log_r.tolist() == [[0.5, 0.0]]


def test_features_without_counts_get_the_mean_of_the_others() -> None:
    axes = (np.linspace(-1.5, 3, 10), np.linspace(-1.2, 0.6, 7))
    truth = np.array([[0.8, 1.0, 1.2, 0.9, 1.1], [-0.5, -0.3, -0.4, -0.4, -0.4]])
    first, second = (axis[:, None] - value for axis, value in zip(axes, truth, strict=True))
    log_likelihood = -200 * (first[:, None] ** 2 + second[None] ** 2)
    silent = np.zeros((10, 7, 1))
    found = shrunken(Grid(axes, np.concatenate([log_likelihood, silent], axis=2)))
    np.testing.assert_allclose(found[:, :5], truth, atol=0.06)
    # one feature more at 0 draws the mean towards it by a seventh
    np.testing.assert_allclose(found[:, 5], truth.mean(axis=1) * 5 / 6, atol=0.1)


def test_distribution_function_of_the_mixture_sums_its_probabilities() -> None:
    log_mean, log_r = torch.tensor([[0.5, 2.0]]), torch.tensor([[-0.3, 1.0]])
    mixture = ProteinMixture(
        log_mean, torch.tensor([[4.0, 2.0]]), torch.tensor([[0.4, -1.0]]), Dispersion(log_r, None)
    )
    each = [mixture.log_prob(torch.full((1, 2), float(y))).exp().numpy() for y in range(9)]
    for most in (0, 8):
        found = mixture_distribution(mixture, torch.full((1, 2), float(most)))
        np.testing.assert_allclose(found, np.sum(each[: most + 1], axis=0), rtol=1e-5)


def test_intervals_are_narrowed_by_as_much_as_they_are_wide() -> None:
    rng = np.random.default_rng(0)
    rank = (rng.standard_normal((5000, 20))[:, :, None]) * np.exp(
        -0.25
    )  # half a unit of t too wide
    narrowing = np.linspace(-0.5, 1.3, 7)
    limits = np.abs([-0.6745, -1.2816, -1.96, -2.5758])
    inside = (np.abs(rank) * np.exp(narrowing / 2) < limits[:, None, None, None]).mean(axis=2)
    assert best_narrowing(inside.transpose(2, 0, 1)) == pytest.approx(0.5, abs=0.03)
    few = best_narrowing(inside.transpose(2, 0, 1)[:, :, :3])
    assert 0 <= few <= 0.7


def test_cells_that_calibrate_validated_and_do_not_report(model: totalvi.Model) -> None:
    assert model.split is not None
    cells = model.calibration_cells
    assert len(cells) == len(model.split.validation) // 2
    assert np.isin(cells, model.split.validation).all()
    assert model.fit_summary["calibrated_on"] == f"{len(cells)} held-out cells"
    data = model._training_data()
    held_out = np.setdiff1d(np.concatenate(model.split[1:]), cells)
    table = model.get_imputation_reliability(n_samples=2)
    assert (table["n_cells"] == (data.batch[held_out] == 0).sum()).all()


def test_cells_that_calibrated_are_covered_better_at_little_cost(model: totalvi.Model) -> None:
    """Intervals are made narrower by their coverage, which may cost some likelihood."""
    asked = {"indices": model.calibration_cells, "n_samples": 20, "progress": False}
    after = model.posterior_predictive_check(**asked)
    before = without(model).posterior_predictive_check(**asked)
    gain = after.summary - before.summary
    assert gain.loc["protein", "calibration_error"] < 0
    assert gain.loc["protein", "log_likelihood"] > -0.05
    assert gain.loc["rna", "log_likelihood"] == 0


def test_only_the_spread_of_counts_changes(model: totalvi.Model) -> None:
    fitted = without(model)
    asked = {"indices": range(30), "n_samples": 30, "progress": False}
    for given in (True, False):
        for ours, theirs in zip(
            model.get_normalized_expression(given_counts=given, **asked),
            fitted.get_normalized_expression(given_counts=given, **asked),
            strict=True,
        ):
            assert ours.equals(theirs)
    imputed = model.impute_proteins(calibrated=False, **asked)
    before = fitted.impute_proteins(calibrated=False, **asked)
    assert imputed.mean.equals(before.mean)
    assert not imputed.sd.equals(before.sd)
    assert not imputed.upper.equals(before.upper)
    ours, theirs = (m.posterior_predictive_sample(**asked) for m in (model, fitted))
    assert not ours.protein[0].equals(theirs.protein[0])


def test_the_same_again_and_by_panel(model: totalvi.Model) -> None:
    assert model._result is not None
    assert model._data is not None
    again = calibrate_fit(
        replace(model._result, calibration=None), model.module, model._data,
        seed_of_calibration(model.seed, 1),
    )  # fmt: skip
    assert again.to_dict() == model._result.to_dict()
    # what a panel lacks says nothing
    question = model._question(None, model.calibration_cells, 100, False, n_samples=2)
    before = log_likelihood(question)
    lacked = np.flatnonzero(~np.array(model.schema.panel_measured)[1])
    cells = model.calibration_cells[model._data.batch[model.calibration_cells] == 1]
    silent = log_likelihood(question.about(cells))
    assert (silent[:, :, lacked] == 0).all()
    assert (before[:, :, lacked] < 0).all()


def test_kept_with_the_model_and_by_a_mapped_query(model: totalvi.Model, tmp_path: Path) -> None:
    expected = calibration_of(model)
    loaded = totalvi.Model.load(model.save(tmp_path / "model"))
    mapped = model.map_query(totalvi.simulate(40, 30, 6, store_truth=False, seed=3))
    for other in (loaded, mapped):
        for ours, theirs in zip(calibration_of(other)[:2], expected[:2], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(loaded.calibration_cells, expected.cells)
    assert len(mapped.calibration_cells) == 0  # its own cells did not calibrate
    assert model._result is not None
    older = model._result.to_dict()
    del older["calibration"]
    assert FitResult.from_dict(older).calibration is None


def test_scvi_tools_gets_none(model: totalvi.Model, tmp_path: Path) -> None:
    again = totalvi.persistence.load_scvi(model.save_scvi(tmp_path / "scvi"))
    assert len(again.calibration_cells) == 0


def test_a_damaged_calibration_is_refused(model: totalvi.Model, tmp_path: Path) -> None:
    state = model._state()
    damaged = calibration_of(model)._replace(protein_log_r=np.zeros(2, np.float32))
    result = replace(state.result, calibration=damaged)
    other = totalvi.Model._from_state(replace(state, result=result))
    with pytest.raises(FormatError, match="protein_log_r of the calibration are not 6 finite"):
        totalvi.Model.load(other.save(tmp_path / "damaged"))


@pytest.mark.parametrize(("calibrate", "n_cells"), [(True, 60), (False, 300)])
def test_none_without_enough_cells_or_on_request(calibrate: bool, n_cells: int) -> None:
    data = totalvi.simulate(n_cells, 30, 6, store_truth=False, seed=3)
    model = totalvi.Model(data, **SMALL)
    model.train(max_epochs=1, train_size=0.7, calibrate=calibrate, **FAST)
    assert len(model.calibration_cells) == 0
    said = model.fit_summary.get("calibrated_on")
    assert (
        said == "none: 9 held-out cells are half of the validation cells, and 20 are needed"
    ) == (calibrate)
