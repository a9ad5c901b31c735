"""Lower bound and marginal likelihood against the module's terms and numerical integration."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import totalvi
from counts import SMALL, described, question
from totalvi.data.cells import Columns
from totalvi.data.describe import describe
from totalvi.fit.batches import minibatch
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.evidence import (
    elbo,
    integrated_elbo,
    marginal_log_likelihood,
    reconstruction_error,
)


def ask(network: TOTALVI, cells: np.ndarray, seed: int, batch_size: int = 10) -> np.ndarray:
    asked = question(described(), network, cells, seed, batch_size=batch_size)
    return asked.gather("evidence", lambda batch: elbo(asked, batch))


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_elbo_is_minus_the_terms_of_forward(library: str) -> None:
    """With the posterior's noise gone, forward and the query look at the same point."""
    network = TOTALVI(30, 6, 2, library=library, background_scale="softplus", **SMALL).eval()  # type: ignore[arg-type]
    heads = [network.encoder.z_head] + (
        [network.encoder.library_head] if library == "latent" else []
    )
    with torch.no_grad():
        for head in heads:
            head.log_variance.weight.zero_()
            head.log_variance.bias.fill_(-60)
        network.decoder.background_scale_head.weight.zero_()
        network.decoder.background_scale_head.bias.fill_(-60)
    data, cells = described(), np.array([7, 3, 99])
    batch = minibatch(data, network, cells)
    with torch.no_grad():
        terms = network.elbo(
            batch.x, batch.y, batch.context, batch.library_log_mean, batch.library_log_variance
        )
    expected = -sum(term.numpy() for term in terms)
    np.testing.assert_allclose(ask(network, cells, 0), expected, rtol=0.02)


def test_terms_of_the_integrated_bound() -> None:
    """It is the paper's bound, with log p(y | z) in place of what is of the background's posterior."""
    network = TOTALVI(30, 6, 2, library="observed", protein_efficiency=True, **SMALL).eval()
    with torch.no_grad():
        assert network.log_efficiency is not None
        network.log_efficiency += torch.tensor([[0.4], [-0.7]])
    cells = np.array([7, 3, 99, 60])
    asked = question(described(), network, cells)
    batch = minibatch(described(), network, cells)
    (draw,) = asked.draws(batch)
    values, wide = [], np.linspace(-20, 20, 4001)
    for of_cell in range(4):
        panel, s = int(batch.context.panel[of_cell]), int(batch.context.batch[of_cell])
        prior = network.background_prior_mean[panel] + network.log_efficiency[s]
        scale = network.background_prior_log_scale[panel].exp().detach().double().numpy()
        b = prior.detach().double().numpy() + scale * wide[:, None]  # (grid, proteins)
        alpha = draw.decoded.foreground_factor[of_cell].detach().double().numpy()
        pi = torch.sigmoid(draw.decoded.background_logit[of_cell]).detach().double().numpy()
        r = network.protein_log_r[0].exp().detach().double().numpy()
        y = batch.y[of_cell].numpy()
        back, fore = (stats.nbinom.pmf(y, r, r / (r + np.exp(b) * a)) for a in (1.0, alpha))
        density = (pi * back + (1 - pi) * fore) * stats.norm.pdf(wide)[:, None]
        values.append(np.log(np.trapezoid(density, wide, axis=0)).sum())
    with torch.no_grad():
        ours = integrated_elbo(asked, batch).numpy()
        kl = draw.posterior.latent_kl().numpy()
        errors = reconstruction_error(asked, batch).numpy()
    np.testing.assert_allclose(ours, np.array(values) - errors[:, 0] - kl, rtol=1e-5)


def test_seeds_and_subsets() -> None:
    network, cells = TOTALVI(30, 6, 2, library="observed", **SMALL).eval(), np.arange(40)
    whole = ask(network, cells, 0)
    assert np.array_equal(whole, ask(network, cells, 0))
    assert not np.array_equal(whole, ask(network, cells, 1))
    np.testing.assert_allclose(ask(network, cells[7:9], 0, 2), whole[7:9], rtol=1e-4)


