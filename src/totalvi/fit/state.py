"""What the training loop keeps count of: epochs, mean losses, the best weights, skipped steps."""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from totalvi.errors import TrainingError
from totalvi.fit.checkpoint import State
from totalvi.nn.elbo import ElboTerms
from totalvi.nn.v06 import TOTALVI


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under names that start with ``prefix``."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): tensor for k, tensor in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what the optimiser keeps of each parameter, as "number.name"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, kept in state.items() for name, value in kept.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set back what `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


NOT_FINITE = (
    "had a finite loss and gradient; the likely cause is a learning rate that is too high: lower it, "
    "or check the counts with `totalvi check`."
)
_MOST_SKIPPED_IN_A_ROW = 20


class MeanTerms:
    """Averages the terms of the ELBO over the cells of an epoch."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.n_cells = 0

    def add(self, sums: Tensor, n_cells: int) -> None:
        """Count the cells of one minibatch, by the sums of the terms over them."""
        self.total = sums if self.total is None else self.total + sums
        self.n_cells += n_cells

    def add_up(self, device: torch.device | str) -> None:
        """Add what other processes have counted."""
        total = torch.zeros(len(ElboTerms._fields), device=device)
        own = total if self.total is None else self.total
        of_all = torch.cat([own.double(), own.new_tensor([self.n_cells], dtype=torch.float64)])
        torch.distributed.all_reduce(of_all)
        self.total, self.n_cells = of_all[:-1].to(own.dtype), int(of_all[-1])

    def row(self, prefix: str) -> dict[str, float]:
        """Return the loss by cell and its terms, each name with ``prefix``."""
        assert self.total is not None
        values = (self.total / self.n_cells).tolist()
        terms = zip(ElboTerms._fields, values, strict=True)
        return {f"{prefix}_loss": sum(values), **{f"{prefix}_{name}": v for name, v in terms}}


class BestWeights:
    """The weights of the lowest validation loss."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.epoch = 0
        self.state: dict[str, Tensor] | None = None

    def offer(self, loss: float, epoch: int, module: TOTALVI) -> None:
        """Keep the module's weights when ``loss`` is the lowest yet."""
        if loss < self.loss:
            self.loss, self.epoch = loss, epoch
            self.state = {name: value.clone() for name, value in module.state_dict().items()}


class SkippedSteps:
    """Counts the steps that were not finite, and ends a fit that makes no others."""

    def __init__(self) -> None:
        self.total = 0
        self.in_a_row = 0

    def count(self, taken: bool, epoch: int) -> None:
        """Count one step.

        Raises
        ------
        TrainingError
            When too many in a row were skipped.
        """
        self.in_a_row = 0 if taken else self.in_a_row + 1
        self.total += not taken
        if self.in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"In epoch {epoch} none of {self.in_a_row} steps in a row {NOT_FINITE}"
            )


class Course:
    """How far a fit has come: all of its state but weights, optimiser and samples.

    Parameters
    ----------
    order
        Gives the order of the cells.

    Attributes
    ----------
    order_before
        State of ``order`` before the running epoch.
    rows
        Of the history: one for each finished epoch.
    mean, steps_in_epoch, seconds_in_epoch
        Of the running epoch.
    best, skipped
        Over all epochs.
    stopped
        Why the fit is over; empty while it is not.
    """

    def __init__(self, order: np.random.Generator) -> None:
        self.order = order
        self.rows: list[dict[str, float]] = []
        self.best = BestWeights()
        self.skipped = SkippedSteps()
        self.stopped = ""
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Start counting anew."""
        self.order_before = self.order.bit_generator.state
        self.mean, self.steps_in_epoch, self.seconds_in_epoch = MeanTerms(), 0, 0.0

    def state(self) -> State:
        """Return all of it as plain values and tensors."""
        values = {
            "order": self.order_before,
            "rows": self.rows,
            "mean_n_cells": self.mean.n_cells,
            "steps_in_epoch": self.steps_in_epoch,
            "seconds_in_epoch": self.seconds_in_epoch,
            "best_loss": self.best.loss,
            "best_epoch": self.best.epoch,
            "skipped": self.skipped.total,
            "skipped_in_a_row": self.skipped.in_a_row,
            "stopped": self.stopped,
        }
        tensors = {} if self.mean.total is None else {"mean": self.mean.total}
        for name, value in (self.best.state or {}).items():
            tensors[f"best.{name}"] = value
        return State(values, tensors)

    def restore(self, state: State, device: torch.device) -> None:
        """Set back what `state` returned."""
        values, tensors = state
        self.order.bit_generator.state = self.order_before = values["order"]
        self.rows, self.stopped = list(values["rows"]), values["stopped"]
        self.mean.n_cells = values["mean_n_cells"]
        self.mean.total = tensors["mean"].to(device) if "mean" in tensors else None
        self.steps_in_epoch = values["steps_in_epoch"]
        self.seconds_in_epoch = values["seconds_in_epoch"]
        self.best.loss, self.best.epoch = values["best_loss"], values["best_epoch"]
        self.best.state = part(tensors, "best.") or None
        self.skipped.total = values["skipped"]
        self.skipped.in_a_row = values["skipped_in_a_row"]
