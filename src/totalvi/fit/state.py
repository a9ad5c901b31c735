"""The state of a fit: everything that changes between steps, in one object."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from totalvi.fit.checkpoint import (
    Saved,
    optimizer_tensors,
    part,
    restore_optimizer,
    with_prefix,
)
from totalvi.fit.plan import TrainingPlan
from totalvi.nn.coders import CellPosterior
from totalvi.nn.likelihoods import ElboTerms
from totalvi.nn.network import Network
from totalvi.nn.sync import Share, SharedGenerator
from totalvi.processes import Process

PAPER_LOSS = "validation_paper_loss"  # column of the history: minus the paper's lower bound
_N_HIDDEN, _LEARNING_RATE = 32, 1e-3


class Adversary:
    """A classifier of panels, against which a network is trained, with its optimiser and inputs.

    Its steps do not count in the schedules of the fit.

    Parameters
    ----------
    module
        The network that is trained against it; the means of q(u | cell) are the classifier's input.
    weight
        Weight of the adversarial loss in the objective, constant over the fit.
    generator
        Generator of the initial weights.
    """

    def __init__(
        self, module: Network, weight: float, device: torch.device, generator: torch.Generator
    ) -> None:
        self.weight = weight
        self.classifier = nn.Sequential(
            nn.Linear(module.n_latent, _N_HIDDEN),
            nn.LeakyReLU(),
            nn.Linear(_N_HIDDEN, module.n_panels),
        ).to(device)
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                bound = 1 / parameter.shape[-1] ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
        self.optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=_LEARNING_RATE)
        self._latent: Tensor | None = None

    @contextmanager
    def watching(self, module: Network) -> Iterator[None]:
        """Record the module's encodings in training while the block runs."""
        watch = module.encoder.register_forward_hook(self._read)
        try:
            yield
        finally:
            watch.remove()
            self._latent = None

    def _read(self, encoder: nn.Module, _inputs: Any, posterior: CellPosterior) -> None:
        if encoder.training:
            self._latent = posterior.qz_m

    def deception(self, panel: Tensor) -> Tensor:
        """Return the weighted loss, which is lowest if each cell seems to be of the other panels."""
        assert self._latent is not None
        log_probability = F.log_softmax(self.classifier(self._latent.float()), dim=1)
        n_panels = log_probability.shape[1]
        own = log_probability.gather(1, panel[:, None])[:, 0]
        others = (log_probability.sum(dim=1) - own) / (n_panels - 1)
        return -self.weight * others.mean()

    def step(self, panel: Tensor, share: Share | None = None) -> float:
        """Train the classifier on one minibatch; return its loss, in nats per cell.

        For a minibatch that several processes share, return the part of this process's cells.
        """
        assert self._latent is not None
        latent, self._latent = self._latent.detach().float(), None
        self.optimizer.zero_grad()  # `deception` also left gradients here
        loss = F.cross_entropy(self.classifier(latent), panel)
        if share is not None:
            loss = loss * (len(panel) / share.n_cells)
        torch.autograd.backward(loss)
        if share is not None:
            for parameter in self.classifier.parameters():
                torch.distributed.all_reduce(parameter.grad)
        self.optimizer.step()
        return loss.item()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the adversary for a checkpoint."""
        classifier = with_prefix("classifier.", self.classifier.state_dict())
        return classifier | with_prefix("optimizer.", optimizer_tensors(self.optimizer))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `tensors` returned."""
        self.classifier.load_state_dict(part(tensors, "classifier."))
        restore_optimizer(self.optimizer, part(tensors, "optimizer."))


