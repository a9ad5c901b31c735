"""The training loop."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from totalvi.data.cells import CiteData
from totalvi.errors import ProcessError, TrainingError
from totalvi.fit.batches import WINDOW, CountsOnDevice, counts_on_device, minibatches
from totalvi.fit.checkpoint import Checkpoints, Keeper, State
from totalvi.fit.memory import explained, free_memory, memory_use, require_room
from totalvi.fit.plan import TrainingPlan, autocast_precision, resolve_precision, wide_products
from totalvi.fit.split import Split
from totalvi.fit.state import Course, MeanTerms
from totalvi.fit.step import Stepper, noted_signals, samples_of, sums_of, terms_of
from totalvi.nn.cpu.dispatch import threads_of_torch
from totalvi.nn.v06 import TOTALVI
from totalvi.processes import Process, launch, losing_others, make_fabric, process_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

OnEpoch = Callable[[int, dict[str, float]], None]


@contextmanager
def epoch_progress(n_epochs: int, show: bool | None) -> Iterator[OnEpoch | None]:
    """Give a function that shows each finished epoch: bar, rate, time left, losses.

    Parameters
    ----------
    n_epochs
        Epochs to come, at most.
    show
        Whether to show anything; None: only when standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=n_epochs, rate="", losses="")

        def on_epoch(_epoch: int, row: dict[str, float]) -> None:
            losses = f"loss {row['train_loss']:.1f}"
            if "validation_loss" in row:
                losses += f", held out {row['validation_loss']:.1f}"
            rate = f"{1 / max(row['seconds'], 1e-9):.2f} epochs/s"
            bar.update(task, advance=1, rate=rate, losses=losses)

        yield on_epoch


_VALIDATION_BATCH_SIZE = 1024


class Fit(NamedTuple):
    """What a fit leaves besides the weights.

    Parameters
    ----------
    history
        One row an epoch: losses by cell, their parts, KL weight, learning rate, seconds.
    best_epoch
        The epoch whose weights the module has.
    stopped
        Why training ended.
    n_skipped_steps
        Steps left out because their loss or gradient was not finite.
    precision
        Of the products, once "auto" is decided.
    """

    history: pd.DataFrame
    best_epoch: int
    stopped: str
    n_skipped_steps: int
    precision: str


def fit(
    module: TOTALVI,
    data: CiteData,
    split: Split,
    plan: TrainingPlan,
    seed: np.random.SeedSequence,
    on_epoch: OnEpoch | None = None,
    checkpoints: Checkpoints | None = None,
    start: State | None = None,
    devices: int | None = None,
    num_nodes: int = 1,
) -> Fit:
    """Train ``module`` in place, and leave it with the weights of the lowest validation loss.

    Several processes share each minibatch: each takes its part of the cells, batch normalisation and
    gradients are those of all, and all end with the same weights. See ``docs/scaling.md``.

    Parameters
    ----------
    module
        The network.
    data, split
        All cells, and which of them train and validate.
    plan
        The numbers of the fit.
    seed
        Source of all that is random: order of cells, samples, dropout.
    on_epoch
        Called after each epoch with its number and its row of the history; at the start with those
        of the epochs that came before ``start``.
    checkpoints
        Where and when to write checkpoints, the last one at the end. SIGINT and SIGTERM then end
        the fit after a step, with a checkpoint.
    start
        Of a checkpoint of this fit: where to go on.
    devices, num_nodes
        Processes on each machine, and machines: see `totalvi.processes.launch`.

    Raises
    ------
    TrainingError
        When too many steps in a row are not finite.
    Interrupted
        When a signal came, and there are ``checkpoints``.
    ProcessError
        When another process of the fit ended.
    """
    plan = resolved_plan(plan, module, devices, num_nodes)
    precision = autocast_precision(plan.precision, module, torch.device(plan.accelerator))
    fabric = launch(plan.accelerator, devices, num_nodes, precision)
    with threads_of_torch(), losing_others():
        return _fit(fabric, module, data, split, plan, seed, on_epoch, checkpoints, start)


def resolved_plan(
    plan: TrainingPlan, module: TOTALVI, devices: int | None = None, num_nodes: int = 1
) -> TrainingPlan:
    """Return the plan with the device and precision that "auto" means on this machine."""
    device = make_fabric(plan.accelerator, devices, num_nodes).device
    precision = resolve_precision(plan.precision, module, device)
    return replace(plan, accelerator=device.type, precision=precision)


