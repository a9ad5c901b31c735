"""What the report shows of what RNA and proteins each tell: a map, and a table of populations."""

from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from totalvi.figures.cell_maps import add_color_bar, add_density, cell_map, value_mapper
from totalvi.report.report_data import CLUSTERS, Results
from totalvi.run.folder import NATS

_ADDED = "nats_protein_added"
_EXTREME = 0.01  # share of the cells at each end of the colours
_NAMED_FEATURES = 4  # of a population and modality


def modality_map(results: Results) -> dict[str, figure]:
    """Return the map of the cells asked, by the nats that proteins add; none: no run asked."""
    if _ADDED not in results.obs:
        return {}
    values = results.obs[_ADDED].to_numpy()
    asked = np.flatnonzero(np.isfinite(values))
    order = np.random.default_rng(0).permutation(asked)
    source = ColumnDataSource({
        "umap_1": results.umap[order, 0].astype(np.float32),
        "umap_2": results.umap[order, 1].astype(np.float32),
        "color": values[order].astype(np.float32),
    })  # fmt: skip
    low, high = np.quantile(values[asked], [_EXTREME, 1 - _EXTREME])
    mapper = value_mapper(min(float(low), 0.0), max(float(high), float(low) + 1e-6))
    drawn = cell_map(source, mapper, height=464)
    if len(asked) < len(values):
        add_density(drawn, results.umap)
    add_color_bar(drawn, mapper)
    return {"protein_added": drawn}


def shown_modalities(results: Results) -> dict[str, Any] | None:
    """Return what the page shows of the nats of populations, or of clusters; None: no run asked.

    ``rows`` are the groups, those where proteins add most first, with the proteins and genes that tell
    most by themselves.
    """
    if _ADDED not in results.obs or "modality_features" not in results.tables:
        return None
    features = results.tables["modality_features"]
    of = "population" if "population" in results.obs else "cluster"
    groups = results.obs["population" if of == "population" else CLUSTERS].astype(str)
    asked = results.obs[results.obs[_ADDED].notna()]
    means = asked[list(NATS)].groupby(groups[asked.index]).mean()
    sizes = groups[asked.index].value_counts()
    same = features[features["of"] == of]  # `totalvi gate` may have named the cells since
    rows = [
        {**row, "name": str(name), "cells": int(sizes[str(name)])}
        | {kind: _first(same, str(name), kind) for kind in ("protein", "rna")}
        for name, row in means.sort_values(_ADDED, ascending=False).iterrows()
    ]
    return {
        "of": of,
        "n_asked": len(asked),
        "all": asked[list(NATS)].mean().to_dict(),
        "highest": max(float(means[_ADDED].max()), 1e-6),
        "rows": rows,
    }


def _first(features: pd.DataFrame, group: str, modality: str) -> str:
    """Return the names of the features of a group and modality that tell most."""
    chosen = features[(features.index == group) & (features["modality"] == modality)]
    return ", ".join(chosen["feature"].head(_NAMED_FEATURES))
