"""Compare training objectives by what they predict, how well calibrated, and how well they impute.

    python benchmarks/objectives.py --data pbmc10k.h5mu --seeds 3

The objectives are the default; "collapsed": samples of the background from its prior, no q(b | z) and
no divergence of b; "lighter divergence": that of b, times 0.2; "importance-weighted": the default for
four fifths of the epochs, then a bound of 4 samples of z (Burda et al., 2016), with the parameters of
log q held fixed as of Tucker et al. (2018). Each seed fits simulated cells, whose truth is known, and a
random part of the data. In 40 % of the cells every third protein is hidden. Held-out cells tell the
marginal likelihood, the log-likelihood, error and calibration of the measured proteins, and the hidden
ones how well they are imputed. Results go to benchmarks/results/objectives.json and objectives.md.
"""

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from torch import Tensor

import totalvi
from totalvi.nn.cell import CellContext
from totalvi.nn.coders import Decoded
from totalvi.nn.likelihoods import ElboTerms, background_surprise, normal_log_prob
from totalvi.nn.network import Network
from totalvi.nn.sync import standard_normal

RESULTS = Path(__file__).resolve().parent / "results"
N_SAMPLES_OF_Z, LIGHT_WEIGHT = 4, 0.2
EPOCHS, LEARNING_RATE = 100, 1.6e-2
FIGURES = {
    "marginal": "marginal log-likelihood, nats a cell",
    "log_likelihood": "log-likelihood of a protein count",
    "mae": "MAE of proteins",
    "coverage_50": "50 % intervals cover",
    "coverage_95": "95 % intervals cover",
    "imputed_r": "imputed: Pearson of log1p",
    "imputed_rmse": "RMSE of log1p",
    "background_error": "error of the log background",
    "foreground_log_loss": "log-loss of the foreground",
}


@contextmanager
def collapsed() -> Iterator[None]:
    """Let q(b | z) be the prior of the cell's panel, in training and in queries."""
    decode: Callable[..., Decoded] = Network.decode

    def with_prior(self: Network, z: Tensor, context: CellContext, *rest: Any) -> Decoded:
        decoded = decode(self, z, context, *rest)
        mean, log_scale = self.background_prior_mean, self.background_prior_log_scale
        return decoded._replace(
            background_mean=mean[context.panel], background_scale=log_scale[context.panel].exp()
        )

    with patch.object(Network, "decode", with_prior):
        yield


@contextmanager
def lighter_divergence() -> Iterator[None]:
    """Weigh the divergence of the background by `LIGHT_WEIGHT` in training."""
    divergence: Callable[..., Tensor] = Network._background_kl

    def lighter(self: Network, *given: Any) -> Tensor:
        return divergence(self, *given) * (LIGHT_WEIGHT if self.training else 1.0)

    with patch.object(Network, "_background_kl", lighter):
        yield


@contextmanager
def importance_weighted() -> Iterator[None]:
    """Train with the importance-weighted bound over z; for an observed library size."""
    elbo: Callable[..., ElboTerms] = Network.elbo

    def weighted(
        self: Network,
        x: Any,
        y: Tensor,
        context: CellContext,
        log_mean: Tensor | None,
        log_variance: Tensor | None,
        generator: torch.Generator,
    ) -> ElboTerms:
        if not self.training:
            return elbo(self, x, y, context, log_mean, log_variance, generator)
        posterior = self.encode(x, y, context, generator)
        mean, scale = posterior.qz_m.detach(), posterior.qz_v.sqrt().detach()
        logs, of_background = [], []
        for _ in range(N_SAMPLES_OF_Z):
            u = self.latent_at(posterior, standard_normal(posterior.qz_m, generator))
            library, _ = self.sample_library(posterior, context, generator)
            decoded = self.decode(self.transform_latent(u), context, generator)
            b = self.sample_log_background(decoded, generator, self.config.background_samples)
            terms = self.elbo_terms(x, y, context, posterior, decoded, library, b)
            ratio = normal_log_prob(u, 0.0, 1.0) - normal_log_prob(u, mean, scale)
            logs.append(ratio.sum(dim=-1) - terms.reconstruction())
            surprise = background_surprise(decoded.background_logit, self.measured(context.panel))
            of_background.append(terms.kl_div_back_pro + self.config.foreground_penalty * surprise)
        log_weight = torch.stack(logs)
        bound = log_weight.logsumexp(dim=0) - math.log(N_SAMPLES_OF_Z)
        penalty = (log_weight.detach().softmax(dim=0) * torch.stack(of_background)).sum(dim=0)
        nothing = torch.zeros_like(bound)
        return ElboTerms(-bound, nothing, nothing, nothing, penalty)

    with patch.object(Network, "elbo", weighted):
        yield


@contextmanager
def as_it_is() -> Iterator[None]:
    """Change nothing."""
    yield


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "default": as_it_is,
    "collapsed": collapsed,
    "lighter divergence": lighter_divergence,
    "importance-weighted": as_it_is,
}


def hide(mdata: MuData, seed: int) -> tuple[MuData, np.ndarray]:
    """Return a copy with every third protein hidden in 40 % of the cells, and in which cells."""
    hidden = np.random.default_rng(seed).random(mdata.n_obs) < 0.4
    partly = mdata.copy()
    partly.obs["panel"] = pd.Categorical(np.where(hidden, "partial", "whole"))
    counts = partly["prot"].to_df().astype(np.float32)
    counts.loc[hidden, counts.columns[::3]] = np.nan
    partly["prot"].X = counts.to_numpy()
    return partly, hidden


