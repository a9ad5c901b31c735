"""The table of `field.py`, from one row for each data set, method and seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

DIGITS = {
    "spearman": 3,
    "spearman of faint": 3,
    "pearson of logs": 3,
    "counts": 3,
    "per cell": 3,
    "rmse": 3,
    "worst against ridge": 3,
    "coverage": 3,
    "labels p1": 3,
    "mixing p1": 2,
    "labels p2": 3,
    "mixing p2": 2,
    "processor seconds": 1,
}

INTRODUCTION = """# Beside other methods

`make bench-field`. Each method gets the same hidden cells and the same mosaic; data and columns are in
the docstring of `benchmarks/field.py`. Means over the seeds {seeds} (slow fits of peers: {slow_seeds}),
± their standard deviation. A method that is not installed, or that fails, has a row that says so.

- **reap, pbmc10k, wnn**: proteins hidden from a third or 40 % of the cells are predicted. "totalvi" is
  what `impute_proteins` returns, "totalvi, model alone" the same without its stack of regression and
  neighbours.
- **mosaic**: labels of donors p1 (RNA alone) and p2 (proteins alone) by the 15 nearest cells of p3
  (both), and mixing, the share of p3 among the 30 nearest cells, .5 at best. "own modality" is the same
  neighbours in 50 components of the one modality that the donor has, without a joint space.
- **processor seconds** are of one fit and its answer on one thread, after imports and reading. They
  are processor time, not time on a clock. The first fit of totalvi in an environment also compiles, for
  half a minute.
  {machine}
- **scvi-tools** {scvi}: TOTALVI with its defaults, but for the epochs. Its own are 400 at most, ended
  early where the held-out loss no longer falls. They are {reap_epochs} at most here on reap and
  {pbmc10k_epochs} on pbmc10k, so that the comparison ends well within 40 minutes; more may be better.
  The weight of its KL divergence grows for 0.75 steps a cell, some 210 epochs of either, and is short
  of 1 there. The last column has the epochs that it took. Panels are its batches; hidden cells are
  decoded as measured ones, background included, 25 samples. Its documentation lets proteins be missing,
  not RNA, so it has no row for the mosaic.
- **scmidas** {midas}: `scmidas.integrate` with its defaults. They have 65 epochs, for a toy data set:
  these donors and a fourth. For others its documentation advises 1000 to 2000, which take more than
  ten minutes a seed, and are fitted where `--midas-epochs 65 1000` asks for it. The processes that load
  its minibatches are not in its seconds.
"""


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table: means over seeds of each data set and method."""
    shown = [name for name in DIGITS if any(row.get(name) is not None for row in rows)]
    heads = ["data", "method", "seeds", *shown, "note"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["method"]), []).append(row)
    for (data, method), some in groups.items():
        measured = [row for row in some if not row.get("failed")]
        cells = [spread([row.get(name) for row in measured], DIGITS[name]) for name in shown]
        notes = list(dict.fromkeys(note for row in some if (note := note_of(row))))
        lines.append(
            f"| {data} | {method} | {len(measured)} | {' | '.join(cells)} | {'; '.join(notes)} |"
        )
    return lines


def note_of(row: Mapping[str, Any]) -> str:
    """Return what the last column says of a row: why it has no numbers, or how it was fitted."""
    return str(row.get("failed") or row.get("note") or "")


def spread(values: Sequence[float | None], digits: int) -> str:
    """Return the mean and the standard deviation; nothing where nothing was measured."""
    known = pd.Series(values, dtype=float).dropna()
    if known.empty:
        return ""
    deviation = known.std()
    mean = f"{known.mean():.{digits}f}"
    return mean if np.isnan(deviation) else f"{mean} ± {deviation:.{digits}f}"


def page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, object]) -> list[str]:
    """Return the lines of the page; ``about`` fills in the names of its introduction."""
    return [*INTRODUCTION.format(**about).splitlines(), "", *table(rows)]
