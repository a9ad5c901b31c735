"""How well proteins are imputed: measured in cells that measured them, whose proteins are hidden."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from totalvi.data.cells import CiteData
from totalvi.errors import DataError
from totalvi.fit.batches import Minibatch
from totalvi.fit.split import Split
from totalvi.nn.config import at_least_one
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise
from totalvi.posterior.imputation import ImputationQuery, Predicted, predicted_proteins
from totalvi.posterior.question import Asked, Asking, Names

_FEWEST_CELLS = 20  # of which a 90 % interval can be calibrated


class HiddenProteins(NamedTuple):
    """Counts of N cells that were hidden from the model, and what it predicted; each (N, t).

    Parameters
    ----------
    observed
        Counts; NaN where a cell did not measure the protein.
    log1p
        Predicted mean of log(1 + count).
    below
        Probability that it gave to a lower count than the one observed (half of ties included).
    """

    observed: np.ndarray
    log1p: np.ndarray
    below: np.ndarray


class Reliability(NamedTuple):
    """How well each protein is imputed, each (t,); NaN where too few cells tell.

    Parameters
    ----------
    n_cells
        Cells whose counts were hidden.
    pearson, rmse
        Of log(1 + count) and its predicted mean: correlation, and root mean squared error.
    coverage
        Share of counts inside the interval that has the probability asked for, before calibration.
    """

    n_cells: np.ndarray
    pearson: np.ndarray
    rmse: np.ndarray
    coverage: np.ndarray


def without_proteins(
    batches: Iterable[Minibatch], module: TOTALVI, panel: int, batch_codes: np.ndarray
) -> Iterator[Minibatch]:
    """Yield cells as if they came from a panel: its batches, in turn, and only its proteins.

    That is how a cell of that panel reaches the encoder.
    """
    for batch in batches:
        shown = torch.zeros_like(batch.y)
        if module.protein_mask is not None:
            shown = batch.y * module.protein_mask[panel]
        code = torch.from_numpy(batch_codes[batch.cells % len(batch_codes)])
        context = batch.context._replace(
            batch=code.to(batch.context.batch), panel=torch.full_like(batch.context.panel, panel)
        )
        yield batch._replace(y=shown, context=context)


def hidden_proteins(
    predictions: Iterable[tuple[Minibatch, Predicted]], observed: np.ndarray
) -> HiddenProteins:
    """Gather predictions beside the counts ``observed`` (N, t) of the same cells, in their order."""
    parts, start = [], 0
    for batch, predicted in predictions:
        counts = observed[start : start + len(batch.cells)]
        start += len(counts)
        parts.append(
            HiddenProteins(
                counts,
                predicted.log1p_mean(),
                predicted.distribution_function(counts),
            )
        )
    return HiddenProteins(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def reliability(hidden: HiddenProteins, interval: float) -> Reliability:
    """Compare predictions with what was hidden; ``interval`` is the probability of the interval."""
    known = ~np.isnan(hidden.observed)
    n_cells = known.sum(axis=0)
    columns = [
        _of_protein(*(part[known[:, t], t] for part in hidden), interval=interval)
        for t in range(known.shape[1])
    ]
    return Reliability(n_cells, *np.array(columns).reshape(-1, 3).T)


def _of_protein(
    observed: np.ndarray,
    log1p: np.ndarray,
    below: np.ndarray,
    *,
    interval: float,
) -> tuple[float, float, float]:
    if len(observed) < 2:
        return (np.nan,) * 3
    logs = np.log1p(observed)
    varies = logs.std() > 0 and log1p.std() > 0
    return (
        float(np.corrcoef(logs, log1p)[0, 1]) if varies else np.nan,
        float(np.sqrt(((logs - log1p) ** 2).mean())),
        float((np.abs(below - 0.5) <= interval / 2).mean()),
    )


def calibrated_probabilities(hidden: HiddenProteins, interval: float) -> np.ndarray:
    """Return the probabilities between which a share ``interval`` of hidden counts lies, (2, t).

    The predictive distribution functions at the hidden counts are uniform where the model is right;
    their own quantiles at the limits correct it where it is not (Kuleshov, Fenner and Ermon, 2018).
    With too few cells for that, the probabilities are left as asked for.
    """
    limits = np.array([(1 - interval) / 2, (1 + interval) / 2])
    calibrated = np.repeat(limits[:, None], hidden.observed.shape[1], axis=1)
    known = ~np.isnan(hidden.observed)
    for t in np.flatnonzero(known.sum(axis=0) >= _FEWEST_CELLS):
        calibrated[:, t] = np.quantile(hidden.below[known[:, t], t], limits, method="weibull")
    return calibrated


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
        if self.schema.columns.panel_key is None:
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
        return np.where(measured[:, proteins], data.protein.rows(cells)[:, proteins], np.nan)

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
