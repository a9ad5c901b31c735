"""The training loop."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed
from torch import Tensor

from totalvi.data.cite import CiteData
from totalvi.errors import TrainingError
from totalvi.feed import Minibatch, minibatches
from totalvi.module.elbo import ElboTerms, objective
from totalvi.module.fused.arrays import threads_of_torch
from totalvi.module.shared import SharedGenerator
from totalvi.module.totalvi import TOTALVI
from totalvi.on_device import CountsOnDevice, counts_on_device
from totalvi.processes import Place, launch, losing_others, make_fabric, place_in
from totalvi.training.adversary import Adversary
from totalvi.training.checkpoint import Checkpoints, Keeper, State
from totalvi.training.memory import explained, free_memory, memory_use, require_room
from totalvi.training.plan import TrainingPlan
from totalvi.training.precision import autocast_precision, resolve_precision, wide_products
from totalvi.training.progress import OnEpoch
from totalvi.training.schedule import kl_weight, learning_rate_factor
from totalvi.training.signals import OBEYED, noted_signals
from totalvi.training.split import Split
from totalvi.training.tally import NOT_FINITE, Course, MeanTerms
from totalvi.training.tensors import optimizer_tensors, part, restore_optimizer, with_prefix

if TYPE_CHECKING:
    from lightning_fabric import Fabric

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
    process = place_in(fabric)
    shared_by = process if process.n_processes > 1 else None
    smallest = len(split.train) // math.ceil(len(split.train) / plan.batch_size)
    if smallest < process.n_processes:
        raise ValueError(
            f"batch_size is {plan.batch_size}, too few for {process.n_processes} processes with a "
            "cell each; raise it, or use fewer."
        )
    course = Course(np.random.default_rng(order_seed))
    room: AbstractContextManager[None] = nullcontext()
    held = None
    if fabric.device.type == "cuda":
        room, held = _plan_memory(module, data, plan, fabric, show=on_epoch is not None)
    stepper = _Stepper(fabric, module, plan, len(split.train), sample_seed)
    held_out, held_out_cells = data, split.validation
    if data.on_disk:  # read once, not every epoch
        held_out = data.in_memory(split.validation)
        held_out_cells = np.arange(len(split.validation))
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
                data, module, split.train, plan.batch_size, course.order, fabric.device,
                course.steps_in_epoch, shared_by, held,
            )  # fmt: skip
            with wide_products(module, plan.precision):
                row = stepper.epoch(course, batches, keeper)
            if len(split.validation):
                row |= evaluate(
                    module, held_out, held_out_cells, validation_seed, fabric.device, shared_by
                )
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
    checkpoints: Checkpoints | None, course: Course, stepper: "_Stepper", process: Place
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
    process: Place | None = None,
) -> dict[str, float]:
    """Return the losses of ``cells`` by cell, at full KL weight, from the same samples every time.

    Several processes each take a part of the cells; all return the losses of all.
    """
    was_training = module.training
    module.eval()
    mean = MeanTerms()
    samples = _samples(seed, device, process)
    with torch.no_grad():
        for batch in minibatches(
            data, module, cells, _VALIDATION_BATCH_SIZE, device=device, process=process
        ):
            if len(batch.cells):
                mean.add(_sums(_terms(module.elbo, batch, samples)), len(batch.cells))
    if process is not None:
        mean.add_up(device)
    module.train(was_training)
    return mean.row("validation")


def torch_generator(
    seed: np.random.SeedSequence, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator seeded from ``seed``."""
    return torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


def _samples(
    seed: np.random.SeedSequence, device: torch.device | str, process: Place | None
) -> torch.Generator:
    """Return the source of samples of minibatches that are this process's alone, or shared."""
    whole = torch_generator(seed, device)
    if process is None:
        return whole
    shared = SharedGenerator(device)
    shared.set_state(whole.get_state())
    return shared


