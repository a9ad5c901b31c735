"""Open pages in headless Chromium as a user does: the report, and the explorer with a gate.

Used by `sizes.py`. Needs playwright and the system's Chromium.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 600_000
STOPS_WITHIN_S = 60
NAMED = "Bokeh.documents[0].get_model_by_name"
IDLE = "() => window.Bokeh?.documents[0]?.is_idle"
WINDOW = f"""(name) => {{
  const {{x_range, y_range}} = {NAMED}(name);
  return [x_range.start, x_range.end, y_range.start, y_range.end];
}}"""
PLACE = f"""([name, x, y]) => {{
  const view = Bokeh.index.find_one({NAMED}(name));
  view.el.scrollIntoView({{block: "center"}});
  const box = view.canvas_view.el.getBoundingClientRect();
  return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)];
}}"""
TREE = f"() => {NAMED}('gate_tree').source.data"
SAID = f"() => {NAMED}('compared').text"


class Opened(NamedTuple):
    """A page, and what it complained about."""

    page: Any
    complaints: list[str]


@contextmanager
def opened() -> Iterator[Opened]:
    """Give an empty page of a headless Chromium that needs no network."""
    if CHROMIUM is None:
        raise RuntimeError("there is no chromium on this machine: install it (`make browser`)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as client:
        browser = client.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(WAIT_MS)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else 0)
        try:
            yield Opened(page, complaints)
        finally:
            browser.close()


def open_report(path: Path, screenshot: Path) -> dict[str, Any]:
    """Open a report; return the seconds until it is ready, its size and its complaints."""
    with opened() as (page, complaints):
        started = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        seconds = time.perf_counter() - started
        page.screenshot(path=screenshot)
    return {
        "open_seconds": seconds,
        "report_mb": path.stat().st_size / 1e6,
        "console_errors": complaints,
    }


@contextmanager
def served(folder: Path, usage: dict[str, Any]) -> Iterator[str]:
    """Give the address of an explorer of the run in ``folder``, and stop it with Ctrl-C.

    ``usage`` gets the largest resident memory of the server, and its exit status.
    """
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
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = (re.search(r"http://\S+", line) for line in iter(server.stdout.readline, ""))
        address = next(filter(None, found), None)
        if address is None:
            raise RuntimeError("the explorer ended without an address")
        yield address[0]
    finally:
        usage |= stopped(server)


def stopped(server: subprocess.Popen) -> dict[str, Any]:
    """Interrupt a process, and kill it where that does not end it; return what it used."""
    os.kill(server.pid, signal.SIGINT)  # nobody else has waited for it, so the number is its own
    deadline = time.monotonic() + STOPS_WITHIN_S
    done, status, used = os.wait4(server.pid, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.1)
        done, status, used = os.wait4(server.pid, os.WNOHANG)
    if not done:
        server.kill()
        _, status, used = os.wait4(server.pid, 0)
    server.returncode = os.waitstatus_to_exitcode(status)
    return {"peak_mb": used.ru_maxrss * 1024 / 1e6, "status": server.returncode}


def explore(folder: Path, screenshots: Path, name: str) -> dict[str, Any]:
    """Open the explorer, draw a gate with the mouse, wait for its count and its comparison."""
    usage: dict[str, Any] = {}
    started = time.perf_counter()
    with served(folder, usage) as address:
        serving = time.perf_counter()
        with opened() as (page, complaints):
            page.goto(address)
            page.wait_for_function(IDLE)
            ready = time.perf_counter()
            page.screenshot(path=screenshots / f"{name}_opened.png")
            left, right, bottom, top = page.evaluate(WINDOW, "plot_1")
            pixel = (right - left) / 300
            middle = (left + right) / 2
            drawing = time.perf_counter()
            _drag(page, "plot_1", (left + pixel, bottom + pixel), (middle, top - pixel))
            page.wait_for_function(f"() => ({TREE})().gate.length === 2")
            counted = time.perf_counter()
            page.wait_for_function(f"() => ({SAID})().includes('Compared')")
            compared = time.perf_counter()
            cells, said = page.evaluate(TREE)["cells"], page.evaluate(SAID)
            page.screenshot(path=screenshots / f"{name}_compared.png")
    return {
        "start_seconds": serving - started,
        "open_seconds": ready - serving,
        "gate_seconds": counted - drawing,
        "comparison_seconds": compared - counted,
        "cells_in_gate": int(str(cells[1]).replace(",", "")),
        "said": said,
        "console_errors": complaints,
        **usage,
    }


def _drag(page: Any, plot: str, *corners: tuple[float, float]) -> None:
    """Draw a rectangle on a plot with the mouse."""
    places = [page.evaluate(PLACE, [plot, *corner]) for corner in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()
