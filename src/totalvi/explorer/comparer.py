"""Differential expression of the cells of a gate, computed by the run's own model."""

import warnings
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from totalvi.errors import DataError, ReadError
from totalvi.explorer.run_cells import Cells

if TYPE_CHECKING:
    from totalvi.model import Model

MOST_CELLS = 5_000  # of each group; more would change little and keep people waiting
MOST_OF_A_SAMPLE = (
    2_000  # where conditions are compared; donors differ more than that many cells err
)
SEED = 0
INSIDE = "inside"
_SHARE_COLUMN = "totalvi_in_gate"


class Compared(NamedTuple):
    """The differences between two groups of cells.

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
        """Return the numbers of compared cells, and warnings.

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


class Design(NamedTuple):
    """A comparison of conditions over samples: columns of ``obs``, and two conditions."""

    sample_key: str
    condition_key: str
    group1: str
    group2: str


class ComparedConditions(NamedTuple):
    """The differences between conditions, over samples, of the cells of a gate.

    Parameters
    ----------
    table
        From `Model.differential_expression` with ``sample_key``.
    abundance
        From `Model.differential_abundance`: the gate's share of its parent; None: it has none.
    notes
        Warnings of both.
    """

    table: pd.DataFrame
    abundance: pd.DataFrame | None
    notes: tuple[str, ...]

    def sentence(self) -> str:
        """Return how many samples were compared, the difference in abundance, and warnings."""
        sizes = [int(self.table[f"n_samples{place}"].max()) for place in (1, 2)]
        names = [str(self.table[f"group{place}"].iloc[0]) for place in (1, 2)]
        text = f"Compared {names[0]} ({sizes[0]} samples) with {names[1]} ({sizes[1]})."
        if self.abundance is not None:
            row = self.abundance.loc[INSIDE]
            text += (
                f" Share of the parent: {100 * row['share1']:.1f} % and {100 * row['share2']:.1f} %, "
                f"log2 odds ratio {row['log2_ratio']:.2f} "
                f"({row['ci_low']:.2f} to {row['ci_high']:.2f}), p = {row['p_value']:.2g}."
            )
        return " ".join([text, *self.notes])


class Comparer:
    """Compares cells with the model of a run, which is loaded on first use."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    @cached_property
    def model(self) -> "Model":
        """The model of the run, without data."""
        from totalvi.model import Model  # loads torch, for which the page need not wait

        if self._cells.model_path is None:
            raise ReadError(
                f"{self._cells.title} comes without a model; give the folder that `totalvi run` wrote."
            )
        return Model.load(self._cells.model_path)

    def warm_up(self) -> None:
        """Load model and counts and compare a few cells, so that the first gate does not wait."""
        n_few = min(32, self._cells.n_cells // 2)
        if n_few and self._cells.model_path is not None:
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

    def compare_conditions(
        self, inside: np.ndarray, parent: np.ndarray, design: Design
    ) -> ComparedConditions:
        """Compare two conditions over samples: the expression of a gate's cells, and their share.

        Parameters
        ----------
        inside, parent
            Which cells are in the gate and in the one around it, boolean (N,).

        Raises
        ------
        DataError
            When the gate has too few cells or samples.
        """
        if design.sample_key == design.condition_key:
            raise DataError(
                f"Samples and conditions are both {design.sample_key!r}; choose two columns."
            )
        cells = _of_each_sample(np.flatnonzero(inside), self._cells.obs[design.sample_key])
        if not len(cells):
            raise DataError("The gate has no cells; draw or choose another one.")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            table = self.model.differential_expression(
                self._cells.counts_of(cells), **design._asdict(), progress=False
            )
            abundance = self._share(inside, parent, design)
        notes = dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning)
        return ComparedConditions(table, abundance, tuple(notes))

    def _share(self, inside: np.ndarray, parent: np.ndarray, design: Design) -> pd.DataFrame | None:
        """Compare the gate's share of its parent; None: it has all of its cells."""
        around = np.flatnonzero(parent)
        if inside[around].all():
            return None
        counts = self._cells.counts_of(around)
        counts.obs[_SHARE_COLUMN] = np.where(inside[around], INSIDE, "outside")
        return self.model.differential_abundance(
            counts, **design._asdict(), groupby=_SHARE_COLUMN, progress=False
        )

    def _batch(self) -> np.ndarray:
        key = self.model.schema.columns.batch_key
        obs = self._cells.obs
        return np.zeros(len(obs)) if key is None else obs[key].astype(str).to_numpy()


def _of_each_sample(cells: np.ndarray, sample: pd.Series) -> np.ndarray:
    """Return at most 2,000 of the cells of each sample, always the same ones, in order."""
    rng = np.random.default_rng(SEED)
    of_sample = pd.Series(cells).groupby(sample.iloc[cells].astype(str).to_numpy(), observed=True)
    parts = [_drawn(part.to_numpy(), MOST_OF_A_SAMPLE, rng) for _, part in of_sample]
    return np.sort(np.concatenate(parts)) if parts else cells


def _drawn(cells: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return cells if len(cells) <= most else np.sort(rng.choice(cells, most, replace=False))