def _fit(
    fabric: "Fabric",
    module: TOTALVI,
    data: CiteData,
    split: Split,
    plan: TrainingPlan,
    seed: np.random.SeedSequence,
    on_epoch: OnEpoch | None,
    checkpoints: Checkpoints | None,
    start: State | None,
) -> Fit:
    order_seed, sample_seed, validation_seed = seed.spawn(3)
    process = process_of(fabric)
    shared_by = process if process.n_processes > 1 else None
    smallest = len(split.train) // math.ceil(len(split.train) / plan.batch_size)
    if smallest < process.n_processes:
        raise ProcessError(
            f"batch_size is {plan.batch_size}, too few for {process.n_processes} processes with a "
            "cell each; raise it, or use fewer."
        )
    course = Course(np.random.default_rng(order_seed))
    held_out, held_out_cells = data, split.validation
    if data.on_disk:  # read once, not every epoch
        held_out, held_out_cells = _read(data, split.validation)
    training, training_cells = data, split.train
    if data.on_disk and len(split.train) <= WINDOW:  # which would be in memory all the time
        training, training_cells = _read(data, split.train)
    room: AbstractContextManager[None] = nullcontext()
    held = None
    if fabric.device.type == "cuda":
        room, held = _plan_memory(module, training, plan, fabric, show=on_epoch is not None)
    stepper = Stepper(fabric, module, plan, len(split.train), sample_seed)
    if start is not None:
        course.restore(start, fabric.device)
        stepper.restore(start)
        if on_epoch is not None:
            for epoch, row in enumerate(course.rows):
                on_epoch(epoch, row)
    with room, _keeper(checkpoints, course, stepper, process) as keeper:
        while not course.stopped:
            started = time.perf_counter() - course.seconds_in_epoch
            batches = minibatches(
                training, module, training_cells, plan.batch_size, course.order, fabric.device,
                course.steps_in_epoch, shared_by, held,
            )  # fmt: skip
            with wide_products(module, plan.precision):
                row = stepper.epoch(course, batches, keeper)
            if len(split.validation):
                row |= evaluate(
                    module, held_out, held_out_cells, validation_seed, fabric.device, shared_by
                )
            stepper.agree_on_signals()
            row["kl_weight"] = stepper.kl_weight()
            row["learning_rate"] = stepper.learning_rate()
            row["seconds"] = time.perf_counter() - started
            _end_epoch(course, row, plan, module)
            if on_epoch is not None:
                on_epoch(len(course.rows) - 1, row)
            if keeper is not None:
                keeper.after_epoch(len(course.rows), last=bool(course.stopped))
    best = course.best
    if best.state is not None:
        module.load_state_dict(best.state)
    elif len(split.validation):
        raise TrainingError(
            f"After epoch {len(course.rows) - 1} no validation loss was finite; lower the learning "
            "rate, or check the counts with `totalvi check`."
        )
    module.cpu().eval()
    n_epochs = len(course.rows)
    history = pd.DataFrame(course.rows, index=pd.RangeIndex(n_epochs, name="epoch"))
    best_epoch = best.epoch if best.state else n_epochs - 1
    return Fit(history, best_epoch, course.stopped, course.skipped.total, plan.precision)


def _read(data: CiteData, cells: np.ndarray) -> tuple[CiteData, np.ndarray]:
    """Return cells of data on disk in memory, and their positions there."""
    return data.in_memory(cells), np.arange(len(cells))


def _plan_memory(
    module: TOTALVI, data: CiteData, plan: TrainingPlan, fabric: "Fabric", *, show: bool
) -> tuple[AbstractContextManager[None], CountsOnDevice | None]:
    """Return what explains too little memory, and the counts on the GPU where it has room for them.

    Raises
    ------
    TrainingError
        When minibatches do not fit.
    """
    n_own = math.ceil(plan.batch_size / fabric.world_size)
    memory = memory_use(module, data, free_memory(fabric.device))
    require_room(memory, n_own)
    if show:
        sys.stderr.write(f"{memory.sentence(n_own)}\n")
    with explained(memory, n_own):
        held = counts_on_device(data, fabric.device) if memory.holds_counts(n_own) else None
    return explained(memory, n_own), held


def _end_epoch(course: Course, row: dict[str, float], plan: TrainingPlan, module: TOTALVI) -> None:
    """Note a finished epoch, its weights if they are the best, and whether it was the last."""
    epoch = len(course.rows)
    course.rows.append(row)
    course.begin_epoch()
    last = epoch + 1 == plan.max_epochs
    if last:
        course.stopped = f"all {plan.max_epochs} epochs done"
    if "validation_loss" in row and (row["kl_weight"] >= 1 or last):
        course.best.offer(row["validation_loss"], epoch, module)
        if plan.patience is not None and epoch - course.best.epoch >= plan.patience:
            course.stopped = f"no lower validation loss for {plan.patience} epochs"


@contextmanager
def _keeper(
    checkpoints: Checkpoints | None, course: Course, stepper: "Stepper", process: Process
) -> Iterator[Keeper | None]:
    """Give what writes the checkpoints; signals are noted for it meanwhile.

    Of several processes the first writes, and all end after the same step: when all know of the signal.
    """
    if checkpoints is None:
        yield None
        return

    def state() -> State:
        (course_values, course_tensors), (values, tensors) = course.state(), stepper.state()
        return State(course_values | values, course_tensors | tensors)

    with noted_signals() as signals:
        known = signals if process.n_processes == 1 else []
        stepper.signals, stepper.known_signals = signals, known
        yield Keeper(checkpoints, state, known, process)


def evaluate(
    module: TOTALVI,
    data: CiteData,
    cells: np.ndarray,
    seed: np.random.SeedSequence,
    device: torch.device | str = "cpu",
    process: Process | None = None,
) -> dict[str, float]:
    """Return the losses of ``cells`` by cell, at full KL weight, from the same samples every time.

    Several processes each take a part of the cells; all return the losses of all.
    """
    was_training = module.training
    module.eval()
    mean = MeanTerms()
    samples = samples_of(seed, device, process)
    with torch.no_grad():
        for batch in minibatches(
            data, module, cells, _VALIDATION_BATCH_SIZE, device=device, process=process
        ):
            if len(batch.cells):
                mean.add(sums_of(terms_of(module.elbo, batch, samples)), len(batch.cells))
    if process is not None:
        mean.add_up(device)
    module.train(was_training)
    return mean.row("validation")
