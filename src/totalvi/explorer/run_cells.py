"""The cells that are gated, of a run's folder or of any file of counts, and their values on demand."""

from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset
from mudata import MuData
from scipy import sparse

from totalvi.data.background.isotype_controls import ISOTYPE_MODALITY
from totalvi.data.columns import Columns
from totalvi.data.counts import Counts, CountsInMemory, DenseOnDisk, SparseOnDisk
from totalvi.data.find import find_counts
from totalvi.data.io.modalities import mudata_of
from totalvi.data.io.tenx import holds_matrix
from totalvi.errors import ReadError
from totalvi.explorer.axes import Kind, Scale, to_scale
from totalvi.explorer.gate_shapes import contains
from totalvi.explorer.gates import Gate
from totalvi.explorer.stored_counts import column_of, opened, stored_column
from totalvi.run.folder import STORE
from totalvi.run.inputs import AS_IS, Reading, counts_in_x, read_input

COLUMNS_KEPT = 128  # of values of all cells, in memory
GATES_KEPT = 512
_WHERE: dict[Kind, str] = {
    "protein_denoised": "mod/prot/layers/denoised",
    "protein_raw": "mod/prot/X",
    "protein_foreground": "mod/prot/layers/foreground_probability",
    "gene_denoised": "mod/rna/layers/denoised",
    "isotype_raw": f"mod/{ISOTYPE_MODALITY}/X",
}
_FROM_COUNTS: tuple[Kind, ...] = ("gene_raw", "protein_clr", "gene_log")
_COUNTS_OF_A_CELL = 10_000  # to which gene counts are scaled before their logarithm
_MOST_SAMPLES = 200
_USUAL_SAMPLES = ("sample", "donor", "patient", "subject", "individual", "mouse", "batch")


class Groups(NamedTuple):
    """Groups of cells: the code of each cell's, (N,), negative where it is in none, and their names."""

    code: np.ndarray
    names: list[str]


