import subprocess
import sys
from itertools import pairwise

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import totalvi
from totalvi.data.io import write_zarr
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.data.io.write_zarr import new_store, write_counts
from totalvi.data.simulate import simulate_to_zarr
from totalvi.errors import OutputError

SMALL = {"n_cells": 60, "n_genes": 30, "n_proteins": 5}


def written(path, parts, n_cells, n_genes=6, n_proteins=2):
    frames = [
        pd.DataFrame(index=[f"{word}_{i}" for i in range(n)])
        for word, n in (("cell", n_cells), ("gene", n_genes), ("protein", n_proteins))
    ]
    write_counts(path, lambda: iter(parts), obs=frames[0], rna_var=frames[1], protein_var=frames[2])
    return mudata.read_zarr(path)


@pytest.mark.parametrize(
    ("largest", "dtype"), [(9, np.uint16), (70_000, np.int32), (1.5, np.float32)]
)
def test_what_is_appended_is_read_in_the_narrowest_type(tmp_path, monkeypatch, largest, dtype):
    monkeypatch.setattr(write_zarr, "ENTRIES_PER_CHUNK", 8)
    monkeypatch.setattr(write_zarr, "CHUNKS_PER_SHARD", 2)
    monkeypatch.setattr(write_zarr, "ROWS_PER_CHUNK", 4)
    monkeypatch.setattr(write_zarr, "ROWS_PER_SHARD", 8)
    rng = np.random.default_rng(0)
    rna = sparse.csr_matrix(rng.poisson(0.5, (50, 6)).astype(np.float32))
    rna.data[-1] = largest
    protein = rng.poisson(5, (50, 2)).astype(np.float32)
    protein[40:, 1] = np.nan
    bounds = [0, 1, 20, 20, 37, 50]
    parts = [(rna[a:b], protein[a:b]) for a, b in pairwise(bounds)]
    mdata = written(tmp_path / "s.zarr", parts, 50)
    assert mdata["rna"].X.dtype == dtype
    np.testing.assert_array_equal(mdata["rna"].X.toarray(), rna.toarray())
    np.testing.assert_array_equal(mdata["prot"].X, protein)


def test_controls_and_hashtags_without_counts_are_not_taken_for_lost(tmp_path):
    cells = pd.DataFrame(index=[f"cell_{i}" for i in range(20)])
    others = {
        "isotype": AnnData(np.zeros((20, 1), np.float32), obs=cells),
        "hto": AnnData(sparse.csr_matrix(np.ones((20, 1), np.float32)), obs=cells),
    }
    write_counts(
        tmp_path / "s.zarr",
        lambda: iter([(sparse.csr_matrix(np.eye(20, 3, dtype=np.float32)), np.ones((20, 2)))]),
        obs=cells,
        rna_var=pd.DataFrame(index=["a", "b", "c"]),
        protein_var=pd.DataFrame(index=["d", "e"]),
        others=others,
        uns={"ambient": pd.DataFrame({"protein": ["d", "e"], "log_mean": [0.5, 1.0]})},
    )
    found = totalvi.read(tmp_path / "s.zarr")
    assert found["isotype"].X.sum() == 0
    assert found["hto"].X.sum() == 20
    assert list(found.uns["ambient"]["protein"]) == ["d", "e"]
    assert open_on_disk(tmp_path / "s.zarr").uns["ambient"].equals(found.uns["ambient"])


def test_a_store_appears_whole_or_not_at_all(tmp_path):
    def fail() -> None:
        with new_store(tmp_path / "s.zarr") as path:
            (path / "zarr.json").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    for overwrite, wrong in ((False, "exists already"), (True, "is not a zarr store, and stays")):
        with (
            pytest.raises(OutputError, match=wrong),
            new_store(tmp_path / "folder", overwrite=overwrite),
        ):
            pass
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["thesis.tex"]


def test_one_process_writes_a_store(tmp_path):
    with (
        new_store(tmp_path / "new" / "s.zarr") as folder,
        pytest.raises(OutputError, match="is being written by another process"),
        new_store(tmp_path / "new" / "s.zarr"),
    ):
        pass
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.zarr"]
    assert not folder.exists()


def test_a_link_keeps_pointing_at_the_store(tmp_path):
    simulate_to_zarr(tmp_path / "a.zarr", **SMALL)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    simulate_to_zarr(tmp_path / "link.zarr", **SMALL | {"n_cells": 70}, overwrite=True)
    assert (tmp_path / "link.zarr").is_symlink()
    assert totalvi.read(tmp_path / "a.zarr").n_obs == 70


# Replaces a store without end; for each number read, it does so in a process that dies after so many s.
REPLACES = """
import os, signal, sys, time
from totalvi.data.simulate import simulate_to_zarr
for delay_s in map(float, sys.stdin):
    process = os.fork()
    while process == 0:
        for n_cells in (60, 70):
            simulate_to_zarr("s.zarr", n_cells=n_cells, n_genes=30, n_proteins=5, overwrite=True)
    time.sleep(delay_s)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    print("killed", flush=True)
"""


def test_a_store_is_whole_when_its_writer_is_killed(tmp_path):
    whole = {}
    for n_cells in (60, 70):
        simulate_to_zarr(tmp_path / "s.zarr", **SMALL | {"n_cells": n_cells}, overwrite=True)
        whole[n_cells] = totalvi.read(tmp_path / "s.zarr")
    arguments = [sys.executable, "-c", REPLACES]
    n_during = 0
    with subprocess.Popen(
        arguments, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for delay_s in np.random.default_rng(0).uniform(0.1, 0.8, 10):
            process.stdin.write(f"{delay_s}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "killed\n"
            n_during += (tmp_path / ".s.zarr.partial").exists()
            found = totalvi.read(tmp_path / "s.zarr")
            expected = whole[found.n_obs]
            assert (found["rna"].X != expected["rna"].X).nnz == 0
            np.testing.assert_array_equal(found["prot"].X.toarray(), expected["prot"].X.toarray())
    assert n_during > 0
    simulate_to_zarr(tmp_path / "s.zarr", **SMALL, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_simulated_cells_are_like_those_in_memory_and_repeatable(tmp_path):
    options = {"n_cells": 1500, "n_genes": 60, "n_proteins": 5, "n_batches": 2, "seed": 3}
    simulate_to_zarr(tmp_path / "a.zarr", **options)
    simulate_to_zarr(tmp_path / "b.zarr", **options)
    a, b = (totalvi.read(tmp_path / name) for name in ("a.zarr", "b.zarr"))
    assert (a["rna"].X != b["rna"].X).nnz == 0
    np.testing.assert_array_equal(a["prot"].X.toarray(), b["prot"].X.toarray())
    memory = totalvi.simulate(**options)
    assert list(a["prot"].var_names) == list(memory["prot"].var_names)
    of_disk, of_memory = (np.asarray(m["rna"].X.mean(axis=0)).ravel() for m in (a, memory))
    assert np.corrcoef(np.log1p(of_disk), np.log1p(of_memory))[0, 1] > 0.98
    start, later = a["rna"].X[:500].toarray(), a["rna"].X[1000:].toarray()
    assert (start != later).any()
