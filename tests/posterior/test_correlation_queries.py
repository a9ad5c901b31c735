"""Queries of correlations: the data asked about, names that genes and proteins share, controls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mudata import MuData
from scipy import stats

import totalvi
from counts import N_GENES, N_PROTEINS, SMALL, annotated
from totalvi.errors import DataError

FAST: dict[str, Any] = {"max_epochs": 60, "accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def mdata() -> MuData:
    data = annotated(300)
    genes, proteins = list(data["rna"].var_names), list(data["prot"].var_names)
    genes[:3], proteins[:2] = ["CD4", "CD8A", "CD8B"], ["CD4", "CD8"]
    data["rna"].var_names, data["prot"].var_names = genes, proteins
    data.update()
    return data


@pytest.fixture(scope="module")
def trained(mdata: MuData) -> totalvi.Model:
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(**FAST)
    return model


def test_a_gene_and_a_protein_may_share_a_name(trained: totalvi.Model) -> None:
    table = trained.get_feature_correlation_matrix(n_samples=2)
    assert table.shape == (N_GENES + N_PROTEINS,) * 2
    assert table.index.equals(table.columns)
    assert table.loc["rna", "protein"].shape == (N_GENES, N_PROTEINS)
    assert (
        table.at[("rna", "CD4"), ("protein", "CD4")] == table.loc["rna", "protein"].at["CD4", "CD4"]
    )
    assert np.array_equal(np.diagonal(table), np.ones(N_GENES + N_PROTEINS))
    np.testing.assert_allclose(table, table.T)


def test_new_data_are_not_the_training_data(trained: totalvi.Model, mdata: MuData) -> None:
    """A known defect of others: new data silently answered with the training data."""
    new = mdata[:90].copy()
    asked = trained.get_feature_correlation_matrix(new, n_samples=2)
    by_indices = trained.get_feature_correlation_matrix(indices=range(90), n_samples=2)
    np.testing.assert_allclose(asked, by_indices, atol=1e-3)
    assert not np.allclose(asked, trained.get_feature_correlation_matrix(n_samples=2), atol=0.01)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_log_transform_and_one_sample(trained: totalvi.Model, kind: Any) -> None:
    """Known defects of others: both failed."""
    plain, logged = (
        trained.get_feature_correlation_matrix(
            n_samples=1, correlation_type=kind, log_transform=log_transform
        )
        for log_transform in (False, True)
    )
    assert np.isfinite(logged.to_numpy()).all()
    if kind == "spearman":  # of the same ranks, up to rounding of the logarithm
        np.testing.assert_allclose(logged, plain, atol=1e-3)
    else:
        assert not np.allclose(logged, plain, atol=1e-3)


def test_chosen_features_and_batches(trained: totalvi.Model) -> None:
    table = trained.get_feature_correlation_matrix(
        gene_list=["CD8B", "CD4"], protein_list=["CD8"], n_samples=2
    )
    assert list(table.index) == [("rna", "CD8B"), ("rna", "CD4"), ("protein", "CD8")]
    options = {"gene_list": [], "n_samples": 2}
    each = [
        trained.get_feature_correlation_matrix(transform_batch=name, **options)
        for name in trained.schema.batch_names
    ]
    both = trained.get_feature_correlation_matrix(
        transform_batch=list(trained.schema.batch_names), **options
    )
    np.testing.assert_allclose(both, sum(each) / len(each), atol=1e-9)


def test_permuted_genes_lose_the_proteins_alone(trained: totalvi.Model) -> None:
    own = trained.get_feature_correlation_matrix(n_samples=3)
    control = trained.get_feature_correlation_matrix(n_samples=3, permute_genes=True)
    across, permuted = (
        np.abs(table.loc["rna", "protein"]).to_numpy().mean() for table in (own, control)
    )
    assert permuted < 0.06
    assert across > 1.5 * permuted
    for modality in ("rna", "protein"):
        np.testing.assert_allclose(
            control.loc[modality, modality], own.loc[modality, modality], atol=2e-3
        )


def test_gene_protein_pairs(trained: totalvi.Model, mdata: MuData) -> None:
    table = trained.get_gene_protein_pairs(n_samples=2)
    pairs = list(zip(table["protein"], table["gene"], strict=True))
    assert pairs == [("CD4", "CD4"), ("CD8", "CD8A")]
    rna = np.asarray(mdata["rna"].X.todense())
    relative = rna[:, 1] / rna.sum(axis=1)
    protein = np.asarray(mdata["prot"].X)[:, 1]
    expected = stats.spearmanr(relative, protein).statistic
    assert table["raw"][1] == pytest.approx(expected, abs=1e-6)
    matrix = trained.get_feature_correlation_matrix(
        n_samples=2, gene_list=["CD4", "CD8A"], protein_list=["CD4", "CD8"]
    )
    expected = [matrix.at[("rna", gene), ("protein", protein)] for protein, gene in pairs]
    np.testing.assert_allclose(table["denoised"], expected)
    expected = np.corrcoef(np.log1p(1000 * relative), np.log1p(protein))[0, 1]
    assert table["raw_log_pearson"][1] == pytest.approx(expected, abs=1e-6)
    matrix = trained.get_feature_correlation_matrix(
        n_samples=2, gene_list=["CD4", "CD8A"], protein_list=["CD4", "CD8"],
        correlation_type="pearson", log_transform=True,
    )  # fmt: skip
    expected = [matrix.at[("rna", gene), ("protein", protein)] for protein, gene in pairs]
    np.testing.assert_allclose(table["denoised_log_pearson"], expected, atol=1e-6)
    own = trained.get_gene_protein_pairs(pairs=[("CD8", "CD4")], indices=range(50), n_samples=1)
    assert own.shape == (1, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"correlation_type": "kendall"}, "correlation_type is 'kendall'"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"rna_size_factor": 0}, "rna_size_factor is 0"),
        ({"indices": [3]}, "two or more"),
        ({"gene_list": ["CD44"]}, "gene_list holds 'CD44'.*CD4"),
        ({"transform_batch": "no"}, "transform_batch holds 'no'"),
    ],
)
def test_wrong_arguments_are_refused(
    trained: totalvi.Model, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained.get_feature_correlation_matrix(**arguments)


@pytest.mark.parametrize("pairs", [[], ["CD4"], [("CD4", "CD4", "CD8")], [("CD4", "NONE")]])
def test_wrong_pairs_are_refused(trained: totalvi.Model, pairs: Any) -> None:
    with pytest.raises(ValueError, match="pairs"):
        trained.get_gene_protein_pairs(pairs=pairs)


def test_no_known_pair() -> None:
    model = totalvi.Model(annotated(60), **SMALL)
    model.train(**(FAST | {"max_epochs": 1}))
    if not any(name.startswith("CD") for name in model.schema.gene_names):
        with pytest.raises(DataError, match="name pairs"):
            model.get_gene_protein_pairs()


@pytest.mark.slow
def test_denoising_raises_the_correlation_of_matched_pairs(shared: Path) -> None:
    """On real PBMC, the model brings proteins nearer to their genes."""
    model = totalvi.Model(totalvi.read(shared / "data" / "pbmc10k.h5mu"), seed=0)
    model.train(progress=False)
    table = model.get_gene_protein_pairs(n_samples=10)
    assert len(table) >= 8
    for kind in ("", "_log_pearson"):
        assert table[f"denoised{kind}"].mean() > table[f"raw{kind}"].mean() + 0.05
    pair = table.set_index(["protein", "gene"]).loc[("CD19_TotalSeqB", "CD79A")]
    assert pair["denoised"] > pair["raw"] - 0.05


def test_the_bar_counts_every_pass(
    trained: totalvi.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.get_feature_correlation_matrix(n_samples=3, progress=True)
    shown = capsys.readouterr().err
    assert "correlations" in shown
    assert "900/900" in shown
