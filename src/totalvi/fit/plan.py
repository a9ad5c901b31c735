"""The plan of a fit: all numbers that the loop uses, their defaults, and schedules by step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from totalvi.errors import DataError, allowed

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # weights stay in float32
LearningRateSchedule = Literal["one-cycle", "constant"]


@dataclass(frozen=True)
class TrainingPlan:
    """The numbers of a fit. Defaults were chosen by measurement; see ``docs/decisions.md``.

    Parameters
    ----------
    max_epochs
        Passes over the training cells, at most.
    batch_size
        Largest number of cells in a minibatch.
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
        Epochs without a lower validation loss after which training stops; None: never.
    accelerator, precision
        As in Lightning Fabric: "auto", "cpu", "cuda", ...; "32-true", "bf16-mixed", "16-mixed", or
        "auto" (see `totalvi.fit.device.resolve_precision`). Weights and validation always use float32.
    adversary_weight
        Weight of deceiving a classifier of panels, in nats per cell; 0: no classifier. See `Adversary`.
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
                raise ValueError(allowed(name, value, f"whole numbers from {smallest}"))
        for name in ("learning_rate", "gradient_clip_norm"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and math.isfinite(value) and float(value) > 0):
                raise ValueError(allowed(name, value, "numbers above 0"))
        for name in ("weight_decay", "adversary_weight"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= 0):
                raise ValueError(allowed(name, value, "numbers from 0"))
        if self.precision not in PRECISIONS:
            raise ValueError(allowed("precision", self.precision, PRECISIONS))
        schedules = ("one-cycle", "constant")
        if self.schedule not in schedules:
            raise ValueError(allowed("schedule", self.schedule, schedules))

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs."""
        n_steps = self.max_epochs * steps_per_epoch
        return self.learning_rate * learning_rate_factor(step, n_steps, self.schedule)

    def kl_weight_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the weight of the divergences at a step."""
        return kl_weight(step, self.kl_warmup_epochs * steps_per_epoch)


def default_batch_size(n_training_cells: int) -> int:
    """Return the number of cells in a minibatch for a data set of this size.

    Few cells give few steps per epoch, and smaller minibatches give more.

    Examples
    --------
    >>> default_batch_size(500), default_batch_size(6000)
    (128, 256)
    """
    return 128 if n_training_cells < 3000 else 256


