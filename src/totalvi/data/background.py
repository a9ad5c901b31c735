"""Where the prior of each protein's background starts: at the lower mode of its counts."""

import numpy as np

_EM_ITERATIONS = 50
_LEAST_CELLS = 20
_LEAST_BACKGROUND = 0.05  # counts a cell
_SCALE_RANGE = (0.2, 1.5)


def empirical_background_prior(
    protein: np.ndarray, panel: np.ndarray, panel_measured: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate mean and standard deviation of each protein's log background, by panel.

    Two normal components are fitted to log(1 + counts) of each protein; the lower one is the
    background. Where cells are too few to tell two components, the lower quartile stands in.

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
        mean[code], scale[code] = _lower_component(np.log1p(protein[panel == code]))
    mean = np.log(np.maximum(np.expm1(mean), _LEAST_BACKGROUND))
    scale = np.clip(scale, *_SCALE_RANGE)
    weight = panel_measured / panel_measured.sum(axis=0)
    return (
        np.where(panel_measured, mean, (weight * mean).sum(axis=0)),
        np.where(panel_measured, scale, (weight * scale).sum(axis=0)),
    )


def _lower_component(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit two normals to each column by expectation maximisation; return the lower's moments."""
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
