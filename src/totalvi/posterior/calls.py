"""From probabilities to calls: Bayes factors, and a posterior expected false discovery rate."""

import numpy as np

_SMALLEST = 1e-12


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), the Bayes factor under even prior odds, kept finite.

    Examples
    --------
    >>> import numpy as np
    >>> log_odds(np.array([0.5, 1.0])).round(1)
    array([ 0. , 27.6])
    """
    p = np.clip(probability, _SMALLEST, 1 - _SMALLEST)
    return np.log(p) - np.log1p(-p)


def expected_fdr_calls(proba_not: np.ndarray, target: float) -> np.ndarray:
    """Call as many features as keep the posterior expected false discovery rate within ``target``.

    The expected rate of a set of calls is the mean of their ``proba_not``, so the likeliest features
    are called first (Boyeau et al., "Deep generative models for detecting differential expression in
    single cells", 2019). Features without a probability (NaN) are never called.

    Examples
    --------
    >>> import numpy as np
    >>> expected_fdr_calls(np.array([0.3, 0.0, 0.08, np.nan]), 0.05).tolist()
    [False, True, True, False]
    """
    order = np.argsort(proba_not, kind="stable")  # NaN last
    rate = np.cumsum(proba_not[order]) / np.arange(1, len(order) + 1)
    calls = np.zeros(len(order), dtype=bool)
    calls[order[: int((rate <= target).sum())]] = True
    return calls
