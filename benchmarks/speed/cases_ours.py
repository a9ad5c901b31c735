"""The cases of totalvi, as a worker of `run.py`.

The time of a training step includes the assembly of its minibatch.
"""

import statistics
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from floor import floor_seconds
from mudata import MuData
from sklearn.cluster import KMeans
from worker import clock, peak_memory, private_stdout, serve, timed, worker_arguments

import totalvi
from totalvi.fit.batches import minibatches
from totalvi.fit.device import resolved_plan, wide_products
from totalvi.fit.loop import Fit
from totalvi.fit.plan import TrainingPlan
from totalvi.processes import launch

N_CLUSTERS = 15
BATCH_SIZE = 256


def main() -> None:
    answers = private_stdout()
    arguments = worker_arguments()
    device = arguments.device
    mdata = totalvi.read(arguments.data)
    model = totalvi.Model(mdata, seed=0)
    model.train(arguments.epochs, batch_size=BATCH_SIZE, accelerator=device, progress=False)
    compare = partial(compared, model, mdata, arguments.clusters)
    asked = {"n_samples": 25} | ({"given_counts": False} if arguments.given_z else {})
    cases = {
        "training": lambda: {
            "epoch": epoch_seconds(model, device),
            "step in float32": step_seconds(model, "32-true", device),
            "step": step_seconds(model, "auto", device),
        },
        "floor": lambda: floor_of(mdata, device),
        "latent": timed(model.get_latent_representation, device),
        "denoised": timed(lambda: model.get_normalized_expression(**asked), device),
        "foreground": timed(lambda: model.get_protein_foreground_probability(**asked), device),
        "two groups": timed(lambda: compare(group1="0", group2="1"), device),
        "each cluster": timed(compare, device),
        "write clusters": lambda: write_clusters(model, arguments.clusters),
        "peak memory": peak_memory,
    }
    about = {
        "version": totalvi.__version__,
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
        "precision": model.fit_summary["precision"],
        "cells": mdata.n_obs,
        "genes": mdata["rna"].n_vars,
        "proteins": mdata["prot"].n_vars,
    }
    serve(cases, about, answers)


def epoch_seconds(model: totalvi.Model, device: str) -> float:
    """Return the time from the end of one epoch to the end of the next, validation included."""
    ends: list[float] = []
    fabric = launch(device)
    plan = TrainingPlan(max_epochs=2, batch_size=BATCH_SIZE)
    plan = resolved_plan(plan, model.module, fabric.device)
    Fit(
        deepcopy(model.module), model._data, model.split, plan, fabric, np.random.SeedSequence(0),
        on_epoch=lambda *_: ends.append(clock(device)),
    ).run()  # fmt: skip
    return ends[1] - ends[0]


def step_seconds(model: totalvi.Model, asked: str, device: str) -> float:
    """Return the median time from the end of one step to the end of the next, over two epochs.

    Cells that would make minibatches smaller than the peer's are left out.
    """
    module = deepcopy(model.module)
    fabric = launch(device)
    plan = TrainingPlan(max_epochs=100, batch_size=BATCH_SIZE, precision=asked)
    plan = resolved_plan(plan, module, fabric.device)
    cells, shuffle = model.split.train, np.random.default_rng(0)
    cells = cells[: max(len(cells) // BATCH_SIZE, 1) * BATCH_SIZE]
    split = model.split._replace(train=cells)
    fit = Fit(module, model._data, split, plan, fabric, np.random.SeedSequence(0))
    module.train()
    ends = []
    with wide_products(module, plan.precision):
        for _ in range(2):
            for batch in minibatches(
                model._data, module, cells, BATCH_SIZE, shuffle, fabric.device
            ):
                fit.step(batch)
                ends.append(clock(device))
    return statistics.median(np.diff(ends))


def floor_of(mdata: MuData, device: str) -> dict[str, float]:
    rna = mdata["rna"].X
    shape = (BATCH_SIZE, rna.shape[1], mdata["prot"].n_vars, rna.nnz / np.prod(rna.shape))
    return {
        precision: sum(floor_seconds(*shape, precision, device).values())
        for precision in ("float32", "bfloat16")
    }


def write_clusters(model: totalvi.Model, path: Path) -> dict[str, int]:
    """Let both programs compare the same groups."""
    clusters = KMeans(N_CLUSTERS, n_init=1, random_state=0)
    labels = clusters.fit_predict(model.get_latent_representation())
    np.save(path, labels)
    return {"clusters": len(np.unique(labels))}


def compared(model: totalvi.Model, mdata: MuData, path: Path, **groups: str) -> pd.DataFrame:
    if "cluster" not in mdata.obs:
        mdata.obs["cluster"] = pd.Categorical(np.load(path).astype(str))
    return model.differential_expression(groupby="cluster", progress=False, **groups)


if __name__ == "__main__":
    main()
