"""Measure how near estimates of the marginal likelihood are, and what the integrals cost a fit.

    python benchmarks/evidence.py --data bmmc_134proteins.h5mu --seeds 3

Each seed fits 1,200 simulated cells with 60 proteins, and the data. Of the held-out cells, the table
gives the paper's lower bound, that with the log background integrated, and estimates of log p(x, y)
from 1 to 100 samples of z with the background integrated, and from 1 to 1,000 of z and the background.
The cost is the processor time of the integrals in a fit, over that of all else in it. Results go to
benchmarks/results/evidence.json and evidence.md.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from torch import Tensor

import totalvi
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.likelihoods import normal_log_prob, sum_measured
from totalvi.nn.network import Network
from totalvi.posterior import evidence
from totalvi.posterior.draws import Draw
from totalvi.posterior.evidence import elbo_terms, log_weight

RESULTS = Path(__file__).resolve().parent / "results"
INTEGRATED, SAMPLED = (1, 10, 100), (1, 100, 1000)


def sampled_log_prob(network: Network, batch: Minibatch, draw: Draw) -> Tensor:
    """Return log p(y | z, b) p(b) / q(b | z), (B,): the weight of one sample of the background."""
    panel, b = draw.context.panel, draw.proteins.log_background
    scale = network.background_prior_log_scale[panel].exp()
    weight = normal_log_prob(b, network.background_prior_mean[panel], scale) - normal_log_prob(
        b, draw.decoded.background_mean, draw.decoded.background_scale
    )
    loss = elbo_terms(network, batch, draw).reconst_loss_protein
    return sum_measured(weight, network.measured(panel)) - loss


def background_sampled(network: Network, batch: Minibatch, draw: Draw) -> Tensor:
    """Return the log importance weight of a sample of z and of the background, (B,)."""
    of_z = log_weight(network, batch, draw)
    integrated = network.protein_log_prob(batch.y, draw.decoded, draw.context).sum(dim=-1)
    return of_z - integrated + sampled_log_prob(network, batch, draw)


class Timed:
    """A function that sums the processor time spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __get__(self, owner: Any, _class: type) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            started = time.process_time()
            found = self.function(owner, *given, **named)
            self.seconds += time.process_time() - started
            return found

        return timed


def measure(name: str, mdata: MuData, seed: int, epochs: int, **options: Any) -> dict[str, Any]:
    """Fit the data, and estimate the evidence of its held-out cells."""
    model = totalvi.Model(mdata, seed=seed, **options)
    integrals = Timed(Network.protein_log_prob)
    started = time.process_time()
    with patch.object(Network, "protein_log_prob", integrals):
        model.train(max_epochs=epochs, progress=False)
    of_fit = time.process_time() - started
    cells = model.split.validation
    asked: dict[str, Any] = {"indices": cells, "progress": False}

    def marginal(n_samples: int) -> float:
        return float(model.get_marginal_ll(n_mc_samples=n_samples, seed=seed, **asked))

    row: dict[str, Any] = {
        "data": name,
        "seed": seed,
        "cells": model.split.train.size + cells.size,
        "proteins": len(model.schema.protein_names),
        "held_out": cells.size,
        "paper_elbo": model.get_elbo(integrate_background=False, seed=seed, **asked),
        "elbo": model.get_elbo(seed=seed, **asked),
        "integrated": {str(n): marginal(n) for n in INTEGRATED},
        "slower_percent": 100 * integrals.seconds / (of_fit - integrals.seconds),
    }
    with patch.object(evidence, "log_weight", background_sampled):
        row["sampled"] = {str(n): marginal(n) for n in SAMPLED}
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures of each data set, mean and standard deviation over seeds, as Markdown."""
    found = pd.DataFrame(rows)
    lines = [
        "Evidence of held-out cells, nats a cell: mean over seeds (standard deviation in brackets).",
        "Seeds differ in weights, held-out cells and, where simulated, in the cells.",
        "",
        "| | " + " | ".join(f"{name}" for name in found["data"].unique()) + " |",
        "|---" * (1 + found["data"].nunique()) + "|",
    ]
    groups = [of for _, of in found.groupby("data", sort=False)]

    def line(label: str, of: Callable[[pd.DataFrame], Any], digits: int = 1) -> str:
        values = [np.array(of(group).to_list(), dtype=float) for group in groups]
        ddof = 1 if len(values[0]) > 1 else 0
        cells = (f"{v.mean():.{digits}f} ({v.std(ddof=ddof):.{digits}f})" for v in values)
        return f"| {label} | " + " | ".join(cells) + " |"

    def estimate(kind: str, n: int) -> Callable[[pd.DataFrame], Any]:
        return lambda of: of[kind].map(lambda by_n: by_n[str(n)])

    def gap(kind: str, few: int, many: int) -> Callable[[pd.DataFrame], Any]:
        return lambda of: of[kind].map(lambda by_n: by_n[str(many)] - by_n[str(few)])

    lines.append("| seeds; held-out cells | " + " | ".join(
        f"{len(group)}; {group['held_out'].iloc[0]}" for group in groups) + " |")  # fmt: skip
    lines += [
        line("the paper's lower bound", lambda of: of["paper_elbo"]),
        line("lower bound, background integrated", lambda of: of["elbo"]),
    ]
    lines += [
        line(f"z and the background sampled, K = {n:,}", estimate("sampled", n)) for n in SAMPLED
    ]
    lines += [line(f"z sampled, K = {n:,}", estimate("integrated", n)) for n in INTEGRATED]
    lines += [
        line("z sampled, K = 100 less K = 1", gap("integrated", 1, 100), 2),
        line("z sampled, K = 100, less both sampled, K = 1,000",
             lambda of: estimate("integrated", 100)(of) - estimate("sampled", 1000)(of)),
        line("the fit is slower by, %", lambda of: of["slower_percent"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="File with counts of a large panel.")
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    simulated: dict[str, Any] = {"isotype_controls": (), "n_hidden": 128}
    rows = []
    for seed in range(given.seeds):
        mdata = totalvi.simulate(
            n_cells=1200, n_genes=300, n_proteins=60, n_cell_types=5, seed=seed
        )
        rows.append(measure("simulated, 60 proteins", mdata, seed, given.epochs, **simulated))
    if given.data is not None:
        mdata, options = totalvi.read(given.data), {"batch_key": given.batch_key}
        rows += [
            measure(given.data.stem, mdata, seed, given.epochs, **options)
            for seed in range(given.seeds)
        ]
    machine = {"python": platform.python_version(), "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    kept = json.dumps({"machine": machine, "epochs": given.epochs, "fits": rows}, indent=1)
    (RESULTS / "evidence.json").write_text(kept + "\n", encoding="utf-8")
    text = table(rows)
    (RESULTS / "evidence.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
