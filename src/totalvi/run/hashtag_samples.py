"""Which sample each cell is of, by its hashtags: that of one tag, of two (a doublet), or none.

Of a cell of a batch with counts h of the tags 1 to K, what it carries is a set s of at most two tags,
and

    p(h | s) = product over tags k in s of NB(h_k; m1_k, r1_k), and over others of NB(h_k; m0_k, r0_k).

The probability of no tag, of each tag and of two are parameters; of two, that of a pair k, l is
proportional to f_k f_l, the shares of the tags among cells with one. All are fitted by the EM
algorithm. NB(m, r) has variance m + m^2 / r. Doublets of two cells of one sample carry one tag, as
single cells do. A batch whose own cells do not tell a tag that many of them carry, because all do,
is told by the parameters of all batches together.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import nbinom

from totalvi.data.counts import evenly_spaced, in_memory
from totalvi.errors import listed
from totalvi.run.folder import (
    HASHTAG_PROBABILITY,
    HASHTAG_SAMPLE,
    HASHTAGS_CARRIED,
    RESULTS_OF_HASHTAGS,
)
from totalvi.run.results import ResultsFile

DOUBLET, NONE, NOT_TOLD = "doublet", "none", "not told"
_FEWEST_CELLS = 20  # of a batch in which tags can be told
_FEWEST_CARRIERS = 5
_LEAST_SHARE = 0.02  # of a batch that carries a tag told by other batches; fewer may be wrong calls
_LEAST_FOLD = 4.0  # between mean counts of cells with a tag and without
_LEAST_SURE = 0.8  # mean probability of those that carry a tag to do so
_MOST_WITHOUT = 0.15  # share of cells without a tag; more lack one that failed in their batch
_MOST_CELLS = 10_000  # that parameters are fitted to
_MOST_ROUNDS = 100
_CLOSE = 1e-3
_SMALLEST = 1e-3  # mean count
_CELLS_AT_ONCE = 4_096
_LARGEST_LOG = (
    20.0  # above it, fractions are of counts that were scaled, and not of their logarithms
)


class HashtagCalls(NamedTuple):
    """What hashtags say of cells.

    Attributes
    ----------
    cells
        Of each: ``hashtag_sample``, its tag, "doublet" or "none", whichever is likeliest;
        ``hashtag_probability`` of that; ``hashtags_carried``, 0, 1, or 2 for doublets. Where no tag of
        a batch tells cells from others, and where counts are missing, it is "not told", NaN and 0.
    failed
        Tags that tell no cells of any batch from others.
    without
        Batches with cells that should carry a tag and carry none, and the share of these cells.
    """

    cells: pd.DataFrame
    failed: list[str]
    without: dict[str, float]


class _Tags(NamedTuple):
    """Parameters of the tags of a batch: NB of each with and without, and probabilities of states.

    Attributes
    ----------
    carried, other
        Mean and inverse dispersion of the counts of cells with the tag, and of others, each (K, 2).
    log_one
        Log probability of a cell to carry each tag alone, (K,).
    log_two, log_none
        To carry two of them, and none.
    """

    carried: np.ndarray
    other: np.ndarray
    log_one: np.ndarray
    log_two: float
    log_none: float


def call_hashtags(counts: np.ndarray, names: list[str], group: np.ndarray) -> HashtagCalls:
    """Return the sample of each cell by its hashtags, batch by batch, as levels of tags differ.

    Parameters
    ----------
    counts
        Cells x tags.
    names
        Of the tags.
    group
        Batch of each cell.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson([[300, 5], [5, 300], [300, 300], [5, 5]] * 50)
    >>> calls = call_hashtags(counts, ["donor A", "donor B"], np.zeros(200))
    >>> calls.cells["hashtag_sample"].tolist()[:4]
    ['donor A', 'donor B', 'doublet', 'none']
    """
    counts = np.asarray(counts, dtype=np.float64)
    known = np.isfinite(counts).all(axis=1)
    labels = np.array([*names, DOUBLET, NONE, NOT_TOLD], dtype=object)
    code, probability = np.full(len(counts), len(names) + 2), np.full(len(counts), np.nan)
    told, without = np.zeros(len(names), dtype=bool), dict[str, float]()
    together = _fit_separating(counts[known])
    batches = pd.unique(group)
    for batch in batches:
        some = np.flatnonzero((group == batch) & known)
        of_batch = together if len(batches) == 1 else _fit_separating(counts[some])
        if _carried_besides(counts[some], of_batch, together, len(names)):
            of_batch = together
        if not len(of_batch.columns):
            continue
        states = _all_states(counts[some], of_batch, len(names))
        code[some], probability[some] = states.argmax(axis=1), states.max(axis=1)
        told[of_batch.columns] = True
        share = float((code[some] == len(names) + 1).mean())
        if len(of_batch.columns) < len(names) and share > _MOST_WITHOUT:
            without[str(batch)] = share
    cells = pd.DataFrame(
        {
            HASHTAG_SAMPLE: pd.Categorical(labels[code], categories=labels),
            HASHTAG_PROBABILITY: probability.astype(np.float32),
            HASHTAGS_CARRIED: np.array([1] * len(names) + [2, 0, 0])[code],
        }
    )
    failed = [name for name, one in zip(names, told, strict=True) if not one]
    return HashtagCalls(cells, failed, without)


class _Fitted(NamedTuple):
    """The columns of the tags that tell cells from others, and their parameters; None without any."""

    columns: np.ndarray
    tags: _Tags | None


def _fit_separating(counts: np.ndarray) -> _Fitted:
    """Fit the tags that tell cells from others; those that do not are left out one round at a time."""
    n_cells, n_tags = counts.shape
    columns = np.arange(n_tags if n_cells >= _FEWEST_CELLS else 0)
    some = evenly_spaced(np.arange(n_cells), _MOST_CELLS, rounding="down")
    while len(columns):
        tags = _fit(counts[some][:, columns])
        separates = _separates(_states(counts[some][:, columns], tags), tags)
        if separates.all():
            return _Fitted(columns, tags)
        columns = columns[separates]
    return _Fitted(columns, None)


def _carried_besides(counts: np.ndarray, of_batch: _Fitted, together: _Fitted, n_tags: int) -> bool:
    """Return whether cells of a batch carry a tag that only all batches together tell."""
    untold = np.setdiff1d(together.columns, of_batch.columns)
    if not len(untold) or not len(counts):
        return False
    likeliest = _all_states(counts, together, n_tags).argmax(axis=1)
    carriers = np.bincount(likeliest, minlength=n_tags + 2)[untold]
    return bool(carriers.max() >= max(_FEWEST_CARRIERS, _LEAST_SHARE * len(counts)))


def _all_states(counts: np.ndarray, fitted: _Fitted, n_tags: int) -> np.ndarray:
    """Return the probability of each cell to carry each tag alone, two and none, (N, n_tags + 2).

    Tags that tell no cells from others are carried by none.
    """
    assert fitted.tags is not None
    found = np.zeros((len(counts), n_tags + 2))
    for start in range(0, len(counts), _CELLS_AT_ONCE):  # pairs of many tags take much memory
        rows = slice(start, start + _CELLS_AT_ONCE)
        states = _states(counts[rows][:, fitted.columns], fitted.tags)
        found[rows, np.array([*fitted.columns, n_tags, n_tags + 1])] = states
    return found


def _separates(states: np.ndarray, tags: _Tags) -> np.ndarray:
    """Return which tags tell cells from others, (K,).

    Enough cells surely carry them, with far more counts than others have.
    """
    carry = states[:, :-2] > 0.5
    n_carriers = carry.sum(axis=0)
    total = np.where(carry, states[:, :-2], 0).sum(axis=0)
    is_sure = total >= _LEAST_SURE * np.maximum(n_carriers, 1)
    far = tags.carried[:, 0] >= _LEAST_FOLD * tags.other[:, 0]
    return np.asarray(far & is_sure & (n_carriers >= _FEWEST_CARRIERS))


def _fit(counts: np.ndarray) -> _Tags:
    """Fit the tags of a batch, beginning with the tag that is highest in each cell for its range."""
    logs = np.log1p(counts)
    scaled = logs / np.maximum(np.quantile(logs, 0.99, axis=0), 1e-9)
    carries = np.zeros(counts.shape)
    carries[np.arange(len(counts)), scaled.argmax(axis=1)] = 1
    carries *= scaled > 0.5  # of its range
    n_tags = counts.shape[1]
    one = np.maximum(carries.sum(axis=0), 1) / len(counts)
    tags = _Tags(
        *_components(counts, carries), np.log(0.9 * one / one.sum()), *np.log([0.05, 0.05])
    )
    for _ in range(_MOST_ROUNDS):
        states = _states(counts, tags)
        before, carries = carries, _carried(states, counts, tags)
        total = states.sum(axis=0) + 1.0  # one cell of each, so that no probability is 0
        log_share = np.log(total / total.sum())
        tags = _Tags(
            *_components(counts, carries), log_share[:n_tags], *map(float, log_share[n_tags:])
        )
        if np.abs(carries - before).max() < _CLOSE:
            break
    return tags


def _components(counts: np.ndarray, carries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and inverse dispersion of each tag's counts, where it is carried and where not."""
    with_tag, without = (
        np.array([_negative_binomial(h, w) for h, w in zip(counts.T, weights.T, strict=True)])
        for weights in (carries, 1 - carries)
    )
    with_tag[:, 0] = np.maximum(with_tag[:, 0], without[:, 0])
    return with_tag, without


