"""Every kind of gate and view of the explorer, with the mouse, without a model and with one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mudata import MuData

from explorer.mouse import (
    BETWEEN_CLICKS_MS,
    NAMED,
    NEEDS_BROWSER,
    SAID,
    STATUS,
    TREE,
    VALUE,
    WINDOW,
    between,
    choose,
    choose_shape,
    click,
    drag,
    explored,
    kept,
    opened,
    place,
    wait_for_gates,
    wait_for_status,
)
from totalvi.explorer.gate_files import gates_from_text
from totalvi.explorer.gate_shapes import contains
from totalvi.explorer.gates import Gating, members
from totalvi.explorer.run_cells import FileCells, RunCells

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's client")
pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def url(blood_file: Path) -> Iterator[str]:
    with explored(blood_file) as address:
        yield address


@pytest.fixture(scope="module")
def cells(blood_file: Path) -> FileCells:
    return FileCells(blood_file)


def gates(page: "playwright.Page") -> Gating:
    return gates_from_text(kept(page, "JSON").read_text())


def shown_counts(page: "playwright.Page") -> list[int]:
    return [int(text.replace(",", "")) for text in page.evaluate(TREE)["cells"][1:]]


def expected_counts(cells: FileCells, gating: Gating) -> list[int]:
    inside = members(gating, cells.inside, cells.n_cells)
    return [int(inside[gate.name].sum()) for _, gate in gating.walk()]


def test_plots_start_with_lineages_under_tidy_names(page: "playwright.Page") -> None:
    shown = [[page.evaluate(VALUE, f"{side}_{n}") for side in "xy"] for n in (1, 2, 3)]
    assert shown == [["CD3", "CD19"], ["CD4", "CD8a"], ["CD14", "CD16"]]
    full = page.evaluate(f"() => {NAMED}('x_1').description")
    assert full == "In the data: CD3_TotalSeqB"
    said = page.evaluate(SAID)
    assert "need a model" in said
    assert page.get_by_text("There is no model of these cells").is_visible()
    page.get_by_role("button", name="One more plot").click()
    page.wait_for_function(f"() => {NAMED}('card_4').visible")
    page.get_by_role("button", name="Close", exact=True).nth(3).click()
    page.wait_for_function(f"() => !{NAMED}('card_4').visible")


def test_ellipse_range_and_quadrants_are_drawn(page: "playwright.Page", cells: FileCells) -> None:
    choose_shape(page, "Ellipse")
    drag(page, "plot_1", between(page, "plot_1", 0.6, 0.02), between(page, "plot_1", 0.98, 0.5))
    wait_for_gates(page, 1)
    choose_shape(page, "Range")
    drag(page, "plot_3", between(page, "plot_3", 0.5, 0.3), between(page, "plot_3", 0.95, 0.6))
    wait_for_gates(page, 2)
    choose_shape(page, "Quadrants")
    click(page, "plot_2", *between(page, "plot_2", 0.55, 0.5))
    wait_for_gates(page, 6)
    gating = gates(page)
    assert [gate.shape for gate in gating.gates] == ["ellipse", "range", *["quadrant"] * 4]
    assert gating.names[2:] == ("CD4- CD8a-", "CD4+ CD8a-", "CD4- CD8a+", "CD4+ CD8a+")
    counts = expected_counts(cells, gating)
    assert shown_counts(page) == counts
    assert sum(counts[2:]) == cells.n_cells
    ellipse = gating.gates[0]
    (x, y), (right, _), (_, top) = ellipse.vertices
    places = [cells.places(axis.kind, axis.name, axis.scale) for axis in ellipse.axes]
    inside = ((places[0] - x) / (right - x)) ** 2 + ((places[1] - y) / (top - y)) ** 2 <= 1
    assert counts[0] == inside.sum() > 20


def test_a_gate_is_moved_and_reshaped_and_its_children_follow(
    page: "playwright.Page", cells: FileCells
) -> None:
    drag(page, "plot_1", between(page, "plot_1", 0.6, 0.02), between(page, "plot_1", 0.97, 0.5))
    wait_for_gates(page, 1)
    page.get_by_role("button", name="Show only its cells").click()
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    drag(page, "plot_2", between(page, "plot_2", 0.5, 0.02), between(page, "plot_2", 0.97, 0.5))
    before = gates(page)
    assert wait_for_gates(page, 2)["of_all"][2] != "0"
    choose(page, "cells_1", "All cells")
    choose_shape(page, "Edit")
    # the lower left corner, to the left: the upper left one follows
    (left, bottom), *_ = before.gates[0].vertices
    click(page, "plot_1", left + 0.5, bottom + 0.5)  # selects it
    window = page.evaluate(WINDOW, "plot_1")
    step = 0.3 * (window[1] - window[0])
    drag(page, "plot_1", (left, bottom), (left - step / 2, bottom), (left - step, bottom))
    wait_for_status(page, "Not saved")
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    wider = gates(page)
    assert wider.gates[0].vertices[0][0] == pytest.approx(left - step, abs=step / 20)
    assert wider.gates[0].vertices[3][0] == wider.gates[0].vertices[0][0]
    assert wider.gates[0].vertices[1] == before.gates[0].vertices[1]
    assert wider.gates[1] == before.gates[1]
    counts = [expected_counts(cells, gating) for gating in (before, wider)]
    assert counts[0][0] < counts[1][0]
    assert shown_counts(page) == counts[1]
    # the whole gate, upwards by its inside
    middle = np.mean(wider.gates[0].vertices, axis=0)
    up = 0.4 * (window[3] - window[2])
    drag(page, "plot_1", tuple(middle), (middle[0], middle[1] + up))
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    moved = gates(page)
    offset = np.subtract(moved.gates[0].vertices, wider.gates[0].vertices)
    np.testing.assert_allclose(offset, np.tile([0, up], (4, 1)), atol=up / 10)
    assert shown_counts(page) == expected_counts(cells, moved)
    assert shown_counts(page)[1] < counts[1][1]  # the child has lost cells too
    page.get_by_role("button", name="Undo").click()
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    assert shown_counts(page) == counts[1]


def test_the_cross_of_quadrants_moves_whole(page: "playwright.Page", cells: FileCells) -> None:
    choose_shape(page, "Quadrants")
    centre = between(page, "plot_2", 0.5, 0.5)
    click(page, "plot_2", *centre)
    wait_for_gates(page, 4)
    choose_shape(page, "Edit")
    there = between(page, "plot_2", 0.3, 0.7)
    drag(page, "plot_2", centre, there)
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    gating = gates(page)
    assert len({gate.vertices for gate in gating.gates}) == 1
    assert gating.gates[0].vertices[0] == pytest.approx(there, abs=0.2)
    counts = shown_counts(page)
    assert counts == expected_counts(cells, gating)
    assert sum(counts) == cells.n_cells


def test_gates_are_combined(page: "playwright.Page", cells: FileCells) -> None:
    choose_shape(page, "Quadrants")
    click(page, "plot_2", *between(page, "plot_2", 0.55, 0.5))
    wait_for_gates(page, 4)
    choose(page, "combine_how", "or")
    choose(page, "combine_with", "CD4+ CD8a-")
    page.get_by_role("button", name="Combine", exact=True).click()
    wait_for_gates(page, 5)
    choose(page, "combine_how", "not it")
    page.get_by_role("button", name="Combine", exact=True).click()
    wait_for_gates(page, 6)
    counts = shown_counts(page)
    assert counts[4] == counts[1] + counts[3] == expected_counts(cells, gates(page))[4]
    assert counts[5] == cells.n_cells - counts[4]


def test_gates_differ_by_sample_and_populations_are_counted(
    page: "playwright.Page", cells: FileCells, blood: MuData
) -> None:
    drag(page, "plot_1", between(page, "plot_1", 0.6, 0.02), between(page, "plot_1", 0.97, 0.5))
    wait_for_gates(page, 1)
    choose(page, "sample", "d2")
    choose_shape(page, "Edit")
    (gate,) = gates(page).gates
    centre = np.mean(gate.vertices, axis=0)
    left = page.evaluate(WINDOW, "plot_1")[0]
    drag(page, "plot_1", tuple(centre), (left + 0.4, centre[1]))
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    choose(page, "sample", "all samples")
    (gate,) = gates(page).gates
    ((column, sample, vertices),) = gate.by_sample
    assert (column, sample) == ("donor", "d2")
    words = "Differs by sample: elsewhere in donor d2"
    assert page.get_by_title(words).inner_text() == "\u2260"  # in the tree
    signs, labels = (
        page.evaluate(
            f"(name) => {NAMED}('plot_1').renderers.find((r) => r.name === name).data_source.data",
            name,
        )
        for name in ("signs", "labels")
    )
    assert labels["text"][0].endswith("\u2260")
    page.mouse.move(*place(page, "plot_1", signs["x"][0], signs["y"][0]))
    page.get_by_text(words).wait_for()
    assert vertices != gate.vertices
    places = [cells.places(axis.kind, axis.name, axis.scale) for axis in gate.axes]
    is_d2 = (blood.obs["donor"] == "d2").to_numpy()
    inside = np.where(
        is_d2, contains(gate, vertices, places), contains(gate, gate.vertices, places)
    )
    assert shown_counts(page) == [inside.sum()]
    table = pd.read_csv(kept(page, "Table as CSV"))
    rows = table[table["population"] == "Gate 1"].set_index("sample")
    assert rows["cells"].to_dict() == {"d1": inside[~is_d2].sum(), "d2": inside[is_d2].sum()}
    expected = [100 * inside[some].mean() for some in (~is_d2, is_d2)]
    np.testing.assert_allclose(rows["percent_of_all"], expected)
    dots = page.evaluate(f"() => Array.from({NAMED}('sample_dots').data_source.data.x)")
    np.testing.assert_allclose(dots, expected)


def test_names_of_samples_are_text(page: "playwright.Page") -> None:
    choose(page, "y_1", "histogram")
    choose(page, "samples", "bad_sample")  # a script that runs is a problem of `page`
    name = "d1<img src=x onerror=alert(3)>"
    page.locator(".slick-column-name").filter(has_text=name).first.wait_for()
    choose(page, "color", "bad_sample (annotation)")
    drag(page, "plot_2", between(page, "plot_2", 0.5, 0.02), between(page, "plot_2", 0.97, 0.5))
    wait_for_gates(page, 1)
    choose(page, "sample", "d2<img src=x onerror=alert(3)>")
    page.wait_for_timeout(BETWEEN_CLICKS_MS)


def test_histograms_contours_and_genes(page: "playwright.Page", cells: FileCells) -> None:
    choose(page, "y_1", "histogram")
    ridges = f"() => {NAMED}('plot_1').renderers.find((r) => r.name === 'histograms').data_source"
    page.wait_for_function(f"() => ({ridges})().data.xs.length === 2")  # a curve for each donor
    drag(page, "plot_1", between(page, "plot_1", 0.5, 0.3), between(page, "plot_1", 0.95, 0.6))
    wait_for_gates(page, 1)
    choose(page, "style_2", "contours")
    lines = f"() => {NAMED}('plot_2').renderers.find((r) => r.name === 'contours').data_source"
    page.wait_for_function(f"() => ({lines})().data.xs.length > 6")
    choose(page, "x_3", "CD3D (gene)")
    choose(page, "scale_3", "linear")
    drag(page, "plot_3", between(page, "plot_3", 0.3, 0.02), between(page, "plot_3", 0.97, 0.9))
    wait_for_gates(page, 2)
    gating = gates(page)
    assert [len(gate.axes) for gate in gating.gates] == [1, 2]
    assert (gating.gates[1].axes[0].kind, gating.gates[1].axes[0].name) == ("gene_raw", "CD3D")
    assert shown_counts(page) == expected_counts(cells, gating)
    choose(page, "values_3", "CLR / log")
    drag(page, "plot_3", between(page, "plot_3", 0.3, 0.02), between(page, "plot_3", 0.97, 0.9))
    wait_for_gates(page, 3)
    assert [axis.kind for axis in gates(page).gates[2].axes] == ["gene_log", "protein_clr"]
    assert shown_counts(page) == expected_counts(cells, gates(page))


def test_a_label_is_whole_at_the_edge(page: "playwright.Page") -> None:
    drag(page, "plot_1", between(page, "plot_1", 0.5, 0.5), between(page, "plot_1", 0.995, 0.995))
    wait_for_gates(page, 1)
    window = page.evaluate(WINDOW, "plot_1")
    inside = f"""() => {{
      const labels = {NAMED}('plot_1').renderers.find((r) => r.name === 'labels').data_source.data;
      const view = Bokeh.index.find_one({NAMED}('plot_1'));
      const height = view.frame.bbox.height;
      return [labels.y[0], height];
    }}"""
    y, height = page.evaluate(inside)
    pixels = (window[3] - y) / (window[3] - window[2]) * height
    assert pixels >= 10  # half of the label's height


def test_gates_come_from_gating_ml(
    page: "playwright.Page", cells: FileCells, tmp_path: Path
) -> None:
    choose_shape(page, "Quadrants")
    click(page, "plot_2", *between(page, "plot_2", 0.55, 0.5))
    wait_for_gates(page, 4)
    drawn, counts = gates(page), shown_counts(page)
    path = tmp_path / "gates.xml"
    path.write_bytes(kept(page, "Gating-ML").read_bytes())
    page.get_by_role("button", name="Undo").click()
    wait_for_gates(page, 0)
    page.locator("input[type=file]").set_input_files(path)
    wait_for_gates(page, 4)
    assert shown_counts(page) == counts
    found = gates(page)
    assert found.names == drawn.names
    np.testing.assert_allclose(found.gates[0].vertices, drawn.gates[0].vertices, rtol=1e-12)


def test_it_is_usable_on_a_narrow_screen(browser: "playwright.Browser", url: str) -> None:
    with opened(browser, url, width=390) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
        choose_shape(page, "Quadrants")
        click(page, "plot_2", *between(page, "plot_2", 0.55, 0.5))
        wait_for_gates(page, 4)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


@pytest.fixture(scope="module")
def own_run(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the run's folder without the gates that other tests save in it."""
    copied = tmp_path_factory.mktemp("own_run") / "results"
    shutil.copytree(run_folder, copied, ignore=shutil.ignore_patterns("gates*"))
    return copied


