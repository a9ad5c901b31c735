"""Other numbers of threads give the numbers that docs/reliability.md states."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import totalvi
from totalvi.fit.device import warn_of_waiting, watch_threads


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


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_that_wait_for_each_other_are_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match=r"2 threads of this fit got 0\.6 of them"):
        assert warn_of_waiting(100.0, 60.0)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("seconds", "used"), [(100.0, 190.0), (100.0, 145.0), (0.5, 0.1)])
def test_busy_threads_and_short_epochs_are_not_warned_of(seconds: float, used: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_waiting(seconds, used)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("device", "environment", "n_warnings"),
    [
        ("cpu", {}, 1),
        ("cuda", {}, 0),
        ("cpu", {"OMP_WAIT_POLICY": "passive"}, 0),
        ("cpu", {"GOMP_SPINCOUNT": "2000"}, 0),
    ],
)
def test_a_fit_warns_once_after_its_second_epoch(
    device: str, environment: dict[str, str], n_warnings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    clock = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    watch = watch_threads(torch.device(device))
    with warnings.catch_warnings(record=True) as after_one:
        warnings.simplefilter("always")
        watch()
    with warnings.catch_warnings(record=True) as after_four:
        warnings.simplefilter("always")
        for _ in range(3):
            watch()
    assert (len(after_one), len(after_four)) == (0, n_warnings)
