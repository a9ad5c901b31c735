"""Noise that belongs to a cell: normal, uniform, gamma and negative binomial values by hash.

A value follows from a seed, its purpose, the number of the sample and the cell's name alone. So a cell
gets the same samples alone or among others, in any minibatch and on any number of threads.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from totalvi.compiled import compiled

Purpose = Literal[
    "latent",
    "library",
    "background",
    "mixing",
    "counts",
    "dispersion",
    "batch",
    "level",
    "rounding",
    "staining",
    "ties",
]
_PURPOSES: tuple[Purpose, ...] = (
    "latent", "library", "background", "mixing", "counts", "dispersion", "batch", "level",
    "rounding", "staining", "ties",
)  # fmt: skip
GOLDEN = 0x9E3779B97F4A7C15  # it is odd and near 2^64 / phi, so that its multiples do not repeat


class CellNoise(NamedTuple):
    """A source of noise by cell.

    Parameters
    ----------
    seed
        Whole number from 0; other seeds give other noise.
    """

    seed: int

    def normal(self, purpose: Purpose, sample: int, keys: np.ndarray, width: int) -> Tensor:
        """Return standard normal values (B, width), float32, for cells with ``keys`` (B,)."""
        return self._fill(_fill_normal, purpose, sample, keys, width)

    def uniform(self, purpose: Purpose, sample: int, keys: np.ndarray, width: int) -> Tensor:
        """Return values between 0 and 1, both left out, (B, width), float32.

        Examples
        --------
        >>> import numpy as np
        >>> keys = np.arange(4, dtype=np.uint64)
        >>> whole = CellNoise(0).uniform("mixing", 0, keys, 3)
        >>> part = CellNoise(0).uniform("mixing", 0, keys[2:], 3)
        >>> bool((whole[2:] == part).all())
        True
        """
        return self._fill(_fill_uniform, purpose, sample, keys, width)

    def stream(self, purpose: Purpose, sample: int) -> np.uint64:
        """Return the number that a cell's key is mixed with for all noise of one purpose and sample."""
        words = np.random.SeedSequence((self.seed, _PURPOSES.index(purpose), sample))
        return np.uint64(words.generate_state(1, np.uint64)[0])

    def _fill(
        self, fill: object, purpose: Purpose, sample: int, keys: np.ndarray, width: int
    ) -> Tensor:
        values = np.empty((len(keys), width), dtype=np.float32)
        fill(keys, self.stream(purpose, sample), values)  # type: ignore[operator]
        return torch.from_numpy(values)


@compiled()
def mixed(word: np.uint64) -> np.uint64:
    """Return a hash of 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood, 2014)."""
    word = (word ^ (word >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> uint64(27))) * uint64(0x94D049BB133111EB)
    mixed_word: np.uint64 = word ^ (word >> uint64(31))
    return mixed_word


@compiled()
def _unit(bits: np.uint64) -> float:
    """Return 32 bits as a number between 0 and 1, both left out."""
    return (np.float64(bits) + 0.5) * 2.0**-32


@compiled(parallel=True)
def _fill_normal(keys: np.ndarray, stream: np.uint64, values: np.ndarray) -> None:
    """Fill with the transform of Box and Muller (1958), which makes two values of a hash."""
    width = values.shape[1]
    for b in prange(len(keys)):
        cell = mixed(keys[b] ^ stream)
        for j in range(0, width, 2):
            word = mixed(cell + uint64(j + 1) * uint64(GOLDEN))
            radius = math.sqrt(-2 * math.log(_unit(word >> uint64(32))))
            angle = 2 * math.pi * _unit(word & uint64(0xFFFFFFFF))
            values[b, j] = radius * math.cos(angle)
            if j + 1 < width:
                values[b, j + 1] = radius * math.sin(angle)


