"""The training loop."""

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.cite import CiteData
from totalvi.errors import TrainingError
from totalvi.feed import Minibatch, minibatches
from totalvi.module.elbo import ElboTerms, objective
from totalvi.module.fused.arrays import threads_of_torch
from totalvi.module.totalvi import TOTALVI
from totalvi.training.plan import TrainingPlan
from totalvi.training.precision import autocast_precision, resolve_precision, wide_products
from totalvi.training.progress import OnEpoch
from totalvi.training.schedule import kl_weight, learning_rate_factor
from totalvi.training.split import Split
from totalvi.training.tally import NOT_FINITE, BestWeights, MeanTerms, SkippedSteps

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
    with threads_of_torch():
        return _fit(module, data, split, plan, seed, on_epoch)


def _fit(
    module: TOTALVI,
    data: CiteData,
    split: Split,
    plan: TrainingPlan,
    seed: np.random.SeedSequence,
    on_epoch: OnEpoch | None,
) -> Fit:
    from lightning_fabric import Fabric  # takes seconds to load, and queries do without it

    device = Fabric(accelerator=plan.accelerator, devices=1).device
    precision = resolve_precision(plan.precision, module, device)
    fabric = Fabric(
        accelerator=plan.accelerator,
        devices=1,
        precision=autocast_precision(precision, module, device),
    )
    shuffle_seed, sample_seed, validation_seed = seed.spawn(3)
    shuffle = np.random.default_rng(shuffle_seed)
    stepper = _Stepper(fabric, module, plan, len(split.train), sample_seed)
    held_out, held_out_cells = data, split.validation
    if data.on_disk:  # read once, not every epoch
        held_out = data.in_memory(split.validation)
        held_out_cells = np.arange(len(split.validation))
    rows: list[dict[str, float]] = []
    best = BestWeights()
    stopped = f"all {plan.max_epochs} epochs done"
    for epoch in range(plan.max_epochs):
        started = time.perf_counter()
        batches = minibatches(data, module, split.train, plan.batch_size, shuffle, fabric.device)
        with wide_products(module, precision):
            row = stepper.epoch(epoch, batches)
        if len(split.validation):
            row |= evaluate(module, held_out, held_out_cells, validation_seed, fabric.device)
        row["kl_weight"] = stepper.kl_weight()
        row["learning_rate"] = stepper.learning_rate()
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
        raise TrainingError(
            f"After epoch {len(rows) - 1} no validation loss was finite; lower the learning rate, or "
            "check the counts with `totalvi check`."
        )
    module.cpu().eval()
    history = pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="epoch"))
    best_epoch = best.epoch if best.state else len(rows) - 1
    return Fit(history, best_epoch, stopped, stepper.skipped.total, precision)


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
    mean = MeanTerms()
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
        self.optimizer = fabric.setup(module, _optimizer(module, plan, fused))[1]
        self.samples = torch_generator(seed, fabric.device)
        self.skipped = SkippedSteps()
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

    def epoch(self, epoch: int, batches: Iterable[Minibatch]) -> dict[str, float]:
        """Take a step for each minibatch; return the mean training loss and its terms."""
        self.module.train()
        mean = MeanTerms()
        for batch in batches:
            terms = self.step(batch)
            self.skipped.count(terms is not None, epoch)
            if terms is not None:
                mean.add(terms)
        if mean.n_cells == 0:
            raise TrainingError(f"In epoch {epoch} no step {NOT_FINITE}")
        return mean.row("train")

    def step(self, batch: Minibatch) -> ElboTerms | None:
        """Take one step; return None, with nothing changed, when loss or gradient is not finite."""
        batch_norm_state = [buffer.clone() for buffer in self.module.buffers()]
        with self.fabric.autocast():
            terms = ElboTerms(*(t.float() for t in _terms(self.module, batch, self.samples)))
        loss = objective(terms, self.kl_weight())
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer.optimizer)
        norm = _clip_gradients(self.module, self.plan.gradient_clip_norm)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            self.optimizer.step()
        else:
            for buffer, before in zip(self.module.buffers(), batch_norm_state, strict=True):
                buffer.copy_(before)
            if self.scaler is not None:
                self.scaler.update()
        self.steps_done += 1
        return ElboTerms(*(term.detach() for term in terms)) if finite else None


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


def _terms(network: TOTALVI, batch: Minibatch, samples: torch.Generator) -> ElboTerms:
    return network.elbo(
        batch.x,
        batch.y,
        batch.context,
        batch.library_log_mean,
        batch.library_log_variance,
        samples,
    )
