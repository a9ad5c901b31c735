"""`totalvi datasets`: public CITE-seq data."""

from pathlib import Path
from typing import Annotated

import typer

datasets = typer.Typer(
    help="List and fetch public CITE-seq data sets.", rich_markup_mode=None, no_args_is_help=False
)


@datasets.callback(invoke_without_command=True)
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_names()


@datasets.command("list")
def list_names() -> None:
    """List the data sets that can be fetched by name.

    \b
    Example:
      totalvi datasets list
    """
    from totalvi.data.datasets import DATASETS

    width = max(len(dataset.name) for dataset in DATASETS)
    for dataset in DATASETS:
        cells = "" if dataset.cells is None else f" ({dataset.cells:,} cells)"
        typer.echo(f"{dataset.name:<{width}}  {dataset.title}{cells}")


@datasets.command("fetch")
def fetch_by_name(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `totalvi datasets` lists it.")],
    folder: Annotated[
        Path | None,
        typer.Option("-o", "--folder", metavar="DIR", help="Where to keep it; default: a cache."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="All barcodes, rather than those called cells.")
    ] = False,
) -> None:
    """Fetch a data set unless it is there already, and print the path of its file.

    \b
    Example:
      totalvi run "$(totalvi datasets fetch pbmc_10k_protein_v3)" -o results
    """
    from totalvi.data.datasets import fetch

    typer.echo(fetch(name, kind="raw" if raw else "filtered", folder=folder))
