"""Fits that several processes share: run by a launcher, each process runs all of it.

    torchrun --nproc-per-node 2 tests/shared_fits.py OUT.npz '{"case": {...}}'

Each case is a dict of arguments of `Model.train`, but for "model" (of `Model`), "cells", "panels"
(whether the first batch lacks proteins) and "zarr" (a path: the cells stay on disk).
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mudata import MuData

import totalvi
from totalvi.processes import place

SMALL = {"n_hidden": 16, "n_latent": 4}
TRAIN: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "progress": False}


def cells(n_cells: int, panels: bool) -> MuData:
    """Simulate two batches; without ``panels`` all proteins are measured in both."""
    return totalvi.simulate(
        n_cells=n_cells, n_genes=60, n_proteins=6, n_batches=2, n_unmeasured=2 * panels, seed=3
    )


def fit_case(case: dict[str, Any]) -> totalvi.Model:
    """Fit one case."""
    case = {**TRAIN, "max_epochs": 3, "batch_size": 51} | case
    n_cells, panels, path = (
        case.pop(k, v) for k, v in (("cells", 300), ("panels", False), ("zarr", None))
    )
    options = SMALL | case.pop("model", {})
    data = cells(n_cells, panels) if path is None else path
    model = totalvi.Model(data, batch_key="batch", **options)
    model.train(**case)
    return model


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
    if place().rank == 0:
        np.savez(out, **found, n_processes=place().n_processes)


if __name__ == "__main__":
    main()
