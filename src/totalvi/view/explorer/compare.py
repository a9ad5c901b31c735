"""Differential expression of the cells of a gate, asked of the run's own model."""

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from totalvi.errors import DataError
from totalvi.view.explorer.run_cells import RunCells

if TYPE_CHECKING:
    from totalvi.model import Model

MOST_CELLS = 5_000  # of each group; more would change little and keep people waiting
SEED = 0


class Compared(NamedTuple):
    """What differs between two groups of cells.

    Parameters
    ----------
    table
        From `Model.differential_expression`.
    n_first, n_second
        Cells of each group.
    n_first_used, n_second_used
        How many of them were compared, drawn at random where that is less.
    shares_batch
        Whether any batch has cells of both groups; else batches differ too.
    """

    table: pd.DataFrame
    n_first: int
    n_second: int
    n_first_used: int
    n_second_used: int
    shares_batch: bool

    def sentence(self) -> str:
        """Say how many cells were compared, and what to beware of.

        Examples
        --------
        >>> Compared(pd.DataFrame(), 900, 7000, 900, 5000, True).sentence()
        'Compared 900 cells with 5,000 of 7,000 (drawn at random, seed 0).'
        """
        sizes = [
            f"{used:,}" if used == n else f"{used:,} of {n:,}"
            for used, n in (
                (self.n_first_used, self.n_first),
                (self.n_second_used, self.n_second),
            )
        ]
        drawn = (self.n_first_used, self.n_second_used) != (self.n_first, self.n_second)
        text = f"Compared {sizes[0]} cells with {sizes[1]}"
        text += f" (drawn at random, seed {SEED})." if drawn else "."
        if not self.shares_batch:
            text += " They share no batch, so differences between batches are among these."
        return text


class Comparer:
    """Asks the model of a run, which is loaded once it is needed."""

    def __init__(self, cells: RunCells) -> None:
        self._cells = cells

    @cached_property
    def model(self) -> "Model":
        """The model of the run, without data."""
        from totalvi.model import Model  # loads torch, for which the page need not wait

        return Model.load(self._cells.folder / "model.totalvi")

    def warm_up(self) -> None:
        """Load model and counts and compare a few cells, so that the first gate need not wait."""
        n_few = min(32, self._cells.n_cells // 2)
        if n_few:
            first = np.arange(self._cells.n_cells) < n_few
            self.compare(first, ~first, n_few)

    def compare(
        self, first: np.ndarray, second: np.ndarray, most_cells: int = MOST_CELLS
    ) -> Compared:
        """Compare two groups of cells.

        Parameters
        ----------
        first, second
            Which cells are in each, boolean (N,).
        most_cells
            Of each group; of more, so many are drawn, always the same ones.

        Raises
        ------
        DataError
            When a group is empty.
        """
        for group in (first, second):
            if not group.any():
                raise DataError("One of the two groups has no cells; draw or choose another gate.")
        rng = np.random.default_rng(SEED)
        chosen = [_drawn(np.flatnonzero(group), most_cells, rng) for group in (first, second)]
        cells = np.union1d(*chosen)
        table = self.model.differential_expression(
            self._cells.counts_of(cells),
            idx1=np.isin(cells, chosen[0]),
            idx2=np.isin(cells, chosen[1]),
            progress=False,
        )
        batch = self._batch()
        shares = np.intersect1d(*(batch[some] for some in chosen)).size > 0
        return Compared(
            table, int(first.sum()), int(second.sum()), len(chosen[0]), len(chosen[1]), bool(shares)
        )

    def _batch(self) -> np.ndarray:
        key = self.model.schema.columns.batch_key
        obs = self._cells.obs
        return np.zeros(len(obs)) if key is None else obs[key].astype(str).to_numpy()


def _drawn(cells: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return cells if len(cells) <= most else np.sort(rng.choice(cells, most, replace=False))
