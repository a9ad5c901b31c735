"""The training loop: run epochs of steps on minibatches, validate each, keep the best weights.

Read `Fit.run`, `Fit.epoch`, `Fit.step` and `Fit.validate` in this order. Everything that changes
between steps is in `totalvi.fit.state.FitState`.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed
from torch import Tensor, nn

from totalvi.data.cells import CiteData
from totalvi.errors import ProcessError, TrainingError, argument
from totalvi.fit.batches import WINDOW, CountsOnDevice, minibatches, read_once
from totalvi.fit.callbacks import OnEpoch
from totalvi.fit.checkpoint import Checkpoint, Signals, kept_on_error
from totalvi.fit.device import (
    Memory,
    autocast,
    autocast_precision,
    explained,
    loss_scaler,
    plan_memory,
    watch_threads,
    wide_products,
)
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.model_state import FitResult
from totalvi.fit.plan import Split, TrainingPlan
from totalvi.fit.state import PAPER_LOSS, FitState, clip_gradients, noise_of
from totalvi.nn.likelihoods import ElboTerms, objective
from totalvi.nn.network import Network
from totalvi.processes import Process, losing_others, process_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_MOST_SKIPPED_IN_A_ROW = 20
_VALIDATION_BATCH_SIZE = 1024
_NOT_FINITE = (
    "had a finite loss and gradient; the likely cause is a learning rate that is too high; lower it, "
    "or check the counts with `totalvi check`."
)


class StepInfo(NamedTuple):
    """The result of a step.

    Parameters
    ----------
    taken
        Whether loss and gradient were finite; otherwise the step changed nothing.
    sums
        Sums of the terms of the ELBO over the cells of the minibatch.
    n_cells
        Number of cells of the minibatch in all processes.
    """

    taken: bool
    sums: Tensor
    n_cells: int


class Fit:
    """One fit of a network to data; `run` gives it the weights with the lowest validation loss.

    Several processes share each minibatch: each takes its part of the cells. Batch normalisation and
    gradients are over all cells, and all processes end with the same weights. See ``docs/scaling.md``.

    Parameters
    ----------
    network
        The network, which is trained in place.
    data, split
        All cells, and which of them train and validate.
    plan
        The plan of the fit, with device and precision from `totalvi.fit.device.resolved_plan`.
    fabric
        The device and the processes; see `totalvi.processes.launch`.
    seed
        Seed of the order of cells, of samples and of dropout.
    on_epoch
        Function called after each epoch with its number and its row of the history; True ends the
        fit. A fit that resumes first calls it for its earlier epochs, whose answers do not count.
    show_memory
        Whether to print the memory needed on a GPU on standard error.

    Attributes
    ----------
    state
        The current state of the fit.

    Raises
    ------
    ProcessError
        When there are more processes than cells in a minibatch.
    TrainingError
        When the GPU's memory is too small for a minibatch.
    """

    def __init__(
        self,
        network: Network,
        data: CiteData,
        split: Split,
        plan: TrainingPlan,
        fabric: "Fabric",
        seed: np.random.SeedSequence,
        on_epoch: OnEpoch | None = None,
        show_memory: bool = False,
    ) -> None:
        order_seed, noise_seed, self.validation_seed = seed.spawn(3)
        self.network, self.split, self.plan, self.fabric = network, split, plan, fabric
        self.on_epoch = on_epoch
        self.process = process_of(fabric)
        self.shared_by = self.process if self.process.n_processes > 1 else None
        self.steps_per_epoch = math.ceil(len(split.train) / plan.batch_size)
        _require_cells_for_all(split, plan, self.process)
        self.validation = read_once(data, split.validation)
        self.training = data, split.train
        if len(split.train) <= WINDOW:  # more cells are read window by window
            self.training = read_once(data, split.train)
        self.memory: Memory | None = None
        self.held: CountsOnDevice | None = None
        if fabric.device.type == "cuda":
            given = network, self.training[0], fabric.device, self._own_cells()
            self.memory, self.held = plan_memory(*given, show=show_memory)
        self.signals = Signals(self.process.n_processes)
        self.autocast = autocast_precision(plan.precision, network, fabric.device)
        self.state = FitState.at_start(
            network.to(fabric.device),
            plan,
            np.random.default_rng(order_seed),
            noise_seed,
            loss_scaler(self.autocast, fabric.device),
            self.shared_by,
        )
        self.elbo: Callable[..., ElboTerms] = network.elbo
        if self.shared_by is not None:  # DDP averages the gradients of its `forward`
            with losing_others():
                self.elbo = fabric.strategy.setup_module(_Elbo(network))

    def run(self, checkpoint: Checkpoint | None = None) -> FitResult:
        """Train to the end, and return the result besides the weights.

        Parameters
        ----------
        checkpoint
            The file from which the fit resumes if it holds a fit. It is written when it is due and
            at the end. SIGINT and SIGTERM then end the fit after a step, and the file is written.

        Raises
        ------
        TrainingError
            When too many steps in a row are not finite, or no validation loss is finite.
        Interrupted
            When the fit received a signal and has a ``checkpoint``.
        ProcessError
            When another process of the fit ended.
        """
        state, tell = self.state, self.on_epoch or (lambda *_: None)
        with ExitStack() as stack:
            stack.enter_context(losing_others())
            if self.memory is not None:
                stack.enter_context(explained(self.memory, self._own_cells()))
            if checkpoint is not None:
                stack.enter_context(self.signals.noted())
                if checkpoint.start is not None:
                    state.restore(checkpoint.start)
            for epoch, row in enumerate(state.history):
                tell(epoch, row)
            watch = watch_threads(self.fabric.device)
            while not state.stopped:
                row = self.epoch(checkpoint)
                watch()
                state.end_epoch(row, self.plan)
                with kept_on_error(checkpoint, state.saved):
                    if tell(state.epoch - 1, row):
                        state.end("a callback ended it")
                if checkpoint is not None:
                    if state.stopped or checkpoint.is_due_after(state.epoch):
                        checkpoint.write(state.saved())
                    self._between_steps(checkpoint)
        return self._result()

    def epoch(self, checkpoint: Checkpoint | None = None) -> dict[str, float]:
        """Take the remaining steps of an epoch and validate; return its row of the history."""
        state, plan = self.state, self.plan
        started = time.perf_counter() - state.seconds_in_epoch
        data, cells = self.training
        batches = minibatches(
            data, self.network, cells, plan.batch_size, state.order, self.fabric.device,
            state.steps_in_epoch, self.shared_by, self.held,
        )  # fmt: skip
        adversary = state.adversary
        watching = nullcontext() if adversary is None else adversary.watching(self.network)
        self.network.train()
        with wide_products(self.network, plan.precision), watching:
            for batch in batches:
                taken, sums, n_cells = self.step(batch)
                if taken:
                    state.sums, state.n_cells = state.sums + sums, state.n_cells + n_cells
                state.steps_in_epoch += 1
                state.seconds_in_epoch = time.perf_counter() - started
                if checkpoint is not None:
                    self._between_steps(checkpoint)
        if state.n_cells == 0:
            raise TrainingError(f"In epoch {state.epoch} no step {_NOT_FINITE}")
        row = _mean_terms("train", state.sums, state.n_cells)
        if len(self.split.validation):
            row |= self.validate()
        self.signals.agree()
        row["kl_weight"] = plan.kl_weight_at(state.step, self.steps_per_epoch)
        row["learning_rate"] = plan.learning_rate_at(state.step, self.steps_per_epoch)
        row["seconds"] = time.perf_counter() - started
        return row

    def step(self, batch: Minibatch) -> StepInfo:
        """Take one step; change nothing if loss or gradient is not finite."""
        state, network, fabric = self.state, self.network, self.fabric
        statistics_before = [buffer.clone() for buffer in network.buffers()]
        with autocast(self.autocast, fabric.device):
            terms = ElboTerms(*(term.float() for term in batch.terms(self.elbo, state.noise)))
        loss = objective(terms, self.plan.kl_weight_at(state.step, self.steps_per_epoch))
        if state.adversary is not None:
            loss = loss + state.adversary.deception(batch.context.panel)
        if batch.share is not None:  # the mean over processes is then the mean over cells
            loss = loss * (len(batch.cells) * fabric.world_size / batch.share.n_cells)
        loss = loss + network.anchor_penalty()
        state.optimizer.zero_grad()
        fabric.backward(loss if state.scaler is None else state.scaler.scale(loss))
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(network, self.plan.gradient_clip_norm)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        info = self._of_all_processes(batch, finite, _sums(terms))
        if info.taken:
            self._move(batch)
        else:
            self._refuse(statistics_before)
        state.step += 1
        return info

    def validate(self) -> dict[str, float]:
        """Return the losses of the validation cells."""
        shared = self.fabric.device, self.shared_by
        return evaluate(self.network, *self.validation, self.validation_seed, *shared)

    def _move(self, batch: Minibatch) -> None:
        """Update the weights of the network and of the adversary by their gradients."""
        state = self.state
        state.n_skipped_in_a_row = 0
        for group in state.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(state.step, self.steps_per_epoch)
        if state.scaler is None:
            state.optimizer.step()
        else:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        if state.adversary is not None:
            state.adversary.step(batch.context.panel, batch.share)

    def _refuse(self, statistics_before: list[Tensor]) -> None:
        """Undo the changes of the forward pass; end the fit if too many steps are refused.

        Raises
        ------
        TrainingError
            When too many steps in a row were refused.
        """
        state = self.state
        for buffer, before in zip(self.network.buffers(), statistics_before, strict=True):
            buffer.copy_(before)
        if state.scaler is not None:
            state.scaler.update()
        state.n_skipped += 1
        state.n_skipped_in_a_row += 1
        if state.n_skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"In epoch {state.epoch} none of {state.n_skipped_in_a_row} steps in a row "
                f"{_NOT_FINITE}"
            )

    def _of_all_processes(self, batch: Minibatch, finite: Tensor, sums: Tensor) -> StepInfo:
        """Return whether all processes have finite numbers, and their sums and cells; share signals."""
        if batch.share is None:
            return StepInfo(bool(finite), sums, len(batch.cells))
        own = torch.tensor([0.0, *self.signals.flags()], device=sums.device)
        own[0] = ~finite
        of_all = torch.cat([own, sums])
        torch.distributed.all_reduce(of_all)
        n_not_finite, *n_noted = of_all[: len(own)].tolist()
        self.signals.learn(n_noted)
        return StepInfo(n_not_finite == 0, of_all[len(own) :], batch.share.n_cells)

    def _between_steps(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint if it is due; end a fit that received a signal."""
        if self.signals.known:
            checkpoint.write(self.state.saved())
            raise self.signals.interruption(checkpoint.path)
        if checkpoint.is_due():
            checkpoint.write(self.state.saved())

    def _own_cells(self) -> int:
        """Return the largest number of cells that this process has of a minibatch."""
        return math.ceil(self.plan.batch_size / self.process.n_processes)

    def _result(self) -> FitResult:
        """Give the network its best weights, and return the rest of the result."""
        state, n_epochs = self.state, self.state.epoch
        if state.best_weights is not None:
            self.network.load_state_dict(state.best_weights)
        elif len(self.split.validation):
            raise TrainingError(
                f"After epoch {n_epochs - 1} no validation loss was finite; lower the learning rate, "
                "or check the counts with `totalvi check`."
            )
        self.network.cpu().eval()
        summary = {
            "best_epoch": state.best_epoch if state.best_weights else n_epochs - 1,
            "stopped": state.stopped,
            "n_skipped_steps": state.n_skipped,
            "precision": self.plan.precision,
        }
        history = pd.DataFrame(state.history, index=pd.RangeIndex(n_epochs, name="epoch"))
        return FitResult(history, self.split, self.plan, summary)


