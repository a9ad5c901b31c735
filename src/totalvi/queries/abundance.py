"""Queries of where groups of cells lie in the latent space."""

import numpy as np
import pandas as pd

from totalvi.arguments import Cells
from totalvi.data.finding import did_you_mean
from totalvi.errors import DataError
from totalvi.posterior.aggregate import AggregatedPosterior, log_density_by_group
from totalvi.posterior.latent import latent_distribution
from totalvi.queries.asking import QUERY_BATCH_SIZE, Asked, Asking, Data


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
