"""Measure whether the model reports the reliability of imputed proteins correctly.

    python benchmarks/imputation_trust.py --data pbmc10k.h5mu --seeds 0 1 2

Proteins are hidden as in `imputation.py`. The model measures the reliability of each protein in
held-out cells. The script compares it with the truth in the cells whose proteins were hidden, by
the correlation over proteins and the mean absolute difference. Coverage is the share of hidden
counts in the 90 % intervals, averaged over proteins, with the lowest and highest protein. Results
go to benchmarks/results/imputation_trust.md. With ``--folder`` fits are kept, and found again there.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
from mudata import MuData

import totalvi
from field_fit import fitted
from imputation import HERE, arguments_of, hide_proteins


def measure(mdata: MuData, seed: int, folder: Path) -> list[str]:
    partly, hidden = hide_proteins(mdata)
    model, _ = fitted(partly, folder / f"hidden_{seed}", None, batch_key="panel", seed=seed)
    found = model.get_imputation_reliability().loc["hidden"]
    truth = mdata["prot"].to_df()[hidden]
    cells = [str(seed)]
    for calibrated in (False, True):
        imputed = model.impute_proteins(indices=hidden, calibrated=calibrated, stacked=True)
        inside = ((truth >= imputed.lower) & (truth <= imputed.upper)).mean()
        cells.append(f"{inside.mean():.3f} ({inside.min():.3f} to {inside.max():.3f})")
    logs = np.log1p(truth)
    true = logs.corrwith(imputed.log1p)
    difference = (found["pearson"] - true).abs().mean()
    correlation = np.corrcoef(found["pearson"], true)[0, 1]
    rmse = np.sqrt(((logs - imputed.log1p) ** 2).mean(axis=None))
    print(found.assign(true=true).round(3).to_string(), flush=True)
    return [cells[0], f"{correlation:.3f}", f"{difference:.3f}", *cells[1:], f"{true.mean():.3f}",
            f"{rmse:.3f}"]  # fmt: skip


def main() -> None:
    arguments = arguments_of(__doc__.splitlines()[0])
    with warnings.catch_warnings(action="ignore"):  # mudata's, of coming versions
        mdata = totalvi.read(arguments.data)
    header = [
        "seed", "reliability: correlation with the truth", "mean absolute difference",
        "coverage of 90 % intervals, not calibrated", "calibrated", "Pearson of `log1p`",
        "RMSE of `log1p`",
    ]  # fmt: skip
    rows = [header, ["---"] * len(header)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        rows += [measure(mdata, seed, folder) for seed in arguments.seeds]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    (HERE / "results" / "imputation_trust.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
