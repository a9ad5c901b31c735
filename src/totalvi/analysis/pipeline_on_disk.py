"""From a store of counts to a folder of results, for cells that do not fit into memory."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import write_elem
from mudata import MuData

from totalvi.analysis.background import background_tables
from totalvi.analysis.clusters import NEIGHBORS, Clusters, cluster_cells
from totalvi.analysis.output import STORE
from totalvi.analysis.pipeline import (
    POSTERIOR_SAMPLES,
    Shown,
    fit_model,
    summary_of,
    write_tables_and_figures,
)
from totalvi.analysis.results import CLUSTER_COLUMN, Estimates, antibody_warnings, make_tables
from totalvi.analysis.steps import Steps
from totalvi.analysis.tables import cell_table
from totalvi.data.columns import Columns
from totalvi.data.counts import DenseOnDisk, SparseOnDisk
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.fit.batches import some_of_each
from totalvi.model import Model

MAP_CELLS = 100_000
"""Cells that are clustered and mapped at once; further ones join the nearest of them."""


def fit_and_write_on_disk(
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
    """Fit a model to ``results.zarr`` in ``folder``, and write everything into them.

    The store gets clusters, map, latent states, denoised proteins and foreground probabilities, but
    no denoised RNA, which is as large as cells times genes: `Model.get_normalized_expression` writes
    it with ``out=``. Above `MAP_CELLS` cells, figures and all tables but those of cells and epochs are
    of that many, spread evenly over each batch.

    Parameters
    ----------
    keys, steps, max_epochs, resolution, seed, checkpoint, checkpoint_every
        As in `totalvi.analysis.pipeline.fit_and_write`.
    folder
        Holds the store that `totalvi.analysis.prepare_on_disk.prepare_on_disk` wrote.

    Returns
    -------
    Sizes and the course of the fit, and warnings about antibodies.
    """
    store = folder / STORE
    with steps.step("train", spinner=False):
        model = fit_model(
            store, keys, steps.shown, max_epochs=max_epochs, seed=seed,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        )  # fmt: skip
    with steps.step("latent space and denoised proteins"):
        latent = model.get_latent_representation()
        _write_proteins(model, folder, store)
    data = open_on_disk(store)
    assert isinstance(data, MuData)
    batch = None if keys.batch_key is None else data.obs[keys.batch_key]
    with steps.step("clusters and UMAP"):
        codes = np.zeros(len(latent)) if batch is None else pd.factorize(batch)[0]
        sample = some_of_each(codes, -(-MAP_CELLS // len(np.unique(codes))))
        of_sample = cluster_cells(latent[sample], resolution=resolution, seed=seed)
        clusters = join_nearest(latent, sample, of_sample, seed)
    with steps.step("tables"):
        some = _sampled(data, sample)
        layers = data["prot"].layers
        estimates = Estimates(
            latent[sample],
            np.empty((len(sample), 0), dtype=np.float32),
            DenseOnDisk(layers["denoised"], "denoised").rows(sample),
            DenseOnDisk(layers["foreground_probability"], "foreground").rows(sample),
        )
        tables = make_tables(some, estimates, of_sample, keys.batch_key, model.history)
        totals = _totals(data)
        tables["cells"] = cell_table(
            data.obs_names, batch, clusters.labels, clusters.umap, latent, totals.rna,
            totals.protein,
        )  # fmt: skip
        background, background_warnings = background_tables(model, data)
        tables |= background
    some.obs[CLUSTER_COLUMN] = of_sample.labels
    shown = Shown(some, estimates, of_sample)
    write_tables_and_figures(model, shown, tables, keys, folder, steps, seed)
    with steps.step("save"):
        model.save(folder / "model.totalvi")
        root = zarr.open_group(store, mode="a")
        obs = data.obs.assign(**{CLUSTER_COLUMN: clusters.labels})
        write_elem(root, "obs", obs)
        write_elem(root["obsm"], "X_totalvi", latent)
        write_elem(root["obsm"], "X_umap", clusters.umap)
    warnings = [*antibody_warnings(tables["proteins"]), *background_warnings]
    return summary_of(model, shown, len(latent)) | {"cells_on_map": len(sample)}, warnings


def join_nearest(latent: np.ndarray, sample: np.ndarray, found: Clusters, seed: int) -> Clusters:
    """Extend the clusters and map of a sample to all cells.

    A cell outside of the sample gets the cluster that most of its nearest sampled cells have, and the
    mean place of those.

    Parameters
    ----------
    latent
        Of all cells, (N, n_latent).
    sample
        Positions of the sampled cells, ascending.
    found
        Their clusters and map.
    seed
        Of the approximate search for neighbours.
    """
    if len(sample) == len(latent):
        return found
    from pynndescent import NNDescent

    index = NNDescent(latent[sample], n_neighbors=NEIGHBORS, random_state=seed)
    code = found.labels.codes.astype(np.int64).copy()
    codes, umap = np.empty(len(latent), dtype=np.int64), np.empty((len(latent), 2), np.float32)
    codes[sample], umap[sample] = code, found.umap
    others = np.setdiff1d(np.arange(len(latent)), sample)
    for some in np.array_split(others, -(-len(others) // 50_000)):
        near = index.query(latent[some], k=NEIGHBORS)[0]
        votes = np.zeros((len(some), len(found.labels.categories)), dtype=np.int64)
        np.add.at(votes, (np.arange(len(some))[:, None], code[near]), 1)
        codes[some] = votes.argmax(axis=1)
        winners = code[near] == codes[some][:, None]
        umap[some] = (found.umap[near] * winners[..., None]).sum(axis=1)
        umap[some] /= winners.sum(axis=1, keepdims=True)
    return Clusters(pd.Categorical.from_codes(codes, dtype=found.labels.dtype), umap)


def _write_proteins(model: Model, folder: Path, store: Path) -> None:
    """Write denoised proteins and foreground probabilities as layers of the store's proteins."""
    denoised, foreground = folder / "denoised", folder / "foreground"
    model.get_normalized_expression(gene_list=[], n_samples=POSTERIOR_SAMPLES, out=denoised)
    model.get_protein_foreground_probability(n_samples=POSTERIOR_SAMPLES, out=foreground)
    layers = store / "mod" / "prot" / "layers"
    for written, name in ((denoised, "denoised"), (foreground, "foreground_probability")):
        (written / "protein" / "X").rename(layers / name)
        shutil.rmtree(written)


def _sampled(data: MuData, sample: np.ndarray) -> MuData:
    """Return some of the cells in memory."""
    rna, protein = data["rna"], data["prot"]
    parts = {
        "rna": AnnData(SparseOnDisk(rna.X, "rna").rows(sample), rna.obs.iloc[sample], rna.var),
        "prot": AnnData(
            DenseOnDisk(protein.X, "prot").rows(sample), protein.obs.iloc[sample], protein.var
        ),
    }
    with mudata.set_options(pull_on_update=False):
        some = MuData(parts)
        some.obs = data.obs.iloc[sample]
    return some


class _Totals(NamedTuple):
    rna: np.ndarray  # (N, 1)
    protein: np.ndarray  # (N, 1)


def _totals(data: MuData) -> _Totals:
    """Return each cell's total counts; proteins that are NaN do not count."""
    rna = [
        np.asarray(block.sum(axis=1)).reshape(-1, 1)
        for _, block in SparseOnDisk(data["rna"].X, "rna").blocks()
    ]
    protein = [
        np.nansum(block, axis=1, keepdims=True)
        for _, block in DenseOnDisk(data["prot"].X, "prot").blocks()
    ]
    return _Totals(np.concatenate(rna), np.concatenate(protein))
