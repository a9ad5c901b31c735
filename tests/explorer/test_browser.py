"""The explorer as a person uses it: in a browser, with the mouse."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem
from matplotlib.path import Path as Outline
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from explorer.mouse import (
    BETWEEN_CLICKS_MS,
    BOXES,
    NAMED,
    NEEDS_BROWSER,
    SAID,
    SHOWN_FEATURES,
    STATUS,
    TABLE,
    TREE,
    VALUE,
    WAIT_MS,
    WINDOW,
    drag,
    explored,
    kept,
    place,
    wait_for_gates,
)
from totalvi.explorer.axes import tidy_names
from totalvi.explorer.server import open_in_browser

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's client")
pytestmark = NEEDS_BROWSER
EVIL = "<script>alert(1)</script>"  # the first protein of `run_folder`


@pytest.fixture(scope="module")
def url(run_folder: Path) -> Iterator[str]:
    with explored(run_folder) as address:
        yield address


def inside(gate: dict[str, Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return Outline(gate["vertices"]).contains_points(np.c_[x, y])


def test_a_drawn_gate_holds_just_its_cells_and_what_differs(
    page: "playwright.Page", run_folder: Path
) -> None:
    from totalvi.model import Model

    mdata = mudata.read_h5mu(run_folder / "results.h5mu")
    full = {tidy: name for name, tidy in tidy_names(list(mdata["prot"].var_names)).items()}
    shown = [full[page.evaluate(VALUE, f"{side}_2")] for side in "xy"]
    assert page.evaluate(VALUE, "values_2") == "raw counts"
    x, y = np.arcsinh(np.asarray(mdata["prot"][:, shown].X) / 5).T
    left, right, bottom, top = page.evaluate(WINDOW, "plot_2")
    border, pixel = float(np.median(x)), (right - left) / 300
    drag(page, "plot_2", (border, bottom + pixel), (right - pixel, top - pixel))
    tree = wait_for_gates(page, 1)
    gate = json.loads(kept(page, "JSON").read_text())["gates"][0]
    assert gate["shape"] == "rectangle"
    assert min(corner[0] for corner in gate["vertices"]) == pytest.approx(border, abs=pixel)
    first = inside(gate, x, y)
    assert 150 < first.sum() < 250
    assert int(tree["cells"][1]) == first.sum()
    assert tree["of_parent"][1] == tree["of_all"][1] == f"{100 * first.mean():.1f}"

    page.wait_for_function(f"() => ({SAID})().includes('Compared')")
    found = page.evaluate(TABLE)
    expected = Model.load(run_folder / "model.totalvi").differential_expression(
        mdata, idx1=first, idx2=~first, progress=False
    )
    assert found["feature"] == list(expected.index)
    np.testing.assert_allclose(found["lfc"], expected["lfc_median"], rtol=1e-6)
    np.testing.assert_allclose(found["proba"], expected["proba_de"], rtol=1e-6)
    page.wait_for_function(f"() => {NAMED}('volcano').visible")
    table = pd.read_csv(kept(page, "CSV"), index_col="cell")
    assert list(table.index) == list(mdata.obs_names)
    np.testing.assert_array_equal(table["in_gate Gate 1"], first)
    page.get_by_role("button", name="h5mu").click()
    page.wait_for_function(f"() => ({STATUS})().includes('Written')")
    with h5py.File(run_folder / "results_gated.h5mu") as file:
        np.testing.assert_array_equal(read_elem(file["obs"])["in_gate Gate 1"], first)
    page.get_by_role("button", name="Undo").click()
    wait_for_gates(page, 0)
    page.get_by_role("button", name="Redo").click()
    wait_for_gates(page, 1)
    page.get_by_role("button", name="Delete").click()
    wait_for_gates(page, 0)


def test_a_second_comparison_is_shown_though_it_has_as_many_rows(page: "playwright.Page") -> None:
    left, right, bottom, top = page.evaluate(WINDOW, "plot_1")
    centre, pixel = ((left + right) / 2, (bottom + top) / 2), (right - left) / 300
    shown = []
    for corner in ((centre[0], top - pixel), (right - pixel, centre[1])):  # left half, lower half
        drag(page, "plot_1", (left + pixel, bottom + pixel), corner)
        number = len(shown) + 1
        wait_for_gates(page, number)
        for word in ("Compared", f"Gate {number}"):
            page.wait_for_function(f"() => ({SAID})().includes('{word}')")
        page.wait_for_timeout(BETWEEN_CLICKS_MS)
        names = page.evaluate(SHOWN_FEATURES)
        assert names
        assert names == page.evaluate(TABLE)["feature"][: len(names)]
        shown.append(names)
    assert shown[0] != shown[1]


def test_two_pages_have_gates_of_their_own(
    page: "playwright.Page", browser: "playwright.Browser", url: str
) -> None:
    left, right, bottom, top = page.evaluate(WINDOW, "plot_1")
    middle, pixel = (left + right) / 2, (right - left) / 300
    drag(page, "plot_1", (middle, bottom + pixel), (right - pixel, top - pixel))
    wait_for_gates(page, 1)
    other = browser.new_page()
    other.set_default_timeout(WAIT_MS)
    other.goto(url)
    other.wait_for_function("() => window.Bokeh?.documents[0]?.is_idle")
    wait_for_gates(other, 0)
    other.get_by_role("button", name="Restore unsaved").click()
    wait_for_gates(other, 1)
    other.get_by_role("button", name="Undo").click()
    wait_for_gates(other, 0)
    assert len(page.evaluate(TREE)["gate"]) == 2
    other.close()


def test_the_file_for_the_browser_leads_to_the_page(
    browser: "playwright.Browser", url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", asked.append)
    with open_in_browser(url, tmp_path):
        page = browser.new_page()
        page.goto(asked[0])
        page.wait_for_url(url)
        page.wait_for_function("() => window.Bokeh?.documents[0]?.is_idle")
        page.close()


def test_names_from_data_are_text(page: "playwright.Page") -> None:
    left, right, bottom, top = page.evaluate(WINDOW, "plot_1")
    middle, pixel = (left + right) / 2, (right - left) / 300
    drag(page, "plot_1", (middle, bottom + pixel), (right - pixel, top - pixel))
    wait_for_gates(page, 1)
    page.get_by_label("Name of the gate").fill("<img src=x onerror=alert(2)>")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => ({TREE})().gate[1].includes('onerror')")
    page.wait_for_function(f"() => ({SAID})().includes('Compared')")
    page.get_by_placeholder("any part of its name").fill("script")
    page.locator(".slick-cell").filter(has_text=EVIL).first.wait_for()
    page.locator(".slick-cell").filter(has_text="<img src=x").first.wait_for()
    page.get_by_role("button", name="Delete").click()  # a script that ran is a problem of `page`
    wait_for_gates(page, 0)


def test_polygon_and_lasso_are_drawn_nested_saved_and_reloaded(
    page: "playwright.Page", run_folder: Path
) -> None:
    umap = mudata.read_h5mu(run_folder / "results.h5mu").obsm["X_umap"]
    left, right, bottom, top = page.evaluate(WINDOW, "plot_1")
    middle = ((left + right) / 2, (bottom + top) / 2)
    reach = (0.35 * (right - left), 0.35 * (top - bottom))
    page.get_by_role("button", name="Polygon", exact=True).click()
    for x, y in ((-1, -1), (1, -1), (1, 1), (-0.5, 0.8)):
        at = place(page, "plot_1", middle[0] + x * reach[0], middle[1] + y * reach[1])
        page.mouse.click(*at)
        page.wait_for_timeout(BETWEEN_CLICKS_MS)
    page.mouse.dblclick(*at)
    wait_for_gates(page, 1)
    page.get_by_role("button", name="Show only its cells").click()
    page.get_by_role("button", name="Lasso", exact=True).click()
    angle = np.linspace(0, 6, 30)
    circle = np.c_[np.cos(angle) * reach[0] / 2 + middle[0], np.sin(angle) * reach[1] + middle[1]]
    drag(page, "plot_1", *map(tuple, circle))
    tree = wait_for_gates(page, 2)

    outer, inner = json.loads(kept(page, "JSON").read_text())["gates"]
    assert (outer["shape"], inner["shape"], inner["parent_id"]) == ("polygon", "lasso", "Gate 1")
    parent = inside(outer, *umap.T)
    child = parent & inside(inner, *umap.T)
    assert 0 < child.sum() < parent.sum() < len(umap)
    assert [int(cells) for cells in tree["cells"][1:]] == [parent.sum(), child.sum()]
    assert float(tree["of_parent"][2]) == pytest.approx(100 * child.sum() / parent.sum(), abs=0.051)

    page.get_by_label("Name of the gate").fill("T cells")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => ({TREE})().gate[2].includes('T cells')")
    page.get_by_role("button", name="Save", exact=True).click()
    page.wait_for_function(f"() => ({STATUS})().includes('Saved')")
    saved = json.loads((run_folder / "gates.json").read_text())["gates"]
    assert [gate["id"] for gate in saved] == ["Gate 1", "T cells"]
    page.get_by_role("button", name="Delete").click()
    wait_for_gates(page, 1)
    page.get_by_role("button", name="Reload saved").click()
    assert wait_for_gates(page, 2)["cells"] == tree["cells"]


def test_nothing_overlaps_on_a_narrow_screen(page: "playwright.Page") -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    names = ["compare_with", "find_feature", "compared", "shape", "samples", "sample", "color",
             "button_more", "x_1", "y_1", "values_1", "scale_1", "style_1", "cells_1", "close_1",
             "x_2", "y_2", "population_value", "button_populations"]  # fmt: skip
    boxes = page.evaluate(BOXES, names)
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= 390
        for other in boxes[i + 1 :]:
            apart = other[0] >= right or other[2] <= left or other[1] >= bottom or other[3] <= top
            assert apart, names[i]


def refused(address: str, headers: dict[str, str]) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60)
    return error.value.code


async def first_message(address: str, headers: dict[str, str]) -> str | bytes | None:
    request = HTTPRequest(address.replace("http", "ws", 1), headers=headers, request_timeout=60)
    connection = await websocket_connect(request)
    return await connection.read_message()  # None: the server closed it


def elsewhere(asked: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a thread of its own: Playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asked).result()


def test_wrong_tokens_hosts_and_origins_are_refused(url: str) -> None:
    base = url[: url.index("/", 8)]
    here = base.removeprefix("http://")
    assert refused(f"{base}/", {}) == refused(f"{base}/wrong/", {}) == 403
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert refused(url, headers) == 403
    for address, headers in (
        (f"{base}/ws", {}),
        (f"{base}/wrong/ws", {}),
        (f"{url}ws", {"Host": "evil.example"}),
        (f"{url}ws", {"Host": f"evil.example:{here.split(':')[1]}"}),
        (f"{url}ws", {"Origin": "http://evil.example"}),
        (f"{url}ws", {"Origin": "null"}),
    ):
        with pytest.raises(HTTPClientError) as error:
            elsewhere(first_message(address, headers))
        assert error.value.code == 403
    # one that has the address but no session of the page is let in by nobody
    assert elsewhere(first_message(f"{url}ws", {"Origin": base})) is None


def test_nothing_else_of_the_folder_is_served(url: str) -> None:
    for path in ("../run.json", "static/../../run.json", "static/..%2f..%2fresults.h5mu",
                 "results.h5mu", "model.totalvi/"):  # fmt: skip
        assert refused(url + path, {}) in (403, 404)
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
