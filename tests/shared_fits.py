"""Fits that several processes share: run by a launcher, each process runs all of it.

    torchrun --nproc-per-node 2 tests/shared_fits.py OUT.npz '{"case": {...}}'

Each case is a dict of arguments of `Model.train`, but for "model" (of `Model`), "cells", "panels"
(whether the last batch lacks proteins), "mosaic" (whether a third lack RNA, a third proteins), "zarr"
(a path: the cells stay on disk), "window" (cells of a window of data on disk), "twice" (fit again),
"mapped" (fit further cells on the model), "out" (a folder, for the results of queries) and "log" (a
folder, for what a logger and a callback are told; the callback ends the fit after two epochs).
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from lightning_fabric.loggers import CSVLogger
from mudata import MuData

import totalvi
from totalvi.fit.batches import BLOCK, WINDOW, shuffled_windows
from totalvi.fit.callbacks import Callback
from totalvi.processes import this_process

SMALL = {"n_hidden": 16, "n_latent": 4}
TRAIN: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "progress": False}


def cells(n_cells: int, panels: bool) -> MuData:
    """Simulate two batches; without ``panels`` all proteins are measured in both."""
    return totalvi.simulate(
        n_cells=n_cells, n_genes=60, n_proteins=6, n_batches=2, n_unmeasured=2 * panels, seed=3
    )


def without_modalities(data: MuData) -> MuData:
    """Return the cells as a mosaic: a third lack RNA, a third proteins."""
    names = data.obs_names
    rna, prot = (names[np.arange(len(names)) % 3 != lacking] for lacking in (1, 2))
    parts = MuData({"rna": data["rna"][rna].copy(), "prot": data["prot"][prot].copy()})
    parts.obs["batch"] = data.obs["batch"]
    return totalvi.mosaic(parts)


def fit_case(case: dict[str, Any]) -> totalvi.Model:
    """Fit one case."""
    case = {**TRAIN, "max_epochs": 3, "batch_size": 51} | case
    what: dict[str, Any] = {
        "cells": 300,
        "panels": False,
        "zarr": None,
        "window": None,
        "out": None,
        "log": None,
    }
    what |= {"model": {}, "twice": False, "mapped": False, "mosaic": False}
    what = {name: case.pop(name, default) for name, default in what.items()}
    data = cells(what["cells"], what["panels"]) if what["zarr"] is None else what["zarr"]
    data = without_modalities(data) if what["mosaic"] else data
    model = totalvi.Model(data, batch_key="batch", **(SMALL | what["model"]))
    window = what["window"] or WINDOW
    if what["log"] is not None:
        case |= {"logger": CSVLogger(what["log"]), "callbacks": ends_after_two(Path(what["log"]))}
    order = partial(shuffled_windows, window=window, block=min(BLOCK, window // 4))
    with (
        patch("totalvi.fit.batches.shuffled_windows", order),
        patch("totalvi.fit.loop.WINDOW", window),
    ):
        for _ in range(1 + what["twice"]):
            model.train(**case)
    if what["out"] is not None:
        ask(model, Path(what["out"]))
    if what["mapped"]:
        query = cells(120, panels=False)
        query.obs["batch"] = "new"
        model = model.map_query(query, train=True, **case)
    return model


def ends_after_two(folder: Path) -> Callback:
    """Return a callback that writes a file for each epoch, by process, and ends the fit after two."""

    def callback(epoch: int, row: Mapping[str, float]) -> bool:
        file = folder / f"epoch_{epoch}_of_process_{this_process().rank}"
        file.write_text(str(row["validation_loss"]))
        return epoch == 1

    return callback


def ask(model: totalvi.Model, folder: Path) -> None:
    """Write the results of all queries that take ``out`` into a folder."""
    model.get_latent_representation(out=folder / "latent", progress=False)
    model.get_normalized_expression(n_samples=2, out=folder / "expression", progress=False)
    model.get_protein_foreground_probability(out=folder / "foreground", progress=False)
    model.get_likelihood_parameters(out=folder / "parameters", progress=False)
    model.impute_proteins(n_samples=3, calibrated=False, out=folder / "imputed", progress=False)
    model.posterior_predictive_sample(out=folder / "counts", progress=False)


def numbers(model: totalvi.Model) -> dict[str, np.ndarray]:
    """Return losses by epoch and all weights and running statistics in a row."""
    state = [
        value.detach().double().ravel().numpy() for value in model.module.state_dict().values()
    ]
    losses = model.history[["train_loss", "validation_loss"]].to_numpy()
    return {"losses": losses, "weights": np.concatenate(state)}


def main() -> None:
    """Fit all cases; the first process writes their numbers."""
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = {}
    for name, case in cases.items():
        model = fit_case(case)
        found |= {f"{name}.{what}": value for what, value in numbers(model).items()}
    if this_process().rank == 0:
        np.savez(out, **found, n_processes=this_process().n_processes)


if __name__ == "__main__":
    main()
