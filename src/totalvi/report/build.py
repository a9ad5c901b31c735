"""Build the report of a run, one self-contained HTML file, with the numbers behind its selectors."""

import json
import re
import shlex
from collections.abc import Hashable, Iterator
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from totalvi.figures.cell_maps import category_legend, clear_label_places, label_places
from totalvi.figures.style import PROTEIN_SCALE, RNA_SCALE, category_colors
from totalvi.posterior.gates.memberships import UNDECIDED
from totalvi.report.report_data import (
    CLUSTERS,
    Results,
    cells_file,
    mean_count,
    number,
    packed,
    packed_counts,
    packed_json,
    packed_levels,
    read_genes,
    read_results,
    read_run_record,
    size_of,
)
from totalvi.report.report_figures import (
    HEIGHT,
    WIDTH,
    control_cards,
    embedded,
    make_figures,
    protein_cards,
)
from totalvi.report.report_gates import named_populations, shown_doublets
from totalvi.report.report_modalities import modality_map, shown_modalities
from totalvi.run.compare_samples import shown_conditions
from totalvi.run.folder import PREDICTED_COLUMN, RECORD, staged_file
from totalvi.run.record import OF_THE_OUTPUT

REPORT = "report.html"
_PAGE_NEEDS = {
    *("results file", "latent space", "denoised counts", "clusters and UMAP", "tables"),
}
"""Steps of a run without which the report has little to show."""
ABOUT_ANTIBODIES = re.compile(r"\d+ of \d+ antibodies: ")  # which the page lists by name
MAX_DRAWN = 10_000
PROTEIN_BYTES = 4_500_000  # in the page, of all proteins
BYTES_PER_VALUE = 4.5  # of one cell's raw count, denoised count and foreground probability
DATA_BYTES = 7_000_000  # of proteins and genes together; Bokeh and the rest take 1.5 MB
MAX_GENES = 400
MAX_ROWS = 40_000  # of differential expression

