"""The aggregated posterior of a group of cells, and how dense each group is where a cell lies."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from totalvi.data.finding import did_you_mean
from totalvi.errors import DataError
from totalvi.posterior.arguments import Cells
from totalvi.posterior.latent import latent_distribution
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asked, Asking, Data

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
        # sum_j (u_j - m_j)^2 / v_j, multiplied out, is two products of matrices
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
        return self.mean[cells] + np.sqrt(self.variance[cells]) * noise


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


class AbundanceQueries(Asking):
    """What a model says of how groups of cells fill the latent space."""

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
        adata, indices, batch_size, progress
            As in `get_latent_representation`.

        Returns
        -------
        `AggregatedPosterior`, with ``log_prob(u)`` and ``sample(n_samples, seed)``. u is the latent
        state z, or with ``latent_distribution="ln"`` what z is the softmax of.

        Raises
        ------
        ValueError
            When an argument has a value not allowed.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> mixture = model.get_aggregated_posterior(indices=range(30))
        >>> mixture.log_prob(mixture.sample(3)).shape
        (3,)
        """
        asked = self._asked(adata, indices)
        with asked.stream(batch_size, "latent states", progress) as batches:
            return AggregatedPosterior(*latent_distribution(self.module, batches))

    def differential_abundance(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        sample_key: str,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return how dense each sample is, in the latent space, where each cell lies.

        It is the log density of the mean of q(u | cell) under each sample's aggregated posterior; the
        difference of two columns is the log ratio of abundances around the cell, each relative to its
        sample's size. A cell is left out of the mixture of its own sample, which it would otherwise
        make look dense: the smaller the sample, the more.

        Every cell is compared with every other, in blocks: time grows with the square of the cells.

        Parameters
        ----------
        adata, indices, batch_size, progress
            As in `get_latent_representation`.
        sample_key
            Column of ``obs`` with each cell's sample; cells without a value are of none. The samples
            should not also be the model's batches, whose differences the model takes out.

        Returns
        -------
        Data frame (cells, samples) of log densities in nats.

        Raises
        ------
        DataError
            When the column is missing, holds no sample, or a sample has fewer than two of the cells.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, n_cell_types=3, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> model.differential_abundance(sample_key="cell_type").shape
        (60, 3)
        """
        asked = self._asked(adata, indices)
        group, names = _samples_of(asked, sample_key)
        with asked.stream(batch_size, "latent states", progress) as batches:
            mean, variance = latent_distribution(self.module, batches)
        density = log_density_by_group(mean, variance, group, len(names))
        return pd.DataFrame(density, index=asked.cell_names, columns=names)


def _samples_of(asked: Asked, sample_key: str) -> tuple[np.ndarray, pd.Index]:
    """Return the code of each cell's sample, -1 for none, and the samples' names."""
    obs = asked.data.annotation.obs()
    if sample_key not in obs:
        raise DataError(
            f"obs has no column {sample_key!r}; {did_you_mean(sample_key, obs.columns)}."
        )
    samples = pd.Categorical(obs[sample_key].iloc[asked.cells]).remove_unused_categories()
    if not len(samples.categories):
        raise DataError(f"obs[{sample_key!r}] holds no sample; fill the column.")
    counts = np.bincount(samples.codes[samples.codes >= 0], minlength=len(samples.categories))
    if counts.min() < 2:
        alone = samples.categories[int(counts.argmin())]
        raise DataError(
            f"obs[{sample_key!r}]: sample {str(alone)!r} has one cell; a sample needs two or more, or "
            "leave its cell out by indices."
        )
    return np.asarray(samples.codes, dtype=np.int64), pd.Index(samples.categories, name=sample_key)
