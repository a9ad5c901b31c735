"""Clusters and the map."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from totalvi.analysis.clusters import cluster_cells
from totalvi.errors import DataError


def groups(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(size=(of.size, 6)) + 30 * np.eye(6)[of], of


def test_groups_far_apart_are_clusters_named_by_size() -> None:
    latent, of = groups([20, 60, 40])
    found = cluster_cells(latent, resolution=0.1)
    assert [str(label) for label in found.labels] == [{0: "2", 1: "0", 2: "1"}[i] for i in of]
    assert found.labels.categories.tolist() == ["0", "1", "2"]
    assert found.umap.shape == (120, 2)
    assert found.umap.dtype == np.float32
    again = cluster_cells(latent, resolution=0.1)
    assert (again.umap == found.umap).all()
    other = cluster_cells(latent, resolution=0.1, seed=1)
    assert (other.umap != found.umap).any()


@pytest.mark.parametrize("n_cells", [5, 9, 16, 51])
def test_few_cells_are_enough(n_cells: int) -> None:
    found = cluster_cells(np.random.default_rng(1).normal(size=(n_cells, 4)))
    assert np.isfinite(found.umap).all()
    assert len(found.labels) == n_cells


def test_too_few_cells_are_refused() -> None:
    with pytest.raises(DataError, match="4 cells are too few"):
        cluster_cells(np.zeros((4, 2)))


def test_global_random_state_is_left_alone() -> None:
    latent, _ = groups([10, 10])
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    before_python = random.getstate()
    cluster_cells(latent)
    assert random.getstate() == before_python
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_torch_keeps_its_number_of_threads() -> None:
    code = """
import numpy, torch
from totalvi.analysis.clusters import cluster_cells
cluster_cells(numpy.random.default_rng(0).normal(size=(100, 5)))
print(torch.get_num_threads())
"""
    threads = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=threads, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
