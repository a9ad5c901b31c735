"""What a fitted model says of the cells, as MuData, tables and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mudata import MuData

from totalvi.analysis import figures
from totalvi.analysis.clusters import Clusters
from totalvi.analysis.columns import CLUSTER_COLUMN
from totalvi.analysis.figure_histograms import protein_histograms
from totalvi.analysis.figure_style import page_slices, save
from totalvi.analysis.markers import marker_table
from totalvi.analysis.separation import antibody_separation
from totalvi.analysis.tables import cell_table, cluster_table, protein_table

DENOISED_LIBRARY_SIZE = 10_000
LONG_TABLES = {"cells", "differential_expression"}


class Estimates(NamedTuple):
    """What a fitted model says of N cells, G genes and T proteins; all float32.

    Attributes
    ----------
    latent
        (N, n_latent).
    denoised_rna
        (N, G), expected counts in 10,000.
    denoised_protein
        (N, T), expected counts without background.
    foreground_probability
        (N, T).
    """

    latent: np.ndarray
    denoised_rna: np.ndarray
    denoised_protein: np.ndarray
    foreground_probability: np.ndarray


def add_results(mdata: MuData, estimates: Estimates, clusters: Clusters) -> None:
    """Write the estimates into a MuData with the modalities ``rna`` and ``prot``.

    Layer ``denoised`` of both, layer ``foreground_probability`` of ``prot``; ``X_totalvi`` and
    ``X_umap`` in ``obsm`` and the clusters as ``leiden_totalvi`` in ``obs``, of the MuData and of
    both modalities, whose ``obs`` also get the other annotation.
    """
    rna, protein = mdata["rna"], mdata["prot"]
    rna.layers["denoised"] = estimates.denoised_rna
    protein.layers["denoised"] = estimates.denoised_protein
    protein.layers["foreground_probability"] = estimates.foreground_probability
    annotation = mdata.obs.copy()
    annotation[CLUSTER_COLUMN] = clusters.labels
    for holder in (mdata, rna, protein):
        holder.obs = annotation.copy()
        holder.obsm["X_totalvi"] = estimates.latent
        holder.obsm["X_umap"] = clusters.umap
    mdata.uns["totalvi"] = {
        "denoised_rna": f"expected counts in {DENOISED_LIBRARY_SIZE:,}",
        "denoised_protein": "expected counts without background",
    }


def make_tables(
    mdata: MuData,
    estimates: Estimates,
    clusters: Clusters,
    batch_key: str | None,
    history: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    """Return the tables ``cells``, ``proteins``, ``clusters``, ``markers`` and ``history``."""
    rna, protein = mdata["rna"], mdata["prot"]
    batch = None if batch_key is None else mdata.obs[batch_key]
    names = list(protein.var_names)
    separation = antibody_separation(
        protein.X, estimates.foreground_probability, names, protein.var.get("control")
    )
    return {
        "cells": cell_table(
            mdata.obs_names,
            batch,
            clusters.labels,
            clusters.umap,
            estimates.latent,
            rna.X,
            protein.X,
        ),
        "proteins": protein_table(
            separation, protein.X, estimates.denoised_protein, estimates.foreground_probability
        ),
        "clusters": cluster_table(clusters.labels, batch, estimates.denoised_protein, names),
        "markers": marker_table(
            clusters.labels,
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
    folder.mkdir()
    for name, table in tables.items():
        ending = "csv.gz" if name in LONG_TABLES else "csv"
        table.to_csv(folder / f"{name}.{ending}", float_format="%.6g")


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
    tables: Mapping[str, pd.DataFrame],
    folder: Path,
    *,
    batch_key: str | None,
    labels_key: str | None,
    best_epoch: int,
) -> None:
    """Draw all figures into ``folder``; many proteins are divided into several pages."""
    folder.mkdir()
    umap, protein = clusters.umap, mdata["prot"]
    drawn: dict[str, Figure] = {
        "umap_clusters": figures.umap_by_category(umap, clusters.labels, name="cluster"),
        "training": figures.training_curves(tables["history"], best_epoch),
    }
    if batch_key is not None:
        drawn["umap_batches"] = figures.umap_by_category(
            umap, mdata.obs[batch_key], name=batch_key, label_on_map=False
        )
    if labels_key is not None:
        drawn["umap_labels"] = figures.umap_by_category(
            umap, mdata.obs[labels_key], name=labels_key
        )
    names, warnings = list(protein.var_names), list(tables["proteins"]["warning"])
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
                warnings[page],
            ),
            folder / f"protein_histograms{ending}",
        )
