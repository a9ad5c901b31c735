"""What every query of `Model` starts from: a fitted network, the cells it is about, their noise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.cells import CiteData, QueryMapping, Schema
from totalvi.data.counts import evenly_spaced
from totalvi.data.describe import Data
from totalvi.errors import DataError, NotTrainedError, allowed, argument, did_you_mean
from totalvi.fit.batches import minibatches
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.model_state import CountCalibration, FitResult, are_cells_of_fit
from totalvi.fit.plan import Split
from totalvi.nn.config import at_least_one
from totalvi.nn.network import Network
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.arguments import (
    Cells,
    Names,
    cell_positions,
    feature_positions,
)
from totalvi.posterior.draws import Draw, draws, naming_proteins
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.rows import Table, own_rows, row_targets
from totalvi.processes import this_process
from totalvi.progress import cell_progress

QUERY_BATCH_SIZE = 1024
_MOST_HIDDEN_CELLS = 5000  # these are enough to tell how well proteins are imputed
_QUERY = 3  # tells queries from the other uses of a model's seed: see `totalvi.model`


@dataclass(frozen=True)
class Question:
    """What a query asks of a network: about which cells, and how these are sampled and decoded.

    Parameters
    ----------
    network
        A fitted network.
    data
        Cells aligned with it.
    cells
        Positions in ``data`` of the cells that the question is about.
    noise
        Source of the posterior samples.
    batch_size
        Cells at a time.
    transform_batch
        Codes of the batches to decode into; None: each cell's own.
    n_samples
        Posterior samples of each cell.
    progress
        Whether to show a progress bar; None: on a terminal, and elsewhere a line a minute.
    given_counts
        Whether proteins are given their counts as well as the cell's state; see `draws`.
    imputing
        Codes of further batches, used only for the proteins that a cell's panel lacks.
    shares
        Share of each batch decoded into in a protein's mean, by the panel of the cell,
        (panels, batches, T); NaN where the protein is not answered for. None: equal shares.
    rna_shares
        The same of RNA, (panels, batches), where a panel lacks it.
    calibration
        What the distributions of counts add to the fitted parameters. None: nothing.
    """

    network: Network
    data: CiteData
    cells: np.ndarray
    noise: CellNoise
    batch_size: int = QUERY_BATCH_SIZE
    transform_batch: tuple[int | None, ...] = (None,)
    n_samples: int = 1
    progress: bool | None = None
    given_counts: bool = False
    imputing: tuple[int | None, ...] = ()
    shares: Tensor | None = None
    rna_shares: Tensor | None = None
    calibration: CountCalibration | None = None

    @property
    def cell_names(self) -> pd.Index:
        """Names of the cells."""
        return self.data.cell_names[self.cells]

    @property
    def n_draws(self) -> int:
        """Number of times that each cell is decoded into the batches asked for."""
        return self.n_samples * len(self.transform_batch)

    @property
    def n_decoded(self) -> int:
        """Number of batches that each sample is decoded into."""
        return len(self.transform_batch) + len(self.imputing)

    def share(self, draw_number: int, batch: Minibatch) -> Tensor | float:
        """Return the share of a draw in the mean of its sample, (B, T), or one for all."""
        if self.shares is None:
            return 1 / len(self.transform_batch)
        return self.shares[batch.context.panel, draw_number % self.n_decoded]

    def rna_share(self, draw_number: int, batch: Minibatch) -> Tensor | float | None:
        """Return the share of a draw in the mean RNA of its sample, (B, 1) or of all; None: none."""
        position = draw_number % self.n_decoded
        if self.rna_shares is None:
            n_batches = len(self.transform_batch)
            return 1 / n_batches if position < n_batches else None
        share = self.rna_shares[batch.context.panel, position][:, None]
        return share if (share != 0).any() else None

    def about(self, cells: np.ndarray) -> Self:
        """Return the same question about other cells of the same data."""
        return replace(self, cells=cells)

    def with_rna(self) -> Self:
        """Return the same question about those of its cells that have RNA."""
        has_rna = self.data.has_rna[self.cells]
        return self if has_rna.all() else self.about(self.cells[has_rna])

    def table(self, features: np.ndarray) -> Table:
        """Return the names of a result with a row for each cell and these columns."""
        return Table(self.cell_names, features)

    def draws(self, batch: Minibatch, *, genes: bool = True) -> Iterator[Draw]:
        """Yield the posterior samples of a minibatch, each decoded into each batch in turn."""
        return draws(
            self.network, batch, self.n_samples, self.noise,
            (*self.transform_batch, *self.imputing), given_counts=self.given_counts, genes=genes,
        )  # fmt: skip

    @contextmanager
    def minibatches(
        self, what: str, *, n_passes: int = 1, stored: bool = False
    ) -> Iterator[Iterator[Minibatch]]:
        """Give the cells in minibatches, with a progress bar that says ``what`` is computed.

        Inside the block torch computes without gradients, and errors about a protein name it.

        Parameters
        ----------
        n_passes
            How often all cells come, one pass after the other.
        stored
            Whether several processes each get the cells of their `own_rows` of a store.
        """
        cells = self.cells[own_rows(len(self.cells))] if stored else self.cells
        batches = chain.from_iterable(
            minibatches(self.data, self.network, cells, self.batch_size) for _ in range(n_passes)
        )
        shown = self.progress if this_process().rank == 0 else False
        with (
            naming_proteins(self.data.schema.protein_names),
            torch.no_grad(),
            cell_progress(batches, n_passes * len(cells), what, shown) as given,
        ):
            yield given

    def gather(
        self, what: str, compute: Callable[[Minibatch], Tensor], axis: int = 0
    ) -> np.ndarray:
        """Return what ``compute`` makes of each minibatch, joined along the axis of the cells."""
        with self.minibatches(what) as batches:
            return torch.cat([compute(batch) for batch in batches], dim=axis).cpu().numpy()

    def rows(
        self,
        what: str,
        tables: Mapping[str, Table],
        compute: Callable[[Minibatch], Mapping[str, np.ndarray]],
        *,
        out: str | Path | None = None,
        each_sample: bool = False,
        without_cells: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray] | Path:
        """Return tables that are filled minibatch by minibatch; with ``out``, the path of their store.

        Parameters
        ----------
        tables
            Names of the cells and features of each table.
        compute
            Gives the rows of a minibatch by table, (cells, features).
        out
            Folder of a new zarr store to write to; None: memory.
        each_sample
            Whether tables and rows have a leading axis of the samples.
        without_cells
            Values of the tables that have no row for each cell.
        """
        with (
            row_targets(tables, out, self.n_samples if each_sample else None) as targets,
            self.minibatches(what, stored=out is not None) as batches,
        ):
            start = 0
            for batch in batches:
                rows = slice(start, start + len(batch.cells))
                start = rows.stop
                for name, values in compute(batch).items():
                    targets[name][(slice(None), rows) if each_sample else rows] = values
            for name, values in (without_cells or {}).items():
                targets[name][:] = values
        return cast("dict[str, np.ndarray]", targets) if out is None else Path(out)


def dispersion_by_label(module: Network) -> bool:
    """Return whether the network needs each cell's label."""
    return "label" in module.gene_dispersion + module.protein_dispersion


