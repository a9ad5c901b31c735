"""`totalvi run --modality-information`: columns, tables, the report, and cells that lack a modality."""

from pathlib import Path
from typing import Any

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import read_elem
from mudata import MuData

import totalvi
from totalvi.cli.main import execute
from totalvi.errors import IncompleteError
from totalvi.explorer.coloring import color_cells
from totalvi.explorer.run_cells import open_cells
from totalvi.report.build import build_report
from totalvi.run import modality_nats
from totalvi.run.folder import NATS
from totalvi.run.modality_nats import mean_nats, most_telling
from totalvi.run.run import run

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

GATES = "T: CD3+\nCD4 T: T > CD4+\nB: CD19+ CD3-\nNK: CD56+ CD3-\n"
ASKED = 40


def cells() -> MuData:
    rng = np.random.default_rng(0)
    mdata = totalvi.simulate(n_cells=120, n_genes=30, n_proteins=3, n_isotype_controls=0, seed=0)
    kind = np.arange(120) // 7 % 3
    mean = np.stack([150.0 * (kind > 0), 100.0 * (kind == 1), 90.0 * (kind == 0)], axis=1)
    mdata["prot"].X = rng.poisson(mean + 2).astype(np.float32)
    mdata["prot"].var_names = ["CD3", "CD4", "CD19"]
    mdata.update()
    return mdata


def run_on(place: Path, data: MuData | Path, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modality_nats, "MOST_CELLS", ASKED)
        return run(
            data, place, max_epochs=20, modality_information=True, progress=False, **options
        ).folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("modalities")
    (place / "gates.txt").write_text(GATES, encoding="utf-8")
    return run_on(place / "out", cells(), hierarchy=str(place / "gates.txt"))


def table_of(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / name, index_col=0)


def test_cells_asked_get_what_the_model_tells(folder: Path) -> None:
    with h5py.File(folder / "results.h5mu") as file:
        obs = read_elem(file["obs"])
    asked = np.flatnonzero(obs["nats_rna"].notna())
    assert len(asked) == ASKED
    assert (asked[0], asked[-1]) == (0, 119)
    assert set(np.diff(asked)) == {3, 4}  # neighbours of 40 among 120 that are evenly spaced
    model = totalvi.Model.load(folder / "model.totalvi", mudata.read_h5mu(folder / "results.h5mu"))
    told = model.get_modality_information(indices=asked, progress=False).cells
    for column, name in NATS.items():
        np.testing.assert_allclose(obs[column].iloc[asked], told[name], rtol=1e-3, atol=1e-3)
    written = table_of(folder, "cells.csv.gz")
    np.testing.assert_allclose(written[list(NATS)], obs[list(NATS)], rtol=1e-4, atol=1e-6)
    assert list(written["population"]) == list(obs["population"].astype(str))


def test_means_of_groups_are_those_of_their_cells(folder: Path) -> None:
    written = table_of(folder, "cells.csv.gz")
    clusters = table_of(folder, "clusters.csv")
    expected = written.groupby("cluster")[list(NATS)].mean().loc[clusters.index]
    np.testing.assert_allclose(clusters[list(NATS)], expected, rtol=1e-4)
    populations = table_of(folder, "populations.csv")
    assert len(populations) == 4
    for name, below in {"T": ["T", "CD4 T"], "CD4 T": ["CD4 T"], "B": ["B"], "NK": ["NK"]}.items():
        inside = written["population"].isin(below)
        expected_nats = written.loc[inside, list(NATS)].mean()
        np.testing.assert_allclose(
            populations.loc[name, list(NATS)].astype(float), expected_nats, rtol=1e-4
        )
    assert populations.loc["NK", "wanting"] == "CD56"  # other columns stand as they were


def test_features_are_listed_by_population(folder: Path) -> None:
    features = table_of(folder, "modality_features.csv")
    assert set(features["of"]) == {"population"}
    written = table_of(folder, "cells.csv.gz")
    sizes = written.loc[written["nats_rna"].notna(), "population"].value_counts()
    for name, rows in features.groupby(level=0):
        assert set(rows["cells"]) == {sizes[name]}
        assert rows["modality"].value_counts().to_dict() == {"rna": 20, "protein": 3}
        for _, of_kind in rows.groupby("modality"):
            assert of_kind["nats"].is_monotonic_decreasing
    assert features.loc["B"].set_index("feature")["nats"].idxmax() in ("CD19", "CD3")


def test_nats_of_dimensions_add_up_to_those_of_cells(folder: Path) -> None:
    dimensions = table_of(folder, "modality_dimensions.csv").astype(float)
    written = table_of(folder, "cells.csv.gz")
    assert dimensions.index.tolist() == [name for name in written if name.startswith("latent_")]
    means = written.loc[written["nats_rna"].notna(), list(NATS)].astype(float).mean()
    np.testing.assert_allclose(dimensions[list(NATS)].sum(), means, rtol=1e-3)


