"""Counts and annotation as arrays, in the order of the schema that a model remembers."""

import hashlib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.columns import Columns, joined_obs, names_of
from totalvi.data.counts import Counts, CountsInMemory, evenly_spaced
from totalvi.data.minified_cells import KeptCounts, StoredPosterior
from totalvi.errors import DataError, Finding, allowed

MODALITIES = "measured_modalities"
"""Column of ``obs`` that says what was measured in each cell; without it, all cells have RNA."""
LAYOUT = ("umap_1", "umap_2")  # columns of a minified reference's obs
BOTH, RNA, PROTEIN = "both", "rna", "prot"


def has_rna(obs: pd.DataFrame) -> np.ndarray:
    """Return which cells have RNA, by ``obs["measured_modalities"]``; all without that column.

    Raises
    ------
    DataError
        If the column holds anything but "both", "rna" and "prot".
    """
    if MODALITIES not in obs:
        return np.ones(len(obs), dtype=bool)
    values = obs[MODALITIES].astype(object).to_numpy()
    odd = [value for value in pd.unique(values) if value not in (BOTH, RNA, PROTEIN)]
    if odd:
        raise DataError(allowed(f'obs["{MODALITIES}"]', odd[0], (BOTH, RNA, PROTEIN)))
    found: np.ndarray = values != PROTEIN
    return found


@dataclass(frozen=True)
class Schema:
    """What a model must know of its training data to take new data.

    Parameters
    ----------
    columns
        Where counts and annotation are.
    gene_names, protein_names
        Features in the network's order.
    batch_names, panel_names, label_names
        Categories in the order of their codes; ``panel_names`` is empty if batches are the panels.
    covariate_categories
        Categories of each categorical covariate.
    continuous_mean, continuous_scale
        Mean and scale that standardise continuous covariates.
    panel_measured
        Which proteins each panel measured, one row for each panel.
    library_log_mean, library_log_variance
        Mean and variance of the log RNA library size of each batch.
    control_names
        Names of the isotype controls, which are not among the proteins.
    panel_measured_rna
        Whether each panel measured RNA; empty if all did.
    """

    columns: Columns
    gene_names: tuple[str, ...]
    protein_names: tuple[str, ...]
    batch_names: tuple[str, ...]
    panel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    covariate_categories: tuple[tuple[str, ...], ...]
    continuous_mean: tuple[float, ...]
    continuous_scale: tuple[float, ...]
    panel_measured: tuple[tuple[bool, ...], ...]
    library_log_mean: tuple[float, ...]
    library_log_variance: tuple[float, ...]
    control_names: tuple[str, ...] = ()
    panel_measured_rna: tuple[bool, ...] = ()

    @property
    def measured_rna(self) -> np.ndarray:
        """Which panels measured RNA, bool (panels,)."""
        return np.array(self.panel_measured_rna or (True,) * len(self.panel_measured), dtype=bool)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers; files call the columns "keys"."""
        given = asdict(self)
        return {"keys": given.pop("columns"), **given}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Return the schema that `to_dict` wrote."""
        columns = Columns(**{name: _tuples(value) for name, value in given["keys"].items()})
        rest = {name: _tuples(value) for name, value in given.items() if name != "keys"}
        return cls(columns=columns, **rest)


