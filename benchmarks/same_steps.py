"""The time of a training step, from the end of one to the end of the next.

It also has the processor time, on which other programs on the machine have less influence.
"""

import json
import time
import warnings

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from torch.optim.optimizer import register_optimizer_step_post_hook

import totalvi

N_CELLS, N_PROTEINS, BATCH_SIZE = 2560, 30, 256
CASES = [(n_genes, likelihood) for n_genes in (2000, 4000) for likelihood in ("nb", "zinb")]


def time_steps(n_repetitions: int) -> None:
    """Print a JSON line for each repetition of each case; the cases take turns."""
    warnings.simplefilter("ignore")
    data = {n_genes: _counts(n_genes) for n_genes, _ in CASES}
    for case in CASES:
        _milliseconds(data[case[0]], case[1], 1)  # compiles
    for repetition in range(n_repetitions):
        for n_genes, likelihood in CASES:
            wall, work = _milliseconds(data[n_genes], likelihood, 4)
            line = {"genes": n_genes, "likelihood": likelihood, "repetition": repetition}
            line |= {"median_ms": wall, "median_processor_ms": work}
            print(json.dumps(line), flush=True)


def _milliseconds(mdata: MuData, likelihood: str, n_epochs: int) -> list[float]:
    """Return the median time of a step, and of the processor in it, by torch's notice of a step."""
    ends: list[tuple[float, float]] = []
    notice = register_optimizer_step_post_hook(
        lambda *_: ends.append((time.perf_counter(), time.process_time()))
    )
    try:
        model = totalvi.Model(mdata, gene_likelihood=likelihood)
        model.train(n_epochs, batch_size=BATCH_SIZE, accelerator="cpu", progress=False)
    finally:
        notice.remove()
    return [round(1000 * float(value), 3) for value in np.median(np.diff(ends, axis=0), axis=0)]


def _counts(n_genes: int) -> MuData:
    """Return random counts, of which nine in ten of the RNA are zero."""
    rng = np.random.default_rng(0)
    rna = rng.poisson(rng.gamma(0.1, 1.0, n_genes), (N_CELLS, n_genes)).astype(np.float32)
    protein = rng.poisson(rng.gamma(2.0, 20.0, N_PROTEINS), (N_CELLS, N_PROTEINS))
    return MuData(
        {"rna": AnnData(sparse.csr_matrix(rna)), "prot": AnnData(protein.astype(np.float32))}
    )
