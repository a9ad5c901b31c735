"""Queries of how well the model explains cells."""

import numpy as np

from totalvi.arguments import Cells
from totalvi.posterior.evidence import elbo_by_cell
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
        ``protein_efficiency=True``, of scvi-tools' objective, which has a prior term for it).
        Parameters are those of `get_latent_representation`.
        """
        asked = self._asked(adata, indices)
        with asked.stream(batch_size, "evidence", progress) as batches:
            values = elbo_by_cell(self.module, batches, self._noise(seed))
        return float(values.mean(dtype=np.float64)) if return_mean else values
