"""The aggregated posterior of a group of cells, and how dense each group is where a cell lies."""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

_PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True)
class AggregatedPosterior:
    """The mixture, in equal parts, of q(u | cell) = N(mean, diag(variance)) over a group of cells.

    u is the latent state z itself, or for the logistic normal what z is the softmax of.

    Parameters
    ----------
    mean, variance
        Of each cell, (cells, n_latent).
    """

    mean: np.ndarray
    variance: np.ndarray

    def log_prob(self, u: np.ndarray, left_out: np.ndarray | None = None) -> np.ndarray:
        """Return the log density at each row of ``u``.

        Points and cells are compared in blocks: no more than some million pairs are held, and no pair
        with all its dimensions.

        Parameters
        ----------
        u
            Points, (points, n_latent).
        left_out
            For each point, the position of a cell that is not part of its mixture, or -1 for none.

        Returns
        -------
        (points,) float64.

        Raises
        ------
        ValueError
            When ``u`` has another width than the latent space, or no cell would be left.
        """
        u = np.asarray(u, dtype=np.float64)
        n_cells, n_latent = self.mean.shape
        if u.ndim != 2 or u.shape[1] != n_latent:
            raise ValueError(f"u has shape {u.shape}; allowed is (points, {n_latent}).")
        if left_out is None:
            left_out = np.full(len(u), -1)
        if n_cells == 1 and (left_out >= 0).any():
            raise ValueError("left_out leaves no cell of a group of one; give a larger group.")
        center = self.mean.mean(axis=0, dtype=np.float64)
        mean, variance = self.mean - center, self.variance.astype(np.float64)
        # sum_j (u_j - m_j)^2 / v_j, multiplied out, is two products of matrices
        inverse = (1 / variance).T
        weighted_mean = (mean / variance).T
        constant = (mean**2 / variance + np.log(2 * np.pi * variance)).sum(axis=1)
        result = np.empty(len(u))
        step = max(_PAIRS_AT_ONCE // n_cells, 1)
        for start in range(0, len(u), step):
            rows = slice(start, start + step)
            points, without = u[rows] - center, left_out[rows]
            log_density = -0.5 * (points**2 @ inverse - 2 * (points @ weighted_mean) + constant)
            of_group = np.flatnonzero(without >= 0)
            log_density[of_group, without[of_group]] = -np.inf
            result[rows] = logsumexp(log_density, axis=1) - np.log(n_cells - (without >= 0))
        return result

    def sample(self, n_samples: int, seed: int = 0) -> np.ndarray:
        """Return ``n_samples`` draws of u, (n_samples, n_latent)."""
        rng = np.random.default_rng(seed)
        cells = rng.integers(len(self.mean), size=n_samples)
        noise = rng.standard_normal((n_samples, self.mean.shape[1]))
        return self.mean[cells] + np.sqrt(self.variance[cells]) * noise


def log_density_by_group(
    mean: np.ndarray, variance: np.ndarray, group: np.ndarray, n_groups: int
) -> np.ndarray:
    """Return the log density of each cell's mean u under each group's aggregated posterior.

    A cell is left out of the mixture of its own group: q(u | cell) is at its highest at the cell's own
    mean, which would make every cell look typical of its group, the more so the smaller the group.

    Parameters
    ----------
    mean, variance
        Of q(u | cell), (cells, n_latent).
    group
        Code of each cell's group, from 0; -1 for cells of none. Each group has two cells or more.

    Returns
    -------
    (cells, n_groups) float64.
    """
    result = np.empty((len(mean), n_groups))
    for code in range(n_groups):
        members = np.flatnonzero(group == code)
        own_position = np.full(len(mean), -1)
        own_position[members] = np.arange(len(members))
        mixture = AggregatedPosterior(mean[members], variance[members])
        result[:, code] = mixture.log_prob(mean, own_position)
    return result
