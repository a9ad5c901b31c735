"""Minibatches taken on the device are those made from counts in memory."""

import numpy as np
import pytest
import torch

import totalvi
from counts import SMALL, annotated
from totalvi.fit.batches import counts_on_device, minibatches
from totalvi.processes import Process


@pytest.mark.parametrize("rows", [[5, 3, 3, 77], [], [0], list(range(120))])
def test_rows_are_those_asked_for(rows: list[int]) -> None:
    data = totalvi.Model(annotated(), batch_key="batch", **SMALL)._training_data()
    rna, protein = counts_on_device(data, "cpu").take(np.array(rows, dtype=np.int64))
    dense = np.zeros(rna.shape, dtype=np.float32)
    dense[rna.cell.numpy(), rna.gene.numpy()] = rna.counts.numpy()
    assert np.array_equal(dense, data.rna.rows(rows).toarray())
    assert np.array_equal(protein.numpy(), data.protein.rows(rows))


@pytest.mark.parametrize("process", [None, Process(1, 3)])
def test_minibatches_are_the_same(process: Process | None) -> None:
    model = totalvi.Model(annotated(), batch_key="batch", **SMALL)
    data = model._training_data()
    held = counts_on_device(data, "cpu")
    made = [
        list(
            minibatches(
                data, model.module, np.arange(data.n_cells), 32, np.random.default_rng(2),
                process=process, held=on_device,
            )
        )
        for on_device in (None, held)
    ]  # fmt: skip
    assert len(made[0]) == len(made[1]) == 4
    for one, other in zip(*made, strict=True):
        assert one.share == other.share
        assert torch.equal(one.y, other.y)
        for part in ("counts", "gene", "cell_pointer"):
            assert torch.equal(getattr(one.x, part), getattr(other.x, part))
