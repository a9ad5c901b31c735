"""The cells of a run's folder, read from its results on demand."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset
from mudata import MuData
from scipy import sparse

from totalvi.data.counts import Counts, CountsInMemory, DenseOnDisk, SparseOnDisk
from totalvi.data.io.modalities import mudata_of
from totalvi.errors import ReadError
from totalvi.run.folder import STORE
from totalvi.view.explorer.gates import Gate, Kind, Scale, inside_polygon, to_scale

COLUMNS_KEPT = 128  # of values of all cells, in memory
GATES_KEPT = 512
_WHERE: dict[Kind, str] = {
    "protein_denoised": "mod/prot/layers/denoised",
    "protein_raw": "mod/prot/X",
    "protein_foreground": "mod/prot/layers/foreground_probability",
    "gene_denoised": "mod/rna/layers/denoised",
}


class RunCells:
    """The cells of a run.

    Parameters
    ----------
    folder
        Folder of results of `totalvi run`.

    Attributes
    ----------
    on_disk
        Whether they are of a run on disk, whose raw counts are read again whenever they are needed.
    obs
        Annotation of the cells, (N, columns).
    umap
        Their places on the map, float32 (N, 2).
    gene_names, protein_names
        Of the features.

    Raises
    ------
    ReadError
        When the folder does not hold the results of a run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.on_disk = (self.folder / STORE).is_dir()
        self.results = self.folder / (STORE if self.on_disk else "results.h5mu")
        if not self.results.exists():
            raise ReadError(
                f"{self.folder} holds no results.h5mu; give the folder that `totalvi run` wrote."
            )
        try:
            self._file: Any = _opened(self.results)
            self.obs: pd.DataFrame = read_elem(self._file["obs"])
            self.umap: np.ndarray = self._file["obsm/X_umap"][:].astype(np.float32)
            self.gene_names = self._names("rna")
            self.protein_names = self._names("prot")
        except (OSError, KeyError) as error:
            raise ReadError(
                f"{self.results} is not what `totalvi run` writes ({error}); run it again."
            ) from error
        self.values = lru_cache(maxsize=COLUMNS_KEPT)(self._values)
        self.inside = lru_cache(maxsize=GATES_KEPT)(self._inside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._file, h5py.File):
            self._file.close()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of values of features that the file holds."""
        return (*(kind for kind, where in _WHERE.items() if where in self._file), "gene_raw")

    def _names(self, modality: str) -> pd.Index:
        frame = self._file[f"mod/{modality}/var"]
        names: pd.Index = pd.Index(read_elem(frame[frame.attrs["_index"]])).astype(str)
        return names

    def _values(self, kind: Kind, name: str) -> np.ndarray:
        """Return a number for each cell, (N,); NaN where it was not measured.

        Parameters
        ----------
        kind, name
            As in :class:`totalvi.view.explorer.gates.Axis`.
        """
        if kind == "umap":
            if name not in ("1", "2"):
                raise ReadError(f'The map has the axes "1" and "2", not {name!r}.')
            return self.umap[:, int(name) - 1]
        if kind == "obs":
            return self._numbers_of_obs(name)
        names = self.gene_names if kind.startswith("gene") else self.protein_names
        if name not in names:
            what = "gene" if kind.startswith("gene") else "protein"
            raise ReadError(f"There is no {what} {name!r} in {self.results}.")
        position = int(names.get_indexer(pd.Index([name]))[0])
        if kind == "gene_raw":
            rna = self.rna
            parts = rna.blocks() if self.on_disk else [(0, rna.read())]
            return np.concatenate([_column(part, position) for _, part in parts])
        if _WHERE[kind] not in self._file:
            raise ReadError(f"{self.results} holds no {kind.replace('_', ' ')}.")
        values: np.ndarray = self._file[_WHERE[kind]][:, position]
        return values.astype(np.float32)

    def _numbers_of_obs(self, name: str) -> np.ndarray:
        if name not in self.obs or not pd.api.types.is_numeric_dtype(self.obs[name]):
            raise ReadError(f"There is no column of numbers {name!r} in obs of {self.results}.")
        return self.obs[name].to_numpy(np.float32)

    def places(self, kind: Kind, name: str, scale: Scale) -> np.ndarray:
        """Return where the cells lie along an axis, (N,)."""
        return to_scale(self.values(kind, name), scale)

    def _inside(self, gate: Gate) -> np.ndarray:
        """Return which cells lie in the polygon of a gate, whatever its parent, (N,)."""
        x, y = (self.places(axis.kind, axis.name, axis.scale) for axis in gate.axes)
        return inside_polygon(x, y, gate.vertices)

    @cached_property
    def rna(self) -> Counts[sparse.csr_matrix]:
        """Raw counts of genes, (N, G), which stay in memory once they are asked for, or on disk."""
        stored = self._file["mod/rna/X"]
        if self.on_disk:
            return SparseOnDisk(sparse_dataset(stored), str(self.results))
        return CountsInMemory(read_elem(stored).tocsr())

    @cached_property
    def protein(self) -> Counts[np.ndarray]:
        """Raw counts of proteins, (N, T), NaN where unmeasured; in memory or on disk likewise."""
        stored = self._file[_WHERE["protein_raw"]]
        if self.on_disk:
            return DenseOnDisk(stored, str(self.results))
        dense = isinstance(stored, h5py.Dataset)
        return CountsInMemory(stored[:] if dense else read_elem(stored).toarray())

    def counts_of(self, cells: np.ndarray) -> MuData:
        """Return the raw counts and annotation of some cells, for the model."""
        obs = self.obs.iloc[cells]
        names = pd.DataFrame(index=obs.index)
        rna = AnnData(self.rna.rows(cells), obs=names, var=pd.DataFrame(index=self.gene_names))
        protein = AnnData(
            self.protein.rows(cells), obs=names, var=pd.DataFrame(index=self.protein_names)
        )
        return mudata_of({"rna": rna, "prot": protein}, obs.copy())


def _opened(results: Path) -> h5py.File | zarr.Group:
    return h5py.File(results, "r") if results.is_file() else zarr.open_group(results, mode="r")


def _column(counts: sparse.csr_matrix, position: int) -> np.ndarray:
    """Return a column of a CSR matrix without sorting the matrix by columns."""
    stored = np.flatnonzero(counts.indices == position)
    column = np.zeros(counts.shape[0], dtype=np.float32)
    cells = np.searchsorted(counts.indptr, stored, side="right") - 1
    np.add.at(column, cells, counts.data[stored])
    return column