def measure(mdata: MuData, seed: int, name: str, epochs: int) -> dict[str, float]:
    """Fit with one objective, and return what held-out cells and hidden counts say."""
    partly, hidden = hide(mdata, seed)
    model = totalvi.Model(partly, batch_key="panel", seed=seed, isotype_controls=())
    given: dict[str, Any] = {"train_size": 0.8, "validation_size": 0.05, "progress": False}
    last = epochs // 5 if name == "importance-weighted" else 0
    with OBJECTIVES[name]():
        model.train(epochs - last, lr=LEARNING_RATE, **given)
        if last:
            with importance_weighted():
                model.train(last, lr=LEARNING_RATE / 8, n_epochs_kl_warmup=0, **given)
        return asked(model, mdata, hidden)


def asked(model: totalvi.Model, mdata: MuData, hidden: np.ndarray) -> dict[str, float]:
    """Return the figures of a fitted model."""
    test = model.split.test
    check = model.posterior_predictive_check(
        indices=test, n_samples=100, gene_list=[], progress=False
    )
    truth = mdata["prot"].to_df()
    lacking = np.array(truth.columns[::3])
    imputed = model.impute_proteins(
        indices=hidden, n_samples=50, calibrated=False, protein_list=list(lacking), progress=False
    ).log1p
    wanted = np.log1p(truth.loc[hidden, lacking])
    difference = imputed[lacking].to_numpy() - wanted.to_numpy()
    correlations = [wanted[p].corr(imputed[p]) for p in lacking if wanted[p].std() > 0]
    proteins = check.summary.loc["protein"]
    row = {
        "marginal": model.get_marginal_ll(indices=test, n_mc_samples=20, progress=False),
        "log_likelihood": float(proteins["log_likelihood"]),
        "mae": float(proteins["mae"]),
        "coverage_50": float(check.table["coverage_50"].mean()),
        "coverage_95": float(check.table["coverage_95"].mean()),
        "imputed_r": float(np.mean(correlations)),
        "imputed_rmse": float(np.sqrt((difference**2).mean())),
    }
    if "background_mean" in mdata["prot"].layers:
        row |= against_truth(model, mdata, hidden)
    return row


def against_truth(model: totalvi.Model, mdata: MuData, hidden: np.ndarray) -> dict[str, float]:
    """Return the errors of background and foreground, in the cells that measured all proteins."""
    whole, layers = ~hidden, mdata["prot"].layers
    options: dict[str, Any] = {"n_samples": 10, "return_numpy": True, "progress": False}
    background = model.get_protein_background_mean(indices=whole, **options)
    truth = np.asarray(layers["background_mean"])[whole]
    error = np.log(background.mean(axis=0) / truth.mean(axis=0))
    probability = model.get_protein_foreground_probability(indices=whole, **options)
    foreground = np.asarray(layers["foreground"])[whole].astype(bool)
    clipped = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    loss = -np.log(np.where(foreground, clipped, 1 - clipped)).mean()
    return {
        "background_error": float(np.abs(error).mean()),
        "foreground_log_loss": float(loss),
    }


def table(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """Return mean and standard deviation over seeds of each figure, as Markdown."""
    frame = pd.DataFrame(rows)
    lines = [
        f"Training objectives: {given.cells} cells, {given.epochs} epochs at a peak learning rate of",
        f"{LEARNING_RATE:g}; mean over seeds, and in brackets their standard deviation.",
    ]
    for data, of_data in frame.groupby("data", sort=False):
        figures = {key: label for key, label in FIGURES.items() if of_data[key].notna().any()}
        lines += ["", f"**{data}**", "", f"| objective | seeds | {' | '.join(figures.values())} |"]
        lines.append("|---" * (2 + len(figures)) + "|")
        for name, of_name in of_data.groupby("objective", sort=False):
            spread = len(of_name) > 1
            cells = [
                f"{of_name[k].mean():.4g}" + f" ({of_name[k].std():.2g})" * spread for k in figures
            ]
            lines.append(f"| {name} | {len(of_name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Write the fits so far, and their table."""
    machine = {"python": platform.python_version(), "torch": torch.__version__}
    kept = {"machine": machine, "cells": given.cells, "epochs": given.epochs, "fits": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "objectives.json").write_text(json.dumps(kept, indent=1) + "\n")
    (RESULTS / "objectives.md").write_text(table(rows, given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        sets = {
            "simulated": totalvi.simulate(
                n_cells=given.cells, n_genes=300, n_proteins=15, n_cell_types=5, seed=seed
            )
        }
        if given.data is not None:
            real = totalvi.read(given.data)
            some = np.random.default_rng(seed).permutation(real.n_obs)[: given.cells]
            sets[given.data.stem] = real[np.sort(some)].copy()
        for data, mdata in sets.items():
            for name in OBJECTIVES:
                row = measure(mdata, seed, name, given.epochs)
                rows.append({"data": data, "objective": name, "seed": seed} | row)
                print(json.dumps(rows[-1]), flush=True)
                write(rows, given)


if __name__ == "__main__":
    main()
