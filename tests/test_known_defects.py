"""Defects of other implementations that no test of a single part would show here."""

from typing import Any

import numpy as np
import pytest
import torch

import totalvi
from counts import SMALL, annotated
from totalvi.data.cells import CiteData
from totalvi.data.describe import describe
from totalvi.errors import DataError
from totalvi.fit.batches import minibatch
from totalvi.nn.likelihoods import objective

FAST: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "progress": False}


def test_a_protein_that_is_zero_throughout_a_batch_is_measured() -> None:
    mdata = annotated()
    second = (mdata.obs["batch"] == "batch_1").to_numpy()
    mdata["prot"].X[second, 2] = 0
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    assert np.all(model.schema.panel_measured)
    model.train(**FAST)
    error = model.get_reconstruction_error(return_mean=False)["protein"]
    filled = mdata.copy()
    filled["prot"].X[second, 2] = 500
    other = model.get_reconstruction_error(filled, return_mean=False)["protein"]
    assert (other[second] > error[second]).all()


def test_one_missing_value_is_named_before_a_fit_can_turn_to_nan() -> None:
    mdata = annotated()
    mdata["prot"].X[17, 3] = np.nan
    with pytest.raises(DataError, match="cell_17"):
        totalvi.Model(mdata, batch_key="batch", **SMALL)


def test_gradients_can_be_clipped() -> None:
    weights = []
    for norm in (1e-4, 100.0):
        model = totalvi.Model(annotated(), batch_key="batch", **SMALL)
        model.train(**FAST, gradient_clip_norm=norm)
        assert np.isfinite(model.history.to_numpy(dtype=float)).all()
        weights.append(model.module.gene_log_r.detach().clone())
    assert not torch.equal(*weights)


def with_unmeasured(**options: Any) -> totalvi.Model:
    """A model of two panels, of which the second lacks two proteins."""
    return totalvi.Model(annotated(n_unmeasured=2), batch_key="batch", **SMALL, **options)


def filled(model: totalvi.Model) -> CiteData:
    """The same cells with counts, large ones, where the second panel measured nothing."""
    mdata = annotated(n_unmeasured=2)
    mdata["prot"].X = np.nan_to_num(mdata["prot"].X, nan=9000.0)
    return describe(mdata, model.schema.columns, model.schema)


def gradients(model: totalvi.Model, data: CiteData, cells: np.ndarray) -> dict[str, torch.Tensor]:
    module = model.module.train()
    module.zero_grad()
    batch = minibatch(data, module, cells)
    noise = torch.Generator().manual_seed(0)
    terms = module.elbo(
        batch.x, batch.y, batch.context,
        batch.library_log_mean, batch.library_log_variance, noise,
    )  # fmt: skip
    objective(terms).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("library", ["observed", "latent"])
def test_counts_of_masked_proteins_reach_no_gradient(
    fused: bool, gene_likelihood: Any, library: Any
) -> None:
    model = with_unmeasured(fused=fused, gene_likelihood=gene_likelihood, library=library)
    data = model._training_data()
    every = np.arange(data.n_cells)
    expected = gradients(model, data, every)
    found = gradients(model, filled(model), every)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
    # cells of the second panel alone: whatever belongs to a protein it lacks gets exactly nothing
    lacks = torch.tensor(~np.array(model.schema.panel_measured)[1])
    alone = gradients(model, filled(model), np.flatnonzero(data.panel == 1))
    of_proteins = {
        name: gradient
        for name, gradient in alone.items()
        if gradient.shape[-1] == len(lacks) or "others.weight" in name
    }
    assert len(of_proteins) >= 11
    for name, gradient in of_proteins.items():
        by_protein = gradient.T if "others.weight" in name else gradient
        assert (by_protein[..., lacks] == 0).all(), name
        assert (by_protein[..., ~lacks] != 0).any(), name


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb"])
def test_counts_of_masked_proteins_change_no_fit(fused: bool, gene_likelihood: Any) -> None:
    weights = []
    for fill in (False, True):
        model = with_unmeasured(fused=fused, gene_likelihood=gene_likelihood)
        if fill:
            model._data = filled(model)
        model.train(**FAST)
        weights.append(model.module.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_steps_of_the_adversary_do_not_advance_the_warm_up() -> None:
    plain, opposed = with_unmeasured(), with_unmeasured()
    plan: dict[str, Any] = FAST | {"max_epochs": 6, "n_epochs_kl_warmup": 4}
    plain.train(**plan)
    opposed.train(**plan, adversarial=True)
    for schedule in ("kl_weight", "learning_rate"):
        assert opposed.history[schedule].tolist() == plain.history[schedule].tolist()
    assert opposed.history["kl_weight"].tolist() == [0.25, 0.5, 0.75, 1, 1, 1]
    assert opposed.history["train_loss"].tolist() != plain.history["train_loss"].tolist()
