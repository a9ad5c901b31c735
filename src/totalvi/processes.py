"""Several processes that fit or query together.

Each process runs the same program from its start. `torchrun`, `fabric run`, SLURM's `srun` or
`launch(devices=2)` start them. They exchange data through the default group of torch.distributed.
"""

import inspect
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from totalvi.errors import LostProcessError, ProcessError, allowed, argument, setting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The longest wait while one process reads, selects genes or writes.
_WAIT = timedelta(hours=2)
_GRACE_S = 10  # seconds that a process has to notice by itself that its parent died


class Process(NamedTuple):
    """The number of this process among several.

    Parameters
    ----------
    rank
        Its number, from 0.
    n_processes
        Number of processes.
    """

    rank: int = 0
    n_processes: int = 1

    def part(self, n: int) -> slice:
        """Return the slice of ``n`` items in a row that belongs to this process.

        Examples
        --------
        >>> [Process(rank, 3).part(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(n * self.rank // self.n_processes, n * (self.rank + 1) // self.n_processes)

    def part_of_chunks(self, n: int, size: int) -> slice:
        """Return the slice of ``n`` items that belongs to this process, in whole chunks of ``size``.

        Examples
        --------
        >>> [Process(rank, 2).part_of_chunks(2500, 1000) for rank in range(2)]
        [slice(0, 1000, None), slice(1000, 2500, None)]
        """
        chunks = self.part(-(-n // size))
        return slice(chunks.start * size, min(chunks.stop * size, n))


class _Launcher(NamedTuple):
    name: str
    devices: int  # processes on this machine
    num_nodes: int


def this_process() -> Process:
    """Return the number of this process among those that have been launched."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return Process()
    return Process(distributed.get_rank(), distributed.get_world_size())


def process_of(fabric: "Fabric") -> Process:
    """Return the number of this process among those of a Fabric."""
    return Process(fabric.global_rank, fabric.world_size)


def launch(accelerator: str = "auto", devices: int | None = None, num_nodes: int = 1) -> "Fabric":
    """Return the Fabric of `make_fabric` once all of its processes have started.

    Raises
    ------
    ProcessError
        When they cannot be launched, or do not find each other.
    """
    fabric = make_fabric(accelerator, devices, num_nodes)
    before = this_process()
    if before.n_processes > 1 and fabric.world_size != before.n_processes:
        raise ProcessError(
            f"{argument('devices')} is {devices}, but this is one of {before.n_processes} "
            "processes that have been launched; give the same number each time."
        )
    try:
        if os.environ.get("LT_CLI_USED") != "1":  # `fabric run` has started the other processes
            fabric.launch()
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise ProcessError(f"The processes did not find each other: {reason}.") from error
    launcher = _launcher()
    watched = bool(fabric.local_rank) if launcher is None else launcher.name == "torchrun"
    if before.n_processes < fabric.world_size and watched:
        end_with_parent()
    return fabric


def make_fabric(
    accelerator: str = "auto", devices: int | None = None, num_nodes: int = 1
) -> "Fabric":
    """Return a Fabric of the given number of processes, or of those that a launcher has started.

    Parameters
    ----------
    accelerator
        As in Lightning Fabric.
    devices, num_nodes
        Number of processes on each machine, and of machines. None: those of the launcher, else 1.

    Raises
    ------
    ProcessError
        When they contradict the launcher, or cannot be launched from here.
    """
    from lightning_fabric import Fabric  # its import takes seconds
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    wanted = _wanted(devices, num_nodes)
    options: dict[str, Any] = {"accelerator": accelerator, "precision": "32-true"}
    try:
        if wanted.devices * wanted.num_nodes == 1:
            return Fabric(devices=1, plugins=LightningEnvironment(), **options)
        strategy = DDPStrategy(
            cluster_environment=_environment(wanted),
            process_group_backend=_backend(accelerator),
            timeout=_WAIT,
            gradient_as_bucket_view=True,
            **_buffers_of_each(),
        )
        return Fabric(
            devices=wanted.devices, num_nodes=wanted.num_nodes, strategy=strategy, **options
        )
    except MisconfigurationException as error:  # there are too few GPUs
        reason = str(error).rstrip(".")
        raise ProcessError(f"{argument('devices')} is {wanted.devices}: {reason}.") from error


