"""Where a run leaves its cells: one file or store that is added to as the results are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import mudata
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, write_elem
from mudata import MuData

from totalvi.data.counts import DenseOnDisk
from totalvi.run.folder import RESULTS, STORE

DENOISED_LIBRARY_SIZE = 10_000
ROWS_PER_CHUNK = 1024
COLUMNS_PER_CHUNK = 64  # so that the explorer reads a gene without reading all
_EVERYWHERE = ("", "mod/rna/", "mod/prot/")


class ResultsFile:
    """``results.h5mu`` of a run in memory, or ``results.zarr`` of one on disk.

    What is added goes to the file at once and need not fit into memory; where there is no file, since
    writing the counts failed, nothing is added.

    Parameters
    ----------
    folder
        Of the run.
    on_disk
        Whether it is a store, which was written before the fit.
    """

    def __init__(self, folder: Path, *, on_disk: bool) -> None:
        self.path = folder / (STORE if on_disk else RESULTS)
        self.on_disk = on_disk
        # A store is opened by what knows of the whole alone; it has no second copy of annotation.
        self._holders = ("",) if on_disk else _EVERYWHERE

    @property
    def is_there(self) -> bool:
        """Whether results can be added and read."""
        return self.path.exists()

    def write_counts(self, mdata: MuData) -> None:
        """Begin the file: counts and annotation, which the modalities get as well."""
        annotation = mdata.obs.copy()
        for holder in (mdata, mdata["rna"], mdata["prot"]):
            holder.obs = annotation.copy()
        mdata.uns["totalvi"] = {
            "denoised_rna": f"expected counts in {DENOISED_LIBRARY_SIZE:,}",
            "denoised_protein": "expected counts without background",
        }
        try:
            with mudata.set_options(pull_on_update=False):
                mdata.write(self.path, compression="gzip", compression_opts=1)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise

    def add_obsm(self, name: str, values: np.ndarray) -> None:
        """Add coordinates of the cells, (n_cells, dimensions)."""
        if self.is_there:
            with self._opened() as root:
                for holder in self._holders:
                    write_elem(root[f"{holder}obsm"], name, values)

    def add_obs(self, name: str, values: pd.Categorical) -> None:
        """Add a column to the annotation of the cells."""
        if self.is_there:
            with self._opened() as root:
                for holder in self._holders:
                    frame = root[f"{holder}obs"]
                    write_elem(frame, name, values)
                    columns = [str(column) for column in frame.attrs["column-order"]]
                    frame.attrs["column-order"] = [*(c for c in columns if c != name), name]

    @contextmanager
    def new_layer(self, modality: str, name: str, n_columns: int) -> Iterator[Any]:
        """Give a float32 matrix that takes rows by slices; it is removed if the block fails."""
        place = f"mod/{modality}/layers"
        with self._opened() as root:
            annotation = root[f"mod/{modality}/obs"]
            n_cells = annotation[annotation.attrs["_index"]].shape[0]
            shape = (n_cells, n_columns)
            chunks = (
                max(min(ROWS_PER_CHUNK, n_cells), 1),
                max(n_columns if self.on_disk else min(COLUMNS_PER_CHUNK, n_columns), 1),
            )
            if name in root[place]:
                del root[place][name]
            if self.on_disk:
                matrix = root[place].create_array(
                    name, shape=shape, chunks=chunks, dtype=np.float32, compressors=None
                )
            else:
                matrix = root[place].create_dataset(name, shape, np.float32, chunks=chunks)
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            try:
                yield matrix
            except BaseException:
                del root[place][name]
                raise

    def add_layer(self, modality: str, name: str, values: np.ndarray) -> None:
        """Add a matrix of the cells that is in memory."""
        if self.is_there:
            with self._opened() as root:
                write_elem(root[f"mod/{modality}/layers"], name, values)

    def read_rows(self, place: str, cells: np.ndarray) -> np.ndarray:
        """Return some rows of a dense matrix."""
        with self._opened() as root:
            rows: np.ndarray = DenseOnDisk(root[place], place).rows(cells)
        return rows

    def read(self, place: str) -> Any:
        """Return what is at a place in memory."""
        with self._opened() as root:
            return read_elem(root[place])

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        if self.on_disk:
            yield zarr.open_group(self.path, mode="r+")
            return
        with h5py.File(self.path, "r+") as root:
            yield root
