"""A run of cells with RNA and proteins, with RNA alone and with proteins alone makes all results."""

from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest

import totalvi
from totalvi.cli.main import execute


def mosaic(path: Path) -> mudata.MuData:
    whole = totalvi.simulate(180, 60, 6, n_cell_types=3, n_batches=1, store_truth=False, seed=0)
    whole.obs["batch"] = np.repeat(["both", "rna", "prot"], 60)
    parts = {"rna": whole["rna"][:120].copy(), "prot": whole["prot"][np.r_[:60, 120:180]].copy()}
    for part in parts.values():
        part.obs["batch"] = whole.obs["batch"][part.obs_names].to_numpy()
    data = mudata.MuData(parts)
    data.write(path)
    return whole


@pytest.mark.parametrize("where", [pytest.param([], marks=pytest.mark.slow), ["--on-disk"]])
def test_a_mosaic_runs_from_the_command_line(
    tmp_path: Path, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mosaic(tmp_path / "cells.h5mu")
    command = ["run", str(tmp_path / "cells.h5mu"), "-o", str(tmp_path / "out"), "--epochs", "2"]
    assert execute([*command, "--batch", "batch", "--doublet-rate", "0.05", *where]) == 0
    said = capsys.readouterr()
    assert "60 cells have RNA and proteins, 60 RNA alone and 60 proteins alone" in (
        said.out + said.err
    )
    cells = pd.read_csv(tmp_path / "out" / "tables" / "cells.csv.gz")
    assert len(cells) == 180
    assert execute([*command, "--overwrite", "--no-mosaic"]) == 0
    assert len(pd.read_csv(tmp_path / "out" / "tables" / "cells.csv.gz")) == 60
