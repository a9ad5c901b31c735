"""The distribution of protein counts against sums over all counts, and against Bayes' rule."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from totalvi.nn.likelihoods import Dispersion, ProteinMixture, negative_binomial_log_prob

COUNTS = torch.arange(3000, dtype=torch.float64)


def mixture(n_groups: int) -> ProteinMixture:
    """Return a mixture of 4 cells and 3 proteins."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    dispersion = Dispersion(normal(n_groups, 3) + 1, torch.arange(4) % n_groups)
    return ProteinMixture(normal(4, 3) + 1, 1 + normal(4, 3).exp(), normal(4, 3), dispersion)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_probabilities_of_all_counts_sum_to_one_and_have_the_mean(n_groups: int) -> None:
    of_proteins = mixture(n_groups)
    probability = torch.stack(
        [of_proteins.log_prob(count.expand(4, 3)).exp() for count in COUNTS], dim=-1
    )
    torch.testing.assert_close(probability.sum(dim=-1), torch.ones(4, 3, dtype=torch.float64))
    mean = (probability * COUNTS).sum(dim=-1)
    torch.testing.assert_close(of_proteins.mean(background=True), mean)
    torch.testing.assert_close(
        of_proteins.mean_over_background() * of_proteins.background_mean(), mean
    )


def test_parts_add_up_to_the_mean() -> None:
    of_proteins = mixture(1)
    foreground = of_proteins.mean(background=False)
    background = of_proteins.background_probability() * of_proteins.background_mean()
    torch.testing.assert_close(foreground + background, of_proteins.mean(background=True))
    zeros, ones = torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    all_foreground = of_proteins.mean(background=True, in_background=zeros)
    all_background = of_proteins.mean(background=True, in_background=ones)
    torch.testing.assert_close(all_foreground, of_proteins.log_foreground.exp())
    torch.testing.assert_close(all_background, of_proteins.log_background.exp())


@pytest.mark.parametrize("n_groups", [1, 2])
def test_foreground_given_counts_follows_bayes_rule(n_groups: int) -> None:
    of_proteins = mixture(n_groups)
    y = torch.tensor([[0.0, 3.0, 40.0]], dtype=torch.float64).expand(4, 3)
    part = negative_binomial_log_prob(y, of_proteins.log_foreground, of_proteins.log_r)
    joint = of_proteins.foreground_probability() * part.exp()
    expected = joint / of_proteins.log_prob(y).exp()
    torch.testing.assert_close(of_proteins.foreground_given(y), expected)


@pytest.mark.parametrize("n_groups", [1, 2])
@pytest.mark.parametrize("some", [slice(None), slice(1, 3), np.array([2, 0])])
def test_some_proteins_are_those_of_all(n_groups: int, some: slice | np.ndarray) -> None:
    of_proteins, y = mixture(n_groups), torch.full((4, 3), 5.0, dtype=torch.float64)
    taken = of_proteins.take(some)
    torch.testing.assert_close(taken.log_prob(y[:, some]), of_proteins.log_prob(y)[:, some])
    torch.testing.assert_close(taken.log_r, of_proteins.log_r[:, some])


def test_more_samples_of_the_background_broadcast() -> None:
    of_proteins = mixture(2)
    samples = torch.stack([of_proteins.log_background, of_proteins.log_background + math.log(2)])
    y = torch.full((4, 3), 5.0, dtype=torch.float64)
    both = of_proteins._replace(log_background=samples).log_prob(y)
    torch.testing.assert_close(both[0], of_proteins.log_prob(y))
    assert both.shape == (2, 4, 3)
