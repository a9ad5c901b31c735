"""Fisher information of counts about their parameters, beside sums over all counts; nats and shares."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from totalvi.nn.likelihoods import (
    Dispersion,
    GeneLikelihood,
    negative_binomial_log_prob,
    negative_binomial_mixture_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from totalvi.posterior.fisher_information import (
    gene_information,
    nats,
    protein_information,
    protein_scores,
    share_weights,
)

COUNTS = torch.arange(12000, dtype=torch.float64)
MEANS, R = [0.01, 0.7, 5.0, 90.0], [0.3, 2.0, 40.0]


class _Given:
    """Stands for a linear layer whose product is known."""

    def __init__(self, value: torch.Tensor) -> None:
        self._value = value

    def value(self) -> torch.Tensor:
        return self._value


def genes_with(mean: float, r: float, dropout: float | None) -> GeneLikelihood:
    """Return the likelihood of one gene in one cell; its proportion is 1."""
    one = torch.zeros(1, 1, dtype=torch.float64)
    log_r = torch.full((1, 1), np.log(r), dtype=torch.float64)
    return GeneLikelihood(
        logit=_Given(one),  # type: ignore[arg-type]
        dropout=None if dropout is None else _Given(one + dropout),  # type: ignore[arg-type]
        library_size=one + mean,
        dispersion=Dispersion(log_r, torch.zeros(1, dtype=torch.long)),
        softplus=False,
    )


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("r", R)
@pytest.mark.parametrize("dropout", [None, -1.5, 1.0])
def test_information_of_a_gene_is_the_expected_square_of_its_scores(
    mean: float, r: float, dropout: float | None
) -> None:
    log_mean = torch.tensor(np.log(mean), dtype=torch.float64)
    log_r = torch.tensor(np.log(r), dtype=torch.float64)
    logit = torch.tensor(0.0 if dropout is None else dropout, dtype=torch.float64)

    def log_prob(log_mean: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
        if dropout is None:
            return negative_binomial_log_prob(COUNTS, log_mean, log_r)
        return zero_inflated_negative_binomial_log_prob(COUNTS, log_mean, log_r, logit)

    by_mean, by_logit = torch.func.jacfwd(log_prob, argnums=(0, 1))(log_mean, logit)
    p = log_prob(log_mean, logit).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    expected = [
        (p * a * b).sum()
        for a, b in ((by_mean, by_mean), (by_mean, by_logit), (by_logit, by_logit))
    ]
    genes = genes_with(mean, r, dropout)
    found = gene_information(genes)
    assert len(found) == (1 if dropout is None else 3)
    for entry, value in zip(found, expected, strict=False):
        assert entry.item() == pytest.approx(value.item(), rel=1e-5, abs=1e-12)


PROTEINS = [(1.5, 0.4, 3.0, 0.5, 6.0), (2.5, 0.8, 20.0, -2.0, 2.0), (0.0, 0.3, 1.2, 3.0, 30.0)]
FURTHER = [(4.0, 0.25, 5.0, 0.0, 40.0), (-4.0, 0.5, 1.0, 0.0, 1.0)]


@pytest.mark.parametrize(("mean", "scale", "factor", "logit", "r"), PROTEINS)
def test_scores_of_a_protein_are_derivatives_of_the_integral(
    mean: float, scale: float, factor: float, logit: float, r: float
) -> None:
    def log_prob(count: int, at: np.ndarray) -> float:
        def density(e: float) -> float:
            b = torch.tensor(at[0] + np.exp(at[1]) * e)
            terms = (
                torch.tensor(float(count)),
                b,
                b + at[2],
                torch.tensor(np.log(r)),
                torch.tensor(at[3]),
            )
            return float(negative_binomial_mixture_log_prob(*terms).exp()) * stats.norm.pdf(e)

        return float(np.log(quad(density, -9, 9, epsabs=0, epsrel=1e-10, limit=200)[0]))

    at = np.array([mean, np.log(scale), np.log(factor), logit])
    dispersion = Dispersion(torch.full((1, 1), np.log(r)), torch.zeros(1, dtype=torch.long))
    for count in (0, 4, 12):
        y = torch.tensor([[float(count)]], dtype=torch.float64)
        log_p, scores = protein_scores(y, torch.tensor(at)[None, None], dispersion)
        assert log_p.item() == pytest.approx(log_prob(count, at), abs=2e-4)
        found = scores[0, 0].numpy()
        steps = np.eye(4) * 1e-4
        expected = [(log_prob(count, at + e) - log_prob(count, at - e)) / 2e-4 for e in steps]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("protein", [*PROTEINS, *FURTHER])
def test_information_of_a_protein_is_the_expected_square_of_its_scores(
    protein: tuple[float, ...],
) -> None:
    mean, scale, factor, logit, r = protein
    parameters = torch.tensor([mean, np.log(scale), np.log(factor), logit])[None, None].double()
    dispersion = Dispersion(torch.full((1, 1), np.log(r)), torch.zeros(1, dtype=torch.long))
    log_p, scores = protein_scores(COUNTS[:, None], parameters, dispersion)
    p = log_p.exp()[..., None, None]
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    expected = (p * scores[..., None] * scores[..., None, :]).sum(dim=0)[0]
    found = protein_information(parameters, dispersion)[0, 0]
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-3 * expected.max().item())


def test_nats_and_shares_of_matrices() -> None:
    rng = np.random.default_rng(0)
    parts = [a @ a.mT for a in torch.tensor(rng.normal(size=(3, 7, 5, 2)))]
    whole = sum(parts)
    expected = np.linalg.slogdet(np.eye(5) + whole.numpy())[1] / 2
    np.testing.assert_allclose(nats(whole), expected, rtol=1e-12)
    weights = share_weights(whole)
    shares = [torch.einsum("bij,bji->b", weights, part) for part in parts]
    np.testing.assert_allclose(sum(shares), expected, rtol=1e-9)
    at = (np.arange(2000) + 0.5) / 2000
    for part, share in zip(parts, shares, strict=True):
        integrand = [
            np.trace(np.linalg.inv(np.eye(5) + t * whole[0].numpy()) @ part[0].numpy()) / 2
            for t in at
        ]
        assert share[0].item() == pytest.approx(np.mean(integrand), rel=1e-3)
    assert nats(torch.zeros(1, 4, 4)).item() == 0