@dataclass(frozen=True)
class QueryMapping:
    """How the query of a mapped model was mapped on its reference.

    Parameters
    ----------
    n_reference_batches, n_reference_panels, n_reference_categories
        Number of batches, panels and categories of each covariate in the reference; those of the query
        follow them.
    batches, panels
        The model's name of each batch and panel of the query, by the query's own name; with empty
        ``panels``, each batch is one.
    antibody_names
        Names of the query's antibodies that the user chose.
    reference_batches
        For each query batch, the reference batch whose weights it started with, or "average".
    missing_genes
        The reference's genes that the query lacks.
    """

    n_reference_batches: int
    n_reference_panels: int
    n_reference_categories: tuple[int, ...]
    batches: tuple[tuple[str, str], ...]
    panels: tuple[tuple[str, str], ...]
    antibody_names: tuple[tuple[str, str], ...] = ()
    reference_batches: tuple[str, ...] = ()
    missing_genes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Return the mapping that `to_dict` wrote."""
        plain = {
            name: tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
            for name, value in given.items()
            if isinstance(value, list | tuple)
        }
        return cls(**(given | plain))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


class Annotation:
    """The ``obs`` of the object that counts came from, with columns added to it later.

    The object is not kept alive, because its counts would then be in memory twice. Once it is gone,
    this is the annotation from the time when the counts were described.

    Parameters
    ----------
    data
        The user's object.
    obs
        Its current annotation.
    rna_modality, protein_modality
        Of a MuData.
    """

    def __init__(
        self,
        data: MuData | AnnData,
        obs: pd.DataFrame,
        rna_modality: str,
        protein_modality: str,
    ) -> None:
        self._data: Callable[[], MuData | AnnData | None] = weakref.ref(data)
        self._obs, self._layout = obs, data.obsm.get("X_umap")
        self._modalities = (rna_modality, protein_modality)

    def obs(self) -> pd.DataFrame:
        """Return the annotation of the cells, in their order."""
        data = self._data()
        if data is None:
            return self._obs
        if isinstance(data, MuData):
            rna, protein = (data.mod.get(name) for name in self._modalities)
            if rna is None or protein is None:
                return self._obs
            if MODALITIES in self._obs and not rna.obs_names.equals(protein.obs_names):
                if not self._obs.index.isin(data.obs_names).all():
                    return self._obs
                obs = joined_obs(data, rna, protein, self._obs.index)
                return obs.assign(**{MODALITIES: self._obs[MODALITIES]})
            if rna.n_obs != len(self._obs):
                return self._obs
            obs = joined_obs(data, rna, protein)
        else:
            obs = pd.DataFrame(data.obs)
            obs = obs.set_axis(names_of(obs.index), axis=0)
        same_cells = obs.index.equals(self._obs.index)
        return obs if same_cells else self._obs  # the object was subset or sorted in the meantime

    def layout(self) -> np.ndarray | None:
        """Return the cells' places on a map, (N, 2), if the object or the annotation has them."""
        data = self._data()
        in_order = data is not None and names_of(data.obs_names).equals(self._obs.index)
        found = (
            data.obsm.get("X_umap", self._layout) if data is not None and in_order else self._layout
        )
        if found is None:
            found = self._obs.reindex(columns=list(LAYOUT))
        found = np.asarray(found, dtype=np.float64)
        return found if found.shape == (len(self._obs), 2) and np.isfinite(found).all() else None

    @classmethod
    def of_table(cls, obs: pd.DataFrame) -> Self:
        """Return the annotation of cells whose object is not there."""
        annotation = cls.__new__(cls)
        annotation.__setstate__(obs)
        return annotation

    def __getstate__(self) -> pd.DataFrame:
        return self.obs()

    def __setstate__(self, obs: pd.DataFrame) -> None:
        self._obs, self._layout, self._data = obs, None, _gone  # a weak reference cannot be pickled


def _gone() -> None:
    """Replace the reference to an object that no longer exists."""


