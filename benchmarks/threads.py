"""Measure how the numbers of a fit depend on the number of threads: 1, 2 and 4.

Another number of threads computes sums in another order, and a fit amplifies rounding errors. Each
fit runs in a separate process with ``OMP_NUM_THREADS`` and ``NUMBA_NUM_THREADS``. Two fits with one
thread show whether anything else differs. ``python benchmarks/threads.py`` writes
``benchmarks/results/threads.md``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
FITS = {
    "small": {"n_cells": 300, "n_genes": 100, "n_proteins": 10, "max_epochs": 20},
    "like PBMC": {"n_cells": 3000, "n_genes": 1000, "n_proteins": 30, "max_epochs": 20},
}
THREADS = (1, 1, 2, 4)


def fit(name: str, output: Path) -> None:
    """Fit a model in this process, and keep what is asked of it."""
    import totalvi

    sizes = dict(FITS[name])
    n_epochs = sizes.pop("max_epochs")
    data = totalvi.simulate(**sizes, n_batches=2, seed=5)
    model = totalvi.Model(data, batch_key="batch", seed=0)
    model.train(max_epochs=n_epochs, accelerator="cpu", precision="32-true", progress=False)
    rna, protein = model.get_normalized_expression(n_samples=5, return_numpy=True)
    np.savez(
        output,
        loss=model.history["validation_loss"].to_numpy(),
        first=model.history["train_loss"].to_numpy()[:1],
        latent=model.get_latent_representation(),
        rna=rna,
        protein=protein,
        foreground=model.get_protein_foreground_probability(n_samples=5, return_numpy=True),
    )


def differences(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[float]:
    """Return the columns of the table: relative, or absolute of the foreground probability."""
    correlation = np.corrcoef(one["latent"].ravel(), other["latent"].ravel())[0, 1]
    return [
        abs(other["first"][0] / one["first"][0] - 1),
        abs(other["loss"].min() / one["loss"].min() - 1),
        1 - correlation,
        float(np.median(np.abs(other["protein"] / one["protein"] - 1))),
        float(np.median(np.abs(other["foreground"] - one["foreground"]))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit is not None:
        fit(options.fit[0], Path(options.fit[1]))
        return
    lines = [
        "# Numbers of threads",
        "",
        "`python benchmarks/threads.py`: the same fit (CPU, float32) with several threads, compared "
        "with one thread, on a machine of "
        f"{os.cpu_count()} cores. Differences are relative; for the latent space they are "
        "1 - correlation, and for the foreground probability absolute. They are "
        "medians over all cells and proteins.",
        "",
        "| fit | threads | loss of the first epoch | lowest held-out loss | latent space | "
        "denoised protein | foreground probability |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in FITS.items():
            made = []
            for i, n_threads in enumerate(THREADS):
                file = Path(folder) / f"{name}{i}.npz"
                counts = {"OMP_NUM_THREADS": str(n_threads), "NUMBA_NUM_THREADS": str(n_threads)}
                counts["OMP_WAIT_POLICY"] = "PASSIVE"
                subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--fit", name, str(file)],
                    env=os.environ | counts,
                    check=True,
                )
                made.append(dict(np.load(file)))
                if i:
                    figures = " | ".join(f"{d:.1g}" for d in differences(made[0], made[-1]))
                    size = f"{name}, {sizes['n_cells']:,} cells"
                    again = " again" if n_threads == 1 else ""
                    lines.append(f"| {size} | {n_threads}{again} | {figures} |")
                    print(lines[-1], flush=True)
    (RESULTS / "threads.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
