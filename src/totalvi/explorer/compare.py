"""Differential expression of the cells of a gate, computed by the run's own model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from bokeh.layouts import row
from bokeh.models import (
    BooleanFilter,
    CDSView,
    ColumnDataSource,
    CustomJS,
    DataTable,
    Div,
    NumberFormatter,
    Range1d,
    Select,
    StringFormatter,
    TableColumn,
    TextInput,
)

from totalvi.errors import DataError
from totalvi.explorer.run_cells import RunCells
from totalvi.figures.charts import volcano
from totalvi.figures.style import FOREGROUND, WARNING

if TYPE_CHECKING:
    from totalvi.model import Model

MOST_CELLS = 5_000  # of each group; more would change little and keep people waiting
SEED = 0


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


class Comparer:
    """Compares cells with the model of a run, which is loaded on first use."""

    def __init__(self, cells: RunCells) -> None:
        self._cells = cells

    @cached_property
    def model(self) -> "Model":
        """The model of the run, without data."""
        from totalvi.model import Model  # loads torch, for which the page need not wait

        return Model.load(self._cells.folder / "model.totalvi")

    def warm_up(self) -> None:
        """Load model and counts and compare a few cells, so that the first gate does not wait."""
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


def redrawn_with_its_source(table: DataTable) -> DataTable:
    """Return the table, which from now on shows its source's new values.

    Bokeh draws a table again when the rows of its view change, and takes as many others for the same.
    """
    table.source.js_on_change(
        "data", CustomJS(args={"view": table.view}, code="view.change.emit()")
    )
    return table


REST = "all other cells"
PARENT_REST = "the other cells of its parent"
_MOST_LOG_ODDS = 12.0  # of the plot; beyond, posterior probabilities are 1 to five digits
_KEY = (
    f'<br><b style="color:{FOREGROUND}">&#9679;</b> gene and '
    f'<b style="color:{WARNING}">&#9679;</b> protein that differ, at a false discovery rate of 5 %. '
    "Here and There: raw counts a cell. Choose a row to colour the cells by it."
)
_COLUMNS = ("feature", "what", "lfc", "proba", "raw1", "raw2", "log_odds", "kind")


def other_cells(
    other: str, first: np.ndarray, inside: Mapping[str | None, np.ndarray], parent: str | None
) -> np.ndarray:
    """Return which cells the cells ``first`` of a gate are compared with, without those of both.

    Parameters
    ----------
    other
        `REST`, `PARENT_REST`, or the name of a gate.
    first
        Which cells are in the gate, boolean (N,).
    inside
        The cells of each gate, from `totalvi.explorer.gates.members`.
    parent
        Parent of the gate.
    """
    rest: np.ndarray = ~first
    return rest if other == REST else inside[parent if other == PARENT_REST else other] & rest


class ComparePanel:
    """Widgets of a comparison.

    Parameters
    ----------
    on_other
        Is called when another group to compare with was chosen.
    on_feature
        Is called with the modality, "rna" or "protein", and name of a feature chosen in the table.
    """

    def __init__(
        self, on_other: Callable[[], None], on_feature: Callable[[str, str], None]
    ) -> None:
        self._setting = False
        self.source = ColumnDataSource({name: [] for name in _COLUMNS})
        self._found = BooleanFilter(booleans=[])
        self.other = Select(
            title="Compare with", options=[REST, PARENT_REST], value=REST, name="compare_with",
            width=240,
        )  # fmt: skip
        self.search = TextInput(
            title="Find a gene or protein", placeholder="any part of its name", name="find_feature",
            width=200,
        )  # fmt: skip
        self.said = Div(text="", name="compared", sizing_mode="stretch_width", min_width=220)
        number = NumberFormatter(format="0.00", text_align="right", nan_format="\u2013")
        self.table = redrawn_with_its_source(DataTable(
            source=self.source,
            view=CDSView(filter=self._found),
            columns=[
                TableColumn(field="feature", title="Feature", formatter=StringFormatter(), width=105),
                TableColumn(field="what", title="Kind", width=48),
                TableColumn(field="lfc", title="log2 fold", formatter=number, width=58),
                TableColumn(
                    field="proba", title="Prob.", width=42,
                    formatter=NumberFormatter(format="0.000", text_align="right", nan_format="\u2013"),
                ),
                TableColumn(field="raw1", title="Here", formatter=number, width=46),
                TableColumn(field="raw2", title="There", formatter=number, width=46),
            ],
            index_position=None,
            reorderable=False,
            visible=False,
            sizing_mode="stretch_width",
            height=380,
            name="differences",
        ))  # fmt: skip
        self.volcano = volcano(
            self.source, x="lfc", y="log_odds", kind="kind", name="feature",
            y_label="log odds of a difference", height=380,
        )  # fmt: skip
        # The page would complain of a range that follows dots before there are any.
        self.volcano.x_range, self.volcano.y_range = Range1d(-1, 1), Range1d(-1, 1)
        self.volcano.name = "volcano"
        self.volcano.visible = False
        self.controls = row(
            self.other, self.search, self.said, sizing_mode="stretch_width", name="comparison"
        )
        self.controls.styles = {"flex-wrap": "wrap"}
        self.other.on_change(
            "value", lambda _attr, _old, _new: None if self._setting else on_other()
        )
        self.search.on_change("value_input", lambda _a, _o, new: self._search(new))

        def chosen(_attr: str, _old: list[int], rows: list[int]) -> None:
            if rows:
                modality = "rna" if self.source.data["what"][rows[0]] == "gene" else "protein"
                on_feature(modality, str(self.source.data["feature"][rows[0]]))

        self.source.selected.on_change("indices", chosen)

    def offer(self, others: Sequence[str]) -> None:
        """Offer these gates to compare with, beside the rest."""
        options = [REST, PARENT_REST, *others]
        self._setting = True
        if self.other.value not in options:
            self.other.value = REST
        self.other.options = options
        self._setting = False

    def show(self, compared: Compared) -> None:
        """Show the result of a comparison."""
        data = columns_of(compared.table)
        self.source.selected.indices = []
        self._found.booleans = _holds(data["feature"], self.search.value_input)
        self.source.data = data
        furthest = 1.05 * max(1.0, float(np.nanmax(np.abs(data["lfc"]), initial=0.0)))
        _reach(self.volcano.x_range, -furthest, furthest)
        odds = data["log_odds"][np.isfinite(data["log_odds"])]
        _reach(self.volcano.y_range, min(odds, default=0.0) - 1, max(odds, default=0.0) + 1)
        self.volcano.visible = self.table.visible = True

    def say(self, sentence: str, *, explain: bool = False) -> None:
        """Show a sentence, as HTML, and how to read plot and table."""
        self.said.text = sentence + (_KEY if explain else "")

    def clear(self, sentence: str) -> None:
        """Show only a sentence, because nothing is compared."""
        self.say(sentence)
        self.volcano.visible = self.table.visible = False

    def _search(self, text: str) -> None:
        self._found.booleans = _holds(self.source.data["feature"], text)


def _reach(side: Range1d, low: float, high: float) -> None:
    side.update(start=float(low), end=float(high), reset_start=float(low), reset_end=float(high))


def columns_of(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return what plot and table show of a table of `Model.differential_expression`."""
    is_gene = (table["modality"] == "rna").to_numpy()
    called = table[next(c for c in table if str(c).startswith("is_de_fdr_"))].to_numpy(bool)
    odds = table["bayes_factor"].to_numpy(float)
    return {
        "feature": table.index.to_numpy(object),
        "what": np.where(is_gene, "gene", "protein").astype(object),
        "lfc": table["lfc_median"].to_numpy(float),
        "proba": table["proba_de"].to_numpy(float),
        "raw1": table["raw_mean1"].to_numpy(float),
        "raw2": table["raw_mean2"].to_numpy(float),
        "log_odds": np.clip(odds, -_MOST_LOG_ODDS, _MOST_LOG_ODDS),
        "kind": np.where(called, np.where(is_gene, 1, 2), 0).astype(float),
    }


def _holds(names: Iterable[str], text: str) -> list[bool]:
    wanted = (text or "").casefold().strip()
    return [wanted in str(name).casefold() for name in names]
