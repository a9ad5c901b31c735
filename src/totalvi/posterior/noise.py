"""Noise that belongs to a cell: the same for it alone as among a million others.

Each value is a hash of the seed, what it is for, the number of the sample, the cell's key and its
place. Nothing is drawn in order, so neither the minibatch size, nor the subset of cells, nor the
number of threads changes what a cell gets.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from totalvi.compiled import compiled

Purpose = Literal["latent", "library", "background", "mixing", "counts", "dispersion"]
_PURPOSES: tuple[Purpose, ...] = (
    "latent", "library", "background", "mixing", "counts", "dispersion",
)  # fmt: skip
GOLDEN = 0x9E3779B97F4A7C15  # odd and near 2^64 / phi: steps of it never meet


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
    return word ^ (word >> uint64(31))


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
            # 23 bits and a half step are what float32 holds below 1 without rounding up to it
            values[b, j] = np.float32((np.float64(word >> uint64(41)) + 0.5) * 2.0**-23)
