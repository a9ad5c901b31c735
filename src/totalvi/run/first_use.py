"""Compile the loops of a run in a second process, where no run has compiled them before.

numba compiles loops when they are first used, and keeps them. On a new machine that takes longer than
a small run. `python -m totalvi.run.first_use` compiles those of a run ahead, as `make venv` does.
"""

import os
import subprocess  # nosec B404: the only command is this module
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from totalvi.processes import end_with_parent, this_process


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
    command = [sys.executable, "-m", "totalvi.run.first_use", str(os.getpid())]
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

    loop = _summarize.__wrapped__  # type: ignore[attr-defined]
    folder, line = loop.stats.cache_path, loop.py_func.__code__.co_firstlineno
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"effects._summarize-{line}.{version}*.nbc"
    return folder is None or any(Path(folder).glob(name))


def compile_loops(of_steps: bool = True) -> None:
    """Compile the loops of a fit's steps, of its validation, and of what a run does after the fit.

    Those ``of_steps`` are left out beside a run, which needs them at once and compiles them itself.
    """
    from totalvi.data.simulate import simulate
    from totalvi.model import Model

    data = simulate(n_cells=300, n_genes=120, n_proteins=8, n_batches=2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Model(data, batch_key="batch", fused=of_steps)
        model.train(max_epochs=1, progress=False)
        for part in model.module.modules():
            if hasattr(part, "fused"):
                part.fused = True  # type: ignore[assignment]
        model.get_elbo(progress=False)
        latent = model.get_latent_representation(progress=False)
        model.get_normalized_expression(n_samples=2, progress=False)
        model.posterior_predictive_check(n_samples=2, progress=False)
        model.differential_expression(data, groupby="batch", progress=False)
        with suppress(ModuleNotFoundError):  # clustering needs an extra
            from totalvi.run.clusters import cluster_cells

            cluster_cells(latent)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        end_with_parent(int(sys.argv[1]), grace_s=0)  # it may have ended already
    else:
        sys.stderr.write("Compiling the loops of totalvi run; some 50 s.\n")
    compile_loops(of_steps=len(sys.argv) == 1)
