"""`totalvi join`: one file of the counts of several samples."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from totalvi.cli import options


def join(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Counts of each sample: a file or folder that `totalvi check` reads without options.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="FILE.h5mu to write.")
    ],
    names: Annotated[
        str | None,
        options.text(
            "--names", "NAME,NAME,...", "Of the samples, in order; default: where paths differ."
        ),
    ] = None,
    sample: Annotated[
        str, options.text("--sample", "KEY", "Column of obs for the names of the samples.")
    ] = "sample",
    all_genes: Annotated[
        bool,
        typer.Option(
            "--all-genes",
            help="Keep genes of any input, 0 where one lacks them; else those that all have.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Join the counts of several samples, such as donors, into one file.

    Panels of antibodies may differ: a protein that a sample did not measure is missing there, not 0,
    and names of one antigen are joined. The names of the samples are in a column of obs.

    \b
    Examples:
      totalvi join donor_1/outs donor_2/outs -o cells.h5mu
      totalvi join a.h5 b.h5 -o cells.h5mu --names healthy,treated
      totalvi run cells.h5mu -o results --batch sample
    """
    from totalvi.run.folder import staged_file
    from totalvi.run.join import join_files

    listed = None if names is None else [name.strip() for name in names.split(",")]
    with staged_file(output, suffix=".h5mu", overwrite=overwrite) as staged:
        joined = join_files(inputs, listed, sample, "outer" if all_genes else "inner")
        joined.write(staged)
    tables = joined.uns["concat"]
    for name, row in tables["data_sets"].iterrows():
        typer.echo(f"{name}: {row['n_cells']:,} cells, {row['n_proteins']} proteins")
    typer.echo(f"joined: {joined['rna'].n_vars:,} genes, {joined['prot'].n_vars} proteins")
    typer.echo(output)
    command = ["totalvi", "run", str(output), "-o", "results", "--batch", sample]
    typer.echo(f"next: {shlex.join(command)}")