# ------------------------------------------------------------------------- marginal likelihood

N_COPIES = 400
GRID = np.linspace(-6, 6, 121)  # of a latent variable, in units of its prior's scale


def tiny(**options: Any) -> TOTALVI:
    """One latent dimension and one protein: small enough to integrate."""
    generator = torch.Generator().manual_seed(4)
    arguments: dict[str, Any] = {
        "n_hidden": 8, "n_latent": 1, "latent_distribution": "normal", "library": "observed",
        "background_scale": "softplus", "generator": generator,
        "background_prior": ([2.0], [1.0]), **options,
    }  # fmt: skip
    network = TOTALVI(5, 1, 2, **arguments).eval()
    with torch.no_grad():  # a posterior as wide as the prior, so that the samples reach everywhere
        network.encoder.z_head.log_variance.bias.fill_(0.5)
        network.decoder.background_mean_head.bias.fill_(2.0)
        wide = {"softplus": 1.2, "exp": 0.3}[network.decoder.background_scale]
        network.decoder.background_scale_head.bias.fill_(wide)
        if network.library == "latent":
            network.encoder.library_head.mean.weight.zero_()
            network.encoder.library_head.mean.bias.fill_(2.5)
            network.encoder.library_head.log_variance.weight.zero_()
            network.encoder.library_head.log_variance.bias.fill_(-1.0)
    return network


def tiny_batch(network: TOTALVI) -> Minibatch:
    rng = np.random.default_rng(0)
    data = described(40)
    batch = minibatch(data, network, np.array([3, 9, 20, 33]))
    x = torch.from_numpy(rng.poisson(3.0, (4, 5)).astype(np.float32))
    y = torch.tensor([[3.0], [60.0], [9.0], [0.0]])
    context = batch.context
    if network.library == "observed":
        context = context._replace(library_size=x.sum(dim=1, keepdim=True))
    else:
        ones = torch.ones(4, 1)
        batch = batch._replace(library_log_mean=2.5 * ones, library_log_variance=0.3 * ones)
    return batch._replace(x=x, y=y, context=context)  # type: ignore[arg-type]


def log_trapezoid(log_values: np.ndarray) -> np.ndarray:
    """Integrate over the last axis, a grid of a standard normal variable, weighted by its density."""
    log_density = stats.norm.logpdf(GRID) + np.log(GRID[1] - GRID[0])
    integral: np.ndarray = logsumexp(log_values + log_density, axis=-1)
    return integral


