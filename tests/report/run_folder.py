"""Folders of runs that never were: the sizes of large ones, without the hours of fitting."""

from pathlib import Path

import numpy as np
import pandas as pd

from totalvi.data.simulate import simulate
from totalvi.posterior.antibody_separation import antibody_separation
from totalvi.run.clusters import Clusters
from totalvi.run.record import circumstances, write_record
from totalvi.run.results import Estimates, ResultsFile, cell_table, cluster_table
from totalvi.run.table_files import write_tables
from totalvi.run.tables import protein_table


def write_run_folder(folder: Path, n_cells: int, genes: list[str], proteins: list[str]) -> None:
    """Write what a run leaves of simulated cells; estimates are the counts with noise."""
    rng = np.random.default_rng(0)
    sizes = {"n_cells": n_cells, "n_genes": len(genes), "n_proteins": len(proteins)}
    data = simulate(**sizes, n_batches=2, store_truth=False)
    data["rna"].var_names, data["prot"].var_names = genes, proteins
    data.update()
    rna, protein = data["rna"].X, np.asarray(data["prot"].X)
    umap = rng.normal(size=(n_cells, 2)).astype(np.float32)
    clusters = Clusters(pd.Categorical(np.sort(rng.integers(15, size=n_cells)).astype(str)), umap)
    noise = rng.lognormal(sigma=0.3, size=protein.shape)
    latent = rng.normal(size=(n_cells, 4)).astype(np.float32)
    denoised = rna.toarray() * rng.lognormal(size=len(genes)) + rng.random(len(genes))
    estimates = Estimates(
        latent,
        (protein * noise).astype(np.float32),
        rng.beta(0.3, 0.3, size=protein.shape).astype(np.float32),
    )
    separation = antibody_separation(protein, estimates.foreground_probability, proteins)
    tables = {
        "cells": cell_table(
            data.obs_names, data.obs["batch"], clusters.labels, umap, estimates.latent, rna, protein
        ),
        "proteins": protein_table(separation, protein, *estimates[1:]),
        "clusters": cluster_table(
            clusters.labels, data.obs["batch"], estimates.denoised_protein, proteins
        ),
        "history": pd.DataFrame({"train_loss": [2.0, 1.0], "validation_loss": [2.0, 1.5]}),
        "differential_expression": _differences(rng, genes, proteins),
    }
    tables["history"].index.name = "epoch"
    folder.mkdir()
    write_tables(tables, folder / "tables")
    file = ResultsFile(folder, on_disk=False)
    file.write_counts(data)
    file.add_layer("rna", "denoised", denoised.astype(np.float32))
    file.add_layer("prot", "denoised", estimates.denoised_protein)
    file.add_layer("prot", "foreground_probability", estimates.foreground_probability)
    file.add_obs("leiden_totalvi", clusters.labels)
    file.add_obsm("X_umap", umap)
    arguments = {"input": "simulated", "batch_key": "batch", "labels_key": None}
    record = circumstances() | {"arguments": arguments, "input_sha256": {}}
    record |= {name.removeprefix("n_"): n for name, n in sizes.items()} | {"clusters": 15}
    fit = {"epochs": 2, "best_epoch": 1, "stopped": "all 2 epochs done", "n_skipped_steps": 0}
    said = {"held_out_loss_per_cell": 1.5, "seconds": {"train": 1.0}, "warnings": [], "notes": []}
    write_record(record | fit | said, folder / "run.json")


def _differences(rng: np.random.Generator, genes: list[str], proteins: list[str]) -> pd.DataFrame:
    """Return differences that are noise."""
    columns = (
        "lfc_median", "lfc_ci_low", "lfc_ci_high", "bayes_factor", "proba_de", "scale1",
        "raw_mean1", "raw_mean2", "non_zeros_proportion1", "non_zeros_proportion2",
    )  # fmt: skip
    names = [*genes, *proteins]
    modality = np.repeat(["rna", "protein"], [len(genes), len(proteins)])
    parts = []
    for cluster in map(str, range(15)):
        part = pd.DataFrame(rng.gamma(1.0, size=(len(names), len(columns))), columns=list(columns))
        part = part.assign(feature=names, modality=modality, group1=cluster, group2="Rest")
        parts.append(part.assign(comparison=f"{cluster} vs Rest"))
    table = pd.concat(parts).set_index("feature")
    return table.assign(**{"is_de_fdr_0.05": table["bayes_factor"] > 1})
