"""Measure how well default fits explain held-out cells, and how long they take.

    python benchmarks/quality.py --data pbmc10k.h5mu --seeds 0 1 2

The loss is minus the evidence lower bound in nats per cell, averaged over the 10 % of cells that are
held out: with the log background integrated, which chooses the weights of a fit, and with one sample
of it, as in the paper. Results go to benchmarks/results/quality.json and quality.md.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import totalvi

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
BATCH_KEYS = {"bmmc_134proteins": "batch"}


def measure(path: Path, seed: int) -> dict[str, float]:
    print(f"fitting {path.name} with seed {seed}", flush=True)
    mdata = totalvi.read(path)
    started = time.perf_counter()
    model = totalvi.Model(mdata, batch_key=BATCH_KEYS.get(path.stem), seed=seed)
    model.train(progress=False)
    seconds = time.perf_counter() - started
    held_out = model.split.validation

    def loss(integrate_background: bool) -> float:
        asked = {"indices": held_out, "integrate_background": integrate_background}
        return -statistics.fmean(model.get_elbo(seed=s, **asked) for s in range(20))

    return {
        "seed": seed,
        "held_out_loss": loss(True),
        "held_out_paper_loss": loss(False),  # the loss that scvi-tools reports
        "epochs": len(model.history),
        "best_epoch": model.fit_summary["best_epoch"],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = [DATA / "pbmc10k.h5mu", DATA / "bmmc_134proteins.h5mu"]
    parser.add_argument("--data", type=Path, nargs="+", default=defaults)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    missing = [path for path in arguments.data if not path.exists()]
    if missing:
        parser.error(f"{missing[0]} does not exist; give CITE-seq files with --data")
    results = {path.stem: [measure(path, s) for s in arguments.seeds] for path in arguments.data}
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    content = {"totalvi": totalvi.__version__, "machine": machine, "results": results}
    (folder / "quality.json").write_text(json.dumps(content, indent=1) + "\n")
    table = [
        "| data | seed | held-out loss per cell (nats) | the paper's | epochs | seconds |",
        "|---|---|---|---|---|---|",
    ]
    table += [
        f"| {name} | {row['seed']} | {row['held_out_loss']:.1f} | {row['held_out_paper_loss']:.1f} "
        f"| {row['epochs']} | {row['seconds']:.0f} |"
        for name, rows in results.items()
        for row in rows
    ]
    (folder / "quality.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