@dataclass(frozen=True)
class Features:
    """Genes or proteins of a model: their positions and names."""

    positions: np.ndarray
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


class Fitted(Protocol):
    """What the classes of queries need of a fitted model."""

    module: TOTALVI
    schema: Schema
    seed: int
    is_trained: bool
    _data: CiteData | None
    _result: FitResult | None
    _failure: str | None
    _mapping: QueryMapping | None

    @property
    def split(self) -> Split | None:
        """Positions of the cells that trained, validated, and were held out for tests."""
        ...

    def _describe(self, data: Data) -> CiteData:
        """Return new data aligned with the model, which knows their batches."""
        ...

    def _question(
        self,
        adata: Data | None,
        indices: Cells,
        batch_size: int,
        progress: bool | None,
        seed: int = 0,
        n_samples: int = 1,
        transform_batch: Names = None,
        given_counts: bool = False,
    ) -> Question:
        """Return a question about cells, once the model can answer it."""
        self._require_trained()
        data = self._training_data() if adata is None else self._describe(adata)
        return Question(
            network=self.module,
            data=data,
            cells=cell_positions(indices, data.n_cells),
            noise=self._noise(seed),
            batch_size=batch_size,
            transform_batch=self._batch_codes(transform_batch),
            n_samples=at_least_one("n_samples", n_samples),
            progress=progress,
            given_counts=given_counts,
            calibration=None if self._result is None else self._result.calibration,
        )

    def _require_trained(self) -> None:
        if self._failure is not None:
            raise NotTrainedError(f"The fit failed, so queries are unavailable: {self._failure}")
        if not self.is_trained:
            raise NotTrainedError("The model has not been trained; call model.train() first.")

    def _training_data(self) -> CiteData:
        if self._data is None:
            raise DataError(
                "The model was loaded without data; give them to Model.load, or to the query."
            )
        return self._data

    def _noise(self, seed: int) -> CellNoise:
        if not (isinstance(seed, int | np.integer) and seed >= 0):
            raise ValueError(allowed("seed", seed, "whole numbers from 0"))
        sequence = np.random.SeedSequence(self.seed, spawn_key=(_QUERY, int(seed)))
        return CellNoise(int(sequence.generate_state(1, np.uint64)[0]))

    def _genes(self, wanted: Sequence[str] | None, argument: str = "gene_list") -> Features:
        return _features(wanted, self.schema.gene_names, argument)

    def _proteins(self, wanted: Sequence[str] | None, argument: str = "protein_list") -> Features:
        return _features(wanted, self.schema.protein_names, argument)

    def _batch_codes(self, transform_batch: Names) -> tuple[int | None, ...]:
        """Return the codes of batches given by name; (None,) for each cell's own."""
        if transform_batch is None:
            return (None,)
        wanted: list[Any] = (
            [transform_batch] if np.isscalar(transform_batch) else list(transform_batch)
        )
        known = self.schema.batch_names
        if not wanted:
            raise ValueError("transform_batch is empty; allowed are None, or at least one batch.")
        for name in wanted:
            if str(name) not in known:
                raise ValueError(
                    f"{argument('transform_batch')} holds {name!r}; "
                    f"{did_you_mean(str(name), known)}."
                )
        return tuple(known.index(str(name)) for name in wanted)


