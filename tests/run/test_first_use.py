"""Loops are compiled in a second process only where no run compiled them, and then those of its end."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from totalvi.run import first_use
from totalvi.run.first_use import are_compiled, compiling_beside

NEW = """
import gc, pathlib, sys, warnings
from numba.core.dispatcher import Dispatcher
import totalvi
from totalvi.run.run import run
warnings.simplefilter("ignore")
data = totalvi.simulate(n_cells=400, n_genes=150, n_proteins=9, n_batches=2, seed=1)
run(data, pathlib.Path(sys.argv[1]), batch_key="batch", max_epochs=1, progress=False)
ours = [x for x in gc.get_objects() if isinstance(x, Dispatcher)]
ours = [x for x in ours if x.py_func.__module__.startswith("totalvi")]
print(sum(sum(x.stats.cache_hits.values()) for x in ours) > 0)
missed = {x.py_func for x in ours if x.stats.cache_misses}
print(sorted({x.__module__ for x in missed if not x.__module__.startswith("totalvi.nn.cpu.")}))
print(any(x.__name__ == "_activate" for x in missed), any("integral" in x.__name__ for x in missed))
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    processes, real = [], subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(real(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(first_use, "are_compiled", lambda: False)
    return processes


def test_the_other_process_ends_with_the_block(started: list[subprocess.Popen[bytes]]) -> None:
    running = []

    def work() -> None:
        with compiling_beside():
            running.extend(process.poll() is None for process in started)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert running == [True]
    assert started[0].poll() is not None


@pytest.mark.parametrize("reason", ["one processor", "compiled", "several processes"])
def test_nothing_is_started_where_it_cannot_help(
    reason: str, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "one processor":
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
    elif reason == "compiled":
        monkeypatch.setattr(first_use, "are_compiled", lambda: True)
    else:
        process = first_use.this_process()._replace(n_processes=2)
        monkeypatch.setattr(first_use, "this_process", lambda: process)
    with compiling_beside():
        assert started == []


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_after_compiling_ahead_a_run_compiles_at_most_the_steps_of_its_fit(
    beside: bool, tmp_path: Path
) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    check = [
        sys.executable,
        "-c",
        "from totalvi.run import first_use; print(first_use.are_compiled())",
    ]

    def answer(command: list[str]) -> list[str]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert answer(check) == ["False"]
    answer([sys.executable, "-m", "totalvi.run.first_use", *([str(os.getpid())] if beside else [])])
    assert answer(check) == ["True"]
    assert answer([sys.executable, "-c", NEW, str(tmp_path / "run")]) == [
        "True",
        "[]",
        f"{beside} False",
    ]


def test_loops_that_cannot_be_kept_need_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from totalvi.posterior.differential import effects

    loop: Any = effects._summarize
    stats = loop.__wrapped__.stats._replace(cache_path=None)
    monkeypatch.setattr(type(loop.__wrapped__), "stats", stats)
    assert are_compiled()


PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "totalvi.run.first_use", str(os.getpid())])
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_second_process_ends_with_one_that_was_killed() -> None:
    killed = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True)
    child = Path("/proc") / killed.stdout.strip()
    deadline = time.monotonic() + 30
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
