"""Partly known labels of points: the label of each other point, and which are like none of them."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from totalvi.data.counts import evenly_spaced
from totalvi.mapping.reference_neighbours import nearest, nearest_to_each

_N_FOLDS = 10
_N_NEIGHBOURS = 10
_ENDS = 0.05  # probability that a walk ends before its next step
_STEPS = 100  # after which 0.6 % of the walks have not ended
_MOST_POINTS = 50_000  # of a graph; other points take one step into it
_MOST_LEARNED = 10_000  # labelled points that the classifier is fitted to
_PENALTY = 200.0  # the inverse of the classifier's ridge penalty
_DOUBT = 1e-3  # share of the walks that is spread over the labels by their frequency
_LOG_TEMPERATURES = np.linspace(-1.5, 1.5, 61)
_TEMPERATURE_SPREAD = 0.15  # standard deviation of the log temperature before data
_MOST_BINS = 500


class PartlyLabelled(NamedTuple):
    """What partly known labels say of N points.

    Attributes
    ----------
    probabilities
        Of each label, if the point has one of them, (N, labels).
    reach
        Probability that a random walk from the point comes to a labelled one, (N,).
    p_value
        Share of labelled points that are reached as little, (N,).
    unlike
        Probability that the point is of none of the labels, (N,).

    Of a labelled point, all of them are found without its own label.
    """

    probabilities: np.ndarray
    reach: np.ndarray
    p_value: np.ndarray
    unlike: np.ndarray


def spread_labels(points: np.ndarray, code: np.ndarray, rng: np.random.Generator) -> PartlyLabelled:
    """Return the label of each point, from those that are known.

    Two answers are multiplied, and the square root is taken: that of a logistic regression on the
    labelled points, and the shares of the labels where random walks end (`walks`), which follow the
    shape of the populations. A temperature, from hidden labels, calibrates the result. A walk that
    comes to no labelled point says that there is none nearby: see `tail_of_hidden`.

    Parameters
    ----------
    points
        Shape (N, dimensions).
    code
        Label of each point, from 0 to the number of labels; -1 where it is not known.
    rng
        Chooses which labels are hidden together.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = np.repeat([0, 1, 2], 100)
    >>> points = 10 * np.eye(3)[truth] + rng.normal(0, 1, (300, 3))
    >>> code = np.where((np.arange(300) % 10 == 0) & (truth < 2), truth, -1)
    >>> found = spread_labels(points, code, rng)
    >>> bool((found.probabilities.argmax(axis=1) == truth)[:200].all())
    True
    >>> bool(found.reach[200:].max() < found.reach[:200].min())
    True
    """
    n_labels = int(code.max()) + 1
    labelled = np.flatnonzero(code >= 0)
    frequency = np.bincount(code[labelled], minlength=n_labels) / len(labelled)
    fold = np.full(len(code), -1)
    fold[rng.permutation(labelled)] = np.arange(len(labelled)) % _N_FOLDS
    graph = Graph.of(points, labelled)

    def answer(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = walks(graph, np.where(known, code, -1), n_labels)
        shares = ends + _DOUBT * frequency
        by_place = _classified(points, code, np.flatnonzero(known), n_labels)
        return _scaled(np.sqrt(by_place * shares)), ends.sum(axis=1)

    probabilities, reach = answer(fold >= 0)
    reach_without = np.zeros((len(code), _N_FOLDS))
    for k in range(_N_FOLDS):
        hidden = fold == k
        without, reach_without[:, k] = answer((fold >= 0) & ~hidden)
        probabilities[hidden], reach[hidden] = without[hidden], reach_without[hidden, k]
    temperature = _temperature(probabilities[labelled], code[labelled])
    probabilities = _scaled(probabilities ** (1 / temperature))
    others = code < 0
    expected = probabilities[others].mean(axis=0) if others.any() else frequency
    # a point whose label no other fold has is like none of those that are left
    by_fold = np.zeros((n_labels, _N_FOLDS), dtype=bool)
    by_fold[code[labelled], fold[labelled]] = True
    comparable = labelled[by_fold.sum(axis=1)[code[labelled]] > 1]
    weight = np.zeros(len(code))
    weight[comparable] = (expected / frequency)[code[comparable]]
    p_value = tail_of_hidden(reach_without, fold, weight)
    unlike = probability_unlike(p_value, others, effective_number(weight))
    return PartlyLabelled(probabilities, reach, p_value, unlike)


class Graph(NamedTuple):
    """The steps of random walks between points.

    Parameters
    ----------
    step
        Probability of each step between the points of the graph, (M, M).
    chosen
        Positions of these points.
    entry
        For each other point, the points of the graph where its walk may enter, (N - M, neighbours).
    """

    step: sparse.csr_matrix
    chosen: np.ndarray
    entry: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, labelled: np.ndarray) -> "Graph":
        """Join each point to its nearest ones, and to those that it is among the nearest of.

        Above 50,000 points, the graph is of some of them, among which are up to 25,000 labelled ones.
        """
        chosen = everyone = np.arange(len(points))
        if len(points) > _MOST_POINTS:
            some = evenly_spaced(labelled, _MOST_POINTS // 2)
            rest = np.setdiff1d(everyone, some)
            chosen = np.union1d(some, evenly_spaced(rest, _MOST_POINTS - len(some)))
        near = nearest_to_each(points[chosen], _N_NEIGHBOURS + 1).points[:, 1:]
        m, k = near.shape
        pairs = (np.ones(m * k), (np.repeat(np.arange(m), k), near.ravel()))
        joined = sparse.csr_matrix(pairs, shape=(m, m))
        joined = joined.maximum(joined.T)
        step = sparse.diags(1 / np.maximum(joined.sum(axis=1).A1, 1)) @ joined
        others = np.setdiff1d(everyone, chosen)
        entry = np.empty((0, k), dtype=np.int64)
        if len(others):
            entry = nearest(points[others], points[chosen], _N_NEIGHBOURS).points
        return cls(sparse.csr_matrix(step), chosen, entry)


def walks(graph: Graph, code: np.ndarray, n_labels: int) -> np.ndarray:
    """Return the probability that a random walk from each point ends at each label, (N, labels).

    A walk ends at the first labelled point that it comes to, and with probability 0.05 before a step.
    So it is H = 0.95 S H where there is no label, S the steps: the harmonic function of Zhu, Ghahramani
    and Lafferty (ICML 2003) with an end as of Talukdar and Crammer (ECML 2009). In a population
    without labels, walks go around until they end.

    Parameters
    ----------
    code
        Label of each point, (N,); -1 where it is not known.
    n_labels
        Number of labels.

    Examples
    --------
    >>> points = np.array([[0.0], [1.0], [2.0], [50.0], [51.0]])
    >>> near = sparse.csr_matrix(abs(points - points.T) == 1, dtype=float)
    >>> step = sparse.csr_matrix(near / near.sum(axis=1))
    >>> graph = Graph(step, np.arange(5), np.empty((0, 1), dtype=int))
    >>> walks(graph, np.array([0, -1, 1, -1, -1]), 2).round(2)
    array([[1.  , 0.  ],
           [0.48, 0.48],
           [0.  , 1.  ],
           [0.  , 0.  ],
           [0.  , 0.  ]])
    """
    known = code >= 0
    ends = np.zeros((len(code), n_labels))
    ends[known, code[known]] = 1
    fixed, inside = known[graph.chosen, None], ends[graph.chosen]
    found = inside
    for _ in range(_STEPS):
        found = np.where(fixed, inside, (1 - _ENDS) * (graph.step @ found))
    ends[graph.chosen] = found
    others = np.setdiff1d(np.arange(len(code)), graph.chosen)
    entered = (1 - _ENDS) * found[graph.entry].mean(axis=1)
    ends[others] = np.where(known[others, None], ends[others], entered)
    return ends


def tail_of_hidden(reach: np.ndarray, fold: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return a p-value of each point: the share of labelled points that walks reach as little, (N,).

    A labelled point counts as it is reached without the labels of its fold, beside the other points
    without these labels. Where labelled points are a random part of the points of their labels, these
    p-values are about uniform (cross-conformal; Vovk, 2015). Labels of which a larger part is known
    have less weight (Tibshirani, Foygel Barber, Candes and Ramdas, NeurIPS 2019).

    Parameters
    ----------
    reach
        Of each point without the labels of each fold, (N, folds).
    fold
        Of each labelled point; -1 of others.
    weight
        Of each labelled point; 0 of others, and of labelled ones that do not count.

    Examples
    --------
    >>> reach = np.array([[0.4, 0.9], [0.9, 0.6], [0.1, 0.2], [0.5, 0.8]])
    >>> tail_of_hidden(reach, np.array([0, 1, -1, -1]), np.array([1.0, 1.0, 0.0, 0.0])).round(2)
    array([0.33, 0.67, 0.33, 1.  ])
    """
    n_counted = effective_number(weight)
    scaled = weight * n_counted / max(weight.sum(), 1e-12)
    at_most = np.zeros(len(fold))
    labelled = np.flatnonzero(fold >= 0)
    own = reach[labelled, fold[labelled]]
    for k in range(reach.shape[1]):
        inside = fold[labelled] == k
        at_most += _weight_up_to(reach[:, k], own[inside], scaled[labelled[inside]])
    at_most[labelled] = _weight_up_to(own, own, scaled[labelled])
    at_most[labelled] -= scaled[labelled]  # the point itself counts once
    result: np.ndarray = np.minimum((1 + at_most) / (1 + n_counted), 1.0)
    return result


