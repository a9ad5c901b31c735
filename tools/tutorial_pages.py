"""Run all tutorials, those that changed or whose code changed, and add their pages to the site."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.tutorials import as_shown

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "docs" / "tutorials"
KEPT = ROOT / ".tutorials"  # pages and figures of earlier builds
ORDER = ("one_sample", "ten_donors", "two_panels", "reference", "large_data")


def tutorial_files(*, short: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the place in the site and the content of each page, figure and script."""
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for name, folder in zip(ORDER, executor.map(lambda n: _run(n, short), ORDER), strict=True):
            script = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
            yield f"tutorials/{name}.py", as_shown(script).encode()
            for path in sorted(folder.iterdir()):
                yield f"tutorials/{path.name}", path.read_bytes()


def _run(name: str, short: bool) -> Path:
    """Return the folder with the page of a tutorial, which runs in a process of its own."""
    form = "short" if short else "whole"
    folder = KEPT / f"{name}-{form}-{_key(name)}"
    if (folder / f"{name}.md").is_file():
        return folder
    command = [sys.executable, "-m", "tools.tutorials", str(SCRIPTS / f"{name}.py"), str(folder)]
    one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        command + ["--short"] * short,
        cwd=ROOT,
        env=os.environ | one_thread,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"The tutorial {name} failed:\n{done.stderr}")
    for other in KEPT.glob(f"{name}-{form}-*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def _key(name: str) -> str:
    """Return what changes with the tutorial, with what runs it, and with the code of the package."""
    digest = hashlib.sha256()
    sources = [SCRIPTS / f"{name}.py", ROOT / "tools" / "tutorials.py"]
    for path in [*sources, *sorted((ROOT / "src").rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
