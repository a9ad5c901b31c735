"""Several processes that work on one thing: how many, which one this is, how they are launched.

Each runs the same program from its start; `torchrun`, `fabric run`, SLURM's `srun` or
`launch(devices=2)` start them. What they share goes through the default group of torch.distributed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from totalvi.errors import ProcessError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_WAIT = timedelta(hours=2)  # for a process that reads, selects genes or writes while others wait


class Place(NamedTuple):
    """Which process this is.

    Parameters
    ----------
    rank
        Its number, from 0.
    n_processes
        How many there are.
    """

    rank: int = 0
    n_processes: int = 1

    def part(self, n: int) -> slice:
        """Return which of ``n`` things that lie in a row are this process's own.

        Examples
        --------
        >>> [Place(rank, 3).part(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(n * self.rank // self.n_processes, n * (self.rank + 1) // self.n_processes)

    def part_of_chunks(self, n: int, size: int) -> slice:
        """Return the same of ``n`` things that stay together in chunks of ``size``.

        Examples
        --------
        >>> [Place(rank, 2).part_of_chunks(2500, 1000) for rank in range(2)]
        [slice(0, 1000, None), slice(1000, 2500, None)]
        """
        chunks = self.part(-(-n // size))
        return slice(chunks.start * size, min(chunks.stop * size, n))


class _Launcher(NamedTuple):
    name: str
    devices: int  # processes on this machine
    num_nodes: int


def place() -> Place:
    """Return which of the processes that have been launched this one is."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return Place()
    return Place(distributed.get_rank(), distributed.get_world_size())


def place_in(fabric: "Fabric") -> Place:
    """Return which of a Fabric's processes this one is."""
    return Place(fabric.global_rank, fabric.world_size)


def barrier() -> None:
    """Wait until all processes are here."""
    if place().n_processes > 1:
        import torch.distributed

        torch.distributed.barrier()


@contextmanager
def first_alone() -> Iterator[bool]:
    """Give whether this process is the first, which alone does what the block is for; others wait."""
    yield place().rank == 0
    with losing_others():
        barrier()


def make_fabric(
    accelerator: str = "auto",
    devices: int | None = None,
    num_nodes: int = 1,
    precision: Any = "32-true",
) -> "Fabric":
    """Return a Fabric of the processes asked for, or else of those that a launcher has started.

    Parameters
    ----------
    accelerator, precision
        As in Lightning Fabric.
    devices, num_nodes
        Processes on each machine, and machines. None: those of the launcher; without one, 1.

    Raises
    ------
    ValueError
        When they contradict the launcher, or cannot be launched from here.
    """
    from lightning_fabric import Fabric  # takes seconds to load
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )
    from lightning_fabric.strategies import DDPStrategy

    for name, value in (("devices", devices), ("num_nodes", num_nodes)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (value is None and name == "devices"):
            raise ValueError(f"{name} is {value!r}; allowed are whole numbers from 1.")
    found = _launcher()
    if found is None:
        found = _Launcher("", devices or 1, num_nodes)
    elif devices == 1 and num_nodes == 1:
        found = _Launcher("", 1, 1)
    elif (devices or found.devices) != found.devices or num_nodes not in (1, found.num_nodes):
        raise ValueError(
            f"devices={devices}, num_nodes={num_nodes}, but {found.name} has started {found.devices} "
            f"processes on each of {found.num_nodes} machines; leave the arguments out."
        )
    count = found.devices * found.num_nodes
    if count == 1:
        return Fabric(
            accelerator=accelerator, devices=1, precision=precision, plugins=LightningEnvironment()
        )
    if not found.name and hasattr(sys, "ps1"):
        raise ValueError(
            f"devices is {devices} in an interactive session, which other processes cannot repeat; "
            "run a script, or `totalvi train --devices`."
        )
    environments = {
        "torchrun": TorchElasticEnvironment,
        "SLURM": lambda: SLURMEnvironment(auto_requeue=False),
    }
    try:
        environment: Any = environments.get(found.name, LightningEnvironment)()
    except RuntimeError as error:  # says which option of SLURM is missing
        raise ValueError(f"{found.name} did not say what it started: {error}") from error
    strategy = DDPStrategy(
        cluster_environment=environment, timeout=_WAIT, broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )  # fmt: skip
    return Fabric(
        accelerator=accelerator, devices=found.devices, num_nodes=found.num_nodes,
        strategy=strategy, precision=precision,
    )  # fmt: skip


def launch(
    accelerator: str = "auto",
    devices: int | None = None,
    num_nodes: int = 1,
    precision: Any = "32-true",
) -> "Fabric":
    """Return the Fabric of `make_fabric` once all of its processes are there."""
    if devices is None and place().n_processes > 1 and _launcher() is None:
        raise ValueError("devices is missing, but processes have been launched; give it each time.")
    fabric = make_fabric(accelerator, devices, num_nodes, precision)
    if os.environ.get("LT_CLI_USED") != "1":  # `fabric run` has made sure of the others
        with losing_others():
            fabric.launch()
    return fabric


@contextmanager
def losing_others() -> Iterator[None]:
    """Say in one sentence that another process has ended, where the block waits for it.

    Raises
    ------
    ProcessError
        When that is so.
    """
    try:
        yield
    except RuntimeError as error:
        if place().n_processes == 1 or not _is_of_connection(error):
            raise
        raise ProcessError(
            "Another process of this fit ended, or cannot be reached; see what it said, and go on "
            "from the checkpoint."
        ) from error


def _is_of_connection(error: RuntimeError) -> bool:
    import torch.distributed

    texts = ("gloo", "Connection closed", "Connection reset", "NCCL", "timed out", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or any(t in str(error) for t in texts)


def require_equal(value: str, what: str) -> None:
    """Raise ProcessError when processes have different texts for ``what``."""
    where = place()
    if where.n_processes == 1:
        return
    import torch
    import torch.distributed

    own = torch.frombuffer(bytearray(sha256(value.encode()).digest()), dtype=torch.uint8)
    digests = [own.new_empty(len(own)) for _ in range(where.n_processes)]
    torch.distributed.all_gather(digests, own)
    for rank, digest in enumerate(digests):
        if not torch.equal(digest, digests[0]):
            raise ProcessError(
                f"Process {rank} has another {what} than process 0; give all processes the same "
                "files and arguments."
            )


def _launcher() -> _Launcher | None:
    """Return what has started several processes, by what it says in the environment."""

    def number(name: str) -> int:
        return int(os.environ.get(name, "1").split("(")[0])

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _Launcher("torchrun", number("LOCAL_WORLD_SIZE"), number("GROUP_WORLD_SIZE"))
    n_tasks = number("SLURM_STEP_NUM_TASKS")  # there only under srun
    if n_tasks > 1 and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        n_nodes = number("SLURM_STEP_NUM_NODES")
        return _Launcher("SLURM", n_tasks // n_nodes, n_nodes)
    return None
