"""Time how long a file of counts takes to be read and checked, against another version of the package.

    python benchmarks/reading.py [--against SRC] [--cells 100000] [--repeats 5]

The files are a Cell Ranger ``.h5`` and an ``.h5mu`` of the same simulated counts. Each measurement is a
process of its own, the versions by turns. Prints seconds of the processor (`time.process_time`), the
median and the range, and the ratio of the medians. ``--profile`` prints where the time goes instead.
"""

import argparse
import contextlib
import cProfile
import io
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

SRC = Path(__file__).parents[1] / "src"
N_GENES, N_PROTEINS = 2000, 60  # of a run that keeps the variable genes, and of a panel
TASKS = ("read", "model", "check")


def counts(n_cells: int) -> tuple[sparse.csr_matrix, np.ndarray, list[str]]:
    """Draw RNA and protein counts, and barcodes as names."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.3, 0.6, size=N_GENES)
    blocks = [
        sparse.csr_matrix(
            rng.poisson(rate, (min(10_000, n_cells - start), N_GENES)), dtype=np.float32
        )
        for start in range(0, n_cells, 10_000)
    ]
    means = 1 + rng.gamma(1, 40, size=N_PROTEINS)
    protein = rng.negative_binomial(4, 4 / (4 + means), size=(n_cells, N_PROTEINS))
    letters = rng.integers(0, 4, size=(2 * n_cells, 16))
    barcodes = dict.fromkeys("".join("ACGT"[i] for i in row) + "-1" for row in letters)
    return sparse.vstack(blocks, format="csr"), protein.astype(np.float32), list(barcodes)[:n_cells]


def write_files(folder: Path, n_cells: int) -> list[Path]:
    """Write the same counts as an ``.h5`` and an ``.h5mu`` file."""
    from totalvi.data.io.modalities import mudata_of

    rna, protein, cells = counts(n_cells)
    genes = [f"GENE{i}" for i in range(N_GENES)]
    proteins = [f"CD{i + 1}_TotalSeqB" for i in range(N_PROTEINS)]
    obs = pd.DataFrame(index=cells)
    parts = {
        "rna": AnnData(rna, obs=obs.copy(), var=pd.DataFrame(index=genes)),
        "prot": AnnData(protein, obs=obs.copy(), var=pd.DataFrame(index=proteins)),
    }
    mudata_of(parts, obs).write(folder / "cells.h5mu")
    both = sparse.hstack([rna, sparse.csr_matrix(protein)], format="csr")
    types = ["Gene Expression"] * N_GENES + ["Antibody Capture"] * N_PROTEINS
    with h5py.File(folder / "cells.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(cells, dtype="S")
        matrix["data"], matrix["indices"] = (
            both.data.astype(np.int32),
            both.indices.astype(np.int64),
        )
        matrix["indptr"] = both.indptr.astype(np.int64)
        matrix["shape"] = np.array(both.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        for name, values in (
            ("id", genes + proteins),
            ("name", genes + proteins),
            ("feature_type", types),
        ):
            features[name] = np.array(values, dtype="S")
    return [folder / "cells.h5", folder / "cells.h5mu"]


def timed(path: Path) -> dict[str, float]:
    """Return seconds of the processor of reading, of a new model, and of the command that checks."""
    import totalvi
    from totalvi.cli.main import execute

    start = time.process_time()
    mdata = totalvi.read(path)
    is_read = time.process_time()
    totalvi.Model(mdata)
    is_described = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        execute(["check", str(path)])
    ends = (is_read, is_described, time.process_time())
    return dict(zip(TASKS, np.diff((start, *ends)), strict=True))


def profiled(path: Path) -> None:
    """Print the functions that take most of `timed`."""
    profile = cProfile.Profile()
    profile.runcall(timed, path)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="src folder of the other version")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(timed(arguments.one)))
        return
    versions = {"here": SRC} | ({"other": arguments.against} if arguments.against else {})
    with tempfile.TemporaryDirectory() as folder:
        for path in write_files(Path(folder), arguments.cells):
            if arguments.profile:
                profiled(path)
                continue
            found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
            for _ in range(arguments.repeats):
                for name, source in versions.items():
                    command = [sys.executable, "-W", "ignore", __file__, "--one", str(path)]
                    environment = os.environ | {"PYTHONPATH": str(source)}
                    done = subprocess.run(
                        command, env=environment, check=True, stdout=subprocess.PIPE
                    )
                    found[name].append(json.loads(done.stdout))
            for task in TASKS:
                seconds = {
                    name: np.array([run[task] for run in runs]) for name, runs in found.items()
                }
                words = [
                    f"{name} {np.median(s):.2f} s ({s.min():.2f}-{s.max():.2f})"
                    for name, s in seconds.items()
                ]
                if "other" in seconds:
                    ratio = np.median(seconds["here"]) / np.median(seconds["other"])
                    words.append(f"ratio {ratio:.2f}")
                print(f"{path.suffix} {task}: {', '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