class _Stepper:
    """Takes the steps of a fit: schedules, gradient, clipping, refusal of what is not finite."""

    def __init__(
        self,
        fabric: "Fabric",
        module: TOTALVI,
        plan: TrainingPlan,
        n_training_cells: int,
        seed: np.random.SeedSequence,
    ) -> None:
        self.fabric, self.module, self.plan = fabric, module, plan
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)  # of losses in float16
        fused = fabric.device.type in ("cpu", "cuda") and self.scaler is None
        network, self.optimizer = fabric.setup(module, _optimizer(module, plan, fused))
        self.shared = fabric.world_size > 1
        if self.shared:  # gradients are averaged over processes for what goes through `network`
            network.mark_forward_method("elbo")
        self.elbo = network.elbo if self.shared else module.elbo
        self.samples = _samples(seed, fabric.device, place_in(fabric) if self.shared else None)
        self.signals: list[int] = []  # that this process got, and that all know of
        self.known_signals: list[int] = []
        self.adversary = _adversary(module, plan, seed, fabric.device)
        self.steps_done = 0
        self.steps_per_epoch = math.ceil(n_training_cells / plan.batch_size)

    def kl_weight(self) -> float:
        """Return the weight of the divergences at the next step."""
        return kl_weight(self.steps_done, self.plan.kl_warmup_epochs * self.steps_per_epoch)

    def learning_rate(self) -> float:
        """Return the learning rate at the next step."""
        n_steps = self.plan.max_epochs * self.steps_per_epoch
        factor = learning_rate_factor(self.steps_done, n_steps, self.plan.schedule)
        return self.plan.learning_rate * factor

    def epoch(
        self, course: Course, batches: Iterable[Minibatch], keeper: Keeper | None
    ) -> dict[str, float]:
        """Take a step for each minibatch; return the mean training loss and its terms."""
        self.module.train()
        epoch, seconds_before = len(course.rows), course.seconds_in_epoch
        started = time.perf_counter()
        watched = nullcontext() if self.adversary is None else self.adversary.watching(self.module)
        with watched:
            for batch in batches:
                taken, sums, n_cells = self.step(batch)
                course.skipped.count(taken, epoch)
                if taken:
                    course.mean.add(sums, n_cells)
                course.steps_in_epoch += 1
                course.seconds_in_epoch = seconds_before + time.perf_counter() - started
                if keeper is not None:
                    keeper.after_step()
        if course.mean.n_cells == 0:
            raise TrainingError(f"In epoch {epoch} no step {NOT_FINITE}")
        return course.mean.row("train")

    def step(self, batch: Minibatch) -> tuple[bool, Tensor, int]:
        """Take one step; change nothing when loss or gradient is not finite.

        Returns
        -------
        Whether it was taken, the sums of the terms over the cells of the minibatch, and their number.
        """
        batch_norm_state = [buffer.clone() for buffer in self.module.buffers()]
        with self.fabric.autocast():
            terms = ElboTerms(*(t.float() for t in _terms(self.elbo, batch, self.samples)))
        loss = objective(terms, self.kl_weight())
        if self.adversary is not None:
            loss = loss + self.adversary.deception(batch.context.panel)
        if batch.share is not None:  # the mean over processes of this is the mean over cells
            loss = loss * (len(batch.cells) * self.fabric.world_size / batch.share.n_cells)
        loss = loss + self.module.anchor_penalty()
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer.optimizer)
        norm = _clip_gradients(self.module, self.plan.gradient_clip_norm)
        finite, sums, n_cells = self._of_all(
            torch.isfinite(loss) & torch.isfinite(norm), _sums(terms), batch
        )
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            self.optimizer.step()
            if self.adversary is not None:
                self.adversary.step(batch.context.panel, batch.share)
        else:
            for buffer, before in zip(self.module.buffers(), batch_norm_state, strict=True):
                buffer.copy_(before)
            if self.scaler is not None:
                self.scaler.update()
        self.steps_done += 1
        return finite, sums, n_cells

    def _of_all(self, finite: Tensor, sums: Tensor, batch: Minibatch) -> tuple[bool, Tensor, int]:
        """Return whether all have finite numbers, the sums of all and their cells; note signals."""
        if batch.share is None:
            return bool(finite), sums, len(batch.cells)
        noted = [float(number in self.signals) for number in OBEYED]
        own = torch.tensor([float(not finite), *noted], device=sums.device)
        of_all = torch.cat([own, sums])
        torch.distributed.all_reduce(of_all)
        n_not_finite, *n_noted = of_all[: len(own)].tolist()
        self.known_signals += [number for number, n in zip(OBEYED, n_noted, strict=True) if n]
        return n_not_finite == 0, of_all[len(own) :], batch.share.n_cells

    def state(self) -> State:
        """Return weights, optimiser and samples."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        tensors |= with_prefix("optimizer.", optimizer_tensors(self.optimizer.optimizer))
        if self.adversary is not None:
            tensors |= with_prefix("adversary.", self.adversary.tensors())
        tensors["samples"] = self.samples.get_state()
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return State({"steps_done": self.steps_done, "scaler": scaler}, tensors)

    def restore(self, state: State) -> None:
        """Set back what `state` returned."""
        values, tensors = state
        self.module.load_state_dict(part(tensors, "module."))
        restore_optimizer(self.optimizer.optimizer, part(tensors, "optimizer."))
        if self.adversary is not None:
            self.adversary.restore(part(tensors, "adversary."))
        self.samples.set_state(tensors["samples"])
        self.steps_done = values["steps_done"]
        if self.scaler is not None:
            self.scaler.load_state_dict(values["scaler"])


def _adversary(
    module: TOTALVI, plan: TrainingPlan, seed: np.random.SeedSequence, device: torch.device
) -> Adversary | None:
    if not plan.adversary_weight:
        return None
    generator = torch_generator(seed.spawn(1)[0], device)
    return Adversary(module, plan.adversary_weight, device, generator)


def _clip_gradients(module: TOTALVI, largest_norm: float) -> Tensor:
    """Scale the gradients down to ``largest_norm`` where theirs is larger; return theirs."""
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if norm.is_cuda or norm > largest_norm:  # asking a GPU for its number would make it wait
        torch.nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    return norm


def _optimizer(module: TOTALVI, plan: TrainingPlan, fused: bool) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay on the weights of linear layers, and on nothing else."""
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_linear_weight = name.endswith("weight") and "batch_norm" not in name
        (decayed if is_linear_weight else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=fused)


def _sums(terms: ElboTerms) -> Tensor:
    """Return the sum of each term over the cells."""
    return torch.stack([term.detach().sum() for term in terms])


def _terms(elbo: Callable[..., ElboTerms], batch: Minibatch, samples: torch.Generator) -> ElboTerms:
    if batch.share is not None:
        assert isinstance(samples, SharedGenerator)
        samples.share = batch.share
    return elbo(
        batch.x,
        batch.y,
        batch.context,
        batch.library_log_mean,
        batch.library_log_variance,
        samples,
    )
