"""How strongly each cell was stained, of models with a latent staining level."""

import pandas as pd
from torch import Tensor

from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted


@documented
class StainingQueries(Fitted):
    """What a model says of the technical level of each cell's protein counts."""

    def get_staining_level(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        progress: bool | None = None,
    ) -> pd.Series:
        """Return the mean log staining level of each cell given its protein counts.

        Counts of its proteins, background and foreground, are expected to be exp(level) times those of
        a cell of the same state with level 0, the average: of some antibodies more and of others less;
        this is their mean. Denoised proteins and the background mean are those at level 0. A cell
        without proteins has level 0.

        Parameters
        ----------
        {cells} {batch_size} {progress}

        Returns
        -------
        Series of the cells, natural logarithms.

        Raises
        ------
        ValueError
            When the model was made without ``staining_level=True``.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, staining_level=True, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> model.get_staining_level().shape
        (60,)
        """
        question = self._question(adata, indices, batch_size, progress)
        staining = question.network.staining
        if staining is None:
            raise ValueError(
                "The model has no staining level; make it with Model(..., staining_level=True)."
            )

        def levels(batch: Minibatch) -> Tensor:
            posterior = batch.encode(question.network)
            assert posterior.level_m is not None
            return staining.log_level(posterior.level_m).mean(dim=1)

        return pd.Series(
            question.gather("staining levels", levels), index=question.cell_names, name="log_level"
        )
