"""One step of a fit after the other: schedules, gradient, clipping, refusal of what is not finite."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from totalvi.errors import TrainingError
from totalvi.fit.adversary import Adversary
from totalvi.fit.batches import Minibatch
from totalvi.fit.checkpoint import Keeper, State
from totalvi.fit.plan import TrainingPlan, kl_weight, learning_rate_factor
from totalvi.fit.state import (
    NOT_FINITE,
    Course,
    optimizer_tensors,
    part,
    restore_optimizer,
    with_prefix,
)
from totalvi.nn.elbo import ElboTerms, objective
from totalvi.nn.sync import SharedGenerator
from totalvi.nn.v06 import TOTALVI
from totalvi.processes import Process, process_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

OBEYED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Give a list that gets the numbers of signals in place of their being obeyed at once.

    A second SIGINT is not waited for: it raises KeyboardInterrupt. SIGTERM may come from several that
    watch over a job, and is waited for each time. Only the main thread can do this;
    in others, and for signals that the process ignores, nothing changes.
    """
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        if noted.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in OBEYED}
        before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def torch_generator(
    seed: np.random.SeedSequence, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator seeded from ``seed``."""
    return torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


def samples_of(
    seed: np.random.SeedSequence, device: torch.device | str, process: Process | None
) -> torch.Generator:
    """Return the source of samples of minibatches that are this process's alone, or shared."""
    whole = torch_generator(seed, device)
    if process is None:
        return whole
    shared = SharedGenerator(device)
    shared.set_state(whole.get_state())
    return shared


class Stepper:
    """Takes the steps of a fit, and keeps what they need from one to the next."""

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
        self.optimizer = fabric.setup_optimizers(_optimizer(module.to(fabric.device), plan, fused))
        self.shared = fabric.world_size > 1
        self.elbo: Callable[..., ElboTerms] = module.elbo
        if self.shared:  # what goes through this has its gradients averaged over processes
            self.elbo = fabric.strategy.setup_module(_Elbo(module))
        self.samples = samples_of(seed, fabric.device, process_of(fabric) if self.shared else None)
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
            terms = ElboTerms(*(t.float() for t in terms_of(self.elbo, batch, self.samples)))
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
        norm = clip_gradients(self.module, self.plan.gradient_clip_norm)
        finite, sums, n_cells = self._of_all(
            torch.isfinite(loss) & torch.isfinite(norm), sums_of(terms), batch
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

    def agree_on_signals(self) -> None:
        """Let all processes know of the signals that each has got."""
        if not self.shared:
            return
        n_noted = torch.tensor([number in self.signals for number in OBEYED]).int()
        torch.distributed.all_reduce(n_noted)
        self.known_signals += [number for number, n in zip(OBEYED, n_noted, strict=True) if n]

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


class _Elbo(nn.Module):
    """The losses of a network as the forward pass of a module."""

    def __init__(self, network: TOTALVI) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> ElboTerms:
        """Return what `TOTALVI.elbo` returns."""
        return self.network.elbo(*inputs)


def _adversary(
    module: TOTALVI, plan: TrainingPlan, seed: np.random.SeedSequence, device: torch.device
) -> Adversary | None:
    if not plan.adversary_weight:
        return None
    generator = torch_generator(seed.spawn(1)[0], device)
    return Adversary(module, plan.adversary_weight, device, generator)


def clip_gradients(module: TOTALVI, largest_norm: float) -> Tensor:
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


def sums_of(terms: ElboTerms) -> Tensor:
    """Return the sum of each term over the cells."""
    return torch.stack([term.detach().sum() for term in terms])


def terms_of(
    elbo: Callable[..., ElboTerms], batch: Minibatch, samples: torch.Generator
) -> ElboTerms:
    """Return what ``elbo`` gives for a minibatch, of which others may have a share."""
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
