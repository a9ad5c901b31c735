"""Hooks of MkDocs: pages from outside docs/, links to them, the tutorials, and the page of commands.

Files of docs/ link to each other, to files at the root and to benchmarks by relative paths, which work
on a code host. The site has its pages in other places, so the links are changed while it is built.
With TOTALVI_TUTORIALS=short in the environment, the tutorials run in their short form.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.command_pages import commands_page
from tools.tutorial_pages import tutorial_files

ROOT = Path(__file__).parents[1]
AT_THE_ROOT = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "workflows/nextflow/README.md": "workflows/nextflow.md",
    "workflows/snakemake/README.md": "workflows/snakemake.md",
    "workflows/viash/README.md": "workflows/viash.md",
}
RESULT = re.compile(r"(?<!\[)`(?:results/)?(\w+\.md)`")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def _elsewhere() -> dict[str, str]:
    """Return the place in the site of each file outside docs/ that has one."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    paths = [path.relative_to(ROOT).as_posix() for path in results]
    return AT_THE_ROOT | {path: path for path in paths}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, place in _elsewhere().items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    short = os.environ.get("TOTALVI_TUTORIALS") == "short"
    for place, content in tutorial_files(short=short):
        written = files.get_file_from_path(place)
        if written is not None:  # a script, which readers get without remarks of the short form
            files.remove(written)
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Change links between files of the repository into links between pages of the site."""
    elsewhere = _elsewhere()
    sources = {place: source for source, place in elsewhere.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def moved(link: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(folder, link[2]))
        place = elsewhere.get(source)
        if place is None and source.startswith("docs/") and (ROOT / source).is_file():
            place = source.removeprefix("docs/")
        if place is None:
            return link[0]  # of the site already, or broken, which MkDocs says
        relative = posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{link[1]}{relative}{link[3] or ''}{link[4]}"

    if here == "benchmarks/index.md":  # its table names the pages of results
        markdown = RESULT.sub(lambda named: _with_link(named[0], named[1]), markdown)
    return LINK.sub(moved, markdown)


def _with_link(written: str, name: str) -> str:
    """Return the name of a page of results as a link, if there is such a page."""
    place = f"results/{name}"
    return f"[{written}]({place})" if (ROOT / "benchmarks" / place).is_file() else written
