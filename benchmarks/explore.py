"""Time the responses of the explorer, on 100,000 simulated cells.

    python benchmarks/explore.py [--cells 100000] [--genes 2000] [--folder DIR]

DIR is created if necessary and holds the files that the explorer reads of a run. Its model is
trained for one epoch on 5,000 of the cells, because the time of a query does not depend on the fit.
Its map is two latent dimensions, and its cells are of eight samples. "gate" is the whole response of
the server: membership, counts, populations by sample, and the images of all open plots. "dragging" is
the response to one movement of the mouse while a gate is moved. "start" is the work in the background
before the first comparison. The table has wall-clock and processor seconds of all threads, which
distinguishes a busy machine from a slow program. `results/explore.md` gets a table for each number of
cells, and keeps those of other numbers.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mudata
import numpy as np
from bokeh.document import Document

from totalvi.data.simulate import simulate
from totalvi.explorer.app import Explorer
from totalvi.explorer.comparer import MOST_CELLS
from totalvi.explorer.workspace import open_workspace
from totalvi.model import Model

RESULTS = Path(__file__).parent / "results" / "explore.md"
LASSO_CORNERS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "totalvi-explore-benchmark"
    )
    given = parser.parse_args()
    if not given.folder.exists():
        make_folder(given.folder, given.cells, given.genes)
    workspace = open_workspace(given.folder)
    comparer = workspace.comparer
    rows = [timed("start: model and counts are loaded, a few cells compared", comparer.warm_up)]
    page = Explorer(Document(), workspace)
    page.compare = lambda: None  # type: ignore[method-assign]  # timed by itself, below
    page.plots.view.samples.value = "sample"
    first = page.plots.cards[0].choice
    proteins = [page.choices.tidy[str(name)] for name in workspace.cells.protein_names[:4]]
    pairs = (proteins[:2], proteins[1:3], proteins[2:4])
    page.plots._show_choices([first, *(first._replace(x=x, y=y) for x, y in pairs)])
    page.refresh()
    for size in (0.5, 1.0, 2.0, 3.0):
        for card in page.plots.open_cards[:2]:
            plot = card.plot
            corners = circle(plot.places, size)

            def draw(plot=plot, corners=corners) -> None:
                page.add_gate(plot, "lasso", corners)

            sentence = f"gate: lasso of {LASSO_CORNERS} corners, {plot.figure.name} plot"
            row = timed(sentence, draw)
            n_inside = int(page._inside[page.history.now.names[-1]].sum())
            rows.append((f"{row[0]}, {n_inside:,} cells inside", *row[1:]))
    rows += edits(page)
    # the gate nearest to half of the cells, so that as many as ever are compared
    masks = [page._inside[name] for name in page.history.now.names]
    inside = min(masks, key=lambda mask: abs(mask.mean() - 0.5))
    for _ in range(2):
        sentence = f"comparison: at most {MOST_CELLS:,} of {inside.sum():,} and {(~inside).sum():,}"
        rows.append(timed(f"{sentence} cells", lambda: comparer.compare(inside, ~inside)))
    workspace.executor.shutdown()
    text = report(workspace.cells.n_cells, len(workspace.cells.gene_names), rows)
    RESULTS.write_text(joined(text, workspace.cells.n_cells), encoding="utf-8")
    print(text)


def edits(page: Explorer) -> list[tuple[str, float, float]]:
    """Time edits of the last gate but one and other views, with all gates drawn before."""
    plot, selected = page.plots[0], page.history.now.names[-2]
    corners = page.history.now[selected].vertices
    page.plots.view.shapes.active = 1  # Edit
    page.select(selected)
    middle = tuple(np.mean(corners, axis=0))
    to = (middle[0] + 0.3, middle[1])
    page.dragged(plot, "start", middle)
    rows = [timed("dragging: one movement of the mouse", lambda: page.dragged(plot, "on", to))]
    rows.append(timed("gate: moved, with all numbers", lambda: page.dragged(plot, "end", to)))
    card = page.plots.cards[1]

    def to_histogram() -> None:
        card.y.value = "histogram"

    rows.append(timed("a plot becomes histograms of eight samples", to_histogram))

    def to_contours() -> None:
        page.plots.cards[2].style.value = "contours"

    rows.append(timed("a plot becomes contours", to_contours))
    rows.append(timed("all steps of a gate are backgated", page.backgate))
    return rows


def make_folder(folder: Path, n_cells: int, n_genes: int) -> None:
    """Write what the explorer reads of a run."""
    data = simulate(n_cells=n_cells, n_genes=n_genes, n_proteins=30, n_isotype_controls=0, seed=0)
    model = Model(data[:5000].copy(), seed=0)
    model.train(max_epochs=1)
    proteins = list(data["prot"].var_names)
    _, denoised = model.get_normalized_expression(data, gene_list=[], protein_list=proteins)
    data["prot"].layers["denoised"] = denoised.to_numpy(np.float32)
    data.obs["sample"] = np.random.default_rng(0).choice([f"s{i}" for i in range(8)], n_cells)
    data.obsm["X_umap"] = model.get_latent_representation(data)[:, :2]
    folder.mkdir(parents=True)
    with mudata.set_options(pull_on_update=False):
        data.write(folder / "results.h5mu")
    model.save(folder / "model.totalvi")


def circle(places: tuple[np.ndarray, np.ndarray], size: float) -> tuple[tuple[float, float], ...]:
    """Return corners around the middle of the cells, ``size`` standard deviations away."""
    angle = np.linspace(0, 2 * np.pi, LASSO_CORNERS, endpoint=False)
    (x, y), (across, up) = ([np.median(p) for p in places], [size * p.std() for p in places])
    return tuple((float(x + across * np.cos(a)), float(y + up * np.sin(a))) for a in angle)


def timed(what: str, work: Callable[[], object]) -> tuple[str, float, float]:
    """Return a name, and the seconds of the wall clock and of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    row = what, time.perf_counter() - wall, time.process_time() - cpu
    print(*row, flush=True)
    return row


def joined(section: str, n_cells: int) -> str:
    """Return the results with this section in place of that of as many cells."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    found = re.split(r"^(?=## )", old, flags=re.MULTILINE)[1:]
    sections = {int(re.sub(r"\D", "", part.splitlines()[0])): part.strip() for part in found}
    sections[n_cells] = section
    head = "# Explorer\n\nThe goals are 0.5 s for a gate and 10 s for a comparison, on 2 cores.\n\n"
    return head + "\n\n".join(sections[number] for number in sorted(sections)) + "\n"


def report(n_cells: int, n_genes: int, rows: list[tuple[str, float, float]]) -> str:
    """Return the table as Markdown."""
    lines = [f"| {what} | {wall:.2f} | {cpu:.2f} |" for what, wall, cpu in rows]
    head = [
        f"## {n_cells:,} cells", "",
        f"`python benchmarks/explore.py --cells {n_cells} --genes {n_genes}`, four plots open.", "",
        "| what | seconds | processor seconds |", "|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*head, *lines])


if __name__ == "__main__":
    main()
