"""Labels and mixing of a mosaic by totalvi, in the own modality, and by scmidas, for `field.py`."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

from field_fit import fitted
from field_page import table
from field_peers import LIMIT, Question, ask
from mosaic import DONORS, accuracy, joined_mosaic, labelled_atlas, mixing, scores_of_own_modality

QUICK_EPOCHS = 100  # up to which scmidas is fitted with every seed
Row = dict[str, Any]


def rows_of_mosaic(given: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """Return labels and mixing by each method and seed, and the version of scmidas."""
    atlas = labelled_atlas(given.data)
    joined = joined_mosaic(atlas)
    rows = [of_totalvi(joined, seed, given) for seed in given.seeds]
    rows.append(of_own_modality(joined))
    print("\n".join(table([{"data": "mosaic", **row} for row in rows])), flush=True)
    cells, versions = given.folder / "mosaic.h5mu", dict[str, str]()
    atlas.write(cells)
    for epochs in given.midas_epochs:
        for seed in given.seeds if epochs <= QUICK_EPOCHS else given.slow_seeds:
            row = of_scmidas(joined, cells, (seed, epochs), given)
            if "version" in row:
                versions["midas"] = row.pop("version")
            rows.append(row)
    return [{"data": "mosaic", **row} for row in rows], versions


def of_totalvi(joined: MuData, seed: int, given: argparse.Namespace) -> Row:
    path = given.folder / f"mosaic_{seed}"
    model, fit_seconds = fitted(joined, path, given.epochs, batch_key="batch", seed=seed)
    started = time.process_time()
    latent = model.get_latent_representation()
    seconds = fit_seconds + time.process_time() - started
    return {
        "method": "totalvi",
        "seed": seed,
        **by_donor(joined, latent),
        "processor seconds": seconds,
    }


def of_own_modality(joined: MuData) -> Row:
    started = time.process_time()
    row: Row = {"method": "neighbours, own modality"}
    for donor, modality in zip(DONORS, ("rna", "prot"), strict=True):
        row |= of_donor(*scores_of_own_modality(joined, donor, modality), donor)
    return row | {"processor seconds": time.process_time() - started}


def of_scmidas(joined: MuData, cells: Path, fit: tuple[int, int], given: argparse.Namespace) -> Row:
    """Return labels and mixing by scmidas for a seed and a number of epochs, or why there are none."""
    seed, epochs = fit
    options = ("--seed", str(seed), "--epochs", str(epochs))
    answer = given.folder / f"midas_{seed}_{epochs}.npz"
    question = Question("field_midas.py", cells, answer, options)
    found = ask(given.midas_python, question, limit=LIMIT["midas"])
    row: Row = {"method": f"scmidas, {epochs} epochs", "seed": seed}
    if isinstance(found, str):
        return row | {"failed": found}
    latent = pd.DataFrame(found["latent"], found["cells"]).loc[joined.obs_names].to_numpy()
    about = {"processor seconds": float(found["fit_seconds"]), "version": str(found["version"])}
    return row | by_donor(joined, latent) | about


def by_donor(joined: MuData, scores: np.ndarray) -> Row:
    """Return labels and mixing of p1 and p2 in a joint space."""
    batch = joined.obs["batch"].astype(str).to_numpy()
    labels = joined.obs["celltype"].astype(str).to_numpy()
    row: Row = {}
    for donor in DONORS:
        row |= of_donor(scores, batch, labels, donor)
    return row


def of_donor(scores: np.ndarray, batch: np.ndarray, labels: np.ndarray, donor: str) -> Row:
    name = donor.removesuffix("_0")
    return {
        f"labels {name}": accuracy(scores, batch, labels, donor),
        f"mixing {name}": mixing(scores, batch, donor),
    }