@pytest.fixture(scope="module")
def run_url(own_run: Path) -> Iterator[str]:
    with explored(own_run) as address:
        yield address


def test_backgating_probability_and_conditions(
    browser: "playwright.Browser", run_url: str, own_run: Path
) -> None:
    with opened(browser, run_url) as page:
        drag(page, "plot_1", between(page, "plot_1", 0.1, 0.1), between(page, "plot_1", 0.7, 0.9))
        wait_for_gates(page, 1)
        page.get_by_role("button", name="Show only its cells").click()
        page.wait_for_timeout(BETWEEN_CLICKS_MS)
        drag(page, "plot_2", between(page, "plot_2", 0.3, 0.05), between(page, "plot_2", 0.95, 0.9))
        wait_for_gates(page, 2)
        axes = [page.evaluate(VALUE, f"{side}_2") for side in "xy"]
        page.get_by_role("button", name="Backgate").click()
        page.get_by_role("button", name="Usual plots").wait_for()
        assert [page.evaluate(VALUE, f"{side}_1") for side in "xy"] == ["UMAP 1", "UMAP 2"]
        assert [page.evaluate(VALUE, f"{side}_2") for side in "xy"] == axes
        assert [page.evaluate(VALUE, f"cells_{n}") for n in (1, 2)] == ["All cells", "Gate 1"]
        page.get_by_role("button", name="Usual plots").click()
        page.get_by_role("button", name="Backgate").wait_for()
        page.get_by_role("button", name="Probability").click()
        said = wait_for_status(page, "Expected cells")
        assert 0 < float(said.split(": ")[1].split(";")[0].replace(",", "")) < 400
        probability = pd.read_csv(kept(page, "CSV"), index_col="cell")["probability Gate 2"]
        assert probability.between(0, 1).all()
        choose(page, "compare_with", "conditions, over samples")
        page.wait_for_function(f"() => ({SAID})().includes('samples)')")
        assert "Share of the parent" in page.evaluate(SAID)
        page.get_by_role("button", name="FCS files").click()
        wait_for_status(page, "Written")
        written = sorted(path.name for path in (own_run / "fcs").iterdir())
        assert written == [*(f"donor_{number}.fcs" for number in range(6)), "gates.xml"]
        with RunCells(own_run) as cells:
            gating = gates_from_text(kept(page, "JSON").read_text())
            expected = members(gating, cells.inside, cells.n_cells)["Gate 2"]
            read = gates_from_text((own_run / "fcs" / "gates.xml").read_text())
            np.testing.assert_array_equal(
                members(read, cells.inside, cells.n_cells)["Gate 2"], expected
            )
        assert json.loads(kept(page, "JSON").read_text())["version"] == 2
        assert "Written" in page.evaluate(STATUS)