def _wanted(devices: int | None, num_nodes: int) -> _Launcher:
    """Return the number of processes to use, and their launcher; "" if they are not started yet."""
    for name, value in (("devices", devices), ("num_nodes", num_nodes)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (value is None and name == "devices"):
            raise ProcessError(allowed(name, value, "whole numbers from 1"))
    found = _launcher()
    if devices == num_nodes == 1:
        return _Launcher("", 1, 1)
    if found is not None:
        if devices in (None, found.devices) and num_nodes in (1, found.num_nodes):
            return found
        raise ProcessError(
            f"{setting('devices', devices)}, {setting('num_nodes', num_nodes)}, but {found.name} has "
            f"started {found.devices} processes on each of {found.num_nodes} machines; "
            "leave the arguments out."
        )
    if devices is None and num_nodes == 1 and this_process().n_processes > 1:
        raise ProcessError(
            f"{argument('devices')} is missing, but processes have been launched; give it again."
        )
    wanted = _Launcher("", devices or 1, num_nodes)
    if num_nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= {*os.environ}:
        raise ProcessError(
            f"{argument('num_nodes')} is {num_nodes}, but nothing tells the machines of each other; "
            "start them with torchrun or srun, or set MASTER_ADDR and NODE_RANK on each."
        )
    interactive = hasattr(sys, "ps1") or sys.argv[0] in ("", "-", "-c")
    if wanted.devices * num_nodes > 1 and interactive:
        raise ProcessError(
            f"{argument('devices')} is {devices} in an interactive session, which other processes "
            "cannot repeat; run a script, or `totalvi train --devices`."
        )
    return wanted


def _launcher() -> _Launcher | None:
    """Return the name of the launcher of several processes, from environment variables."""

    def number(name: str) -> int:
        return int(os.environ.get(name, "1").split("(")[0])

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _Launcher("torchrun", number("LOCAL_WORLD_SIZE"), number("GROUP_WORLD_SIZE"))
    n_tasks = number("SLURM_STEP_NUM_TASKS")  # srun sets it, sbatch does not
    if n_tasks > 1 and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        n_nodes = number("SLURM_STEP_NUM_NODES")
        return _Launcher("SLURM", n_tasks // n_nodes, n_nodes)
    return None


def _environment(wanted: _Launcher) -> Any:
    from lightning_fabric.plugins import environments

    if wanted.name == "torchrun":
        return environments.TorchElasticEnvironment()
    if not wanted.name:
        return environments.LightningEnvironment()
    try:
        return environments.SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:  # it names the missing option of SLURM
        reason = str(error).rstrip(".")
        raise ProcessError(f"SLURM did not say what it started: {reason}.") from error


def _backend(accelerator: str) -> str:
    """Return the backend that exchanges tensors: NCCL for GPUs, gloo otherwise."""
    import torch

    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "cpu:gloo,cuda:nccl" if on_gpu else "gloo"


def _buffers_of_each() -> dict[str, bool]:
    """Return the option that avoids sending buffers at each step, as all processes have the same."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}


def end_with_parent(parent: int | None = None, grace_s: float = _GRACE_S) -> None:
    """End this process some seconds after its parent ended, even while it waits.

    Parameters
    ----------
    parent
        Number of the parent's process. None: of that which there is now.
    """
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="totalvi-parent").start()


# ------------------------------------------------------------------------- waiting for each other


def barrier() -> None:
    """Wait until all processes have arrived.

    Raises
    ------
    ProcessError
        When one of them ended.
    """
    largest_of_all(0)


def largest_of_all(value: int) -> int:
    """Return the largest of the values of all processes."""
    if this_process().n_processes == 1:
        return value
    import torch

    largest = torch.tensor(value)
    with losing_others():
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


@contextmanager
def first_alone() -> Iterator[bool]:
    """Yield whether this process is the first, which alone runs the work of the block; others wait.

    Raises
    ------
    ProcessError
        In the other processes, when the first failed.
    """
    try:
        yield this_process().rank == 0
    except BaseException:
        with suppress(ProcessError):  # report the error of the block
            largest_of_all(1)
        raise
    if largest_of_all(0):
        raise ProcessError("Another process could not do its part; see what it said.")


@contextmanager
def losing_others() -> Iterator[None]:
    """Turn the errors of a block that waits for another process into one sentence if that ended.

    Raises
    ------
    ProcessError
        When another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if this_process().n_processes == 1 or not _is_of_connection(error):
            raise
        raise LostProcessError(
            "Another process ended, or cannot be reached; see what it said, and start again: a fit "
            "resumes from its checkpoint."
        ) from error


def _is_of_connection(error: RuntimeError) -> bool:
    import torch

    texts = ("gloo", "Connection closed", "Connection reset", "NCCL", "timed out", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or any(t in str(error) for t in texts)


def require_equal(value: str, what: str) -> None:
    """Raise ProcessError when processes have different texts for ``what``."""
    process = this_process()
    if process.n_processes == 1:
        return
    import torch

    own = torch.frombuffer(bytearray(sha256(value.encode()).digest()), dtype=torch.uint8)
    digests = [own.new_empty(len(own)) for _ in range(process.n_processes)]
    with losing_others():
        torch.distributed.all_gather(digests, own)
    for rank, digest in enumerate(digests):
        if not torch.equal(digest, digests[0]):
            raise ProcessError(
                f"Process {rank} has another {what} than process 0; give all processes the same "
                "files and arguments."
            )
