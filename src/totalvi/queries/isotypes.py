"""The background of proteins against the counts of isotype controls."""

import numpy as np
import pandas as pd

from totalvi.arguments import Cells
from totalvi.errors import DataError
from totalvi.module.options import at_least_one
from totalvi.posterior.draws import Draw
from totalvi.posterior.expression import protein_means
from totalvi.posterior.isotypes import IsotypeCheck, isotype_check
from totalvi.queries.asking import QUERY_BATCH_SIZE, Asked, Asking, Data

_MOST_CELLS = 20_000


class IsotypeQueries(Asking):
    """What the antibodies that bind nothing say of a model's background."""

    def check_isotype_controls(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        n_samples: int = 5,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> IsotypeCheck:
        """Compare the estimated background with the isotype controls, which the model never saw.

        Of more than 20,000 cells, as many evenly spaced ones are looked at.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`; the data must have the controls, among the proteins or
            in a modality "isotype".
        n_samples
            Posterior samples a cell.

        Returns
        -------
        IsotypeCheck
            ``controls``, a row a control: its mean count and its correlation with the cells'
            background; ``proteins``, a row a protein: its background against the controls, and a
            warning where it is more than tenfold above.

        Raises
        ------
        DataError
            When the model has no isotype controls, or the data have none of them.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=10, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> check = model.check_isotype_controls()
        >>> check.controls.index.tolist(), len(check.proteins)
        (['isotype_0'], 9)
        """
        asked = self._asked(adata, indices)
        controls = asked.data.controls
        if not self.schema.control_names:
            raise DataError("The model has no isotype controls: its panel names and marks none.")
        if controls.shape[1] == 0:
            raise DataError(
                f'The data lack the isotype controls, such as "{self.schema.control_names[0]}"; '
                "give data with them."
            )
        if len(asked.cells) > _MOST_CELLS:
            spaced = np.linspace(0, len(asked.cells) - 1, _MOST_CELLS).astype(np.int64)
            asked = Asked(self.module, asked.data, asked.cells[spaced])
        n_proteins = len(self.schema.protein_names)
        background = np.empty((len(asked.cells), n_proteins), dtype=np.float32)
        n_samples, noise = at_least_one("n_samples", n_samples), self._noise(seed)
        with asked.stream(batch_size, "protein background", progress) as batches:
            protein_means(
                self.module, batches, noise, Draw.background_rate, np.arange(n_proteins), background,
                n_samples=n_samples, transform_batches=(None,), return_mean=True,
            )  # fmt: skip
        panel, batch = asked.data.panel[asked.cells], asked.data.batch[asked.cells]
        background[~np.array(self.schema.panel_measured)[panel]] = np.nan
        return isotype_check(
            pd.DataFrame(background, columns=list(self.schema.protein_names)),
            controls.iloc[asked.cells].reset_index(drop=True),
            panel * len(self.schema.batch_names) + batch,
        )
