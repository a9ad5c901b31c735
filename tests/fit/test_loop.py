"""The training loop: repeatable, guarded against what is not finite, and keeping the best."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import SMALL, described
from totalvi.data.cells import CiteData
from totalvi.errors import TrainingError
from totalvi.fit import loop as trainer
from totalvi.fit.batches import minibatch
from totalvi.fit.device import resolved_plan
from totalvi.fit.loop import Fit, StepInfo, evaluate
from totalvi.fit.model_state import FitResult
from totalvi.fit.plan import Split, TrainingPlan
from totalvi.fit.state import FitState, clip_gradients, noise_of
from totalvi.nn.likelihoods import ElboTerms
from totalvi.nn.v06 import TOTALVI
from totalvi.processes import launch

SPLIT = Split(np.arange(0, 100), np.arange(100, 120), np.arange(0))
TERMS = ("loss", *ElboTerms._fields)


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


class Flawed(TOTALVI):
    """Gives a term that is not finite at chosen training steps, as an overflow would."""

    bad_steps: frozenset[int] = frozenset()
    poison_statistics = False
    step = -1

    def elbo(self, *args: Any, **kwargs: Any) -> ElboTerms:
        terms = super().elbo(*args, **kwargs)
        if not self.training:
            return terms
        self.step += 1
        if self.step not in self.bad_steps:
            return terms
        if self.poison_statistics:
            self.decoder.first.activation.batch_norm.running_mean.data += torch.nan
        return terms._replace(kl_div_z=terms.kl_div_z * torch.nan)


def network(seed: int = 1, **options: Any) -> Flawed:
    generator = torch.Generator().manual_seed(seed)
    return Flawed(30, 6, 2, generator=generator, **(SMALL | {"library": "observed"} | options))


def run(
    data: CiteData, module: TOTALVI | None = None, seed: int = 0, split: Split = SPLIT, **plan: Any
) -> tuple[TOTALVI, FitResult]:
    module = network() if module is None else module
    numbers: dict[str, Any] = {
        "max_epochs": 4,
        "batch_size": 50,
        "kl_warmup_epochs": 1,
        "accelerator": "cpu",
    }
    fabric = launch("cpu")
    resolved = resolved_plan(TrainingPlan(**(numbers | plan)), module, fabric.device)
    fit = Fit(module, data, split, resolved, fabric, np.random.SeedSequence(seed))
    return module, fit.run()


def same_weights(a: TOTALVI, b: TOTALVI) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_seed_gives_identical_weights_and_another_other_ones(data: CiteData) -> None:
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    (one, first), (same, again), (other, _) = run(data), run(data), run(data, seed=1)
    assert same_weights(one, same)
    assert not same_weights(one, other)
    columns = [column for column in first.history if column != "seconds"]
    assert first.history[columns].equals(again.history[columns])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_training_lowers_the_loss_and_leaves_the_module_ready(data: CiteData) -> None:
    module = network()
    start = evaluate(module, data, SPLIT.validation, np.random.SeedSequence(0))
    _, result = run(data, module, max_epochs=30)
    end = evaluate(module, data, SPLIT.validation, np.random.SeedSequence(0))
    assert end["validation_loss"] < start["validation_loss"] - 5
    assert not module.training
    assert result.summary["n_skipped_steps"] == 0


def test_history_has_a_row_an_epoch_and_every_term(data: CiteData) -> None:
    shown: list[tuple[int, dict[str, float]]] = []
    _, result = run(data)
    history = result.history
    assert list(history.index) == [0, 1, 2, 3]
    assert history.index.name == "epoch"
    columns = [f"{part}_{term}" for part in ("train", "validation") for term in TERMS]
    further = ["validation_paper_loss", "kl_weight", "learning_rate", "seconds"]
    assert list(history.columns) == [*columns, *further]
    assert np.isfinite(history.to_numpy()).all()
    for part in ("train", "validation"):
        terms = history[[f"{part}_{term}" for term in ElboTerms._fields]].sum(axis=1)
        whole = "validation_paper_loss" if part == "validation" else "train_loss"
        np.testing.assert_allclose(history[whole], terms)
    assert (history["validation_kl_div_l_gene"] == 0).all()
    plan, seed = TrainingPlan(max_epochs=2, precision="32-true"), np.random.SeedSequence(0)
    fit = Fit(network(), data, SPLIT, plan, launch("cpu"), seed, lambda *args: shown.append(args))
    fit.run()
    assert [epoch for epoch, _ in shown] == [0, 1]
    assert "train_loss" in shown[0][1]


def test_warm_up_and_learning_rate_follow_the_schedules(data: CiteData) -> None:
    _, result = run(data, max_epochs=6, kl_warmup_epochs=4)
    assert result.history["kl_weight"].tolist() == [0.25, 0.5, 0.75, 1, 1, 1]
    assert result.history["learning_rate"].iloc[-1] < 1e-4
    _, result = run(data, schedule="constant", learning_rate=2e-3)
    assert result.history["learning_rate"].tolist() == [2e-3] * 4


def test_the_learning_rate_reaches_the_optimiser(data: CiteData) -> None:
    module, start = network(), network()
    run(data, module, schedule="constant", learning_rate=1e-12, max_epochs=1)
    moved = max(
        (a - b).abs().max().item()
        for a, b in zip(module.parameters(), start.parameters(), strict=True)
    )
    assert moved < 1e-6


def test_the_given_split_is_honoured(data: CiteData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    original = trainer.minibatches

    def watched(data: CiteData, module: TOTALVI, cells: np.ndarray, *a: Any, **k: Any) -> Any:
        seen[module.training] |= set(cells.tolist())
        return original(data, module, cells, *a, **k)

    monkeypatch.setattr(trainer, "minibatches", watched)
    split = Split(np.arange(10, 70), np.arange(70, 90), np.arange(90, 120))
    run(data, split=split)
    assert seen[True] == set(range(10, 70))
    assert seen[False] == set(range(70, 90))


def test_validation_gives_the_same_loss_each_time_and_restores_the_mode(data: CiteData) -> None:
    module = network().train()
    seed = np.random.SeedSequence(5)
    first, second = (evaluate(module, data, SPLIT.validation, seed) for _ in range(2))
    assert first == second
    assert module.training


def test_the_held_out_loss_has_the_background_integrated(data: CiteData) -> None:
    module, seed = network().eval(), np.random.SeedSequence(5)
    row = evaluate(module, data, SPLIT.validation, seed)
    x, y, context, *_ = minibatch(data, module, SPLIT.validation)[2:]
    standard = torch.linspace(-8, 8, 801)[:, None, None]  # by the rule of trapezoids
    log_weight = standard.square().mul(-0.5).log_softmax(dim=0)
    with torch.no_grad():
        noise = noise_of(seed, "cpu", None)
        posterior, _, decoded, _ = module._sample(
            module.encode(x, y, context, noise), context, (None, None), noise
        )
        mean, log_scale = module.background_prior_mean, module.background_prior_log_scale
        b = mean[context.panel] + log_scale[context.panel].exp() * standard
        log_prob = module.proteins(decoded, b, context).log_prob(y) + log_weight
        of_proteins = -log_prob.logsumexp(dim=0).sum(dim=1).mean().item()
    expected = (
        row["validation_reconst_loss_gene"] + of_proteins + posterior.latent_kl().mean().item()
    )
    assert row["validation_loss"] == pytest.approx(expected, rel=1e-4)
    assert row["validation_loss"] < row["validation_paper_loss"]


def test_a_fit_that_began_with_the_loss_of_the_paper_goes_on_with_it() -> None:
    """Rows of earlier versions have no other held-out loss, and no lower one may replace them."""
    plan = TrainingPlan(max_epochs=5, kl_warmup_epochs=0)
    rng = np.random.default_rng(0)
    state = FitState.at_start(network(), plan, rng, np.random.SeedSequence(0), None, None)
    state.end_epoch({"validation_loss": 200.0, "kl_weight": 1.0}, plan)
    for loss in (210.0, 190.0):
        new = {"validation_loss": loss - 50, "validation_paper_loss": loss, "kl_weight": 1.0}
        state.end_epoch(new, plan)
    assert [row["validation_loss"] for row in state.history] == [200, 210, 190]
    assert all(set(row) == {"validation_loss", "kl_weight"} for row in state.history)
    assert (state.best_loss, state.best_epoch) == (190, 2)


def test_without_validation_cells_all_epochs_run_and_the_last_counts(data: CiteData) -> None:
    split = Split(np.arange(120), np.arange(0), np.arange(0))
    _, result = run(data, split=split, patience=1)
    assert len(result.history) == 4
    assert result.summary["best_epoch"] == 3
    assert not any("validation" in column for column in result.history)


# ------------------------------------------------------------------- best weights, early stopping


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    left = iter(losses)
    monkeypatch.setattr(Fit, "validate", lambda _: {"validation_loss": next(left)})


def test_the_weights_of_the_lowest_validation_loss_are_kept(
    data: CiteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"schedule": "constant", "kl_warmup_epochs": 0}
    scripted(monkeypatch, [5.0, 3.0, 4.0, 3.5])
    best, result = run(data, max_epochs=4, **plan)
    assert result.summary["best_epoch"] == 1
    scripted(monkeypatch, [5.0, 3.0])
    expected, _ = run(data, max_epochs=2, **plan)
    assert same_weights(best, expected)
    scripted(monkeypatch, [5.0, 4.0, 3.0, 2.0])
    last, _ = run(data, max_epochs=4, **plan)
    assert not same_weights(best, last)


def test_early_stopping_waits_for_its_patience(
    data: CiteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [5.0, 4.0, 4.5, 4.2, 4.1, 1.0])
    _, result = run(data, max_epochs=6, patience=3)
    assert len(result.history) == 5
    assert result.summary["best_epoch"] == 1
    assert result.summary["stopped"] == "no lower validation loss for 3 epochs"
    scripted(monkeypatch, [5.0, 4.0, 4.5, 4.2, 4.1, 1.0])
    _, result = run(data, max_epochs=6, patience=None)
    assert len(result.history) == 6
    assert result.summary["best_epoch"] == 5
    assert result.summary["stopped"] == "all 6 epochs done"


def test_no_epoch_of_the_warm_up_is_the_best(
    data: CiteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [1.0, 2.0, 9.0, 8.0, 8.5])
    _, result = run(data, max_epochs=5, kl_warmup_epochs=3, patience=10)
    assert result.summary["best_epoch"] == 3
    scripted(monkeypatch, [1.0, 2.0])
    _, result = run(data, max_epochs=2, kl_warmup_epochs=30)
    assert result.summary["best_epoch"] == 1


# ------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("poison", [False, True], ids=["loss", "loss and batch statistics"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(data: CiteData, poison: bool) -> None:
    module = network()
    module.bad_steps, module.poison_statistics = frozenset({1, 4}), poison
    _, result = run(data, module)
    assert result.summary["n_skipped_steps"] == 2
    assert np.isfinite(result.history.to_numpy()).all()
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_skipped_step_changes_nothing(data: CiteData) -> None:
    module, start = network(), network()
    module.bad_steps = frozenset(range(100))
    with pytest.raises(TrainingError):
        run(data, module)
    assert same_weights(module, start)


def test_an_epoch_without_a_finite_step_ends_the_fit(data: CiteData) -> None:
    module = network()
    module.bad_steps = frozenset({2, 3})  # the second epoch
    with pytest.raises(TrainingError, match=r"In epoch 1 no step had a finite.*learning rate"):
        run(data, module)


def test_a_run_of_skipped_steps_ends_the_fit(data: CiteData) -> None:
    module = network()
    module.bad_steps = frozenset(range(1, 100))
    with pytest.raises(TrainingError, match=r"In epoch 0 none of 20 steps in a row had a finite"):
        run(data, module, batch_size=4)
    assert module.step == 20


def test_a_validation_loss_that_is_never_finite_ends_the_fit(
    data: CiteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [np.nan] * 4)
    with pytest.raises(TrainingError, match="After epoch 3 no validation loss was finite"):
        run(data)


@pytest.mark.parametrize(
    "options",
    [
        {"reconstruction_loss_gene": "zinb", "latent_distribution": "ln"},
        {"library": "latent"},
        {"normalization": "layer", "n_layers_decoder": 2},
        {"protein_efficiency": True, "gene_dispersion": "gene-batch"},
    ],
    ids=str,
)
def test_other_networks_train(data: CiteData, options: dict[str, Any]) -> None:
    _, result = run(data, network(**options), max_epochs=2)
    assert np.isfinite(result.history.to_numpy()).all()


def test_mixed_precision_is_close_to_single(data: CiteData) -> None:
    _, single = run(data, max_epochs=10)
    _, mixed = run(data, max_epochs=10, precision="bf16-mixed")
    np.testing.assert_allclose(mixed.history["train_loss"], single.history["train_loss"], rtol=0.02)


@pytest.mark.parametrize(("largest", "expected"), [(1.0, 1.0), (100.0, 5.0)])
def test_gradients_are_scaled_down_to_the_largest_norm(largest: float, expected: float) -> None:
    module = network()
    parameters = list(module.parameters())
    for parameter in parameters[1:3]:  # the others have none
        parameter.grad = torch.zeros_like(parameter)
    for parameter, value in zip(parameters[1:3], (3.0, 4.0), strict=True):
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = value
    assert float(clip_gradients(module, largest)) == pytest.approx(5)
    after = [p.grad.view(-1)[0].item() for p in parameters[1:3] if p.grad is not None]
    assert after == pytest.approx([3 * expected / 5, 4 * expected / 5], rel=1e-5)


def test_a_gradient_that_is_not_finite_has_a_norm_that_is_not() -> None:
    module = network()
    parameter = next(module.parameters())
    parameter.grad = torch.full_like(parameter, torch.nan)
    assert not clip_gradients(module, 1.0).isfinite()


def test_a_step_leaves_no_graph_behind(data: CiteData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[StepInfo] = []
    original = Fit.step

    def watched(self: Any, batch: Any) -> StepInfo:
        seen.append(original(self, batch))
        return seen[-1]

    monkeypatch.setattr(Fit, "step", watched)
    run(data, max_epochs=1)
    assert seen
    assert not any(info.sums.requires_grad for info in seen)
