"""CiteData: counts and annotation as arrays, in the order that a model knows them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from totalvi.data.annotation import Annotation
from totalvi.data.on_disk import RowsOnDisk
from totalvi.data.schema import Schema


@dataclass(frozen=True)
class CiteData:
    """Counts and annotation of N cells, aligned with a schema; nothing here is the user's object.

    Parameters
    ----------
    schema
        Names and categories.
    rna
        Counts (N, G), CSR, or rows on disk.
    protein
        Counts (N, T), float32, or rows on disk; unmeasured proteins hold 0 and are told by
        ``schema.panel_measured``.
    cell_names
        Of the N cells.
    batch, panel, label
        Codes (N,); ``label`` is None without a labels key.
    categorical, continuous
        Covariates (N, covariates), or None.
    library_size
        Size factor where a key is given, else total RNA count, (N,).
    annotation
        Gives the ``obs`` of the cells.
    controls
        Counts of the isotype controls that the data have, (N, controls), by name.
    """

    schema: Schema
    rna: Any  # csr_matrix or RowsOnDisk
    protein: Any  # ndarray or MeasuredOnDisk
    cell_names: pd.Index
    batch: np.ndarray
    panel: np.ndarray
    label: np.ndarray | None
    categorical: np.ndarray | None
    continuous: np.ndarray | None
    library_size: np.ndarray
    annotation: Annotation
    controls: pd.DataFrame

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.rna.shape[0])

    @property
    def on_disk(self) -> bool:
        """Whether the RNA counts are on disk, to be read some cells at a time."""
        return isinstance(self.rna, RowsOnDisk)

    def in_memory(self, cells: np.ndarray) -> Self:
        """Return the cells at these positions, counts and all, in memory."""

        def of_cells(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[cells]

        return replace(
            self,
            rna=self.rna[cells],
            protein=self.protein[cells],
            cell_names=self.cell_names[cells],
            batch=self.batch[cells],
            panel=self.panel[cells],
            label=of_cells(self.label),
            categorical=of_cells(self.categorical),
            continuous=of_cells(self.continuous),
            library_size=self.library_size[cells],
            controls=self.controls.iloc[cells],
        )

    @cached_property
    def cell_keys(self) -> np.ndarray:
        """One 64-bit number a cell, made from its name: the same in whatever data it comes."""
        return pd.util.hash_array(self.cell_names.to_numpy(object), categorize=False)


class MeasuredOnDisk:
    """Protein counts on disk, with 0 where the cell's panel did not measure the protein."""

    def __init__(self, protein: RowsOnDisk, panel: np.ndarray, measured: np.ndarray) -> None:
        self._protein, self._panel, self._measured = protein, panel, measured
        self.shape = protein.shape

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        return np.where(self._measured[self._panel[rows]], self._protein[rows], np.float32(0))
