"""Measure how often intervals of counts hold the count, of cells that neither trained nor calibrated.

    python benchmarks/calibration.py --seeds 0 1 2 --models some/folder

Data: PBMC10k, BMMC, and simulations of 1,200 and 2,500 cells, drawn from the model's family and outside
of it. Of real data 80 % of the cells train, 10 % validate and 10 % report; of simulations 2,000
further cells report. Half of the validation cells calibrate. Coverage breaks ties at random, so that
it equals its level for small counts too; see `totalvi.posterior.predictive_checks.PredictiveCheck`.
Standard errors are over cells, whose counts are averaged over features first. The intervals of the same
fit without calibration are beside them. ``--models`` keeps the fitted models, and takes those that are
there. Results go to benchmarks/results/calibration.json and calibration.md.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mudata import MuData

import totalvi

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
N_REPORTING = 2000
KINDS = (
    "pbmc10k",
    "bmmc_134proteins",
    "family_1200",
    "family_2500",
    "outside_1200",
    "outside_2500",
)


def outside_family(n_cells: int, seed: int) -> MuData:
    """Return simulated cells whose proteins are not as the model has them.

    Foreground folds are a third of those of `totalvi.simulate` and vary from cell to cell of a type
    (log sd 0.4). Backgrounds share a factor of each cell (log sd 0.3). A staining level of each cell
    (log sd 0.3) multiplies all its proteins.
    """
    data = totalvi.simulate(
        n_cells=n_cells, n_proteins=20, median_foreground_factor=10.0, batch_effect=0.2, seed=seed
    )
    protein, rng = data["prot"], np.random.default_rng([seed, 1])
    background = protein.layers["background_mean"].astype(float)
    fold = np.where(
        protein.layers["foreground"] == 1, protein.layers["denoised"] / background, 1.0
    ) * np.exp(rng.normal(0, 0.4, background.shape) * (protein.layers["foreground"] == 1))
    shared = rng.normal(0, 0.3, (n_cells, 1)) * rng.uniform(0.5, 1.5, background.shape[1])
    staining = rng.normal(0, 0.3, (n_cells, 1))
    mean = background * np.maximum(fold, 1.0) * np.exp(shared + staining)
    r = protein.var["inverse_dispersion"].to_numpy()
    protein.X = rng.poisson(rng.gamma(r, mean / r)).astype(np.float32)
    return data


def data_and_split(kind: str, seed: int) -> tuple[MuData, dict[str, Any], dict[str, Any]]:
    """Return the data, and the arguments of model and fit."""
    if not kind.startswith(("family", "outside")):
        data = totalvi.read(DATA / f"{kind}.h5mu")
        keys = {"batch_key": "batch"} if kind.startswith("bmmc") else {}
        return data, keys, {"train_size": 0.8, "validation_size": 0.1}
    n_cells = int(kind.rpartition("_")[2])
    if kind.startswith("family"):
        data = totalvi.simulate(n_cells=n_cells + N_REPORTING, n_proteins=20, seed=seed)
    else:
        data = outside_family(n_cells + N_REPORTING, seed)
    order = np.random.default_rng(seed).permutation(n_cells)
    n_train = round(0.9 * n_cells)
    split = [order[:n_train], order[n_train:], np.arange(n_cells, n_cells + N_REPORTING)]
    return data, {}, {"split": [np.sort(part) for part in split]}


def fitted(kind: str, seed: int, folder: Path | None) -> totalvi.Model:
    data, keys, training = data_and_split(kind, seed)
    kept = None if folder is None else folder / f"{kind}_{seed}.totalvi"
    if kept is not None and kept.exists():
        return totalvi.Model.load(kept, data)
    model = totalvi.Model(data, seed=seed, **keys)
    model.train(progress=False, **training)
    if kept is not None:
        model.save(kept)
    return model
