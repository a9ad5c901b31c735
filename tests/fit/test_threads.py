"""Other numbers of threads give the numbers that docs/reliability.md states."""

import numpy as np
import pytest
import torch

import totalvi


def test_numbers_of_threads_agree_to_the_stated_tolerance() -> None:
    before, fits = torch.get_num_threads(), []
    data = totalvi.simulate(n_cells=300, n_genes=100, n_proteins=10, n_batches=2, seed=5)
    try:
        for n_threads in (1, 1, 2):
            torch.set_num_threads(n_threads)
            model = totalvi.Model(data, batch_key="batch", seed=0)
            model.train(max_epochs=10, accelerator="cpu", precision="32-true", progress=False)
            fits.append((model.history, model.get_latent_representation()))
    finally:
        torch.set_num_threads(before)
    (one, latent), (again, latent_again), (two, latent_of_two) = fits
    columns = [column for column in one if column != "seconds"]
    assert one[columns].equals(again[columns])
    np.testing.assert_array_equal(latent, latent_again)
    assert two["train_loss"][0] == pytest.approx(one["train_loss"][0], rel=1e-6)
    assert two["validation_loss"].min() == pytest.approx(one["validation_loss"].min(), rel=0.02)
    assert np.corrcoef(latent.ravel(), latent_of_two.ravel())[0, 1] > 0.98
