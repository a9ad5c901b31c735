"""The cases of scvi-tools, as a worker of `run.py` in a separate environment.

A callback of its trainer times steps and epochs, from the end of one to the end of the next. The
time of a step includes the assembly of its minibatch, and that of an epoch its validation.
"""

import statistics
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import peer_data
import scvi
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from worker import clock, peak_memory, private_stdout, serve, timed, worker_arguments


class Clock(Callback):
    def __init__(self, device: str) -> None:
        self.device = device
        self.steps: list[list[float]] = []  # when each of an epoch ended
        self.epochs: list[float] = []

    def on_train_epoch_start(self, *_args: object) -> None:
        self.steps.append([])

    def on_train_batch_end(self, *_args: object) -> None:
        self.steps[-1].append(clock(self.device))

    def on_train_epoch_end(self, *_args: object) -> None:
        self.epochs.append(clock(self.device))


def main() -> None:
    answers = private_stdout()
    arguments = worker_arguments()
    device = arguments.device
    scvi.settings.seed = 0
    scvi.settings.num_threads = arguments.threads
    adata = peer_data.read(arguments.data)
    scvi.model.TOTALVI.setup_anndata(adata, protein_expression_obsm_key="protein")
    model = scvi.model.TOTALVI(adata)
    train(model, device, arguments.epochs)
    compare = partial(compared, model, adata, arguments.clusters)
    cases = {
        "training": lambda: training_seconds(model, device),
        "latent": timed(model.get_latent_representation, device),
        "denoised": timed(lambda: model.get_normalized_expression(n_samples=25), device),
        "foreground": timed(lambda: model.get_protein_foreground_probability(n_samples=25), device),
        "two groups": timed(lambda: compare(group1="0", group2="1"), device),
        "each cluster": timed(compare, device),
        "peak memory": peak_memory,
    }
    about = {
        "version": scvi.__version__,
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
    }
    serve(cases, about, answers)


def train(model: scvi.model.TOTALVI, device: str, epochs: int) -> Clock:
    ticks = Clock(device)
    model.train(
        epochs,
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        callbacks=[ticks],
        enable_progress_bar=False,
    )
    return ticks


def training_seconds(model: scvi.model.TOTALVI, device: str) -> dict[str, float]:
    ticks = train(model, device, epochs=2)
    steps = np.concatenate([np.diff(ends) for ends in ticks.steps])
    return {"epoch": ticks.epochs[1] - ticks.epochs[0], "step": statistics.median(steps)}


def compared(model: scvi.model.TOTALVI, adata: AnnData, path: Path, **groups: str) -> pd.DataFrame:
    if "cluster" not in adata.obs:
        adata.obs["cluster"] = pd.Categorical(np.load(path).astype(str))
    return model.differential_expression(groupby="cluster", silent=True, **groups)


if __name__ == "__main__":
    main()
