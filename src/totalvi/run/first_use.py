"""Compile the loops of a run in a second process, where no run has compiled them before.

numba compiles loops when they are first used, and keeps them. On a new machine that takes longer than
a small run. `python -m totalvi.run.first_use` compiles them ahead.
"""

import os
import subprocess  # nosec B404: the only command is this module
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from totalvi.processes import this_process


@contextmanager
def compiling_beside() -> Iterator[None]:
    """Compile the loops that come late in a run while the block begins with the early ones.

    Nothing is started where the loops are kept already, or with a single processor. The other process
    ends with the block.
    """
    alone = this_process().n_processes == 1
    if not alone or (os.cpu_count() or 1) < 2 or are_compiled():
        yield
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "totalvi.run.first_use"]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(  # nosec B603
        command, stdin=nowhere, stdout=nowhere, stderr=nowhere, env=environment
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def are_compiled() -> bool:
    """Return whether the loops of a run are kept, by one of the last, or cannot be kept."""
    from totalvi.posterior.differential.effects import _summarize

    folder = _summarize.__wrapped__.stats.cache_path  # type: ignore[attr-defined]
    return folder is None or any(Path(folder).glob("effects._summarize-*.nbc"))


def compile_loops() -> None:
    """Compile the loops of a run by a run of a few cells."""
    from totalvi.data.simulate import simulate
    from totalvi.run.run import run

    data = simulate(n_cells=300, n_genes=120, n_proteins=8, n_batches=2, seed=0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(data, Path(folder) / "run", batch_key="batch", max_epochs=1, progress=False)


if __name__ == "__main__":
    compile_loops()
