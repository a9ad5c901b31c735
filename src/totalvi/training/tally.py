"""What the training loop keeps count of: mean losses, the best weights, skipped steps."""

import math

import torch
from torch import Tensor

from totalvi.errors import TrainingError
from totalvi.module.elbo import ElboTerms
from totalvi.module.totalvi import TOTALVI

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

    def add(self, terms: ElboTerms) -> None:
        """Count the cells of one minibatch."""
        sums = torch.stack([term.detach().sum() for term in terms])
        self.total = sums if self.total is None else self.total + sums
        self.n_cells += len(terms.kl_div_z)

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
