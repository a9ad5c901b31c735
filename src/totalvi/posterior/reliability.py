"""How well proteins are imputed: measured in cells that measured them, whose proteins are hidden."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from totalvi.feed import Minibatch
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.imputation import Predicted

_FEWEST_CELLS = 20  # of which a 90 % interval can be calibrated


class HiddenProteins(NamedTuple):
    """Counts of N cells that were hidden from the model, and what it predicted; each (N, t).

    Parameters
    ----------
    observed
        Counts; NaN where a cell did not measure the protein.
    log1p
        Predicted mean of log(1 + count).
    below
        Probability that it gave to a lower count than the one observed (half of ties included).
    """

    observed: np.ndarray
    log1p: np.ndarray
    below: np.ndarray


class Reliability(NamedTuple):
    """How well each protein is imputed, each (t,); NaN where too few cells tell.

    Parameters
    ----------
    n_cells
        Cells whose counts were hidden.
    pearson, rmse
        Of log(1 + count) and its predicted mean: correlation, and root mean squared error.
    coverage
        Share of counts inside the interval that has the probability asked for, before calibration.
    """

    n_cells: np.ndarray
    pearson: np.ndarray
    rmse: np.ndarray
    coverage: np.ndarray


def without_proteins(
    batches: Iterable[Minibatch], module: TOTALVI, panel: int, batch_codes: np.ndarray
) -> Iterator[Minibatch]:
    """Yield cells as if they came from a panel: its batches, in turn, and only its proteins.

    That is how a cell of that panel reaches the encoder.
    """
    for batch in batches:
        shown = torch.zeros_like(batch.y)
        if module.protein_mask is not None:
            shown = batch.y * module.protein_mask[panel]
        code = torch.from_numpy(batch_codes[batch.cells % len(batch_codes)])
        context = batch.context._replace(
            batch=code.to(batch.context.batch), panel=torch.full_like(batch.context.panel, panel)
        )
        yield batch._replace(y=shown, context=context)


def hidden_proteins(
    predictions: Iterable[tuple[Minibatch, Predicted]], observed: np.ndarray
) -> HiddenProteins:
    """Gather predictions beside the counts ``observed`` (N, t) of the same cells, in their order."""
    parts, start = [], 0
    for batch, predicted in predictions:
        counts = observed[start : start + len(batch.cells)]
        start += len(counts)
        parts.append(
            HiddenProteins(
                counts,
                predicted.log1p_mean(),
                predicted.distribution_function(counts),
            )
        )
    return HiddenProteins(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def reliability(hidden: HiddenProteins, interval: float) -> Reliability:
    """Compare predictions with what was hidden; ``interval`` is the probability of the interval."""
    known = ~np.isnan(hidden.observed)
    n_cells = known.sum(axis=0)
    columns = [
        _of_protein(*(part[known[:, t], t] for part in hidden), interval=interval)
        for t in range(known.shape[1])
    ]
    return Reliability(n_cells, *np.array(columns).reshape(-1, 3).T)


def _of_protein(
    observed: np.ndarray,
    log1p: np.ndarray,
    below: np.ndarray,
    *,
    interval: float,
) -> tuple[float, float, float]:
    if len(observed) < 2:
        return (np.nan,) * 3
    logs = np.log1p(observed)
    varies = logs.std() > 0 and log1p.std() > 0
    return (
        float(np.corrcoef(logs, log1p)[0, 1]) if varies else np.nan,
        float(np.sqrt(((logs - log1p) ** 2).mean())),
        float((np.abs(below - 0.5) <= interval / 2).mean()),
    )


def calibrated_probabilities(hidden: HiddenProteins, interval: float) -> np.ndarray:
    """Return the probabilities between which a share ``interval`` of hidden counts lies, (2, t).

    The predictive distribution functions at the hidden counts are uniform where the model is right;
    their own quantiles at the limits correct it where it is not (Kuleshov, Fenner and Ermon, 2018).
    With too few cells for that, the probabilities are left as asked for.
    """
    limits = np.array([(1 - interval) / 2, (1 + interval) / 2])
    calibrated = np.repeat(limits[:, None], hidden.observed.shape[1], axis=1)
    known = ~np.isnan(hidden.observed)
    for t in np.flatnonzero(known.sum(axis=0) >= _FEWEST_CELLS):
        calibrated[:, t] = np.quantile(hidden.below[known[:, t], t], limits, method="weibull")
    return calibrated