@compiled(parallel=True)
def _fill_uniform(keys: np.ndarray, stream: np.uint64, values: np.ndarray) -> None:
    for b in prange(len(keys)):
        cell = mixed(keys[b] ^ stream)
        for j in range(values.shape[1]):
            word = mixed(cell + uint64(j + 1) * uint64(GOLDEN))
            # float32 holds 23 bits and a half step below 1 without rounding up to it
            values[b, j] = np.float32((np.float64(word >> uint64(41)) + 0.5) * 2.0**-23)


_INVERTED_UP_TO = 16.0  # up to this mean, as inversion takes about as many steps
_LARGEST_MEAN = 1e15
_LARGEST_R, _SMALLEST_R = 1e10, 1e-30  # beyond these the count is Poisson, or zero


class Drawn(NamedTuple):
    """Which values are drawn: a sample of features in cells.

    Parameters
    ----------
    noise
        That they are hashed from.
    sample
        Number of the sample.
    keys
        Of the cells, (B,).
    features
        A number for each feature, (F,): another number is other noise.
    """

    noise: CellNoise
    sample: int
    keys: np.ndarray
    features: np.ndarray


_NO_DROPOUT = np.zeros((1, 0), dtype=np.float32)  # as the compiled loop takes it


def negative_binomial_counts(
    drawn: Drawn,
    mean: np.ndarray,
    inverse_dispersion: np.ndarray,
    dropout_probability: np.ndarray | None = None,
) -> np.ndarray:
    """Return counts (B, F), float32, of variance ``mean + mean^2 / inverse_dispersion``.

    Parameters
    ----------
    drawn
        The cells and features.
    mean
        (B, F), from 0; above 1e15, infinite, or no number: returned as it is.
    inverse_dispersion
        (1, F) or (B, F), above 0.
    dropout_probability
        Probability that a count is set to zero, (B, F); None: no zero inflation.

    Examples
    --------
    >>> import numpy as np
    >>> keys, mean, r = np.arange(20_000, dtype=np.uint64), np.full((20_000, 1), 6.0), np.ones((1, 1))
    >>> counts = negative_binomial_counts(Drawn(CellNoise(0), 0, keys, np.array([0])), mean, 2 * r)
    >>> round(float(counts.mean())), round(float(counts.var()))
    (6, 24)
    """
    dropout = _NO_DROPOUT if dropout_probability is None else dropout_probability
    return _values(drawn, "counts", mean, inverse_dispersion, dropout, False)


def gamma_values(drawn: Drawn, mean: np.ndarray, inverse_dispersion: np.ndarray) -> np.ndarray:
    """Return values (B, F), float32, of Gamma(r, r / mean), whose variance is ``mean^2 / r``.

    Parameters are those of `negative_binomial_counts`, whose counts are Poisson around such values.

    Examples
    --------
    >>> import numpy as np
    >>> drawn = Drawn(CellNoise(0), 0, np.arange(20_000, dtype=np.uint64), np.array([0]))
    >>> values = gamma_values(drawn, np.full((20_000, 1), 6.0), np.full((1, 1), 2.0))
    >>> round(float(values.mean())), round(float(values.var()))
    (6, 18)
    """
    return _values(drawn, "dispersion", mean, inverse_dispersion, _NO_DROPOUT, True)


def _values(
    drawn: Drawn,
    what: Purpose,
    mean: np.ndarray,
    r: np.ndarray,
    dropout: np.ndarray,
    of_gamma: bool,
) -> np.ndarray:
    values = np.empty(mean.shape, dtype=np.float32)
    stream = drawn.noise.stream(what, drawn.sample)
    _fill(drawn.keys, stream, of_gamma, drawn.features, mean, r, dropout, values)
    return values


