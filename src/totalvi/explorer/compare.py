"""The panel that shows how the cells of a gate differ from others, or between conditions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, permutations

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
    HTMLTemplateFormatter,
    NumberFormatter,
    Range1d,
    Select,
    TableColumn,
    TextInput,
)

from totalvi.explorer.comparer import Compared, ComparedConditions, Design
from totalvi.figures.charts import volcano
from totalvi.figures.style import FOREGROUND, WARNING
from totalvi.run.folder import DENOISED_LIBRARY_SIZE


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
CONDITIONS = "conditions, over samples"
_MOST_PAIRS = 90  # of conditions
# Underscore's <%- %> escapes what it writes.
_TIDY = '<span title="<%- feature %>"><%- value %></span>'
_MOST_LOG_ODDS = 12.0  # of the plot; beyond, posterior probabilities are 1 to five digits
_KEY = (
    f'<br><b style="color:{FOREGROUND}">&#9679;</b> gene and '
    f'<b style="color:{WARNING}">&#9679;</b> protein that differ, at a false discovery rate of 5 %. '
    "Here and There: raw counts a cell. Choose a row to colour the cells by it."
)
_CONDITIONS_KEY = (
    f'<br><b style="color:{FOREGROUND}">&#9679;</b> gene and '
    f'<b style="color:{WARNING}">&#9679;</b> protein that differ between conditions, over samples, at '
    "a false discovery rate of 5 %. adj. p: p-value adjusted for all features. Here and There: mean "
    "level of the samples of each condition, genes in 10,000 counts."
)
_COLUMNS = ("feature", "tidy", "what", "lfc", "proba", "raw1", "raw2", "log_odds", "kind")


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
    categories
        Values of each column of ``obs`` that may hold samples or conditions.
    tidy
        Short names of proteins.
    """

    def __init__(
        self,
        on_other: Callable[[], None],
        on_feature: Callable[[str, str], None],
        categories: Mapping[str, Sequence[str]],
        tidy: Mapping[str, str],
    ) -> None:
        self._setting = False
        self._categories, self._tidy, self._key = categories, tidy, _KEY
        self.source = ColumnDataSource({name: [] for name in _COLUMNS})
        self._found = BooleanFilter(booleans=[])
        self.other = Select(
            title="Compare with", options=self._options(()), value=REST, name="compare_with",
            width=240,
        )  # fmt: skip
        self._add_design()
        self.search = TextInput(
            title="Find a gene or protein", placeholder="any part of its name", name="find_feature",
            width=200,
        )  # fmt: skip
        self.said = Div(text="", name="compared", sizing_mode="stretch_width", min_width=320)
        number = NumberFormatter(format="0.00", text_align="right", nan_format="\u2013")
        self.table = redrawn_with_its_source(DataTable(
            source=self.source,
            view=CDSView(filter=self._found),
            columns=[
                TableColumn(
                    field="tidy", title="Feature", formatter=HTMLTemplateFormatter(template=_TIDY),
                    width=105,
                ),
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
            self.source, x="lfc", y="log_odds", kind="kind", name="tidy",
            y_label="log odds of a difference", height=380,
        )  # fmt: skip
        # The page would complain of a range that follows dots before there are any.
        self.volcano.x_range, self.volcano.y_range = Range1d(-1, 1), Range1d(-1, 1)
        self.volcano.name = "volcano"
        self.volcano.visible = False
        self.controls = row(
            self.other,
            self.sample,
            self.condition,
            self.pair,
            self.search,
            self.said,
            sizing_mode="stretch_width",
            name="comparison",
        )
        self.controls.styles = {"flex-wrap": "wrap"}

        def asked(_attr: str, _old: str, _new: str) -> None:
            if not self._setting:
                self._offer_pairs()
                on_other()

        for widget in (self.other, self.sample, self.condition, self.pair):
            widget.on_change("value", asked)
        self.search.on_change("value_input", lambda _a, _o, new: self._search(new))

        def chosen(_attr: str, _old: list[int], rows: list[int]) -> None:
            if rows:
                modality = "rna" if self.source.data["what"][rows[0]] == "gene" else "protein"
                on_feature(modality, str(self.source.data["feature"][rows[0]]))

        self.source.selected.on_change("indices", chosen)

    def _add_design(self) -> None:
        """Add the widgets that choose samples and conditions."""
        columns = list(self._categories)
        self.sample, self.condition = (
            Select(title=title, options=columns, name=name, width=150, visible=False)
            for title, name in (("Samples", "design_sample"), ("Conditions", "design_condition"))
        )
        self.pair = Select(title="Which", name="design_pair", width=190, visible=False)
        if len(columns) > 1:
            self.sample.value = columns[0]
            self.condition.value = min(columns[1:], key=lambda name: len(self._categories[name]))
            self._offer_pairs()

    def offer(self, others: Sequence[str]) -> None:
        """Offer these gates to compare with, beside the rest."""
        options = self._options(others)
        self._setting = True
        if self.other.value not in options:
            self.other.value = REST
        self.other.options = options
        self._setting = False

    def _options(self, others: Sequence[str]) -> list[str]:
        conditions = [CONDITIONS] if len(self._categories) > 1 else []
        return [REST, PARENT_REST, *conditions, *others]

    def _offer_pairs(self) -> None:
        """Offer the pairs of conditions of the chosen column."""
        is_of_conditions = self.other.value == CONDITIONS
        for widget in (self.sample, self.condition, self.pair):
            widget.visible = is_of_conditions
        if not self.condition.value:
            return  # there are no columns to choose
        pairs = islice(permutations(self._categories[self.condition.value], 2), _MOST_PAIRS)
        options = [(f"{n}", f"{b} vs {a}") for n, (a, b) in enumerate(pairs)]
        if options != self.pair.options:
            self._setting = True
            self.pair.options, self.pair.value = options, options[0][0] if options else None
            self._setting = False

    @property
    def design(self) -> Design:
        """The chosen comparison of conditions."""
        pairs = list(islice(permutations(self._categories[self.condition.value], 2), _MOST_PAIRS))
        group2, group1 = pairs[int(self.pair.value)]
        return Design(self.sample.value, self.condition.value, group1, group2)

    def show(self, compared: Compared | ComparedConditions) -> None:
        """Show the result of a comparison."""
        data = columns_of(compared.table, self._tidy)
        of_samples = isinstance(compared, ComparedConditions)
        self.volcano.yaxis[0].axis_label = (
            "-log10 p-value" if of_samples else "log odds of a difference"
        )
        self._key = _CONDITIONS_KEY if of_samples else _KEY
        self.table.columns[3].title = "adj. p" if of_samples else "Prob."
        self.source.selected.indices = []
        self._found.booleans = _holds(data["feature"], self.search.value_input)
        self.source.data = data
        furthest = 1.05 * max(1.0, float(np.nanmax(np.abs(data["lfc"]), initial=0.0)))
        _reach(self.volcano.x_range, -furthest, furthest)
        odds = data["log_odds"][np.isfinite(data["log_odds"])]
        below = 0.1 if of_samples else 1.0
        _reach(self.volcano.y_range, min(odds, default=0.0) - below, max(odds, default=0.0) + 1)
        self.volcano.visible = self.table.visible = True

    def say(self, sentence: str, *, explain: bool = False) -> None:
        """Show a sentence, as HTML, and how to read plot and table."""
        self.said.text = sentence + (self._key if explain else "")

    def clear(self, sentence: str) -> None:
        """Show only a sentence, because nothing is compared."""
        self.say(sentence)
        self.volcano.visible = self.table.visible = False

    def _search(self, text: str) -> None:
        self._found.booleans = _holds(self.source.data["feature"], text)


def _reach(side: Range1d, low: float, high: float) -> None:
    side.update(start=float(low), end=float(high), reset_start=float(low), reset_end=float(high))


def columns_of(table: pd.DataFrame, tidy: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return what plot and table show of a table of `Model.differential_expression`."""
    is_gene = (table["modality"] == "rna").to_numpy()
    called = table[next(c for c in table if str(c).startswith("is_de_fdr_"))].to_numpy(bool)
    if "p_value" in table:  # over samples
        names = ("lfc_mean", "p_adjusted", "scale1", "scale2")
        unit = np.where(is_gene, DENOISED_LIBRARY_SIZE, 1)
        height = -np.log10(np.maximum(table["p_value"].to_numpy(float), 10**-_MOST_LOG_ODDS))
    else:
        names = ("lfc_median", "proba_de", "raw_mean1", "raw_mean2")
        unit = np.ones(len(table))
        height = np.clip(table["bayes_factor"].to_numpy(float), -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    lfc, proba, first, second = (table[name].to_numpy(float) for name in names)
    shown = [
        str(name) if gene else tidy.get(str(name), str(name))
        for name, gene in zip(table.index, is_gene, strict=True)
    ]
    return {
        "feature": table.index.to_numpy(object),
        "tidy": np.array(shown, dtype=object),
        "what": np.where(is_gene, "gene", "protein").astype(object),
        "lfc": lfc,
        "proba": proba,
        "raw1": first * unit,
        "raw2": second * unit,
        "log_odds": height,
        "kind": np.where(called, np.where(is_gene, 1, 2), 0).astype(float),
    }


def _holds(names: Iterable[str], text: str) -> list[bool]:
    wanted = (text or "").casefold().strip()
    return [wanted in str(name).casefold() for name in names]
