import numpy as np
import pytest

from totalvi.fit.batches import shuffled_windows, some_of_each, windows_in_order, without_first
from totalvi.processes import Process


def windows_of(seed, cells, **options):
    return shuffled_windows(cells, 32, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("n_cells", [1, 31, 500, 5000])
def test_every_cell_comes_once_in_minibatches_of_even_size(n_cells):
    cells = np.sort(np.random.default_rng(1).permutation(2 * n_cells)[:n_cells])
    windows = windows_of(0, cells, window=512, block=64)
    batches = [batch for window in windows for batch in window]
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), cells)
    sizes = [len(batch) for batch in batches]
    assert len(batches) == -(-n_cells // 32)
    assert max(sizes) <= 32
    assert max(sizes) - min(sizes) <= 1


def test_the_order_is_that_of_the_seed_alone():
    cells = np.arange(3000)
    first, again, other = (
        np.concatenate([batch for window in windows_of(seed, cells, window=512, block=64)
                        for batch in window])
        for seed in (0, 0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_fits_a_window_is_shuffled_as_in_memory():
    cells = np.arange(0, 900, 3)
    (batches,) = windows_of(5, cells, window=300, block=8)
    expected = np.random.default_rng(5).permutation(cells)
    np.testing.assert_array_equal(np.concatenate(batches), expected)


def test_a_window_holds_few_blocks_and_its_minibatches_many():
    windows = windows_of(0, np.arange(64_000), window=6400, block=100)
    for window in windows:
        cells = np.concatenate(window)
        assert len(cells) <= 6432
        assert len(np.unique(cells // 100)) <= 66  # 64 whole, and two cut at the ends
        blocks_of_batch = [len(np.unique(batch // 100)) for batch in window]
        assert np.mean(blocks_of_batch) > 20  # of 32 cells


def test_cells_in_order_stay_in_order():
    cells = np.array([5, 3, 9, 1, 2])
    windows = windows_in_order(cells, 2, 4)
    assert [len(window) for window in windows] == [2, 1]
    np.testing.assert_array_equal(np.concatenate([b for w in windows for b in w]), cells)


def test_some_of_each_group_are_spread_over_it():
    group = np.repeat([3, 8], [1000, 5])
    chosen = some_of_each(group, 100)
    assert (group[chosen] == 3).sum() == 100
    assert (group[chosen] == 8).sum() == 5
    assert np.diff(chosen[:100]).max() <= 11


@pytest.mark.parametrize("skip", range(9))
def test_the_first_minibatches_are_left_out_across_windows(skip):
    windows = windows_in_order(np.arange(30), 4, 12)  # 8 minibatches
    batches = [batch.tolist() for window in windows for batch in window]
    left = without_first(windows, skip)
    assert [batch.tolist() for window in left for batch in window] == batches[skip:]
    assert all(left)


@pytest.mark.parametrize("n_processes", [2, 3, 8])
def test_processes_that_share_minibatches_read_different_blocks(n_processes: int) -> None:
    cells = np.arange(5000)
    windows = shuffled_windows(cells, 50, np.random.default_rng(0), window=1000, block=25)
    read = [[Process(rank, n_processes) for _ in windows] for rank in range(n_processes)]
    for i, batches in enumerate(windows):
        blocks = []
        for of_rank in read:
            own = np.concatenate([batch[of_rank[i].part(len(batch))] for batch in batches])
            blocks.append(set(own // 25))
        together = set().union(*blocks)
        # a block at the border of two processes' parts is read by both
        assert sum(map(len, blocks)) <= len(together) + n_processes - 1 + n_processes
        assert max(map(len, blocks)) <= len(together) / n_processes + 3


def test_a_minibatch_has_cells_of_all_blocks_of_its_window() -> None:
    windows = shuffled_windows(np.arange(4096), 64, np.random.default_rng(0), window=1024, block=32)
    for batches in windows:
        for batch in batches:
            counts = np.unique(batch // 32, return_counts=True)[1]
            assert len(counts) == 32
            assert counts.max() <= 4
