"""Where the rows of a large result go: into memory, or into a zarr store on disk."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from totalvi.errors import OutputError

_ROWS_PER_CHUNK = 1024


class Table(NamedTuple):
    """Names of the cells and features of a result."""

    cells: pd.Index
    features: np.ndarray


@contextmanager
def row_targets(
    tables: Mapping[str, Table], out: str | Path | None, n_samples: int | None = None
) -> Iterator[dict[str, Any]]:
    """Give something with rows to write for each table: an array, or a zarr array in ``out``.

    Parameters
    ----------
    tables
        By name of the result.
    out
        Folder of a zarr store that must not exist: it gets a group a table, each of which
        ``anndata.read_zarr`` reads. It appears whole when all is written, or not at all. None: memory.
    n_samples
        Length of a leading axis; None: there is none. Only in memory.

    Raises
    ------
    OutputError
        When ``out`` exists, or cannot be written.
    """
    if out is None:
        leading = () if n_samples is None else (n_samples,)
        yield {
            name: np.empty((*leading, len(table.cells), len(table.features)), dtype=np.float32)
            for name, table in tables.items()
        }
        return
    if n_samples is not None:
        raise ValueError("out takes means only; leave return_mean at True, or out at None.")
    path = Path(out)
    if path.exists():
        raise OutputError(f"{path} exists already; give another folder as out, or remove it.")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        yield _zarr_arrays(partial, tables)
        partial.rename(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error}); give another folder as out."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _zarr_arrays(path: Path, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Create one group a table in the layout of AnnData, with ``X`` still to be filled."""
    import zarr
    from anndata import AnnData
    from anndata.io import write_elem

    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    arrays = {}
    for name, table in tables.items():
        names = AnnData(
            obs=pd.DataFrame(index=table.cells), var=pd.DataFrame(index=pd.Index(table.features))
        )
        write_elem(root, name, names)
        n_cells, n_features = names.shape
        array = root[name].create_array(
            "X",
            shape=(n_cells, n_features),
            chunks=(max(min(_ROWS_PER_CHUNK, n_cells), 1), max(n_features, 1)),
            dtype=np.float32,
            compressors=None,  # averages hardly compress, and trying takes long
            overwrite=True,
        )
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        arrays[name] = array
    return arrays
