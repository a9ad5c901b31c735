"""`totalvi convert`: a model from one format to another."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from totalvi.cli import options


def convert(
    input: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="Model of totalvi, or of scvi-tools (its folder or model.pt), or 0.6.x weights.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Model folder to write.")
    ],
    to: Annotated[
        Literal["totalvi", "scvi"] | None,
        typer.Option("--to", help="Format to write; default: the one that INPUT is not in."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.json",
            help="What 0.6.x weights do not say: options, gene_names, protein_names, ...",
        ),
    ] = None,
    allow_fractional: options.AllowFractional = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is there.")
    ] = False,
) -> None:
    """Convert a model to or from scvi-tools.

    Nothing in the files of other packages is run, and scvi-tools need not be installed.

    \b
    Examples:
      totalvi convert scvi_folder -o pbmc.totalvi
      totalvi convert pbmc.totalvi -o scvi_folder --to scvi
    """
    from totalvi.model import Model
    from totalvi.persistence.format import is_model
    from totalvi.persistence.scvi_read import model_of_scvi, read_config

    is_ours = is_model(input)
    to = to or ("scvi" if is_ours else "totalvi")
    if is_ours:
        model = Model.load(input)
    else:
        described = None if config is None else read_config(config)
        model = model_of_scvi(input, described, allow_fractional=allow_fractional)
    save = model.save_scvi if to == "scvi" else model.save
    typer.echo(save(output, overwrite=overwrite))
