"""The protein likelihood and the background's divergence with all their gradients, cell by cell.

With a = log mean - log r and S = log(1 + e**a) of each part of the mixture,

    P = rising(r, y) - log y! + y log mean - (y + r) S      log NB of the part
    t = P_foreground - P_background - logit                 sigmoid(t): posterior of the foreground
    log p(y) = P_background + log(1 + e**t) - log(1 + e**-logit)

With K samples of the log background, the loss is -log of the average of p(y) over them, protein by
protein; each sample counts in the gradients by its share of the sum.
"""

import numpy as np
from numba import prange

from totalvi.compiled import compiled
from totalvi.nn.cpu.math import exp, log, log1p, log_factorial, rising


@compiled(error_model="numpy")
def _softplus(x: float, one: float) -> tuple[float, float]:
    """Return log(1 + e**x) and its derivative, the sigmoid of x; ``one`` is 1 of x's type."""
    small = exp(-abs(x))
    share = one / (one + small)
    return max(x, one - one) + log1p(small), share if x >= 0 else small * share


@compiled(parallel=True, error_model="numpy")
def mixture_loss(
    y: np.ndarray, measured: np.ndarray, log_background: np.ndarray, factor: np.ndarray,
    logit: np.ndarray, log_r: np.ndarray, group: np.ndarray, loss: np.ndarray,
    d_log_background: np.ndarray, d_factor: np.ndarray, d_logit: np.ndarray, d_log_r: np.ndarray,
) -> None:  # fmt: skip
    """Fill in minus the log-likelihood of each cell's proteins, and its derivatives.

    Parameters
    ----------
    y
        Counts (B, T).
    measured
        Which count in the cell's panel, (B, T) or (0, 0) for all; others get zeros everywhere.
    log_background
        Samples of the log background mean, (K, B, T).
    factor, logit
        Foreground factor, and logit of the background, (B, T).
    log_r, group
        Log inverse dispersions (groups, T), and the group of each cell (B,).
    loss
        (B,), filled in.
    d_log_background, d_factor, d_logit, d_log_r
        Derivatives of the loss of each cell, the first (K, B, T), the others (B, T), filled in.
    """
    n_samples, n_cells, n_proteins = log_background.shape
    for b in prange(n_cells):
        one = y.dtype.type(1)
        zero = one - one
        total = zero
        log_likelihood = np.empty(n_samples, dtype=y.dtype)
        for t in range(n_proteins):
            if len(measured) and not measured[b, t]:
                d_log_background[:, b, t] = 0
                d_factor[b, t] = d_logit[b, t] = d_log_r[b, t] = 0
                continue
            count, log_rate = y[b, t], log_r[group[b], t]
            r = exp(log_rate)
            log_factor = log(factor[b, t])
            prior, background_prior = _softplus(-logit[b, t], one)
            log_ratio, difference = rising(r, count)
            # sums over the samples, each times its likelihood over the largest so far
            weight, by_fore_sum, foreground_sum, by_rate_sum = zero, zero, zero, zero
            largest = zero
            for k in range(n_samples):
                mean_back = log_background[k, b, t]
                mean_fore = mean_back + log_factor
                s_back, share_back = _softplus(mean_back - log_rate, one)
                s_fore, share_fore = _softplus(mean_fore - log_rate, one)
                back = count * mean_back - (count + r) * s_back
                fore = count * mean_fore - (count + r) * s_fore
                mixed, foreground = _softplus(fore - back - logit[b, t], one)
                background = one - foreground
                by_back = background * (count - (count + r) * share_back)
                by_fore = foreground * (count - (count + r) * share_fore)
                s = background * s_back + foreground * s_fore
                share = background * share_back + foreground * share_fore
                log_likelihood[k] = back + mixed
                d_log_background[k, b, t] = -(by_back + by_fore)
                before, value = largest, log_likelihood[k]
                largest = max(before, value) if k else value
                shrink = exp(before - largest) if k else zero
                own = exp(value - largest)
                weight = weight * shrink + own
                by_fore_sum = by_fore_sum * shrink + own * by_fore
                foreground_sum = foreground_sum * shrink + own * foreground
                by_rate_sum = by_rate_sum * shrink + own * (r * s - (count + r) * share)
            log_sum = largest + log(weight)
            for k in range(n_samples):
                d_log_background[k, b, t] *= exp(log_likelihood[k] - log_sum)
            common = log_ratio - y.dtype.type(log_factorial(count))
            total -= common + log_sum - log(one * n_samples) - prior
            d_factor[b, t] = -by_fore_sum / weight / factor[b, t]
            d_logit[b, t] = foreground_sum / weight - background_prior
            d_log_r[b, t] = count - r * difference + by_rate_sum / weight
        loss[b] = total


@compiled(parallel=True, error_model="numpy")
def background_divergence(
    measured: np.ndarray, mean: np.ndarray, scale: np.ndarray, prior_mean: np.ndarray,
    prior_log_scale: np.ndarray, panel: np.ndarray, divergence: np.ndarray,
    d_mean: np.ndarray, d_scale: np.ndarray, d_prior_log_scale: np.ndarray,
) -> None:  # fmt: skip
    """Fill in KL(N(mean, scale**2) || prior of the cell's panel) summed over proteins, and derivatives.

    Shapes are those of `mixture_loss`; the prior's parameters are (panels, T). The derivative by the
    prior's mean is minus that by the mean.
    """
    n_cells, n_proteins = mean.shape
    for b in prange(n_cells):
        total = mean.dtype.type(0)
        for t in range(n_proteins):
            if len(measured) and not measured[b, t]:
                d_mean[b, t] = d_scale[b, t] = d_prior_log_scale[b, t] = 0
                continue
            precision = exp(-2 * prior_log_scale[panel[b], t])
            difference = mean[b, t] - prior_mean[panel[b], t]
            variance_ratio = scale[b, t] * scale[b, t] * precision
            shift = difference * difference * precision
            total += (variance_ratio + shift - 1 - log(variance_ratio)) / 2
            d_mean[b, t] = difference * precision
            d_scale[b, t] = scale[b, t] * precision - 1 / scale[b, t]
            d_prior_log_scale[b, t] = 1 - variance_ratio - shift
        divergence[b] = total
