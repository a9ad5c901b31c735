"""Queries of archetypes: labels, choices, and cells that lie at a corner."""

from typing import Any

import numpy as np
import pytest
from mudata import MuData

import totalvi
from counts import N_GENES, N_PROTEINS, SMALL, annotated

FAST: dict[str, Any] = {"max_epochs": 3, "accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated()


@pytest.fixture(scope="module")
def trained(mdata: MuData) -> totalvi.Model:
    model = totalvi.Model(
        mdata, batch_key="batch", categorical_covariate_keys=["sex"],
        continuous_covariate_keys=["age"], latent_distribution="ln", **SMALL,
    )  # fmt: skip
    model.train(**FAST)
    return model


def test_archetypes_are_labelled(trained: totalvi.Model, mdata: MuData) -> None:
    rna, protein = trained.get_archetypes()
    assert list(rna.index) == list(protein.index) == [f"archetype {k}" for k in range(4)]
    assert list(rna.columns) == list(trained.schema.gene_names)
    assert protein.shape == (4, N_PROTEINS)
    np.testing.assert_allclose(rna.sum(axis=1), 1, rtol=1e-5)
    assert (protein > 0).all(axis=None)
    genes, names = [trained.schema.gene_names[i] for i in (5, 2)], [trained.schema.protein_names[1]]
    some, one = trained.get_archetypes(gene_list=genes, protein_list=names, library_size=100)
    np.testing.assert_allclose(some, 100 * rna[genes])
    np.testing.assert_allclose(one, protein[names])
    new = trained.get_archetypes(mdata[:50].copy())
    by_indices = trained.get_archetypes(indices=range(50))
    for a, b in zip(new, by_indices, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    assert not np.allclose(new[0], rna, rtol=1e-4)


def test_a_cell_at_a_corner_is_denoised_to_the_archetype(trained: totalvi.Model) -> None:
    """With the posterior held at a corner, denoised expression and archetype are one."""
    head = trained.module.encoder.z_head
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.mean.weight.data.zero_()
    head.mean.bias.data.copy_(head.mean.bias.new_tensor([0.0, 0.0, 200.0, 0.0]))
    cells = trained.get_normalized_expression(n_samples=300, given_counts=False)
    archetypes = trained.get_archetypes()
    head.load_state_dict(before)
    np.testing.assert_allclose(cells[0].mean(), archetypes[0].iloc[2], rtol=0.1, atol=1e-4)
    np.testing.assert_allclose(cells[1].mean(), archetypes[1].iloc[2], rtol=0.2)


def test_standard_scores(trained: totalvi.Model) -> None:
    for table, scores in zip(
        trained.get_archetypes(), trained.get_archetypes(standardize=True), strict=True
    ):
        np.testing.assert_allclose(scores.mean(), 0, atol=1e-6)
        np.testing.assert_allclose(scores.std(ddof=0), 1, rtol=1e-6)
        assert (scores.idxmax() == table.idxmax()).all()
    assert trained.get_archetypes(standardize=True)[0].shape == (4, N_GENES)


def test_a_normal_latent_space_has_no_archetypes(mdata: MuData) -> None:
    model = totalvi.Model(mdata, **SMALL)
    model.train(max_epochs=1, progress=False)
    with pytest.raises(ValueError, match='latent_distribution="ln"'):
        model.get_archetypes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"library_size": -1}, "library_size is -1"),
        ({"library_size": "latent"}, "library_size is 'latent'"),
        ({"gene_list": ["none"]}, "gene_list holds 'none'"),
        ({"transform_batch": "none"}, "transform_batch holds 'none'"),
    ],
)
def test_wrong_arguments_are_refused(
    trained: totalvi.Model, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained.get_archetypes(**arguments)
