"""Noise by cell has the right distribution and belongs to the cell."""

import numpy as np
import pytest
import torch
from scipy import stats

from totalvi.posterior.noise import GOLDEN, CellNoise

KEYS = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)


def test_normal_values_are_normal_and_independent() -> None:
    values = CellNoise(3).normal("latent", 0, KEYS, 50).numpy()
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(values.T) - np.eye(50)).max() < 0.12
    other = CellNoise(3).normal("latent", 1, KEYS, 50).numpy()
    assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.015


def test_neighbouring_keys_are_independent() -> None:
    values = CellNoise(0).normal("latent", 0, np.arange(5000, dtype=np.uint64), 2).numpy()
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(values[:-1, 1], values[1:, 0])[0, 1]) < 0.06


def test_uniform_values_are_uniform_and_never_0_or_1() -> None:
    values = CellNoise(3).uniform("mixing", 0, KEYS, 50).numpy()
    assert stats.kstest(values.ravel(), "uniform").pvalue > 0.01
    assert values.min() > 0
    assert values.max() < 1


def unmixed(word: int) -> int:
    """The word of which `mixed` makes ``word``."""

    def unshifted(word: int, bits: int) -> int:
        result = word
        for _ in range(64 // bits):
            result = word ^ (result >> bits)
        return result

    for bits, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9)):
        word = unshifted(word, bits) * pow(factor, -1, 2**64) % 2**64
    return unshifted(word, 30)


@pytest.mark.parametrize("word", [0, 2**64 - 1], ids=["zeros", "ones"])
def test_the_extreme_hashes_are_within_bounds(word: int) -> None:
    noise = CellNoise(3)
    cell = unmixed((unmixed(word) - GOLDEN) % 2**64)
    keys = np.array([cell], dtype=np.uint64) ^ noise.stream("mixing", 0)
    uniform = float(noise.uniform("mixing", 0, keys, 1))
    assert 0 < uniform < 1
    assert abs(uniform - word / 2**64) < 1e-6
    values = noise.normal("mixing", 0, keys, 2)
    assert values.isfinite().all()
    assert abs(float(values.norm())) < 7


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_place_has_its_noise_whatever_the_width(kind: str) -> None:
    def draw(width: int) -> torch.Tensor:
        values: torch.Tensor = getattr(CellNoise(1), kind)("latent", 0, KEYS[:5], width)
        return values

    widest = draw(9)
    for width in range(9):
        assert torch.equal(draw(width), widest[:, :width])
    assert draw(9).isfinite().all()


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_belongs_to_seed_purpose_sample_and_cell(kind: str) -> None:
    def draw(
        seed: int = 0, purpose: str = "latent", sample: int = 0, keys: np.ndarray = KEYS
    ) -> torch.Tensor:
        values: torch.Tensor = getattr(CellNoise(seed), kind)(purpose, sample, keys, 4)
        return values

    first = draw()
    assert torch.equal(first, draw())
    some = np.random.default_rng(1).permutation(len(KEYS))[:30]
    assert torch.equal(first[torch.from_numpy(some)], draw(keys=KEYS[some]))
    for other in (draw(seed=1), draw(purpose="background"), draw(sample=1)):
        assert not torch.equal(first, other)
