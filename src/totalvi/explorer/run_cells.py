"""The cells of a run's folder, read from its results on demand: values, colours, and their gates."""

import shutil
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem
from mudata import MuData
from scipy import sparse

from totalvi.data.counts import Counts, CountsInMemory, DenseOnDisk, SparseOnDisk
from totalvi.data.io.modalities import mudata_of
from totalvi.errors import OutputError, ReadError
from totalvi.explorer.gates import (
    Gate,
    Gating,
    Kind,
    Scale,
    deepest,
    inside_polygon,
    members,
    to_scale,
)
from totalvi.explorer.plot import mapped, rgba
from totalvi.figures.cell_maps import VALUE_PALETTE, category_legend
from totalvi.figures.style import BACKGROUND, PROTEIN_SCALE, RNA_SCALE, CountScale, category_colors
from totalvi.run.folder import CLUSTER_COLUMN, STORE, staged_file

COLUMNS_KEPT = 128  # of values of all cells, in memory
GATES_KEPT = 512
_WHERE: dict[Kind, str] = {
    "protein_denoised": "mod/prot/layers/denoised",
    "protein_raw": "mod/prot/X",
    "protein_foreground": "mod/prot/layers/foreground_probability",
    "gene_denoised": "mod/rna/layers/denoised",
}
WORDS: dict[Kind, str] = {
    "protein_denoised": "protein, denoised",
    "protein_foreground": "protein, foreground probability",
    "protein_raw": "protein, raw counts",
    "gene_denoised": "gene, denoised",
    "gene_raw": "gene, raw counts",
    "obs": "annotation",
}
_MOST_CATEGORIES = 60  # in the legend
_TOP_PERCENTILE = 99.5  # of values, which takes the darkest colour
GATE, PREFIX = "gate", "in_gate "  # columns of exported gates


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
            As in :class:`totalvi.explorer.gates.Axis`.
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


class Coloring(NamedTuple):
    """Colours of all cells.

    Parameters
    ----------
    colors
        uint32 (N,); see `totalvi.explorer.plot.rgba`.
    legend
        HTML of the categories; empty for values.
    high
        Place on the scale of the darkest colour, the palest being 0; NaN for categories.
    scale
        On which values are; None: linear.
    """

    colors: np.ndarray
    legend: str
    high: float
    scale: CountScale | None


def color_choices(cells: RunCells) -> dict[str, tuple[Kind, str]]:
    """Return the choices to colour cells by, with their labels: annotation, proteins, genes."""
    choices: dict[str, tuple[Kind, str]] = {}
    for column in sorted(map(str, cells.obs), key=lambda name: name != CLUSTER_COLUMN):
        choices[f"{column} ({WORDS['obs']})"] = ("obs", column)
    for kind, word in WORDS.items():
        if kind in cells.kinds:
            names = cells.gene_names if kind.startswith("gene") else cells.protein_names
            choices |= {f"{name} ({word})": (kind, name) for name in names}
    return choices


def color_cells(cells: RunCells, kind: Kind, name: str) -> Coloring:
    """Return the colours of all cells by an annotation or a feature."""
    if kind == "obs" and not _is_number(cells.obs[name]):
        return _by_category(cells.obs[name])
    scale = None
    if kind in ("protein_denoised", "protein_raw"):
        scale = PROTEIN_SCALE
    elif kind.startswith("gene"):
        scale = RNA_SCALE
    values = cells.values(kind, name)
    places = values if scale is None else scale.forward(values)
    known = places[np.isfinite(places)]
    high = 1.0
    if kind != "protein_foreground" and known.size:
        high = float(np.percentile(known, _TOP_PERCENTILE)) or float(known.max()) or 1.0
    low = min(float(known.min()), 0.0) if kind == "obs" and known.size else 0.0
    return Coloring(
        mapped(places, low, max(high, low + 1e-9), list(VALUE_PALETTE)), "", high, scale
    )


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _by_category(column: pd.Series) -> Coloring:
    categories = column.astype("category").cat
    codes = categories.codes.to_numpy()
    names = list(map(str, categories.categories))
    palette = rgba([*category_colors(len(names)), BACKGROUND])
    cells_of = np.bincount(codes[codes >= 0], minlength=len(names))
    legend = category_legend(names[:_MOST_CATEGORIES], cells_of[:_MOST_CATEGORIES])
    return Coloring(palette[codes], legend, float("nan"), None)


def gate_columns(cells: RunCells, gating: Gating) -> pd.DataFrame:
    """Return the gates of each cell.

    Returns
    -------
    pandas.DataFrame
        Indexed by cell: ``gate``, categorical, the path of the innermost gate, such as
        "T cells/CD4 T", or "" in none; and a boolean column ``in_gate NAME`` for each gate.
    """
    inside = members(gating, cells.inside, cells.n_cells)
    table = gate_table(gating, inside, cells.obs.index)
    return table.rename_axis("cell")


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table for a CSV file, in which no spreadsheet reads a name of a gate as a formula.

    An apostrophe goes before names that begin with =, +, - or @.

    Examples
    --------
    >>> without_formulas(pd.DataFrame({"gate": ["=1+1", "CD4+", ""]}))["gate"].tolist()
    ["'=1+1", 'CD4+', '']
    """
    names = table[GATE].astype(str)
    return table.assign(**{GATE: names.where(~names.str.match("[=+@-]"), "'" + names)})


def gate_table(
    gating: Gating, inside: Mapping[str | None, np.ndarray], index: pd.Index
) -> pd.DataFrame:
    """Return the table of `gate_columns` from masks of `totalvi.explorer.gates.members`."""
    paths = ["", *("/".join(gating.path(gate.name)) for _, gate in gating.walk())]
    columns: dict[str, object] = {
        GATE: pd.Categorical(deepest(gating, inside), categories=list(dict.fromkeys(paths)))
    }
    columns |= {f"{PREFIX}{name}": inside[name] for name in gating.names}
    return pd.DataFrame(columns, index=index)


def write_gated(cells: RunCells, gating: Gating, output: Path, *, overwrite: bool = False) -> Path:
    """Write a copy of the run's `results.h5mu` with the gates of each cell in ``obs``.

    They are in ``obs`` of the MuData and of each modality, in place of those of an earlier export.

    Parameters
    ----------
    output
        A file ending in ``.h5mu``, other than `results.h5mu`.

    Raises
    ------
    OutputError
        When ``output`` exists and ``overwrite`` is False, or cannot be written; or of a run on disk.
    """
    if cells.on_disk:
        raise OutputError(
            f"{cells.results} is too large to be copied: take the gates of each cell as CSV."
        )
    table = gate_columns(cells, gating)
    with staged_file(output, suffix=".h5mu", overwrite=overwrite) as staged:
        shutil.copyfile(cells.results, staged)
        with h5py.File(staged, "r+") as file:
            for where in ("obs", *(f"mod/{modality}/obs" for modality in file["mod"])):
                _add_columns(file, where, table)
    return output


def _add_columns(file: h5py.File, where: str, table: pd.DataFrame) -> None:
    obs = read_elem(file[where])
    earlier = [name for name in obs if name == GATE or str(name).startswith(PREFIX)]
    obs = obs.drop(columns=earlier)
    if not obs.index.equals(table.index):
        table = table.reindex(obs.index)
    for name in table:
        obs[name] = table[name]
    write_elem(file, where, obs)
