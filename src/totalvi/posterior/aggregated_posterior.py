"""The aggregated posterior of all cells: how densely groups fill it, what its corners express."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.data.describe import Data
from totalvi.nn.cell import CellContext
from totalvi.nn.coders import Decoded
from totalvi.nn.network import Network
from totalvi.posterior.arguments import Cells, Names, checked_number, documented
from totalvi.posterior.draws import plausible
from totalvi.posterior.latent import latent_distribution
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.rows import Table
from totalvi.posterior.unmeasured import measured_in_batches, rna_in_batches

_PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True)
class AggregatedPosterior:
    """The mixture, in equal parts, of q(u | cell) = N(mean, diag(variance)) over a group of cells.

    u is the latent state z itself, or for the logistic normal what z is the softmax of.

    Parameters
    ----------
    mean, variance
        Of each cell, (cells, n_latent).
    """

    mean: np.ndarray
    variance: np.ndarray

    def log_prob(self, u: np.ndarray, left_out: np.ndarray | None = None) -> np.ndarray:
        """Return the log density at each row of ``u``.

        Points and cells are compared in blocks: no more than some million pairs are held, and no pair
        with all its dimensions.

        Parameters
        ----------
        u
            Points, (points, n_latent).
        left_out
            For each point, the position of a cell that is not part of its mixture, or -1 for none.

        Returns
        -------
        (points,) float64.

        Raises
        ------
        ValueError
            When ``u`` has another width than the latent space, or no cell would be left.
        """
        u = np.asarray(u, dtype=np.float64)
        n_cells, n_latent = self.mean.shape
        if u.ndim != 2 or u.shape[1] != n_latent:
            raise ValueError(f"u has shape {u.shape}; allowed is (points, {n_latent}).")
        if left_out is None:
            left_out = np.full(len(u), -1)
        if n_cells == 1 and (left_out >= 0).any():
            raise ValueError("left_out leaves no cell of a group of one; give a larger group.")
        center = self.mean.mean(axis=0, dtype=np.float64)
        mean, variance = self.mean - center, self.variance.astype(np.float64)
        # multiplied out, sum_j (u_j - m_j)^2 / v_j is two products of matrices
        inverse = (1 / variance).T
        weighted_mean = (mean / variance).T
        constant = (mean**2 / variance + np.log(2 * np.pi * variance)).sum(axis=1)
        result = np.empty(len(u))
        step = max(_PAIRS_AT_ONCE // n_cells, 1)
        for start in range(0, len(u), step):
            rows = slice(start, start + step)
            points, without = u[rows] - center, left_out[rows]
            log_density = -0.5 * (points**2 @ inverse - 2 * (points @ weighted_mean) + constant)
            of_group = np.flatnonzero(without >= 0)
            log_density[of_group, without[of_group]] = -np.inf
            result[rows] = logsumexp(log_density, axis=1) - np.log(n_cells - (without >= 0))
        return result

    def sample(self, n_samples: int, seed: int = 0) -> np.ndarray:
        """Return ``n_samples`` draws of u, (n_samples, n_latent)."""
        rng = np.random.default_rng(seed)
        cells = rng.integers(len(self.mean), size=n_samples)
        noise = rng.standard_normal((n_samples, self.mean.shape[1]))
        drawn: np.ndarray = self.mean[cells] + np.sqrt(self.variance[cells]) * noise
        return drawn


def log_density_by_group(
    mean: np.ndarray, variance: np.ndarray, group: np.ndarray, n_groups: int
) -> np.ndarray:
    """Return the log density of each cell's mean u under each group's aggregated posterior.

    A cell is left out of the mixture of its own group: q(u | cell) is at its highest at the cell's own
    mean, which would make every cell look typical of its group, the more so the smaller the group.

    Parameters
    ----------
    mean, variance
        Of q(u | cell), (cells, n_latent).
    group
        Code of each cell's group, from 0; -1 for cells of none. Each group has two cells or more.

    Returns
    -------
    (cells, n_groups) float64.
    """
    result = np.empty((len(mean), n_groups))
    for code in range(n_groups):
        members = np.flatnonzero(group == code)
        own_position = np.full(len(mean), -1)
        own_position[members] = np.arange(len(members))
        mixture = AggregatedPosterior(mean[members], variance[members])
        result[:, code] = mixture.log_prob(mean, own_position)
    return result


def distinct_contexts(data: CiteData, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one of ``cells`` for each combination of batch and covariates, and the share of each.

    Continuous covariates are left out.
    """
    columns = [data.batch[cells, None]]
    if data.categorical is not None:
        columns.append(data.categorical[cells])
    _, first, counts = np.unique(np.hstack(columns), axis=0, return_index=True, return_counts=True)
    return cells[first], counts / len(cells)