@torch.no_grad()
def integrated(network: TOTALVI, batch: Minibatch, cell: int) -> float:
    """log p(x, y) of one cell by nested sums over grids of u, b and log l, with scipy's densities."""
    one = torch.tensor([cell]).repeat(len(GRID))
    context = batch.context._replace(
        batch=batch.context.batch[one],
        panel=batch.context.panel[one],
        library_size=None,
    )
    u = torch.from_numpy(GRID.astype(np.float32))[:, None]
    decoded = network.decode(network.transform_latent(u), context)
    assert decoded.gene_logit is not None
    rho = torch.softmax(decoded.gene_logit.double(), dim=1).numpy()
    x, y = np.asarray(batch.x)[cell], float(batch.y[cell, 0])

    def log_nb(count: Any, mean: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.asarray(stats.nbinom.logpmf(count, r, r / (r + mean)))

    r_gene = network.gene_log_r.exp().double().numpy()[0]
    if batch.library_log_mean is None:
        assert batch.context.library_size is not None
        library = np.array([float(batch.context.library_size[cell])])
        log_gene = log_nb(x, library * rho, r_gene).sum(axis=1)
    else:
        assert batch.library_log_variance is not None
        scale = float(batch.library_log_variance[cell].sqrt())
        library = np.exp(float(batch.library_log_mean[cell]) + scale * GRID)
        mean = library[None, :, None] * rho[:, None, :]  # (u, l, genes)
        log_gene = log_trapezoid(log_nb(x, mean, r_gene).sum(axis=2))
    if network.protein_mask is not None and not network.protein_mask[batch.context.panel[cell], 0]:
        return float(log_trapezoid(log_gene))
    panel = int(batch.context.panel[cell])
    prior_mean = float(network.background_prior_mean[panel, 0])
    prior_scale = float(network.background_prior_log_scale[panel, 0].exp())
    beta = np.exp(prior_mean + prior_scale * GRID)[None, :]
    alpha = decoded.foreground_factor.double().numpy()
    pi = torch.sigmoid(decoded.background_logit.double()).numpy()
    r = network.protein_log_r.exp().double().numpy()[0]
    mixture = pi * np.exp(log_nb(y, beta, r)) + (1 - pi) * np.exp(log_nb(y, beta * alpha, r))
    return float(log_trapezoid(log_gene + log_trapezoid(np.log(mixture))))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"latent_distribution": "ln", "n_latent": 1},
        {"library": "latent"},
        {"protein_batch_mask": [[True], [False]]},
        {"background_scale": "exp"},
    ],
    ids=["normal", "ln", "latent library", "masked", "exp"],
)
def test_marginal_likelihood_agrees_with_numerical_integration(options: dict[str, Any]) -> None:
    network = tiny(**options)
    batch = tiny_batch(network)
    exact = [integrated(network, batch, cell) for cell in range(4)]
    # copies of a cell with noise of their own stand for more samples, at less time
    values = marginal(network, copies(batch, N_COPIES), n_samples=50)
    ours = logsumexp(values.reshape(N_COPIES, 4), axis=0) - np.log(N_COPIES)
    np.testing.assert_allclose(ours, exact, atol=0.03)


@torch.no_grad()
def marginal(network: TOTALVI, batch: Minibatch, n_samples: int) -> np.ndarray:
    asked = question(described(10), network, batch.cells, n_samples=n_samples)
    return marginal_log_likelihood(asked, batch).numpy()


def copies(batch: Minibatch, n: int) -> Minibatch:
    assert isinstance(batch.x, torch.Tensor)
    log_mean, log_variance = batch.library_log_mean, batch.library_log_variance
    return Minibatch(
        cells=np.tile(batch.cells, n),
        keys=np.arange(n * len(batch.cells), dtype=np.uint64),
        x=batch.x.repeat(n, 1),  # type: ignore[arg-type]
        y=batch.y.repeat(n, 1),
        context=batch.context.repeat(n),
        library_log_mean=None if log_mean is None else log_mean.repeat(n, 1),
        library_log_variance=None if log_variance is None else log_variance.repeat(n, 1),
    )


def test_one_sample_of_many_proteins_is_near_a_hundred() -> None:
    """Only z is sampled: the backgrounds of 60 proteins, sampled as well, would cost tens of nats."""
    mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=60, n_isotype_controls=0, seed=1)
    data = describe(mdata, Columns())
    network = TOTALVI(
        30, 60, 1, library="observed", background_scale="softplus",
        background_prior=(np.full(60, 2.0), np.full(60, 0.7)), **SMALL,
    ).eval()  # fmt: skip
    with torch.no_grad():  # a posterior of z as narrow as that of a fit
        network.encoder.z_head.log_variance.bias.fill_(-3)
        network.encoder.z_head.mean.weight.mul_(0.05)

    def estimate(n_samples: int) -> float:
        asked = question(data, network, np.arange(60), n_samples=n_samples)
        values = asked.gather("marginal", lambda batch: marginal_log_likelihood(asked, batch))
        return float(values.mean())

    assert 0 < estimate(100) - estimate(1) < 3


