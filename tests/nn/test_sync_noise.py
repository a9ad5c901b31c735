"""Noise of the network's samples."""

import pytest
import torch
from scipy import stats

from totalvi.nn.sync import stratified_normal


def test_stratified_noise_has_one_sample_in_each_equally_likely_interval() -> None:
    noise = stratified_normal(8, torch.zeros(50, 3), torch.Generator().manual_seed(0))
    interval = torch.as_tensor(stats.norm.cdf(noise) * 8).floor()
    assert torch.equal(interval, torch.arange(8.0)[:, None, None].expand(8, 50, 3).to(interval))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_stratified_noise_is_finite_and_standard_normal(dtype: torch.dtype) -> None:
    like = torch.zeros(2000, 5, dtype=dtype)
    noise = stratified_normal(4, like, torch.Generator().manual_seed(1)).double()
    assert noise.isfinite().all()
    assert noise.mean().abs() < 0.02
    assert abs(noise.std() - 1) < 0.02