def _weight_up_to(values: np.ndarray, of: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the total weight of the numbers ``of`` that are at most each value."""
    order = np.argsort(of)
    totals = np.concatenate([[0.0], np.cumsum(weight[order])])
    result: np.ndarray = totals[np.searchsorted(of[order], values, side="right")]
    return result


def effective_number(weight: np.ndarray) -> float:
    """Return how many equally weighted points tell as much as these (Kish, 1965).

    Examples
    --------
    >>> effective_number(np.array([2.0, 2.0, 0.0])), effective_number(np.array([3.0, 1.0]))
    (2.0, 1.6)
    """
    return float(weight.sum() ** 2 / max((weight**2).sum(), 1e-300))


def probability_unlike(p_value: np.ndarray, others: np.ndarray, n_labelled: float) -> np.ndarray:
    """Return the probability that each point is of no label, from p-values, (N,).

    P-values of points of the labels are uniform. With a share s of such points, and a density f of all
    p-values that does not rise, it is 1 - s u / f(p): the local false discovery rate (Efron,
    Statistical Science 2008). s is the mean density above a half (Storey, JRSS B 2002). As n labelled
    points are a sample, the share of points of the labels below p is taken to be n p + sqrt(n p) of n,
    one standard error above p; u is its density.

    Parameters
    ----------
    p_value, others
        Of all points; and which of them, bool (N,), have no label, of which f is the density.
    n_labelled
        Number of labelled points that p-values count.

    Examples
    --------
    >>> p = np.concatenate([np.full(100, 0.005), np.linspace(0.005, 1, 900)])
    >>> probability_unlike(p, np.ones(1000, dtype=bool), 100)[[0, 999]].round(2)
    array([0.83, 0.  ])
    """
    from sklearn.isotonic import IsotonicRegression

    values = p_value[others]
    if not len(values):
        return np.zeros(len(p_value))
    n_bins = int(np.clip(n_labelled + 1, 2, _MOST_BINS))
    place = np.clip(np.ceil(p_value * n_bins - 1e-9).astype(np.int64) - 1, 0, n_bins - 1)
    density = np.bincount(place[others], minlength=n_bins) * n_bins / len(values)
    falling = IsotonicRegression(increasing=False).fit_transform(np.arange(n_bins), density)
    counted = np.linspace(0, 1, n_bins + 1) * (n_labelled + 1)
    uniform = np.diff(counted + np.sqrt(counted)) * n_bins / (n_labelled + 1)
    of_labels = min(2 * float((values > 0.5).mean()), 1.0)
    of_bin = np.clip(1 - of_labels * uniform / np.maximum(falling, 1e-12), 0, 1)
    result: np.ndarray = of_bin[place]
    return result


def _classified(
    points: np.ndarray, code: np.ndarray, known: np.ndarray, n_labels: int
) -> np.ndarray:
    """Return the probability of each label by a logistic regression on known points, (N, labels)."""
    from sklearn.linear_model import LogisticRegression  # which takes a second to load

    known = evenly_spaced(known, _MOST_LEARNED)
    result = np.zeros((len(points), n_labels))
    labels = np.unique(code[known])
    if len(labels) == 1:
        result[:, labels] = 1
    else:
        model = LogisticRegression(C=_PENALTY, max_iter=1000).fit(points[known], code[known])
        result[:, model.classes_] = model.predict_proba(points)
    return result


def _scaled(shares: np.ndarray) -> np.ndarray:
    """Return shares that sum to one in each row."""
    result: np.ndarray = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    return result


def _temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature with which hidden labels are most probable, near 1 if these are few."""
    right = probabilities[np.arange(len(truth)), truth] > 0  # labels that are known elsewhere too
    logs = np.log(np.maximum(probabilities[right], 1e-12))
    if not len(logs):
        return 1.0
    losses = []
    for log_temperature in _LOG_TEMPERATURES:
        scaled = logs * np.exp(-log_temperature)
        chosen = scaled[np.arange(len(scaled)), truth[right]]
        loss = (np.logaddexp.reduce(scaled, axis=1) - chosen).sum()
        losses.append(loss + (log_temperature / _TEMPERATURE_SPREAD) ** 2 / 2)
    return float(np.exp(_LOG_TEMPERATURES[int(np.argmin(losses))]))