def held_out_cells(
    model: Fitted,
    question: Question,
    *,
    all_of_them: bool = False,
    data: CiteData | None = None,
) -> Question:
    """Return the question about cells of the training data that the fit held out.

    Those whose counts calibrated the fit are among them only with ``all_of_them``; ``data`` are the
    training data where the model has none.

    Raises
    ------
    DataError
        When there are none, or the data are of other cells than the fit.
    """
    data = model._training_data() if data is None else data
    assert model.split is not None
    of_fit = model._result
    if (
        of_fit is not None
        and len(of_fit.history)  # else it is of a query, with other cells
        and not are_cells_of_fit(of_fit.fingerprint, data)
    ):
        raise DataError(
            "The data are not the cells that the model was fitted to, or in another order, so none is "
            "known to be held out; load it with those, Model.load(path, data), or ask for "
            "impute_proteins(calibrated=False) or get_imputation_reliability(stacked=False)."
        )
    cells = np.sort(np.concatenate([model.split.validation, model.split.test]))
    cells = cells[data.has_rna[cells]]  # from which proteins are predicted
    calibration = None if of_fit is None else of_fit.calibration
    if calibration is not None:  # the cells that calibrate are not the cells that report
        cells = np.setdiff1d(cells, calibration.cells)
    if not len(cells):
        raise DataError(
            "The fit held out no cell in which proteins could be hidden; train with train_size "
            "below 1, or give indices of cells (for impute_proteins, calibrated=False)."
        )
    cells = evenly_spaced(cells, _MOST_HIDDEN_CELLS)
    if calibration is not None and all_of_them:
        cells = np.union1d(cells, calibration.cells[data.has_rna[calibration.cells]])
    return replace(question, data=data, cells=cells)


def _features(wanted: Sequence[str] | None, known: Sequence[str], argument: str) -> Features:
    positions = feature_positions(wanted, known, argument)
    return Features(positions, np.array(known, dtype=object)[positions])


def labels_of_cells(question: Question, name: str, given: str | Sequence[object]) -> np.ndarray:
    """Return labels of the question's cells, (N,): a column of ``obs``, or a label a cell of its data.

    Raises
    ------
    ValueError
        When there is no such column, or not one label a cell. ``name`` is that of the argument.
    """
    values: object = given
    if isinstance(given, str):
        obs = question.data.annotation.obs()
        if given not in obs:
            raise ValueError(
                f"{argument(name)} is {given!r}, which is no column of obs; "
                f"{did_you_mean(given, obs.columns)}."
            )
        values = obs[given]
    labels = np.asarray(values)
    if labels.shape != (question.data.n_cells,):
        raise ValueError(
            f"{name} has shape {labels.shape}; allowed is ({question.data.n_cells},), "
            "one label a cell."
        )
    chosen: np.ndarray = labels[question.cells]
    return chosen