@dataclass
class FitState:
    """The state of a fit between two steps.

    Parameters
    ----------
    network, optimizer, scaler, adversary
        Objects that steps change; the scaler of losses in float16 and the adversary may be None.
    order, noise
        Generators of the order of cells, and of samples and dropout.
    step
        Number of steps taken or refused, over all epochs.
    n_skipped, n_skipped_in_a_row
        Number of refused steps, whose loss or gradient was not finite: all, and the latest in a row.
    history
        A row for each finished epoch.
    best_loss, best_epoch, best_weights
        The lowest validation loss, with the log background integrated, its epoch, and the weights
        after it.
    stopped
        Why the fit ended; empty before that.

    Attributes
    ----------
    order_before
        State of ``order`` before the current epoch, with which a resumed fit shuffles again.
    sums, n_cells
        In the current epoch: sums of the terms of the ELBO, and their number of cells.
    steps_in_epoch, seconds_in_epoch
        Steps and seconds of the current epoch.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    order: np.random.Generator
    noise: torch.Generator
    scaler: torch.amp.GradScaler | None = None
    adversary: Adversary | None = None
    step: int = 0
    n_skipped: int = 0
    n_skipped_in_a_row: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    stopped: str = ""

    @classmethod
    def at_start(
        cls,
        network: Network,
        plan: TrainingPlan,
        order: np.random.Generator,
        noise_seed: np.random.SeedSequence,
        scaler: torch.amp.GradScaler | None,
        process: Process | None,
    ) -> Self:
        """Return the state before the first step of a network that is on its device."""
        device = next(network.parameters()).device
        fused = device.type in ("cpu", "cuda") and scaler is None
        optimizer = _optimizer(network, plan, fused)
        noise = noise_of(noise_seed, device, process)
        adversary = None
        if plan.adversary_weight:
            generator = torch_generator(noise_seed.spawn(1)[0], device)
            adversary = Adversary(network, plan.adversary_weight, device, generator)
        return cls(network, optimizer, order, noise, scaler, adversary)

    def __post_init__(self) -> None:
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.order_before: dict[str, Any] = dict(self.order.bit_generator.state)
        device = next(self.network.parameters()).device
        self.sums, self.n_cells = torch.zeros(len(ElboTerms._fields), device=device), 0
        self.steps_in_epoch, self.seconds_in_epoch = 0, 0.0

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return len(self.history)

    def end_epoch(self, row: dict[str, float], plan: TrainingPlan) -> None:
        """Record a finished epoch, its weights if they are the best, and whether it was the last."""
        epoch = self.epoch
        if PAPER_LOSS in row and self.history and PAPER_LOSS not in self.history[0]:
            # A fit that began in an earlier version, which chose by the paper's loss, goes on so.
            row["validation_loss"] = row.pop(PAPER_LOSS)
        self.history.append(row)
        self._begin_epoch()
        last = epoch + 1 == plan.max_epochs
        if last:
            self.stopped = f"all {plan.max_epochs} epochs done"
        if "validation_loss" in row and (row["kl_weight"] >= 1 or last):
            self._keep_if_best()
            if plan.patience is not None and epoch - self.best_epoch >= plan.patience:
                self.stopped = f"no lower validation loss for {plan.patience} epochs"

    def end(self, reason: str) -> None:
        """End the fit after the epoch that just finished, whose weights count even during warm-up."""
        self._keep_if_best()
        self.stopped = self.stopped or reason

    def _keep_if_best(self) -> None:
        """Record the weights of the epoch that just finished if no validation loss was lower."""
        loss = self.history[-1].get("validation_loss", math.inf)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch - 1
            weights = self.network.state_dict()
            self.best_weights = {name: value.clone() for name, value in weights.items()}

    def saved(self) -> Saved:
        """Return the state between two steps in the form of a checkpoint."""
        values = {
            "order": self.order_before,
            "rows": self.history,
            "mean_n_cells": self.n_cells,
            "steps_in_epoch": self.steps_in_epoch,
            "seconds_in_epoch": self.seconds_in_epoch,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "skipped": self.n_skipped,
            "skipped_in_a_row": self.n_skipped_in_a_row,
            "stopped": self.stopped,
            "steps_done": self.step,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        tensors = {
            "mean": self.sums,
            "samples": self.noise.get_state(),
            **with_prefix("best.", self.best_weights or {}),
            **with_prefix("module.", self.network.state_dict()),
            **with_prefix("optimizer.", optimizer_tensors(self.optimizer)),
        }
        if self.adversary is not None:
            tensors |= with_prefix("adversary.", self.adversary.tensors())
        return Saved(values, tensors)

    def restore(self, saved: Saved) -> None:
        """Restore the state that `saved` returned."""
        values, tensors = saved.values, saved.tensors
        self.order.bit_generator.state = self.order_before = values["order"]
        self.history, self.stopped = list(values["rows"]), values["stopped"]
        self.n_cells = values["mean_n_cells"]
        if "mean" in tensors:  # earlier versions left it out before the first step of an epoch
            self.sums = tensors["mean"].to(self.sums.device)
        self.steps_in_epoch = values["steps_in_epoch"]
        self.seconds_in_epoch = values["seconds_in_epoch"]
        self.best_loss, self.best_epoch = values["best_loss"], values["best_epoch"]
        self.best_weights = part(tensors, "best.") or None
        self.n_skipped, self.n_skipped_in_a_row = values["skipped"], values["skipped_in_a_row"]
        self.network.load_state_dict(part(tensors, "module."))
        restore_optimizer(self.optimizer, part(tensors, "optimizer."))
        if self.adversary is not None:
            self.adversary.restore(part(tensors, "adversary."))
        self.noise.set_state(tensors["samples"])
        self.step = values["steps_done"]
        if self.scaler is not None:
            self.scaler.load_state_dict(values["scaler"])


def torch_generator(
    seed: np.random.SeedSequence, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator seeded from ``seed``."""
    return torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


def noise_of(
    seed: np.random.SeedSequence, device: torch.device | str, process: Process | None
) -> torch.Generator:
    """Return the generator of samples; with a ``process``, for minibatches that it shares."""
    whole = torch_generator(seed, device)
    if process is None:
        return whole
    shared = SharedGenerator(device)
    shared.set_state(whole.get_state())
    return shared


def _optimizer(network: Network, plan: TrainingPlan, fused: bool) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay only on the weights of linear layers."""
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_linear_weight = name.endswith("weight") and "batch_norm" not in name
        (decayed if is_linear_weight else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=fused)


def clip_gradients(network: Network, largest_norm: float) -> Tensor:
    """Scale the gradients down to ``largest_norm`` if their norm is larger; return their norm."""
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if norm.is_cuda or norm > largest_norm:  # reading the number from a GPU would make it wait
        torch.nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    return norm
