"""Build the report of a run: one self-contained HTML file."""

import json
import re
import shlex
from collections.abc import Hashable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from totalvi.figures.cell_maps import category_legend
from totalvi.figures.style import category_colors
from totalvi.run.folder import RECORD, staged_file
from totalvi.run.record import OF_THE_OUTPUT
from totalvi.view.report.page_data import data_of_page, n_drawn
from totalvi.view.report.report_data import (
    Results,
    cells_file,
    mean_count,
    number,
    read_results,
    read_run_record,
)
from totalvi.view.report.report_figures import (
    HEIGHT,
    WIDTH,
    control_cards,
    embedded,
    make_figures,
    protein_cards,
)

REPORT = "report.html"
_PAGE_NEEDS = {
    *("results file", "latent space", "denoised counts", "clusters and UMAP", "tables"),
}
"""Steps of a run without which the report has little to show."""
_FEW_CONDITIONS, _MOST_CONDITIONS = 10, 200  # rows of conditions: where none is called, at most
_CALLED = 0.05
ABOUT_ANTIBODIES = re.compile(r"\d+ of \d+ antibodies: ")  # which the page lists by name


def build_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run, and replace an existing one.

    Parameters
    ----------
    folder
        Folder of results of `totalvi run`; its model is not needed. If steps of the run failed, the
        page names them, and shows the other results if there are enough.
    output
        File to write, which ends in ``.html``. None: ``report.html`` in the folder.

    Returns
    -------
    pathlib.Path
        Path of the report: one file, below 10 MB, that opens without an internet connection.

    Raises
    ------
    OutputError
        When the folder is not one of a run, or the file cannot be written.
    ReadError
        When a file in it is damaged.
    """
    folder = Path(folder)
    path = folder / REPORT if output is None else Path(output)
    record = read_run_record(folder)
    if _PAGE_NEEDS & set(record.get("failed", {})):
        page = render_incomplete(folder, record)
    else:
        page = render(read_results(folder, n_drawn(_n_proteins(folder))))
    with staged_file(path, suffix=".html", overwrite=True) as staged:
        staged.write_text(page, encoding="utf-8")
    return path


def render(results: Results) -> str:
    """Return the page."""
    figures = make_figures(results)
    document, figure_ids = embedded(figures)
    tables = results.tables
    data = data_of_page(results)
    return _template("report.html").render(
        record=results.record,
        **_missing(results.folder, results.record),
        name=_name(results.record),
        warnings=[w for w in results.record["warnings"] if not ABOUT_ANTIBODIES.match(w)],
        tables=tables,
        cards=protein_cards(results),
        control_cards=control_cards(results),
        droplets=_droplets(tables["ambient"]) if "ambient" in tables else [],
        card_width=WIDTH,
        card_height=HEIGHT,
        figures=set(figures),
        batches=_batches(results),
        conditions=_conditions(tables),
        legends=[
            (c["name"], Markup(category_legend(c["names"], c["n_cells"])))  # nosec B704
            for c in data["categories"]
        ],
        arguments=_arguments(results.record),
        command=_repeating(results),
        data=data
        | {
            "document": document,
            "figure_ids": figure_ids,
            "cells_file": cells_file(results.folder),
        },
        style=_source("report.css"),
        script=_source("report.js"),
        bokeh=[Markup(source) for source in Resources(mode="inline", components=["bokeh"]).js_raw],  # nosec B704
    )


def render_incomplete(folder: Path, record: dict[str, Any]) -> str:
    """Return the page of a run that lacks the main results."""
    return _template("incomplete.html").render(
        record=record,
        **_missing(folder, record),
        name=_name(record),
        there=sorted(path.name for path in folder.iterdir() if path.name[0] not in "."),
        style=_source("report.css"),
    )


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("totalvi.view.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"number": number, "mean_count": mean_count, "json": json_in_page}
    return environment.get_template(name)


def _source(name: str) -> Markup:
    """Return a style or script of ours."""
    path = files("totalvi.view.report") / "page" / name
    return Markup(path.read_text(encoding="utf-8"))  # nosec B704


def _missing(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the failed steps with their errors, and the command that completes them."""
    command = None
    if "input" in record["input_sha256"]:
        place = shlex.quote(str(folder))
        command = f"totalvi run --from {shlex.quote(str(folder / RECORD))} -o {place} --resume"
    return {"missing": record.get("failed", {}), "completing": command}


def json_in_page(value: Any) -> Markup:
    """Return JSON that no name in it can break out of.

    Examples
    --------
    >>> print(json_in_page("</script>"))
    "\\u003c/script>"
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))  # nosec B704


def _n_proteins(folder: Path) -> int:
    path = folder / "tables" / "proteins.csv"
    return len(pd.read_csv(path, usecols=[0])) if path.is_file() else 1


def _name(record: dict[str, Any]) -> str:
    return Path(str(record["arguments"]["input"])).name


def _arguments(record: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the run, without those that were left out."""
    given = {k: v for k, v in record["arguments"].items() if k not in OF_THE_OUTPUT}
    return {k: v for k, v in given.items() if v is not None and v is not False and v != []}


