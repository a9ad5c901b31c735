"""The classifier of panels: it learns, deceives the encoder, and leaves nothing behind."""

import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import totalvi
from counts import SMALL, annotated
from totalvi.fit.state import Adversary
from totalvi.nn.v06 import TOTALVI

PANEL = torch.tensor([0, 1] * 50)


def adversary(module: TOTALVI, weight: float = 1.0) -> Adversary:
    return Adversary(module, weight, torch.device("cpu"), torch.Generator().manual_seed(0))


def network(n_panels: int = 2) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    return TOTALVI(30, 6, n_panels, library="observed", generator=generator, **SMALL)


def seen(made: Adversary, latent: torch.Tensor) -> Adversary:
    made._latent = latent
    return made


def test_it_learns_what_sets_panels_apart_and_not_what_does_not() -> None:
    made = adversary(network())
    noise = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    apart = noise + 2 * PANEL[:, None]
    losses = [seen(made, apart).step(PANEL) for _ in range(300)]
    assert losses[0] > 0.5
    assert losses[-1] < 0.2


def test_deception_is_the_loss_of_naming_the_other_panels() -> None:
    module = network(3)
    made = adversary(module, weight=2.5)
    latent = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    panel = torch.tensor([0, 1, 2, 0, 1, 2])
    other = (1 - F.one_hot(panel, 3)) / 2
    expected = 2.5 * F.cross_entropy(made.classifier(latent), other.float())
    torch.testing.assert_close(seen(made, latent).deception(panel), expected)
    undecided = torch.zeros_like(made.classifier[2].weight)
    made.classifier[2].weight.data, made.classifier[2].bias.data = undecided, undecided[:, 0]
    assert seen(made, latent).deception(panel).item() == pytest.approx(2.5 * math.log(3))


def test_deception_moves_the_latent_state_and_a_step_moves_the_classifier_alone() -> None:
    made = adversary(network(), weight=2.0)
    latent = torch.randn(100, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seen(made, latent).deception(PANEL).backward()
    assert latent.grad is not None
    assert (latent.grad != 0).any()
    left = [p.grad.clone() for p in made.classifier.parameters() if p.grad is not None]
    latent.grad = None
    made.step(PANEL)
    assert latent.grad is None
    now = [p.grad for p in made.classifier.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(left, now, strict=True) if b is not None)


def test_its_state_goes_on_where_it_was() -> None:
    one, other = adversary(network()), adversary(network())
    latent = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    seen(one, latent).step(PANEL)
    other.restore(deepcopy(one.tensors()))  # as from a file
    for made in (one, other):
        seen(made, latent).step(PANEL)
    for a, b in zip(one.classifier.parameters(), other.classifier.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_reads_in_training_alone_and_stops_after() -> None:
    module = network()
    made = adversary(module)
    x, y = torch.ones(8, 30), torch.ones(8, 6)
    batch = torch.tensor([0, 1] * 4)
    with made.watching(module):
        module.eval()(x, y, batch_index=batch)
        assert made._latent is None
        module.train()(x, y, batch_index=batch)
        assert made._latent is not None
    assert made._latent is None
    module(x, y, batch_index=batch)
    assert made._latent is None


def test_a_fit_against_it_is_repeatable_and_can_be_saved(tmp_path: Path) -> None:
    weights = []
    for weight in (True, True, 5.0):
        model = totalvi.Model(annotated(n_unmeasured=2), batch_key="batch", **SMALL)
        model.train(max_epochs=2, accelerator="cpu", progress=False, adversarial=weight)
        assert model.plan is not None
        assert model.plan.adversary_weight == float(weight)
        weights.append(model.module.encoder.z_head.mean.weight.detach().numpy())
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    loaded = totalvi.Model.load(model.save(tmp_path / "m"))
    assert loaded.plan == model.plan


def test_one_panel_has_no_adversary() -> None:
    model = totalvi.Model(annotated(), **SMALL)
    with pytest.raises(ValueError, match="all cells are of one panel"):
        model.train(max_epochs=1, adversarial=True)
    mixed = totalvi.Model(annotated(), batch_key="batch", **SMALL)
    with pytest.raises(ValueError, match="adversary_weight is -1"):
        mixed.train(max_epochs=1, adversarial=-1)