def archetype_expression(
    contexts: Question,
    shares: np.ndarray,
    measured: np.ndarray,
    measured_rna: np.ndarray,
    continuous: np.ndarray | None,
    *,
    include_protein_background: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return RNA proportions and protein means at each corner, (n_latent, features).

    Parameters
    ----------
    contexts
        About one cell for each context to decode in, whose counts do not matter.
    shares
        Weight of each context; they sum to 1.
    measured
        Which proteins each batch measured, (batches, T). Others do not count in a protein's mean.
    measured_rna
        Which batches measured RNA, (batches,).
    continuous
        Continuous covariates that all contexts are given, (covariates,).
    """
    network, codes = contexts.network, contexts.transform_batch
    rna = torch.zeros(network.n_latent, network.n_input_genes, dtype=torch.float64)
    protein = torch.zeros(network.n_latent, network.n_input_proteins, dtype=torch.float64)
    total, total_rna = torch.zeros_like(protein), torch.zeros_like(rna[:, :1])
    start = 0
    with contexts.minibatches("archetypes") as batches:
        for batch in batches:
            n_contexts = len(batch.cells)
            weight = torch.from_numpy(shares[start : start + n_contexts]) / len(codes)
            start += n_contexts
            own = batch.context
            if continuous is not None:
                own = own._replace(continuous=torch.from_numpy(continuous).repeat(n_contexts, 1))
            for code, (k, corner) in product(codes, enumerate(torch.eye(network.n_latent))):
                context = own.in_batch(code)
                decoded = network.decode(corner.repeat(n_contexts, 1), context)
                mean = _protein_mean(network, decoded, context, include_protein_background)
                of_rna = weight * torch.from_numpy(measured_rna)[context.batch]
                rna[k] += of_rna @ network.proportions(decoded).double()
                total_rna[k] += of_rna.sum()
                of_protein = weight[:, None] * torch.from_numpy(measured)[context.batch]
                protein[k] += (of_protein * mean).sum(dim=0)
                total[k] += of_protein.sum(dim=0)
    if not measured_rna.all():
        rna = rna / total_rna
    return rna.numpy(), (protein / total).numpy()


def _protein_mean(
    network: Network, decoded: Decoded, context: CellContext, background: bool
) -> Tensor:
    """Return (1 - pi) E[beta] alpha [+ pi E[beta]], with E[beta] = exp(m + s^2 / 2)."""
    log_mean = decoded.background_mean + 0.5 * decoded.background_scale**2
    mixture = plausible(network.proteins(decoded, log_mean, context, efficiency=False))
    pi, rate = mixture.background_probability(), mixture.background_mean()
    foreground = (1 - pi) * rate * mixture.factor
    return foreground + pi * rate if background else foreground


def z_scores(by_archetype: np.ndarray) -> np.ndarray:
    """Return each feature's standard scores over the archetypes; 0 where all are the same."""
    deviation = by_archetype - by_archetype.mean(axis=0)
    scale = by_archetype.std(axis=0)
    rounding = np.finfo(np.float32).eps * np.abs(by_archetype).max(axis=0)
    varies = scale > rounding
    scores: np.ndarray = varies * deviation / np.where(varies, scale, 1)
    return scores


@documented
class AggregatedPosteriorQueries(Fitted):
    """What a model says of the latent space: how groups of cells fill it, and what its corners are.

    Groups are summed up as mixtures of the posteriors of their cells.
    """

    def get_aggregated_posterior(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        progress: bool | None = None,
    ) -> AggregatedPosterior:
        """Return the aggregated posterior of cells: the mixture of their q(u | cell) in equal parts.

        Parameters
        ----------
        {cells} {batch_size} {progress}

        Returns
        -------
        `AggregatedPosterior`, with ``log_prob(u)`` and ``sample(n_samples, seed)``. u is the latent
        state z, or with ``latent_distribution="ln"`` what z is the softmax of.

        {value_error}

        {fitted_model}
        >>> mixture = model.get_aggregated_posterior(indices=range(30))
        >>> mixture.log_prob(mixture.sample(3)).shape
        (3,)
        """
        question = self._question(adata, indices, batch_size, progress)
        return AggregatedPosterior(*latent_distribution(question))

    def get_archetypes(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        library_size: float = 1.0,
        include_protein_background: bool = False,
        standardize: bool = False,
        batch_size: int = QUERY_BATCH_SIZE,
        progress: bool | None = None,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return what a cell at each corner of the latent space would express.

        With ``latent_distribution="ln"``, a cell's latent state holds shares that sum to one: it lies
        between as many corners, or archetypes, as there are latent dimensions (Gayoso, Steier et al.,
        2021). `get_latent_representation` gives each cell's shares, in the same order. RNA is rho
        times ``library_size``, protein (1 - pi) E[beta] alpha with E[beta] = exp(m + s^2 / 2); nothing
        is sampled.

        Parameters
        ----------
        adata, indices
            Cells in whose batches and categorical covariates the corners are decoded, averaged, with
            their mean continuous covariates. None: the training data; all cells.
        transform_batch
            Batch or batches to decode into instead, averaged.
        {features}
        library_size
            Number that RNA proportions are multiplied by.
        include_protein_background
            Whether to add the background, pi E[beta].
        standardize
            Whether to return standard scores over the archetypes, which show what sets each apart.
        batch_size
            Combinations of batch and covariates decoded at a time.
        progress
            Whether to show a progress bar of these combinations; None: on a terminal, and elsewhere
            a line a minute.

        Returns
        -------
        RNA (archetypes, genes) and protein (archetypes, proteins), rows "archetype 0" and so on. A
        protein is averaged over the batches that measured it, NaN where none did.

        Raises
        ------
        ValueError
            When the latent distribution is "normal", an argument has a value not allowed, or a feature
            or batch is not known.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4, latent_distribution="ln")
        >>> model.train(max_epochs=2)
        >>> rna, protein = model.get_archetypes()
        >>> rna.shape, protein.shape
        ((4, 30), (4, 5))
        """
        question = self._question(
            adata, indices, batch_size, progress, transform_batch=transform_batch
        )
        if self.module.latent_distribution != "ln":
            raise ValueError(
                'latent_distribution is "normal", whose latent space has no corners; build the Model '
                'with latent_distribution="ln" for archetypes.'
            )
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        scale = checked_number("library_size", library_size)
        contexts, shares = distinct_contexts(question.data, question.cells)
        continuous = question.data.continuous
        rna, protein = archetype_expression(
            question.about(contexts),
            shares,
            measured_in_batches(self, self._data or question.data),
            rna_in_batches(self, self._data or question.data),
            None if continuous is None else continuous[question.cells].mean(axis=0),
            include_protein_background=include_protein_background,
        )
        rna, protein = scale * rna[:, genes.positions], protein[:, proteins.positions]
        if standardize:
            rna, protein = z_scores(rna), z_scores(protein)
        index = pd.Index([f"archetype {k}" for k in range(len(rna))])
        return Table(index, genes.names).frame(rna), Table(index, proteins.names).frame(protein)
