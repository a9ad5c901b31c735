"""Pages in headless Chromium, for tests that look at what a reader sees."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@contextmanager
def browser() -> Iterator:
    """Give a headless Chromium, which needs no network; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium, such as of the Debian package chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as started:
        # Root may not start Chromium in its sandbox.
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def watch(page) -> list[str]:
    """Return a list that gets every error and warning that the page says from now on."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "console",
        lambda message: said.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("request", lambda asked: said.append(asked.url) if asked.url[:4] == "http" else None)
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    return said


def opened_page(chromium, path: Path, width: int) -> tuple:
    """Open a report, and return the page when it is ready, and what it says."""
    page = chromium.new_page(viewport={"width": width, "height": 900})
    said = watch(page)
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    return page, said