@compiled(parallel=True)
def _fill(
    keys: np.ndarray,
    stream: np.uint64,
    of_gamma: bool,
    features: np.ndarray,
    mean: np.ndarray,
    r: np.ndarray,
    dropout: np.ndarray,
    values: np.ndarray,
) -> None:
    by_cell = len(r) > 1
    for b in prange(len(keys)):
        cell = mixed(keys[b] ^ stream)
        r_of_cell = r[b] if by_cell else r[0]
        state = np.empty(1, dtype=np.uint64)
        for j in range(len(features)):
            state[0] = mixed(cell + uint64(features[j] + 1) * uint64(GOLDEN))
            if of_gamma:
                shape = min(max(r_of_cell[j], _SMALLEST_R), _LARGEST_R)
                values[b, j] = _gamma(state, shape) * (mean[b, j] / shape)
                continue
            count = _negative_binomial(state, mean[b, j], r_of_cell[j])
            if dropout.shape[1] and count > 0 and _uniform(state) < dropout[b, j]:
                count = 0.0
            values[b, j] = count


@compiled()
def _uniform(state: np.ndarray) -> float:
    """Return the next number between 0 and 1, both left out, of 53 bits (SplitMix64)."""
    state[0] += uint64(GOLDEN)
    return (np.float64(mixed(state[0]) >> uint64(11)) + 0.5) * 2.0**-53


@compiled()
def _negative_binomial(state: np.ndarray, mean: float, r: float) -> float:
    if not mean < _LARGEST_MEAN:
        return mean
    if mean <= _INVERTED_UP_TO:
        uniform = _uniform(state)
        if uniform < 1 - mean:  # since the probability of zero is at least that
            return 0.0
        r = min(max(r, _SMALLEST_R), _LARGEST_R)
        odds = mean / (mean + r)
        return _inverted(uniform, math.exp(-r * math.log1p(mean / r)), r * odds, odds)
    r = min(max(r, _SMALLEST_R), _LARGEST_R)
    return _poisson(state, _gamma(state, r) * (mean / r))


@compiled()
def _inverted(uniform: float, p: float, a: float, b: float) -> float:
    """Return the count at which the distribution function passes ``uniform``.

    The probabilities obey p(k + 1) = p(k) (a + b k) / (k + 1) (Panjer, 1981), from p(0) = ``p``.
    """
    count, cumulative = 0, p
    # past the mode, probabilities this small no longer move the sum
    while uniform > cumulative and (count <= _INVERTED_UP_TO or p > 1e-18):
        p *= (a + b * count) / (count + 1)
        count += 1
        cumulative += p
    return float(count)


@compiled()
def _poisson(state: np.ndarray, mean: float) -> float:
    """Return a Poisson count: by inversion, or by transformed rejection (Hormann, 1993: PTRS)."""
    if mean <= _INVERTED_UP_TO:
        return _inverted(_uniform(state), math.exp(-mean), mean, 0.0)
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)
    log_mean = math.log(mean)
    while True:
        u = _uniform(state) - 0.5
        v = _uniform(state)
        distance = 0.5 - abs(u)
        count = math.floor((2 * a / distance + b) * u + mean + 0.43)
        if distance >= 0.07 and v <= squeeze:
            return float(count)
        if count < 0 or (distance < 0.013 and v > distance):
            continue
        log_accepted = math.log(v * inverse_alpha / (a / (distance * distance) + b))
        if log_accepted <= count * log_mean - mean - math.lgamma(count + 1):
            return float(count)


@compiled()
def _gamma(state: np.ndarray, shape: float) -> float:
    """Return a gamma value of scale 1 by the method of Marsaglia and Tsang (2000)."""
    boost = 1.0
    if shape < 1:
        boost = _uniform(state) ** (1 / shape)
        shape += 1
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        radius = math.sqrt(-2 * math.log(_uniform(state)))
        normal = radius * math.cos(2 * math.pi * _uniform(state))
        v = (1 + c * normal) ** 3
        if v > 0 and math.log(_uniform(state)) < 0.5 * normal**2 + d - d * v + d * math.log(v):
            return boost * d * v
