"""simulate: the counts follow the distributions that their truth says."""

import mudata
import numpy as np
import pytest
from scipy import sparse, stats

from totalvi.data.checks import check_counts
from totalvi.data.columns import Columns
from totalvi.data.find import find_counts
from totalvi.data.simulate import simulate
from totalvi.data.simulate_draws import negative_binomial
from totalvi.errors import DataError


@pytest.fixture(scope="module")
def mdata():
    return simulate(2500, 300, 20, n_batches=3, n_unmeasured=4, seed=3)


def measured_mean(prot) -> np.ndarray:
    """True mean of each protein count."""
    return np.where(
        prot.layers["foreground"], prot.layers["denoised"], prot.layers["background_mean"]
    )


def standardised_sums(counts, mean, inverse_dispersion) -> np.ndarray:
    """By column: sum of counts less its mean over its standard deviation; about N(0, 1)."""
    variance = mean + mean**2 / inverse_dispersion
    return (counts - mean).sum(axis=0) / np.sqrt(variance.sum(axis=0))


@pytest.mark.parametrize(("mean", "inverse_dispersion"), [(0.3, 0.5), (4.0, 2.0), (900.0, 12.0)])
def test_negative_binomial_follows_its_probability_mass(mean, inverse_dispersion):
    draws = negative_binomial(
        np.random.default_rng(1), np.full(20_000, mean), np.array(inverse_dispersion)
    )
    law = stats.nbinom(inverse_dispersion, inverse_dispersion / (inverse_dispersion + mean))
    edges = np.unique(law.ppf(np.linspace(0, 1, 9)[1:-1]))
    expected = np.diff(np.concatenate([[0], law.cdf(edges), [1]])) * len(draws)
    observed = np.bincount(np.searchsorted(edges, draws), minlength=len(expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert law.var() == pytest.approx(mean + mean**2 / inverse_dispersion)
    assert abs(draws.mean() - mean) < 4 * law.std() / np.sqrt(len(draws))


def test_rna_counts_have_the_true_mean_and_variance(mdata):
    rna = mdata["rna"]
    counts = rna.X.toarray().astype(float)
    rho = rna.layers["denoised"].astype(float)
    np.testing.assert_allclose(rho.sum(axis=1), 1, rtol=1e-5)
    mean = mdata.obs["library_size"].to_numpy()[:, None] * rho
    r = rna.var["inverse_dispersion"].to_numpy()
    scores = standardised_sums(counts, mean, r)
    assert stats.kstest(scores, "norm").pvalue > 1e-3
    squares = (counts - mean) ** 2 / (mean + mean**2 / r)
    assert squares.mean() == pytest.approx(1, abs=0.05)


def test_protein_counts_have_the_true_mean_and_variance(mdata):
    prot = mdata["prot"]
    mean = measured_mean(prot).astype(float)
    r = prot.var["inverse_dispersion"].to_numpy()
    counts = prot.layers["complete"]
    assert np.abs(standardised_sums(counts, mean, r)).max() < 4
    squares = (counts - mean) ** 2 / (mean + mean**2 / r)
    assert squares.mean() == pytest.approx(1, abs=0.05)


def test_background_is_log_normal_by_protein_and_batch(mdata):
    prot, batch = mdata["prot"], mdata.obs["batch"].cat.codes.to_numpy()
    log_mean, sd = prot.varm["log_background_mean"], prot.var["log_background_sd"].to_numpy()
    for s in range(3):
        logs = np.log(prot.layers["background_mean"][batch == s])
        scores = (logs.mean(axis=0) - log_mean[:, s]) / (sd / np.sqrt(len(logs)))
        assert np.abs(scores).max() < 4
        np.testing.assert_allclose(logs.std(axis=0), sd, rtol=0.15)
    assert np.ptp(log_mean, axis=1).min() > 0


def test_foreground_comes_at_the_true_probability_of_the_cell_type(mdata):
    prot, cell_type = mdata["prot"], mdata.obs["cell_type"].cat.codes.to_numpy()
    for k in range(6):
        chosen = prot.layers["foreground"][cell_type == k]
        expected = prot.varm["foreground_probability"][:, k]
        error = np.sqrt(expected * (1 - expected) / len(chosen)) + 1e-9
        assert (np.abs(chosen.mean(axis=0) - expected) / error).max() < 5
    positive = prot.varm["foreground_probability"] > 0.5
    real = ~prot.var["control"].to_numpy()
    assert positive[real].any(axis=1).all()
    assert not positive[real].all(axis=1).any()


def test_foreground_exceeds_background_and_controls_have_none(mdata):
    prot = mdata["prot"]
    foreground = prot.layers["foreground"].astype(bool)
    assert (prot.layers["denoised"] > prot.layers["background_mean"])[foreground].all()
    assert (prot.layers["denoised"][~foreground] == 0).all()
    control = prot.var["control"].to_numpy()
    assert control.sum() == 2
    assert not foreground[:, control].any()
    assert prot.var_names[control].tolist() == ["isotype_0", "isotype_1"]
    counts = prot.layers["complete"]
    for t in np.flatnonzero(~control):
        on, off = counts[foreground[:, t], t], counts[~foreground[:, t], t]
        auroc = stats.mannwhitneyu(on, off).statistic / (len(on) * len(off))
        assert auroc > 0.9


def test_levels_resemble_a_real_experiment(mdata):
    rna, prot = mdata["rna"].X, mdata["prot"]
    assert 0.82 < 1 - rna.nnz / np.prod(rna.shape) < 0.95
    foreground = prot.layers["foreground"].astype(bool)
    background = np.median(prot.layers["complete"][~foreground])
    assert 5 < background < 50
    assert 100 < np.median(prot.layers["complete"][foreground]) < 2000


def test_library_sizes_are_log_normal_by_batch(mdata):
    logs = np.log(mdata.obs["library_size"])
    by_batch = logs.groupby(mdata.obs["batch"], observed=True)
    assert by_batch.std().between(0.37, 0.63).all()
    assert by_batch.mean().nunique() == 3
    assert by_batch.apply(lambda x: stats.shapiro(x).pvalue).min() > 1e-3
    totals = np.asarray(mdata["rna"].X.sum(axis=1)).ravel()
    assert np.corrcoef(np.log(totals), logs)[0, 1] > 0.9


def test_markers_stand_out_and_relatives_are_alike(mdata):
    rna, cell_type = mdata["rna"], mdata.obs["cell_type"]
    logs = np.log(rna.layers["denoised"])
    means = {k: logs[(cell_type == k).to_numpy()].mean(axis=0) for k in cell_type.cat.categories}
    for k, mean in means.items():
        marker = rna.var["marker_of"].str.split(", ").map(lambda of, k=k: k in of).to_numpy()
        others = np.mean([other for name, other in means.items() if name != k], axis=0)
        assert (mean - others)[marker].mean() > (mean - others)[~marker].mean() + 1
    distance = {
        (a, b): np.sqrt(((means[a] - means[b]) ** 2).sum()) for a in means for b in means if a < b
    }
    assert min(distance, key=distance.get) in {("type_0", "type_1"), ("type_3", "type_4")}
    unlike = [
        d
        for pair, d in distance.items()
        if pair not in {("type_0", "type_1"), ("type_3", "type_4")}
    ]
    assert distance["type_0", "type_1"] < min(unlike)


def test_unmeasured_proteins_are_nan_in_the_last_batch_alone(mdata):
    prot, batch = mdata["prot"], mdata.obs["batch"]
    nan = np.isnan(prot.X)
    last = (batch == "batch_2").to_numpy()
    assert not nan[~last].any()
    assert nan[last].all(axis=0).sum() == nan[last].any(axis=0).sum() == 4
    assert not nan[:, prot.var["control"]].any()
    np.testing.assert_array_equal(prot.X[~nan], prot.layers["complete"][~nan])


def counts_of(mdata) -> tuple[np.ndarray, np.ndarray]:
    return mdata["rna"].X.toarray(), mdata["prot"].X


def test_a_seed_gives_the_same_counts_and_another_gives_others():
    first, again = simulate(1200, 50, 6, seed=5), simulate(1200, 50, 6, seed=5, store_truth=False)
    other = simulate(1200, 50, 6, seed=6)
    for a, b, c in zip(counts_of(first), counts_of(again), counts_of(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).mean() > 0.1
    assert "denoised" in first["rna"].layers
    assert "denoised" not in again["rna"].layers


def test_batches_differ_only_where_there_are_several():
    alone = simulate(50, 40, 6, seed=0)
    assert alone.obs["batch"].nunique() == 1
    several = simulate(3000, 40, 6, n_batches=2, batch_effect=0.8, seed=0)
    logs, first = np.log(several["rna"].layers["denoised"]), several.obs["batch"] == "batch_0"
    shift = logs[first].mean(axis=0) - logs[~first].mean(axis=0)
    assert 0.5 < shift.std() < 2
    assert several.obs["batch"].value_counts().tolist() == [1500, 1500]


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_cells": 1, "n_genes": 1, "n_proteins": 1, "n_cell_types": 1},
        {"n_cells": 30, "n_genes": 3, "n_proteins": 2, "n_cell_types": 9},
        {"n_cells": 30, "n_genes": 30, "n_proteins": 12, "n_isotype_controls": 11},
    ],
)
def test_small_sizes(sizes):
    made = simulate(**sizes)
    assert made.shape == (sizes["n_cells"], sizes["n_genes"] + sizes["n_proteins"])


def test_the_arguments_are_kept_and_the_file_can_be_written(mdata, tmp_path):
    assert mdata.uns["simulation"]["seed"] == 3
    mdata.write_h5mu(tmp_path / "simulated.h5mu")
    with mudata.set_options(pull_on_update=False):
        again = mudata.read_h5mu(tmp_path / "simulated.h5mu")
    np.testing.assert_array_equal(again["prot"].X, mdata["prot"].X)
    assert again.uns["simulation"]["n_unmeasured"] == 4


def test_the_checks_find_no_fault_with_it(mdata):
    assert isinstance(mdata["rna"].X, sparse.csr_matrix)
    findings = check_counts(
        find_counts(mdata, Columns()), Columns(batch_key="batch", labels_key="cell_type")
    )
    assert [f for f in findings if f.severity == "error"] == []


BAD = [
    ({"n_cells": 0}, "n_cells=0"),
    ({"n_genes": -1}, "n_genes=-1"),
    ({"n_proteins": 0}, "n_proteins=0"),
    ({"n_batches": 0}, "n_batches=0"),
    ({"n_cell_types": 0}, "n_cell_types=0"),
    ({"n_proteins": 3, "n_isotype_controls": 3}, "n_isotype_controls=3"),
    ({"n_unmeasured": 2}, "n_batches=2"),
    ({"n_unmeasured": 19, "n_batches": 2}, "at most 18"),
    ({"batch_effect": float("nan")}, "batch_effect=nan"),
    ({"median_library_size": 0.0}, "median_library_size"),
]


@pytest.mark.parametrize(("arguments", "word"), BAD)
def test_arguments_out_of_range_are_refused(arguments, word):
    with pytest.raises(DataError, match=word):
        simulate(**arguments)
