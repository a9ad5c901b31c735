"""Queries of the latent cell state."""

import numpy as np

from totalvi.arguments import Cells
from totalvi.module.options import at_least_one
from totalvi.posterior.latent import latent_representation
from totalvi.queries.asking import QUERY_BATCH_SIZE, Asking, Data


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
        seed: int = 0,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Return the latent cell state: the mean of q(z | cell), or one sample of it.

        Parameters
        ----------
        adata
            New data with the model's features, batches and annotation. None: the training data.
        indices
            Positions of cells, or a mask. None: all.
        give_mean
            Whether to return the mean; otherwise a sample.
        mc_samples
            Samples for the mean of the logistic normal; the normal's mean is exact.
        batch_size
            Cells at a time.
        seed
            Of the samples. A cell's samples depend on it and the cell's name alone, not on which
            other cells are asked about.
        progress
            Whether to show a progress bar; None: on a terminal.

        Returns
        -------
        (cells, n_latent) float32.
        """
        asked = self._asked(adata, indices)
        n_samples = at_least_one("mc_samples", mc_samples)
        with asked.stream(batch_size, "latent states", progress) as batches:
            return latent_representation(
                self.module, batches, self._noise(seed), give_mean=give_mean, n_samples=n_samples
            )
