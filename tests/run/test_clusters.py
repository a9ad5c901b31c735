"""Clusters and the map."""

import os
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

from totalvi.errors import DataError
from totalvi.run import clusters
from totalvi.run.clusters import Clusters, cells_to_map, cluster_all, cluster_cells, join_nearest


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


@pytest.mark.filterwarnings("ignore")  # scanpy warns of its own coming versions
@pytest.mark.parametrize("distance", [3, 30])
def test_clusters_are_those_of_scanpy(distance: float) -> None:
    of = np.repeat([0, 1, 2], [90, 60, 30])
    latent = np.random.default_rng(0).normal(size=(180, 6)) + distance * np.eye(6)[of]
    latent = latent.astype(np.float32)
    cells = AnnData(obsm={"X": latent})
    sc.pp.neighbors(cells, use_rep="X", random_state=3)
    sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=3)
    found = cluster_cells(latent, seed=3)
    assert adjusted_rand_score(found.labels, cells.obs["leiden"]) == 1


def test_more_cells_than_scanpy_compares_all_pairs_of() -> None:
    rng = np.random.default_rng(2)
    of = rng.integers(6, size=10_100)
    found = cluster_cells(rng.normal(size=(of.size, 6)) + 12 * np.eye(6)[of], resolution=0.02)
    assert adjusted_rand_score(found.labels, of) == 1
    # Groups that are far apart are so on the map: its nearest center is that of a cell's group.
    centers = np.stack([found.umap[of == i].mean(axis=0) for i in range(6)])
    distance = np.linalg.norm(found.umap[:, None] - centers, axis=2)
    assert (distance.argmin(axis=1) == of).mean() > 0.99


def test_random_points_beyond_8192_are_clustered() -> None:
    found = cluster_cells(np.random.default_rng(3).normal(size=(10_100, 20)))
    assert len(found.labels) == 10_100
    assert np.isfinite(found.umap).all()


def test_cells_join_the_cluster_around_them() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(2, size=400)
    latent = (rng.normal(size=(400, 3)) + 20 * group[:, None]).astype(np.float32)
    sample = np.arange(0, 400, 4)
    labels = pd.Categorical.from_codes(group[sample], ["0", "1"])
    umap = np.stack([group[sample], -group[sample]], axis=1).astype(np.float32)
    joined = join_nearest(latent, sample, Clusters(labels, umap))
    np.testing.assert_array_equal(joined.labels.codes, group)
    np.testing.assert_allclose(joined.umap[:, 0], group)


def test_of_very_many_cells_some_of_each_batch_are_mapped_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clusters, "MAP_CELLS", 60)
    latent, of = groups([20, 100])
    batch = pd.Series(np.repeat(["a", "b"], [10, 110]))
    sample = cells_to_map(batch, 120)
    assert batch.iloc[sample].value_counts().to_dict() == {"a": 10, "b": 30}
    found, alone = (
        cluster_all(latent, sample, resolution=0.1),
        cluster_cells(latent[sample], resolution=0.1),
    )
    assert adjusted_rand_score(found.labels, of) == 1
    np.testing.assert_array_equal(found.umap[sample], alone.umap)


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
from totalvi.run.clusters import cluster_cells
cluster_cells(numpy.random.default_rng(0).normal(size=(100, 5)))
print(torch.get_num_threads())
"""
    threads = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=threads, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
