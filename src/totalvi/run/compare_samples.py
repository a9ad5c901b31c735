"""Tables of conditions compared over samples, within the clusters of a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from totalvi.errors import DataError
from totalvi.run.folder import CLUSTER_COLUMN

if TYPE_CHECKING:  # the report takes only what it shows, and loads no torch
    from matplotlib.figure import Figure

    from totalvi.data.describe import Data
    from totalvi.model import Model
    from totalvi.run.record import RunOptions

FDR_TARGET = 0.05
POWER_FIGURE = "power_by_samples.png"
_MIN_CELLS = 10  # as by default of Model.differential_expression
_SHOWN_FOR_EACH = 5  # of a comparison, beside those called, for their levels
_MOST_SHOWN = 200  # of the features with levels
_FEW_SHOWN = 10  # in the report, where none is called


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
    - ``condition_samples``: the level of each sample, of the features that are called, of the five
      likeliest of each comparison, and of the ten likeliest of all; log2, up to a factor that the genes
      of a sample share.
    - ``condition_abundance``: as `Model.differential_abundance`, for ``groupby``.
    - ``condition_power``: as `expected_power`, of a twofold change.
    """
    from totalvi.posterior.differential.comparison import Pseudocounts
    from totalvi.posterior.differential.differential_query import over_samples
    from totalvi.posterior.differential.differential_tables import (
        levels_table,
        raw_counts,
        sample_table,
    )
    from totalvi.posterior.differential.moderated import expected_power
    from totalvi.posterior.differential.moments import ScaleQuery, batch_weights
    from totalvi.posterior.draws import ProteinScale
    from totalvi.posterior.question import QUERY_BATCH_SIZE
    from totalvi.posterior.unmeasured import measured_by_batch

    question = model._question(data, None, QUERY_BATCH_SIZE, False, model.seed, 1)
    question = replace(question, transform_batch=(None,))
    query = ScaleQuery(
        ProteinScale(False, False, False), batch_weights(measured_by_batch(question.data), ())
    )
    chosen = (design.groupby, design.condition, design.against, None, None)
    found, groups, within = over_samples(
        question, query, Pseudocounts(None, None), design.sample_key,
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
    first |= table["p_value"].rank(method="first") <= _FEW_SHOWN
    shown = table[(called | first) & table["p_value"].notna()]
    shown = shown.sort_values("p_value", kind="stable").head(_MOST_SHOWN)
    parts = []
    for name, row in shown.iterrows():
        of_comparison = levels.xs(row["comparison"], level="comparison")
        column = levels.columns == (row["modality"], name)
        part = of_comparison.loc[:, column].set_axis(["level"], axis=1).reset_index()
        part.insert(0, "comparison", row["comparison"])
        part.insert(1, "modality", row["modality"])
        part.insert(2, "feature", str(name))
        parts.append(part)
    columns = ["comparison", "modality", "feature", "group", "sample", "n_cells", "level"]
    joined = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return joined.set_index("feature")


def power_figure(power: pd.DataFrame) -> Figure:
    """Draw the mean power against a twofold change by the number of samples in each group.

    The band holds the middle half of the features.
    """
    from totalvi.figures.png_style import new_figure, plain
    from totalvi.figures.style import INK, QUIET, category_colors

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
    axes.set_xticks(sizes)
    axes.set_title("Expected power with more samples like these", color=INK, fontsize=9, loc="left")
    axes.legend(frameon=False)
    return figure


def write_conditions(model: Model, data: Data | None, design: Design, folder: Path) -> list[str]:
    """Write the tables, and the figure of the power, into a folder of results; return warnings."""
    from totalvi.figures.png_style import save
    from totalvi.run.table_files import write_tables

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


def shown_conditions(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Return what the report shows of the tables; None: nothing was compared.

    ``rows`` are the called features, or the likeliest where none is called, each with ``dots``: of
    each sample the group (0 or 1), the place between the lowest and highest level, and words.
    """
    if "conditions" not in tables or "condition_samples" not in tables:
        return None
    table = tables["conditions"].dropna(subset="p_value").sort_values("p_value", kind="stable")
    called = table[table[f"is_de_fdr_{FDR_TARGET:g}"]]
    shown = called.head(_MOST_SHOWN) if len(called) else table.head(_FEW_SHOWN)
    levels = tables["condition_samples"].reset_index()
    by_feature = dict(iter(levels.groupby(["comparison", "modality", "feature"], observed=True)))
    rows = []
    for name, row in shown.iterrows():
        of_samples = by_feature.get((row["comparison"], row["modality"], name), levels.head(0))
        rows.append(
            _effect(row, str(name), "lfc_mean", "lfc_ci_low", "lfc_ci_high")
            | {"kind": "gene" if row["modality"] == "rna" else "protein", "dots": _dots(of_samples)}
        )
    abundance = tables.get("condition_abundance", pd.DataFrame())
    return {
        "n_called": len(called),
        "n_tested": len(table),
        "n_comparisons": table["comparison"].nunique(),
        "designs": sorted(table["design"].unique()) if "design" in table else [],
        "n_samples": [int(table[f"n_samples{place}"].max()) for place in (1, 2)]
        if len(table)
        else [],
        "rows": rows,
        "abundance": [
            _effect(row, str(name), "log2_ratio", "ci_low", "ci_high")
            for name, row in abundance.iterrows()
        ],
    }


def _effect(row: pd.Series, name: str, effect: str, low: str, high: str) -> dict[str, Any]:
    return {
        "name": name,
        "comparison": row["comparison"],
        "effect": row[effect],
        "low": row[low],
        "high": row[high],
        "p": row["p_adjusted"],
        "called": row["p_adjusted"] <= FDR_TARGET,
    }


def _dots(levels: pd.DataFrame) -> list[dict[str, Any]]:
    known = levels.dropna(subset="level")
    if not len(known):
        return []
    low, room = known["level"].min(), max(known["level"].max() - known["level"].min(), 1e-9)
    groups = list(dict.fromkeys(known["group"]))
    return [
        {
            "group": groups.index(row["group"]),
            "place": (row["level"] - low) / room,
            "words": f"{row['sample']}, {row['group']}: {row['level']:.2f}, {row['n_cells']} cells",
        }
        for _, row in known.iterrows()
    ]
