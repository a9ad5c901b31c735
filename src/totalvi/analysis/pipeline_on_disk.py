"""From a store of counts to a folder of results, for cells that do not fit into memory."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import zarr
from anndata import AnnData
from anndata.io import write_elem
from mudata import MuData

from totalvi.analysis.background import background_tables
from totalvi.analysis.clusters import Clusters, cells_to_map, cluster_all
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
from totalvi.model import Model


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
    it with ``out=``. Above `clusters.MAP_CELLS` cells, figures and all tables but those of cells and
    epochs are of that many, spread evenly over each batch.

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
        sample = cells_to_map(batch, len(latent))
        clusters = cluster_all(latent, sample, resolution=resolution, seed=seed)
        of_sample = Clusters(clusters.labels[sample], clusters.umap[sample])
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
