"""Read the results of a run for the report, never more cells at once than it draws, and pack them."""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, sparse_dataset

from totalvi.data.background.isotype_controls import ISOTYPE_MODALITY
from totalvi.errors import OutputError, ReadError
from totalvi.run.folder import STORE

AT_LEAST = 50  # cells of each stratum, where it has so many


class Sample(NamedTuple):
    """A sample of cells.

    Attributes
    ----------
    rows
        Positions, in a random order, so that no stratum is drawn over another.
    weights
        How many cells each stands for, float32.
    """

    rows: np.ndarray
    weights: np.ndarray


def stratified_sample(strata: np.ndarray, n_wanted: int, seed: int = 0) -> Sample:
    """Take cells in proportion to the size of their stratum, but some of every stratum.

    Parameters
    ----------
    strata
        Stratum of each cell, 0 or more.
    n_wanted
        Largest number of cells; all, if there are not more.

    Examples
    --------
    >>> sample = stratified_sample(np.repeat([0, 1], [9900, 100]), 1000)
    >>> np.bincount(np.repeat([0, 1], [9900, 100])[sample.rows]).tolist()
    [945, 54]
    """
    n_cells = len(strata)
    rng = np.random.default_rng(seed)
    if n_cells <= n_wanted:
        return Sample(rng.permutation(n_cells), np.ones(n_cells, dtype=np.float32))
    sizes = np.bincount(strata)
    sure = np.minimum(sizes, min(AT_LEAST, n_wanted // max((sizes > 0).sum(), 1)))
    left = sizes - sure
    taken = sure + left * (n_wanted - sure.sum()) // max(left.sum(), 1)
    order = rng.permutation(n_cells)
    order = order[np.argsort(strata[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    kept = [order[start : start + n] for start, n in zip(starts, taken, strict=True)]
    rows = rng.permutation(np.concatenate(kept))
    weights = np.divide(sizes, taken, out=np.zeros(len(sizes)), where=taken > 0)
    return Sample(rows, weights[strata[rows]].astype(np.float32))


CLUSTERS = "leiden_totalvi"
NAMES = {
    "cells": "cell",
    "proteins": "protein",
    "clusters": "cluster",
    "history": "epoch",
    "batches": "batch",
    "differential_expression": "feature",
    "population_expression": "feature",
    "predictive_checks": "feature",
    "predictive_calibration": "modality",
    "isotype_controls": "control",
    "background": "protein",
    "ambient": "protein",
    "conditions": "feature",
    "condition_samples": "feature",
    "condition_abundance": "within",
    "populations": "population",
    "population_samples": "sample",
    "population_markers": "marker",
    "memberships": "cell",
    "cluster_names": "cluster",
    "doublets": "group",
    "modality_features": "group",
}
TEXT_COLUMNS = {
    *NAMES.values(), *("comparison", "within", "group", "group1", "group2", "sample", "warning"),
    *("parent", "gate", "told_by", "wanting", "hierarchy", "name", "of"),
} - {"epoch"}  # fmt: skip
NEEDED = ("cells", "proteins", "clusters", "history")
ROWS_AT_A_TIME = 4096


class Results(NamedTuple):
    """Results of a run, for the cells drawn as dots.

    Attributes
    ----------
    record
        ``run.json``.
    tables
        By name, as they are on disk; those that the run had no reason to write are missing.
    obs
        Of all cells.
    umap
        Of all cells, (N, 2).
    drawn
        The cells drawn as dots.
    raw, denoised, foreground
        Proteins of the cells drawn, (n, T); raw is NaN where unmeasured.
    protein_names, gene_names
        Of the columns.
    is_control
        Which proteins are isotype controls, (T,).
    controls
        Raw counts of the isotype controls that were kept out of the model, (n, controls).
    """

    folder: Path
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    obs: pd.DataFrame
    umap: np.ndarray
    drawn: Sample
    raw: np.ndarray
    denoised: np.ndarray
    foreground: np.ndarray
    protein_names: list[str]
    gene_names: list[str]
    is_control: np.ndarray
    controls: pd.DataFrame

    @property
    def batch_key(self) -> str | None:
        """The column of ``obs`` with the batches."""
        key = self.record["arguments"].get("batch_key")
        return key if key in self.obs else None

    @property
    def labels_key(self) -> str | None:
        """The column of ``obs`` with the user's labels."""
        key = self.record["arguments"].get("labels_key")
        return key if key in self.obs else None


_NOT_OF_A_RUN = (
    "{} is not a folder of `totalvi run`, which holds run.json, results.h5mu (or "
    f"{STORE}) and tables; give the folder that a run wrote."
)


def read_run_record(folder: Path) -> dict[str, Any]:
    """Return the record of a run.

    Raises
    ------
    OutputError
        When the folder is not one of a run.
    ReadError
        When the record is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise OutputError(_NOT_OF_A_RUN.format(folder))
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return record


def _damaged(folder: Path, error: Exception) -> ReadError:
    return ReadError(f"{folder} cannot be read ({error}); make it again with `totalvi run`.")


def read_results(folder: Path, n_drawn: int) -> Results:
    """Read the folder of a run.

    Parameters
    ----------
    folder
        As `totalvi run` wrote it.
    n_drawn
        Largest number of cells to draw.

    Raises
    ------
    OutputError
        When the folder is not one of a run.
    ReadError
        When a file in it is damaged.
    """
    tables_missing = [n for n in NEEDED if not _table_path(folder, n).is_file()]
    has_cells = (folder / "results.h5mu").is_file() or (folder / STORE).is_dir()
    if not has_cells or tables_missing:
        raise OutputError(_NOT_OF_A_RUN.format(folder))
    record = read_run_record(folder)
    try:
        tables = {
            name: _read_table(_table_path(folder, name), index)
            for name, index in NAMES.items()
            if _table_path(folder, name).is_file()
        }
        with _cells(folder) as file:
            obs = read_elem(file["obs"])
            umap = np.asarray(file["obsm/X_umap"])
            strata = pd.Categorical(obs[CLUSTERS]).codes
            drawn = stratified_sample(strata, n_drawn)
            protein = file["mod/prot"]
            var = read_elem(protein["var"])
            raw, denoised, foreground = (
                read_rows(protein[place], drawn.rows)
                for place in ("X", "layers/denoised", "layers/foreground_probability")
            )
            gene_names = read_elem(file["mod/rna/var"]).index.astype(str).tolist()
            controls = _controls(file, drawn.rows)
    except (OSError, KeyError, ValueError) as error:
        raise _damaged(folder, error) from error
    control = var.get("control", pd.Series(False, index=var.index))
    return Results(
        folder,
        record,
        tables,
        obs,
        umap,
        drawn,
        raw,
        denoised,
        foreground,
        var.index.astype(str).tolist(),
        gene_names,
        control.fillna(False).to_numpy(dtype=bool),
        controls,
    )


def read_genes(results: Results, genes: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the raw and the denoised counts of the cells drawn for genes at these positions.

    A run on disk leaves no denoised counts of genes: None.
    """
    with _cells(results.folder) as file:
        rna, denoised = file["mod/rna"], None
        if "layers/denoised" in rna:
            denoised = read_rows(rna["layers/denoised"], results.drawn.rows, genes)
        return read_rows(rna["X"], results.drawn.rows, genes), denoised


@contextmanager
def _cells(folder: Path) -> Iterator[h5py.File | zarr.Group]:
    """Yield the cells of a run as HDF5, or as zarr if the run was on disk."""
    path = folder / cells_file(folder)
    if path.name == STORE:
        yield zarr.open_group(path, mode="r")
        return
    with h5py.File(path) as file:
        yield file


def cells_file(folder: Path) -> str:
    """Return the name of the file or store of cells that a run left."""
    return STORE if (folder / STORE).is_dir() else "results.h5mu"


def read_rows(
    stored: h5py.Dataset | h5py.Group | zarr.Array | zarr.Group,
    rows: np.ndarray,
    columns: Sequence[int] | None = None,
) -> np.ndarray:
    """Read rows, in any order, of a dense or sparse matrix, some thousand at a time.

    Parameters
    ----------
    columns
        Which columns to keep; None: all.
    """
    is_dense = isinstance(stored, h5py.Dataset | zarr.Array)
    matrix = stored if is_dense else sparse_dataset(stored)
    kept: slice | np.ndarray = slice(None) if columns is None else np.asarray(columns, dtype=int)
    order = np.argsort(rows)
    rising = rows[order]
    parts = []
    for start in range(0, matrix.shape[0], ROWS_AT_A_TIME):
        first, last = np.searchsorted(rising, [start, start + ROWS_AT_A_TIME])
        if first == last:
            continue
        block = matrix[start : start + ROWS_AT_A_TIME]
        block = block[rising[first:last] - start][:, kept]
        parts.append(block if is_dense else block.toarray())
    return np.concatenate(parts)[np.argsort(order)]


def _controls(file: h5py.File, rows: np.ndarray) -> pd.DataFrame:
    """Return the counts of the isotype controls that were kept out of the model, if any."""
    if f"mod/{ISOTYPE_MODALITY}" not in file:
        return pd.DataFrame(index=range(len(rows)))
    stored = file[f"mod/{ISOTYPE_MODALITY}"]
    names = read_elem(stored["var"]).index.astype(str)
    return pd.DataFrame(read_rows(stored["X"], rows), columns=names)


def _table_path(folder: Path, name: str) -> Path:
    plain = folder / "tables" / f"{name}.csv"
    return plain if plain.is_file() else plain.with_suffix(".csv.gz")


def _read_table(path: Path, index: str) -> pd.DataFrame:
    # Names are text, even if they look like numbers or like a missing value.
    columns = pd.read_csv(path, nrows=0).columns
    as_text = {name: str for name in columns if name in TEXT_COLUMNS}
    missing = {name: [""] for name in columns if name not in as_text}
    table = pd.read_csv(path, dtype=as_text, keep_default_na=False, na_values=missing)
    return table.set_index(index)


def number(value: Any, decimals: int = 1) -> str:
    """Return a number with thousands apart, or a dash where there is none.

    Examples
    --------
    >>> number(1234.56), number(float("nan"))
    ('1,234.6', '-')
    """
    return "-" if pd.isna(value) else f"{value:,.{decimals}f}"


def mean_count(value: float) -> str:
    """Return a mean count with as many decimals as matter at its size.

    Examples
    --------
    >>> mean_count(1234.56), mean_count(12.345), mean_count(0.0432)
    ('1,235', '12.3', '0.04')
    """
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def packed(values: bytes) -> str:
    """Return bytes compressed with gzip, in base64."""
    return base64.b64encode(gzip.compress(values, compresslevel=6, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """Return a JSON value, compressed, in base64."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed(text.encode("utf-8"))


def packed_counts(counts: np.ndarray) -> dict[str, Any]:
    """Return exact counts in as few bytes as possible; the largest code is NaN.

    Examples
    --------
    >>> packed_counts(np.array([0, 7, np.nan]))["type"]
    'uint8'
    """
    known = np.isfinite(counts)
    highest = counts[known].max() if known.any() else 0
    kind = next(t for t in (np.uint8, np.uint16, np.uint32) if highest < np.iinfo(t).max)
    codes = np.where(known, counts, np.iinfo(kind).max).astype(kind)
    return _entry(codes, 0.0, 1.0)


def packed_levels(values: np.ndarray, n_levels: int) -> dict[str, Any]:
    """Return values rounded to the nearest of equally spaced levels; the largest code is NaN.

    Examples
    --------
    >>> entry = packed_levels(np.array([0.0, 1.0]), 251)
    >>> entry["type"], entry["low"], entry["step"]
    ('uint8', 0.0, 0.004)
    """
    known = np.isfinite(values)
    low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
    step = float(high - low) / (n_levels - 1) or 1.0
    kind = np.uint8 if n_levels < 256 else np.uint16
    codes = np.full(len(values), np.iinfo(kind).max, dtype=kind)
    codes[known] = np.round((values[known] - low) / step).astype(kind)
    return _entry(codes, float(low), step)


def _entry(codes: np.ndarray, low: float, step: float) -> dict[str, Any]:
    little = codes.astype(codes.dtype.newbyteorder("<"))
    return {"type": codes.dtype.name, "low": low, "step": step, "data": packed(little.tobytes())}


def size_of(entries: dict[str, Any]) -> int:
    """Return how many bytes the data of packed entries take in the page."""
    return sum(len(entry["data"]) for entry in entries.values())