@pytest.mark.parametrize("options", [{}, {"library": "latent"}], ids=["observed", "latent"])
def test_integrated_elbo_lies_between_the_bound_of_the_paper_and_the_evidence(
    options: dict[str, Any],
) -> None:
    network = tiny(**options)
    batch = tiny_batch(network)
    exact = np.array([integrated(network, batch, cell) for cell in range(4)])
    many = copies(batch, N_COPIES)
    asked = question(described(10), network, many.cells)
    with torch.no_grad():
        bounds = [
            bound(asked, many).numpy().reshape(N_COPIES, 4).mean(axis=0)
            for bound in (elbo, integrated_elbo)
        ]
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < exact).all()


def test_marginal_likelihood_rises_with_samples_and_exceeds_the_lower_bound() -> None:
    network = TOTALVI(30, 6, 2, library="latent", **SMALL).eval()
    data, cells = described(), np.arange(60)

    def estimate(n_samples: int, seed: int = 0) -> float:
        asked = question(data, network, cells, seed, n_samples=n_samples)
        values = asked.gather("marginal", lambda batch: marginal_log_likelihood(asked, batch))
        assert values.shape == (60,)
        return float(values.mean())

    def lower_bound(seed: int) -> float:
        asked = question(data, network, cells, seed)
        return float(asked.gather("evidence", lambda batch: integrated_elbo(asked, batch)).mean())

    bound = np.mean([lower_bound(seed) for seed in range(20)])
    estimates = [estimate(n) for n in (1, 10, 100, 1000)]
    assert np.all(np.diff([bound, *estimates[1:]]) > 0)
    one_sample = np.mean([estimate(1, seed) for seed in range(40)])
    assert one_sample == pytest.approx(bound, rel=0.05)  # one weight is the lower bound on average


def test_weights_do_not_depend_on_unmeasured_proteins() -> None:
    mask = [[True] * 6, [True, True, False, False, True, True]]
    network = TOTALVI(30, 6, 2, library="observed", protein_batch_mask=mask, **SMALL).eval()
    data = described()
    batch = minibatch(data, network, np.flatnonzero(data.batch == 1)[:10])
    with torch.no_grad():
        network.encoder.trunk.first.others.weight.zero_()  # counts may reach no other term
        changed = batch._replace(y=batch.y + torch.tensor([0, 0, 50.0, 7, 0, 0]))
        a, b = (marginal(network, y, n_samples=3) for y in (batch, changed))
        prior = network.background_prior_mean.clone()
        network.background_prior_mean[1, 2:4] += 5
        c = marginal(network, batch, n_samples=3)
        network.background_prior_mean.copy_(prior)
        network.background_prior_mean[1, 0] += 5
        d = marginal(network, batch, n_samples=3)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(a, c, rtol=1e-6)
    assert not np.allclose(a, d, rtol=1e-3)


def test_reconstruction_error_is_the_average_of_the_terms() -> None:
    network, data = TOTALVI(30, 6, 2, library="observed", **SMALL).eval(), described()
    cells = np.arange(30)

    def errors(n_samples: int, seed: int) -> np.ndarray:
        asked = question(data, network, cells, seed, batch_size=11, n_samples=n_samples)
        return asked.gather("error", lambda batch: reconstruction_error(asked, batch))

    batch = minibatch(data, network, cells)
    with torch.no_grad():
        terms = [network.elbo(batch.x, batch.y, batch.context) for _ in range(200)]
    gene = torch.stack([t.reconst_loss_gene for t in terms]).mean(dim=0).numpy()
    protein = torch.stack([t.reconst_loss_protein for t in terms]).mean(dim=0).numpy()
    ours = errors(200, 0)
    np.testing.assert_allclose(ours[:, 0], gene, rtol=0.05)
    np.testing.assert_allclose(ours[:, 1], protein, rtol=0.2)
    assert np.array_equal(ours, errors(200, 0))
    assert not np.array_equal(errors(1, 0), errors(1, 1))
