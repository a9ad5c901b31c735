"""Several processes fit what one process fits, however they are launched and whatever befalls them."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import shared_fits
import totalvi
from totalvi.data.simulate import simulate_to_zarr
from totalvi.processes import Process, make_fabric, this_process

SCRIPT = Path(shared_fits.__file__)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "panels": {"panels": True, "adversarial": True},
    "unfused": {"model": {"fused": False, "gene_likelihood": "zinb", "library": "latent"}},
    "layer": {"model": {"normalization": "layer", "gene_dispersion": "gene-batch"}},
    "uneven": {"cells": 203, "batch_size": 47},
    "half": {"precision": "bf16-mixed", "model": {"fused": False}},
    "again": {"twice": True, "max_epochs": 2},
    "mapped": {"mapped": True, "max_epochs": 2},
    "mosaic": {"mosaic": True},
    "staining level": {"model": {"staining_level": True}},
}


def environment(**more: str) -> dict[str, str]:
    """Return that of a process with one thread, whose launchers find no trace of ours."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC"))}
    return own | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **more}


def torchrun(n_processes: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(n_processes), *arguments]


def finish(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def fitted(command: list[str], out: Path, **more: str) -> dict[str, np.ndarray]:
    done = finish(command, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as found:
        return dict(found)


def alone(case: dict[str, Any]) -> dict[str, np.ndarray]:
    return shared_fits.numbers(shared_fits.fit_case(case))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All cases, fitted by 2 processes."""
    folder = tmp_path_factory.mktemp("shared")
    store = folder / "cells.zarr"
    simulate_to_zarr(store, 300, 60, 6, 2, seed=3)
    big = folder / "many.zarr"
    simulate_to_zarr(big, 3000, 60, 6, 2, seed=3)
    disk = {"zarr": str(store), "window": 64}
    asked = {"zarr": str(big), "max_epochs": 1, "batch_size": 300}
    logged = {"log": str(folder / "log"), "max_epochs": 12}
    (folder / "log").mkdir()
    cases = CASES | {"disk": disk, "asked": asked | {"out": str(folder / "two")}, "logged": logged}
    out = folder / "two.npz"
    found = fitted(torchrun(2, str(SCRIPT), str(out), json.dumps(cases)), out)
    found["disk.alone"] = alone(disk)["losses"]
    alone(asked | {"out": str(folder / "one")})
    found["folder"] = np.array(str(folder))
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes_fit_what_one_does(case: str, shared: dict[str, np.ndarray]) -> None:
    one = alone(CASES[case])
    assert shared["n_processes"] == 2
    half = CASES[case].get("precision") == "bf16-mixed"
    np.testing.assert_allclose(shared[f"{case}.losses"], one["losses"], rtol=0.03 if half else 1e-4)
    if half:  # sums of other cells are rounded to 8 bits
        return
    # Adam makes whole steps of rounding errors where a gradient is nearly 0: few weights differ more
    difference = np.abs(shared[f"{case}.weights"] - one["weights"])
    assert np.median(difference) < 1e-5
    assert np.sqrt(np.mean(difference**2)) < 2e-3


def test_two_processes_fit_from_disk_what_one_does(shared: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(shared["disk.losses"], shared["disk.alone"], rtol=1e-4)


def test_queries_of_two_processes_write_what_one_writes(shared: dict[str, np.ndarray]) -> None:
    import zarr

    folder = Path(str(shared["folder"]))
    compared = 0
    for path in sorted((folder / "one").iterdir()):
        one, two = (
            zarr.open_group(folder / which / path.name, mode="r") for which in ("one", "two")
        )
        for name in one:
            arrays = [group[name]["X"] for group in (one, two)]
            if path.name == "counts" and name == "rna":
                arrays = [array["data"] for array in arrays]
            a, b = (array[:].astype(float) for array in arrays)
            assert a.shape == b.shape
            if path.name == "counts":  # rounding errors of weights change some counts
                assert abs(a.mean() / b.mean() - 1) < 0.02
            else:
                assert np.median(np.abs(a - b)) < 1e-3 * np.abs(a).mean() + 1e-6
                assert np.isfinite(b).all()
            compared += 1
    assert compared > 12


def test_the_first_of_two_processes_logs_and_ends_the_fit(shared: dict[str, np.ndarray]) -> None:
    assert len(shared["logged.losses"]) == 2
    folder = Path(str(shared["folder"])) / "log"
    told = sorted(path.name for path in folder.glob("epoch_*"))
    assert told == ["epoch_0_of_process_0", "epoch_1_of_process_0"]
    logs = list(folder.rglob("metrics.csv"))
    assert len(logs) == 1
    np.testing.assert_allclose(
        pd.read_csv(logs[0])[["train_loss", "validation_loss"]], shared["logged.losses"]
    )


@pytest.mark.slow
def test_three_processes_that_a_script_launches(
    tmp_path: Path, shared: dict[str, np.ndarray]
) -> None:
    out = tmp_path / "three.npz"
    few = {"devices": 3, "cells": 50, "train_size": 0.96}  # two cells validate
    cases = {"plain": {"devices": 3}, "few": few}
    found = fitted([sys.executable, str(SCRIPT), str(out), json.dumps(cases)], out)
    assert found["n_processes"] == 3
    np.testing.assert_allclose(found["plain.losses"], shared["plain.losses"], rtol=1e-4)
    one = alone({**few, "devices": None})
    np.testing.assert_allclose(found["few.losses"], one["losses"], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("click") is None, reason="`fabric run` needs click")
def test_fabric_run(tmp_path: Path, shared: dict[str, np.ndarray]) -> None:
    out = tmp_path / "fabric.npz"
    command = [sys.executable, "-c", "from lightning_fabric.cli import _main; _main()", "run"]
    command += ["--devices", "2", "--main-port", str(_free_port()), str(SCRIPT)]
    found = fitted([*command, str(out), json.dumps({"plain": {}})], out)
    assert found["n_processes"] == 2
    assert np.array_equal(found["plain.weights"], shared["plain.weights"])


def test_slurm_starts_the_processes(tmp_path: Path, shared: dict[str, np.ndarray]) -> None:
    out, port = tmp_path / "slurm.npz", _free_port()
    command = [sys.executable, str(SCRIPT), str(out), json.dumps({"plain": {}})]
    running = [
        subprocess.Popen(command, env=environment(**_srun(rank, 2, port)), stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()[-3000:]
    with np.load(out) as found:
        assert found["n_processes"] == 2
        assert np.array_equal(found["plain.weights"], shared["plain.weights"])


def _srun(rank: int, n_tasks: int, port: int) -> dict[str, str]:
    """Return what `srun` sets for a task on one node."""
    values = {
        "STEP_NUM_TASKS": n_tasks, "STEP_NUM_NODES": 1, "NTASKS": n_tasks,
        "NTASKS_PER_NODE": n_tasks, "NNODES": 1, "JOB_ID": 4711, "JOB_NAME": "fit", "NODEID": 0,
        "PROCID": rank, "LOCALID": rank, "NODELIST": "localhost",
    }  # fmt: skip
    slurm = {f"SLURM_{name}": str(value) for name, value in values.items()}
    return slurm | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_other_arguments_in_one_process_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "differ.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from shared_fits import fit_case\n"
        "fit_case({'max_epochs': 1 + int(os.environ['RANK'])})\n"
    )
    done = finish(torchrun(2, str(script)))
    assert done.returncode != 0
    assert "Process 1 has another data, arguments or checkpoint than process 0" in done.stderr
    text = script.read_text().replace(
        "'max_epochs': 1 + int(os.environ['RANK'])", "'checkpoint': C"
    )
    script.write_text("import os\nC = 'x' if os.environ['RANK'] == '0' else None\n" + text)
    done = finish(torchrun(2, str(script)))
    assert "Process 1 has another checkpoint than process 0" in done.stderr


# ------------------------------------------------------------------------- killed and interrupted

FIT = {"max_epochs": 12, "checkpoint_every": 1, "resume": True, "devices": 2, "batch_size": 30}


class Running:
    """A fit of two processes, the second a child of the first."""

    def __init__(self, out: Path, checkpoint: Path) -> None:
        case = {"fit": {**FIT, "checkpoint": str(checkpoint)}}
        command = [sys.executable, str(SCRIPT), str(out), json.dumps(case)]
        self.first = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.checkpoint = checkpoint

    def second(self) -> int:
        """Return the number of the second process, once the fit has a checkpoint."""
        until = time.monotonic() + 120
        while not self.checkpoint.exists():
            assert self.first.poll() is None, self.first.communicate()[1][-3000:]
            assert time.monotonic() < until
            time.sleep(0.02)
        number = self.first.pid
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        of_script = [c for c in children if SCRIPT.name in _command(int(c))]
        assert len(of_script) == 1
        return int(of_script[0])

    def end(self) -> tuple[int, str]:
        """Return the exit status and what was said."""
        said = self.first.communicate(timeout=60)[1]
        return self.first.returncode, said


def _command(number: int) -> str:
    return Path(f"/proc/{number}/cmdline").read_text()


def _is_running(number: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("whole")
    running = Running(folder / "out.npz", folder / "checkpoint")
    status, said = running.end()
    assert status == 0, said[-3000:]
    with np.load(folder / "out.npz") as found:
        return dict(found)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to find processes")
@pytest.mark.parametrize(
    ("victim", "number"),
    [
        ("second", signal.SIGKILL),
        pytest.param("second", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("first", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_one_process_ends_and_the_fit_goes_on_to_the_same_numbers(
    victim: str, number: int, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    out, checkpoint = tmp_path / "out.npz", tmp_path / "checkpoint"
    running = Running(out, checkpoint)
    second = running.second()
    started = time.monotonic()
    os.kill(second if victim == "second" else running.first.pid, number)
    status, said = running.end()
    while _is_running(second):
        assert time.monotonic() < started + 30
        time.sleep(0.05)
    assert time.monotonic() < started + 30
    assert status != 0
    assert not out.exists()
    if number == signal.SIGTERM:  # all know of it, and end after the same step
        assert "The fit got SIGTERM and stopped; it is kept in" in said
    else:  # the watcher of Fabric looks every 5 s, and kills the first process if it sees it first
        by_watcher = "terminated with code -9. Forcefully terminating all other processes" in said
        assert by_watcher or "Another process ended, or cannot be reached" in said
    status, said = Running(out, checkpoint).end()
    assert status == 0, said[-3000:]
    with np.load(out) as found:
        assert np.array_equal(found["fit.losses"], uninterrupted["fit.losses"])
        assert np.array_equal(found["fit.weights"], uninterrupted["fit.weights"])


@pytest.mark.slow
def test_a_fit_goes_on_with_another_number_of_processes(
    tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    out, checkpoint = tmp_path / "out.npz", tmp_path / "checkpoint"
    running = Running(out, checkpoint)
    os.kill(running.second(), signal.SIGKILL)
    running.end()
    one = alone({**FIT, "checkpoint": str(checkpoint), "devices": None})
    np.testing.assert_allclose(one["losses"], uninterrupted["fit.losses"], rtol=1e-2)


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again(
    tmp_path: Path, uninterrupted: dict[str, np.ndarray]
) -> None:
    out, checkpoint, died = tmp_path / "out.npz", tmp_path / "checkpoint", tmp_path / "died"
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, sys, threading, time\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import shared_fits\n"
        "def die():\n"
        f"    while not os.path.exists({str(checkpoint)!r}):\n"
        "        time.sleep(0.01)\n"
        f"    open({str(died)!r}, 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"if os.environ['RANK'] == '1' and not os.path.exists({str(died)!r}):\n"
        "    threading.Thread(target=die, daemon=True).start()\n"
        "shared_fits.main()\n"
    )
    case = {"fit": {**FIT, "checkpoint": str(checkpoint), "devices": None}}
    command = torchrun(2, str(script), str(out), json.dumps(case))
    at = command.index("--nproc-per-node")
    found = fitted([*command[:at], "--max-restarts", "2", *command[at:]], out)
    assert died.exists()
    assert np.array_equal(found["fit.weights"], uninterrupted["fit.weights"])


# ------------------------------------------------------------------------------------ the commands


@pytest.mark.slow
def test_commands_of_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    store, model = tmp_path / "cells.zarr", tmp_path / "model"
    simulate_to_zarr(store, 2500, 60, 6, 2, seed=3)
    command = [sys.executable, "-m", "totalvi"]
    done = finish(
        [*command, "train", str(store), "-o", str(model), "--batch", "batch", "--on-disk",
         "--genes", "40", "--epochs", "1", "--devices", "2", "--batch-size", "250"]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("written:") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.zarr", "model"]
    denoise = [*command, "denoise", str(model), str(store), "--samples", "2", "-o"]
    two, one = tmp_path / "two.zarr", tmp_path / "one.zarr"
    for where, options in ((two, ["--devices", "2"]), (one, [])):
        done = finish([*denoise, str(where), *options])
        assert done.returncode == 0, done.stderr[-3000:]
    import anndata

    for table in ("rna", "protein"):
        a, b = (anndata.read_zarr(path / table) for path in (one, two))
        assert a.n_obs == 2500
        assert list(a.obs_names) == list(b.obs_names)
        np.testing.assert_allclose(b.X, a.X, rtol=1e-5)
    again = finish([*denoise, str(two), "--devices", "2"])
    assert again.returncode == 2
    assert "exists already" in again.stderr
    said = [line for line in again.stderr.splitlines() if "error:" in line]
    assert len(said) == 2
    assert "process 1: error: Another process could not do its part" in again.stderr
    wrong = finish([*denoise, str(tmp_path / "x.h5mu"), "--devices", "2"])
    assert wrong.returncode == 2
    assert "is written by one process; give a name that ends in .zarr" in wrong.stderr


def test_numbers_of_processes_that_cannot_be_are_one_sentence(tmp_path: Path) -> None:
    train = ["train", str(tmp_path / "x.h5mu"), "-o", str(tmp_path / "model")]
    for options, environment_of, said in (
        (["--devices", "3"], {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2"}, "torchrun has"),
        (["--num-nodes", "2"], {}, "nothing tells the machines of each other"),
    ):
        done = finish([sys.executable, "-m", "totalvi", *train, *options], **environment_of)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_command_says_where_an_interrupted_fit_is_kept(tmp_path: Path) -> None:
    file, model = tmp_path / "cells.h5mu", tmp_path / "model"
    shared_fits.cells(300, panels=False).write(file)
    command = [sys.executable, "-m", "totalvi", "train", str(file), "-o", str(model)]
    running = subprocess.Popen(
        [*command, "--epochs", "400"], env=environment(), stderr=subprocess.PIPE, text=True
    )
    lock = tmp_path / ".model.checkpoint.lock"  # held while the fit runs
    while not lock.exists():
        assert running.poll() is None
        time.sleep(0.02)
    time.sleep(2)
    for _ in range(2):  # as from a scheduler and a launcher
        running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 143, said
    assert "model.checkpoint; go on with --resume" in said
    assert (tmp_path / "model.checkpoint").exists()


# --------------------------------------------------------------------------------------- the parts


@pytest.fixture
def launched_by(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(("n", "size"), [(0, 1), (1, 4), (10, 3), (1000, 7), (2500, 1024)])
@pytest.mark.parametrize("n_processes", [1, 2, 5])
def test_parts_are_a_partition(n: int, size: int, n_processes: int) -> None:
    places = [Process(rank, n_processes) for rank in range(n_processes)]
    for parts in ([p.part(n) for p in places], [p.part_of_chunks(n, size) for p in places]):
        assert np.array_equal(np.concatenate([np.arange(n)[part] for part in parts]), np.arange(n))
    sizes = [len(np.arange(n)[p.part(n)]) for p in places]
    assert max(sizes) - min(sizes) <= 1
    assert all(p.part_of_chunks(n, size).start % size == 0 for p in places)


def test_a_process_that_nobody_launched_is_alone(launched_by: pytest.MonkeyPatch) -> None:
    assert this_process() == Process(0, 1)
    assert make_fabric("cpu").world_size == 1


def test_a_batch_script_of_slurm_is_alone_unless_srun_starts_it(
    launched_by: pytest.MonkeyPatch,
) -> None:
    launched_by.setenv("SLURM_NTASKS", "8")  # as sbatch sets it for the script itself
    launched_by.setenv("SLURM_JOB_ID", "1")
    assert make_fabric("cpu").world_size == 1
    launched_by.setenv("SLURM_STEP_NUM_TASKS", "8")
    launched_by.setenv("SLURM_STEP_NUM_NODES", "2")
    assert make_fabric("cpu", devices=1).world_size == 1
    with pytest.raises(ValueError, match=r"SLURM did not say .* Use `--ntasks-per-node=8`"):
        make_fabric("cpu")
    with pytest.raises(ValueError, match="SLURM has started 4 processes on each of 2 machines"):
        make_fabric("cpu", devices=3)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_numbers_of_processes_are_whole(value: Any) -> None:
    with pytest.raises(ValueError, match=r"devices is .* allowed are whole numbers from 1"):
        make_fabric("cpu", devices=value)
    with pytest.raises(ValueError, match=r"num_nodes is .* allowed are whole numbers from 1"):
        make_fabric("cpu", num_nodes=value)


def test_an_interactive_session_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(ValueError, match="devices is 2 in an interactive session"):
        make_fabric("cpu", devices=2)
    monkeypatch.delattr(sys, "ps1")
    monkeypatch.setattr(sys, "argv", ["-c"])
    with pytest.raises(ValueError, match="devices is 2 in an interactive session"):
        make_fabric("cpu", devices=2)


def test_minibatches_smaller_than_the_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = totalvi.Model(
        shared_fits.cells(40, panels=False), batch_key="batch", **shared_fits.SMALL
    )
    monkeypatch.setattr("totalvi.fit.loop.process_of", lambda _: Process(0, 5))
    with pytest.raises(ValueError, match="batch_size is 4, too few for 5 processes"):
        model.train(max_epochs=1, batch_size=4, accelerator="cpu", progress=False)
