"""Loops compile whether or not a folder can be written to."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from totalvi.compiled import compiled


def refusing(message: str, compile_: Callable[..., Any] = numba.njit) -> Callable[..., Any]:
    def njit(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError(message)
        return compile_(**options)

    return njit


def twice(x: float) -> float:
    return 2 * x


def test_without_a_folder_to_write_to_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "cannot cache function 'twice': no locator available for file 'x.py'"
    with monkeypatch.context() as patch:
        patch.setattr(numba, "njit", refusing(message))
        function: Any = compiled(error_model="numpy")(twice)
    assert function(1.5) == 3
    assert function.stats.cache_path is None
    assert function.targetoptions["error_model"] == "numpy"


def test_a_loop_runs_though_it_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk of the home folder is full."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    function: Any = compiled(error_model="numpy")(twice)
    assert function(1.5) == 3
    assert not list(tmp_path.rglob("*.nbc"))


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "njit", refusing("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        compiled()(twice)


FITS = """
import hashlib, sys, warnings
import numpy as np, torch, totalvi
torch.set_num_threads(1)
data = totalvi.simulate(n_cells=200, n_genes=120, n_proteins=6, n_batches=2, seed=1)
digest = hashlib.sha256()
for likelihood in ("nb", "zinb"):
    for precision in ("32-true", "bf16-mixed"):
        model = totalvi.Model(data, batch_key="batch", gene_likelihood=likelihood, n_hidden=32)
        model.train(2, accelerator="cpu", precision=precision, progress=False)
        for value in model.module.state_dict().values():
            digest.update(value.numpy().tobytes())
        digest.update(model.get_normalized_expression(n_samples=2)[0].to_numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_what_is_compiled_and_what_is_kept_give_the_same_numbers(tmp_path: Path) -> None:
    found = set()
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FITS],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.add(done.stdout)
    assert any((tmp_path / "kept").rglob("*.nbc"))
    assert len(found) == 1


THREADS = """
import numba, torch
torch.set_num_threads(1)
import totalvi
data = totalvi.simulate(n_cells=200, n_genes=60, n_proteins=5, n_cell_types=2, seed=1)
model = totalvi.Model(data)
model.train(1, accelerator="cpu", progress=False)
data.obs["half"] = ["first"] * 100 + ["second"] * 100
model.differential_expression(groupby="half", progress=False)
print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_loops_leave_the_numbers_of_threads_as_they_were() -> None:
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", THREADS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]
