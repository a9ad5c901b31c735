"""Whether the estimated background of proteins agrees with the counts of isotype controls."""

from typing import NamedTuple

import numpy as np
import pandas as pd

MOST_FOLD = 10.0
_LEAST_COUNT = 0.05


class IsotypeCheck(NamedTuple):
    """What isotype controls say of the background.

    Attributes
    ----------
    controls
        A row a control: ``mean_count``; ``correlation``, over cells, of its log(1 + count) with the
        cell's log background, averaged over proteins; ``n_cells``.
    proteins
        A row a protein: ``background_mean`` over cells, ``control_mean`` (of the highest control in
        the same cells), ``log2_over_controls``, ``correlation`` with the cell's mean
        log(1 + count) of the controls, and ``warning``: what does not agree, or "".
    """

    controls: pd.DataFrame
    proteins: pd.DataFrame


def isotype_check(
    background: pd.DataFrame, controls: pd.DataFrame, group: np.ndarray
) -> IsotypeCheck:
    """Compare the background means of proteins with the counts of isotype controls.

    What clings to a cell, or floats around it, has antibodies of all kinds: where a cell has more
    counts of the controls, its background should be higher. Correlations are within groups of cells,
    since levels differ between batches. The level of a protein's background depends on how much of
    its antibody was used, so only a large excess over the controls is remarkable: tenfold, which a
    signal that most cells have may be.

    Parameters
    ----------
    background
        Background means, cells x proteins, NaN where unmeasured.
    controls
        Counts, cells x controls, NaN where unmeasured.
    group
        Code of each cell's batch and panel.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> level = np.exp(rng.normal(size=(500, 1)))
    >>> background = pd.DataFrame(level * [[3.0, 200.0]], columns=["CD3", "CD45"])
    >>> controls = pd.DataFrame(rng.poisson(4 * level), columns=["IgG1"])
    >>> check = isotype_check(background, controls, np.zeros(500, dtype=int))
    >>> check.proteins["warning"].to_dict()
    {'CD3': '', 'CD45': 'background 51 times the isotype controls'}
    >>> bool(check.controls.loc["IgG1", "correlation"] > 0.8)
    True
    """
    log_background = np.log(background.to_numpy(np.float64))
    log_controls = np.log1p(controls.to_numpy(np.float64))
    centred = _centred(log_background, group)
    centred_controls = _centred(log_controls, group)
    of_cell, controls_of_cell = _row_mean(centred), _row_mean(centred_controls)
    by_control = pd.DataFrame(
        {
            "mean_count": controls.mean(),
            "correlation": [_correlation(column, of_cell) for column in centred_controls.T],
            "n_cells": controls.notna().sum(),
        }
    ).rename_axis("control")
    rows = {}
    for name, logs, column in zip(background, log_background.T, centred.T, strict=True):
        measured = np.isfinite(logs)
        level = float(np.exp(logs[measured]).mean()) if measured.any() else np.nan
        highest = float(controls[measured].mean().max())
        fold = level / max(highest, _LEAST_COUNT)
        rows[name] = {
            "background_mean": level,
            "control_mean": highest,
            "log2_over_controls": np.log2(fold),
            "correlation": _correlation(column, controls_of_cell),
            "warning": f"background {fold:.0f} times the isotype controls"
            if fold > MOST_FOLD
            else "",
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("protein")
    return IsotypeCheck(by_control, table)


def _centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the values less the mean of their column within the group."""
    centred = values.copy()
    for code in np.unique(group):
        centred[group == code] -= _row_mean(values[group == code].T)
    return centred


def _row_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row, NaN left out; NaN where there is nothing else."""
    known = np.isfinite(values)
    n = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation where both are known; NaN where one is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return np.nan
    return float(np.corrcoef(a[both], b[both])[0, 1])
