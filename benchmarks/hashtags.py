"""Measure the samples that hashtags tell, on simulated hashtags whose truth is known.

    python benchmarks/hashtags.py --seeds 0 1 2

4,000 cells, of which 8 % are doublets of two random cells, 3 % have no tag, and the others one. Tags
have 10 counts on average where they are not carried (log-normal over tags, standard deviation 0.5), and
`fold` times as many where they are. Counts are negative binomial with r = 3 ("NB", as the calls
assume), or log-normal with a standard deviation of 0.6 over cells and tags and 0.3 over cells
("log-normal").

"Accuracy" is the share of cells whose sample, "doublet" or "none" is right; doublets of two cells of
one sample count as single cells. "Mean probability" is what the calls say of it; "calibration error"
the mean distance between both over ten bins of the probability, weighted by their sizes. "Highest tag"
is the accuracy over cells with one tag of taking the highest count of each cell for its range.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from totalvi.run.hashtag_samples import call_hashtags

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
N_CELLS = 4000
DESIGNS = [
    {"tags": tags, "fold": fold, "counts": counts, "failed": failed}
    for tags, fold, counts, failed in (
        (2, 20, "NB", 0),
        (4, 30, "NB", 0),
        (4, 20, "NB", 0),
        (4, 10, "NB", 0),
        (4, 6, "NB", 0),
        (12, 20, "NB", 0),
        (4, 20, "log-normal", 0),
        (4, 10, "log-normal", 0),
        (4, 20, "NB", 1),
    )
]


def simulated(design: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts, which tags are carried, both (cells, tags), and which tags have failed."""
    n_tags = design["tags"]
    rng = np.random.default_rng([seed, n_tags])
    share = rng.dirichlet(np.full(n_tags, 5.0))
    kind = rng.choice(3, N_CELLS, p=[0.89, 0.08, 0.03])
    first, second = rng.choice(n_tags, (2, N_CELLS), p=share)
    carried = np.zeros((N_CELLS, n_tags), dtype=bool)
    carried[np.arange(N_CELLS), first] = kind != 2
    carried[np.arange(N_CELLS), second] |= kind == 1
    failed = np.arange(n_tags) < design["failed"]
    without = 10 * np.exp(rng.normal(0, 0.5, n_tags))
    mean = np.where(carried & ~failed, design["fold"] * without, without)
    if design["counts"] == "NB":
        rate = mean * rng.gamma(3, 1 / 3, mean.shape)
    else:
        rate = mean * np.exp(rng.normal(0, 0.6, mean.shape) + rng.normal(0, 0.3, (N_CELLS, 1)))
    return rng.poisson(rate), carried, failed


def measure(design: dict[str, Any], seed: int) -> dict[str, Any]:
    counts, carried, failed = simulated(design, seed)
    names = [f"tag {k}" for k in range(design["tags"])]
    cells, told_failed = call_hashtags(counts, names, np.zeros(N_CELLS))
    seen = carried & ~failed  # what counts can tell
    n_seen = seen.sum(axis=1)
    truth = np.where(n_seen == 0, "none", np.array(names)[seen.argmax(axis=1)])
    truth = np.where(n_seen == 2, "doublet", truth)
    called = cells["hashtag_sample"].astype(str).to_numpy()
    probability = cells["hashtag_probability"].to_numpy(float)
    right = called == truth
    table = pd.DataFrame({"probability": probability, "right": right})
    bins = table.groupby(np.minimum((10 * probability).astype(int), 9)).agg(
        n=("right", "size"), probability=("probability", "mean"), right=("right", "mean")
    )
    logs = np.log1p(counts)
    highest = (logs / np.quantile(logs, 0.99, axis=0)).argmax(axis=1)
    one = n_seen == 1
    return {
        "accuracy": float(right.mean()),
        "mean probability": float(probability.mean()),
        "calibration error": float(
            np.average((bins["probability"] - bins["right"]).abs(), weights=bins["n"])
        ),
        "accuracy of one tag": float(right[one].mean()),
        "highest tag": float((np.array(names)[highest] == truth)[one].mean()),
        "doublets: recall": float((called == "doublet")[n_seen == 2].mean()),
        "doublets: precision": float((n_seen == 2)[called == "doublet"].mean()),
        "failed tags told": float(told_failed == [names[k] for k in np.flatnonzero(failed)]),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["# Samples by hashtags", "", (__doc__ or "").partition("\n\n")[2].strip(), ""]
    names = list(rows[0]["measured"][0])
    lines += [
        "Mean over seeds.",
        "",
        f"| tags | fold | counts | failed tags | {' | '.join(names)} |",
    ]
    lines += ["|---|" + "---|" * (len(names) + 3)]
    for row in rows:
        figures = (f"{np.mean([of[name] for of in row['measured']]):.3f}" for name in names)
        design = " | ".join(str(value) for value in row["design"].values())
        lines.append(f"| {design} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    rows = [
        {"design": design, "measured": [measure(design, seed) for seed in seeds]}
        for design in DESIGNS
    ]
    text = json.dumps({"seeds": seeds, "rows": rows}, indent=1) + "\n"
    RESULTS.joinpath("hashtags.json").write_text(text, encoding="utf-8")
    RESULTS.joinpath("hashtags.md").write_text(report(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
