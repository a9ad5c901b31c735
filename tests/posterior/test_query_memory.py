"""No query holds samples x cells x features: more samples take no more memory."""

import threading
from pathlib import Path
from typing import Any

import pytest

import totalvi
from counts import SMALL

N_CELLS, N_GENES, N_SAMPLES = 1000, 500, 40
HELD = N_SAMPLES * N_CELLS * N_GENES * 4  # bytes of all samples of the genes: 80 MB
STATUS = Path("/proc/self/status")


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    if not STATUS.exists():
        pytest.skip("the memory of a process is read from /proc")
    mdata = totalvi.simulate(N_CELLS, N_GENES, 5, store_truth=False, seed=0)
    model = totalvi.Model(mdata, **SMALL)
    model.train(max_epochs=1, accelerator="cpu", progress=False)
    return model


def resident() -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def risen(query: Any, **arguments: Any) -> int:
    """By how many bytes the memory of the process rose at most, watched every millisecond."""
    done, before = threading.Event(), resident()
    most = before

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        query(**arguments)
    finally:
        done.set()
        watcher.join()
    return max(most, resident()) - before


@pytest.mark.parametrize(
    ("name", "samples", "more"),
    [
        ("get_normalized_expression", "n_samples", {}),
        ("get_likelihood_parameters", "n_samples", {}),
        ("get_reconstruction_error", "n_samples", {}),
        ("get_marginal_ll", "n_mc_samples", {}),
        ("posterior_predictive_check", "n_samples", {}),
        ("get_feature_correlation_matrix", "n_samples", {"correlation_type": "pearson"}),
        ("differential_expression", "n_samples", {"groupby": "cell_type"}),
    ],
)
def test_samples_are_not_held(
    model: totalvi.Model, name: str, samples: str, more: dict[str, Any]
) -> None:
    query = getattr(model, name)
    query(**{samples: 1}, **more)  # compiles
    assert risen(query, **{samples: N_SAMPLES}, **more) < HELD / 2


def test_all_samples_would_be_seen(model: totalvi.Model) -> None:
    arguments = {"n_samples": N_SAMPLES, "return_mean": False}
    assert risen(model.get_normalized_expression, **arguments) > 0.9 * HELD
