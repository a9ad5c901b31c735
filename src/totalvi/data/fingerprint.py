"""By what a data set is known again."""

import hashlib
from typing import Any

import numpy as np

from totalvi.data.cite import CiteData
from totalvi.data.on_disk import row_blocks

_CELLS_COMPARED, _ROWS_AT_ONCE = 10_000, 1_000


def fingerprint(data: CiteData) -> dict[str, Any]:
    """Return what tells one data set from another, as JSON can hold it.

    Names, annotation, proteins and the library size of every cell are hashed; of data with more than
    10,000 cells, the RNA counts of 10,000 that are spread over all. Counts on disk, which are read some
    cells at a time, have the fingerprint of the same counts in memory.

    Examples
    --------
    >>> import totalvi
    >>> from totalvi.data.describe import describe
    >>> from totalvi.data.schema import Keys
    >>> data = describe(totalvi.simulate(n_cells=50, n_genes=20, n_proteins=4), Keys())
    >>> list(fingerprint(data))
    ['cells', 'genes', 'proteins', 'names of cells', 'annotation', 'protein counts', 'RNA counts']
    """
    schema = data.schema
    annotation = [data.batch, data.panel, data.label, data.categorical, data.continuous]
    return {
        "cells": data.n_cells,
        "genes": _hash_texts(schema.gene_names),
        "proteins": _hash_texts(schema.protein_names),
        "names of cells": _hash_arrays([data.cell_keys]),
        "annotation": _hash_arrays([values for values in annotation if values is not None]),
        "protein counts": _hash_protein(data),
        "RNA counts": _hash_rna(data),
    }


def _hash_protein(data: CiteData) -> str:
    digest = hashlib.sha256(f"float32{data.protein.shape}".encode())
    by_panel = np.array(data.schema.panel_measured)
    for start, rows in row_blocks(data.protein):
        measured = by_panel[data.panel[start : start + len(rows)]]
        known = np.where(measured, rows, np.float32(0))  # what a query lacks may be filled in
        digest.update(np.ascontiguousarray(known).data)
    return digest.hexdigest()


def _hash_rna(data: CiteData) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(data.library_size).data)
    n_compared = min(data.n_cells, _CELLS_COMPARED)
    compared = np.linspace(0, data.n_cells - 1, n_compared).astype(np.int64)
    for start in range(0, n_compared, _ROWS_AT_ONCE):
        rows = data.rna[compared[start : start + _ROWS_AT_ONCE]]
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
