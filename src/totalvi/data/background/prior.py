"""Start and anchor of the prior of each protein's background.

The prior starts at the lower mode of the counts. With empty droplets, it starts at their profile over
proteins and is anchored there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.data.background.ambient import AmbientProfile
from totalvi.data.background.droplets import ANY_BATCH
from totalvi.data.counts import Counts, evenly_spaced
from totalvi.data.finding import did_you_mean
from totalvi.errors import DataError

_MOST_CELLS = 10_000  # cells of a panel that are enough to find a mode
_EM_ITERATIONS = 50
_LEAST_CELLS = 20
_LEAST_BACKGROUND = 0.05  # counts per cell
_SCALE_RANGE = (0.2, 1.5)
# Standard deviations between the profiles of droplets and cells: of log counts, and of the log spread.
_MEAN_TOLERANCE = 0.1
_SCALE_TOLERANCE = 0.3


def empirical_background_prior(
    protein: Counts[np.ndarray], panel: np.ndarray, panel_measured: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate mean and standard deviation of each protein's log background, by panel.

    Two normal components are fitted to log(1 + counts) of each protein; the lower one is the
    background. With too few cells for two components, the lower quartile is used instead. Of each
    panel, at most 10,000 evenly spaced cells are used.

    Parameters
    ----------
    protein
        Counts (N, T).
    panel
        Panel code of each cell, (N,).
    panel_measured
        Which protein each panel measured, (panels, T).

    Returns
    -------
    Means and standard deviations, each (panels, T), in log counts. A protein that a panel did not
    measure gets the average over the panels that did.
    """
    n_panels, n_proteins = panel_measured.shape
    mean = np.zeros((n_panels, n_proteins))
    scale = np.ones((n_panels, n_proteins))
    for code in range(n_panels):
        mean[code], scale[code] = _lower_component(_log_counts(protein, panel == code))
    mean = np.log(np.maximum(np.expm1(mean), _LEAST_BACKGROUND))
    scale = np.clip(scale, *_SCALE_RANGE)
    weight = panel_measured / np.maximum(panel_measured.sum(axis=0), 1)
    return (
        np.where(panel_measured, mean, (weight * mean).sum(axis=0)),
        np.where(panel_measured, scale, (weight * scale).sum(axis=0)),
    )


class BackgroundAnchor(NamedTuple):
    """The anchor of the background prior; each field is (panels, T).

    Attributes
    ----------
    log_mean, log_scale
        Profiles over proteins of the log background's mean and log standard deviation. Each is known up
        to a constant by panel, because droplets and cells differ in the level of the background.
    mean_precision, scale_precision
        Precision of each profile; 0 if there are no droplets for a protein.
    """

    log_mean: np.ndarray
    log_scale: np.ndarray
    mean_precision: np.ndarray
    scale_precision: np.ndarray


def anchored_background_prior(
    mean: np.ndarray, scale: np.ndarray, ambient: AmbientProfile, panels: "PanelBatches"
) -> tuple[np.ndarray, np.ndarray, BackgroundAnchor]:
    """Shift an empirical prior to the profile of empty droplets, and anchor it there.

    Cells and droplets share the proportions of proteins in the background, but not its level. The level
    of a panel is where the lower modes of most of its proteins agree. A few proteins without a lower
    mode, which every cell carries, do not influence it.

    Parameters
    ----------
    mean, scale
        From `empirical_background_prior`, (panels, T).
    ambient
        Profile of the empty droplets.
    panels
        Names of the proteins and of each panel's batches.

    Returns
    -------
    The initial means and standard deviations of the prior, (panels, T), and the anchor.

    Raises
    ------
    DataError
        When ``ambient`` has none of the batches or none of the proteins.
    """
    log_mean, log_sd, error = _by_panel(ambient, panels)
    known = np.isfinite(log_mean)
    mean, scale = mean.copy(), scale.copy()
    for row, has in enumerate(known):
        if has.any():
            level = _densest_half(mean[row, has] - log_mean[row, has])
            mean[row, has] = log_mean[row, has] + level
            scale[row, has] = np.clip(log_sd[row, has], *_SCALE_RANGE)
    anchor = BackgroundAnchor(
        log_mean=np.where(known, log_mean, 0.0),
        log_scale=np.where(known, np.log(np.where(known, log_sd, 1.0)), 0.0),
        mean_precision=np.where(known, 1 / (_MEAN_TOLERANCE**2 + np.square(error)), 0.0),
        scale_precision=np.where(known, 1 / _SCALE_TOLERANCE**2, 0.0),
    )
    return mean, scale, anchor


