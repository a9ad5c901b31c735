"""The objective as a sum of the ELBO's terms."""

import pytest
import torch

from totalvi.nn.likelihoods import ElboTerms, objective


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
