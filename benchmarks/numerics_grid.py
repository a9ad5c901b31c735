"""Fit tiny networks to extreme data of every kind, and find numbers that are not finite.

    python benchmarks/numerics_grid.py

Each configuration pairs one kind of extreme counts with one kind of network and fit. It passes in
three cases: the counts are refused with a DataError; the fit stops with a TrainingError, and the
model then refuses all queries; or history, weights and results are finite. Results go to
benchmarks/results/numerics_grid.json and numerics_grid.md.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from extremes import COUNTS, NETWORKS, outcome_of, pairs

RESULTS = Path(__file__).resolve().parent / "results"


def report(rows: list[dict[str, str]]) -> str:
    """Return what came of every kind of counts and of network, as Markdown."""
    total = Counter(row["outcome"] for row in rows)
    outcomes = sorted(total)
    lines = [
        f"{len(rows)} configurations (`python benchmarks/numerics_grid.py`): "
        + ", ".join(f"{total[name]} {name}" for name in outcomes)
        + ".",
    ]
    for kind, names in (("counts", COUNTS), ("network", NETWORKS)):
        lines += [
            "",
            f"| {kind} | " + " | ".join(outcomes) + " |",
            "|---|" + "---|" * len(outcomes),
        ]
        for name in names:
            counted = Counter(row["outcome"] for row in rows if row[kind] == name)
            lines.append(f"| {name} | " + " | ".join(str(counted[o]) for o in outcomes) + " |")
    lines += ["", "What was said where a fit was refused or stopped, or failed here:", ""]
    said = Counter((row["counts"], row["said"]) for row in rows if row["said"])
    lines += [f"- {counts} ({n}): {text}" for (counts, text), n in said.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", choices=tuple(COUNTS))
    parser.add_argument("--network", choices=tuple(NETWORKS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    os.nice(max(0, 10 - os.nice(0)))
    warnings.simplefilter("ignore")
    rows = []
    for counts, network in pairs():
        if given.counts not in (None, counts) or given.network not in (None, network):
            continue
        started = time.perf_counter()
        outcome, said = outcome_of(counts, network)
        seconds = time.perf_counter() - started
        print(f"{counts} | {network} | {outcome} | {said} | {seconds:.1f} s", flush=True)
        rows.append({"counts": counts, "network": network, "outcome": outcome, "said": said})
    (given.output / "numerics_grid.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.output / "numerics_grid.md").write_text(report(rows))


if __name__ == "__main__":
    main()
