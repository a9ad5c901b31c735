"""Predictive counts and checks of a fitted model, by name."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import sparse

from counts import N_GENES, N_PROTEINS, SMALL, annotated
from totalvi.errors import OutputError
from totalvi.model import Model


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated(n_unmeasured=1)


@pytest.fixture(scope="module")
def model(mdata: MuData) -> Model:
    model = Model(mdata, batch_key="batch", **SMALL)
    model.train(max_epochs=3, progress=False)
    return model


def test_a_sample_is_sparse_and_labelled(mdata: MuData, model: Model) -> None:
    sample = model.posterior_predictive_sample()
    assert isinstance(sample.rna, sparse.csr_matrix)
    assert isinstance(sample.protein, pd.DataFrame)
    assert sample.rna.shape == (120, N_GENES)
    assert (sample.rna.data > 0).all()
    assert (sample.rna.data == np.round(sample.rna.data)).all()
    assert list(sample.cell_names) == list(sample.protein.index) == list(mdata.obs_names)
    assert list(sample.gene_names) == list(mdata["rna"].var_names)
    assert list(sample.protein.columns) == list(mdata["prot"].var_names)
    unmeasured = mdata["prot"].to_df().isna()
    assert unmeasured.to_numpy().any()
    assert sample.protein.isna().equals(unmeasured)
    drawn = sample.protein.to_numpy()[~unmeasured]
    assert (drawn == np.round(drawn)).all()


def test_several_samples_are_lists_of_different_counts(model: Model) -> None:
    one, three = (model.posterior_predictive_sample(n_samples=n) for n in (1, 3))
    assert isinstance(three.rna, list)
    assert isinstance(three.protein, list)
    assert len(three.rna) == len(three.protein) == 3
    assert (three.rna[0] != one.rna).nnz == 0
    assert (three.rna[0] != three.rna[1]).nnz > 0
    assert three.protein[0].equals(one.protein)
    assert not three.protein[0].equals(three.protein[2])


def test_seed_and_subset(mdata: MuData, model: Model) -> None:
    whole, again, other = (model.posterior_predictive_sample(seed=seed) for seed in (3, 3, 4))
    assert (whole.rna != again.rna).nnz == 0
    assert (whole.rna != other.rna).nnz > 0
    genes, proteins = ["gene_7", "gene_2"], ["protein_3"]
    some = model.posterior_predictive_sample(
        mdata[[40, 9]].copy(), gene_list=genes, protein_list=proteins, seed=3
    )
    assert list(some.gene_names) == genes
    assert np.array_equal(some.rna.toarray(), whole.rna[[40, 9]][:, [7, 2]].toarray())
    assert some.protein.equals(whole.protein.iloc[[40, 9]][proteins])


@pytest.mark.parametrize("n_samples", [1, 2])
def test_counts_to_zarr(model: Model, tmp_path: Path, n_samples: int) -> None:
    given = {"n_samples": n_samples, "gene_list": ["gene_3", "gene_1", "gene_8"], "batch_size": 50}
    path = model.posterior_predictive_sample(**given, out=tmp_path / "counts.zarr")
    expected = model.posterior_predictive_sample(**given)
    assert isinstance(path, Path)
    for i in range(n_samples):
        group = path if n_samples == 1 else path / f"sample_{i}"
        rna, protein = (anndata.read_zarr(group / name) for name in ("rna", "protein"))
        assert sparse.issparse(rna.X)
        counts = expected.rna if n_samples == 1 else expected.rna[i]
        frame = expected.protein if n_samples == 1 else expected.protein[i]
        assert np.array_equal(rna.X.toarray(), counts.toarray())
        assert list(rna.var_names) == given["gene_list"]
        assert list(rna.obs_names) == list(frame.index)
        assert np.array_equal(protein.to_df(), frame, equal_nan=True)
    with pytest.raises(OutputError, match="exists already"):
        model.posterior_predictive_sample(out=path)


@pytest.mark.parametrize("method", ["posterior_predictive_sample", "posterior_predictive_check"])
def test_unknown_names_are_errors_with_near_misses(model: Model, method: str) -> None:
    ask = getattr(model, method)
    with pytest.raises(ValueError, match=r"gene_list holds 'gene7'.*gene_7"):
        ask(gene_list=["gene_1", "gene7"])
    with pytest.raises(ValueError, match=r"protein_list holds 'protin_1'.*protein_1"):
        ask(protein_list=["protin_1"])
    with pytest.raises(ValueError, match="n_samples is 0"):
        ask(n_samples=0)


def test_counts_are_drawn_in_one_batch(mdata: MuData, model: Model) -> None:
    own, first = (
        model.posterior_predictive_sample(transform_batch=batch) for batch in (None, "batch_0")
    )
    of_first = (mdata.obs["batch"] == "batch_0").to_numpy()
    assert (own.rna[of_first] != first.rna[of_first]).nnz == 0
    assert (own.rna[~of_first] != first.rna[~of_first]).nnz > 0
    with pytest.raises(ValueError, match="transform_batch holds 2 batches"):
        model.posterior_predictive_sample(transform_batch=["batch_0", "batch_1"])  # type: ignore[arg-type]


def test_the_check_has_a_row_a_feature_and_a_summary(mdata: MuData, model: Model) -> None:
    check = model.posterior_predictive_check(n_samples=8)
    table = check.table
    assert list(table.index) == [*mdata["rna"].var_names, *mdata["prot"].var_names]
    assert table["modality"].tolist() == ["rna"] * N_GENES + ["protein"] * N_PROTEINS
    counts = mdata["rna"].X.toarray()
    genes = table.iloc[:N_GENES]
    np.testing.assert_allclose(genes["observed_mean"], counts.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(genes["observed_zero_fraction"], (counts == 0).mean(axis=0))
    measured = (~np.isnan(mdata["prot"].X)).sum(axis=0)
    assert table["n_cells"].tolist() == [120] * N_GENES + measured.tolist()
    proteins = table.iloc[N_GENES:]
    assert check.summary.loc["rna", "mae"] == pytest.approx(genes["mae"].mean())
    assert check.summary.loc["protein", "cv_mae"] == pytest.approx(
        (proteins["observed_cv"] - proteins["predicted_cv"]).abs().mean()
    )
    at_95 = check.calibration.loc[("protein", 0.95)]
    assert at_95["coverage"] == pytest.approx(proteins["coverage_95"].mean())
    assert at_95["calibration_error"] == pytest.approx(
        ((proteins["coverage_95"] - 0.95) ** 2).mean()
    )
    assert at_95["quantile_coverage"] == pytest.approx(proteins["quantile_coverage_95"].mean())
    assert check.summary.loc["rna", "calibration_error"] == pytest.approx(
        check.calibration.loc["rna"]["calibration_error"].mean()
    )
    numbers = table.drop(columns="modality").to_numpy(dtype=float)
    assert np.isfinite(numbers).all()


def test_a_feature_has_the_same_checks_alone(model: Model) -> None:
    whole = model.posterior_predictive_check(n_samples=4, indices=range(50)).table
    some = model.posterior_predictive_check(
        n_samples=4, indices=range(50), gene_list=["gene_5"], protein_list=[], batch_size=9
    )
    assert list(some.summary.index) == ["rna"]
    pd.testing.assert_frame_equal(some.table, whole.loc[["gene_5"]], rtol=1e-4)
    with pytest.raises(ValueError, match="both empty"):
        model.posterior_predictive_check(gene_list=[], protein_list=[])