COLUMNS = {
    "lfc_median": 4,
    "lfc_ci_low": 4,
    "lfc_ci_high": 4,
    "bayes_factor": 3,
    "proba_de": 4,
    "raw_mean1": 4,
    "raw_mean2": 4,
    "non_zeros_proportion1": 4,
    "non_zeros_proportion2": 4,
}
"""Columns of differential expression that the page shows, and the decimals it gets."""


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
    figures = make_figures(results) | modality_map(results)
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
        conditions=shown_conditions(tables),
        populations=named_populations(results),
        doublets=shown_doublets(results),
        modalities=shown_modalities(results),
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
        loader=PackageLoader("totalvi.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"number": number, "mean_count": mean_count, "json": json_in_page}
    return environment.get_template(name)


def _source(name: str) -> Markup:
    """Return a style or script of ours."""
    path = files("totalvi.report") / "page" / name
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
    return record.get("title") or Path(str(record["arguments"]["input"])).name


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


def n_drawn(n_proteins: int) -> int:
    """Return how many cells to draw: fewer of wide panels, so that the page stays small.

    Examples
    --------
    >>> n_drawn(14), n_drawn(134), n_drawn(300)
    (10000, 7462, 3333)
    """
    return min(MAX_DRAWN, int(PROTEIN_BYTES / BYTES_PER_VALUE / max(n_proteins, 1)))


def data_of_page(results: Results) -> dict[str, Any]:
    """Return everything that the page's script reads, as JSON values."""
    proteins = _proteins(results)
    left = DATA_BYTES - sum(size_of(entry["layers"]) for entry in proteins)
    return {
        "cells": len(results.drawn.rows),
        "cells_in_all": len(results.umap),
        "weights": packed(results.drawn.weights.astype("<f4").tobytes()),
        "categories": _categories(results),
        "features": [*proteins, *_genes(results, left)],
        "scales": {
            kind: {
                "cofactor": scale.cofactor,
                "ticks": [[place, label] for place, label in scale.ticks(fine=True).items()],
            }
            for kind, scale in (("protein", PROTEIN_SCALE), ("gene", RNA_SCALE))
        },
        "differential": _differential(results),
    }


def _categories(results: Results) -> list[dict[str, Any]]:
    named = {key: key for key in ("population", PREDICTED_COLUMN) if key in results.obs}
    wanted = named | {"cluster": CLUSTERS}
    wanted |= {key: key for key in (results.batch_key, results.labels_key) if key is not None}
    rows = results.drawn.rows
    categories = []
    for name, column in wanted.items():
        values = pd.Categorical(results.obs[column]).remove_unused_categories()
        names = [str(category) for category in values.categories]
        codes = values.codes.astype(np.int32)
        n_cells = np.bincount(codes[codes >= 0], minlength=len(names))
        labelled = codes[rows]
        label = label_places
        if name == "population":  # many are small, and those of some lie about the map
            label = clear_label_places
            labelled = np.where(values[rows] == UNDECIDED, -1, labelled)
        places = label(results.umap[rows], labelled, names) if len(names) <= 40 else {}
        kind = np.uint8 if len(names) < 255 else np.uint16
        shown = np.where(codes < 0, np.iinfo(kind).max, codes)[rows].astype(kind)
        categories.append(
            {
                "name": name,
                "names": names,
                "n_cells": n_cells.tolist(),
                "colors": category_colors(len(names)),
                "labels": places if column != results.batch_key else {},
                "type": np.dtype(kind).name,
                "data": packed(shown.astype(np.dtype(kind).newbyteorder("<")).tobytes()),
            }
        )
    return categories


def _proteins(results: Results) -> list[dict[str, Any]]:
    entries = []
    for i, name in enumerate(results.protein_names):
        denoised = PROTEIN_SCALE.forward(results.denoised[:, i])
        layers = {
            "denoised": packed_levels(denoised, 2000) | {"is_place": True},
            "raw": _raw(results.raw[:, i], PROTEIN_SCALE),
            "foreground": packed_levels(results.foreground[:, i], 201) | {"is_place": True},
        }
        entries.append({"name": name, "kind": "protein", "layers": layers})
    return entries


def _genes(results: Results, left: int) -> Iterator[dict[str, Any]]:
    """Return the genes that mark the clusters, the best of each first, until the page is full."""
    chosen = marker_genes(results)[:MAX_GENES]
    if not chosen:
        return
    place = {name: i for i, name in enumerate(results.gene_names)}
    raw, denoised = read_genes(results, [place[name] for name in chosen])
    for i, name in enumerate(chosen):
        layers = {"raw": _raw(raw[:, i], RNA_SCALE)}
        if denoised is not None:
            levels = packed_levels(RNA_SCALE.forward(denoised[:, i]), 251)
            layers["denoised"] = levels | {"is_place": True}
        left -= size_of(layers)
        if left < 0:
            return
        yield {"name": name, "kind": "gene", "layers": layers}


def marker_genes(results: Results) -> list[str]:
    """Return genes, the likeliest marker of each cluster first, then the second of each, ..."""
    known = set(results.gene_names)
    table = results.tables.get("differential_expression")
    ranked: list[list[str]] = []
    if table is not None:
        up = table[(table["modality"] == "rna") & (table["lfc_median"] > 0)]
        up = up.sort_values("lfc_ci_low", ascending=False)
        ranked = [list(of_cluster.index) for _, of_cluster in up.groupby("group1")]
    turns = (name for turn in zip_longest(*ranked) for name in turn if name in known)
    return list(dict.fromkeys([*turns, *results.gene_names]))


def _raw(counts: np.ndarray, scale: Any) -> dict[str, Any]:
    known = counts[np.isfinite(counts)]
    if (known == np.round(known)).all():
        return packed_counts(counts) | {"is_place": False}
    return packed_levels(scale.forward(counts), 2000) | {"is_place": True}


def _differential(results: Results) -> dict[str, Any] | None:
    table = results.tables.get("differential_expression")
    if table is None:
        return None
    comparisons = list(pd.unique(table["comparison"]))
    called = next(name for name in table.columns.astype(str) if name.startswith("is_de_fdr"))
    is_protein = table["modality"] == "protein"
    rank = table.groupby("comparison", sort=False).cumcount()
    per_comparison = max(MAX_ROWS // len(comparisons), 50)
    kept = table[(rank < per_comparison) | is_protein]
    names = list(dict.fromkeys(kept.index))
    number = {name: i for i, name in enumerate(names)}
    columns: dict[str, Any] = {
        "feature": [number[name] for name in kept.index],
        "comparison": pd.Categorical(kept["comparison"], categories=comparisons).codes.tolist(),
        "is_protein": (kept["modality"] == "protein").astype(int).tolist(),
        "called": kept[called].astype(bool).astype(int).tolist(),
    }
    for name, decimals in COLUMNS.items():
        values = kept[name].round(decimals).astype(object)
        columns[name] = values.where(kept[name].notna(), None).tolist()
    return {
        "comparisons": comparisons,
        "names": names,
        "rows": len(kept),
        "rows_in_all": len(table),
        "fdr": called.removeprefix("is_de_fdr_"),
        "columns": packed_json(columns),
    }
