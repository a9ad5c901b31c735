"""The modules of workflow systems: what they start runs, and what they describe is what they do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import totalvi
from totalvi.run.folder import PARTS

WORKFLOWS = Path(__file__).parents[1] / "workflows"
VIASH = WORKFLOWS / "viash" / "predict_modality"
NEXTFLOW = WORKFLOWS / "nextflow" / "modules" / "totalvi" / "run"
SNAKEMAKE = WORKFLOWS / "snakemake" / "totalvi_run"


# --------------------------------------------------------------------------- predict modality (viash)


def normalized(counts: np.ndarray) -> np.ndarray:
    """Return log(1 + count) of counts scaled to 10,000 a cell: Open Problems' log_cp10k."""
    logs: np.ndarray = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return logs


@pytest.fixture(scope="module")
def cells() -> dict[str, ad.AnnData]:
    """The two modalities in the layout of the task."""
    data = totalvi.simulate(n_cells=500, n_genes=120, n_proteins=12, n_batches=2, seed=4)
    found = {}
    for modality, name in (("GEX", "rna"), ("ADT", "prot")):
        given = data[name].X
        counts = given.toarray() if sparse.issparse(given) else np.asarray(given)
        logs = normalized(counts)
        var = pd.DataFrame({"hvg": True, "hvg_score": logs.var(axis=0)}, data[name].var_names)
        obs = pd.DataFrame({"batch": data.obs["batch"].astype(str)})
        layers = {
            "counts": sparse.csc_matrix(counts.astype(np.int64)),
            "normalized": sparse.csc_matrix(logs),
        }
        uns = {"dataset_id": "simulated", "modality": modality, "normalization_id": "log_cp10k"}
        found[modality] = ad.AnnData(layers=layers, obs=obs, var=var, uns=uns)
    return found


def predicted(
    cells: dict[str, ad.AnnData], known: str, wanted: str, folder: Path
) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the prediction of the component for cells of the second batch and more, and the truth."""
    is_test = np.arange(500) % 4 == 0
    parts = {
        "train_mod1": cells[known][~is_test],
        "train_mod2": cells[wanted][~is_test],
        "test_mod1": cells[known][is_test],
    }
    par: dict[str, Any] = {f"input_{name}": str(folder / f"{name}.h5ad") for name in parts}
    par |= {"output": str(folder / "prediction.h5ad"), "n_genes": 100, "max_epochs": 40}
    for name, part in parts.items():
        part.copy().write_h5ad(par[f"input_{name}"])
    block = f"## VIASH START\npar = {par!r}\nmeta = {{'name': 'totalvi'}}\n## VIASH END"
    text = (VIASH / "script.py").read_text(encoding="utf-8")
    script = folder / "script.py"
    script.write_text(
        re.sub(r"## VIASH START.*## VIASH END", lambda _: block, text, flags=re.DOTALL)
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ad.read_h5ad(par["output"]), cells[wanted][is_test]


# Of shallow RNA most is counting noise, which no protein tells.
@pytest.mark.parametrize(("known", "wanted", "share"), [("GEX", "ADT", 0.9), ("ADT", "GEX", 1)])
def test_a_modality_is_predicted_from_the_other(
    cells: dict[str, ad.AnnData], known: str, wanted: str, share: float, tmp_path: Path
) -> None:
    prediction, truth = predicted(cells, known, wanted, tmp_path)
    assert prediction.uns["dataset_id"] == "simulated"
    assert prediction.uns["method_id"] == "totalvi"
    assert prediction.obs_names.equals(truth.obs_names)
    assert prediction.var_names.equals(truth.var_names)
    ours = prediction.layers["normalized"].toarray()
    true = truth.layers["normalized"].toarray()
    assert np.isfinite(ours).all()
    is_test = cells[wanted].obs_names.isin(truth.obs_names)
    mean = cells[wanted].layers["normalized"].toarray()[~is_test].mean(axis=0)
    error, of_mean = (np.sqrt(np.mean((guess - true) ** 2)) for guess in (ours, mean))
    assert error < share * of_mean


def test_other_modalities_are_refused(cells: dict[str, ad.AnnData], tmp_path: Path) -> None:
    peaks = cells["GEX"].copy()
    peaks.uns["modality"] = "ATAC"
    with pytest.raises(
        AssertionError, match="totalVI predicts GEX from ADT and ADT from GEX, not ADT"
    ):
        predicted({**cells, "ATAC": peaks}, "ATAC", "ADT", tmp_path)


def test_the_arguments_of_the_component_are_those_of_its_script() -> None:
    yaml = pytest.importorskip("yaml", reason="needs the extra docs, which brings a reader of YAML")
    config = yaml.safe_load((VIASH / "config.vsh.yaml").read_text(encoding="utf-8"))
    script = (VIASH / "script.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(script.partition("## VIASH START")[2].partition("## VIASH END")[0], names)
    own = {argument["name"].removeprefix("--") for argument in config["arguments"]}
    of_task = {"input_train_mod1", "input_train_mod2", "input_test_mod1", "output"}
    assert set(names["par"]) == own | of_task
    assert names["meta"]["name"] == config["name"]
    assert config["resources"][0]["path"] == "script.py"


# ------------------------------------------------------------------------------------------ Snakemake


# What Snakemake gives: its input, output and params have names, which `get` looks up too.
JOB = """
from types import SimpleNamespace
class Named(SimpleNamespace):
    def get(self, name, default=None):
        return getattr(self, name, default)
