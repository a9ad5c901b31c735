"""Queries of the evidence: means and cells, subsets, new data, unmeasured proteins."""

from typing import Any

import numpy as np
import pytest
import torch
from mudata import MuData

import totalvi
from counts import SMALL, annotated
from totalvi.posterior import evidence

FAST: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated(n_unmeasured=2)


@pytest.fixture(scope="module", params=["observed", "latent"])
def trained(request: pytest.FixtureRequest, mdata: MuData) -> totalvi.Model:
    model = totalvi.Model(mdata, batch_key="batch", library=request.param, **SMALL)
    model.train(**FAST)
    return model


def test_marginal_likelihood_by_cell_and_its_mean(trained: totalvi.Model) -> None:
    """`return_mean=False` gives each cell's, not an error."""
    cells = trained.get_marginal_ll(n_mc_samples=20, return_mean=False)
    assert isinstance(cells, np.ndarray)
    assert cells.shape == (120,)
    mean = trained.get_marginal_ll(n_mc_samples=20)
    assert mean == pytest.approx(cells.mean())
    assert mean > trained.get_elbo()
    assert trained.get_marginal_ll(n_mc_samples=200) > mean


def test_subsets_and_new_data_give_the_same_values(trained: totalvi.Model, mdata: MuData) -> None:
    cells = trained.get_marginal_ll(n_mc_samples=5, return_mean=False)
    new = trained.get_marginal_ll(
        mdata[30:50].copy(), n_mc_samples=5, return_mean=False, batch_size=9
    )
    np.testing.assert_allclose(new, np.asarray(cells)[30:50], rtol=1e-4)
    errors = trained.get_reconstruction_error(return_mean=False)
    part = trained.get_reconstruction_error(indices=[4, 60], return_mean=False)
    np.testing.assert_allclose(part, errors.iloc[[4, 60]], rtol=1e-4)


def test_the_mean_of_very_many_cells_is_that_of_float64(
    trained: totalvi.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = np.ones((120, 2), dtype=np.float32)
    errors[0] = 2**25  # beside which float32 has no room for the ones
    monkeypatch.setattr(
        evidence, "reconstruction_error", lambda _, batch: torch.from_numpy(errors[batch.cells])
    )
    mean = trained.get_reconstruction_error()
    assert mean["gene"] == mean["protein"] == (2**25 + 119) / 120


def test_reconstruction_error_by_modality(trained: totalvi.Model, mdata: MuData) -> None:
    table = trained.get_reconstruction_error(return_mean=False, n_samples=3)
    assert list(table.columns) == ["gene", "protein", "total"]
    assert list(table.index) == list(mdata.obs_names)
    np.testing.assert_allclose(table["total"], table["gene"] + table["protein"])
    mean = trained.get_reconstruction_error(n_samples=3)
    np.testing.assert_allclose(mean, table.mean())
    one = trained.get_reconstruction_error()
    paper = trained.get_elbo(integrate_background=False)
    assert isinstance(paper, float)
    assert paper < -one["total"]  # the divergences are above 0
    integrated = trained.get_elbo()
    assert isinstance(integrated, float)
    assert integrated > paper
    assert integrated < -one["gene"]


def test_counts_of_unmeasured_proteins_do_not_matter(mdata: MuData) -> None:
    """The second batch did not measure two proteins: in it they add nothing to the error."""
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(**FAST)
    measured = np.array(model.schema.panel_measured)
    assert not measured.all()
    batch, protein = np.argwhere(~measured)[0]
    before = model.get_marginal_ll(n_mc_samples=2, return_mean=False)
    model.module.protein_log_r.data[:, protein] -= 3
    after = model.get_marginal_ll(n_mc_samples=2, return_mean=False)
    inside = mdata.obs["batch"].to_numpy() == model.schema.batch_names[batch]
    np.testing.assert_allclose(np.asarray(after)[inside], np.asarray(before)[inside], rtol=1e-5)
    assert not np.allclose(np.asarray(after)[~inside], np.asarray(before)[~inside], rtol=1e-4)


def test_a_background_that_went_wrong_explains_no_cell_better(mdata: MuData) -> None:
    """q(b | z) counts only in the paper's bound: the others integrate over the prior."""
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(**FAST)
    before = np.asarray(model.get_marginal_ll(n_mc_samples=5, return_mean=False))
    integrated = np.asarray(model.get_elbo(return_mean=False))
    paper = np.asarray(model.get_elbo(integrate_background=False, return_mean=False))
    head = model.module.decoder.background_mean_head.bias.data
    head[0] += 60
    after = np.asarray(model.get_elbo(integrate_background=False, return_mean=False))
    assert np.isfinite(after).all()
    assert (after < paper).all()
    assert np.array_equal(
        np.asarray(model.get_marginal_ll(n_mc_samples=5, return_mean=False)), before
    )
    model.module.background_prior_mean.data[:, 0] += 60
    for query, was in ((model.get_elbo, integrated), (model.get_marginal_ll, before)):
        given: dict[str, Any] = {} if query == model.get_elbo else {"n_mc_samples": 5}
        after = np.asarray(query(return_mean=False, **given))
        assert np.isfinite(after).all()
        assert (after < was).all()


@pytest.mark.parametrize("n", [0, 2.5, True])
def test_wrong_numbers_of_samples_are_refused(trained: totalvi.Model, n: Any) -> None:
    with pytest.raises(ValueError, match="n_mc_samples is"):
        trained.get_marginal_ll(n_mc_samples=n)
    with pytest.raises(ValueError, match="n_samples is"):
        trained.get_reconstruction_error(n_samples=n)
