"""Check what RNA and proteins are said to tell of a cell's state against truth.

    python benchmarks/modality_information.py --seeds 3

Two checks for each seed.

- "known model": a model is fitted to cells, and new counts are drawn from it at known states.
  `Model.get_modality_information` of these counts, by the model that drew them and by a second one
  fitted to them, is compared with that of the first at the means that the states
  were drawn around: rank correlation over cells and over features.
- "labels": the information predicts how far a cell's state moves when the proteins, or the RNA, are
  taken away: by N(0, (I + J_kept)^-1 - (I + J_both)^-1). So it predicts how many labels are then lost
  by a linear discriminant analysis of the states of half of the cells; this is compared with what is
  lost when the counts really are taken away.

Results go to benchmarks/results/modality_information.json and modality_information.md.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
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
from totalvi.posterior.modality_information import information

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def fitted(mdata: MuData, seed: int) -> totalvi.Model:
    model = totalvi.Model(mdata, seed=seed, isotype_controls=())
    model.train(progress=False)
    return model


def known_model(name: str, mdata: MuData, seed: int) -> dict[str, Any]:
    """Return rank correlations with what the model that drew the counts tells at the true states."""
    truth = fitted(mdata, seed)
    drawn = truth.posterior_predictive_sample(seed=seed)
    parts = {"rna": sparse.csr_array(drawn.rna), "prot": np.asarray(drawn.protein)}
    again = MuData({
        name: AnnData(counts, obs=mdata[name].obs[[]].copy(), var=mdata[name].var[[]].copy())
        for name, counts in parts.items()
    })  # fmt: skip
    cells, features, _ = truth.get_modality_information()
    drawer = truth.get_modality_information(again)
    second = fitted(again, seed + 100).get_modality_information()
    row: dict[str, Any] = {"data": name, "seed": seed}
    for of, found in (("drew them", drawer), ("second", second)):
        row |= {
            f"{of}: {column}": float(spearmanr(found.cells[column], cells[column])[0])
            for column in found.cells
        }
        for modality in ("rna", "protein"):
            chosen = features["modality"] == modality
            pair = found.features.loc[chosen, "all"], features.loc[chosen, "all"]
            row[f"{of}: shares of {modality}"] = float(spearmanr(*pair)[0])
        row[f"{of}: nats added by protein"] = float(found.cells["protein_added"].mean())
    return row | {"true nats added by protein": float(cells["protein_added"].mean())}


def labels(name: str, mdata: MuData, label: str, seed: int) -> list[dict[str, Any]]:
    """Return for each modality the share of labels that is right without it, predicted and found."""
    model = fitted(mdata, seed)
    truth = mdata.obs[label].astype(str).to_numpy()
    question = model._question(None, None, 256, False)
    states, moments = {"both": [], "rna": [], "protein": []}, []
    with question.minibatches("states") as batches:
        for batch in batches:
            found = information(model.module, batch)
            moments.append((found.rna.double(), found.protein.double()))
            no_rna = replace(batch.x, counts=torch.zeros_like(batch.x.counts))
            for kept, x, y in (
                ("both", batch.x, batch.y),
                ("rna", batch.x, torch.zeros_like(batch.y)),
                ("protein", no_rna, batch.y),
            ):
                states[kept].append(model.module.encode(x, y, batch.context).qz_m)
    state = {kept: torch.cat(parts).double().numpy() for kept, parts in states.items()}
    rna, protein = (torch.cat(parts) for parts in zip(*moments, strict=True))
    told = {"rna": rna, "protein": protein}
    rng = np.random.default_rng(seed)
    train = rng.permutation(len(truth)) < len(truth) // 2
    rule = LinearDiscriminantAnalysis().fit(state["both"][train], truth[train])

    def right(states: np.ndarray) -> float:
        return float((rule.predict(states[~train]) == truth[~train]).mean())

    rows = []
    identity = torch.eye(state["both"].shape[1], dtype=torch.float64)
    both = torch.linalg.inv(identity + rna + protein)
    for kept, lost in (("rna", "protein"), ("protein", "rna")):
        moved = torch.linalg.inv(identity + told[kept]) - both
        values, vectors = torch.linalg.eigh(moved)
        spread = (vectors * values.clamp(min=0).sqrt()[:, None]).numpy()
        predicted = np.mean([
            right(state["both"] + np.einsum("bij,bj->bi", spread, rng.normal(size=state["both"].shape)))
            for _ in range(20)
        ])  # fmt: skip
        rows.append({
            "data": name, "seed": seed, "without": lost, "both": right(state["both"]),
            "predicted": float(predicted), "found": right(state[kept]),
        })  # fmt: skip
    return rows


def data_sets(folder: Path, seed: int) -> Iterator[tuple[str, MuData, str]]:
    """Yield a name, cells with both modalities, and the column of their labels."""
    yield "simulated", totalvi.simulate(2000, 300, 15, n_cell_types=6, seed=seed), "cell_type"
    yield "bmmc", totalvi.read(folder / "bmmc_134proteins.h5mu"), "cell_type"


def table(rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the results as Markdown."""
    yield "Known model: Spearman correlation over cells and features of what the model that drew the"
    yield "counts, and a second one fitted to them, find in the counts, with what the first tells at"
    yield "the true states; nats added by protein are means over cells. Means over seeds (sd)."
    known = pd.DataFrame(rows["known"])
    names = known["data"].unique()
    yield from ("", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|")
    for column in known.columns[2:]:
        by_data = known.groupby("data", sort=False)[column]
        values = [f"{of.mean():.3f} ({of.std():.3f})" for _, of in by_data]
        yield f"| {column} | {' | '.join(values)} |"
    yield from ("", "Share of labels that are right; means over seeds (sd).", "")
    yield "| data | without | with both | predicted without | found without | difference |"
    yield "|---|---|---|---|---|---|"
    for (name, lost), of_data in pd.DataFrame(rows["labels"]).groupby(["data", "without"]):
        difference = of_data["predicted"] - of_data["found"]
        cells = [
            f"{of_data[key].mean():.3f} ({of_data[key].std():.3f})"
            for key in ("both", "predicted", "found")
        ]
        cells.append(f"{difference.mean():.3f} ({difference.std():.3f})")
        yield f"| {name} | {lost} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started, rows = time.perf_counter(), {"known": [], "labels": []}
    for seed in range(given.seeds):
        for name, mdata, label in data_sets(given.data, seed):
            rows["known"].append(known_model(name, mdata, seed))
            print(rows["known"][-1], flush=True)
            rows["labels"] += labels(name, mdata, label, seed)
            print(rows["labels"][-2:], flush=True)
        write_results("modality_information", rows, list(table(rows)), started)


if __name__ == "__main__":
    main()