class Cells(ABC):
    """Cells with their counts, annotation and, where there are any, results of a model.

    Attributes
    ----------
    folder
        In which gates and exports are written.
    prefix
        With which the names of these files begin.
    title
        What they are called.
    obs
        Annotation of the cells, (N, columns).
    umap
        Their places on a map, float32 (N, 2); None: there is none.
    gene_names, protein_names, control_names
        Of the features, and of the isotype controls that were left out of the proteins.
    on_disk
        Whether raw counts are read again whenever they are needed.
    model_path
        Folder of their model; None: there is none.
    """

    folder: Path
    prefix: str = ""
    title: str
    obs: pd.DataFrame
    umap: np.ndarray | None
    gene_names: pd.Index
    protein_names: pd.Index
    control_names: pd.Index = pd.Index([])
    on_disk: bool = False
    model_path: Path | None = None
    rna: Counts[sparse.csr_matrix]
    protein: Counts[np.ndarray]

    def __init__(self) -> None:
        self.values = lru_cache(maxsize=COLUMNS_KEPT)(self._values)
        self.inside = lru_cache(maxsize=GATES_KEPT)(self._inside)
        self.samples = lru_cache(maxsize=COLUMNS_KEPT)(self._samples)

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Close what is open."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of values of features that there are."""
        return (*(kind for kind in _WHERE if self._has(kind)), *_FROM_COUNTS)

    def names_of(self, kind: Kind) -> pd.Index:
        """Return the names of the features that have values of a kind."""
        others = {"gene": self.gene_names, "isotype": self.control_names}
        return others.get(kind.partition("_")[0], self.protein_names)

    @property
    def note(self) -> str:
        """What the page says of what is not there; empty where all is."""
        without = " There is no model of these cells: "
        without += "denoised values, differences and probabilities need the results of totalvi run."
        return "" if self.model_path else without

    @abstractmethod
    def _has(self, kind: Kind) -> bool:
        """Return whether values of this kind are stored."""

    @abstractmethod
    def _stored(self, kind: Kind, position: int) -> np.ndarray:
        """Return the stored values of the feature at a position, (N,)."""

    def _values(self, kind: Kind, name: str) -> np.ndarray:
        """Return a number for each cell, (N,); NaN where it was not measured.

        Parameters
        ----------
        kind, name
            As in :class:`totalvi.explorer.axes.Axis`.
        """
        if kind == "umap":
            if self.umap is None:
                raise ReadError(f"{self.title} has no map of the cells; `totalvi run` makes one.")
            if name not in ("1", "2"):
                raise ReadError(f'The map has the axes "1" and "2", not {name!r}.')
            return self.umap[:, int(name) - 1]
        if kind == "obs":
            return self._numbers_of_obs(name)
        names = self.names_of(kind)
        if name not in names:
            raise ReadError(f"There is no {kind.partition('_')[0]} {name!r} in {self.title}.")
        position = int(names.get_indexer(pd.Index([name]))[0])
        if kind in ("gene_raw", "gene_log"):
            parts = self.rna.blocks() if self.on_disk else [(0, self.rna.read())]
            raw = np.concatenate([column_of(part, position) for _, part in parts])
            return raw if kind == "gene_raw" else np.log1p(raw * self._factor_of_cell)
        if kind == "protein_clr":
            ratio: np.ndarray = np.log1p(self.values("protein_raw", name)) - self._mean_log_protein
            return ratio
        if not self._has(kind):
            raise ReadError(
                f"{self.title} holds no {kind.replace('_', ' ')}, which a model computes; open the "
                "results of `totalvi run`."
            )
        return self._stored(kind, position).astype(np.float32)

    @cached_property
    def _factor_of_cell(self) -> np.ndarray:
        """What gene counts are multiplied by to sum to 10,000 in each cell, float32 (N,)."""
        parts = self.rna.blocks() if self.on_disk else [(0, self.rna.read())]
        total = np.concatenate([np.asarray(part.sum(axis=1)).ravel() for _, part in parts])
        factor: np.ndarray = (_COUNTS_OF_A_CELL / np.maximum(total, 1)).astype(np.float32)
        return factor

    @cached_property
    def _mean_log_protein(self) -> np.ndarray:
        """Mean of log(1 + count) over the proteins measured in each cell, float32 (N,)."""
        parts = self.protein.blocks() if self.on_disk else [(0, self.protein.read())]
        means = [np.nanmean(np.log1p(part), axis=1) for _, part in parts]
        return np.concatenate(means).astype(np.float32)

    def _numbers_of_obs(self, name: str) -> np.ndarray:
        if name not in self.obs or not pd.api.types.is_numeric_dtype(self.obs[name]):
            raise ReadError(f"There is no column of numbers {name!r} in obs of {self.title}.")
        return self.obs[name].to_numpy(np.float32)

    def places(self, kind: Kind, name: str, scale: Scale) -> np.ndarray:
        """Return where the cells lie along an axis, (N,)."""
        return to_scale(self.values(kind, name), scale)

    def of_sample(self, column: str, sample: str) -> np.ndarray:
        """Return which cells are of a sample: those whose column of ``obs`` has this value, (N,)."""
        code, names = self.samples(column)
        found: np.ndarray = code == (names.index(sample) if sample in names else len(names))
        return found

    def _samples(self, column: str) -> Groups:
        """Return the samples by a column of ``obs``, their names in order."""
        if column not in self.obs:
            raise ReadError(f"There is no column {column!r} in obs of {self.title}.")
        values = self.obs[column]
        categories = values.astype(str).where(values.notna()).astype("category").cat
        codes = categories.codes.to_numpy(np.intp)
        return Groups(codes, list(map(str, categories.categories)))

    @cached_property
    def sample_columns(self) -> list[str]:
        """Columns of ``obs`` that may hold samples, those with usual names first."""
        found = []
        for column in map(str, self.obs):
            values = self.obs[column]
            is_name = not pd.api.types.is_float_dtype(values)
            if is_name and 1 < values.nunique() <= min(_MOST_SAMPLES, len(values) // 2):
                found.append(column)

        return sorted(found, key=_usual_place)

    @property
    def has_usual_sample(self) -> bool:
        """Whether the first of `sample_columns` has a usual name of samples."""
        columns = self.sample_columns[:1]
        return bool(columns) and _usual_place(columns[0]) < 2 * len(_USUAL_SAMPLES)

    def _inside(self, gate: Gate) -> np.ndarray:
        """Return which cells lie in the region of a gate, whatever its parent, (N,)."""
        places = [self.places(axis.kind, axis.name, axis.scale) for axis in gate.axes]
        inside = contains(gate, gate.vertices, places)
        for adjusted in gate.by_sample:
            cells = self.of_sample(adjusted.column, adjusted.sample)
            inside[cells] = contains(gate, adjusted.vertices, [place[cells] for place in places])
        return inside

    def counts_of(self, cells: np.ndarray) -> MuData:
        """Return the raw counts and annotation of some cells, for the model."""
        obs = self.obs.iloc[cells]
        names = pd.DataFrame(index=obs.index)
        rna = AnnData(self.rna.rows(cells), obs=names, var=pd.DataFrame(index=self.gene_names))
        protein = AnnData(
            self.protein.rows(cells), obs=names, var=pd.DataFrame(index=self.protein_names)
        )
        return mudata_of({"rna": rna, "prot": protein}, obs.copy())


class RunCells(Cells):
    """The cells of a run, read from its results.

    Parameters
    ----------
    folder
        Folder of results of `totalvi run`.

    Raises
    ------
    ReadError
        When the folder does not hold the results of a run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.on_disk = (self.folder / STORE).is_dir()
        self.results = self.folder / (STORE if self.on_disk else "results.h5mu")
        self.title = str(self.results)
        if not self.results.exists():
            raise ReadError(
                f"{self.folder} holds no results.h5mu; give the folder that `totalvi run` wrote."
            )
        try:
            self._file: Any = opened(self.results)
            self.obs = read_elem(self._file["obs"])
            self.umap = self._file["obsm/X_umap"][:].astype(np.float32)
            self.gene_names = self._names("rna")
            self.protein_names = self._names("prot")
            if self._has("isotype_raw"):
                self.control_names = self._names(ISOTYPE_MODALITY)
        except (OSError, KeyError) as error:
            raise ReadError(
                f"{self.results} is not what `totalvi run` writes ({error}); run it again."
            ) from error
        self.model_path = self.folder / "model.totalvi"

    def __exit__(self, *_: object) -> None:
        if isinstance(self._file, h5py.File):
            self._file.close()

    def _has(self, kind: Kind) -> bool:
        return _WHERE[kind] in self._file

    def _names(self, modality: str) -> pd.Index:
        frame = self._file[f"mod/{modality}/var"]
        names: pd.Index = pd.Index(read_elem(frame[frame.attrs["_index"]])).astype(str)
        return names

    def _stored(self, kind: Kind, position: int) -> np.ndarray:
        return stored_column(self._file[_WHERE[kind]], position)

    @cached_property
    def rna(self) -> Counts[sparse.csr_matrix]:  # type: ignore[override]  # read when needed
        """Raw counts of genes, (N, G), which stay in memory once they are asked for, or on disk."""
        stored = self._file["mod/rna/X"]
        if self.on_disk:
            return SparseOnDisk(sparse_dataset(stored), str(self.results))
        return CountsInMemory(read_elem(stored).tocsr())

    @cached_property
    def protein(self) -> Counts[np.ndarray]:  # type: ignore[override]  # likewise
        """Raw counts of proteins, (N, T), NaN where unmeasured; in memory or on disk likewise."""
        stored = self._file[_WHERE["protein_raw"]]
        if self.on_disk:
            return DenseOnDisk(stored, str(self.results))
        dense = isinstance(stored, h5py.Dataset)
        return CountsInMemory(stored[:] if dense else read_elem(stored).toarray())


class FileCells(Cells):
    """The cells of a file of counts, without a model.

    Parameters
    ----------
    path
        Anything that `totalvi.read` reads and that has proteins. Its map is the first of ``X_umap``,
        ``X_tsne`` and ``X_pca`` in ``obsm``.
    reading
        Places of the counts, how to read them, and what was not measured.

    Raises
    ------
    ReadError, DataError
        When it cannot be read, or holds no counts of proteins.
    """

    def __init__(self, path: str | Path, reading: Reading = AS_IS) -> None:
        super().__init__()
        path = Path(path)
        self.folder, self.prefix, self.title = path.absolute().parent, f"{path.stem}.", path.name
        mdata = counts_in_x(*read_input(path, *reading))
        assert isinstance(mdata, MuData)
        found = find_counts(mdata, Columns())
        self.rna, self.protein, self.obs = found.rna, found.protein, found.obs
        self.gene_names, self.protein_names = found.gene_names, found.protein_names
        self.umap = _map_of(mdata)
        self._layers = {
            kind: layer
            for kind, modality, name in (
                ("protein_denoised", "prot", "denoised"),
                ("protein_foreground", "prot", "foreground_probability"),
                ("gene_denoised", "rna", "denoised"),
            )
            if (layer := mdata[modality].layers.get(name)) is not None
        }

    def __exit__(self, *_: object) -> None:
        """Close nothing: the counts are in memory."""

    def _has(self, kind: Kind) -> bool:
        return kind == "protein_raw" or kind in self._layers

    def _stored(self, kind: Kind, position: int) -> np.ndarray:
        values = self.protein.read() if kind == "protein_raw" else self._layers[kind]
        column: np.ndarray = values[:, position]
        return column


def open_cells(path: str | Path, reading: Reading = AS_IS) -> Cells:
    """Open the folder of a run, or a file of counts, of which ``reading`` says how it is read."""
    path = Path(path)
    is_run = path.is_dir() and ((path / STORE).is_dir() or (path / "results.h5mu").exists())
    of_counts = path.suffix == ".zarr" or not path.is_dir() or holds_matrix(path)
    if is_run or not path.exists() or not of_counts:
        if reading != AS_IS:
            raise ReadError(
                f"{path} is no file of counts but the folder of a run, whose counts are read as they "
                "were then; leave out the options of reading."
            )
        return RunCells(path)
    return FileCells(path, reading)


def _usual_place(column: str) -> int:
    """Return where a column stands by its name: usual ones first, then those that contain one."""
    name, n_usual = column.lower(), len(_USUAL_SAMPLES)
    if name in _USUAL_SAMPLES:
        return _USUAL_SAMPLES.index(name)
    places = (n_usual + i for i, usual in enumerate(_USUAL_SAMPLES) if usual in name)
    return next(places, 2 * n_usual)


def _map_of(mdata: MuData) -> np.ndarray | None:
    for key in ("X_umap", "X_tsne", "X_pca"):
        for data in (mdata, *mdata.mod.values()):
            if key in data.obsm and data.obsm[key].shape == (mdata.n_obs, data.obsm[key].shape[1]):
                return np.asarray(data.obsm[key], dtype=np.float32)[:, :2]
    return None
