import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from totalvi.errors import DataError
from totalvi.run import variable_genes as module
from totalvi.run.variable_genes import select_genes

N_GENES, N_VARIABLE = 600, 40


def simulated_counts(n_cells: int, seed: int = 0) -> sparse.csr_matrix:
    """Two equal groups of cells; the first `N_VARIABLE` genes differ 8-fold between them."""
    rng = np.random.default_rng(seed)
    mean = np.tile(np.exp(np.random.default_rng(1).uniform(-1, 2, N_GENES)), (n_cells, 1))
    mean[::2, :N_VARIABLE] *= 16 / 9  # the mean over all cells stays as it is
    mean[1::2, :N_VARIABLE] *= 2 / 9
    return sparse.csr_matrix(rng.poisson(mean).astype(np.float32))


def names(n_genes: int = N_GENES) -> list[str]:
    return [f"gene{i}" for i in range(n_genes)]


def test_variable_genes_are_recovered() -> None:
    selected = select_genes(simulated_counts(400), names(), n_genes=N_VARIABLE)
    assert selected.dtype == bool
    assert selected.sum() == N_VARIABLE
    assert selected[:N_VARIABLE].mean() > 0.9


def test_difference_between_batches_alone_does_not_select() -> None:
    counts = simulated_counts(400).toarray()
    batch = np.repeat(["a", "b"], 200)
    by_batch = np.argsort(counts.mean(axis=0))[:: N_GENES // 20]
    by_batch = by_batch[by_batch >= N_VARIABLE]
    counts[:200, by_batch] = counts[:200, by_batch[::-1]]  # swap high with low in one batch
    matrix = sparse.csr_matrix(counts)
    together = select_genes(matrix, names(), n_genes=2 * N_VARIABLE)
    apart = select_genes(matrix, names(), n_genes=N_VARIABLE, batch=batch)
    assert together[by_batch].mean() > 0.5
    assert apart[by_batch].mean() < 0.1
    assert apart[:N_VARIABLE].mean() > 0.8


@pytest.mark.parametrize("n_genes", [10, 100, 400])
def test_agrees_with_scanpy_over_batches(n_genes: int) -> None:
    counts = simulated_counts(450)
    batch = pd.Series(pd.Categorical(np.random.default_rng(2).choice(["x", "y", "z"], 450)))
    data = anndata.AnnData(counts.copy())
    data.obs["batch"] = batch.to_numpy()
    table = sc.pp.highly_variable_genes(
        data, flavor="seurat_v3", n_top_genes=n_genes, batch_key="batch", inplace=False
    )
    selected = select_genes(counts, names(), n_genes=n_genes, batch=batch)
    np.testing.assert_array_equal(selected, table["highly_variable"].to_numpy())


def test_names_of_batches_and_order_of_cells_do_not_matter() -> None:
    counts = simulated_counts(300)
    batch = np.repeat([1, 2, 3], 100)
    order = np.random.default_rng(3).permutation(300)
    np.testing.assert_array_equal(
        select_genes(counts, names(), n_genes=50, batch=batch),
        select_genes(
            counts[order], names(), n_genes=50, batch=np.array(list("abc"))[batch - 1][order]
        ),
    )


def test_genes_without_counts_are_never_selected() -> None:
    counts = simulated_counts(200).toarray()
    counts[:, ::3] = 0
    matrix = sparse.csr_matrix(counts)
    expressed = counts.sum(axis=0) > 0
    some = select_genes(matrix, names(), n_genes=int(expressed.sum()) - 1)
    assert some.sum() == expressed.sum() - 1
    assert not some[::3].any()
    for n_genes in (int(expressed.sum()), 10_000):
        np.testing.assert_array_equal(select_genes(matrix, names(), n_genes=n_genes), expressed)


def test_constant_genes_come_before_genes_without_counts() -> None:
    counts = simulated_counts(200).toarray()
    counts[:, 100:300] = 0
    counts[:, 300:] = 1
    selected = select_genes(sparse.csr_matrix(counts), names(), n_genes=200)
    assert selected[:100].all()
    assert selected[300:].sum() == 100


def test_input_is_left_alone() -> None:
    counts = simulated_counts(200)
    before = counts.copy()
    for array in (counts.data, counts.indices, counts.indptr):
        array.flags.writeable = False
    select_genes(counts, names(), n_genes=50, batch=np.repeat(["a", "b"], 100))
    assert (counts != before).nnz == 0
    assert counts.dtype == before.dtype


def test_integer_counts_give_the_same() -> None:
    counts = simulated_counts(200)
    np.testing.assert_array_equal(
        select_genes(counts.astype(np.int32), names(), n_genes=50),
        select_genes(counts, names(), n_genes=50),
    )


@pytest.mark.parametrize("n_cells", [2, 3, 5, 10, 20, 50])
def test_few_cells(n_cells: int) -> None:
    """At these sizes the regression over the narrowest span meets singular matrices."""
    rng = np.random.default_rng(n_cells)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.3, 1, 2000), (n_cells, 2000)))
    selected = select_genes(counts, names(2000), n_genes=30)
    assert selected.sum() == 30
    assert (counts.sum(axis=0).A1[selected] > 0).all()


