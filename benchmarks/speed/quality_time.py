"""Measure how long a fit takes to reach the held-out loss that scvi-tools ends with.

    python benchmarks/speed/quality_time.py --data pbmc10k.h5mu

Both programs have the same split and objective, and both times end when the loss is first reached. The
time starts before the model is created and includes neither imports nor reading of files. The fit of
scvi-tools takes about ten minutes. It is read from results/peer_fit.json if that belongs to these data;
--peer-python fits it again and writes that file.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401  before the clock starts, as the peer's imports are
import numpy as np
import torch
from mudata import MuData

import totalvi

HERE = Path(__file__).resolve().parent
PEER_FIT = HERE.parent / "results" / "peer_fit.json"


def benchmark_split(n_cells: int) -> dict[str, np.ndarray]:
    order = np.random.default_rng(0).permutation(n_cells)
    n_train = int(np.ceil(0.9 * n_cells))
    return {"train": np.sort(order[:n_train]), "validation": np.sort(order[n_train:])}


def fit_peer(python: str, data: Path, arguments: argparse.Namespace, split: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "split.npz"
        np.savez(path, **split)
        command = [python, str(HERE / "peer_fit.py"), "--data", str(data), "--split", str(path)]
        command += ["--output", str(arguments.peer_result), "--threads", str(arguments.threads)]
        command += ["--device", arguments.device]
        if arguments.max_epochs is not None:
            command += ["--max-epochs", str(arguments.max_epochs)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def fit_ours(
    mdata: MuData, split: dict[str, Any], target: float, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return when the fit was at ``target``, None if never, and its loss and time at the end."""
    started = time.perf_counter()
    model = totalvi.Model(mdata, seed=seed)
    model.train(
        arguments.max_epochs,
        split=[split["train"], split["validation"], np.array([], dtype=int)],
        accelerator=arguments.device,
        progress=False,
    )
    seconds = time.perf_counter() - started
    losses = model.history["validation_paper_loss"].to_numpy()  # that of the peer's fit
    there = np.flatnonzero(losses <= target)
    reached = None
    if len(there):
        reached = seconds - float(model.history["seconds"].iloc[there[0] + 1 :].sum())
    return {
        "seed": seed,
        "reached": reached,
        "epoch": int(there[0]) if len(there) else None,
        "epochs": len(losses),
        "loss": float(losses[model.fit_summary["best_epoch"]]),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer-result", type=Path, default=PEER_FIT)
    parser.add_argument("--peer-python", help="fit the peer again with this interpreter")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-epochs", type=int, help="of either program, in place of its default")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    mdata = totalvi.read(arguments.data)
    split = benchmark_split(mdata.n_obs)
    if arguments.peer_python is not None:
        fit_peer(arguments.peer_python, arguments.data, arguments, split)
    peer = json.loads(arguments.peer_result.read_text())
    size = {"cells": mdata.n_obs, "genes": mdata["rna"].n_vars, "proteins": mdata["prot"].n_vars}
    if size != {name: peer[name] for name in size}:
        parser.error(f"{arguments.peer_result} is not of these data; give --peer-python")
    target = peer["end_loss"]
    fits = []
    for seed in range(arguments.repetitions):
        fits.append(fit_ours(mdata, split, target, seed, arguments))
        print(json.dumps(fits[-1]), flush=True)
    reached = statistics.median(fit["reached"] or np.inf for fit in fits)
    result = {
        "target": target,
        "ours": reached if np.isfinite(reached) else None,
        "loss": statistics.median(fit["loss"] for fit in fits),
        "peer": peer["seconds"],
        "peer_epochs": peer["epochs"],
        "peer_epochs_there": 1 + int(np.argmax(np.array(peer["losses"]) <= target)),
        "peer_is_stored": arguments.peer_python is None,
        "fits": fits,
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    there = f"reached in {reached:.1f} s (median)" if result["ours"] else "not reached"
    print(
        f"held-out loss {target:.1f} {there}, by the peer in {peer['seconds']:.0f} s; "
        f"final loss {result['loss']:.1f}"
    )


if __name__ == "__main__":
    main()
