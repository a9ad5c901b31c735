"""What a person does with the explorer in a browser, and what the page then says."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium"),
]
NAMED = "Bokeh.documents[0].get_model_by_name"
PLACE = f"""([name, x, y]) => {{
  const view = Bokeh.index.find_one({NAMED}(name));
  view.el.scrollIntoView({{block: "center"}});
  const box = view.canvas_view.el.getBoundingClientRect();
  return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)];
}}"""
BOXES = f"""(names) => names.map((name) => {{
  const box = Bokeh.index.find_one({NAMED}(name)).el.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom];
}})"""
WINDOW = f"""(name) => {{
  const {{x_range, y_range}} = {NAMED}(name);
  return [x_range.start, x_range.end, y_range.start, y_range.end];
}}"""
TREE = f"() => {NAMED}('gate_tree').source.data"
TABLE = f"""() => Object.fromEntries(Object.entries({NAMED}('differences').source.data)
  .map(([name, column]) => [name, Array.from(column)]))"""
SHOWN_FEATURES = f"""() => {{
  const table = Bokeh.index.find_one({NAMED}('differences')).shadow_el;
  return Array.from(table.querySelectorAll(".slick-cell.l0")).map((cell) => cell.innerText);
}}"""
SAID = f"() => {NAMED}('compared').text"
VALUE = f"(name) => {NAMED}(name).value"
STATUS = f"() => {NAMED}('status').text"
WAIT_MS = 120_000
BETWEEN_CLICKS_MS = 500  # two sooner ones are a double click


@contextmanager
def explored(path: Path) -> Iterator[str]:
    """Serve the explorer, give its address, and stop it as Ctrl-C does."""
    options = ["explore", str(path), "--no-browser", "--port", "0"]
    command = [sys.executable, "-m", "totalvi", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            lines = iter(server.stdout.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
        finally:
            server.send_signal(signal.SIGINT)  # Ctrl-C
            printed = server.stdout.read()
            assert server.wait(60) == 0
            assert printed.endswith("stopped\n")


@contextmanager
def opened(browser: Any, url: str, width: int = 1280) -> Iterator[Any]:
    """Open the page, and see that neither it nor the console complains."""
    page = browser.new_page(viewport={"width": width, "height": 1000})
    page.set_default_timeout(WAIT_MS)
    problems: list[str] = []
    page.on(
        "console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"a script ran: {dialog.message}"))
    page.on("request", lambda r: problems.append(r.url) if "127.0.0.1" not in r.url else None)
    page.goto(url)
    page.wait_for_function("() => window.Bokeh?.documents[0]?.is_idle")
    yield page
    page.close()
    assert [p for p in problems if not p.startswith(("data:", "blob:"))] == []


def place(page: Any, plot: str, x: float, y: float) -> tuple[float, float]:
    """Return where the mouse must go."""
    across, down = page.evaluate(PLACE, [plot, float(x), float(y)])
    return across, down


def drag(page: Any, plot: str, *corners: tuple[float, float]) -> None:
    places = [place(page, plot, *corner) for corner in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for corner in places[1:]:
        page.mouse.move(*corner, steps=3)
    page.mouse.up()


def wait_for_gates(page: Any, number: int) -> dict[str, list[str]]:
    page.wait_for_function(f"() => ({TREE})().gate.length === {number + 1}")
    return page.evaluate(TREE)


def kept(page: Any, button: str) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return download.value.path()


def between(page: Any, plot: str, across: float, up: float) -> tuple[float, float]:
    """Return the place on a plot at these shares of its width and height, in its coordinates."""
    left, right, bottom, top = page.evaluate(WINDOW, plot)
    return left + across * (right - left), bottom + up * (top - bottom)


def choose_shape(page: Any, shape: str) -> None:
    page.get_by_role("button", name=shape, exact=True).click()
    page.wait_for_timeout(BETWEEN_CLICKS_MS)


def click(page: Any, plot: str, x: float, y: float) -> None:
    page.mouse.click(*place(page, plot, x, y))
    page.wait_for_timeout(BETWEEN_CLICKS_MS)


def choose(page: Any, name: str, value: str) -> None:
    """Choose in a list or complete in a field, as its widget tells the server."""
    page.evaluate(f"([name, value]) => {{ {NAMED}(name).value = value; }}", [name, value])
    page.wait_for_function("() => Bokeh.documents[0].is_idle")
    page.wait_for_timeout(BETWEEN_CLICKS_MS)


def type_in(page: Any, name: str, text: str, keys: Sequence[str] = ("Enter",)) -> None:
    """Click a field, type on the keyboard, and press keys."""
    field = page.evaluate_handle(f"(name) => Bokeh.index.find_one({NAMED}(name)).input_el", name)
    field.as_element().scroll_into_view_if_needed()
    field.as_element().click()
    page.wait_for_timeout(BETWEEN_CLICKS_MS)  # what was there is then selected
    page.keyboard.type(text)
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_function("() => Bokeh.documents[0].is_idle")
    page.wait_for_timeout(BETWEEN_CLICKS_MS)


def wait_for_status(page: Any, word: str) -> str:
    page.wait_for_function(f"() => ({STATUS})().includes('{word}')")
    return page.evaluate(STATUS)
