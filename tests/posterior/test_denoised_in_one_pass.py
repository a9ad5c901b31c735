"""What a run asks of expression in one pass is what two queries answer."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import totalvi
from counts import SMALL, annotated

ASKED: dict[str, Any] = {"n_samples": 4, "progress": False}


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    model = totalvi.Model(annotated(70), batch_key="batch", **SMALL)
    model.train(max_epochs=1, accelerator="cpu", progress=False)
    return model


@pytest.mark.parametrize("batch_size", [16, 1024])
def test_one_pass_gives_the_numbers_of_two_queries(
    model: totalvi.Model, batch_size: int, tmp_path: Path
) -> None:
    asked = ASKED | {"batch_size": batch_size}
    rna, protein = model.get_normalized_expression(library_size=1e4, return_numpy=True, **asked)
    foreground = model.get_protein_foreground_probability(return_numpy=True, **asked)
    with h5py.File(tmp_path / "layers.h5", "w") as file:
        targets = [
            file.create_dataset(name, values.shape, np.float32)
            for name, values in (("rna", rna), ("protein", protein), ("foreground", foreground))
        ]
        model._write_denoised(*targets, library_size=1e4, **asked)
        for target, expected in zip(targets, (rna, protein, foreground), strict=True):
            np.testing.assert_array_equal(target[:], expected)


def test_rna_can_be_left_out(model: totalvi.Model) -> None:
    expected = model.get_normalized_expression(gene_list=[], return_numpy=True, **ASKED)[1]
    protein, foreground = np.empty_like(expected), np.empty_like(expected)
    model._write_denoised(None, protein, foreground, **ASKED)
    np.testing.assert_array_equal(protein, expected)
