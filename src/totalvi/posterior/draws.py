"""Posterior samples of a minibatch, one after the other: what every Monte Carlo query is made of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.errors import BackgroundError
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.cell import CellContext
from totalvi.nn.coders import CellPosterior, Decoded
from totalvi.nn.count_integrals import (
    LARGEST_SCALE,
    CountPosterior,
    count_posterior,
)
from totalvi.nn.likelihoods import (
    ProteinMixture,
    negative_binomial_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from totalvi.nn.network import Network
from totalvi.posterior.noise import CellNoise, Drawn, Purpose, negative_binomial_counts

_LARGEST_LOG_BACKGROUND = 30.0  # this is 1e13 counts


def plausible(mixture: ProteinMixture, proteins: np.ndarray | None = None) -> ProteinMixture:
    """Return the distribution of proteins, once no background mean is beyond 1e13 counts.

    No fit to counts gives such a mean; one that went wrong does, and its exponential, which may not
    even be finite, answers nothing.

    Parameters
    ----------
    proteins
        Positions of the proteins. None: all.

    Raises
    ------
    BackgroundError
        When a log background is above 30, or not a number.
    """
    if not (mixture.log_background <= _LARGEST_LOG_BACKGROUND).all():
        wrong = ~(mixture.log_background <= _LARGEST_LOG_BACKGROUND).all(dim=0)
        column = int(wrong.nonzero()[0])
        raise BackgroundError(column if proteins is None else int(proteins[column]))
    return mixture


@contextmanager
def naming_proteins(names: Sequence[str]) -> Iterator[None]:
    """Name the protein in the errors of `plausible`, which knows its position only."""
    try:
        yield
    except BackgroundError as error:
        raise BackgroundError(error.protein, names) from None


class Draw(NamedTuple):
    """One posterior sample of a minibatch's cells, decoded.

    Parameters
    ----------
    sample
        Number of the sample.
    posterior
        Of the latent state and the library size; the same for every sample of a minibatch.
    context
        What the cells were decoded as.
    untran_z, library_size, log_library
        Latent state u (B, d), library size (B, 1) and its logarithm (None where it is known).
    level
        Standardised staining level, (B, 1); None where the model has none.
    decoded
        Parameters of the counts; the products as wide as the genes are taken when they are read.
    proteins
        Distribution of the protein counts at a sample of the log background, without the batch's
        protein efficiency, (B, T); at beta's expectation given z where ``given`` is not None.
    given
        What the proteins' counts say, where values given the counts are meant.
    """

    sample: int
    posterior: CellPosterior
    context: CellContext
    untran_z: Tensor
    library_size: Tensor
    log_library: Tensor | None
    level: Tensor | None
    decoded: Decoded
    proteins: ProteinMixture
    given: CountPosterior | None = None

    def expecting_background(self) -> Self:
        """Return the same with the background mean at its expectation, E[beta | z].

        What is linear in beta has the same average over such draws as over samples, with less noise.
        """
        log_background = _log_expected_background(self.decoded, self.given is not None)
        return self._replace(proteins=self.proteins._replace(log_background=log_background))

    def expression(self) -> ProteinMixture:
        """Return the probability and the mean rate of each component, (B, T)."""
        return self.proteins if self.given is None else self.given.expression(self.proteins)

    def foreground_probability(self) -> Tensor:
        """Return the probability that each protein is foreground, (B, T)."""
        return self.expression().foreground_probability()

    def background_mean(self) -> Tensor:
        """Return beta, (B, T), once it is plausible."""
        prior = plausible(self.proteins)
        return prior.background_mean() if self.given is None else self.given.background_mean(prior)


def _log_expected_background(decoded: Decoded, given_counts: bool) -> Tensor:
    """Return log E[beta | z], (B, T); given counts, with the scale that their posterior is of."""
    scale = decoded.background_scale
    if given_counts:
        scale = scale.clamp(max=LARGEST_SCALE)
    return decoded.background_mean + scale**2 / 2


@dataclass(frozen=True)
class ProteinScale:
    """Which expression of proteins is meant: E[(1 - pi) beta alpha], or a variant of it.

    Parameters
    ----------
    sample_mixing
        Whether each protein is drawn to be background or foreground, in place of weighting both.
    sum_to_one
        Whether the proteins of a cell are made to sum to one.
    include_background
        Whether the background pi beta is part of it.
    """

    sample_mixing: bool = False
    sum_to_one: bool = False
    include_background: bool = False

    def parts(self, draw: Draw, noise: CellNoise, keys: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the foreground and the background part of cells with ``keys`` (B,), each (B, T)."""
        plausible(draw.proteins)
        mixture = draw.expression()
        in_background = mixture.background_probability()
        if self.sample_mixing:
            in_background = drawn_background(in_background, noise, draw.sample, keys)
        foreground = mixture.mean(background=False, in_background=in_background)
        background = torch.zeros_like(foreground)
        if self.include_background:
            background = in_background * mixture.background_mean()
        if self.sum_to_one:
            both = F.normalize(torch.cat([foreground, background], dim=1), p=1, dim=1)
            foreground, background = both.chunk(2, dim=1)
        return foreground, background


