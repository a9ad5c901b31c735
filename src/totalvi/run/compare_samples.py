"""Tables of conditions compared over samples, within the clusters of a run."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from totalvi.data.describe import Data
from totalvi.errors import DataError
from totalvi.figures.png_style import new_figure, plain, save
from totalvi.figures.style import INK, QUIET, category_colors
from totalvi.model import Model
from totalvi.posterior.differential.comparison import Pseudocounts
from totalvi.posterior.differential.differential_query import over_samples
from totalvi.posterior.differential.differential_tables import levels_table, sample_table
from totalvi.posterior.differential.groups import raw_counts
from totalvi.posterior.differential.moderated import expected_power
from totalvi.posterior.differential.moments import ScaleQuery, batch_weights
from totalvi.posterior.draws import ProteinScale
from totalvi.posterior.question import QUERY_BATCH_SIZE
from totalvi.posterior.unmeasured import measured_by_batch
from totalvi.run.folder import CLUSTER_COLUMN
from totalvi.run.record import RunOptions
from totalvi.run.results import write_tables

FDR_TARGET = 0.05
POWER_FIGURE = "power_by_samples.png"
_PROTEIN_PRIOR_COUNT, _MIN_CELLS = 0.1, 10  # as by default of Model.differential_expression
_SHOWN_FOR_EACH = 5  # of a comparison, beside those called, for their levels
_MOST_SHOWN = 200  # of the features with levels


class Design(NamedTuple):
    """What samples are compared by: columns of ``obs``, and conditions.

    ``condition`` is compared with ``against`` (None: the first), within each category of ``groupby``.
    """

    sample_key: str
    condition_key: str
    groupby: str | None
    condition: str | None = None
    against: str | None = None
    block_key: str | None = None
    covariate_keys: Sequence[str] = ()


def condition_tables(model: Model, data: Data | None, design: Design) -> dict[str, pd.DataFrame]:
    """Return the tables of a comparison of conditions over samples, in one pass over the cells.

    Returns
    -------
    - ``conditions``: as `Model.differential_expression` with ``sample_key``.
    - ``condition_samples``: the level of each sample, of the features that are called, and of the five
      likeliest of each comparison; log2, up to a factor that the genes of a sample share.
    - ``condition_abundance``: as `Model.differential_abundance`, for ``groupby``.
    - ``condition_power``: as `expected_power`, of a twofold change.
    """
    question = model._question(data, None, QUERY_BATCH_SIZE, False, model.seed, 1)
    question = replace(question, transform_batch=(None,))
    query = ScaleQuery(
        ProteinScale(False, False, False), batch_weights(measured_by_batch(question.data), ())
    )
    chosen = (design.groupby, design.condition, design.against, None, None)
    found, groups, within = over_samples(
        question, query, Pseudocounts(None, _PROTEIN_PRIOR_COUNT), design.sample_key,
        design.condition_key, design.block_key, design.covariate_keys, _MIN_CELLS, chosen,
    )  # fmt: skip
    names = np.array(model.schema.gene_names), np.array(model.schema.protein_names)
    raw = raw_counts(question.data, groups.part, groups.n_parts)
    table = sample_table(found, groups, within, *names, raw, FDR_TARGET)
    tables = {
        "conditions": table,
        "condition_samples": _levels_of(table, levels_table(found, groups, within, *names)),
        "condition_power": expected_power(table),
    }
    if design.groupby is not None:
        tables["condition_abundance"] = model.differential_abundance(
            data, sample_key=design.sample_key, condition_key=design.condition_key,
            groupby=design.groupby, group1=design.condition, group2=design.against,
            block_key=design.block_key, covariate_keys=design.covariate_keys, progress=False,
        ).rename_axis("within")  # fmt: skip
    return tables


def _levels_of(table: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each sample and feature worth showing."""
    called = table[f"is_de_fdr_{FDR_TARGET:g}"]
    first = table.groupby("comparison", observed=True).cumcount() < _SHOWN_FOR_EACH
    shown = table[(called | first) & table["p_value"].notna()]
    shown = shown.sort_values("p_value", kind="stable").head(_MOST_SHOWN)
    parts = []
    for name, row in shown.iterrows():
        of_comparison = levels.xs(row["comparison"], level="comparison")
        column = list(levels.columns).index((row["modality"], name))
        part = of_comparison.iloc[:, column].rename("level").reset_index()
        part.insert(0, "comparison", row["comparison"])
        part.insert(1, "modality", row["modality"])
        part.insert(2, "feature", name)
        parts.append(part)
    columns = ["comparison", "modality", "feature", "group", "sample", "n_cells", "level"]
    joined = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return joined.set_index("feature")


def power_figure(power: pd.DataFrame) -> Figure:
    """Draw the mean power against a twofold change by the number of samples in each group.

    The band holds the middle half of the features.
    """
    figure = new_figure(5.2, 3.4, layout="constrained")
    axes = figure.add_subplot()
    columns = [name for name in power if str(name).startswith("power_")]
    sizes = [int(str(name).removeprefix("power_")) for name in columns]
    for color, (modality, rows) in zip(
        category_colors(2), power.groupby("modality", observed=True, sort=False), strict=False
    ):
        values = rows[columns]
        axes.fill_between(
            sizes, values.quantile(0.25), values.quantile(0.75), color=color, alpha=0.2
        )
        label = {"rna": "genes", "protein": "proteins"}.get(str(modality), plain(str(modality)))
        axes.plot(sizes, values.mean(), color=color, label=label, marker="o", markersize=3)
    axes.axhline(0.8, color=QUIET, linewidth=0.8, linestyle=":")
    axes.set(xlabel="samples in each group", ylabel="power, twofold change", ylim=(0, 1.02))
    axes.set_title("Expected power with more samples like these", color=INK, fontsize=9, loc="left")
    axes.legend(frameon=False)
    return figure


def write_conditions(model: Model, data: Data | None, design: Design, folder: Path) -> list[str]:
    """Write the tables, and the figure of the power, into a folder of results; return warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        tables = condition_tables(model, data, design)
    write_tables(tables, folder / "tables")
    if len(tables["condition_power"]):
        (folder / "figures").mkdir(exist_ok=True)
        save(power_figure(tables["condition_power"]), folder / "figures" / POWER_FIGURE)
    return list(dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning))


def conditions_of_run(
    model: Model, data: Data | None, options: RunOptions, folder: Path
) -> list[str]:
    """Write the tables within clusters if a run was asked to; too few samples are but a warning."""
    if options.sample_key is None or options.condition_key is None:
        return []
    design = Design(options.sample_key, options.condition_key, CLUSTER_COLUMN)
    try:
        return write_conditions(model, data, design, folder)
    except DataError as error:
        return [f"conditions were not compared: {error}"]
