"""Files of several samples become one data set, with the sample of each cell."""

from pathlib import Path

import numpy as np
import pytest

import totalvi
from totalvi.errors import DataError
from totalvi.run.join import join_files, sample_names


def written(path: Path, seed: int, n_proteins: int = 4) -> str:
    mdata = totalvi.simulate(40, 50, n_proteins, seed=seed, store_truth=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    mdata.obs = mdata.obs.drop(columns="batch")
    mdata.write(path)
    return str(path)


def test_cells_keep_their_counts_and_get_their_sample(tmp_path: Path) -> None:
    paths = [written(tmp_path / name / "cells.h5mu", seed) for seed, name in enumerate("ab")]
    joined = join_files(paths, None, "donor")
    assert joined.obs["donor"].value_counts().to_dict() == {"a": 40, "b": 40}
    for path, name in zip(paths, "ab", strict=True):
        own = (joined.obs["donor"] == name).to_numpy()
        parts = totalvi.read(path)
        for modality in ("rna", "prot"):  # names of antibodies are tidied, in the same order
            ours, given = (of[modality].to_df().to_numpy() for of in (joined[own], parts))
            np.testing.assert_array_equal(ours, given)


def test_a_protein_that_a_sample_lacks_is_missing_there(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{n}.h5mu", n, n_proteins=n) for n in (4, 6)]
    protein = join_files(paths, ["few", "many"], "sample")["prot"].to_df().to_numpy()
    assert np.isnan(protein[:40]).sum(axis=1).tolist() == [2] * 40
    assert not np.isnan(protein[40:]).any()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/donor_1/outs/filtered.h5", "x/donor_2/outs/filtered.h5"], ["donor_1", "donor_2"]),
        (["a.h5mu", "b.csv.gz"], ["a", "b"]),
        (["day.1", "day.2"], ["day.1", "day.2"]),
        (["a/x/1.h5", "b/y/1.h5", "b/z/1.h5"], ["x", "y", "z"]),
        (["a.h5", "a.h5"], ["sample_1", "sample_2"]),
    ],
)
def test_names_are_where_paths_differ(paths: list[str], names: list[str]) -> None:
    assert sample_names(paths) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a"], "1 names of 2"), (["a", "a"], 'repeats "a"'), (["a", ""], "empty name")],
)
def test_wrong_names_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        join_files([str(tmp_path / "a"), str(tmp_path / "b")], names, "sample")


def test_one_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two or more"):
        join_files([str(tmp_path / "a")], None, "sample")