FOREGROUND = ProteinScale()


def drawn_background(
    probability: Tensor, noise: CellNoise, sample: int, keys: np.ndarray
) -> Tensor:
    """Return 1 where a protein is drawn to be background, which it is with ``probability``, else 0.

    Every query draws it from the same noise, (B, all proteins of the model).
    """
    uniform = noise.uniform("mixing", sample, keys, probability.shape[1]).to(probability.device)
    return (uniform < probability).to(probability.dtype)


def draws(
    module: Network,
    batch: Minibatch,
    n_samples: int,
    noise: CellNoise,
    transform_batches: Sequence[int | None] = (None,),
    *,
    first_sample: int = 0,
    given_counts: bool = False,
    genes: bool = True,
) -> Iterator[Draw]:
    """Yield ``n_samples`` posterior samples of a minibatch, each decoded into each batch in turn.

    The cells are encoded once. The batches decoded into share the noise of a sample, so that decoding
    into a cell's own batch changes nothing.

    Parameters
    ----------
    transform_batches
        Codes of the batches to decode into; None: each cell's own.
    first_sample
        Number of the first sample.
    given_counts
        Whether proteins are given their counts, in place of a sample of their background. What a count
        says of its cell, decoded into the cell's own batch, is taken along into other batches.
    genes
        Whether genes are decoded as well.
    """
    posterior = module.masks.known_library(
        batch.encode(module),
        batch.context.panel, batch.library_log_mean, batch.library_log_variance,
    )  # fmt: skip
    for sample in range(first_sample, first_sample + n_samples):
        untran_z = module.latent_at(
            posterior, _normal(noise, "latent", sample, batch, module.n_latent)
        )
        library_size, log_library = posterior.library_at(
            batch.context, _normal(noise, "library", sample, batch, 1)
        )
        level = None
        if posterior.level_m is not None:
            level = posterior.level_at(_normal(noise, "staining", sample, batch, 1))
        of_cells = module.at_level(batch.context, level)
        z = module.transform_latent(untran_z)
        if given_counts:
            own = _decoded(module, z, of_cells, None, genes=genes)
            given = _count_posterior(module, batch, of_cells, own)
        else:
            width, given = module.n_input_proteins, None
            background_noise = _normal(noise, "background", sample, batch, width)
        for code in transform_batches:
            context = of_cells.in_batch(code)
            decoded = (
                own
                if given_counts and code is None
                else _decoded(module, z, context, code, genes=genes)
            )
            log_background = (
                _log_expected_background(decoded, given_counts)
                if given_counts
                else decoded.background_mean + decoded.background_scale * background_noise
            )
            proteins = module.proteins(decoded, log_background, context, efficiency=False)
            yield Draw(
                sample, posterior, context, untran_z, library_size, log_library, level, decoded,
                proteins, given,
            )  # fmt: skip


def _decoded(
    module: Network, z: Tensor, context: CellContext, code: int | None, *, genes: bool
) -> Decoded:
    """Decode cells; in a mosaic, into their own batch with the prior of what their panel lacks.

    The decoder has not learned the background of a protein in a batch that never measured it. It is not
    answered there, but may be so large that it is no number.
    """
    decoded = module.decode(z, context, genes=genes)
    measured = module.measured(context.panel)
    if code is not None or module.rna_mask is None or measured is None:
        return decoded
    mean, log_scale = module.background_prior_mean, module.background_prior_log_scale
    return decoded._replace(
        background_mean=torch.where(measured, decoded.background_mean, mean[context.panel]),
        background_scale=torch.where(
            measured, decoded.background_scale, log_scale[context.panel].exp()
        ),
    )


