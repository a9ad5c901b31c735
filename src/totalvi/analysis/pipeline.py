"""From checked counts to a folder of results: fit, estimate, cluster, tabulate, draw, save."""

from pathlib import Path
from typing import Any

import mudata
from mudata import MuData

from totalvi.analysis.clusters import cluster_cells
from totalvi.analysis.results import (
    DENOISED_LIBRARY_SIZE,
    Estimates,
    add_results,
    antibody_warnings,
    draw_figures,
    make_tables,
    write_tables,
)
from totalvi.analysis.steps import Steps
from totalvi.data.cite import Keys
from totalvi.model import Model

POSTERIOR_SAMPLES = 25


def fit_and_write(
    mdata: MuData,
    keys: Keys,
    folder: Path,
    steps: Steps,
    *,
    max_epochs: int | None,
    resolution: float,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """Fit a model to ``mdata``, which gets the results, and write everything into ``folder``.

    Parameters
    ----------
    mdata
        From :func:`totalvi.analysis.prepare.prepare`.
    keys
        Columns of ``obs``; counts are in ``X`` of the modalities ``rna`` and ``prot``.
    folder
        An empty folder.
    steps
        Times the steps and shows them.
    max_epochs, resolution, seed
        As in :func:`totalvi.analysis.run.run`.

    Returns
    -------
    tuple
        Sizes and the course of the fit, and warnings about antibodies.
    """
    with steps.step("train", spinner=False):
        model = fit_model(mdata, keys, max_epochs, seed, steps.shown)
    with steps.step("latent space and denoised counts"):
        estimates = _estimate(model)
    with steps.step("clusters and UMAP"):
        clusters = cluster_cells(estimates.latent, resolution=resolution, seed=seed)
    with steps.step("tables"):
        tables = make_tables(mdata, estimates, clusters, keys.batch_key, model.history)
        write_tables(tables, folder / "tables")
    summary: dict[str, Any] = model.fit_summary
    with steps.step("figures"):
        draw_figures(
            mdata,
            estimates,
            clusters,
            tables,
            folder / "figures",
            batch_key=keys.batch_key,
            labels_key=keys.labels_key,
            best_epoch=summary["best_epoch"],
        )
    with steps.step("save"):
        model.save(folder / "model.totalvi")
        add_results(mdata, estimates, clusters)
        with mudata.set_options(pull_on_update=False):
            mdata.write(folder / "results.h5mu", compression="gzip")
    return {
        "cells": mdata.n_obs,
        "genes": mdata["rna"].n_vars,
        "proteins": mdata["prot"].n_vars,
        "clusters": len(clusters.labels.categories),
        "epochs": len(model.history),
        **summary,
        "held_out_loss_per_cell": float(model.history["validation_loss"][summary["best_epoch"]]),
    }, antibody_warnings(tables["proteins"])


def fit_model(
    data: MuData | Path, keys: Keys, max_epochs: int | None, seed: int, show: bool
) -> Model:
    """Fit a model to prepared counts, in memory or on disk."""
    model = Model(
        data,
        batch_key=keys.batch_key,
        panel_key=keys.panel_key,
        labels_key=keys.labels_key,
        size_factor_key=keys.size_factor_key,
        categorical_covariate_keys=keys.categorical_covariate_keys,
        continuous_covariate_keys=keys.continuous_covariate_keys,
        allow_fractional=keys.allow_fractional,
        seed=seed,
    )
    model.train(max_epochs=max_epochs, progress=show)
    return model


def _estimate(model: Model) -> Estimates:
    rna, protein = model.get_normalized_expression(
        library_size=DENOISED_LIBRARY_SIZE, n_samples=POSTERIOR_SAMPLES, return_numpy=True
    )
    foreground = model.get_protein_foreground_probability(
        n_samples=POSTERIOR_SAMPLES, return_numpy=True
    )
    return Estimates(model.get_latent_representation(), rna, protein, foreground)