def test_wider_span_is_used_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = simulated_counts(400)
    expected = select_genes(counts, names(), n_genes=50)
    monkeypatch.setattr(module, "SPANS", (0.3,))
    np.testing.assert_array_equal(select_genes(counts, names(), n_genes=50), expected)


def test_small_batches_have_no_say() -> None:
    counts = simulated_counts(210)
    batch = np.array(["large"] * 200 + ["small"] * 10)
    np.testing.assert_array_equal(
        select_genes(counts, names(), n_genes=50, batch=batch),
        select_genes(counts[:200], names(), n_genes=50),
    )


def test_only_small_batches_are_taken_together() -> None:
    counts = simulated_counts(200)
    np.testing.assert_array_equal(
        select_genes(counts, names(), n_genes=50, batch=np.arange(200)),
        select_genes(counts, names(), n_genes=50),
    )


def singular_counts(n_cells: int) -> sparse.csr_matrix:
    """Each gene has one count in one cell, so that all genes have one mean and variance."""
    rows = np.random.default_rng(0).integers(0, n_cells, N_GENES)
    ones = np.ones(N_GENES, dtype=np.float32)
    return sparse.csr_matrix((ones, (rows, np.arange(N_GENES))), shape=(n_cells, N_GENES))


def test_batch_that_cannot_be_judged_is_named_and_left_out() -> None:
    good = simulated_counts(200)
    counts = sparse.csr_matrix(sparse.vstack([good, singular_counts(60)]))
    batch = ["good"] * 200 + ["donor 7"] * 60
    with pytest.warns(UserWarning, match="batch 'donor 7': too few genes"):
        selected = select_genes(counts, names(), n_genes=50, batch=batch)
    np.testing.assert_array_equal(selected, select_genes(good, names(), n_genes=50))


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (singular_counts(100), "too few genes differ in mean"),
        (simulated_counts(1), "only 0 genes vary"),
        (sparse.csr_matrix(np.ones((50, N_GENES))), "only 0 genes vary"),
        (simulated_counts(50)[:, :5], "only 5 genes vary"),
    ],
)
def test_counts_that_cannot_be_judged_at_all(counts: sparse.csr_matrix, why: str) -> None:
    with pytest.raises(DataError, match=f"cannot be told .*{why}.* larger n_genes"):
        select_genes(counts, names(counts.shape[1]), n_genes=4)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_impossible_counts_name_the_gene(value: float) -> None:
    counts = simulated_counts(30).tolil()
    counts[3, 17] = value
    with pytest.raises(DataError, match="gene 'gene17'"):
        select_genes(sparse.csr_matrix(counts), names(), n_genes=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_genes": 0}, "n_genes is 0"),
        ({"batch": ["a"] * 29}, "29 values for 30 cells"),
        ({"batch": ["a"] * 29 + [None]}, "missing for 1 cells, the first at position 29"),
        ({"gene_names": names(5)}, "5 names for 600 columns"),
    ],
)
def test_unfit_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        select_genes(simulated_counts(30), **{"gene_names": names(), "n_genes": 9, **arguments})


def test_real_counts(shared) -> None:
    data = anndata.read_h5ad(shared / "data/eccite_pbmc_49proteins.h5ad")
    counts = sparse.csr_matrix(data.X)
    selected = select_genes(counts, data.var_names, n_genes=2000, batch=data.obs["hto_argmax"])
    assert selected.sum() == 2000
    known = ["hg19_" + gene for gene in ("LYZ", "S100A9", "GNLY", "NKG7", "CD79A", "MS4A1")]
    present = np.array([gene in set(data.var_names) for gene in known])
    assert present.sum() >= 4
    chosen = set(data.var_names[selected])
    assert {gene for gene, here in zip(known, present, strict=True) if here} <= chosen
