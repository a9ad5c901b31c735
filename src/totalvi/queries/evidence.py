"""Queries of how well the model explains cells."""

import numpy as np
import pandas as pd

from totalvi.arguments import Cells
from totalvi.module.options import at_least_one
from totalvi.posterior.evidence import (
    elbo_by_cell,
    marginal_log_likelihood_by_cell,
    reconstruction_error_by_cell,
)
from totalvi.queries.asking import QUERY_BATCH_SIZE, Asking, Data


class EvidenceQueries(Asking):
    """What a model says of how well it explains cells."""

    def get_elbo(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        return_mean: bool = True,
        seed: int = 0,
        progress: bool | None = None,
    ) -> float | np.ndarray:
        """Return the evidence lower bound in nats by cell: their mean, or that of each cell.

        Higher is better; it is minus the loss of the paper's objective (with
        ``protein_efficiency=True``, of scvi-tools' objective, which has a prior term for it). Its
        expectations are from one posterior sample a cell, its divergences in closed form.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        return_mean
            Whether to return the mean over cells; otherwise each cell's.

        Returns
        -------
        A number, or with ``return_mean=False`` an array (cells,).

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
        >>> model.get_elbo(return_mean=False).shape
        (60,)
        """
        asked = self._asked(adata, indices)
        with asked.stream(batch_size, "evidence", progress) as batches:
            values = elbo_by_cell(self.module, batches, self._noise(seed))
        return float(values.mean(dtype=np.float64)) if return_mean else values

    def get_reconstruction_error(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        n_samples: int = 1,
        return_mean: bool = True,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Return how badly cells' counts are reconstructed, in nats by cell: lower is better.

        The error of the genes is -E[log p(x | z, l)], that of the proteins -E[log p(y | z, b)] over
        the proteins measured in the cell, with the expectation over the posterior.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        n_samples
            Posterior samples a cell, averaged.
        return_mean
            Whether to return the mean over cells; otherwise each cell's.

        Returns
        -------
        "gene", "protein" and their sum "total": a series, or with ``return_mean=False`` a data frame
        (cells, 3).

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
        >>> list(model.get_reconstruction_error().index)
        ['gene', 'protein', 'total']
        """
        asked = self._asked(adata, indices)
        n_samples, noise = at_least_one("n_samples", n_samples), self._noise(seed)
        with asked.stream(batch_size, "reconstruction error", progress) as batches:
            errors = reconstruction_error_by_cell(self.module, batches, noise, n_samples=n_samples)
        table = pd.DataFrame(errors, index=asked.cell_names, columns=["gene", "protein"])
        table["total"] = table["gene"] + table["protein"]
        return table.mean() if return_mean else table

    def get_marginal_ll(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        n_mc_samples: int = 1000,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        return_mean: bool = True,
        seed: int = 0,
        progress: bool | None = None,
    ) -> float | np.ndarray:
        """Return an estimate of the marginal log-likelihood log p(x, y) in nats by cell.

        It is ``log 1/K sum_k p(x|z,l) p(y|z,b) p(z) p(l) p(b) / (q(z) q(l) q(b|z))`` over K samples of
        the posterior (Burda, Grosse and Salakhutdinov, 2016): on average at or above the evidence
        lower bound, at or below log p(x, y), and nearer to it with more samples. The library size
        counts only where it is latent; proteins that were not measured in a cell do not count. With
        ``protein_efficiency=True`` the efficiency is a parameter like the network's weights.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        n_mc_samples
            K. Its samples are decoded one after the other, so that memory does not grow with it.
        return_mean
            Whether to return the mean over cells; otherwise each cell's.

        Returns
        -------
        A number, or with ``return_mean=False`` an array (cells,).

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
        >>> model.get_marginal_ll(n_mc_samples=20) > model.get_elbo()
        True
        """
        asked = self._asked(adata, indices)
        n_samples, noise = at_least_one("n_mc_samples", n_mc_samples), self._noise(seed)
        with asked.stream(batch_size, "marginal likelihood", progress) as batches:
            values = marginal_log_likelihood_by_cell(
                self.module, batches, noise, n_samples=n_samples
            )
        return float(values.mean()) if return_mean else values
