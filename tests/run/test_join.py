"""Files of several samples become one data set, with the sample of each cell."""

from pathlib import Path

import numpy as np
import pytest

import totalvi
from totalvi.cli.main import execute
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
        (["/a.h5", "/x/a.h5"], ["sample_1", "sample_2"]),
        (["A.H5", "b.txt.gz"], ["A", "b"]),
    ],
)
def test_names_are_where_paths_differ(paths: list[str], names: list[str]) -> None:
    assert sample_names(paths) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a"], "has 1 of 2 inputs"), (["a", "a"], 'repeats "a"'), (["a", ""], "empty name")],
)
def test_wrong_names_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        join_files([str(tmp_path / "a"), str(tmp_path / "b")], names, "sample")


def test_links_keep_their_names(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.h5").touch()
        (tmp_path / f"link_{number}.h5").symlink_to(tmp_path / f"{number}.h5")
    assert sample_names([str(tmp_path / f"link_{n}.h5") for n in (1, 2)]) == ["link_1", "link_2"]


def test_a_file_twice_and_a_column_that_exists_are_refused(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{n}.h5mu", n) for n in (4, 5)]
    with pytest.raises(DataError, match="twice"):
        join_files([paths[0], paths[0]], None, "sample")
    again = tmp_path / "joined.h5mu"
    join_files(paths, None, "sample").write(again)
    other = written(tmp_path / "6.h5mu", 6)
    for key, message in (("sample", "a column of an input"), ("", "empty")):
        with pytest.raises(DataError, match=message):
            join_files([str(again), other], None, key)
    both = join_files([str(again), other], None, "run")
    assert both.obs["run"].value_counts().to_dict() == {"joined": 80, "6": 40}


def test_the_command_writes_the_file_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [written(tmp_path / f"{name}.h5mu", seed) for seed, name in enumerate("ab")]
    output = tmp_path / "of two.h5mu"
    assert execute(["join", *paths, "-o", str(output), "--names", "x, y"]) == 0
    printed = capsys.readouterr().out
    assert "x: 40 cells, 4 proteins" in printed
    assert f"next: totalvi run '{output}' -o results --batch sample" in printed
    assert sorted(totalvi.read(output).obs["sample"].unique()) == ["x", "y"]
    assert execute(["join", *paths, "-o", str(output), "--names", "x,x", "--overwrite"]) == 2
    assert '--names repeats "x"' in capsys.readouterr().err


def test_one_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two or more"):
        join_files([str(tmp_path / "a")], None, "sample")
