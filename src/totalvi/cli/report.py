"""`totalvi report`: the report of a run, made anew."""

from pathlib import Path
from typing import Annotated

import typer


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
    from totalvi.report.build import build_report

    typer.echo(build_report(folder, output))
