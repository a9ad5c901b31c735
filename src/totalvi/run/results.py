"""What a fitted model says of the cells, as MuData, tables and figures."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mudata import MuData

from totalvi.figures import png_figures as figures
from totalvi.figures.png_style import page_slices, protein_histograms, save
from totalvi.run.clusters import Clusters
from totalvi.run.tables import (
    antibody_separation,
    cell_table,
    cluster_table,
    marker_table,
    protein_table,
)

LONG_TABLES = {"cells", "differential_expression"}


class Estimates(NamedTuple):
    """What a fitted model says of N cells and T proteins; all float32.

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
    """
    rna, protein = shown["rna"], shown["prot"]
    batch_shown = None if batch_key is None else shown.obs[batch_key]
    names = list(protein.var_names)
    separation = antibody_separation(
        protein.X, estimates.foreground_probability, names, protein.var.get("control")
    )
    return {
        "cells": cell_table(cell_names, batch, clusters.labels, clusters.umap, latent, *totals),
        "proteins": protein_table(
            separation, protein.X, estimates.denoised_protein, estimates.foreground_probability
        ),
        "clusters": cluster_table(
            clusters_shown.labels, batch_shown, estimates.denoised_protein, names
        ),
        "markers": marker_table(
            clusters_shown.labels,
            rna.X,
            rna.var_names,
            estimates.denoised_protein,
            estimates.foreground_probability,
            names,
        ).set_index("modality"),
        "history": history,
    }


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as CSV; those of many rows with gzip."""
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        ending = "csv.gz" if name in LONG_TABLES else "csv"
        table.to_csv(folder / f"{name}.{ending}", float_format="%.6g")


def read_protein_warnings(folder: Path) -> list[str]:
    """Return what the table of proteins in a folder of tables says of each antibody."""
    table = pd.read_csv(folder / "proteins.csv", usecols=["warning"], keep_default_na=False)
    return list(table["warning"])


def antibody_warnings(proteins: pd.DataFrame, at_most: int = 8) -> list[str]:
    """Say in one sentence for each kind of failure which antibodies failed to separate.

    Examples
    --------
    >>> antibody_warnings(pd.DataFrame({"warning": ["", "no foreground"]}, index=["CD3", "CD25"]))
    ['1 of 2 antibodies: no foreground (CD25)']
    """
    sentences = []
    for kind, failed in proteins[proteins["warning"] != ""].groupby("warning", sort=False):
        names = ", ".join(map(str, failed.index[:at_most]))
        if len(failed) > at_most:
            names += f" and {len(failed) - at_most} more, see tables/proteins.csv"
        sentences.append(f"{len(failed)} of {len(proteins)} antibodies: {kind} ({names})")
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
