"""What RNA and proteins each tell of the cells of a run: columns of its tables, and the features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from totalvi.data.counts import evenly_spaced
from totalvi.errors import DataError, argument
from totalvi.posterior.modality_posterior import cells_with_both
from totalvi.run.folder import NATS
from totalvi.run.named_cells import POPULATION
from totalvi.run.table_files import write_tables

if TYPE_CHECKING:  # `after_fit` loads much that this needs not
    from totalvi.model import Model
    from totalvi.run.after_fit import Work

MOST_CELLS = 2000  # of a run, of which means of populations are well known
_MOST_FEATURES = 20  # of a population and modality in the table


def require_both(model: Model) -> None:
    """Raise DataError when no cell of a model has both modalities."""
    if not len(cells_with_both(model._training_data())):
        raise DataError(
            "No cell has both RNA and proteins, so neither can add to the other; leave out "
            f"{argument('modality_information')}."
        )


def tell_modalities(work: Work) -> None:
    """Say how many nats RNA and proteins each tell of cells, and which features tell most.

    It asks at most 2,000 cells that have both modalities, evenly spaced. Their nats become columns of
    ``obs`` and of the table of cells, where the others have none; the means of these, columns of the
    tables of clusters and, where cells are named, of populations. ``modality_features`` has the genes
    and proteins that tell most of each population, or cluster where cells are not named, and
    ``modality_dimensions`` the mean nats of each dimension of the latent state.
    """
    folder, model = work.folder / "tables", work.model
    cells = _as_text(folder / "cells.csv.gz")
    of = POPULATION if POPULATION in cells else "cluster"
    asked = evenly_spaced(cells_with_both(model._training_data()), MOST_CELLS)
    groups = cells[of].tolist()
    told = model.get_modality_information(
        indices=asked,
        groupby=groups,
        seed=work.options.seed,
        progress=work.options.writing.progress,
    )
    nats = pd.DataFrame(np.nan, index=cells.index, columns=list(NATS), dtype=np.float32)
    nats.iloc[asked] = told.cells[list(NATS.values())].to_numpy(np.float32)
    for name in nats:
        work.file.add_obs(str(name), nats[name].to_numpy())
    tables = {
        "cells": cells.join(nats),
        "modality_features": most_telling(told.features, cells[of].iloc[asked], of),
        "modality_dimensions": of_dimensions(told.dimensions),
    }
    for name, column in (("clusters", "cluster"), ("populations", POPULATION)):
        if (path := folder / f"{name}.csv").is_file():
            table = _as_text(path)
            tables[name] = table.join(mean_nats(nats, cells[column], table))
    write_tables(tables, folder)


def _as_text(path: Path) -> pd.DataFrame:
    """Return a table of the run as it stands there, without the columns of nats."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.set_index(table.columns[0]).drop(columns=list(NATS), errors="ignore")


def mean_nats(nats: pd.DataFrame, group: pd.Series, table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean nats of each row of a table of groups, NaN where none of its cells was asked.

    Parameters
    ----------
    nats
        Of each cell, NaN if it was not asked.
    group
        Of each cell.
    table
        Its index names the groups; a column ``parent`` says which group's cells count in another.

    Examples
    --------
    >>> nats = pd.DataFrame({"nats_rna": [1.0, 3.0, np.nan]})
    >>> table = pd.DataFrame({"parent": ["", "T"]}, index=["T", "CD4 T"])
    >>> mean_nats(nats, pd.Series(["T", "CD4 T", "T"]), table)["nats_rna"].tolist()
    [2.0, 3.0]
    """
    parents = table["parent"] if "parent" in table else pd.Series("", table.index)
    means = {}
    for name in table.index:
        inside = [other for other in table.index if name in _path(other, parents)]
        means[name] = nats[group.isin(inside).to_numpy()].mean()
    return pd.DataFrame(means).T.reindex(table.index)


def _path(name: str, parents: pd.Series) -> list[str]:
    """Return a group, and all groups above it."""
    path = [name]
    while path[-1] in parents:
        path.append(parents[path[-1]])
    return path


def of_dimensions(dimensions: pd.DataFrame) -> pd.DataFrame:
    """Return the nats of each dimension under the names of `NATS`, with what each modality adds.

    Examples
    --------
    >>> table = of_dimensions(pd.DataFrame({"total": [3.0], "rna": [2.0], "protein": [1.5]}))
    >>> table.loc["latent_1", "nats_protein_added"]
    np.float64(1.0)
    """
    width = len(str(len(dimensions)))
    table = dimensions.set_axis([f"latent_{i + 1:0{width}}" for i in range(len(dimensions))])
    table["rna_added"] = table["total"] - table["protein"]
    table["protein_added"] = table["total"] - table["rna"]
    table = table[list(NATS.values())].set_axis(list(NATS), axis=1)
    return table.rename_axis("dimension")


def most_telling(features: pd.DataFrame, group: pd.Series, of: str) -> pd.DataFrame:
    """Return the genes and proteins that tell most of the cells of each group, 20 of each.

    Parameters
    ----------
    features
        As of :meth:`totalvi.Model.get_modality_information`.
    group
        Of the cells asked.
    of
        What the groups are.

    Returns
    -------
    A row for each group and feature, by falling nats within the modality: what the group is ``of``, how
    many ``cells`` of it were asked, ``modality``, ``feature``, and the mean ``nats`` that its count
    tells by itself.
    """
    sizes = group.value_counts()
    parts = []
    for name in features.columns.drop("modality"):
        for modality in ("protein", "rna"):
            values = features.loc[features["modality"] == modality, name]
            most = values.nlargest(_MOST_FEATURES)
            parts.append(
                pd.DataFrame(
                    {
                        "group": name,
                        "of": of,
                        "cells": sizes[name],
                        "modality": modality,
                        "feature": most.index,
                        "nats": most.to_numpy(),
                    }
                )
            )
    return pd.concat(parts).set_index("group")
