"""Posterior samples of a minibatch, one after the other: what every Monte Carlo query is made of."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from totalvi.compiled import compiled
from totalvi.errors import BackgroundError
from totalvi.fit.batches import Minibatch
from totalvi.nn.cell import CellContext
from totalvi.nn.decoder import Decoded
from totalvi.nn.encoder import CellPosterior
from totalvi.nn.v06 import TOTALVI

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


_LARGEST_LOG_BACKGROUND = 30.0  # 1e13 counts


def plausible_background(log_background: Tensor, proteins: np.ndarray | None = None) -> Tensor:
    """Return the log background of proteins, (B, t), once none is beyond 1e13 counts.

    No fit to counts gives such a mean; one that went wrong does, and its exponential, which may not
    even be finite, answers nothing.

    Parameters
    ----------
    proteins
        Positions of the proteins, (t,). None: all.

    Raises
    ------
    BackgroundError
        When a value is above 30, or not a number.
    """
    if not (log_background <= _LARGEST_LOG_BACKGROUND).all():
        wrong = ~(log_background <= _LARGEST_LOG_BACKGROUND).all(dim=0)
        column = int(wrong.nonzero()[0])
        raise BackgroundError(column if proteins is None else int(proteins[column]))
    return log_background


@contextmanager
def naming_proteins(names: Sequence[str]) -> Iterator[None]:
    """Name the protein in the errors of `plausible_background`, which knows its position only."""
    try:
        yield
    except BackgroundError as error:
        raise BackgroundError(error.protein, names) from None


class Draw(NamedTuple):
    """One posterior sample of a minibatch's cells, decoded.

    Parameters
    ----------
    sample
        Number of the sample.
    posterior
        Of the latent state and the library size; the same for every sample of a minibatch.
    context
        What the cells were decoded as.
    untran_z, library_size, log_library
        Latent state u (B, d), library size (B, 1) and its logarithm (None where it is known).
    decoded
        Parameters of the counts; the products as wide as the genes are taken when they are read.
    log_background
        Sample of the log background of each protein, (B, T).
    """

    sample: int
    posterior: CellPosterior
    context: CellContext
    untran_z: Tensor
    library_size: Tensor
    log_library: Tensor | None
    decoded: Decoded
    log_background: Tensor

    def background_rate(self) -> Tensor:
        """Return beta, the background mean of each protein, (B, T); see `plausible_background`."""
        return plausible_background(self.log_background).exp()

    def foreground_rate(self) -> Tensor:
        """Return beta alpha, the foreground mean of each protein, (B, T)."""
        return self.background_rate() * self.decoded.foreground_factor

    def background_probability(self) -> Tensor:
        """Return pi, the probability that a protein count is background, (B, T)."""
        return torch.sigmoid(self.decoded.background_logit)

    def expecting_background(self) -> Self:
        """Return the same with exp(``log_background``) at its expectation, E[beta | z].

        What is linear in beta has the same average over such draws as over samples, with less noise.
        """
        mean, scale = self.decoded.background_mean, self.decoded.background_scale
        return self._replace(log_background=mean + scale**2 / 2)

    def foreground_probability(self) -> Tensor:
        """Return 1 - pi, (B, T), which keeps its digits where it is small."""
        return torch.sigmoid(-self.decoded.background_logit)


def draws(
    module: TOTALVI,
    batch: Minibatch,
    n_samples: int,
    noise: CellNoise,
    transform_batches: Sequence[int | None] = (None,),
    *,
    first_sample: int = 0,
) -> Iterator[Draw]:
    """Yield ``n_samples`` posterior samples of a minibatch, each decoded into each batch in turn.

    The cells are encoded once. The batches decoded into share the noise of a sample, so that decoding
    into a cell's own batch changes nothing.

    Parameters
    ----------
    transform_batches
        Codes of the batches to decode into; None: each cell's own.
    first_sample
        Number of the first sample.
    """
    posterior = module.encode(batch.x, batch.y, batch.context)
    for sample in range(first_sample, first_sample + n_samples):
        untran_z = module.latent_at(
            posterior, _normal(noise, "latent", sample, batch, module.n_latent)
        )
        library_size, log_library = module.library_at(
            posterior, batch.context, _normal(noise, "library", sample, batch, 1)
        )
        z = module.transform_latent(untran_z)
        background_noise = _normal(noise, "background", sample, batch, module.n_input_proteins)
        for code in transform_batches:
            context = module.in_batch(batch.context, code)
            decoded = module.decode(z, context)
            log_background = decoded.background_mean + decoded.background_scale * background_noise
            yield Draw(
                sample, posterior, context, untran_z, library_size, log_library, decoded,
                log_background,
            )  # fmt: skip


def _normal(
    noise: CellNoise,
    purpose: Purpose,
    sample: int,
    batch: Minibatch,
    width: int,
) -> Tensor:
    return noise.normal(purpose, sample, batch.keys, width).to(batch.y.device)
