"""The training loop."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor

from totalvi.data.cite import CiteData
from totalvi.errors import TrainingError
from totalvi.feed import Minibatch, minibatches
from totalvi.module.elbo import ElboTerms, objective
from totalvi.module.totalvi import TOTALVI
from totalvi.training.plan import TrainingPlan
from totalvi.training.schedule import kl_weight, learning_rate_factor
from totalvi.training.split import Split

_MOST_SKIPPED_IN_A_ROW = 20
_VALIDATION_BATCH_SIZE = 1024
_NOT_FINITE = (
    "had a finite loss and gradient; the likely cause is a learning rate that is too high: lower it, "
    "or check the counts with `totalvi check`."
)
State = dict[str, Tensor]
OnEpoch = Callable[[int, dict[str, float]], None]


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
    """

    history: pd.DataFrame
    best_epoch: int
    stopped: str
    n_skipped_steps: int


def fit(
    module: TOTALVI,
    data: CiteData,
    split: Split,
    plan: TrainingPlan,
    seed: np.random.SeedSequence,
    on_epoch: OnEpoch | None = None,
) -> Fit:
    """Train ``module`` in place, and leave it with the weights of the lowest validation loss.

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
        Called after each epoch with its number and its row of the history.

    Raises
    ------
    TrainingError
        When too many steps in a row are not finite.
    """
    fabric = Fabric(accelerator=plan.accelerator, devices=1, precision=plan.precision)
    optimizer = _optimizer(module, plan, fabric.device)
    network, optimizer = fabric.setup(module, optimizer)
    network.mark_forward_method("elbo")
    shuffle_seed, sample_seed, validation_seed = seed.spawn(3)
    shuffle = np.random.default_rng(shuffle_seed)
    samples = torch_generator(sample_seed, fabric.device)

    steps_per_epoch = math.ceil(len(split.train) / plan.batch_size)
    n_steps = plan.max_epochs * steps_per_epoch
    n_warmup_steps = plan.kl_warmup_epochs * steps_per_epoch
    rows: list[dict[str, float]] = []
    best = _Best()
    skipped = _Skipped()
    stopped = f"all {plan.max_epochs} epochs done"
    for epoch in range(plan.max_epochs):
        started = time.perf_counter()
        network.train()
        mean = _Mean()
        batches = minibatches(data, module, split.train, plan.batch_size, shuffle, fabric.device)
        for step, batch in enumerate(batches, start=epoch * steps_per_epoch):
            before = [buffer.clone() for buffer in module.buffers()]  # of batch normalisation
            factor = learning_rate_factor(step, n_steps, plan.schedule)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * factor
            terms = _terms(network, batch, samples)
            loss = objective(terms, kl_weight(step, n_warmup_steps))
            taken = _step(fabric, module, optimizer, loss, plan)
            skipped.count(taken, epoch)
            if taken:
                mean.add(terms)
            else:
                for buffer, value in zip(module.buffers(), before, strict=True):
                    buffer.copy_(value)
        if mean.n_cells == 0:
            raise TrainingError(f"In epoch {epoch} no step {_NOT_FINITE}")
        row = mean.row("train")
        if len(split.validation):
            row |= evaluate(module, data, split.validation, validation_seed, fabric.device)
        row["kl_weight"] = kl_weight((epoch + 1) * steps_per_epoch, n_warmup_steps)
        row["learning_rate"] = optimizer.param_groups[0]["lr"]
        row["seconds"] = time.perf_counter() - started
        rows.append(row)
        if on_epoch is not None:
            on_epoch(epoch, row)
        warm = row["kl_weight"] >= 1 or epoch + 1 == plan.max_epochs
        if warm and "validation_loss" in row:
            best.offer(row["validation_loss"], epoch, module)
            if plan.patience is not None and epoch - best.epoch >= plan.patience:
                stopped = f"no lower validation loss for {plan.patience} epochs"
                break
    if best.state is not None:
        module.load_state_dict(best.state)
    elif len(split.validation):
        raise TrainingError(f"After epoch {len(rows) - 1} the validation loss never {_NOT_FINITE}")
    module.cpu().eval()
    history = pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="epoch"))
    return Fit(history, best.epoch if best.state else len(rows) - 1, stopped, skipped.total)


def evaluate(
    module: TOTALVI,
    data: CiteData,
    cells: np.ndarray,
    seed: np.random.SeedSequence,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return the losses of ``cells`` by cell, at full KL weight, from the same samples every time."""
    was_training = module.training
    module.eval()
    mean = _Mean()
    samples = torch_generator(seed, device)
    with torch.no_grad():
        for batch in minibatches(data, module, cells, _VALIDATION_BATCH_SIZE, device=device):
            mean.add(_terms(module, batch, samples))
    module.train(was_training)
    return mean.row("validation")


def torch_generator(
    seed: np.random.SeedSequence, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator seeded from ``seed``."""
    return torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


def _optimizer(module: TOTALVI, plan: TrainingPlan, device: torch.device) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay on the weights of linear layers, and on nothing else."""
    decayed = {
        name for name, _ in module.named_parameters()
        if name.endswith("weight") and "batch_norm" not in name
    }  # fmt: skip
    groups = [
        {"params": [p for name, p in module.named_parameters() if name in decayed],
         "weight_decay": plan.weight_decay},
        {"params": [p for name, p in module.named_parameters() if name not in decayed],
         "weight_decay": 0.0},
    ]  # fmt: skip
    return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=device.type in ("cpu", "cuda"))


def _terms(network: TOTALVI, batch: Minibatch, samples: torch.Generator) -> ElboTerms:
    return network.elbo(
        batch.x,
        batch.y,
        batch.context,
        batch.library_log_mean,
        batch.library_log_variance,
        samples,
    )


def _step(
    fabric: Fabric,
    module: TOTALVI,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    plan: TrainingPlan,
) -> bool:
    """Take one step; return False, the weights unchanged, when loss or gradient is not finite."""
    optimizer.zero_grad()
    fabric.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), plan.gradient_clip_norm)
    if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
        return False
    optimizer.step()
    return True


class _Mean:
    """Averages the terms of the ELBO over the cells of an epoch."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.n_cells = 0

    def add(self, terms: ElboTerms) -> None:
        sums = torch.stack([term.detach().sum() for term in terms])
        self.total = sums if self.total is None else self.total + sums
        self.n_cells += len(terms.kl_div_z)

    def row(self, prefix: str) -> dict[str, float]:
        assert self.total is not None
        values = (self.total / self.n_cells).tolist()
        row = {
            f"{prefix}_{name}": value for name, value in zip(ElboTerms._fields, values, strict=True)
        }
        return {f"{prefix}_loss": sum(values), **row}


class _Best:
    """The weights of the lowest validation loss."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.epoch = 0
        self.state: State | None = None

    def offer(self, loss: float, epoch: int, module: TOTALVI) -> None:
        if loss < self.loss:
            self.loss, self.epoch = loss, epoch
            self.state = {name: value.clone() for name, value in module.state_dict().items()}


class _Skipped:
    """Counts the steps that were not finite, and ends a fit that makes no others."""

    def __init__(self) -> None:
        self.total = 0
        self.in_a_row = 0

    def count(self, taken: bool, epoch: int) -> None:
        self.in_a_row = 0 if taken else self.in_a_row + 1
        self.total += not taken
        if self.in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"In epoch {epoch} none of {self.in_a_row} steps in a row {_NOT_FINITE}"
            )
