"""Read Matrix Market files, and the lists of names that lie beside them."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.data.io.text_tables import LARGEST_TEXT_RATIO, open_text, require_last_line_end
from totalvi.data.io.trust import reading, require_lengths
from totalvi.errors import ReadError

MTX_COLUMNS = {"feature": np.int64, "cell": np.int64, "count": np.float32}
ENTRIES_PER_CHUNK = 5_000_000


def file_of(folder: Path, prefix: str, *names: str) -> Path | None:
    """Return the first of these files that a folder has, gzipped or not, with a prefix."""
    candidates = [folder / f"{prefix}{name}{end}" for name in names for end in (".gz", "")]
    return next((path for path in candidates if path.is_file()), None)


def open_list(path: Path) -> IO[bytes]:
    """Open a list of names or of entries, and refuse one that unpacks to much more than it should."""
    return open_text(path, at_most=LARGEST_TEXT_RATIO * path.stat().st_size)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a list that are not empty."""
    with reading(path, "a tab-separated list"), open_list(path) as file:
        lines = file.read().decode("utf-8-sig").splitlines()
    require_last_line_end(path)
    return [line for line in lines if line]


def read_mtx(path: Path, n_features: int, n_cells: int) -> sparse.csr_matrix:
    """Read features x cells counts as cells x features CSR float32."""
    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    with (
        reading(path, "a Matrix Market file"),
        open_list(path) as file,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", pd.errors.ParserWarning)  # lines with more than three fields
        n_rows, n_columns, n_entries = mtx_size(path, file)
        require_lengths(path, n_rows, n_features, n_columns, n_cells)
        for chunk in _mtx_entries(file) if n_entries else ():
            features, cells, counts = (chunk[name].to_numpy() for name in MTX_COLUMNS)
            for indices, n, what in ((features, n_rows, "row"), (cells, n_columns, "column")):
                if indices.min() < 1 or indices.max() > n:
                    worst = indices.min() if indices.min() < 1 else indices.max()
                    raise ReadError(
                        f"{path} has a count in {what} {worst}, outside its {n} {what}s; "
                        "copy, download or write it again."
                    )
            chunks.append((counts, cells.astype(np.int32) - 1, features.astype(np.int32) - 1))
    require_last_line_end(path)
    found = sum(len(counts) for counts, _, _ in chunks)
    if found != n_entries:
        raise ReadError(
            f"{path} announces {n_entries} counts but has {found}; it is damaged or cut short, so "
            "copy, download or write it again."
        )
    empty = (np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.int32))
    counts, cells, features = (np.concatenate(parts) for parts in zip(empty, *chunks, strict=True))
    return sparse.coo_matrix((counts, (cells, features)), shape=(n_cells, n_features)).tocsr()


def mtx_size(path: Path, file: IO[bytes]) -> tuple[int, int, int]:
    """Read the header of a Matrix Market file: numbers of rows, columns and entries."""
    banner = file.readline(1000).decode().lower().split()
    if banner[:2] != ["%%matrixmarket", "matrix"]:
        raise ReadError(
            f"{path} is not a Matrix Market file (its first line is no %%MatrixMarket); "
            "copy, download or write it again."
        )
    if banner[2:] not in (["coordinate", kind, "general"] for kind in ("integer", "real")):
        raise ReadError(
            f'{path} is a Matrix Market file of the kind "{" ".join(banner[2:])}", and counts are '
            '"coordinate integer general"; write it again as a sparse matrix of integers.'
        )
    line = b"%"
    while line.startswith(b"%") or line.isspace():
        line = file.readline(1000)
    n_rows, n_columns, n_entries = (int(field) for field in line.split())
    return n_rows, n_columns, n_entries


def _mtx_entries(file: IO[bytes]) -> Iterator[pd.DataFrame]:
    """Read the entries; scipy's faster reader aborts the process on some damaged streams."""
    return pd.read_csv(
        file,
        sep=r"\s+",
        header=None,
        names=list(MTX_COLUMNS),
        index_col=False,
        dtype=MTX_COLUMNS,
        na_filter=False,
        chunksize=ENTRIES_PER_CHUNK,
    )
