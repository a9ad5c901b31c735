"""What every query of `Model` starts from: a fitted network, the cells asked about, the noise."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData, QueryMapping, Schema
from totalvi.data.describe import Data, describe
from totalvi.data.finding import did_you_mean
from totalvi.data.mapped_query import describe_query
from totalvi.errors import DataError, NotTrainedError
from totalvi.fit.batches import Minibatch, minibatches
from totalvi.nn.cpu.dispatch import threads_of_torch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.arguments import Cells, cell_positions, feature_positions
from totalvi.posterior.draws import CellNoise, naming_proteins
from totalvi.posterior.filling import fill_unmeasured, filled_proteins
from totalvi.posterior.rows import own_rows
from totalvi.processes import this_process


@contextmanager
def cell_progress(
    batches: Iterable[Minibatch], n_cells: int, what: str, show: bool | None
) -> Iterator[Iterator[Minibatch]]:
    """Give the minibatches on, while a bar on standard error shows how many cells are done.

    Parameters
    ----------
    what
        What is computed, shown beside the bar.
    show
        Whether to show the bar; None: only when standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield iter(batches)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=n_cells)

        def counted() -> Iterator[Minibatch]:
            for batch in batches:
                yield batch
                bar.update(task, advance=len(batch.cells))

        yield counted()
        bar.update(task, completed=n_cells)  # who knows the number of cells need not ask for more


Names = str | Sequence[str] | None
QUERY_BATCH_SIZE = 1024
_QUERY = 3  # beside what else a model's seed is for: see `totalvi.model`


class Asked:
    """The cells a query is about.

    Parameters
    ----------
    data
        All cells given.
    cells
        Positions of those asked about.
    """

    def __init__(self, module: TOTALVI, data: CiteData, cells: np.ndarray) -> None:
        self.module, self.data, self.cells = module, data, cells

    @property
    def cell_names(self) -> pd.Index:
        """Names of the cells asked about."""
        return self.data.cell_names[self.cells]

    @contextmanager
    def stream(
        self,
        batch_size: int,
        what: str,
        progress: bool | None,
        n_passes: int = 1,
        out: str | Path | None = None,
    ) -> Iterator[Iterator[Minibatch]]:
        """Give the cells in minibatches, with a progress bar that says ``what`` is computed.

        All cells come ``n_passes`` times, one pass after the other. With a store ``out`` to write,
        several processes each get the cells of their `own_rows`.
        """
        cells = self.cells if out is None else self.cells[own_rows(len(self.cells))]
        batches = chain.from_iterable(
            minibatches(self.data, self.module, cells, batch_size) for _ in range(n_passes)
        )
        shown_by = progress if this_process().rank == 0 else False
        with (
            naming_proteins(self.data.schema.protein_names),
            threads_of_torch(),
            cell_progress(batches, n_passes * len(cells), what, shown_by) as shown,
        ):
            yield shown


def dispersion_by_label(module: TOTALVI) -> bool:
    """Return whether the network needs each cell's label."""
    return "label" in module.gene_dispersion + module.protein_dispersion


class Asking:
    """The base of the classes of queries: what they need of a fitted model."""

    module: TOTALVI
    schema: Schema
    seed: int
    is_trained: bool
    _data: CiteData | None
    _failure: str | None
    _mapping: QueryMapping | None = None  # of a model that `map_query` returned

    def _describe(self, data: Data) -> CiteData:
        """Return new data in the order of the model, which knows their batches."""
        if self._mapping is not None:
            needs_labels = dispersion_by_label(self.module)
            query = describe_query(data, self.schema, self._mapping, needs_labels)
            self._fill_unmeasured(query, self._mapping)
            return query
        return describe(data, self.schema.columns, self.schema)

    def _fill_unmeasured(self, query: CiteData, mapping: QueryMapping) -> None:
        fill_unmeasured(self.module, query, filled_proteins(self.module, query, mapping))

    def _asked(self, adata: Data | None, indices: Cells) -> Asked:
        """Return the cells of a query, once the model can answer it."""
        self._require_trained()
        data = self._training_data() if adata is None else self._describe(adata)
        return Asked(self.module, data, cell_positions(indices, data.n_cells))

    def _require_trained(self) -> None:
        if self._failure is not None:
            raise NotTrainedError(f"The fit failed, so nothing can be asked: {self._failure}")
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
            raise ValueError(f"seed is {seed!r}; allowed are whole numbers from 0.")
        sequence = np.random.SeedSequence(self.seed, spawn_key=(_QUERY, int(seed)))
        return CellNoise(int(sequence.generate_state(1, np.uint64)[0]))

    def _genes(self, gene_list: Sequence[str] | None) -> np.ndarray:
        return feature_positions(gene_list, self.schema.gene_names, "gene_list")

    def _proteins(self, protein_list: Sequence[str] | None) -> np.ndarray:
        return feature_positions(protein_list, self.schema.protein_names, "protein_list")

    def _gene_names(self, genes: np.ndarray) -> np.ndarray:
        return np.array(self.schema.gene_names, dtype=object)[genes]

    def _protein_names(self, proteins: np.ndarray) -> np.ndarray:
        return np.array(self.schema.protein_names, dtype=object)[proteins]

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
                    f"transform_batch holds {name!r}; {did_you_mean(str(name), known)}."
                )
        return tuple(known.index(str(name)) for name in wanted)