def test_proposed_populations_show_their_ranges(
    browser: "playwright.Browser", own_run: Path
) -> None:
    first, second, third = list(map(str, RunCells(own_run).protein_names))[1:4]
    long_name = "A population whose name is much longer than the column of the tree"
    (own_run / "gates_proposed.csv").write_text(
        "gate,parent,kind,feature,low,high\n"
        + "".join(
            f'"{long_name}, {number} of 2",,protein_denoised,{name},5,\n'
            for number, names in ((1, (first, second, third)), (2, (first, second)))
            for name in names
        )
        + f'"{long_name}",,or,"{long_name}, 1 of 2",,\n'
        + f'"{long_name}",,or,"{long_name}, 2 of 2",,\n'
        + f'below,"{long_name}",protein_denoised,{third},,5\n'
    )
    with explored(own_run) as url:
        for width in (1280, 390):
            with opened(browser, url, width) as page:
                page.get_by_role("button", name="Proposed gates").click()
                tree = wait_for_gates(page, 2)
                assert [name.strip("\u2003\u2514 ") for name in tree["gate"]] == [
                    "All cells", long_name, "below"
                ]  # fmt: skip
                choose(page, "x_1", first)
                choose(page, "y_1", third)
                choose(page, "values_1", "denoised")  # on which the gates are drawn
                cell = page.get_by_title(long_name, exact=True)
                cell.click()
                labels = (
                    f"() => {NAMED}('plot_1').renderers.find((r) => r.name === 'labels')"
                    ".data_source.data.text.map((text) => text.split('  ')[0])"
                )
                page.wait_for_function(f"() => ({labels})().length === 2")
                assert page.evaluate(labels) == [f"{first}+", f"{third}+"]
                assert page.get_by_title(f"{long_name} > below", exact=True).is_visible()
                assert cell.evaluate("(span) => getComputedStyle(span).textOverflow") == "ellipsis"
    (own_run / "gates_proposed.csv").unlink()