def _count_posterior(
    module: Network, batch: Minibatch, context: CellContext, decoded: Decoded
) -> CountPosterior:
    """Return what the counts of a minibatch say of proteins decoded into the cells' own context."""
    proteins = module.proteins(decoded, decoded.background_mean, context)
    return count_posterior(
        batch.y, proteins, decoded.background_scale,
        module.measured(context.panel), fast=module.fused,
    )  # fmt: skip


def _normal(
    noise: CellNoise,
    purpose: Purpose,
    sample: int,
    batch: Minibatch,
    width: int,
) -> Tensor:
    return noise.normal(purpose, sample, batch.keys, width).to(batch.device)


class GeneParameters(NamedTuple):
    """Parameters of the RNA counts of B cells and g genes.

    Parameters
    ----------
    log_mean
        Of the negative binomial, (B, g).
    log_r
        Log inverse dispersion, (1, g) or (B, g).
    dropout_logit
        Of the zero inflation, (B, g); None without.
    """

    log_mean: Tensor
    log_r: Tensor
    dropout_logit: Tensor | None

    def log_prob(self, observed: Tensor) -> Tensor:
        """Return log p of each count, (B, g); log-gamma is taken only at those above zero."""
        log_mean, log_r, dropout = self
        cell, gene = observed.nonzero(as_tuple=True)
        counts, log_mean_above = observed[cell, gene], log_mean[cell, gene]
        log_r_above = log_r.expand_as(log_mean)[cell, gene]
        zero = torch.zeros((), dtype=observed.dtype, device=observed.device)
        if dropout is None:
            log_prob = negative_binomial_log_prob(zero, log_mean, log_r)
            above = negative_binomial_log_prob(counts, log_mean_above, log_r_above)
        else:
            log_prob = zero_inflated_negative_binomial_log_prob(zero, log_mean, log_r, dropout)
            above = zero_inflated_negative_binomial_log_prob(
                counts, log_mean_above, log_r_above, dropout[cell, gene]
            )
        log_prob[cell, gene] = above
        return log_prob


def gene_parameters(network: Network, draw: Draw, genes: np.ndarray) -> GeneParameters:
    """Return the parameters of the counts of the genes at positions ``genes``."""
    some = _selection(genes, network.n_input_genes)
    likelihood = network.genes(draw.decoded, draw.library_size, draw.context)
    dropout = likelihood.dropout_logit()
    return GeneParameters(
        log_mean=likelihood.log_mean()[:, some],
        log_r=likelihood.log_r[:, some],
        dropout_logit=None if dropout is None else dropout[:, some],
    )


def protein_mixture(network: Network, draw: Draw, proteins: np.ndarray) -> ProteinMixture:
    """Return the distribution of the counts of the proteins at positions ``proteins``."""
    mixture = network.proteins(draw.decoded, draw.proteins.log_background, draw.context)
    return plausible(mixture.take(_selection(proteins, network.n_input_proteins)), proteins)


def _selection(positions: np.ndarray, n: int) -> slice | np.ndarray:
    """Return a slice when all features are wanted, which spares a copy."""
    return slice(None) if np.array_equal(positions, np.arange(n)) else positions


def gene_counts(
    parameters: GeneParameters,
    noise: CellNoise,
    sample: int,
    keys: np.ndarray,
    genes: np.ndarray,
) -> np.ndarray:
    """Return RNA counts (B, g) of cells with ``keys`` for the genes at positions ``genes``."""
    dropout = parameters.dropout_logit
    return negative_binomial_counts(
        Drawn(noise, sample, keys, genes),
        parameters.log_mean.exp().cpu().numpy(),
        parameters.log_r.exp().cpu().numpy(),
        None if dropout is None else dropout.sigmoid().cpu().numpy(),
    )


def protein_counts(
    network: Network,
    mixture: ProteinMixture,
    noise: CellNoise,
    sample: int,
    keys: np.ndarray,
    proteins: np.ndarray,
) -> np.ndarray:
    """Return protein counts (B, t) of cells with ``keys`` for the proteins at positions ``proteins``.

    Which counts are background is the same draw as in denoised expression with
    ``sample_protein_mixing``.
    """
    uniform = noise.uniform("mixing", sample, keys, network.n_input_proteins)[:, proteins]
    in_background = mixture.background_probability()
    is_background = uniform.to(in_background.device) < in_background
    log_mean = torch.where(is_background, mixture.log_background, mixture.log_foreground)
    numbers = network.n_input_genes + proteins  # proteins are numbered after the genes
    return negative_binomial_counts(
        Drawn(noise, sample, keys, numbers),
        log_mean.exp().cpu().numpy(),
        mixture.log_r.exp().cpu().numpy(),
    )
