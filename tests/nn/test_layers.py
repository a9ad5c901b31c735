"""Hidden layers against torch's own, layer by layer."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from totalvi.nn.cell import one_hot_columns, one_hot_width
from totalvi.nn.layers import (
    Activation,
    HiddenLayer,
    Linear,
    ParallelHiddenLayer,
    uniform_parameter,
)
from totalvi.nn.ops import dropout


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(n_cells: int, n_columns: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(n_cells, n_columns, generator=generator(seed))


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.93])
def test_dropout_share_scale_and_independence(rate: float) -> None:
    ones = torch.ones(1001, 333)  # not a multiple of four elements
    dropped = dropout(ones, rate, generator())
    share = (dropped == 0).double().mean().item()
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / ones.numel()) + 2**-16
    kept = dropped[dropped > 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - rate), rel=1e-3)
    mask = (dropped == 0).double()
    for lag in (1, 2, 3, 4, 333):  # the four elements of one random number are independent
        flat = mask.flatten() - rate
        correlation = (flat[:-lag] * flat[lag:]).mean() / (rate * (1 - rate))
        assert abs(correlation.item()) < 0.01


def test_dropout_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    x = inputs(20, 30)
    before = torch.get_rng_state()
    first, second = (dropout(x, 0.3, generator(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, dropout(x, 0.3, generator(8)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_no_dropout_at_rate_zero(rate: float) -> None:
    x = inputs(4, 5)
    assert dropout(x, rate, None) is x


def test_dropout_just_below_one_is_finite() -> None:
    assert dropout(torch.ones(100, 100), 0.9999999, generator()).isfinite().all()


def test_dropout_gradient_is_the_mask() -> None:
    x = inputs(9, 8).requires_grad_()
    dropped = dropout(x, 0.4, generator())
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    torch.testing.assert_close(gradient, dropped.detach() / x.detach())


def test_uniform_parameter_bounds() -> None:
    values = uniform_parameter(50, 60, fan_in=16, generator=generator())
    assert values.abs().max() <= 0.25
    assert values.abs().max() > 0.24
    assert abs(values.mean().item()) < 0.01


def test_covariates_as_added_rows_equal_concatenated_one_hot() -> None:
    linear = Linear(6, 4, n_covariates=5, generator=generator())
    batch, lane = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([2, 0, 1, 2, 2])
    covariates = one_hot_columns([batch, lane], [2, 3], torch.float32)
    assert covariates is not None
    assert linear.covariate_weight is not None
    x = inputs(5, 6)
    weight = torch.cat([linear.weight, linear.covariate_weight])
    one_hot = torch.cat([x, F.one_hot(batch, 2), F.one_hot(lane, 3)], dim=1)
    torch.testing.assert_close(linear(x, covariates), one_hot @ weight + linear.bias)


def test_one_hot_leaves_single_categories_out() -> None:
    code = torch.tensor([0, 0])
    assert one_hot_columns([code, code], [1, 0], torch.float32) is None
    assert one_hot_width([1, 0, 3, 2]) == 5
    assert Linear(3, 2).covariate_weight is None


def test_hidden_layer_is_linear_batch_norm_relu() -> None:
    layer = HiddenLayer(6, 4, 0, Activation(4, "batch", 0.0), generator())
    reference = nn.Sequential(
        nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=0.01, eps=1e-3), nn.ReLU()
    )
    with torch.no_grad():
        reference[0].weight.copy_(layer.linear.weight.T)
        reference[0].bias.copy_(layer.linear.bias)
    x = inputs(8, 6)
    torch.testing.assert_close(layer(x, None), reference(x))
    torch.testing.assert_close(layer.eval()(x, None), reference.eval()(x))  # running statistics too


@pytest.mark.parametrize("training", [True, False])
def test_dropout_only_while_training(training: bool) -> None:
    activation = Activation(50, "none", 0.5).train(training)
    zeros = (activation(torch.ones(40, 50), generator()) == 0).any()
    assert bool(zeros) is training


@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_parallel_layer_equals_separate_layers(normalization: str, training: bool) -> None:
    n_parallel, n_hidden, n_covariates = 4, 5, 3
    activation = Activation(n_parallel * n_hidden, normalization, 0.0, n_parallel)  # type: ignore[arg-type]
    parallel = ParallelHiddenLayer(n_hidden, n_parallel, n_covariates, activation, generator())
    parallel.train(training)
    x, covariates = inputs(9, n_parallel * n_hidden), inputs(9, n_covariates, seed=6)
    separate = []
    assert parallel.covariate_weight is not None
    for i in range(n_parallel):
        columns = slice(i * n_hidden, (i + 1) * n_hidden)
        layer = HiddenLayer(
            n_hidden,
            n_hidden,
            n_covariates,
            Activation(n_hidden, normalization, 0.0),  # type: ignore[arg-type]
        ).train(training)
        with torch.no_grad():
            layer.linear.weight.copy_(parallel.weight[i])
            layer.linear.bias.copy_(parallel.bias[columns])
            assert layer.linear.covariate_weight is not None
            layer.linear.covariate_weight.copy_(parallel.covariate_weight[:, columns])
        separate.append(layer(x[:, columns], covariates))
    torch.testing.assert_close(parallel(x, covariates), torch.cat(separate, dim=1))


def test_layer_norm_is_over_each_networks_own_features() -> None:
    activation = Activation(8, "layer", 0.0, n_parallel=2)
    x = inputs(3, 8)
    changed = x.clone()
    changed[:, 4:] *= 100
    assert torch.equal(activation(x)[:, :4], activation(changed)[:, :4])
    assert not hasattr(activation, "batch_norm")


def test_a_bias_before_batch_normalisation_changes_nothing_and_stays() -> None:
    x = inputs(50, 6)
    values = []
    for shift in (0.0, 3.0):
        layer = HiddenLayer(6, 8, 0, Activation(8, "batch", 0.0), generator()).train()
        assert not layer.linear.bias.requires_grad
        layer.linear.bias.add_(shift)
        values.append(layer(x, None))
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=1e-5)
    for kind in ("layer", "none"):
        assert HiddenLayer(6, 8, 0, Activation(8, kind, 0.0)).linear.bias.requires_grad  # type: ignore[arg-type]
        assert ParallelHiddenLayer(6, 2, 0, Activation(12, kind, 0.0)).bias.requires_grad  # type: ignore[arg-type]
    assert not ParallelHiddenLayer(6, 2, 0, Activation(12, "batch", 0.0)).bias.requires_grad
