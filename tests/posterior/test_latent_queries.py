"""Queries of the latent state, the library size and the uncertainty of cells."""

from typing import Any

import numpy as np
import pytest
from mudata import MuData

import totalvi
from counts import SMALL, annotated

FAST: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated()


@pytest.fixture(scope="module", params=["normal", "ln"])
def trained(request: pytest.FixtureRequest, mdata: MuData) -> totalvi.Model:
    model = totalvi.Model(
        mdata, batch_key="batch", latent_distribution=request.param, library="latent", **SMALL
    )
    model.train(**FAST)
    return model


def test_samples_of_the_latent_state(trained: totalvi.Model, mdata: MuData) -> None:
    samples = trained.get_latent_representation(give_mean=False, n_samples=3)
    assert samples.shape == (3, 120, 4)
    one = trained.get_latent_representation(give_mean=False)
    assert np.array_equal(one, samples[0])
    new = trained.get_latent_representation(
        mdata[40:60].copy(), give_mean=False, n_samples=3, batch_size=7
    )
    np.testing.assert_allclose(new, samples[:, 40:60], rtol=1e-4, atol=1e-5)
    many = trained.get_latent_representation(indices=[5], give_mean=False, n_samples=4000)
    mean = trained.get_latent_representation(indices=[5])
    np.testing.assert_allclose(many.mean(axis=0), mean, atol=0.06)


def test_the_distribution_of_the_latent_state(trained: totalvi.Model) -> None:
    distribution = trained.get_latent_representation(indices=range(9), return_dist=True)
    assert distribution.mean.shape == distribution.variance.shape == (9, 4)
    assert (distribution.variance > 0).all()
    if trained.module.latent_distribution == "normal":
        assert np.array_equal(
            distribution.mean, trained.get_latent_representation(indices=range(9))
        )


def test_library_size(trained: totalvi.Model, mdata: MuData) -> None:
    mean = trained.get_latent_library_size()
    assert mean.shape == (120, 1)
    samples = trained.get_latent_library_size(give_mean=False, n_samples=2000)
    assert samples.shape == (2000, 120, 1)
    np.testing.assert_allclose(samples.mean(axis=0), mean, rtol=0.2)
    one = trained.get_latent_library_size(give_mean=False, indices=[3, 7])
    np.testing.assert_allclose(one, samples[0, [3, 7]], rtol=1e-4)
    new = trained.get_latent_library_size(mdata[[7, 3]].copy())
    np.testing.assert_allclose(new, mean[[7, 3]], rtol=1e-4)


def test_uncertainty(trained: totalvi.Model, mdata: MuData) -> None:
    table = trained.get_cell_uncertainty()
    assert list(table.index) == list(mdata.obs_names)
    assert np.isfinite(table.to_numpy()).all()
    assert table["protein_entropy"].between(0, np.log(2)).all()
    part = trained.get_cell_uncertainty(mdata[10:30].copy(), indices=range(5))
    np.testing.assert_allclose(part, table.iloc[10:15], rtol=1e-3)
    own = trained.get_cell_uncertainty(protein_list=[trained.schema.protein_names[2]])
    assert np.array_equal(own["latent_entropy"], table["latent_entropy"])
    assert not np.allclose(own["protein_entropy"], table["protein_entropy"])
    into = trained.get_cell_uncertainty(transform_batch=list(trained.schema.batch_names))
    assert not np.allclose(into["protein_entropy"], table["protein_entropy"], rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("get_latent_representation", {"n_samples": 3}, "give_mean=False"),
        ("get_latent_representation", {"n_samples": 0}, "n_samples is 0"),
        ("get_latent_representation", {"mc_samples": 0}, "mc_samples is 0"),
        ("get_latent_library_size", {"n_samples": 3}, "give_mean=False"),
        ("get_latent_library_size", {"seed": -1}, "seed is -1"),
        ("get_cell_uncertainty", {"protein_list": []}, "protein_list is empty"),
        ("get_cell_uncertainty", {"n_samples": 1.5}, "n_samples is 1.5"),
    ],
)
def test_wrong_arguments_are_refused(
    trained: totalvi.Model, method: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(trained, method)(**arguments)
