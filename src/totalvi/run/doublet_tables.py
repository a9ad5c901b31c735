"""Find the likely doublets of a run, and count them by sample and cluster."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from totalvi.model import Model
from totalvi.posterior.doublets import FEWEST_CELLS, rate_by_number
from totalvi.run.folder import (
    DOUBLET_PROBABILITY,
    DOUBLET_SCORE,
    HASHTAGS_CARRIED,
    LIKELY_DOUBLET,
)
from totalvi.run.named_cells import in_order
from totalvi.run.results import ResultsFile
from totalvi.run.table_files import write_tables


def doublets_of_run(
    model: Model,
    hashtags: pd.DataFrame | None,
    groups: tuple[pd.Series | None, pd.Categorical],
    rate: float | None,
    folder: Path,
    file: ResultsFile,
) -> pd.DataFrame | None:
    """Return the score and probability of each cell to be a doublet; None: the cells are very few.

    ``hashtags`` are what they say of each cell (`call_hashtags`), and ``groups`` the sample and the
    cluster of each.

    Adds them to the results file, and writes the table ``doublets``, which also has the rate that the
    probabilities rest on, the rate by the number of cells of a batch, and the share of counts captured.
    """
    names = model._training_data().cell_names
    if len(names) < FEWEST_CELLS:
        return None
    found = model.find_doublets(rate=rate, progress=False)
    cells = pd.DataFrame(
        {
            DOUBLET_SCORE: found.cells["score"].to_numpy(np.float32),
            DOUBLET_PROBABILITY: found.cells["probability"].to_numpy(np.float32),
        },
        index=names,
    )
    for name in cells:
        file.add_obs(str(name), cells[name].to_numpy())
    batches = np.bincount(model._training_data().batch)
    table = doublet_table(cells if hashtags is None else cells.join(hashtags), *groups)
    table["rate"] = found.rate
    table["rate_by_number"] = np.average([rate_by_number(int(n)) for n in batches], weights=batches)
    table["captured"] = found.captured
    tables = {"doublets": table}
    path = folder / "tables" / "cells.csv.gz"
    if path.is_file():  # of an incomplete run, which could not tell doublets
        types = {"cell": str, "batch": str, "cluster": str}
        known = pd.read_csv(path, dtype=types, keep_default_na=False).set_index("cell")
        tables["cells"] = known.assign(**{str(name): cells[name].to_numpy() for name in cells})
    write_tables(tables, folder / "tables")
    return cells


def read_doublets(file: ResultsFile, names: pd.Index) -> pd.DataFrame | None:
    """Return the columns of doublets in a results file; None: it has none."""
    obs = file.read("obs")
    found = [name for name in (DOUBLET_SCORE, DOUBLET_PROBABILITY) if name in obs]
    return obs[found].set_axis(names) if found else None


def n_likely(cells: pd.DataFrame | None) -> int | None:
    """Return how many cells are likely doublets; None: it was not told."""
    return None if cells is None else int((cells[DOUBLET_PROBABILITY] > LIKELY_DOUBLET).sum())


def doublet_table(
    cells: pd.DataFrame, sample: pd.Series | None, cluster: pd.Categorical
) -> pd.DataFrame:
    """Return the likely doublets among all cells, by sample and by cluster.

    Parameters
    ----------
    cells
        Columns ``doublet_probability`` and, with hashtags, ``hashtags_carried``.
    sample, cluster
        Of the cells.

    Returns
    -------
    A row for each group: what it is ``of`` ("all", "sample", "cluster"), its ``cells``, ``doublets``
    with a probability above 0.5, their ``percent``, and the ``expected`` number, the sum of the
    probabilities; with hashtags also the cells that carry several, and how many of these are likely
    doublets.
    """
    groups: list[tuple[str, str, np.ndarray]] = [("all", "all cells", np.ones(len(cells), bool))]
    for of, values in (("sample", sample), ("cluster", cluster)):
        if values is not None:
            names = np.asarray(values).astype(str)
            groups += [(of, name, names == name) for name in in_order(names)]
    rows = []
    for of, name, inside in groups:
        probability = cells.loc[inside, DOUBLET_PROBABILITY]
        called = probability > LIKELY_DOUBLET
        row: dict[str, Any] = {
            "group": name,
            "of": of,
            "cells": int(inside.sum()),
            "doublets": int(called.sum()),
            "percent": 100 * float(called.mean()),
            "expected": float(probability.sum()),
        }
        if HASHTAGS_CARRIED in cells:
            several = cells.loc[inside, HASHTAGS_CARRIED] > 1
            row |= {"several_hashtags": int(several.sum())}
            row |= {"several_hashtags_doublets": int((several & called).sum())}
        rows.append(row)
    return pd.DataFrame(rows).set_index("group")
