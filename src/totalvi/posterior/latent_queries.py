"""Queries of the latent cell state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import Cells
from totalvi.posterior.draws import CellNoise
from totalvi.posterior.latent import (
    cell_uncertainty,
    latent_distribution,
    latent_mean,
    latent_samples,
    library_mean,
    library_samples,
)
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asked, Asking, Data, Names
from totalvi.posterior.rows import Table, row_targets


class LatentQueries(Asking):
    """What a model says of the state of cells."""

    def get_latent_representation(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        give_mean: bool = True,
        mc_samples: int = 5000,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        n_samples: int = 1,
        return_dist: bool = False,
        out: str | Path | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Any:
        """Return the latent cell state: the mean of q(z | cell), samples of it, or q itself.

        Parameters
        ----------
        adata
            New data with the model's features, batches and annotation. None: the training data.
        indices
            Positions of cells, or a mask. None: all.
        give_mean
            Whether to return the mean; otherwise samples.
        mc_samples
            Samples for the mean of the logistic normal; the normal's mean is exact.
        batch_size
            Cells at a time.
        n_samples
            Samples a cell, with ``give_mean=False``.
        return_dist
            Whether to return the distribution: ``mean`` and ``variance`` of the normal q(u | cell),
            whatever ``give_mean`` is. u is z, or for the logistic normal what z is the softmax of.
        out
            Folder of a new zarr store to write the mean to, in place of memory: it gets the group
            "latent", which `anndata.read_zarr` reads.
        seed
            Of the samples. A cell's samples depend on it and the cell's name alone, not on which
            other cells are asked about.
        progress
            Whether to show a progress bar; None: on a terminal.

        Returns
        -------
        (cells, n_latent) float32; with ``n_samples`` above 1 (n_samples, cells, n_latent); with
        ``return_dist`` a named tuple of two arrays (cells, n_latent); with ``out``, its path.

        Raises
        ------
        ValueError
            When an argument has a value not allowed.
        OutputError
            When ``out`` exists or cannot be written.
        NotTrainedError
            When the model has not been trained, or its fit failed; so does every other query.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> model.get_latent_representation().shape
        (60, 4)
        >>> model.get_latent_representation(indices=[3, 7], give_mean=False, n_samples=10).shape
        (10, 2, 4)
        """
        asked = self._asked(adata, indices)
        noise = self._noise(seed)
        at_least_one("mc_samples", mc_samples)
        _check_n_samples(n_samples, give_mean or return_dist)
        if out is not None:
            if return_dist or not give_mean:
                raise ValueError("out takes means only; leave give_mean at True, or out at None.")
            return self._write_latent(asked, out, noise, mc_samples, batch_size, progress)
        with asked.stream(batch_size, "latent states", progress) as batches:
            if return_dist:
                return latent_distribution(self.module, batches)
            if give_mean:
                return latent_mean(self.module, batches, noise, n_samples=mc_samples)
            samples = latent_samples(self.module, batches, noise, n_samples=n_samples)
        return samples[0] if n_samples == 1 else samples

    def _write_latent(
        self,
        asked: Asked,
        out: str | Path,
        noise: CellNoise,
        mc_samples: int,
        batch_size: int,
        progress: bool | None,
    ) -> Path:
        names = np.array([f"latent_{i}" for i in range(self.module.n_latent)], dtype=object)
        with (
            row_targets({"latent": Table(asked.cell_names, names)}, out) as targets,
            asked.stream(batch_size, "latent states", progress, out=out) as batches,
        ):
            start = 0
            for batch in batches:
                rows = slice(start, start + len(batch.cells))
                start = rows.stop
                mean = latent_mean(self.module, [batch], noise, n_samples=mc_samples)
                targets["latent"][rows] = mean
        return Path(out)

    def get_latent_library_size(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        give_mean: bool = True,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        n_samples: int = 1,
        seed: int = 0,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Return the RNA library size: the mean exp(m + v / 2) of q(l | cell), or samples of it.

        m and v are the mean and variance of the log library size. A library size that is not latent
        (the total RNA count, or a size factor) is returned as it is.

        Parameters
        ----------
        adata, indices, batch_size, n_samples, seed, progress
            As in `get_latent_representation`.
        give_mean
            Whether to return the mean; otherwise samples.

        Returns
        -------
        (cells, 1) float32; with ``n_samples`` above 1 (n_samples, cells, 1).

        Raises
        ------
        ValueError
            When an argument has a value not allowed.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4, library="latent")
        >>> model.train(max_epochs=2)
        >>> model.get_latent_library_size().shape
        (60, 1)
        """
        asked = self._asked(adata, indices)
        noise = self._noise(seed)
        _check_n_samples(n_samples, give_mean)
        with asked.stream(batch_size, "library sizes", progress) as batches:
            if give_mean:
                return library_mean(self.module, batches)
            samples = library_samples(self.module, batches, noise, n_samples=n_samples)
        return samples[0] if n_samples == 1 else samples

    def get_cell_uncertainty(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 25,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return how sure the model is of each cell.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        transform_batch, protein_list
            As in `get_protein_foreground_probability`: where a panel lacks proteins, decode into
            batches that measured them, or leave them out of the list.
        n_samples
            Posterior samples over which each foreground probability is averaged.

        Returns
        -------
        Data frame of the cells with the columns

        - ``latent_entropy``: entropy of q(u | cell) in nats, sum_j log(2 pi e v_j) / 2, with v_j the
          variance of latent dimension j; it may be below 0;
        - ``latent_variance``: the mean of v_j;
        - ``protein_entropy``: mean over proteins of the entropy, in nats, of whether the protein is
          foreground: 0 where all are certain, log 2 = 0.69 where nothing is known.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or ``protein_list`` is empty.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> list(model.get_cell_uncertainty(n_samples=2))
        ['latent_entropy', 'latent_variance', 'protein_entropy']
        """
        asked = self._asked(adata, indices)
        proteins = self._proteins(protein_list)
        if not len(proteins):
            raise ValueError("protein_list is empty; name at least one protein, or leave it None.")
        codes, noise = self._batch_codes(transform_batch), self._noise(seed)
        n_samples = at_least_one("n_samples", n_samples)
        with asked.stream(batch_size, "uncertainty", progress) as batches:
            uncertainty = cell_uncertainty(
                self.module, batches, noise, proteins,
                n_samples=n_samples, transform_batches=codes,
            )  # fmt: skip
        return pd.DataFrame(uncertainty._asdict(), index=asked.cell_names)


def _check_n_samples(n_samples: int, no_samples: bool) -> None:
    if at_least_one("n_samples", n_samples) > 1 and no_samples:
        raise ValueError(
            f"n_samples is {n_samples}, but no samples are asked for; give give_mean=False as well, "
            "and not return_dist."
        )