def evaluate(
    network: Network,
    data: CiteData,
    cells: np.ndarray,
    seed: np.random.SeedSequence,
    device: torch.device | str = "cpu",
    process: Process | None = None,
) -> dict[str, float]:
    """Return the losses of ``cells`` per cell, at full KL weight, from the same samples every time.

    "validation_loss" has the log background integrated; `PAPER_LOSS` is the sum of the five terms.
    With several processes, each takes a part of the cells, and all return the losses of all cells.
    """
    was_training = network.training
    network.eval()
    noise = noise_of(seed, device, process)
    sums, n_cells = torch.zeros(len(ElboTerms._fields) + 1, device=device), 0
    batches = minibatches(data, network, cells, _VALIDATION_BATCH_SIZE, None, device, 0, process)
    with torch.no_grad():
        for batch in batches:
            if len(batch.cells):
                sums = sums + _sums(batch.terms(network.held_out, noise))
                n_cells += len(batch.cells)
    if process is not None:
        of_all = torch.cat([sums.double(), sums.new_tensor([n_cells], dtype=torch.float64)])
        torch.distributed.all_reduce(of_all)
        sums, n_cells = of_all[:-1].to(sums.dtype), int(of_all[-1])
    network.train(was_training)
    row = _mean_terms("validation", sums[:-1], n_cells)
    paper = row["validation_loss"]
    sampled = row["validation_reconst_loss_protein"] + row["validation_kl_div_back_pro"]
    return row | {"validation_loss": paper - sampled + sums[-1].item() / n_cells, PAPER_LOSS: paper}


def _require_cells_for_all(split: Split, plan: TrainingPlan, process: Process) -> None:
    n_batches = math.ceil(len(split.train) / plan.batch_size)
    if len(split.train) // n_batches < process.n_processes:
        raise ProcessError(
            f"{argument('batch_size')} is {plan.batch_size}, too few for "
            f"{process.n_processes} processes with a cell each; raise it, or use fewer."
        )


def _sums(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of each term over the cells."""
    return torch.stack([term.detach().sum() for term in terms])


def _mean_terms(prefix: str, sums: Tensor, n_cells: int) -> dict[str, float]:
    """Return the loss per cell and its terms, each name with ``prefix``."""
    values = (sums / n_cells).tolist()
    terms = zip(ElboTerms._fields, values, strict=True)
    return {f"{prefix}_loss": sum(values), **{f"{prefix}_{name}": v for name, v in terms}}


class _Elbo(nn.Module):
    """The terms of the ELBO as the forward pass of a module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> ElboTerms:
        """Return the terms of the network's ``elbo``."""
        return self.network.elbo(*inputs)
