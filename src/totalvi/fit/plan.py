"""The plan of a fit: every number that the loop uses, its defaults, and schedules by step."""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # weights stay in float32
LearningRateSchedule = Literal["one-cycle", "constant"]


@dataclass(frozen=True)
class TrainingPlan:
    """The numbers of a fit. Defaults were chosen by measurement; see ``docs/decisions.md``.

    Parameters
    ----------
    max_epochs
        Passes over the training cells.
    batch_size
        Cells in a minibatch, at most.
    learning_rate
        Learning rate of Adam; the peak of the one-cycle schedule.
    schedule
        "one-cycle" (a short rise, then a long cosine fall to nearly zero) or "constant".
    weight_decay
        Decoupled weight decay of the linear layers' weights.
    kl_warmup_epochs
        Epochs over which the weight of the divergences rises from 0 to 1.
    gradient_clip_norm
        Largest norm of the gradient of all parameters together.
    patience
        Epochs without a lower validation loss after which training stops; None: it does not.
    accelerator, precision
        As in Lightning Fabric: "auto", "cpu", "cuda", ...; "32-true", "bf16-mixed", "16-mixed", or
        "auto": see `totalvi.fit.device.resolve_precision`. Weights and validation are always in
        float32.
    adversary_weight
        Weight of deceiving a classifier of panels, in nats a cell; 0: there is none. See `Adversary`.
    """

    max_epochs: int
    batch_size: int = 256
    learning_rate: float = 8e-3
    schedule: LearningRateSchedule = "one-cycle"
    weight_decay: float = 0.1
    kl_warmup_epochs: int = 10
    gradient_clip_norm: float = 100.0
    patience: int | None = 45
    accelerator: str = "auto"
    precision: Precision = "auto"
    adversary_weight: float = 0.0

    def __post_init__(self) -> None:
        whole = {"max_epochs": 1, "batch_size": 3, "kl_warmup_epochs": 0, "patience": 1}
        for name, smallest in whole.items():
            value: Any = getattr(self, name)
            if value is None and name == "patience":
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < smallest:
                raise ValueError(f"{name} is {value!r}; allowed are whole numbers from {smallest}.")
        for name in ("learning_rate", "gradient_clip_norm"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and math.isfinite(value) and float(value) > 0):
                raise ValueError(f"{name} is {value!r}; allowed are numbers above 0.")
        for name in ("weight_decay", "adversary_weight"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= 0):
                raise ValueError(f"{name} is {value!r}; allowed are numbers from 0.")
        if self.precision not in PRECISIONS:
            allowed = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"precision is {self.precision!r}; allowed are {allowed}.")
        if self.schedule not in ("one-cycle", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}; allowed are 'one-cycle', 'constant'.")

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs."""
        n_steps = self.max_epochs * steps_per_epoch
        return self.learning_rate * learning_rate_factor(step, n_steps, self.schedule)

    def kl_weight_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the weight of the divergences at a step."""
        return kl_weight(step, self.kl_warmup_epochs * steps_per_epoch)


def default_batch_size(n_training_cells: int) -> int:
    """Return the cells in a minibatch for a data set of this size.

    Few cells make few steps an epoch; smaller minibatches make more of them.

    Examples
    --------
    >>> default_batch_size(500), default_batch_size(6000)
    (128, 256)
    """
    return 128 if n_training_cells < 3000 else 256


def default_patience(max_epochs: int) -> int:
    """Return the epochs without a lower validation loss after which to stop.

    A third of the epochs at least: while the one-cycle learning rate is high, the validation loss
    goes up and down.

    Examples
    --------
    >>> default_patience(100), default_patience(400)
    (45, 133)
    """
    return max(45, max_epochs // 3)


def default_max_epochs(n_training_cells: int) -> int:
    """Return the number of epochs for a data set of this size: fewer for more cells.

    Examples
    --------
    >>> default_max_epochs(6000), default_max_epochs(1_000_000)
    (100, 10)
    """
    return int(min(400, max(10, round(600_000 / n_training_cells))))


def plan_fit(
    n_training_cells: int, given: dict[str, Any], before: dict[str, Any] | None = None
) -> TrainingPlan:
    """Return the plan of a fit.

    Parameters
    ----------
    n_training_cells
        Decides the numbers that are not given.
    given
        Arguments of `TrainingPlan`; None for ``max_epochs`` and ``batch_size``, and no ``patience``:
        choose.
    before
        Plan of the fit to resume; what was left at its default is taken from there.

    Examples
    --------
    >>> given = {"max_epochs": None, "batch_size": None, "weight_decay": 0.2}
    >>> plan = plan_fit(6000, given)
    >>> plan.max_epochs, plan.batch_size, plan.patience
    (100, 256, 45)
    """
    if before is not None:
        defaults = {field.name: field.default for field in fields(TrainingPlan)}
        defaults |= {"max_epochs": None, "batch_size": None, "patience": "not given"}
        changed = {name: value for name, value in given.items() if value != defaults[name]}
        return TrainingPlan(**(before | changed))
    numbers = dict(given)
    if numbers["max_epochs"] is None:
        numbers["max_epochs"] = default_max_epochs(n_training_cells)
    if numbers["batch_size"] is None:
        numbers["batch_size"] = default_batch_size(n_training_cells)
    if "patience" not in numbers:
        numbers["patience"] = default_patience(numbers["max_epochs"])
    return TrainingPlan(**numbers)


_RISE = 0.1  # share of the steps in which the one-cycle rate rises
_FIRST, _LAST = 1 / 25, 1e-3  # first and last rate, as shares of the peak


def learning_rate_factor(step: int, n_steps: int, schedule: LearningRateSchedule) -> float:
    """Return the learning rate at ``step`` as a share of the peak.

    One-cycle (Smith and Topin, 2019): half a cosine up over the first tenth of the steps, half a
    cosine down over the rest.

    Examples
    --------
    >>> [round(learning_rate_factor(step, 1001, "one-cycle"), 3) for step in (0, 100, 1000)]
    [0.04, 1.0, 0.001]
    """
    if schedule == "constant":
        return 1.0
    peak = _RISE * max(n_steps - 1, 1)
    if step < peak:
        return _half_cosine(_FIRST, 1.0, step / peak)
    return _half_cosine(1.0, _LAST, min((step - peak) / (max(n_steps - 1, 1) - peak), 1.0))


def kl_weight(step: int, n_warmup_steps: int) -> float:
    """Return the weight of the divergences at ``step``: a straight rise from 0 to 1.

    Examples
    --------
    >>> [kl_weight(step, 10) for step in (0, 5, 10, 50)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(step / n_warmup_steps, 1.0) if n_warmup_steps else 1.0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
