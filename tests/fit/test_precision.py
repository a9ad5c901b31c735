"""The precision that a fit is asked for is the one it has."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import SMALL, described
from totalvi.data.cells import CiteData
from totalvi.fit import device as precision
from totalvi.fit import loop
from totalvi.fit.batches import minibatch
from totalvi.fit.device import (
    autocast_precision,
    resolve_precision,
    resolved_plan,
    wide_products,
)
from totalvi.fit.loop import Fit
from totalvi.fit.model_state import FitResult
from totalvi.fit.plan import Precision, Split, TrainingPlan
from totalvi.nn.likelihoods import ElboTerms
from totalvi.nn.v06 import TOTALVI
from totalvi.processes import launch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPLIT = Split(np.arange(40), np.arange(40, 60), np.arange(0))


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described(60)


class Watched(TOTALVI):
    """Notes in what precision its training steps run, and its validation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precisions: set[tuple[bool, bool]] = set()

    def elbo(self, *args: Any, **kwargs: Any) -> ElboTerms:
        self.precisions.add((torch.is_autocast_enabled("cpu"), self.bfloat16_products))
        return super().elbo(*args, **kwargs)

    def held_out(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        self.precisions.add((torch.is_autocast_enabled("cpu"), self.bfloat16_products))
        return super().held_out(*args, **kwargs)


def network(*, fused: bool) -> Watched:
    options: dict[str, Any] = SMALL | {"library": "observed", "fused": fused}
    return Watched(30, 6, 2, generator=torch.Generator().manual_seed(0), **options)


def fitted(module: TOTALVI, data: CiteData, asked: Precision, max_epochs: int) -> FitResult:
    fabric = launch("cpu")
    plan = TrainingPlan(max_epochs=max_epochs, batch_size=20, precision=asked)
    plan = resolved_plan(plan, module, fabric.device)
    return Fit(module, data, SPLIT, plan, fabric, np.random.SeedSequence(0)).run()


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    monkeypatch.setattr(precision, "processor_has", lambda _: has_bfloat16)
    fused, plain = network(fused=True), network(fused=False)
    expected = "bf16-mixed" if has_bfloat16 else "32-true"
    assert resolve_precision("auto", fused, CPU) == expected
    assert resolve_precision("auto", plain, CPU) == "32-true"
    assert resolve_precision("auto", fused, CUDA) == "32-true"


def test_what_was_asked_for_stays_but_processors_have_no_float16() -> None:
    module = network(fused=True)
    asked: tuple[Precision, ...] = ("32-true", "bf16-mixed", "16-mixed")
    assert [resolve_precision(one, module, CUDA) for one in asked] == list(asked)
    assert [resolve_precision(one, module, CPU) for one in asked] == [*asked[:2], "bf16-mixed"]


def test_fused_networks_on_the_cpu_are_not_left_to_autocast() -> None:
    assert autocast_precision("bf16-mixed", network(fused=True), CPU) == "32-true"
    assert autocast_precision("bf16-mixed", network(fused=False), CPU) == "bf16-mixed"
    assert autocast_precision("bf16-mixed", network(fused=True), CUDA) == "bf16-mixed"


def test_wide_products_are_as_before_even_after_an_exception() -> None:
    module = network(fused=True)

    def interrupted() -> None:
        with wide_products(module, "bf16-mixed"):
            assert module.bfloat16_products
            assert module.encoder.bfloat16_products
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not module.bfloat16_products
    assert not module.encoder.bfloat16_products
    module.set_bfloat16_products(True)
    with wide_products(module, "32-true"):
        assert not module.bfloat16_products
    assert module.bfloat16_products


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("asked", ["32-true", "bf16-mixed", "16-mixed"])
def test_steps_run_in_the_precision_that_is_reported(
    data: CiteData, asked: Precision, fused: bool
) -> None:
    module = network(fused=fused)
    result = fitted(module, data, asked, 1)
    mixed = asked != "32-true"
    assert result.summary["precision"] == ("bf16-mixed" if mixed else "32-true")
    # validation is in float32 whatever the steps are
    assert module.precisions == {(mixed and not fused, mixed), (False, False)}
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.parametrize(("fused", "tolerance"), [(True, 0.02), (False, 0.3)])
def test_mixed_precision_is_not_single_but_close(
    data: CiteData, fused: bool, tolerance: float
) -> None:
    """Under autocast torch draws other noise too, in 16 bits."""
    losses = {}
    both: tuple[Precision, ...] = ("32-true", "bf16-mixed")
    for asked in both:
        result = fitted(network(fused=fused), data, asked, 5)
        losses[asked] = result.history["train_loss"].to_numpy()
        assert result.summary["n_skipped_steps"] == 0
    assert not np.array_equal(losses["32-true"], losses["bf16-mixed"])
    np.testing.assert_allclose(losses["32-true"], losses["bf16-mixed"], rtol=tolerance)


def test_float16_gradients_are_unscaled_before_they_are_clipped(
    data: CiteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU the same scaler of losses can be had as on a GPU."""
    norms: list[float] = []
    original = loop.clip_gradients

    def watched(module: TOTALVI, largest_norm: float) -> torch.Tensor:
        norm = original(module, largest_norm)
        norms.append(float(norm))
        return norm

    monkeypatch.setattr(loop, "clip_gradients", watched)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)  # too large at first

    def scaler_of(asked: Precision, _device: torch.device) -> torch.amp.GradScaler | None:
        return scaler if asked == "16-mixed" else None

    monkeypatch.setattr(loop, "loss_scaler", scaler_of)

    def fit(asked: Precision) -> Fit:
        plan = TrainingPlan(max_epochs=5, batch_size=20, precision=asked)
        split = SPLIT._replace(train=np.arange(20))
        seed = np.random.SeedSequence(1)
        return Fit(network(fused=False), data, split, plan, launch("cpu"), seed)

    half = fit("16-mixed")
    half.network.train()
    before = {name: value.clone() for name, value in half.network.state_dict().items()}
    batch = minibatch(data, half.network, np.arange(20))
    assert not half.step(batch).taken
    assert scaler.get_scale() == 2.0**23
    for name, value in half.network.state_dict().items():
        assert torch.equal(value, before[name])
    while not half.step(batch).taken:
        assert scaler.get_scale() > 1
    single = fit("32-true")
    single.network.train()
    single.step(batch)
    assert norms[-2] == pytest.approx(norms[-1], rel=0.1)