def _repeating(results: Results) -> str | None:
    """Return the command that repeats the run; None when its counts were in memory."""
    if "input" not in results.record["input_sha256"]:
        return None
    record = shlex.quote(str(results.folder / "run.json"))
    return f"totalvi run --from {record} -o again"


def _droplets(ambient: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the antibodies in the empty droplets of each batch, the most frequent first."""
    rows = []
    for batch, of_batch in ambient.groupby("batch", sort=False):
        means = np.exp(of_batch["log_mean"]).sort_values(ascending=False)
        rows.append(
            {
                "batch": batch or "all cells",
                "droplets": of_batch["n_droplets"].max(),
                "counts": means.sum(),
                "most": [(name, 100 * mean / means.sum()) for name, mean in means[:3].items()],
            }
        )
    return rows


def _batches(results: Results) -> list[dict[Hashable, Any]]:
    """Return the medians of each batch's cells, with its mixing if there are several batches."""
    cells = results.tables["cells"]
    table = cells.groupby("batch", sort=False)[["rna_total", "protein_total"]].median()
    table["cells"] = cells["batch"].value_counts()
    mixing = results.tables.get("batches")
    if mixing is not None:
        table = table.join(mixing.drop(columns="cells"))
    return table.rename_axis("batch").reset_index().to_dict("records")


def _conditions(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Return what the page says of conditions compared over samples; None: nothing was compared."""
    if "conditions" not in tables or "condition_samples" not in tables:
        return None
    table = tables["conditions"].dropna(subset="p_value")
    is_called = next(name for name in table if str(name).startswith("is_de"))
    table = table.sort_values("p_value", kind="stable")
    called = table[table[is_called]]
    shown = called if len(called) else table.head(_FEW_CONDITIONS)
    levels = tables["condition_samples"].reset_index()
    by_feature = dict(iter(levels.groupby(["comparison", "modality", "feature"], observed=True)))
    rows = []
    for name, row in shown.head(_MOST_CONDITIONS).iterrows():
        key = (row["comparison"], row["modality"], name)
        rows.append(
            {
                "name": name,
                "kind": {"rna": "gene"}.get(row["modality"], "protein"),
                "comparison": row["comparison"],
                "effect": row["lfc_mean"],
                "low": row["lfc_ci_low"],
                "high": row["lfc_ci_high"],
                "p": row["p_adjusted"],
                "dots": sample_dots(by_feature[key]) if key in by_feature else "",
            }
        )
    abundance = [
        {
            "name": name,
            "comparison": row["comparison"],
            "effect": row["log2_ratio"],
            "low": row["ci_low"],
            "high": row["ci_high"],
            "p": row["p_adjusted"],
            "called": row["p_adjusted"] <= _CALLED,
        }
        for name, row in tables.get("condition_abundance", pd.DataFrame()).iterrows()
    ]
    words = (
        f"{len(called):,} of {len(table):,} tests are called, in {table['comparison'].nunique()} "
        f"comparisons of {table['n_samples1'].max():.0f} with {table['n_samples2'].max():.0f} samples "
        "at most."
    )
    title = "Called features" if len(called) else "No feature is called; the likeliest are"
    return {"words": words, "rows": rows, "abundance": abundance, "title": title}


def sample_dots(levels: pd.DataFrame, width: int = 180, height: int = 30) -> Markup:
    """Return a strip of a dot for each sample, by group, as SVG.

    Parameters
    ----------
    levels
        ``group``, ``sample``, ``n_cells`` and ``level`` of each sample.
    """
    known = levels.dropna(subset="level")
    low, high = known["level"].min(), known["level"].max()
    room = max(high - low, 1e-9)
    groups = list(dict.fromkeys(known["group"]))
    parts = []
    for _, row in known.iterrows():
        x = 8 + (width - 16) * (row["level"] - low) / room
        y = height * (groups.index(row["group"]) + 0.5) / len(groups)
        words = f"{row['sample']}, {row['group']}: {row['level']:.2f}, {row['n_cells']} cells"
        color = category_colors(len(groups))[groups.index(row["group"])]
        parts.append(
            Markup(
                '<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}" fill-opacity="0.7">'
                "<title>{}</title></circle>"
            ).format(x, y, color, words)
        )
    name = f"Levels of {len(known)} samples, from {low:.2f} to {high:.2f}"
    return Markup('<svg width="{}" height="{}" role="img" aria-label="{}">{}</svg>').format(
        width, height, name, Markup("").join(parts)
    )