def default_patience(max_epochs: int) -> int:
    """Return the number of epochs without a lower validation loss after which to stop.

    It is at least a third of the epochs, because the validation loss fluctuates while the one-cycle
    learning rate is high.

    Examples
    --------
    >>> default_patience(100), default_patience(400)
    (45, 133)
    """
    return max(45, max_epochs // 3)


def default_max_epochs(n_training_cells: int) -> int:
    """Return the number of epochs for a data set of this size: fewer for more cells.

    It is 100 epochs, more when they are fewer than 600 steps, and fewer when they show the network
    more than 600,000 cells.

    Examples
    --------
    >>> default_max_epochs(500), default_max_epochs(6000), default_max_epochs(1_000_000)
    (154, 100, 10)
    """
    epochs_of_600_steps = 600 * default_batch_size(n_training_cells) / n_training_cells
    epochs = min(max(100, epochs_of_600_steps), 600_000 / n_training_cells)
    return int(min(400, max(10, round(epochs))))


def plan_fit(
    n_training_cells: int, given: dict[str, Any], before: dict[str, Any] | None = None
) -> TrainingPlan:
    """Return the plan of a fit.

    Parameters
    ----------
    n_training_cells
        Number of cells, from which missing numbers follow.
    given
        Arguments of `TrainingPlan`. If ``max_epochs`` or ``batch_size`` is None, or ``patience`` is
        missing, it is chosen.
    before
        Plan of the fit to resume; arguments left at their defaults are read from it.

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
_FIRST, _LAST = 1 / 25, 1e-3  # first and last rate as shares of the peak


def learning_rate_factor(step: int, n_steps: int, schedule: LearningRateSchedule) -> float:
    """Return the learning rate at ``step`` as a share of the peak.

    "one-cycle" (Smith and Topin, 2019) rises as half a cosine over the first tenth of the steps,
    and falls as half a cosine over the rest.

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
    """Return the weight of the divergences at ``step``, which rises linearly from 0 to 1.

    Examples
    --------
    >>> [kl_weight(step, 10) for step in (0, 5, 10, 50)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(step / n_warmup_steps, 1.0) if n_warmup_steps else 1.0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


MOST_VALIDATION_CELLS = 50_000
"""More cells would cost time in every epoch, and memory, and hardly change when a fit stops."""
DEFAULT_SIZES: tuple[float, float | None] = (0.9, None)


class Split(NamedTuple):
    """Positions of the cells for training, for validation (and early stopping), and for tests."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def random_split(
    n_cells: int, train_size: float, validation_size: float | None, rng: np.random.Generator
) -> Split:
    """Split cells at random.

    Parameters
    ----------
    n_cells
        Number of cells.
    train_size
        Share of training cells, above 0 and at most 1.
    validation_size
        Share of validation cells; the rest is the test set. None: all that ``train_size`` leaves.
    rng
        Generator of the order.

    Raises
    ------
    ValueError
        When the shares are not within bounds, or leave fewer than two training cells.

    Examples
    --------
    >>> import numpy as np
    >>> split = random_split(100, 0.8, 0.05, np.random.default_rng(0))
    >>> [len(part) for part in split]
    [80, 5, 15]
    """
    if not (isinstance(train_size, Real) and 0 < train_size <= 1):
        raise ValueError(allowed("train_size", train_size, "numbers above 0, at most 1"))
    left = 1 - train_size
    validation_size = left if validation_size is None else validation_size
    if not (isinstance(validation_size, Real) and 0 <= validation_size <= left + 1e-9):
        choices = f"numbers from 0 to {left:g}, which train_size leaves"
        raise ValueError(allowed("validation_size", validation_size, choices))
    n_train = int(np.ceil(train_size * n_cells - 1e-9))
    n_validation = min(round(validation_size * n_cells), n_cells - n_train)
    order = rng.permutation(n_cells)
    parts = np.split(order, [n_train, n_train + n_validation])
    return check_split(Split(*(np.sort(part) for part in parts)), n_cells)


def fewer_validate(split: Split, rng: np.random.Generator) -> Split:
    """Keep `MOST_VALIDATION_CELLS` for validation, and hold the others out for tests."""
    if len(split.validation) <= MOST_VALIDATION_CELLS:
        return split
    parts = np.split(rng.permutation(split.validation), [MOST_VALIDATION_CELLS])
    test = np.sort(np.concatenate([split.test, parts[1]]))
    return split._replace(validation=np.sort(parts[0]), test=test)


def choose_split(
    given: Sequence[Any] | None,
    n_cells: int,
    sizes: tuple[float, float | None],
    rng: np.random.Generator,
) -> Split:
    """Return the given split after checks, or a random one of these sizes; see `Model.train`."""
    if given is None:
        split = random_split(n_cells, *sizes, rng)
        return fewer_validate(split, rng) if sizes[1] is None else split
    return check_split(given, n_cells)


def check_split(given: Sequence[Any], n_cells: int) -> Split:
    """Return three lists of cells as a `Split`; they must be disjoint positions below ``n_cells``.

    Raises
    ------
    ValueError
        When there are not three lists of whole numbers, or a position is out of range or repeated.
    DataError
        When there are fewer than two training cells.
    """
    if len(given) != 3:
        raise ValueError(f"split has {len(given)} parts; allowed are train, validation and test.")
    parts = [np.asarray(part) for part in given]
    for name, part in zip(Split._fields, parts, strict=True):
        if part.ndim != 1 or (part.size and not np.issubdtype(part.dtype, np.integer)):
            raise ValueError(f"split's {name} is not a list of positions (whole numbers).")
    split = Split(*(part.astype(np.int64) for part in parts))
    every = np.concatenate(split)
    if len(every) and (every.min() < 0 or every.max() >= n_cells):
        raise ValueError(
            f"split holds positions from {every.min()} to {every.max()}; "
            f"allowed are 0 to {n_cells - 1}."
        )
    if len(np.unique(every)) != len(every):
        raise ValueError("split holds a cell twice; each may be in one part only.")
    if len(split.train) < 2:
        raise DataError(
            f"The split leaves {len(split.train)} cells to train on, and 2 are the least; raise "
            "train_size or give more cells."
        )
    return split
