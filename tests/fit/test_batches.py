"""Minibatches hold the cells asked for, as the module expects them."""

import numpy as np
import pytest
import torch
from scipy import sparse

from counts import SMALL, described
from totalvi.fit.batches import minibatch, minibatches, sparse_rows
from totalvi.nn.cell import sparse_counts
from totalvi.nn.v06 import TOTALVI


def module(library: str = "observed") -> TOTALVI:
    return TOTALVI(30, 6, 2, library=library, **SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_cells", "batch_size"), [(10, 3), (3, 3), (4, 3), (5, 4), (257, 256), (513, 256), (7, 1000)]
)
def test_every_cell_once_in_batches_of_nearly_equal_size(n_cells: int, batch_size: int) -> None:
    data = described(n_cells) if n_cells > 200 else described(120)
    cells = np.arange(n_cells)[::-1].copy()
    batches = list(minibatches(data, module(), cells, batch_size))
    sizes = [len(batch.cells) for batch in batches]
    assert np.array_equal(np.concatenate([batch.cells for batch in batches]), cells)
    assert max(sizes) <= batch_size
    assert min(sizes) >= 2  # batch normalisation needs two
    assert max(sizes) - min(sizes) <= 1


def test_shuffling_follows_the_generator_and_loses_no_cell() -> None:
    data, cells = described(), np.arange(20, 90)

    def order(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        batches = minibatches(data, module(), cells, 16, rng)
        return np.concatenate([batch.cells for batch in batches])

    assert np.array_equal(order(0), order(0))
    assert not np.array_equal(order(0), order(1))
    assert np.array_equal(np.sort(order(0)), cells)


def test_no_cells_give_no_minibatches() -> None:
    assert list(minibatches(described(), module(), np.array([], dtype=int), 8)) == []


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_wrong_batch_size(batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch_size is"):
        next(minibatches(described(), module(), np.arange(5), batch_size))


def test_a_minibatch_holds_the_rows_of_its_cells() -> None:
    data = described(
        panel_key="lane",
        labels_key="cell_type",
        categorical_covariate_keys=("sex", "lane"),
        continuous_covariate_keys=("age",),
    )
    rows = np.array([5, 3, 60])
    batch = minibatch(data, module(), rows)
    assert np.array_equal(batch.x.to_dense().numpy(), data.rna.rows(rows).toarray())
    assert batch.x.counts.dtype == batch.y.dtype == torch.float32
    assert np.array_equal(batch.y.numpy(), data.protein.rows(rows))
    context = batch.context
    for ours, expected in (
        (context.batch, data.batch),
        (context.panel, data.panel),
        (context.label, data.label),
        (context.categorical, data.categorical),
        (context.continuous, data.continuous),
    ):
        assert ours is not None
        assert expected is not None
        assert np.array_equal(ours.numpy(), expected[rows])
    assert context.library_size is not None
    assert np.array_equal(context.library_size[:, 0].numpy(), data.library_size[rows])
    assert batch.library_log_mean is None


def test_a_latent_library_size_comes_with_its_prior_by_batch() -> None:
    data = described()
    batch = minibatch(data, module("latent"), np.arange(30))
    assert batch.context.library_size is None
    assert batch.library_log_mean is not None
    assert batch.library_log_variance is not None
    for code in range(2):
        logs = np.log(data.rna.read().sum(axis=1).A1[data.batch == code])
        cells = batch.context.batch == code
        assert batch.library_log_mean[cells].unique().item() == pytest.approx(logs.mean(), rel=1e-5)
        assert batch.library_log_variance[cells].unique().item() == pytest.approx(
            logs.var(), rel=1e-4
        )


def test_sparse_rows_equal_sparse_counts_of_dense() -> None:
    dense = np.random.default_rng(0).poisson(0.4, (9, 14)).astype(np.float32)
    dense[4], dense[:, 6] = 0, 0
    rows = np.array([3, 0, 8, 3])
    ours = sparse_rows(sparse.csr_matrix(dense), rows)
    expected = sparse_counts(torch.tensor(dense[rows]))
    for name in ("counts", "gene", "cell_pointer", "cell", "by_gene", "gene_pointer"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    assert ours.shape == (4, 14)