def _negative_binomial(counts: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the weighted estimates of mean and inverse dispersion of greatest likelihood."""
    values, place = np.unique(counts, return_inverse=True)
    weight = np.bincount(place, weights)
    mean = max(float(weight @ values) / max(float(weight.sum()), 1e-9), _SMALLEST)

    def loss(log_r: float) -> float:
        r = np.exp(log_r)
        return -float(weight @ nbinom.logpmf(values, r, r / (r + mean)))

    found = minimize_scalar(loss, bounds=(np.log(0.1), np.log(1e3)), method="bounded")
    return mean, float(np.exp(found.x))


def _evidence(counts: np.ndarray, tags: _Tags) -> np.ndarray:
    """Return log p(count | carried) - log p(count | not) of each tag, (N, K)."""
    log_prob = [
        nbinom.logpmf(counts, of[:, 1], of[:, 1] / of.sum(axis=1))
        for of in (tags.carried, tags.other)
    ]
    return np.asarray(log_prob[0] - log_prob[1])


def _pairs(tags: _Tags) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both tags of each pair, and the log probability of the pair."""
    first, second = np.triu_indices(len(tags.log_one), 1)
    log_pair = tags.log_one[first] + tags.log_one[second]
    return first, second, log_pair - logsumexp(log_pair) + tags.log_two


def _states(counts: np.ndarray, tags: _Tags) -> np.ndarray:
    """Return the probability of each tag alone, of two and of none, (N, K + 2)."""
    evidence = _evidence(counts, tags)
    parts = [evidence + tags.log_one]
    if evidence.shape[1] > 1:
        first, second, log_pair = _pairs(tags)
        both = evidence[:, first] + evidence[:, second] + log_pair
        parts.append(logsumexp(both, axis=1, keepdims=True))
    else:
        parts.append(np.full((len(counts), 1), -np.inf))
    log_states = np.hstack([*parts, np.full((len(counts), 1), tags.log_none)])
    return np.asarray(np.exp(log_states - logsumexp(log_states, axis=1, keepdims=True)))


def _carried(states: np.ndarray, counts: np.ndarray, tags: _Tags) -> np.ndarray:
    """Return the probability that each cell carries each tag, alone or with another, (N, K)."""
    carried = states[:, :-2].copy()
    if carried.shape[1] > 1:
        evidence, (first, second, log_pair) = _evidence(counts, tags), _pairs(tags)
        both = evidence[:, first] + evidence[:, second] + log_pair
        of_pair = np.exp(both - logsumexp(both, axis=1, keepdims=True)) * states[:, [-2]]
        for tag in range(carried.shape[1]):
            carried[:, tag] += of_pair[:, (first == tag) | (second == tag)].sum(axis=1)
    return carried


def hashtags_of_run(
    data: MuData, batch: pd.Series | None, file: ResultsFile
) -> tuple[pd.DataFrame | None, list[str]]:
    """Add to the results file what hashtags say of the cells.

    Returns
    -------
    What they say, None where there are none that tell anything; and warnings.
    """
    if "hto" not in data.mod:
        return None, []
    counts = _counts(data["hto"], data.obs_names)
    if counts is None:
        return None, ['"hto" has no counts in X, so that hashtags tell no samples.']
    group = np.zeros(len(counts)) if batch is None else np.asarray(batch).astype(str)
    names = list(make_index_unique(data["hto"].var_names.astype(str), join=" "))
    names = [f"{name} (hashtag)" if name in (DOUBLET, NONE, NOT_TOLD) else name for name in names]
    calls = call_hashtags(counts, names, group)
    warnings = []
    if calls.failed:
        warnings.append(
            f"{len(calls.failed)} of {len(names)} hashtags tell no cells from others, "
            f"{listed(calls.failed)}; no cell is said to be of their samples."
        )
    if len(calls.failed) == len(names):
        return None, warnings
    n_untold = int((calls.cells[HASHTAG_SAMPLE] == NOT_TOLD).sum())
    if n_untold:
        warnings.append(
            f"hashtags do not tell the sample of {n_untold:,} cells, whose counts are missing or whose "
            "batch has too few cells."
        )
    if batch is not None:  # of a single one, tags that failed are named above
        warnings += [
            f'{share:.0%} of the cells of batch "{name}" carry no hashtag, where not all of the tags '
            "tell cells from others; one of its samples' tags may have failed there, so look at their "
            "counts before you count these cells."
            for name, share in calls.without.items()
        ]
    if HASHTAG_SAMPLE in data.obs:
        warnings.append(f'the column "{HASHTAG_SAMPLE}" of obs is replaced by what hashtags tell.')
    cells = calls.cells.set_axis(data.obs_names)
    for name in cells:
        column = cells[name]
        file.add_obs(
            str(name), pd.Categorical(column) if name == HASHTAG_SAMPLE else column.to_numpy()
        )
    return cells, warnings


def _counts(tags: AnnData, cells: pd.Index) -> np.ndarray | None:
    """Return whole counts of the cells, (N, K), in memory; None: X holds none, or no counts.

    Fractions are those of scaled counts, as of corrected ambient RNA, and are rounded.
    """
    if tags.X is None:
        return None
    stored = in_memory(tags.X)
    dense: np.ndarray = np.asarray(getattr(stored, "toarray", lambda: stored)())
    values = dense[tags.obs_names.get_indexer(cells)].astype(np.float64)
    seen = values[np.isfinite(values)]
    fractions = bool((seen != np.rint(seen)).any())
    if len(seen) == 0 or seen.min() < 0 or (fractions and seen.max() < _LARGEST_LOG):
        return None
    whole: np.ndarray = np.rint(values)
    return whole


def read_hashtags(file: ResultsFile, names: pd.Index) -> pd.DataFrame | None:
    """Return the columns of hashtags in a results file; None: it has none."""
    if not all(file.has(f"obs/{name}") for name in RESULTS_OF_HASHTAGS):
        return None
    return pd.DataFrame(
        {name: file.read(f"obs/{name}") for name in RESULTS_OF_HASHTAGS}, index=names
    )


def count_calls(cells: pd.DataFrame | None) -> dict[str, int] | None:
    """Return how many cells carry one hashtag, two and none; None: there are no hashtags."""
    if cells is None:
        return None
    carried = cells.loc[cells[HASHTAG_SAMPLE].astype(str) != NOT_TOLD, HASHTAGS_CARRIED]
    return {
        "tags": int(cells.loc[carried.index[carried == 1], HASHTAG_SAMPLE].nunique()),
        **{name: int((carried == n).sum()) for name, n in (("one", 1), ("two", 2), ("none", 0))},
    }
