"""The objective as a sum of the ELBO's terms."""

import pytest
import torch

from totalvi.nn.count_integrals import count_log_prob
from totalvi.nn.likelihoods import (
    Dispersion,
    ElboTerms,
    ProteinMixture,
    negative_binomial_log_prob,
    normal_kl,
    normal_log_prob,
    objective,
)
from totalvi.nn.v06 import TOTALVI


def terms() -> ElboTerms:
    return ElboTerms(*(torch.arange(3.0) + 10**i for i in range(5)))


def test_sums() -> None:
    assert torch.equal(terms().reconstruction(), 11 + 2 * torch.arange(3.0))
    assert torch.equal(terms().divergence(), 11100 + 3 * torch.arange(3.0))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, torch.tensor(0.25)])
def test_weight_scales_the_divergences_of_z_and_background_alone(
    weight: float | torch.Tensor,
) -> None:
    expected = 1 + 10 + 1000 + float(weight) * 10100 + 3 + 2 * float(weight)
    assert objective(terms(), weight).item() == pytest.approx(expected)


def test_full_weight_is_the_negative_elbo() -> None:
    expected = (terms().reconstruction() + terms().divergence()).mean()
    assert objective(terms()).item() == pytest.approx(expected.item())


def test_the_field_order_is_the_references() -> None:
    assert ElboTerms._fields == (
        "reconst_loss_gene",
        "reconst_loss_protein",
        "kl_div_z",
        "kl_div_l_gene",
        "kl_div_back_pro",
    )


def test_the_foreground_penalty_is_paid_in_training_for_measured_proteins() -> None:
    mask = [[True] * 5, [True, True, False, True, False]]
    given = {"n_batch": 2, "protein_batch_mask": mask, "background_samples": 3}
    weights = torch.Generator().manual_seed(0)
    free = TOTALVI(30, 5, n_hidden=8, n_latent=3, **given, generator=weights)
    paying = TOTALVI(30, 5, n_hidden=8, n_latent=3, **given, foreground_penalty=0.25)
    paying.load_state_dict(free.state_dict())
    x, y = torch.poisson(torch.ones(12, 30)), torch.poisson(torch.ones(12, 5))
    batch = torch.arange(12) % 2
    prior = torch.full((12, 1), 3.0), torch.full((12, 1), 0.1)

    def terms_of(module: TOTALVI) -> ElboTerms:
        noise = torch.Generator().manual_seed(1)
        return module(x, y, *prior, batch, generator=noise)

    logits = []
    hook = paying.decoder.register_forward_hook(lambda *of: logits.append(of[2].background_logit))
    without, with_penalty = terms_of(free), terms_of(paying)
    hook.remove()
    log_pi = torch.nn.functional.logsigmoid(logits[0])
    paid = -0.25 * (log_pi * torch.tensor(mask)[batch]).sum(dim=1)
    added = with_penalty.kl_div_back_pro - without.kl_div_back_pro
    torch.testing.assert_close(added, paid, rtol=1e-4, atol=1e-4)
    assert (paid > 0).all()
    for a, b in zip(terms_of(free.eval()), terms_of(paying.eval()), strict=True):
        assert torch.equal(a, b)


def test_the_objective_of_many_samples_may_exceed_the_evidence() -> None:
    """The example of docs/model.md: a count of 7, b ~ N(0, 1) and q(b | z) = N(0.8, 0.7^2)."""
    y, zero = torch.tensor([[7.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    background = Dispersion(torch.full((1, 1), 20.0).double().log(), torch.zeros(1))
    certain = ProteinMixture(zero, zero + 2, zero + 40, background)  # it is background
    mean, scale = zero + 0.8, zero + 0.7
    evidence = count_log_prob(y, certain, zero + 1, None, fast=True)
    under_q = count_log_prob(y, certain._replace(log_background=mean), scale, None, fast=True)
    divergence = normal_kl(mean, scale**2, zero, zero + 1)
    assert evidence.item() == pytest.approx(-4.454, abs=5e-4)
    assert (under_q - divergence).item() == pytest.approx(-3.984, abs=5e-4)
    b = mean + scale * torch.linspace(-8, 8, 4001)[:, None].double()
    weight = normal_log_prob(b, mean, scale).exp()
    expected = (weight * negative_binomial_log_prob(y, b, background.by_group)).sum() / weight.sum()
    assert (expected - divergence).item() == pytest.approx(-5.869, abs=5e-4)