def test_the_report_has_a_map_and_a_table(folder: Path) -> None:
    page = build_report(folder).read_text(encoding="utf-8")
    assert '<div class="plot wide" id="figure-protein_added"' in page
    section = page.split('<section id="modalities">')[1].split("</section>")[0]
    assert f"of {ASKED} of the 120 cells" in section
    rows = section.split("<tbody>")[1].split("<tr>")[1:]
    features = table_of(folder, "modality_features.csv")
    assert len(rows) == features.index.nunique()
    added = [float(row.split('px"></span>')[1].split("<")[0]) for row in rows]
    assert added == sorted(added, reverse=True)
    assert any("CD3, " in row or ", CD3" in row for row in rows)


def test_the_explorer_colours_cells_by_nats(folder: Path) -> None:
    drawn = color_cells(open_cells(folder), "obs", "nats_protein_added")
    assert len(np.unique(drawn.colors)) > 2
    assert np.isfinite([drawn.low, drawn.high]).all()


def test_a_run_that_was_not_asked_has_none_of_it(tmp_path: Path) -> None:
    made = run(cells(), tmp_path / "out", max_epochs=1, progress=False)
    assert not (made.folder / "tables" / "modality_features.csv").exists()
    assert not set(NATS) & set(table_of(made.folder, "cells.csv.gz"))
    assert '<section id="modalities">' not in build_report(made.folder).read_text(encoding="utf-8")


def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError("it is broken")


def test_a_failed_step_is_made_up_to_the_same_tables(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"hierarchy": str(folder.parent / "gates.txt")}
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.model.Model.get_modality_information", broken)
        with pytest.raises(IncompleteError, match="modality information failed"):
            run_on(tmp_path / "out", cells(), **options)
    build_report(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.fit.loop.Fit.step", broken)  # there is no second fit
        run_on(tmp_path / "out", cells(), resume=True, **options)
    for name in ("cells.csv.gz", "clusters.csv", "populations.csv", "modality_features.csv"):
        pd.testing.assert_frame_equal(table_of(tmp_path / "out", name), table_of(folder, name))


def mosaic(path: Path, n_with_both: int) -> Path:
    """Write cells of three parts: with both modalities, with RNA alone and with proteins alone."""
    whole = totalvi.simulate(n_cells=n_with_both + 80, n_genes=40, n_proteins=5, seed=1)
    numbers = np.arange(len(whole.obs))
    parts = {
        "rna": whole["rna"][numbers < n_with_both + 40].copy(),
        "prot": whole["prot"][(numbers < n_with_both) | (numbers >= n_with_both + 40)].copy(),
    }
    for part in parts.values():
        part.obs = pd.DataFrame(index=part.obs_names)
    MuData(parts).write(path)
    return path


def test_only_cells_with_both_are_asked_on_disk_too(tmp_path: Path) -> None:
    path = mosaic(tmp_path / "cells.h5mu", 60)
    place = run_on(tmp_path / "out", path, on_disk=True, mosaic=True, hierarchy="none")
    obs = read_elem(zarr.open_group(place / "results.zarr", mode="r")["obs"])
    asked = obs["nats_protein_added"].notna()
    assert asked.sum() == ASKED
    assert set(obs.loc[asked, "measured_modalities"]) == {"both"}
    assert set(table_of(place, "modality_features.csv")["of"]) == {"cluster"}
    assert '<section id="modalities">' in build_report(place).read_text(encoding="utf-8")


def test_without_a_cell_with_both_it_is_refused_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("totalvi.fit.loop.Fit.step", broken)
    data = totalvi.mosaic(mudata.read_h5mu(mosaic(tmp_path / "cells.h5mu", 60)))
    data = data[data.obs["measured_modalities"].to_numpy() != "both"].copy()
    data.write(tmp_path / "alone.h5mu")
    command = ["run", str(tmp_path / "alone.h5mu"), "-o", str(tmp_path / "out")]
    assert execute([*command, "--modality-information"]) == 2
    said = capsys.readouterr().err
    assert (
        "No cell has both RNA and proteins, so neither can add to the other; leave out "
        "--modality-information." in said
    )
    assert not (tmp_path / "out").exists()


def test_groups_without_an_asked_cell_have_no_mean() -> None:
    nats = pd.DataFrame({"nats_rna": [1.0, np.nan, 4.0]})
    means = mean_nats(nats, pd.Series(["a", "b", "a"]), pd.DataFrame(index=["b", "a"]))
    assert np.isnan(means.loc["b", "nats_rna"])
    assert means.loc["a", "nats_rna"] == 2.5


def test_the_most_telling_are_counted_by_modality() -> None:
    features = pd.DataFrame(
        {"modality": ["rna"] * 30 + ["protein"] * 2, "x": np.arange(32.0)},
        index=[f"f{i}" for i in range(32)],
    )
    table = most_telling(features, pd.Series(["x"] * 3), "cluster")
    assert list(table["feature"].iloc[:3]) == ["f31", "f30", "f29"]
    assert len(table) == 22
    assert set(table["cells"]) == {3}
