"""Write estimates of a fitted model as MuData, tables and figures."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import mudata
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, write_elem
from matplotlib.figure import Figure
from mudata import MuData
from scipy import sparse

from totalvi.data.counts import DenseOnDisk
from totalvi.figures import png_figures as figures
from totalvi.figures.png_style import page_slices, protein_histograms, save
from totalvi.posterior.antibody_separation import antibody_separation
from totalvi.run.clusters import Clusters
from totalvi.run.folder import DENOISED_LIBRARY_SIZE, RESULTS, STORE
from totalvi.run.tables import marker_table, protein_table, tested_on


class Estimates(NamedTuple):
    """Estimates of a fitted model for N cells and T proteins; all float32.

    Attributes
    ----------
    latent
        (N, n_latent).
    denoised_protein
        (N, T), expected counts without background.
    foreground_probability
        (N, T).
    """

    latent: np.ndarray
    denoised_protein: np.ndarray
    foreground_probability: np.ndarray


def make_tables(
    cell_names: pd.Index,
    batch: pd.Series | None,
    clusters: Clusters,
    latent: np.ndarray,
    totals: Sequence[np.ndarray],
    shown: MuData,
    estimates: Estimates,
    clusters_shown: Clusters,
    batch_key: str | None,
    history: pd.DataFrame,
    held_out: MuData | None,
) -> dict[str, pd.DataFrame]:
    """Return the tables ``cells``, ``proteins``, ``clusters``, ``markers`` and ``history``.

    Parameters
    ----------
    cell_names, batch, clusters, latent
        Of all cells, which the first table has.
    totals
        Total counts of RNA and of proteins of all cells, each (N, 1).
    shown, estimates, clusters_shown
        The cells that the other tables are of, and what is known of them.
    batch_key
        Column of their ``obs``.
    history
        Of the fit.
    held_out
        The cells of ``shown`` with the counts that markers are tested on; None: those of ``shown``.
    """
    rna, protein = shown["rna"], shown["prot"]
    tested = shown if held_out is None else held_out
    batch_shown = None if batch_key is None else shown.obs[batch_key]
    names = list(protein.var_names)
    denoised = np.where(np.isnan(protein.X), np.nan, estimates.denoised_protein)
    separation = antibody_separation(
        protein.X, estimates.foreground_probability, names, protein.var.get("control")
    )
    return {
        "cells": cell_table(cell_names, batch, clusters.labels, clusters.umap, latent, *totals),
        "proteins": protein_table(
            separation, protein.X, estimates.denoised_protein, estimates.foreground_probability
        ),
        "clusters": cluster_table(clusters_shown.labels, batch_shown, denoised, names),
        "markers": marker_table(
            clusters_shown.labels,
            tested["rna"].X,
            rna.var_names,
            tested["prot"].X,
            estimates.denoised_protein,
            estimates.foreground_probability,
            names,
            None if batch_shown is None else pd.factorize(batch_shown)[0],
        )
        .assign(tested_on=tested_on(held_out is not None))
        .set_index("modality"),
        "history": history,
    }


def cell_table(
    cell_names: pd.Index,
    batch: pd.Series | None,
    cluster: pd.Categorical,
    umap: np.ndarray,
    latent: np.ndarray,
    rna: sparse.csr_matrix | np.ndarray,
    protein: np.ndarray,
) -> pd.DataFrame:
    """One row for each cell: batch, cluster, place on the map, latent coordinates, total counts.

    Parameters
    ----------
    cell_names, batch, cluster
        One for each cell; ``batch`` None when all cells are of one.
    umap, latent
        Shape (n_cells, 2) and (n_cells, n_latent).
    rna, protein
        Raw counts, cells x features; NaN proteins are unmeasured and not summed.
    """
    width = len(str(latent.shape[1]))
    columns: dict[str, Any] = {
        "batch": "all cells" if batch is None else np.asarray(batch),
        "cluster": cluster,
        "umap_1": umap[:, 0],
        "umap_2": umap[:, 1],
        "rna_total": np.asarray(rna.sum(axis=1)).ravel(),
        "protein_total": np.nansum(protein, axis=1),
    }
    columns |= {f"latent_{i + 1:0{width}}": latent[:, i] for i in range(latent.shape[1])}
    return pd.DataFrame(columns, index=pd.Index(cell_names, name="cell"))


def cluster_table(
    cluster: pd.Categorical,
    batch: pd.Series | None,
    denoised: np.ndarray,
    protein_names: Sequence[str],
) -> pd.DataFrame:
    """Return one row for each cluster: size, cells from each batch, mean denoised proteins.

    Parameters
    ----------
    cluster
        Cluster of each cell.
    batch
        Batch of each cell; None: there is one.
    denoised
        Shape (n_cells, n_proteins), NaN where the cell's panel did not measure the protein. Means are
        over the other cells, and NaN where a cluster has none.
    protein_names
        Names of the columns of ``denoised``.
    """
    table = pd.DataFrame({"cells": cluster.value_counts()})
    table["percent_of_cells"] = 100 * table["cells"] / len(cluster)
    if batch is not None:
        batches = pd.crosstab(cluster, np.asarray(batch).astype(str))
        table = table.join(batches.add_prefix("cells_in_batch_"))
    means = pd.DataFrame(denoised, columns=list(protein_names)).groupby(np.asarray(cluster)).mean()
    return table.join(means.add_prefix("denoised_")).rename_axis("cluster")


def antibody_warnings(proteins: pd.DataFrame, at_most: int = 8) -> list[str]:
    """Return one sentence for each kind of failure, with the antibodies that failed to separate.

    Examples
    --------
    >>> antibody_warnings(pd.DataFrame({"warning": ["", "no foreground"]}, index=["CD3", "CD25"]))
    ['1 of 2 antibodies: no foreground (CD25).']
    """
    sentences = []
    for kind, failed in proteins[proteins["warning"] != ""].groupby("warning", sort=False):
        names = ", ".join(map(str, failed.index[:at_most]))
        if len(failed) > at_most:
            names += f" and {len(failed) - at_most} more, see tables/proteins.csv"
        sentences.append(f"{len(failed)} of {len(proteins)} antibodies: {kind} ({names}).")
    return sentences


def draw_figures(
    mdata: MuData,
    estimates: Estimates,
    clusters: Clusters,
    protein_warnings: Sequence[str],
    history: pd.DataFrame,
    folder: Path,
    *,
    batch_key: str | None,
    labels_key: str | None,
    best_epoch: int,
) -> None:
    """Draw all figures into ``folder``; many proteins are divided into several pages."""
    shutil.rmtree(folder, ignore_errors=True)  # of a process that failed in the middle
    folder.mkdir()
    umap, protein = clusters.umap, mdata["prot"]
    drawn: dict[str, Figure] = {
        "umap_clusters": figures.umap_by_category(umap, clusters.labels, name="cluster"),
        "training": figures.training_curves(history, best_epoch),
    }
    if batch_key is not None:
        drawn["umap_batches"] = figures.umap_by_category(
            umap, mdata.obs[batch_key], name=batch_key, label_on_map=False
        )
    if labels_key is not None:
        drawn["umap_labels"] = figures.umap_by_category(
            umap, mdata.obs[labels_key], name=labels_key
        )
    names = list(protein.var_names)
    for name, figure in drawn.items():
        save(figure, folder / f"{name}.png")
    pages = page_slices(len(names))
    for number, page in enumerate(pages, start=1):
        ending = f"_{number:0{len(str(len(pages)))}}.png" if len(pages) > 1 else ".png"
        denoised = estimates.denoised_protein[:, page]
        save(
            figures.umap_by_protein(umap, denoised, names[page]), folder / f"umap_proteins{ending}"
        )
        save(
            protein_histograms(
                protein.X[:, page],
                denoised,
                estimates.foreground_probability[:, page],
                names[page],
                protein_warnings[page],
            ),
            folder / f"protein_histograms{ending}",
        )


POSTERIOR_SAMPLES = 25
SAMPLES_OF_MANY, MANY_CELLS = 10, 8192


def posterior_samples(n_cells: int) -> int:
    """Return the number of samples that denoised values average: 25, or 10 for more than 8,192 cells.

    Each sample takes a third as long as an epoch.

    Examples
    --------
    >>> posterior_samples(8192), posterior_samples(60_000)
    (25, 10)
    """
    return POSTERIOR_SAMPLES if n_cells <= MANY_CELLS else SAMPLES_OF_MANY


ROWS_PER_CHUNK = 1024
COLUMNS_PER_CHUNK = 64  # so that the explorer reads a gene without reading all
_EVERYWHERE = ("", "mod/rna/", "mod/prot/")


class ResultsFile:
    """``results.h5mu`` of a run in memory, or ``results.zarr`` of one on disk.

    Results are written to the file at once and need not fit into memory. If there is no file, because
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

    def add_obs(self, name: str, values: pd.Categorical | np.ndarray) -> None:
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

    def has(self, place: str) -> bool:
        """Return whether there is something at a place."""
        if not self.is_there:
            return False
        with self._opened() as root:
            return place in root

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
