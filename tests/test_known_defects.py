"""Defects of other implementations that no test of a single part would show here."""

from typing import Any

import numpy as np
import pytest
import torch

import totalvi
from counts import SMALL, annotated
from totalvi.errors import DataError

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