class PanelBatches(NamedTuple):
    """Names of the proteins, of the batches, and the codes of the batches in each panel."""

    protein_names: Sequence[str]
    batch_names: Sequence[str]
    batches: Sequence[np.ndarray]


def _by_panel(ambient: AmbientProfile, panels: PanelBatches) -> tuple[np.ndarray, ...]:
    """Return log mean, spread and standard error by panel, (panels, T); NaN if not known."""
    batches = pd.unique(ambient.batch)
    unknown = [name for name in batches if name not in (*panels.batch_names, ANY_BATCH)]
    if unknown and len(unknown) == len(batches):
        raise DataError(
            f'the empty droplets are of batch "{unknown[0]}", and the cells of none of that name; '
            f"{did_you_mean(unknown[0], panels.batch_names)}."
        )
    if not np.isin(ambient.protein, panels.protein_names).any():
        raise DataError(
            "the empty droplets have none of the proteins of the cells, but "
            f'"{ambient.protein[0]}"; {did_you_mean(ambient.protein[0], panels.protein_names)}.'
        )
    rates = {name: ambient.at(name, panels.protein_names) for name in batches}
    of_panels = [
        [
            rates[name]
            for code in codes
            for name in (panels.batch_names[code], ANY_BATCH)
            if name in rates
        ]
        for codes in panels.batches
    ]
    n_proteins = len(panels.protein_names)
    return tuple(
        np.stack(
            [_mean_of_known([rate[i] for rate in of_panel], n_proteins) for of_panel in of_panels]
        )
        for i in range(3)
    )


def _mean_of_known(rows: list[np.ndarray], n_proteins: int) -> np.ndarray:
    values = np.array([np.full(n_proteins, np.nan), *rows])
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _densest_half(values: np.ndarray) -> float:
    """Return the mean of the half of the values that lie closest together."""
    ordered = np.sort(values)
    n_half = len(ordered) // 2 + 1
    widths = ordered[n_half - 1 :] - ordered[: len(ordered) - n_half + 1]
    first = int(widths.argmin())
    return float(ordered[first : first + n_half].mean())


def _log_counts(protein: Counts[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Return log(1 + counts) of the chosen cells, or of evenly spaced ones if there are many."""
    rows = evenly_spaced(np.flatnonzero(chosen), _MOST_CELLS, rounding="down")
    return np.log1p(protein.rows(rows).astype(np.float64))


def _lower_component(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit two normals to each column by expectation maximisation; return the moments of the lower."""
    low, high = np.quantile(values, [0.25, 0.9], axis=0)
    if len(values) < _LEAST_CELLS:
        return low, np.full_like(low, 0.5)
    means = np.stack([low, high])  # (2, T)
    variances = np.tile(np.maximum(values.var(axis=0) / 4, 1e-2), (2, 1))
    shares = np.full_like(means, 0.5)
    for _ in range(_EM_ITERATIONS):
        log_density = (
            np.log(shares)
            - 0.5 * np.log(variances)
            - 0.5 * (values[:, None, :] - means) ** 2 / variances
        )  # (N, 2, T)
        log_density -= log_density.max(axis=1, keepdims=True)
        weight = np.exp(log_density)
        weight /= weight.sum(axis=1, keepdims=True)
        total = weight.sum(axis=0) + 1e-6
        shares = total / total.sum(axis=0)
        means = (weight * values[:, None, :]).sum(axis=0) / total
        spread = (weight * (values[:, None, :] - means) ** 2).sum(axis=0) / total
        variances = np.maximum(spread, 1e-2)
    lower = means.argmin(axis=0)
    columns = np.arange(values.shape[1])
    return means[lower, columns], np.sqrt(variances[lower, columns])
