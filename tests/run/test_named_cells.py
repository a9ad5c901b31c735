"""Named populations of a run: their tables, the names of clusters, and the command."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem
from mudata import MuData

import totalvi
from totalvi.cli.main import execute
from totalvi.explorer.axes import to_scale
from totalvi.explorer.gate_files import gates_of_table, read_gates
from totalvi.explorer.gate_shapes import contains
from totalvi.explorer.gates import Gate, members
from totalvi.explorer.run_cells import open_cells
from totalvi.posterior.gates.gate_cells import Gating
from totalvi.posterior.gates.hierarchy import parse_hierarchy
from totalvi.posterior.gates.memberships import members as memberships_of
from totalvi.posterior.gates.memberships import percent_limits
from totalvi.report import report_gates
from totalvi.report.build import build_report
from totalvi.report.report_data import read_results
from totalvi.run.folder import require_writable
from totalvi.run.named_cells import (
    Named,
    cluster_names,
    population_tables,
    proposed_gates,
)
from totalvi.run.run import run

GATES = "T: CD3+\nCD4 T: T > CD4+\nB: CD19+ CD3-\nNK: CD56+ CD3-\n"


def cells() -> MuData:
    rng = np.random.default_rng(0)
    mdata = totalvi.simulate(n_cells=120, n_genes=30, n_proteins=3, n_isotype_controls=0, seed=0)
    is_t = np.arange(120) % 3 > 0
    mean = np.stack([150.0 * is_t, 100.0 * (np.arange(120) % 3 == 1), 90.0 * ~is_t], axis=1)
    mdata["prot"].X = rng.poisson(mean + 2).astype(np.float32)
    mdata["prot"].var_names = ["CD3", "CD4", "CD19"]
    mdata.update()
    mdata.obs["donor"] = np.where(np.arange(120) < 50, "a", "b")
    return mdata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("populations")
    (place / "gates.txt").write_text(GATES, encoding="utf-8")
    return run(
        cells(), place / "out", batch_key="donor", hierarchy=str(place / "gates.txt"),
        max_epochs=25, progress=False,
    ).folder  # fmt: skip


def test_tables_agree_with_the_names_of_cells(folder: Path) -> None:
    tables = folder / "tables"
    with h5py.File(folder / "results.h5mu") as file:
        obs = read_elem(file["obs"])
    populations = pd.read_csv(tables / "populations.csv", index_col=0)
    named = obs["population"].astype(str)
    assert populations.loc["CD4 T", "cells"] == (named == "CD4 T").sum()
    assert populations.loc["T", "cells"] == named.isin(["T", "CD4 T"]).sum()
    assert populations.loc["NK", "wanting"] == "CD56"
    assert np.isnan(populations.loc["NK", "cells"])  # which is not to say that there are none
    written = pd.read_csv(tables / "cells.csv.gz", index_col=0)["population"]
    np.testing.assert_array_equal(written.astype(str), named)
    samples = pd.read_csv(tables / "population_samples.csv")
    top = samples[samples["population"].isin(["T", "B", "NK", "undecided"])]
    assert top.groupby("sample")["cells"].sum().to_dict() == {"a": 50, "b": 70}
    np.testing.assert_allclose(top.groupby("sample")["percent_of_cells"].sum(), 100, rtol=1e-4)
    assert (samples["percent_lower"].dropna() <= samples["percent_of_cells"].dropna()).all()
    assert (samples["percent_upper"].dropna() >= samples["percent_of_cells"].dropna()).all()
    assert samples.loc[samples["cells"] == 0, "percent_lower"].eq(0).all()
    membership = obs["population_membership"].to_numpy()
    assert ((membership >= 0.5) | (named == "undecided").to_numpy()).all()


@pytest.mark.parametrize("share", [0.0, 0.004, 0.2, 0.5, 1.0])
def test_limits_of_percentages_hold_their_share_of_samples(share: float) -> None:
    cells = np.random.default_rng(0).binomial(400, share, 4000)
    lower, upper = percent_limits(pd.Series(cells), 400)
    held = ((lower <= 100 * share) & (100 * share <= upper)).mean()
    assert 0.92 < held <= 1
    assert (upper - lower).max() < 11


def test_the_report_shows_them_first(folder: Path) -> None:
    page = build_report(folder).read_text(encoding="utf-8")
    assert page.count("<em>not told</em>") == 1
    assert page.index('id="populations"') < page.index('id="warnings"')
    assert "wants CD56" in page
    row = pd.read_csv(folder / "tables" / "populations.csv", index_col=0).loc["B"]
    assert f"<small>{row['percent_lower']:.1f} to {row['percent_upper']:.1f}</small>" in page
    assert "Limits below percentages" in page


def test_populations_are_compared_with_the_other_cells(folder: Path) -> None:
    table = pd.read_csv(folder / "tables" / "population_expression.csv.gz", index_col="feature")
    assert set(table["group1"]) == {"T", "CD4 T", "B"}
    proteins = table[table["modality"] == "protein"].set_index("group1", append=True)["lfc_mean"]
    for population, marker in (("CD4 T", "CD4"), ("B", "CD19")):
        assert proteins[marker, population] > 2
        assert proteins[marker, "T"] < 0


def test_the_report_lists_what_is_higher_and_not_gated_on() -> None:
    columns = ["feature", "group1", "modality", "lfc_mean", "is_de_fdr_0.05"]
    rows = [
        ("LEF1", "CD4 T", "rna", 1.0, True),
        ("MAL", "CD4 T", "rna", 2.0, True),
        ("CCR7", "CD4 T", "rna", 3.0, True),  # of the gate
        ("NKG7", "CD4 T", "rna", -3.0, True),
        ("FHIT", "CD4 T", "rna", 4.0, False),
        ("CD4_TotalSeqB", "CD4 T", "protein", 5.0, True),  # of the gate
        ("CD3_TotalSeqB", "CD4 T", "protein", 5.0, True),  # of that above
        ("CD127", "CD4 T", "protein", 0.5, True),
        ("CD3_TotalSeqB", "T", "protein", 5.0, True),
    ]
    markers = {"CD3": "CD3_TotalSeqB", "CD4": "CD4_TotalSeqB", "gene:CCR7": "CCR7"}
    tables = {
        "population_expression": pd.DataFrame(rows, columns=columns).set_index("feature"),
        "population_markers": pd.DataFrame({"feature": markers}),
        "populations": pd.DataFrame(
            {"told_by": ["CD3", "CD4, gene:CCR7", ""]}, index=["T", "CD4 T", "B"]
        ),
    }
    hierarchy = parse_hierarchy("T: CD3+\nCD4 T: T > CD4+ gene:CCR7+\nB: CD19+")
    found = report_gates.higher_features(tables, hierarchy)
    assert found == [{"name": "CD4 T", "rna": "MAL, LEF1", "protein": "CD127"}]
    assert report_gates.higher_features({"populations": tables["populations"]}, hierarchy) == []


def test_the_command_names_cells_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("lymphocyte: CD3+ or CD19+", encoding="utf-8")
    assert (
        execute(["gate", str(folder), "--hierarchy", str(other), "-o", str(tmp_path / "new")]) == 0
    )
    assert "lymphocyte" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "new" / "tables" / "populations.csv", index_col=0)
    assert table["cells"].to_dict() == {"lymphocyte": 120}
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "report.html").touch()
    before = pd.read_csv(again / "tables" / "cells.csv.gz", index_col=0)
    assert execute(["gate", str(again), "--hierarchy", str(other)]) == 0
    assert f"update it: totalvi report {again}" in capsys.readouterr().out
    assert not (again / "tables" / "population_expression.csv.gz").exists()  # all are of one name
    after = pd.read_csv(again / "tables" / "cells.csv.gz", index_col=0)
    assert set(after["population"]) == {"lymphocyte"}
    pd.testing.assert_frame_equal(
        after.drop(columns="population"), before.drop(columns="population")
    )
    apart = tmp_path / "apart.txt"
    apart.write_text("T cell: CD3+\nB cell: CD19+", encoding="utf-8")
    assert execute(["gate", str(again), "--hierarchy", str(apart)]) == 0
    compared = pd.read_csv(again / "tables" / "population_expression.csv.gz", index_col="feature")
    assert set(compared["group1"]) == {"T cell", "B cell"}
    run = pd.read_csv(folder / "tables" / "population_expression.csv.gz", index_col="feature")
    assert list(compared) == list(run)
    b_cells = compared[(compared["group1"] == "B cell") & (compared["modality"] == "protein")]
    assert b_cells["lfc_mean"].idxmax() == "CD19"
    assert execute(["gate", str(folder), "--hierarchy", "bloood"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["all proteins", "RNA alone"])
def test_mapped_cells_are_named(folder: Path, tmp_path: Path, given: str) -> None:
    query, mapped, output = tmp_path / "query.h5mu", tmp_path / "mapped", tmp_path / "named"
    data = cells()
    if given == "RNA alone":
        query = query.with_suffix(".h5ad")
        data["rna"].obs["donor"] = data.obs["donor"].to_numpy()
        data["rna"].write(query)
    else:
        data.write(query)
    assert execute(["map", str(folder), str(query), "-o", str(mapped), "--batch", "donor"]) == 0
    how = ["--hierarchy", str(folder.parent / "gates.txt")]
    assert execute(["gate", str(mapped), str(query), *how, "-o", str(output)]) == 0
    assert execute(["gate", str(mapped), *how]) == 0
    table, again = (
        pd.read_csv(place / "tables" / "memberships.csv.gz", index_col="cell")
        for place in (output, mapped)
    )
    pd.testing.assert_frame_equal(table, again)
    assert table.index.tolist() == data.obs_names.tolist()
    known = table[["T", "CD4 T", "B"]]
    assert ((known >= 0) & (known <= 1)).all(axis=None)
    assert (known["CD4 T"] <= known["T"]).all()
    if given == "all proteins":
        is_t = np.arange(120) % 3 > 0
        assert (table["population"].isin(["T", "CD4 T"]) == is_t).mean() > 0.9
        assert ((table["population"] == "B") == ~is_t).mean() > 0.9


def test_clusters_go_down_as_long_as_most_cells_agree() -> None:
    hierarchy = parse_hierarchy("T: A+\nT4: T > B+\nB: C+")
    inside = pd.DataFrame(
        {
            "T": [1, 1, 1, 1, 0, 0],
            "T4": [1, 1, 0, 0, 0, 0],
            "B": 0,
            "undecided": [0, 0, 0, 0, 1, 1],
        },
        dtype=bool,
    )
    names = cluster_names(inside, np.array([0, 0, 0, 1, 2, 2]), hierarchy)
    assert names["name"].tolist() == ["T4", "T", "undecided"]
    np.testing.assert_allclose(names["share"], [2 / 3, 1, 1])


def test_percentages_are_of_those_above() -> None:
    hierarchy = parse_hierarchy("T: A+\nT4: T > B+")
    memberships = pd.DataFrame({"T": [1.0, 1, 0, 0], "T4": [1.0, 0, 0, 0]})
    population = pd.Series(["T4", "T", "undecided", "undecided"])
    table = pd.DataFrame(
        {"parent": ["", "T"], "gate": ["A+", "B+"], "wanting": ""}, index=["T", "T4"]
    )
    named = Named(Gating(memberships, population, table, pd.DataFrame()), hierarchy)
    found = population_tables(named, None, None)["populations"]
    assert found["percent_of_parent"].tolist() == [50, 50]
    assert found["expected_cells"].tolist() == [2, 1]
    assert found["named"].tolist() == [1, 1]
    assert "doublets" not in found


def test_members_named_cells_and_doublets_are_counted_by_sample() -> None:
    hierarchy = parse_hierarchy("T: A+\nT4: T > B+\nT8: T > C+")
    memberships = pd.DataFrame(
        {"T": [1.0, 0.9, 0.8, 0.1], "T4": [0.9, 0.6, 0.2, 0], "T8": [0.0, 0.7, 0.6, 0]}
    )
    population = pd.Series(["T4", "T", "T8", "undecided"])  # the second is a member of both
    table = pd.DataFrame({"parent": ["", "T", "T"], "gate": "", "wanting": ""}, list(memberships))
    named = Named(Gating(memberships, population, table, pd.DataFrame()), hierarchy)
    sample, doublets = pd.Series(["a", "a", "b", "b"]), np.array([False, True, False, True])
    tables = population_tables(named, sample, None, doublets)
    overall, by_sample = tables["populations"], tables["population_samples"]
    assert overall["cells"].tolist() == [3, 2, 2]
    assert overall["named"].tolist() == [1, 1, 1]
    assert overall["doublets"].tolist() == [1, 1, 1]
    of_a = by_sample.loc["a"].set_index("population")
    assert of_a["cells"].to_dict() == {"T": 2, "T4": 2, "T8": 1, "undecided": 0}
    assert of_a["expected_cells"][:3].tolist() == pytest.approx([1.9, 1.5, 0.7])
    numbers = ["cells", "expected_cells", "named", "doublets"]
    both = by_sample[by_sample["population"] != "undecided"].groupby("population")[numbers].sum()
    np.testing.assert_allclose(
        both.loc[overall.index].astype(float), overall[numbers].astype(float)
    )
    assert by_sample[by_sample["population"] == "undecided"]["doublets"].sum() == 1


def test_the_report_draws_the_members_that_tables_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = read_results(folder, 10_000)
    memberships = results.tables["memberships"].copy()
    both = memberships.index[(memberships["B"] > 0.5).to_numpy()][:7]
    memberships.loc[both, "T"] = 0.75  # members of both, such as doublets, are named by neither
    hierarchy = parse_hierarchy("\n".join(GATES.splitlines()[:3]))
    inside = memberships_of(memberships[["T", "CD4 T", "B"]], hierarchy)
    populations = results.tables["populations"].copy()
    populations.loc["T", "percent_of_parent"] = 100 * inside["T"].mean()
    tables = results.tables | {"memberships": memberships, "populations": populations}
    monkeypatch.setattr(report_gates, "_squares", lambda pixels, *_: str(pixels.shape[1]))
    plots = report_gates.gate_plots(results._replace(tables=tables), hierarchy)
    by_name = {plot.name: plot for plot in plots}
    for name in ("T", "B"):
        assert int(by_name[name].own) == inside[name].sum()
        assert int(by_name[name].own) + int(by_name[name].others) == len(inside)
        assert by_name[name].percent == pytest.approx(100 * inside[name].mean(), rel=1e-4)


def test_gates_are_proposed_to_the_explorer(folder: Path) -> None:
    cells_of_run = open_cells(folder)
    require_writable(folder, overwrite=True)  # the file is a part of the run
    gating = read_gates(folder / "gates_proposed.csv")
    inside = members(gating, cells_of_run._inside, cells_of_run.n_cells)
    assert set(inside) == {None, "T", "CD4 T", "B"}  # CD56 was not measured
    with h5py.File(folder / "results.h5mu") as file:
        named = read_elem(file["obs"])["population"].astype(str).to_numpy()
    for gate, names in (("T", ["T", "CD4 T"]), ("CD4 T", ["CD4 T"]), ("B", ["B"])):
        assert (inside[gate] == np.isin(named, names)).mean() > 0.95


def test_alternatives_and_levels_are_gates_of_ranges() -> None:
    hierarchy = parse_hierarchy("M: (A+ or B+ C-) not Dhigh\nN: M > Amid E+\nO: F+\nP: O > A+")
    markers = pd.DataFrame(
        {
            "feature": ["a", "b", "c", "d", "e", ""],
            "positive": [10.0, 20.0, 30.0, 40.0, np.nan, np.nan],
            "high": [100.0, 20.0, 30.0, 400.0, np.nan, np.nan],
            "note": "",
        },
        index=list("ABCDEF"),
    )
    none = pd.DataFrame()
    table = proposed_gates(
        Named(Gating(none, pd.Series(dtype=str), none, markers), hierarchy), genes=True
    )
    gating = gates_of_table(table)
    values = {
        ("protein_denoised", "a"): np.array([50.0, 0, 0, 50, 500, 50]),
        ("protein_denoised", "b"): np.array([0.0, 50, 50, 0, 0, 0]),
        ("protein_denoised", "c"): np.array([0.0, 0, 50, 0, 0, 0]),
        ("protein_denoised", "d"): np.array([0.0, 100, 0, 500, 0, 0]),
        ("protein_foreground", "e"): np.array([1.0, 1, 1, 1, 1, 0.4]),
    }

    def inside(gate: Gate) -> np.ndarray:
        return contains(
            gate, gate.vertices, [to_scale(values[a.kind, a.name], a.scale) for a in gate.axes]
        )

    found = members(gating, inside, 6)
    assert found["M"].tolist() == [True, True, False, False, True, True]
    assert found["N"].tolist() == [True, False, False, False, False, False]
    assert {"O", "P"}.isdisjoint(found)  # F was not measured
