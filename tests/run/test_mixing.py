"""Batch mixing: 1 for batches at random, 0 for batches apart."""

import numpy as np
import pandas as pd
import pytest

from totalvi.run.clusters import batch_mixing

rng = np.random.default_rng(0)


def test_batches_at_random_mix_and_batches_apart_do_not() -> None:
    batch = pd.Series(np.repeat(["a", "b"], [300, 100]))
    latent = rng.normal(size=(400, 4))
    mixed = batch_mixing(latent, batch)
    assert mixed["mixing"].to_numpy() == pytest.approx(1, abs=0.15)
    assert mixed["percent_other_by_chance"].to_numpy() == pytest.approx(
        [100 * 100 / 399, 100 * 300 / 399]
    )
    latent[300:] += 100
    assert batch_mixing(latent, batch)["mixing"].tolist() == [0, 0]


def test_one_batch_has_nothing_to_mix_with() -> None:
    assert batch_mixing(rng.normal(size=(40, 2)), pd.Series(["a"] * 40))["mixing"].isna().all()
