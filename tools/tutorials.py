"""Run a tutorial and write it as a page, with what its cells print and draw.

A tutorial is a Python script of cells: `# %% [markdown]` begins a text, `# %%` code. A cell shows what
it prints, its warnings, the value of its last expression, and its figures. `python -m tools.tutorials
docs/tutorials/one_sample.py FOLDER` writes `FOLDER/one_sample.md` and its figures.

A line such as `epochs = None  # short: 5` has the other value in the short form (`--short`), in which
the tests run all tutorials; the page shows the line without the remark.
"""

import ast
import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from totalvi.errors import DataWarning

REMARK = re.compile(r"^(\s*\w+ = )(.+?)  # short: (.+)$", re.MULTILINE)
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def as_shown(script: str) -> str:
    """Return a script as readers see and download it, without the remarks of the short form."""
    return REMARK.sub(r"\1\2", script)


def cells_of(script: str) -> Iterator[tuple[bool, str]]:
    """Yield whether a cell is text, and what it holds."""
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = part.partition("\n")
        if "[markdown]" in kind:
            yield True, re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
        else:
            yield False, body.strip()


def page_of(path: Path, folder: Path, *, short: bool = False) -> str:
    """Run a tutorial and return its page; its figures are written to ``folder``."""
    import matplotlib as mpl

    from totalvi.figures.style import PALETTE

    mpl.use("agg")
    mpl.rcParams.update(STYLE | {"axes.prop_cycle": mpl.cycler(color=PALETTE)})
    script = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    parts: list[str] = []
    for is_text, body in cells_of(script):
        if is_text:
            parts.append(body)
            continue
        parts.append(f"```python\n{as_shown(body)}\n```")
        code = REMARK.sub(r"\1\3", body) if short else body
        shown = [*_run(code, names), *_figures(folder, f"{path.stem}_{len(parts)}")]
        if shown:
            parts.append('<div class="output" markdown>\n\n' + "\n\n".join(shown) + "\n\n</div>")
    parts.append(f"[Download this page as a script]({path.name}){{download}}")
    return "\n\n".join(parts) + "\n"


def _run(code: str, names: dict[str, Any]) -> list[str]:
    """Run a cell, and return what it printed and the value of its last expression, in Markdown."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others say of versions and of the machine
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = lambda text, kind, *_, **__: print(f"{kind.__name__}: {text}")
        exec(compile(tree, "<tutorial>", "exec"), names)
        value = None
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<tutorial>", "eval"), names)
    printed = said.getvalue().rstrip()
    return [*([f"```text\n{printed}\n```"] if printed else []), *_shown(value)]


def _shown(value: Any) -> list[str]:
    """Return a value in Markdown: a table as a table, nothing for None and for parts of figures."""
    import pandas as pd

    if isinstance(value, pd.Series):
        value = value.to_frame()
    if isinstance(value, pd.DataFrame):
        table = value.rename_axis(index=[None] * value.index.nlevels).to_html(
            border=0, float_format="{:.3g}".format, max_rows=20
        )
        return [table.replace(' class="dataframe"', "").replace(' style="text-align: right;"', "")]
    if value is None or "matplotlib" in type(value).__module__ or isinstance(value, list):
        return []
    return [f"```text\n{value}\n```"]


def _figures(folder: Path, stem: str) -> Iterator[str]:
    """Write the figures that are open, close them, and yield a link to each."""
    from matplotlib import pyplot as plt

    for number in plt.get_fignums():
        figure = plt.figure(number)
        name = f"{stem}_{number}.png"
        figure.savefig(folder / name)
        titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
        yield f"![{'; '.join(filter(None, titles)) or 'Figure'}]({name})"
        plt.close(figure)


if __name__ == "__main__":
    source, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    target.mkdir(parents=True, exist_ok=True)
    page = page_of(source, target, short="--short" in sys.argv)
    (target / f"{source.stem}.md").write_text(page, encoding="utf-8")
