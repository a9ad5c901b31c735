"""Name the cells of a folder of results: of `totalvi run`, `map` or `impute`, or of any model."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.io.read import ReadOptions
from totalvi.errors import DataError, OutputError, argument, setting
from totalvi.model import Model
from totalvi.run.clusters import cells_to_map
from totalvi.run.commands import load_with_counts, values_of_the_user
from totalvi.run.count_splitting import held_out_counts
from totalvi.run.folder import MODEL, RECORD, STORE, staged_folder
from totalvi.run.impute_inputs import QUERY, in_query, joined_batches, query_alone, read_both
from totalvi.run.inputs import AS_IS, Reading
from totalvi.run.named_cells import Named, samples_and_clusters, write_populations
from totalvi.run.results import ResultsFile
from totalvi.run.suiting_hierarchy import compare_populations, name_cells_by
from totalvi.run.table_files import write_tables


def gate(
    model_path: Path,
    input: str | Path | None,
    hierarchy: str,
    output: Path | None,
    *,
    reading: Reading = AS_IS,
    sample_key: str | None = None,
    n_samples: int = 25,
) -> tuple[Path, pd.DataFrame]:
    """Write the tables of named populations, and name the cells in the results of a run.

    Without ``input``, the cells are those of the folder: of a run, of the query that was mapped, or of
    that whose proteins were imputed; the query is read again as it was then.

    Returns the folder that has them in ``tables``, and the table of populations.

    Raises
    ------
    TotalviError
        When the model, the counts or the hierarchy cannot be used, or the output cannot be written.
    """
    is_folder = (model_path / RECORD).is_file()
    if output is None and not (input is None and is_folder):
        raise OutputError(f"name a new folder with {setting('output', 'DIR')}.")
    given = _given_before(model_path / RECORD) if input is None and is_folder else {}
    of_query: np.ndarray | None = None
    with values_of_the_user():
        if "query" in given:
            model, of_query = _imputed(model_path / MODEL, given)
        else:
            if "query_path" in given:
                input, reading = given["query_path"], _reading(given)
            model, counts = load_with_counts(model_path, input, reading)
        named = name_cells_by(model, hierarchy, n_samples, of_query)
    if named is None:
        raise DataError(
            "no hierarchy suits the panel, whose antibodies tell no two populations apart; give one "
            f"with {argument('hierarchy')}."
        )
    cells = samples_and_clusters(model, sample_key, of_query)
    if of_query is not None:
        named = _with_names_of_query(named)
    if output is not None:
        with staged_folder(output) as folder:
            return output, write_populations(named, *cells, folder, None)["populations"]
    if given:
        return model_path, write_populations(named, *cells, model_path, None)["populations"]
    file = ResultsFile(model_path, on_disk=(model_path / STORE).exists())
    compared = _compared(model, counts, named, model_path)
    tables = write_populations(named, *cells, model_path, file)
    write_tables(compared, model_path / "tables")
    return model_path, tables["populations"]


def _compared(model: Model, counts: MuData, named: Named, folder: Path) -> dict[str, pd.DataFrame]:
    """Compare the populations of a run with the other cells, on the counts that the run compared."""
    asked = json.loads((folder / RECORD).read_text(encoding="utf-8"))["arguments"]
    split = bool(asked.get("split_counts"))  # runs of before have no such argument
    key = asked.get("batch_key")
    shown = cells_to_map(None if key is None else counts.obs[key], counts.n_obs)
    cells = held_out_counts(counts, shown) if split else counts[shown].copy()
    population = named.gating.population.to_numpy().astype(str)[shown]
    return compare_populations(model, cells, population, is_held_out=split)


def _given_before(record: Path) -> dict[str, Any]:
    """Return the arguments of an imputation or mapping of files; none of other records."""
    found = json.loads(record.read_text(encoding="utf-8"))
    is_of_files = {"reference", "query"} <= set(found["input_sha256"])
    return found["arguments"] if is_of_files or "query_path" in found["input_sha256"] else {}


def _reading(given: Mapping[str, Any]) -> Reading:
    """Return how files were read."""
    keys = Columns(
        **{field.name: given[field.name] for field in fields(Columns) if field.name in given}
    )
    return (
        keys,
        ReadOptions(**{name: given[name] for name in ReadOptions._fields}),
        given["unmeasured"],
    )


def _imputed(path: Path, given: Mapping[str, Any]) -> tuple[Model, np.ndarray]:
    """Return the model of an imputation with its counts, and the positions of the query's cells."""
    keys, options, unmeasured = _reading(given)
    both, _ = read_both(given["reference"], given["query"], keys, options, unmeasured)
    joined, _ = joined_batches(both, keys)
    model = Model.load(path)
    if model._mapping is None:
        return Model.load(path, joined), np.flatnonzero(in_query(joined))
    model = Model.load(path, query_alone(joined, model.schema.protein_names))
    return model, np.arange(model._training_data().n_cells)


def _with_names_of_query(named: Named) -> Named:
    """Return named cells without the ending that told them from those of the reference."""
    gating = named.gating
    index = gating.memberships.index.str.removesuffix(f"-{QUERY}")
    gating = gating._replace(
        memberships=gating.memberships.set_axis(index), population=gating.population.set_axis(index)
    )
    return named._replace(gating=gating)
