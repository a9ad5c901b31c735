"""Check what RNA and proteins are said to tell of a cell's state against truth.

    python benchmarks/modality_information.py --seeds 3

Two checks for each seed.

- "known model": a model is fitted to cells, and new counts of the same cells are drawn from it. What
  a second model, fitted to these counts alone, finds in them is compared with what the model that
  drew them finds: rank correlation over cells and over features, and mean nats. At most 800 cells
  are asked about.
- "labels": a linear discriminant analysis learns labels from half of the cells, by their states given
  both modalities, and names the others by their states given one modality. The share that is right is
  what the model predicts for cells without the other modality. It is compared with what is found when
  the other modality of these cells really is taken away before the fit, and they are a panel of their
  own in a mosaic.

Results go to benchmarks/results/modality_information.json and modality_information.md.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import totalvi
from result_files import write_results

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MOST_CELLS = 800  # asked about, of which a rank correlation is known to about .01


def fitted(mdata: MuData, seed: int) -> totalvi.Model:
    model = totalvi.Model(mdata, seed=seed, isotype_controls=())
    model.train(progress=False)
    return model


def known_model(name: str, mdata: MuData, seed: int) -> dict[str, Any]:
    """Return rank correlations with what the model that drew the counts finds in them."""
    truth = fitted(mdata, seed)
    drawn = truth.posterior_predictive_sample(seed=seed)
    parts = {"rna": sparse.csr_array(drawn.rna), "prot": np.asarray(drawn.protein)}
    again = MuData({
        name: AnnData(counts, obs=mdata[name].obs[[]].copy(), var=mdata[name].var[[]].copy())
        for name, counts in parts.items()
    })  # fmt: skip
    asked = np.random.default_rng(seed).permutation(mdata.n_obs)[:MOST_CELLS]
    known = truth.get_modality_information(again, asked)
    found = fitted(again, seed + 100).get_modality_information(indices=asked)
    row: dict[str, Any] = {"data": name, "seed": seed}
    for column in known.cells:
        row[column] = float(spearmanr(found.cells[column], known.cells[column])[0])
    for modality in ("rna", "protein"):
        chosen = known.features["modality"] == modality
        pair = found.features.loc[chosen, "all"], known.features.loc[chosen, "all"]
        row[f"features of {modality}"] = float(spearmanr(*pair)[0])
    for column in known.cells:
        row[f"nats, {column}: known"] = float(known.cells[column].mean())
        row[f"nats, {column}: found"] = float(found.cells[column].mean())
    return row


def labels(name: str, mdata: MuData, label: str, seed: int) -> list[dict[str, Any]]:
    """Return for each modality the share of labels that is right without it, predicted and found."""
    model = fitted(mdata, seed)
    told = model.get_modality_information()
    both = model.get_latent_representation(return_dist=True).mean
    truth = (mdata.obs if label in mdata.obs else mdata["rna"].obs)[label].astype(str).to_numpy()
    train = np.random.default_rng(seed).permutation(len(truth)) < len(truth) // 2
    rows = []
    for kept, states in (("rna", told.rna_states), ("prot", told.protein_states)):
        mosaic = totalvi.mosaic(MuData({
            each: mdata[each] if each == kept else mdata[each][train] for each in ("rna", "prot")
        }))  # fmt: skip
        alone = fitted(mosaic, seed).get_latent_representation(return_dist=True).mean
        alone = pd.DataFrame(alone, index=mosaic.obs_names).loc[mdata.obs_names].to_numpy()
        rows.append({
            "data": name, "seed": seed, "kept": kept, "both": right(both, both, truth, train),
            "predicted": right(both, states, truth, train), "found": right(alone, alone, truth, train),
        })  # fmt: skip
    return rows


def right(learned: np.ndarray, asked: np.ndarray, truth: np.ndarray, train: np.ndarray) -> float:
    """Return the share of cells that do not train whose label is right."""
    rule = LinearDiscriminantAnalysis().fit(learned[train], truth[train])
    return float((rule.predict(asked[~train]) == truth[~train]).mean())


def data_sets(folder: Path, seed: int) -> Iterator[tuple[str, MuData, str | None]]:
    """Yield a name, cells with both modalities, and the column of their labels, if these are asked."""
    simulated = partial(totalvi.simulate, n_cell_types=6, seed=seed)
    yield "simulated", simulated(2000, 300, 15), "cell_type"
    yield "simulated, 8,000 cells, 1,000 genes, 30 proteins", simulated(8000, 1000, 30), None
    yield "bmmc", totalvi.read(folder / "bmmc_134proteins.h5mu"), "cell_type"


def _mean(values: pd.Series) -> str:
    """Return the mean over seeds, with the standard deviation if there are several."""
    return f"{values.mean():.3f}" + (f" ({values.std():.3f})" if len(values) > 1 else "")


def table(rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the results as Markdown."""
    yield "Known model: Spearman correlation over cells and features of what a model fitted to counts"
    yield "finds in them with what the model that drew them finds; nats are means over cells. Means of"
    yield "seeds, and in brackets their standard deviation."
    known = pd.DataFrame(rows["known"])
    names = known["data"].unique()
    yield from ("", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|")
    for column in known.columns[2:]:
        by_data = known.groupby("data", sort=False)[column]
        values = [_mean(of) for _, of in by_data]
        yield f"| {column} | {' | '.join(values)} |"
    yield from ("", "Share of labels that are right; means over seeds (sd).", "")
    yield "| data | kept | with both | predicted with it alone | found with it alone | difference |"
    yield "|---|---|---|---|---|---|"
    of_labels = pd.DataFrame(rows["labels"])
    for (name, kept), of_data in of_labels.groupby(["data", "kept"], sort=False):
        difference = of_data["predicted"] - of_data["found"]
        cells = [_mean(of_data[key]) for key in ("both", "predicted", "found")]
        cells.append(_mean(difference))
        yield f"| {name} | {kept} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started, rows = time.process_time(), {"known": [], "labels": []}
    for seed in range(given.seeds):
        for name, mdata, label in data_sets(given.data, seed):
            rows["known"].append(known_model(name, mdata, seed))
            print(rows["known"][-1], flush=True)
            if label is not None:
                rows["labels"] += labels(name, mdata, label, seed)
                print(rows["labels"][-2:], flush=True)
        write_results("modality_information", rows, list(table(rows)), started)


if __name__ == "__main__":
    main()
