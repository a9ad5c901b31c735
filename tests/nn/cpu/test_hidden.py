"""The fused hidden layer against torch's batch normalisation, ReLU and dropout."""

import copy

import pytest
import torch
from torch import Tensor, nn

from totalvi.nn.cpu.hidden import normalized_activation


def layer(n_features: int, dtype: torch.dtype) -> tuple[nn.BatchNorm1d, nn.BatchNorm1d]:
    batch_norm = nn.BatchNorm1d(n_features, momentum=0.01, eps=1e-3).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        batch_norm.weight.copy_(torch.randn(n_features, generator=generator))
        batch_norm.bias.copy_(torch.randn(n_features, generator=generator))
    return batch_norm, copy.deepcopy(batch_norm)


def inputs(n_cells: int, n_features: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n_cells, n_features, generator=generator) * 3 + 100  # mean far from 0
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(2, 1), (7, 130), (64, 33), (257, 64)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_equals_torch_by_value_gradient_and_running_statistics(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    fused, reference = layer(shape[1], dtype)
    x = inputs(*shape, dtype)
    same_x = x.detach().clone().requires_grad_()
    ours = normalized_activation(x, fused, 0.0, None)
    expected = torch.relu(reference(same_x))
    weight = torch.linspace(-1, 2, ours.numel(), dtype=dtype).view(shape)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours, expected, **close)
    torch.testing.assert_close(x.grad, same_x.grad, **close)
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, **close)
    for name, buffer in fused.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name), rtol=1e-5, atol=1e-6)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    batch_norm, _ = layer(500, torch.float32)
    with torch.no_grad():
        batch_norm.bias.fill_(50)  # nothing is cut by ReLU
    x = inputs(400, 500, torch.float32)
    generator = torch.Generator().manual_seed(0)
    full = normalized_activation(x, batch_norm, 0.0, None)
    y = normalized_activation(x, batch_norm, 0.3, generator)
    dropped = y == 0
    assert abs(float(dropped.float().mean()) - 0.3) < 0.005
    # neither cells nor features are preferred
    assert dropped.float().mean(dim=0).std() < 0.03
    assert dropped.float().mean(dim=1).std() < 0.03
    torch.testing.assert_close(y[~dropped], full[~dropped] / 0.7, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    other = normalized_activation(x, batch_norm, 0.3, generator) == 0
    assert abs(float((dropped & other).float().mean()) - 0.09) < 0.005


def test_dropped_values_get_no_gradient() -> None:
    batch_norm, reference = layer(30, torch.float64)
    x = inputs(50, 30, torch.float64)
    same_x = x.detach().clone().requires_grad_()
    y = normalized_activation(x, batch_norm, 0.5, torch.Generator().manual_seed(1))
    kept = (y > 0).double() * 2
    expected = torch.relu(reference(same_x)) * kept
    weight = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, same_x.grad)


def test_one_cell_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="x has 1 cell"):
        normalized_activation(torch.ones(1, 3), nn.BatchNorm1d(3, momentum=0.1), 0.0, None)
