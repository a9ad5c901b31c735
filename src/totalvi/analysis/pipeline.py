"""From checked counts to a folder of results: fit, estimate, cluster, tabulate, draw, save."""

from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
from mudata import MuData

from totalvi.analysis.background import background_tables
from totalvi.analysis.clusters import Clusters, cluster_cells
from totalvi.analysis.columns import CLUSTER_COLUMN
from totalvi.analysis.mixing import batch_mixing
from totalvi.analysis.new_model import new_model
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
from totalvi.data.columns import Columns
from totalvi.fit.plan import default_max_epochs
from totalvi.model import Model

POSTERIOR_SAMPLES = 25
CHECKED_CELLS = 1000  # of the predictive checks, which draw all counts of each anew


def fit_and_write(
    mdata: MuData,
    keys: Columns,
    folder: Path,
    steps: Steps,
    *,
    max_epochs: int | None,
    resolution: float,
    seed: int,
    checkpoint: Path,
    checkpoint_every: timedelta,
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
    max_epochs, resolution, seed, checkpoint_every
        As in :func:`totalvi.analysis.run.run`.
    checkpoint
        File in which the fit is kept; where it exists, the fit goes on from it.

    Returns
    -------
    tuple
        Sizes and the course of the fit, and warnings about antibodies.
    """
    with steps.step("train", spinner=False):
        model = fit_model(
            mdata, keys, steps.shown, max_epochs=max_epochs, seed=seed,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        )  # fmt: skip
    with steps.step("latent space and denoised counts"):
        estimates = _estimate(model)
    with steps.step("clusters and UMAP"):
        clusters = cluster_cells(estimates.latent, resolution=resolution, seed=seed)
    with steps.step("tables"):
        tables = make_tables(mdata, estimates, clusters, keys.batch_key, model.history)
        background, background_warnings = background_tables(model, mdata)
        tables |= background
    add_results(mdata, estimates, clusters)
    shown = Shown(mdata, estimates, clusters)
    write_tables_and_figures(model, shown, tables, keys, folder, steps, seed)
    with steps.step("save"):
        model.save(folder / "model.totalvi")
        with mudata.set_options(pull_on_update=False):
            mdata.write(folder / "results.h5mu", compression="gzip")
    warnings = [*antibody_warnings(tables["proteins"]), *background_warnings]
    return summary_of(model, shown, mdata.n_obs), warnings


def fit_model(
    data: MuData | Path,
    keys: Columns,
    show: bool,
    *,
    max_epochs: int | None,
    seed: int,
    checkpoint: Path,
    checkpoint_every: timedelta,
) -> Model:
    """Fit a model to prepared counts, in memory or on disk; where ``checkpoint`` exists, go on."""
    model = new_model(data, keys, seed)
    model.train(
        max_epochs=max_epochs,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=True,
        progress=show,
        devices=1,  # all else in a run is done by one process
    )
    return model


def _estimate(model: Model) -> Estimates:
    rna, protein = model.get_normalized_expression(
        library_size=DENOISED_LIBRARY_SIZE, n_samples=POSTERIOR_SAMPLES, return_numpy=True
    )
    foreground = model.get_protein_foreground_probability(
        n_samples=POSTERIOR_SAMPLES, return_numpy=True
    )
    latent = model.get_latent_representation()
    return Estimates(latent, rna, protein, np.asarray(foreground))


class Shown(NamedTuple):
    """The cells that tables and figures show, with what the model says of them.

    Parameters
    ----------
    mdata
        With the clusters in ``obs``.
    estimates, clusters
        Of these cells.
    """

    mdata: MuData
    estimates: Estimates
    clusters: Clusters


def write_tables_and_figures(
    model: Model,
    shown: Shown,
    tables: dict[str, pd.DataFrame],
    keys: Columns,
    folder: Path,
    steps: Steps,
    seed: int,
) -> None:
    """Add to ``tables`` what is asked of the model about the cells shown, write them, and draw."""
    with steps.step("differential expression"):
        tables |= differential_expression(model, shown.mdata)
    with steps.step("predictive checks"):
        tables |= predictive_checks(model, len(tables["cells"]), seed)
    if keys.batch_key is not None:
        batch = shown.mdata.obs[keys.batch_key]
        tables["batches"] = batch_mixing(shown.estimates.latent, batch, seed)
    write_tables(tables, folder / "tables")
    with steps.step("figures"):
        draw_figures(
            *shown,
            tables,
            folder / "figures",
            batch_key=keys.batch_key,
            labels_key=keys.labels_key,
            best_epoch=model.fit_summary["best_epoch"],
        )


def summary_of(model: Model, shown: Shown, n_cells: int) -> dict[str, Any]:
    """Return the sizes and the course of the fit, as the record of a run has them."""
    assert model.plan is not None
    assert model.split is not None
    return {
        "cells": n_cells,
        "genes": shown.mdata["rna"].n_vars,
        "proteins": shown.mdata["prot"].n_vars,
        "clusters": len(shown.clusters.labels.categories),
        "epochs": len(model.history),
        "max_epochs": model.plan.max_epochs,
        "default_max_epochs": default_max_epochs(len(model.split.train)),
        **model.fit_summary,
        "fingerprint": model.fingerprint,
        "held_out_loss_per_cell": float(
            model.history["validation_loss"][model.fit_summary["best_epoch"]]
        ),
    }


def differential_expression(model: Model, mdata: MuData) -> dict[str, pd.DataFrame]:
    """Compare each cluster with the others; one cluster has nothing to be compared with."""
    if mdata.obs[CLUSTER_COLUMN].nunique() < 2:
        return {}
    table = model.differential_expression(mdata, groupby=CLUSTER_COLUMN, progress=False)
    return {"differential_expression": table}


def predictive_checks(model: Model, n_cells: int, seed: int) -> dict[str, pd.DataFrame]:
    """Draw counts anew for at most 1,000 cells taken at random, and compare."""
    cells = np.sort(np.random.default_rng(seed).permutation(n_cells)[:CHECKED_CELLS])
    check = model.posterior_predictive_check(
        indices=cells, n_samples=POSTERIOR_SAMPLES, progress=False
    )
    return {"predictive_checks": check.table, "predictive_calibration": check.calibration}
