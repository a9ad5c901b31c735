"""`totalvi explore`: gates and what they hold, in a browser."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer


def explore(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `totalvi run` wrote.", show_default=False)
    ],
    gates: Annotated[
        Path | None,
        typer.Option(
            "--gates", metavar="FILE", help="Gates to start with; default: those saved in DIR."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Port to listen on; default: 5006 or the next free one.",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.")
    ] = False,
) -> None:
    """Look at the cells of a run, gate them, and see what sets them apart.

    Opens a page in your browser. It is served on this machine only, to whoever has the address
    that is printed. Ctrl-C stops it; gates that were not saved are then kept in
    DIR/gates_unsaved.json, and offered when it is started again.

    \b
    Examples:
      totalvi explore totalvi-demo
      totalvi explore results --gates other_results/gates.json
      totalvi explore results --no-browser --port 8000    # at the far end of an SSH tunnel
    """
    from totalvi.view.explorer.server import open_in_browser, serving
    from totalvi.view.explorer.workspace import open_workspace

    workspace = open_workspace(folder, gates)
    for note in workspace.notes:
        typer.echo(f"note: {note}")
    try:
        with serving(workspace, port) as server:
            n_cells, n_gates = workspace.cells.n_cells, len(workspace.saved.gates)
            typer.echo(f"{folder}: {n_cells:,} cells, {n_gates} gates")
            typer.echo(f"open     {server.url}")
            typer.echo("to stop  press Ctrl-C here")
            if workspace.unsaved():
                typer.echo("note: gates of an earlier visit were not saved; the page offers them")
            opening = nullcontext() if no_browser else open_in_browser(server.url, folder)
            with opening:
                server.run()
    finally:  # a terminated server keeps them as well
        for kept in workspace.keep_unsaved():
            typer.echo(f"gates that were not saved: {kept}")
    typer.echo("stopped")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `totalvi run` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.html", help="File to write; default: DIR/report.html."
        ),
    ] = None,
) -> None:
    """Make the report of a run anew, and print its path.

    The report is one HTML file that opens in a browser without a network.

    \b
    Examples:
      totalvi report results
      totalvi report results -o for_the_lab.html
    """
    from totalvi.view.report.build import build_report

    typer.echo(build_report(folder, output))
