"""What the page gets of many categories and many differences."""

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from totalvi.report.build import COLUMNS, MAX_ROWS, _categories, _differential
from totalvi.report.report_data import CLUSTERS, Results, Sample


def results(names: list[str], tables: dict[str, pd.DataFrame]) -> Results:
    """Return the results of a run with one cell of each cluster, of which every second is drawn."""
    n_cells, rows = len(names), np.arange(0, len(names), 2)
    nothing = np.empty((len(rows), 0))
    obs = pd.DataFrame({CLUSTERS: pd.Categorical(names, categories=names)})
    drawn = Sample(rows, np.full(len(rows), 2.0))
    umap = np.random.default_rng(0).normal(size=(n_cells, 2))
    controls = pd.DataFrame(index=range(len(rows)))
    return Results(
        Path(), {"arguments": {}}, tables, obs, umap, drawn, nothing, nothing, nothing, [], [],
        np.zeros(0, dtype=bool), controls,
    )  # fmt: skip


def unpacked(text: str) -> bytes:
    return gzip.decompress(base64.b64decode(text))


@pytest.mark.parametrize("n_clusters", [39, 41, 127, 129, 254, 255, 256, 300])
def test_each_cell_has_its_cluster_and_few_have_labels(n_clusters: int) -> None:
    names = [f"cluster {i}" for i in range(n_clusters)]
    (entry,) = _categories(results(names, {}))
    codes = np.frombuffer(unpacked(entry["data"]), dtype=np.dtype(entry["type"]))
    assert [entry["names"][code] for code in codes] == names[::2]
    assert entry["n_cells"] == [1] * n_clusters
    assert entry["labels"].get("text", []) == (names[::2] if n_clusters <= 40 else [])


@pytest.mark.parametrize("per_comparison", [MAX_ROWS // 4, MAX_ROWS // 4 + 100])
def test_of_many_differences_the_first_of_each_comparison_are_shown(per_comparison: int) -> None:
    comparison = np.repeat(["a", "b", "c", "d"], per_comparison)
    table = pd.DataFrame(
        {
            "comparison": comparison,
            "modality": "rna",
            "is_de_fdr_0.05": True,
            **dict.fromkeys(COLUMNS, 1.0),
        },
        index=np.tile([f"gene_{i}" for i in range(per_comparison)], 4),
    )
    table.iloc[-1, table.columns.get_loc("modality")] = "protein"  # of which all are shown
    found = _differential(results(["a"], {"differential_expression": table}))
    assert found is not None
    beyond = per_comparison * 4 > MAX_ROWS
    assert found["rows"] == min(per_comparison * 4, MAX_ROWS) + beyond
    assert found["rows_in_all"] == len(table)
    columns = json.loads(unpacked(found["columns"]))
    shown = np.bincount(columns["comparison"])
    assert shown.tolist() == [MAX_ROWS // 4] * 3 + [MAX_ROWS // 4 + beyond]
    assert sum(columns["is_protein"]) == 1