snakemake = SimpleNamespace(
    input=Named(**{input}),
    output=Named(results="results"),
    params=Named(**{params}),
    threads=3,
    log={log},
)
"""


def wrapped(folder: Path, status: int = 0, **params: Any) -> list[str]:
    """Return what the wrapper starts for a job; in place of totalvi it writes down its arguments."""
    written = folder / "started.json"
    command = folder / "bin" / "totalvi"
    command.parent.mkdir(exist_ok=True)
    command.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nfrom pathlib import Path\n"
        "threads = [os.environ[f'{name}_NUM_THREADS'] for name in ('OMP', 'NUMBA')]\n"
        f"Path({str(written)!r}).write_text(json.dumps(sys.argv[1:] + threads))\n"
        f"print('said', flush=True)\nsys.exit({status})\n"
    )
    command.chmod(0o755)
    raw = params.pop("raw", None)
    given = {"counts": "cells.h5"} | ({} if raw is None else {"raw": raw})
    log = folder / "logs" / "job.log"
    before = log.read_text() if log.exists() else ""
    script = folder / "wrapper.py"
    job = JOB.format(input=given, params=params, log=[str(log)])
    script.write_text(job + (SNAKEMAKE / "wrapper.py").read_text(encoding="utf-8"))
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([sys.executable, str(script)], env=os.environ | {"PATH": path})
    assert done.returncode == status
    assert log.read_text() == f"{before}said\n"
    started: list[str] = json.loads(written.read_text())
    return started


def test_the_wrapper_starts_a_run_with_what_the_job_says(tmp_path: Path) -> None:
    plain = ["run", "cells.h5", "--output", "results", "--resume"]
    assert wrapped(tmp_path) == [*plain, "3", "3"]
    given = {"batch": "lane", "condition": "treatment", "sample": "donor", "extra": "--genes 50"}
    options = ["--batch", "lane", "--sample", "donor", "--condition", "treatment", "--genes", "50"]
    assert wrapped(tmp_path, **given) == [*plain, *options, "3", "3"]
    droplets = ["--raw", "a=raw_a.h5", "--raw", "b=raw_b.h5"]
    files = {"raw": ["raw_a.h5", "raw_b.h5"], "raw_batches": ["a", "b"]}
    assert wrapped(tmp_path, **files) == [*plain, *droplets, "3", "3"]
    assert wrapped(tmp_path, raw="raw.h5") == [*plain, "--raw", "raw.h5", "3", "3"]


def test_a_job_ends_with_the_status_of_totalvi_and_its_retry_appends_to_the_log(
    tmp_path: Path,
) -> None:
    wrapped(tmp_path, status=143)
    wrapped(tmp_path)
    assert (tmp_path / "logs" / "job.log").read_text() == "said\nsaid\n"


# ------------------------------------------------------------------------------------------- Nextflow


def test_the_nextflow_module_takes_what_a_run_writes_and_describes_it() -> None:
    yaml = pytest.importorskip("yaml", reason="needs the extra docs, which brings a reader of YAML")
    module = (NEXTFLOW / "main.nf").read_text(encoding="utf-8")
    outputs = re.findall(r'path\("?([^")]+)"?\)\s*,\s*emit: (\w+)', module)
    emitted = {name: path for path, name in outputs}
    written = {path.removeprefix("${prefix}/") for path in emitted.values()}
    assert written <= set(PARTS)
    described = yaml.safe_load((NEXTFLOW / "meta.yml").read_text(encoding="utf-8"))
    assert set(described["output"]) == set(emitted) | {"versions"}
    for name, path in emitted.items():
        assert path in described["output"][name][0][1]
    for environment in (NEXTFLOW / "environment.yml", SNAKEMAKE / "environment.yaml"):
        needed = yaml.safe_load(environment.read_text(encoding="utf-8"))["dependencies"]
        assert {"pip": ["totalvi[all]"]} in needed


@pytest.mark.parametrize(
    "path", ["nextflow/modules/totalvi/run/main.nf", "snakemake/totalvi_run/wrapper.py"]
)
def test_options_of_the_modules_are_those_of_the_command(path: str) -> None:
    from typer.testing import CliRunner

    from totalvi.cli.main import app

    text = (WORKFLOWS / path).read_text(encoding="utf-8")
    helped = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    named = set(re.findall(r"--[a-z]+", text)) - {"--version"}
    assert {"--output", "--raw"} <= named
    assert {option for option in named if option not in helped} == set()
