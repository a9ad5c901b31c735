"""Noise by cell has the right distribution and belongs to the cell."""

import numpy as np
import pytest
import torch
from scipy import stats

from totalvi.posterior.noise import CellNoise

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
