"""Validate arguments of `Model`, convert names to positions, and document what queries share."""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from types import FunctionType
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData
from totalvi.data.columns import Columns
from totalvi.data.known_labels import known_labels
from totalvi.errors import DataError, allowed, argument, did_you_mean, setting
from totalvi.scvi_names import of_scvi

Cells: TypeAlias = Sequence[int] | Sequence[bool] | np.ndarray | None
Names: TypeAlias = str | Sequence[str] | None
WhereUnmeasured: TypeAlias = Literal["nan", "impute"]
ScaledLibrary: TypeAlias = float | Literal["latent"]


def check_network_options(options: dict[str, Any]) -> None:
    """Raise ValueError for arguments of the network that the model sets from data or other names."""
    elsewhere = {
        "reconstruction_loss_gene": "gene_likelihood",
        "protein_batch_mask": "NaN in the proteins a batch or panel did not measure",
        "n_panels": "panel_key",
        "n_batch": "batch_key",
        "n_labels": "labels_key",
        "n_categories_per_covariate": "categorical_covariate_keys",
        "n_continuous_covariates": "continuous_covariate_keys",
        "generator": "seed",
        "use_cuda": "model.train(accelerator=...)",
        "n_input_genes": "the data",
        "n_input_proteins": "the data",
    }
    for name in options:
        answer = of_scvi(name)
        if answer is not None:
            raise ValueError(answer)
        if name in elsewhere:
            raise ValueError(
                f"{name} is not an argument of Model; it follows from {elsewhere[name]}."
            )


def check_partial_labels(columns: Columns, gene_dispersion: str, protein_dispersion: str) -> None:
    """Raise ValueError where labels are partly known, but of no column, or needed of every cell."""
    unlabelled = columns.unlabeled_category
    if unlabelled is None:
        return
    if columns.labels_key is None:
        raise DataError(
            f"{setting('unlabeled_category', unlabelled)} is of a column of labels; give "
            f"{argument('labels_key')} as well."
        )
    for name, value in (("gene", gene_dispersion), ("protein", protein_dispersion)):
        if value.endswith("label"):
            raise ValueError(
                f"{name}_dispersion is {value!r}, which needs the label of every cell; leave out "
                f"{argument('unlabeled_category')}, or choose {name!r}."
            )


