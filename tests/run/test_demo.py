"""`totalvi demo`: what its run says of the simulated blood is the truth."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem
from sklearn.metrics import f1_score, roc_auc_score

from totalvi.cli.command_run import demo
from totalvi.data.simulate_blood import DOUBLET
from totalvi.posterior.gates.hierarchy import read_hierarchy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("demo") / "out"
    demo(place)
    return place


@pytest.fixture(scope="module")
def obs(folder: Path) -> pd.DataFrame:
    with h5py.File(folder / "results.h5mu") as file:
        return read_elem(file["obs"])


def test_populations_are_the_cell_types(obs: pd.DataFrame) -> None:
    single = obs[~obs["doublet"]]
    types = [name for name in obs["cell_type"].cat.categories if name != DOUBLET]
    truth, found = (single[column].astype(str) for column in ("cell_type", "population"))
    assert f1_score(truth, found, labels=types, average="macro") > 0.9
    hierarchy = read_hierarchy("blood")
    lineage = {p.name: hierarchy.path(p.name)[0] for p in hierarchy.populations}
    assert (truth.map(lineage) == found.map(lineage)).mean() > 0.95


def test_doublets_score_higher(obs: pd.DataFrame) -> None:
    assert roc_auc_score(obs["doublet"], obs["doublet_score"]) > 0.98
    called = obs["doublet_probability"] > 0.5
    assert called.sum() >= 10
    assert obs.loc[called, "doublet"].mean() > 0.9


def test_the_failed_antibody_is_warned_of_and_the_isotype_known(folder: Path) -> None:
    proteins = pd.read_csv(folder / "tables" / "proteins.csv", index_col=0)
    warned = proteins["warning"].fillna("")
    assert warned[warned != ""].index.tolist() == ["CD197"]
    controls = pd.read_csv(folder / "tables" / "isotype_controls.csv")
    assert "IgG1_control" in controls.to_numpy()


def test_the_report_names_populations_and_donors(folder: Path) -> None:
    by_sample = pd.read_csv(folder / "tables" / "population_samples.csv")
    assert set(by_sample["sample"]) == {"donor_A", "donor_B"}
    counted = by_sample.groupby("population")["cells"].sum()
    assert counted[["T", "B", "NK", "Monocyte", "Dendritic"]].min() > 20
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(word in report for word in ("CD14 monocyte", "CD197", "likely doublets", "donor_A"))
    assert np.isin(["Dendritic", "pDC"], pd.read_csv(folder / "gates_proposed.csv")["gate"]).any()
