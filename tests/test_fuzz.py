"""A sample of damaged files for every reader; benchmarks/fuzz.py reads many more."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzing.process import FAULTS, Worker
from fuzzing.samples import SAMPLES
from totalvi.formats.model_folder import FORMAT_VERSION

# weights of the first version have no checksum, and flipped bits in them cannot be known
NAMES = sorted(SAMPLES) if FORMAT_VERSION > 1 else sorted(set(SAMPLES) - {"model folder"})


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as reading:
        yield reading


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**20))
def test_damaged_files_are_refused_or_read_rightly(worker: Worker, name: str, seed: int) -> None:
    outcome = worker.outcome(name, seed)
    assert outcome.kind not in FAULTS, outcome


# what the extended run found, each fixed in the reader
FOUND = [
    ("Cell Ranger 2 .h5", 4), ("Cell Ranger 2 .h5", 25), ("Cell Ranger 3 .h5", 1134),
    ("Cell Ranger 3 .h5", 1924), ("Cell Ranger 3 .h5", 2285), ("Cell Ranger 3 .h5", 2470), ("h5ad", 69),
    ("h5ad", 173), ("h5ad", 241), ("zarr 2", 34), ("zarr 2", 65), ("zarr 3", 112), ("csv", 87),
    ("csv", 101), ("tsv.gz", 54), ("tsv.gz", 11673), ("scvi-tools model", 59), ("0.6.x config", 41),
    ("scvi-tools model", 724), ("scvi-tools model", 763), ("h5mu", 304), ("0.6.x weights", 897),
    ("matrix folder, gzip", 476),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_faults_found_stay_fixed(worker: Worker, name: str, seed: int) -> None:
    outcome = worker.outcome(name, seed)
    assert outcome.kind not in FAULTS, outcome