@dataclass(frozen=True)
class CiteData:
    """Counts and annotation of N cells, aligned with a schema and independent of the user's object.

    Parameters
    ----------
    schema
        Names and categories of features, batches and panels.
    rna
        Counts (N, G).
    protein
        Counts (N, T); unmeasured proteins hold 0, and ``schema.panel_measured`` says which they are.
    cell_names
        Names of the N cells.
    batch, panel, label
        Codes (N,); ``label`` is None without a labels key.
    categorical, continuous
        Covariates (N, covariates), or None.
    library_size
        Size factor if a key is given, else total RNA count, (N,); of a cell without RNA, that which is
        usual in its batch.
    annotation
        The source of the ``obs`` of the cells.
    controls
        Counts of the isotype controls in the data, (N, controls), by name.
    findings
        Warnings and notes of the checks of the data.
    posterior, predictors
        Of a minified reference, which keeps the counts of only some cells: that of all, and arrays by
        name that predict proteins from RNA. None: all counts are there.
    """

    schema: Schema
    rna: Counts[sparse.csr_matrix]
    protein: Counts[np.ndarray]
    cell_names: pd.Index
    batch: np.ndarray
    panel: np.ndarray
    label: np.ndarray | None
    categorical: np.ndarray | None
    continuous: np.ndarray | None
    library_size: np.ndarray
    annotation: Annotation
    controls: pd.DataFrame
    findings: tuple[Finding, ...] = ()
    posterior: StoredPosterior | None = None
    predictors: Mapping[str, np.ndarray] | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.rna.shape[0])

    @property
    def has_rna(self) -> np.ndarray:
        """Which cells have RNA, bool (N,)."""
        found: np.ndarray = self.schema.measured_rna[self.panel]
        return found

    @property
    def on_disk(self) -> bool:
        """Whether the RNA counts are on disk, to be read some cells at a time."""
        return not isinstance(self.rna, CountsInMemory)

    def cells_with_counts(self) -> np.ndarray:
        """Return the positions of the cells whose counts are there."""
        return self.rna.cells if isinstance(self.rna, KeptCounts) else np.arange(self.n_cells)

    def has_counts_of(self, cells: np.ndarray) -> bool:
        """Return whether the counts of these cells are there; a minified reference lacks most."""
        return not isinstance(self.rna, KeptCounts) or self.rna.has(cells)

    def in_memory(self, cells: np.ndarray) -> Self:
        """Return the cells at these positions, with their counts, in memory."""

        def of_cells(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[cells]

        return replace(
            self,
            rna=CountsInMemory(self.rna.rows(cells)),
            protein=CountsInMemory(self.protein.rows(cells)),
            cell_names=self.cell_names[cells],
            batch=self.batch[cells],
            panel=self.panel[cells],
            label=of_cells(self.label),
            categorical=of_cells(self.categorical),
            continuous=of_cells(self.continuous),
            library_size=self.library_size[cells],
            controls=self.controls.iloc[cells],
            posterior=None,  # their counts are there, from which they are encoded
            predictors=None,
        )

    @cached_property
    def cell_keys(self) -> np.ndarray:
        """A 64-bit number for each cell, hashed from its name, so that it is the same in any data."""
        return pd.util.hash_array(self.cell_names.to_numpy(object), categorize=False)


NAMES = "names of cells"  # of a fingerprint
_CELLS_COMPARED, _ROWS_AT_ONCE = 10_000, 1_000


def fingerprint(data: CiteData) -> dict[str, Any]:
    """Return the fingerprint of a data set as JSON values, to detect on resuming that it changed.

    It hashes names, annotation, proteins and the library size of every cell. Of RNA counts it
    hashes at most 10,000 cells, spread over the data. Counts on disk, which are read some cells at
    a time, have the fingerprint of the same counts in memory.

    Examples
    --------
    >>> import totalvi
    >>> from totalvi.data.describe import describe
    >>> from totalvi.data.columns import Columns
    >>> data = describe(totalvi.simulate(n_cells=50, n_genes=20, n_proteins=4), Columns())
    >>> list(fingerprint(data))
    ['cells', 'genes', 'proteins', 'names of cells', 'annotation', 'protein counts', 'RNA counts']
    """
    schema = data.schema
    annotation = [data.batch, data.panel, data.label, data.categorical, data.continuous]
    return {
        "cells": data.n_cells,
        "genes": _hash_texts(schema.gene_names),
        "proteins": _hash_texts(schema.protein_names),
        NAMES: hash_of_names(data),
        "annotation": _hash_arrays([values for values in annotation if values is not None]),
        "protein counts": _hash_protein(data),
        "RNA counts": _hash_rna(data),
    }


def hash_of_names(data: CiteData) -> str:
    """Return the hash of the names of cells, in their order."""
    return _hash_arrays([data.cell_keys])


def _hash_protein(data: CiteData) -> str:
    digest = hashlib.sha256(f"float32{data.protein.shape}".encode())
    by_panel = np.array(data.schema.panel_measured)
    for start, rows in data.protein.blocks():
        measured = by_panel[data.panel[start : start + len(rows)]]
        known = np.where(measured, rows, np.float32(0))  # the others may be filled in
        digest.update(np.ascontiguousarray(known).data)
    return digest.hexdigest()


def _hash_rna(data: CiteData) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(data.library_size).data)
    compared = evenly_spaced(np.arange(data.n_cells), _CELLS_COMPARED, rounding="down")
    for start in range(0, len(compared), _ROWS_AT_ONCE):
        rows = data.rna.rows(compared[start : start + _ROWS_AT_ONCE])
        rows.sort_indices()
        for part in (rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data):
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _hash_arrays(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _hash_texts(texts: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