def key_tuple(argument: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Return several obs keys as a tuple; a single text is refused, as its letters would be keys."""
    if isinstance(keys, str):
        raise ValueError(allowed(argument, keys, f'lists of columns, as ["{keys}"]'))
    return tuple(keys)


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(allowed(argument, value, choices))


def cell_positions(indices: Cells, n_cells: int, argument: str = "indices") -> np.ndarray:
    """Return positions from positions or a mask, given as ``argument``.

    Raises ValueError when a position is out of range, or a mask has another length than the data.
    """
    if indices is None:
        return np.arange(n_cells)
    given = np.asarray(indices)
    if given.size == 0 or (given.dtype == bool and not given.any()):
        raise ValueError(f"{argument} selects no cell; give at least one.")
    if given.dtype == bool:
        if given.shape != (n_cells,):
            raise ValueError(
                f"{argument} is a mask of shape {given.shape}; allowed is ({n_cells},)."
            )
        return np.flatnonzero(given)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{argument} must be a list of positions or a mask of the cells.")
    if given.min() < -n_cells or given.max() >= n_cells:
        raise ValueError(
            f"{argument} holds positions from {given.min()} to {given.max()}; "
            f"allowed are 0 to {n_cells - 1}."
        )
    return given.astype(np.int64) % n_cells


def feature_positions(
    wanted: Sequence[str] | None, known: Sequence[str], argument: str
) -> np.ndarray:
    """Return the positions of the wanted names, in their order; None: all."""
    if wanted is None:
        return np.arange(len(known))
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    positions = pd.Index(known).get_indexer(pd.Index(wanted))
    for name, position in zip(wanted, positions, strict=True):
        if position < 0:
            raise ValueError(f"{argument} holds {name!r}; {did_you_mean(str(name), known)}.")
    return positions


def checked_library_size(library_size: ScaledLibrary) -> ScaledLibrary:
    """Return "latent" or a number above 0; else raise ValueError."""
    if isinstance(library_size, str) and library_size == "latent":
        return library_size
    is_number = isinstance(library_size, int | float | np.number)
    if is_number and 0 < library_size < np.inf:
        return float(library_size)
    raise ValueError(allowed("library_size", library_size, "'latent' or a number above 0"))


def checked_number(
    argument: str, value: float, *, zero: bool = False, below: float = np.inf
) -> float:
    """Return a number above 0, or 0 where that may be, and below a limit; else raise ValueError."""
    is_number = isinstance(value, int | float | np.number)
    if is_number and (0 < value < below or (zero and value == 0)):
        return float(value)
    least = "from" if zero else "above"
    most = "" if below == np.inf else f" and below {below:g}"
    raise ValueError(allowed(argument, value, f"finite numbers {least} 0{most}"))


class Sampling(TypedDict, total=False):
    """Options of every query that draws samples; the other classes add to them."""

    batch_size: int
    seed: int
    progress: bool | None


class ProteinOptions(Sampling, total=False):
    """Options of a query of proteins."""

    transform_batch: Names
    protein_list: Sequence[str] | None
    n_samples: int


class GivenOptions(ProteinOptions, total=False):
    """Options of a query of proteins that may be given their counts, or not have been measured."""

    given_counts: bool
    unmeasured: WhereUnmeasured


class Stored(TypedDict):
    """The option of a query whose answer is written to a store."""

    out: str | Path


class StoredGiven(GivenOptions, Stored):
    """Options of `GivenOptions`, with a store."""


class FeatureOptions(ProteinOptions, total=False):
    """Options of a query of genes and proteins."""

    gene_list: Sequence[str] | None


_Queries = TypeVar("_Queries", bound=type)
_PLACES = re.compile(r"^( *)(\{\w+\}(?: \{\w+\})*)$", re.MULTILINE)


def documented(queries: _Queries) -> _Queries:
    """Replace lines such as ``{seed} {progress}`` in a class's methods by texts that queries share."""

    def shared(line: re.Match[str]) -> str:
        texts = [_SHARED[name].strip() for name in re.findall(r"\w+", line[2])]
        return indent("\n".join(texts), line[1])

    for method in vars(queries).values():
        if isinstance(method, FunctionType) and method.__doc__:  # None where Python runs with -OO
            method.__doc__ = _PLACES.sub(shared, method.__doc__)
    return queries


_SHARED = {
    "cells": """
adata
    New data with the model's features, batches and annotation. None: the training data.
indices
    Positions of cells, or a mask. None: all.
""",
    "batch_size": """
batch_size
    Cells at a time.
""",
    "progress": """
progress
    Whether to show a progress bar; None: on a terminal, and elsewhere a line a minute.
""",
    "seed": """
seed
    Seed of the samples. The samples of a cell depend only on the seed and on the cell's name, not on
    which other cells the query is about.
""",
    "transform_batch": """
transform_batch
    Batch or batches to decode every cell into. Results are averaged over the batches, those of a
    protein over the batches that measured it. None: each cell's own.
""",
    "batches_correlated": """
transform_batch
    Batch or batches to decode every cell into; their correlations are averaged. None: each cell's own.
""",
    "protein_list": """
protein_list
    Wanted proteins. None: all; an empty list: none.
""",
    "features": """
gene_list, protein_list
    Wanted features. None: all; an empty list: none.
""",
    "given_counts": """
given_counts
    Whether values of a protein use its own count in the cell, besides the cell's state z. With False
    they use z alone, as in the paper and scvi-tools. So do those of an unmeasured protein.
""",
    "unmeasured": """
unmeasured
    What is returned for a protein that the cell's panel lacks: "nan", with a `DataWarning`; or
    "impute", what the model expects given z, decoded into the batches of ``transform_batch`` that
    measured the protein, or into all that did. `impute_proteins` says how sure that is.
""",
    "n_samples": """
n_samples
    Posterior samples of each cell.
""",
    "protein_scale": """
sample_protein_mixing
    Whether each protein is drawn to be background or foreground, rather than weighted.
scale_protein
    Whether the proteins of a cell are made to sum to one.
include_protein_background
    Whether to add the background, E[pi beta].
""",
    "return_numpy": """
return_numpy
    Whether to return arrays in place of data frames.
""",
    "cell_means": """
return_mean
    Whether to return the mean over cells; otherwise each cell's value.
""",
    "number_by_cell": """
Returns
-------
A number, or with ``return_mean=False`` an array (cells,).

Raises
------
ValueError
    When an argument has a value not allowed.
""",
    "hidden_counts": """
interval
    Probability of the interval whose coverage is given.
n_samples
    Posterior samples of each cell, and counts drawn for each value.
""",
    "sample_means": """
return_mean
    Whether to average the samples; otherwise each is returned, as an array
    (n_samples, cells, features).
""",
    "protein_out": """
out
    Folder of a new zarr store to write to, in place of memory: it gets the group "protein", which
    `anndata.read_zarr` reads.
""",
    "value_error": """
Raises
------
ValueError
    When an argument has a value not allowed.
""",
    "name_error": """
Raises
------
ValueError
    When an argument has a value not allowed, or a feature or batch is not known.
""",
    "output_error": """
OutputError
    When ``out`` exists or cannot be written.
""",
    "fitted_model": """
Examples
--------
>>> import totalvi
>>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
>>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
>>> model.train(max_epochs=2)
""",
    "mosaic_model": """
Examples
--------
>>> import totalvi
>>> both = totalvi.simulate(n_cells=90, n_genes=30, n_proteins=5, seed=1)
>>> both.obs["measured_modalities"] = ["both"] * 60 + ["prot"] * 30
>>> both["rna"].X = both["rna"].X.multiply([[1]] * 60 + [[0]] * 30).tocsr()
>>> model = totalvi.Model(both, n_hidden=16, n_latent=4)
>>> model.train(max_epochs=2, train_size=0.7)
""",
    "lacking_model": """
Examples
--------
>>> import totalvi
>>> mdata = totalvi.simulate(
...     n_cells=80, n_genes=30, n_proteins=5, n_batches=2, n_unmeasured=2, seed=1
... )
>>> model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
>>> model.train(max_epochs=2, train_size=0.7)
""",
    "reference_model": """
Examples
--------
>>> import totalvi
>>> mdata = totalvi.simulate(n_cells=80, n_genes=30, n_proteins=5, seed=1)
>>> model = totalvi.Model(mdata[:60].copy(), n_hidden=16, n_latent=4)
>>> model.train(max_epochs=2)
""",
}


def label_codes(reference: CiteData, labels: Any) -> tuple[np.ndarray, list[str]]:
    """Return the code of each reference cell's label, -1 without one, and the labels.

    Cells of the model's unlabelled category have none. A series that is indexed by the names of the
    cells may have any order.
    """
    if isinstance(labels, str):
        obs = reference.annotation.obs()
        if labels not in obs:
            raise ValueError(
                f"{argument('labels')} is {labels!r}, which is no column of the reference's obs; "
                f"{did_you_mean(labels, obs.columns)}."
            )
        labels = obs[labels]
    elif isinstance(labels, pd.Series) and labels.index.is_unique:
        order = labels.index.get_indexer(reference.cell_names)
        labels = labels.iloc[order] if (order >= 0).all() else labels
    values = np.asarray(labels, dtype=object)
    if values.shape != (reference.n_cells,):
        raise ValueError(
            f"labels has shape {values.shape}; allowed is ({reference.n_cells},), one a reference cell."
        )
    known = known_labels(pd.Series(values), reference.schema.columns.unlabeled_category)
    names = sorted(known.dropna().unique())
    code = pd.Index(names).get_indexer(pd.Index(known)).astype(np.int64)
    return code, names
