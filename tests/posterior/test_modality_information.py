"""What each modality tells of a cell, and the shares of features, dimensions and groups."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

import totalvi
from totalvi.posterior.fisher_information import nats
from totalvi.posterior.modality_information import (
    _derivatives,
    _moved,
    information,
)


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return totalvi.simulate(
        n_cells=120, n_genes=40, n_proteins=6, n_batches=2, n_unmeasured=2, seed=1
    )


def fitted(mdata: MuData, **options: Any) -> totalvi.Model:
    model = totalvi.Model(mdata, n_latent=3, n_hidden=16, batch_key="batch", seed=0, **options)
    model.train(3, progress=False)
    return model


@pytest.fixture(scope="module")
def model(mdata: MuData) -> totalvi.Model:
    return fitted(mdata)


@pytest.mark.parametrize(
    "options",
    [{}, {"gene_likelihood": "zinb"}, {"latent_distribution": "ln"}, {"library": "latent"}],
)
def test_tables_agree_with_each_other(mdata: MuData, options: dict[str, Any]) -> None:
    told = fitted(mdata, **options).get_modality_information()
    cells, features = told.cells, told.features
    assert list(cells.index) == list(mdata.obs_names)
    assert (cells.to_numpy() >= 0).all()
    np.testing.assert_allclose(cells["rna_added"], cells["total"] - cells["protein"])
    np.testing.assert_allclose(cells["protein_added"], cells["total"] - cells["rna"])
    assert (cells["total"] <= cells["rna"] + cells["protein"] + 1e-9).all()
    assert features["all"].sum() == pytest.approx(cells["total"].mean(), rel=1e-4)
    by_modality = features.groupby("modality")["all"].sum()
    np.testing.assert_allclose(
        told.dimensions.sum()[["protein", "rna"]], by_modality[["protein", "rna"]], rtol=1e-4
    )


def test_derivatives_are_those_of_the_network(model: totalvi.Model) -> None:
    question = model._question(None, range(5), 5, False)
    with question.minibatches("cells") as batches:
        batch = next(batches)
    u = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    library = torch.full((5, 1), 900.0)
    network = model.module

    def moved(u: torch.Tensor) -> torch.Tensor:
        parts = _moved(
            network, network.decode(network.transform_latent(u), batch.context), library, batch
        )
        return torch.cat([parts.log_mean, parts.protein.flatten(1)], dim=1)

    exact = torch.autograd.functional.jacobian(lambda u: moved(u).sum(dim=0), u)
    with torch.no_grad():
        found = _derivatives(network, batch, u, library)
    near = torch.cat([found.log_mean, found.protein.flatten(2)], dim=2)
    # a step that passes the kink of a rectifier differs from the derivative at its middle
    difference = (near - exact.permute(1, 2, 0)).abs()
    assert difference.median() < 1e-3
    assert (difference > 0.05).float().mean() < 0.02


def test_a_cell_is_told_the_same_alone(model: totalvi.Model) -> None:
    everyone = model.get_modality_information().cells
    some = model.get_modality_information(indices=[7, 50, 3], batch_size=2).cells
    pd.testing.assert_frame_equal(everyone.iloc[[7, 50, 3]], some, rtol=1e-3)


def test_unmeasured_proteins_tell_nothing(mdata: MuData, model: totalvi.Model) -> None:
    told = model.get_modality_information(groupby="batch").features
    lacking = np.isnan(mdata["prot"].X).any(axis=0)
    assert lacking.sum() == 2
    names = mdata["prot"].var_names[lacking]
    without, with_all = sorted(mdata.obs["batch"].unique(), reverse=True)
    assert (told.loc[names, without] == 0).all()
    assert (told.loc[names, with_all] >= 0).all()
    assert told.loc[names, with_all].sum() > 0


def test_groups_average_to_all_and_cells_without_one_are_left_out(
    mdata: MuData, model: totalvi.Model
) -> None:
    groups = np.array(["a"] * 30 + [None] * 30 + ["b"] * 60, dtype=object)
    told = model.get_modality_information(groupby=groups)
    assert list(told.features.columns) == ["modality", "a", "b"]
    assert told.features["b"].sum() == pytest.approx(told.cells["total"][60:].mean(), rel=1e-4)
    with pytest.raises(ValueError, match="groupby is 'cluster', which is no column of obs"):
        model.get_modality_information(groupby="cluster")
    with pytest.raises(ValueError, match="groupby has 3 values; allowed are 120"):
        model.get_modality_information(groupby=["a", "b", "c"])


def test_a_modality_that_a_cell_lacks_tells_nothing() -> None:
    whole = totalvi.simulate(n_cells=120, n_genes=40, n_proteins=6, seed=2)
    parts = {"rna": whole["rna"][:90].copy(), "prot": whole["prot"][40:].copy()}
    for part in parts.values():
        part.obs = pd.DataFrame(index=part.obs_names)
    cells = totalvi.mosaic(MuData(parts))
    mosaic = totalvi.Model(cells, n_latent=3, n_hidden=16, seed=0)
    mosaic.train(2, progress=False)
    told = mosaic.get_modality_information().cells
    measured = cells.obs["measured_modalities"]
    assert (told["protein"][measured == "rna"] == 0).all()
    assert (told["rna"][measured == "prot"] == 0).all()
    assert (told["protein"][measured == "both"] > 0).all()


def test_information_grows_with_the_number_of_counts(model: totalvi.Model) -> None:
    """Ten times the library size tells more: the information of RNA is larger in every direction."""
    question = model._question(None, range(20), 20, False)
    with question.minibatches("cells") as batches:
        batch = next(batches)
        fewer = nats(information(model.module, batch).rna)
        deeper = batch.context._replace(library_size=10 * batch.context.library_size)
        more = nats(information(model.module, batch._replace(context=deeper)).rna)
    assert (more > fewer).all()
