"""The Fisher information of counts about their parameters, and what information is in nats."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.nn.likelihoods import Dispersion, GeneLikelihood, negative_binomial_log_prob

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
_EVERY_COUNT_BELOW, _LARGEST_LOG_COUNT = 12, 16.0


def gene_information(genes: GeneLikelihood) -> tuple[Tensor, ...]:
    """Return the Fisher information of each count for (log mean, dropout logit): its three entries.

    With mean m, inverse dispersion r and ``f = m / (1 + m / r)``, that of the log mean of NB(m, r) is
    f. Zeros of NB(m, r) and those that are set to zero are one event, with the score of the sum.
    Each entry is (B, G); without zero inflation only the first is returned.
    """
    log_mean, log_r = genes.log_mean(), genes.log_r
    f = torch.exp(log_mean - F.softplus(log_mean - log_r))
    logit = genes.dropout_logit()
    if logit is None:
        return (f,)
    kept, dropped = torch.sigmoid(-logit), torch.sigmoid(logit)
    zero = negative_binomial_log_prob(torch.zeros_like(f), log_mean, log_r).exp()
    at_zero = dropped + kept * zero
    score_mean = -kept * zero * f / at_zero
    score_logit = dropped * kept * (1 - zero) / at_zero
    return (
        kept * (f - zero * f**2) + at_zero * score_mean**2,
        at_zero * score_mean * score_logit - dropped * kept * zero * f,
        at_zero * score_logit**2 + (1 - at_zero) * dropped**2,
    )


def protein_scores(y: Tensor, parameters: Tensor, dispersion: Dispersion) -> tuple[Tensor, Tensor]:
    """Return log p(y | z) of each protein, (B, T), and its derivatives by its parameters, (B, T, 4).

    b is integrated over q(b | z) by Gauss-Hermite quadrature, whose derivative this is.

    Parameters
    ----------
    y
        Counts, which broadcast to (B, T).
    parameters
        Mean and log standard deviation of q(b | z), log foreground factor, and logit of the background
        probability, (B, T, 4); the mean of b includes the batch's efficiency.
    dispersion
        Inverse dispersions of the proteins.
    """
    mean, log_scale, log_factor, logit = parameters[..., None].unbind(dim=2)
    node, log_weight = (torch.as_tensor(a).to(y) for a in (_NODES, _LOG_WEIGHTS))
    deviation = log_scale.exp() * node
    log_r = dispersion.log_r[..., None]
    parts, scores = [], []
    for log_mean, share in ((mean + deviation, logit), (mean + deviation + log_factor, -logit)):
        log_prob = negative_binomial_log_prob(y[..., None], log_mean, log_r)
        parts.append(log_prob + log_weight + F.logsigmoid(share))
        scores.append((y[..., None] - log_mean.exp()) * torch.sigmoid(log_r - log_mean))
    log_parts = torch.cat(parts, dim=-1)
    in_background, in_foreground = log_parts.softmax(dim=-1).chunk(2, dim=-1)
    weighted = in_background * scores[0] + in_foreground * scores[1]
    by_parameter = [
        weighted.sum(dim=-1),
        (weighted * deviation).sum(dim=-1),
        (in_foreground * scores[1]).sum(dim=-1),
        in_background.sum(dim=-1) - torch.sigmoid(logit[..., 0]),
    ]
    return log_parts.logsumexp(dim=-1), torch.stack(by_parameter, dim=-1)


def protein_information(parameters: Tensor, dispersion: Dispersion) -> Tensor:
    """Return the Fisher information of each protein's count about its parameters, (B, T, 4, 4).

    It is the expected square of the scores: a sum over all counts up to 12, and by the trapezoidal rule
    over counts 15 % apart above, divided by the sum of the probabilities.
    """
    mean, log_scale, log_factor, _ = parameters.unbind(dim=-1)
    largest = (mean + 4 * log_scale.exp() + log_factor).max().clamp(max=_LARGEST_LOG_COUNT).exp()
    counts = _counts_up_to(3 * float(largest))
    total: Tensor | float = 0.0
    information: Tensor | float = 0.0
    for count, width in zip(counts, np.gradient(counts), strict=True):
        y = parameters.new_tensor(count)
        log_prob, scores = protein_scores(y, parameters, dispersion)
        # a count below the first step stands for itself alone
        p = log_prob.exp() * (1.0 if count < _EVERY_COUNT_BELOW else width)
        total = total + p
        information = information + p[..., None, None] * scores[..., None] * scores[..., None, :]
    found: Tensor = information / torch.as_tensor(total)[..., None, None]
    return found


def _counts_up_to(largest: float) -> np.ndarray:
    """Return all counts below 12, and then real ones 15 % apart, to the first above ``largest``."""
    n_steps = max(1, int(np.ceil(np.log(largest / _EVERY_COUNT_BELOW) / np.log(1.15))))
    steps = _EVERY_COUNT_BELOW * 1.15 ** np.arange(n_steps + 1)
    return np.concatenate([np.arange(_EVERY_COUNT_BELOW, dtype=float), steps])


def nats(information: Tensor) -> Tensor:
    """Return ``log det(I + information) / 2`` of each matrix: by how much it narrows N(0, I), in nats.

    Examples
    --------
    >>> round(nats(torch.diag(torch.tensor([0.0, 3.0]))).item() / float(np.log(4)), 4)
    0.5
    """
    eigenvalues = torch.linalg.eigvalsh(information.double()).clamp(min=0)
    return torch.log1p(eigenvalues).sum(dim=-1) / 2


def share_weights(information: Tensor) -> Tensor:
    """Return M such that ``tr(M A)`` is the share of A, a part of ``information``, in its nats.

    The share of A is that of Aumann and Shapley: what A adds to t times the information J, averaged
    over t from 0 to 1, ``tr(A int (I + t J)^-1 dt) / 2``. The shares of all parts add up to `nats`.
    """
    eigenvalues, vectors = torch.linalg.eigh(information.double())
    eigenvalues = eigenvalues.clamp(min=1e-12)
    weight = torch.log1p(eigenvalues) / eigenvalues / 2
    weights: Tensor = (vectors * weight[..., None, :]) @ vectors.mT
    return weights
