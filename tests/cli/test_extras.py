"""Without the packages of the extras: what works, and what the rest says."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from totalvi.cli.extras import EXTRA_OF
from totalvi.cli.main import explain
from totalvi.data.simulate import simulate
from totalvi.model import Model

ROOT = Path(__file__).parents[2]
# A finder that is asked first and refuses these packages, as if they were not installed.
REFUSING = f"""
import sys
from importlib.abc import MetaPathFinder
from importlib import util

REFUSED = {sorted(EXTRA_OF)!r}
found = util.find_spec

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
util.find_spec = lambda name, package=None: None if name in REFUSED else found(name, package)
"""


def without_extras(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REFUSING + code], cwd=folder, capture_output=True, text=True
    )


def test_a_model_is_fitted_and_queried_without_extras(tmp_path: Path) -> None:
    done = without_extras(
        """
import totalvi
mdata = totalvi.simulate(n_cells=200, n_genes=40, n_proteins=6, n_batches=2, seed=1)
assert totalvi.check(mdata, batch_key="batch")
model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
model.train(max_epochs=2)
model.get_normalized_expression(n_samples=2)
model.differential_expression(groupby="cell_type", n_samples=2)
model.find_doublets()
model.gate(hierarchy=totalvi.parse_hierarchy("A: protein_0+"), n_samples=2)
model = totalvi.Model.load(model.save("model"), mdata)
query = model.map_query(mdata[:50].copy())
model.transfer_labels(query, "cell_type")
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def command(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"from totalvi.cli.main import execute\nsys.exit(execute({arguments!r}))"
    return without_extras(code, folder)


def test_commands_of_files_need_no_extras(tmp_path: Path) -> None:
    for arguments in (
        ["simulate", "-o", "cells.h5mu", "--cells", "200", "--genes", "40"],
        ["check", "cells.h5mu"],
        ["convert", "cells.h5mu", "cells.zarr"],
        ["datasets", "list"],
        ["run", "--help"],
    ):
        done = command(arguments, tmp_path)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"


def test_commands_of_models_need_no_extras(tmp_path: Path) -> None:
    model, cells = "pbmc.totalvi", "cells.h5mu"
    data = simulate(n_cells=200, n_genes=40, n_proteins=6, seed=0)
    data.write(tmp_path / cells)
    fitted = Model(data, n_hidden=16, n_latent=4)
    fitted.train(max_epochs=2, progress=False)
    fitted.save(tmp_path / model)
    for arguments in (
        ["denoise", model, cells, "-o", "denoised.h5mu", "--samples", "2"],
        ["de", model, cells, "--groupby", "cell_type", "-o", "groups.csv"],
        ["map", model, cells, "--reference", cells, "-o", "mapped"],
        ["info", model],
    ):
        done = command(arguments, tmp_path)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"


@pytest.mark.parametrize("name", ["run", "demo", "explore", "gate", "train"])
def test_the_others_say_at_once_what_to_install(name: str, tmp_path: Path) -> None:
    done = command([name, "cells.h5mu"], tmp_path)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: totalvi {name} needs ")
    assert lines[0].endswith("or 'totalvi[all]'.")


def test_a_package_that_is_found_missing_later_is_named() -> None:
    status, message = explain(ModuleNotFoundError("No module", name="bokeh.plotting"))
    assert (status, message.partition(";")[0]) == (
        2,
        "this command needs bokeh, which is not installed",
    )
    assert explain(ModuleNotFoundError("No module", name="numpy"))[0] == 1


def test_every_package_of_an_extra_is_known() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    of_commands = {
        Requirement(text).name
        for name in ("clusters", "report", "explorer")
        for text in extras[name]
    }
    assert {name.replace("skmisc", "scikit-misc") for name in EXTRA_OF} == of_commands
    for package, extra in EXTRA_OF.items():
        names = {Requirement(text).name for text in extras[extra]}
        assert package.replace("skmisc", "scikit-misc") in names
