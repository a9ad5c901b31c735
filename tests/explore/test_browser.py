"""The explorer as a person uses it: in a browser, with the mouse."""

import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest

from totalvi.explore.compare import Comparer
from totalvi.explore.data import RunCells

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's client")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium"),
]
EVIL = "<script>alert(1)</script>"
PLACE = """([name, x, y]) => {
  const view = Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name(name));
  view.el.scrollIntoView({block: "center"});
  const box = view.canvas_view.el.getBoundingClientRect();
  return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)];
}"""
TREE = "() => Bokeh.documents[0].get_model_by_name('gate_tree').source.data"
TABLE = "() => Bokeh.documents[0].get_model_by_name('differences').source.data"
SAID = "() => Bokeh.documents[0].get_model_by_name('compared').text"
WAIT_MS = 120_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from totalvi.analysis.run import run
    from totalvi.data.simulate import simulate

    data = simulate(n_cells=400, n_genes=60, n_proteins=6, n_batches=2, seed=0)
    data["prot"].var_names = [EVIL, *data["prot"].var_names[1:]]
    data.update()
    output = tmp_path_factory.mktemp("run") / "results"
    run(data, output, batch_key="batch", max_epochs=2, progress=False)
    return output


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "totalvi",
        "explore",
        str(folder),
        "--no-browser",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            lines = iter(server.stdout.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
        finally:
            server.terminate()
            printed = server.stdout.read()
            assert server.wait(30) == 0
            assert "stopped" in printed


@pytest.fixture
def page(url: str) -> Iterator["playwright.Page"]:
    with playwright.sync_playwright() as client:
        browser = client.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        problems: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"a script ran: {dialog.message}"))
        page.on("request", lambda r: problems.append(r.url) if "127.0.0.1" not in r.url else None)
        page.goto(url)
        page.wait_for_function("() => window.Bokeh?.documents[0]?.is_idle", timeout=WAIT_MS)
        yield page
        browser.close()
        assert [p for p in problems if not p.startswith(("data:", "blob:"))] == []


def drag(page: "playwright.Page", plot: str, start: tuple, end: tuple) -> None:
    (x0, y0), (x1, y1) = (page.evaluate(PLACE, [plot, *corner]) for corner in (start, end))
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move((x0 + x1) / 2, (y0 + y1) / 2, steps=3)
    page.mouse.move(x1, y1, steps=3)
    page.mouse.up()


def test_a_drawn_gate_holds_just_its_cells_and_what_differs(
    page: "playwright.Page", folder: Path
) -> None:
    mdata = mudata.read_h5mu(folder / "results.h5mu")
    x, y = np.arcsinh(mdata["prot"].layers["denoised"][:, :2] / 5).T
    # half of the cells, by a border that no cell is near enough to for a pixel to matter
    along = np.sort(x)
    gaps = np.diff(along)[100:300]
    border = float(along[100:301][gaps.argmax() : gaps.argmax() + 2].mean())
    drag(page, "right", (border, y.min() - 0.02), (x.max() + 0.02, y.max() + 0.02))
    page.wait_for_function(f"() => ({TREE})().gate.length === 2", timeout=WAIT_MS)
    gate = (x >= border) & (y >= y.min())
    tree = page.evaluate(TREE)
    assert abs(int(tree["cells"][1]) - gate.sum()) <= 1  # of a pixel's width at the edges
    page.wait_for_function(f"() => ({SAID})().includes('Compared')", timeout=WAIT_MS)
    found = page.evaluate(TABLE)
    with page.expect_download() as kept:
        page.get_by_role("button", name="CSV").click()

    table = pd.read_csv(kept.value.path(), index_col="cell")
    inside = table["in_gate Gate 1"].to_numpy()
    assert inside.sum() == int(tree["cells"][1])
    with RunCells(folder) as cells:
        expected = Comparer(cells).compare(inside, ~inside).table
    names = (
        list(found["feature"].values()) if isinstance(found["feature"], dict) else found["feature"]
    )
    assert list(names) == list(expected.index)
    assert page.get_by_text(EVIL).count() > 0  # as text, in the table
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function(f"() => ({TREE})().gate.length === 1", timeout=WAIT_MS)


def test_wrong_tokens_hosts_and_origins_are_refused(url: str) -> None:
    base = re.match(r"(http://[^/]+)/([^/]+)/", url)
    assert base is not None
    for address, headers in (
        (f"{base[1]}/", {}),
        (f"{base[1]}/wrong/", {}),
        (f"{base[1]}/wrong/ws", {"Upgrade": "websocket", "Connection": "Upgrade"}),
        (url, {"Host": "evil.example"}),
        (url, {"Origin": "http://evil.example"}),
        (f"{url}ws", {"Origin": "null", "Upgrade": "websocket", "Connection": "Upgrade"}),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60)
        assert refused.value.code == 403
    for path in ("../run.json", "static/../../run.json", "run.json", "results.h5mu"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(url + path, timeout=60)
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
