"""Fit scvi-tools with its defaults until it stops, and write its clock and held-out losses to a file.

Run by `quality_time.py` with the interpreter of an environment that has scvi-tools. The losses are
those of the paper's objective: scvi-tools adds a prior of protein efficiencies by batch, which is
subtracted. The clock starts before the data are registered, after imports and reading.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import peer_data
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from machine import machine


class HeldOut(Callback):
    """After each epoch: when it was over, and how much of the loss is the prior of efficiencies."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.priors: list[float] = []

    def on_train_epoch_end(self, _trainer: object, plan: torch.nn.Module) -> None:
        self.ends.append(time.perf_counter())
        log_efficiency = plan.module.log_per_batch_efficiency.detach().double()
        prior = torch.distributions.LogNormal(0.0, 1.0).log_prob(log_efficiency.exp())
        self.priors.append(-float(prior.sum(dim=0).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True, help="train and validation, .npz")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-epochs", type=int)
    arguments = parser.parse_args()
    scvi.settings.num_threads = arguments.threads
    scvi.settings.seed = 0
    adata = peer_data.read(arguments.data)
    split = np.load(arguments.split)
    started = time.perf_counter()
    scvi.model.TOTALVI.setup_anndata(adata, protein_expression_obsm_key="protein")
    model = scvi.model.TOTALVI(adata)
    held_out = HeldOut()
    model.train(
        arguments.max_epochs,
        accelerator="gpu" if arguments.device == "cuda" else arguments.device,
        devices=1,
        external_indexing=[split["train"], split["validation"], np.array([], dtype=int)],
        callbacks=[held_out],
        enable_progress_bar=False,
    )
    seconds = time.perf_counter() - started
    losses = model.history["elbo_validation"].iloc[:, 0].to_numpy(dtype=float)
    losses = losses - np.array(held_out.priors)
    fit = {
        "version": scvi.__version__,
        "torch": torch.__version__,
        "machine": machine(arguments.threads),
        "device": arguments.device,
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "proteins": adata.obsm["protein"].shape[1],
        "seconds": seconds,
        "epochs": len(losses),
        "end_loss": losses[-1],
        "lowest_loss": losses.min(),
        "clock": [end - started for end in held_out.ends],
        "losses": losses.tolist(),
    }
    arguments.output.write_text(json.dumps(fit, indent=1) + "\n")


if __name__ == "__main__":
    main()
