"""What the queries of imputed proteins share: which are asked about, and hiding them where measured."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from totalvi.data.cite import CiteData
from totalvi.errors import DataError
from totalvi.module.options import at_least_one
from totalvi.posterior.imputation import ImputationQuery, predicted_proteins
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.reliability import (
    HiddenProteins,
    hidden_proteins,
    reliability,
    without_proteins,
)
from totalvi.queries.asking import Asked, Asking, Names
from totalvi.training.split import Split

LEAST_PEARSON = 0.7  # of a protein that is called reliable
_MOST_HIDDEN_CELLS = 5000  # tell enough


class HidingProteins(Asking):
    """The base of queries that hide proteins in cells that measured them."""

    split: Split | None

    def _imputation_query(
        self,
        data: CiteData,
        transform_batch: Names,
        protein_list: Sequence[str] | None,
        n_samples: int,
    ) -> ImputationQuery:
        n_samples = at_least_one("n_samples", n_samples)
        proteins, codes = self._proteins(protein_list), self._batch_codes(transform_batch)
        if transform_batch is not None:
            decoded = np.ones((len(codes), len(proteins)), dtype=bool)
            return ImputationQuery(proteins, codes, decoded, n_samples)
        measured = self._measured_in_batches(self._data or data)[:, proteins]
        nowhere = ~measured.any(axis=0)
        if nowhere.any() and self._mapping is None:
            name = self._protein_names(proteins)[nowhere][0]
            raise DataError(
                f'No cell given is of a batch that measured protein "{name}"; give the training '
                "data to Model.load, or name batches with transform_batch."
            )
        choices = (*range(len(measured)), None)  # None: each cell's own batch
        decoded = np.vstack([measured, nowhere])
        used = np.flatnonzero(decoded.any(axis=1))
        return ImputationQuery(proteins, tuple(choices[i] for i in used), decoded[used], n_samples)

    def _measured_in_batches(self, data: CiteData) -> np.ndarray:
        """Return which proteins each batch measured in ``data``, bool (batches, T).

        The batches of a query's reference, none of whose cells are in ``data``, count as having
        measured what all of its panels did: which batch had which panel is not known of them.
        """
        measured = np.array(self.schema.panel_measured)
        if self.schema.keys.panel_key is None:
            return measured  # each batch is a panel
        by_batch = np.zeros((len(self.schema.batch_names), measured.shape[1]), dtype=bool)
        for batch, panel in np.unique([data.batch, data.panel], axis=1).T:
            by_batch[batch] |= measured[panel]
        if self._mapping is not None:
            of_reference = measured[: self._mapping.n_reference_panels]
            by_batch[: self._mapping.n_reference_batches] = of_reference.all(axis=0)
        return by_batch

    def _lacking(self) -> np.ndarray:
        """Return which proteins each panel lacks, bool (panels, T)."""
        return ~np.array(self.schema.panel_measured, dtype=bool)

    def _held_out(self) -> Asked:
        """Return cells of the training data that the fit held out."""
        data = self._training_data()
        assert self.split is not None
        cells = np.sort(np.concatenate([self.split.validation, self.split.test]))
        if not len(cells):
            raise DataError(
                "The fit held out no cell in which proteins could be hidden; train with train_size "
                "below 1, or name cells with indices (impute_proteins: calibrated=False)."
            )
        n_kept = min(len(cells), _MOST_HIDDEN_CELLS)
        kept = np.linspace(0, len(cells) - 1, n_kept).round().astype(np.int64)
        return Asked(self.module, data, cells[kept])

    def _observed(self, data: CiteData, cells: np.ndarray, proteins: np.ndarray) -> np.ndarray:
        """Return the counts of proteins, NaN where a cell's panel did not measure them."""
        measured = np.array(self.schema.panel_measured)[data.panel[cells]]
        return np.where(measured[:, proteins], data.protein[cells][:, proteins], np.nan)

    def _hidden(
        self,
        asked: Asked,
        panel: int,
        batches: np.ndarray,
        query: ImputationQuery,
        batch_size: int,
        noise: CellNoise,
        progress: bool | None = False,
    ) -> HiddenProteins:
        """Predict the counts of cells as if they were of a panel."""
        observed = self._observed(asked.data, asked.cells, query.proteins)
        with asked.stream(batch_size, "hidden proteins", progress) as stream:
            seen = without_proteins(stream, self.module, panel, batches)
            return hidden_proteins(predicted_proteins(self.module, seen, query, noise), observed)


def reliability_table(hidden: HiddenProteins, interval: float, names: np.ndarray) -> pd.DataFrame:
    """Return how well each protein is imputed, a row each."""
    columns = reliability(hidden, interval)._asdict()
    table = pd.DataFrame(columns, index=pd.Index(names))
    return table.assign(reliable=table["pearson"] >= LEAST_PEARSON)
