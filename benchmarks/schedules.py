"""Compare schedules of training: epochs, peak learning rate, averaged weights, by size of the data.

    python benchmarks/schedules.py --data /path/of/data --seeds 3 --sizes 1000 3000

Five data sets, cut to a random part of each size where they have more cells: PBMC10k, bone marrow
(NeurIPS 2021), REAP-seq of PBMC, donor p3 of the WNN atlas, and simulated cells. In 40 %
of the cells every third protein is hidden. Cells that neither train nor validate tell the marginal
likelihood and how well the intervals of proteins are calibrated, and hidden counts how well they are
imputed; see `objectives.py`. "Averaged" validates and keeps an exponential moving average of the
weights and of the means of batch normalisation, over some 100 steps. Processor time is that of the fit
with one thread, of one of two machines, some of it beside other work, which makes it longer. Rows are
added to benchmarks/results/schedules.json and schedules.md; those that are there are kept.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from torch import Tensor

import totalvi
from field import cells_of
from objectives import asked, hide
from result_files import RESULTS, write_results
from totalvi.fit.loop import Fit
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.plan import TrainingPlan, default_batch_size
from totalvi.fit.state import FitState

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAIN_SIZE = 0.75
NAMES = ("pbmc10k", "bmmc", "reap", "wnn", "simulated")
FIGURES = {
    "marginal": "marginal log-likelihood, nats a cell",
    "log_likelihood": "of a protein count",
    "coverage_50": "50 % intervals cover",
    "coverage_95": "95 %",
    "imputed_r": "imputed: Pearson of log1p",
    "imputed_rmse": "RMSE",
    "epochs_run": "epochs",
    "best_epoch": "best",
    "processor_seconds": "processor time, s",
}


class Schedule(NamedTuple):
    """Epochs for a number of training cells, peak learning rate, and decay of the averaged weights."""

    epochs: Callable[[int], int]
    learning_rate: float
    decay: float = 0.0


def at_least(epochs: int, n_training_cells: int) -> int:
    """Return a number of epochs, or those with 600 steps if these are more."""
    return max(epochs, round(600 * default_batch_size(n_training_cells) / n_training_cells))


def shown(n_training_cells: int) -> int:
    """Return the epochs that show the network 600,000 cells, at most 400."""
    return round(min(400, 600_000 / n_training_cells))


SCHEDULES = {
    "600,000 cells seen, at most 400 epochs": Schedule(shown, 8e-3),
    "600,000 cells seen, 1.5 times the rate": Schedule(shown, 1.2e-2),
    "600,000 cells seen, twice the rate": Schedule(shown, 1.6e-2),
    "100 epochs or 600 steps": Schedule(partial(at_least, 100), 8e-3),
    "100 epochs or 600 steps, twice the rate": Schedule(partial(at_least, 100), 1.6e-2),
    "60 epochs or 600 steps": Schedule(partial(at_least, 60), 8e-3),
    "60 epochs or 600 steps, 1.5 times the rate": Schedule(partial(at_least, 60), 1.2e-2),
    "60 epochs or 600 steps, twice the rate": Schedule(partial(at_least, 60), 1.6e-2),
    "100 epochs or 600 steps, averaged": Schedule(partial(at_least, 100), 8e-3, 0.99),
    "60 epochs or 600 steps, 1.5 times the rate, averaged": Schedule(
        partial(at_least, 60), 1.2e-2, 0.99
    ),
}


@contextmanager
def averaged_weights(decay: float) -> Iterator[None]:
    """Let a fit validate and keep the moving average of its weights, in place of the last ones."""
    move, validate, end_epoch = Fit._move, Fit.validate, FitState.end_epoch
    average: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}

    def moved(self: Fit, batch: Minibatch) -> None:
        move(self, batch)
        taken = self.state.step + 1
        weight = max(1 - decay, 1 / (1 + taken))
        for name, value in self.network.state_dict().items():
            if not value.is_floating_point():
                continue
            if name in average:
                average[name].lerp_(value, weight)
            else:
                average[name] = value.clone()

    def validated(self: Fit) -> dict[str, float]:
        last.update({k: v.clone() for k, v in self.network.state_dict().items()})
        self.network.load_state_dict(last | average)
        return validate(self)

    def ended(self: FitState, row: dict[str, float], plan: TrainingPlan) -> None:
        end_epoch(self, row, plan)
        self.network.load_state_dict(last)

    with (
        patch.object(Fit, "_move", moved),
        patch.object(Fit, "validate", validated),
        patch.object(FitState, "end_epoch", ended),
    ):
        yield


def cells(name: str, size: int, seed: int, folder: Path) -> MuData:
    """Return at most ``size`` cells with all of their counts."""
    if name == "simulated":
        return totalvi.simulate(size, 300, 15, n_cell_types=5, seed=seed)
    if name == "bmmc":
        data = totalvi.read(folder / "bmmc_134proteins.h5mu")
    else:
        hidden = cells_of(name, seed, folder)
        data = hidden.data
        data["prot"].X = hidden.counts
    some = np.random.default_rng(seed).permutation(data.n_obs)[:size]
    return data[np.sort(some)].copy()


def measure(mdata: MuData, seed: int, schedule: Schedule) -> dict[str, float]:
    """Fit with a schedule, and return what other cells and hidden counts say."""
    partly, hidden = hide(mdata, seed)
    model = totalvi.Model(partly, batch_key="panel", seed=seed, isotype_controls=())
    epochs = schedule.epochs(round(TRAIN_SIZE * partly.n_obs))
    given = {"train_size": TRAIN_SIZE, "validation_size": 0.1, "lr": schedule.learning_rate}
    started = time.process_time()
    with averaged_weights(schedule.decay) if schedule.decay else nullcontext():
        model.train(epochs, **given, progress=False)
    return asked(model, mdata, hidden) | {
        "epochs_run": len(model.history),
        "best_epoch": model.fit_summary["best_epoch"],
        "processor_seconds": time.process_time() - started,
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the mean over seeds of each figure, as Markdown."""
    yield "Means over seeds, and in brackets their standard deviation."
    for (data, size), of_data in pd.DataFrame(rows).groupby(["data", "cells"], sort=False):
        yield from ("", f"**{data}, {size:,} cells**", "")
        yield f"| schedule | seeds | {' | '.join(FIGURES.values())} |"
        yield "|---" * (2 + len(FIGURES)) + "|"
        for label, of_label in of_data.groupby("schedule", sort=False):
            spread = len(of_label) > 1
            values = [
                f"{of_label[k].mean():.4g}" + f" ({of_label[k].std():.2g})" * spread
                for k in FIGURES
            ]
            yield f"| {label} | {len(of_label)} | {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started, stored = time.process_time(), RESULTS / "schedules.json"
    rows = json.loads(stored.read_text())["fits"] if stored.exists() else []
    known = {(row["data"], row["cells"], row["schedule"], row["seed"]) for row in rows}
    for seed in range(given.seeds):
        for name in given.names:
            for size in given.sizes:
                mdata = cells(name, size, seed, given.data)
                for label in given.schedules:
                    key = (name, mdata.n_obs, label, seed)
                    if key in known:
                        continue
                    known.add(key)
                    names = zip(("data", "cells", "schedule", "seed"), key, strict=True)
                    rows.append(dict(names) | measure(mdata, seed, SCHEDULES[label]))
                    print(json.dumps(rows[-1]), flush=True)
                    write_results("schedules", {"fits": rows}, list(table(rows)), started)


if __name__ == "__main__":
    main()
