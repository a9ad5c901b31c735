"""What each modality tells of a cell: exact integrals, agreement of tables, cells that lack one."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

import totalvi
from totalvi.posterior.modality_posterior import (
    Modality,
    StatesOfCells,
    posterior_given,
    surprise_of,
)


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return totalvi.simulate(
        n_cells=120, n_genes=40, n_proteins=6, n_batches=2, n_unmeasured=2, seed=1
    )


def fitted(mdata: MuData, n_epochs: int = 3, **options: Any) -> totalvi.Model:
    options = {"n_latent": 3, "n_hidden": 16, "batch_key": "batch", "seed": 0} | options
    model = totalvi.Model(mdata, **options)
    model.train(n_epochs, progress=False)
    return model


@pytest.fixture(scope="module")
def model(mdata: MuData) -> totalvi.Model:
    return fitted(mdata)


@pytest.fixture(scope="module")
def of_two_dimensions() -> totalvi.Model:
    cells = totalvi.simulate(n_cells=400, n_genes=40, n_proteins=6, n_cell_types=3, seed=1)
    return fitted(cells, 100, n_latent=2, batch_key=None)


@pytest.mark.parametrize("given", [("rna", "protein"), ("rna",), ("protein",)])
def test_posterior_is_that_of_a_grid_of_states(
    of_two_dimensions: totalvi.Model, given: tuple[Modality, ...]
) -> None:
    """In two dimensions, p(u | counts) is known at every point of a grid."""
    question = of_two_dimensions._question(None, range(30), 30, False)
    states = StatesOfCells.of(question)
    side = torch.linspace(-6, 6, 61)
    grid = torch.cartesian_prod(side, side)
    log_prior = -0.5 * (grid**2).sum(dim=1)
    log_prior = log_prior - log_prior.logsumexp(dim=0)
    with question.minibatches("cells") as batches:
        batch = next(batches)
        found = posterior_given(states, batch, given, question.noise)
        surprise = surprise_of(states.network, batch, given)
        log_likelihood = torch.stack([-surprise(u.expand(30, 2)) for u in grid], dim=1)
    log_posterior = (log_likelihood + log_prior).log_softmax(dim=1)
    p = log_posterior.exp()
    mean = p @ grid
    nats = (p * (log_posterior - log_prior)).sum(dim=1)
    spread = (p @ grid**2 - mean**2).sqrt()
    away = (found.mean - mean).abs() / spread
    assert (away < 1).float().mean() > 0.95
    assert away.max() < 2
    assert (found.nats().sum(dim=1) - nats).abs().median() < 0.2
    assert found.nats().sum() == pytest.approx(nats.sum().item(), rel=0.15)  # fits differ by torch
    assert np.corrcoef(found.nats().sum(dim=1), nats)[0, 1] > 0.9


@pytest.mark.parametrize(
    "options",
    [{}, {"gene_likelihood": "zinb"}, {"latent_distribution": "ln"}, {"library": "latent"}],
)
def test_tables_agree_with_each_other(mdata: MuData, options: dict[str, Any]) -> None:
    told = fitted(mdata, **options).get_modality_information()
    cells = told.cells
    assert list(cells.index) == list(mdata.obs_names)
    np.testing.assert_allclose(cells["rna_added"], cells["total"] - cells["protein"])
    np.testing.assert_allclose(cells["protein_added"], cells["total"] - cells["rna"])
    assert (cells[["total", "rna", "protein"]] >= 0).all(axis=None)
    assert np.isfinite(told.features["all"]).all()
    expected = cells[["total", "rna", "protein"]].mean()
    np.testing.assert_allclose(told.dimensions.sum(), expected, rtol=1e-4)
    assert told.rna_states.shape == told.protein_states.shape == (120, 3)


def test_a_cell_is_told_the_same_alone(model: totalvi.Model) -> None:
    everyone = model.get_modality_information().cells
    some = model.get_modality_information(indices=[7, 50, 3], batch_size=2).cells
    pd.testing.assert_frame_equal(everyone.iloc[[7, 50, 3]], some, rtol=1e-2, atol=1e-2)


def test_unmeasured_proteins_tell_nothing(mdata: MuData, model: totalvi.Model) -> None:
    told = model.get_modality_information(groupby="batch").features
    lacking = np.isnan(mdata["prot"].X).any(axis=0)
    assert lacking.sum() == 2
    names = mdata["prot"].var_names[lacking]
    without, with_all = sorted(mdata.obs["batch"].unique(), reverse=True)
    np.testing.assert_allclose(told.loc[names, without], 0, atol=1e-5)
    assert (told.loc[names, with_all].abs() > 1e-4).all()


def test_groups_average_to_all_and_cells_without_one_are_left_out(
    mdata: MuData, model: totalvi.Model
) -> None:
    groups = np.array(["a"] * 30 + [None] * 30 + ["b"] * 60, dtype=object)
    told = model.get_modality_information(groupby=groups).features
    assert list(told.columns) == ["modality", "a", "b"]
    of_b = model.get_modality_information(indices=range(60, 120)).features["all"]
    np.testing.assert_allclose(told["b"], of_b, atol=0.02)
    with pytest.raises(ValueError, match="groupby is 'cluster', which is no column of obs"):
        model.get_modality_information(groupby="cluster")
    with pytest.raises(ValueError, match=r"groupby has shape \(3,\); allowed is \(120,\)"):
        model.get_modality_information(groupby=["a", "b", "c"])


def test_a_modality_that_a_cell_lacks_tells_nothing() -> None:
    whole = totalvi.simulate(n_cells=120, n_genes=40, n_proteins=6, seed=2)
    parts = {"rna": whole["rna"][:90].copy(), "prot": whole["prot"][40:].copy()}
    for part in parts.values():
        part.obs = pd.DataFrame(index=part.obs_names)
    cells = totalvi.mosaic(MuData(parts))
    told = fitted(cells, 2, batch_key=None).get_modality_information().cells
    measured = cells.obs["measured_modalities"]
    assert (told["protein"][measured == "rna"] == 0).all()
    assert (told["rna"][measured == "prot"] == 0).all()
    assert (told["protein"][measured == "both"] > 0).all()


def test_a_type_that_proteins_alone_tell_apart_needs_them() -> None:
    """Two kinds of cells with the same RNA differ in four proteins."""
    cells = totalvi.simulate(n_cells=400, n_genes=60, n_proteins=5, n_cell_types=1, seed=3)
    second = np.arange(400) % 2 == 1
    protein = np.asarray(cells["prot"].X).copy()
    high = second[:, None] == (np.arange(4) % 2 == 0)
    protein[:, :4] = np.random.default_rng(0).poisson(np.where(high, 400, 4))
    cells["prot"].X = protein
    model = fitted(cells, 120, batch_key=None, n_latent=5, n_hidden=32)
    told = model.get_modality_information()
    assert told.cells["protein"].mean() > told.cells["rna"].mean()
    assert set(told.features["all"].nlargest(4).index) == set(cells["prot"].var_names[:4])
