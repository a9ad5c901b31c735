"""Queries of aggregated posteriors and differential abundance."""

import numpy as np
import pytest
from mudata import MuData

import totalvi
from counts import SMALL
from totalvi.errors import DataError

N_CELLS = 400


@pytest.fixture(scope="module")
def mdata() -> MuData:
    """Of the first cell type, nine in ten cells are of sample "treated"; of the others, half."""
    data = totalvi.simulate(N_CELLS, 60, 8, n_cell_types=3, seed=2)
    rng = np.random.default_rng(0)
    first = data.obs["cell_type"] == data.obs["cell_type"].unique()[0]
    treated = rng.random(N_CELLS) < np.where(first, 0.9, 0.5)
    data.obs["sample"] = np.where(treated, "treated", "control")
    data.obs["enriched"] = first.to_numpy()
    return data


@pytest.fixture(scope="module")
def trained(mdata: MuData) -> totalvi.Model:
    model = totalvi.Model(mdata, **SMALL)
    model.train(max_epochs=60, accelerator="cpu", progress=False)
    return model


def test_the_enriched_sample_is_found(trained: totalvi.Model, mdata: MuData) -> None:
    table = trained.differential_abundance(sample_key="sample")
    assert list(table.columns) == ["control", "treated"]
    assert list(table.index) == list(mdata.obs_names)
    assert np.isfinite(table.to_numpy()).all()
    ratio = table["treated"] - table["control"]
    enriched = mdata.obs["enriched"].to_numpy()
    treated = mdata.obs["sample"].to_numpy() == "treated"
    sizes = np.log(treated.mean() / (1 - treated.mean()))  # each density is relative to its sample
    expected = np.log(9) - sizes
    assert np.median(ratio[enriched]) == pytest.approx(expected, abs=0.7)
    assert np.median(ratio[~enriched]) == pytest.approx(-sizes, abs=0.5)


def test_subsets_new_data_and_cells_of_no_sample(trained: totalvi.Model, mdata: MuData) -> None:
    by_indices = trained.differential_abundance(sample_key="sample", indices=range(100))
    new = mdata[:100].copy()
    np.testing.assert_allclose(
        trained.differential_abundance(new, sample_key="sample"), by_indices, rtol=1e-3
    )
    new.obs["sample"] = new.obs["sample"].where(np.arange(100) > 9, None)
    some = trained.differential_abundance(new, sample_key="sample")
    assert some.shape == (100, 2)
    assert np.isfinite(some.to_numpy()).all()


def test_columns_added_after_the_fit_are_found(trained: totalvi.Model, mdata: MuData) -> None:
    mdata.obs["later"] = np.arange(N_CELLS) % 3
    assert list(trained.differential_abundance(sample_key="later").columns) == [0, 1, 2]


def test_the_aggregated_posterior_is_where_the_cells_are(trained: totalvi.Model) -> None:
    mixture = trained.get_aggregated_posterior(indices=range(50))
    latent = trained.get_latent_representation(indices=range(50))
    assert mixture.mean.shape == (50, 4)
    far = latent + 30
    assert mixture.log_prob(latent).min() > mixture.log_prob(far).max()
    samples = mixture.sample(4000)
    np.testing.assert_allclose(samples.mean(axis=0), latent.mean(axis=0), atol=0.15)


def test_samples_that_cannot_be_compared_are_refused(trained: totalvi.Model, mdata: MuData) -> None:
    with pytest.raises(DataError, match=r"no column 'sampel'.*sample"):
        trained.differential_abundance(sample_key="sampel")
    new = mdata[:20].copy()
    new.obs["sample"] = ["a"] * 19 + ["b"]
    with pytest.raises(DataError, match="'b' has one cell"):
        trained.differential_abundance(new, sample_key="sample")
    new.obs["sample"] = np.full(20, np.nan)
    with pytest.raises(DataError, match="holds no sample"):
        trained.differential_abundance(new, sample_key="sample")
    with pytest.raises(ValueError, match="selects no cell"):
        trained.get_aggregated_posterior(indices=[])
