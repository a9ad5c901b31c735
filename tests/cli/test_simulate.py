"""`totalvi simulate` writes what `simulate` makes."""

from pathlib import Path

import mudata
import numpy as np
import pytest

from totalvi.cli.main import execute
from totalvi.data.simulate import simulate

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


def test_options_reach_the_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "a.h5mu"
    options = (
        "--cells 60 --genes 20 --proteins 5 --batches 2 --cell-types 3 --unmeasured 1 --seed 4"
    )
    assert execute(["simulate", "-o", str(target), *options.split()]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    with mudata.set_options(pull_on_update=False):
        found = mudata.read_h5mu(target)
    expected = simulate(60, 20, 5, 2, 3, n_unmeasured=1, seed=4)
    np.testing.assert_array_equal(found["rna"].X.toarray(), expected["rna"].X.toarray())
    np.testing.assert_array_equal(found["prot"].X, expected["prot"].X)
    assert found.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()


def test_overwrite_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "a.h5mu"
    target.write_text("mine")
    command = ["simulate", "-o", str(target), "--cells", "40", "--genes", "20", "--proteins", "3"]
    assert execute(command) == 2
    assert target.read_text() == "mine"
    assert execute([*command, "--overwrite"]) == 0
    assert mudata.read_h5mu(target).n_obs == 40
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5mu"]
