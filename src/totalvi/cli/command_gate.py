"""`totalvi gate`: named populations of the cells of a fitted model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from totalvi.cli import options
from totalvi.cli.options import Reading, with_options

Hierarchy = Annotated[
    str,
    options.text(
        "--hierarchy",
        "NAME|FILE",
        "Populations that cells are named by: blood, bone_marrow, tonsil, mouse_spleen, a text file, "
        "or none; auto: as panel and cells suggest.",
    ),
]


@with_options
def gate(
    model: options.ModelPath,
    reading: Reading,
    input: Annotated[
        str | None,
        typer.Argument(
            metavar="[INPUT]", help="Counts of the cells asked about; default: those of the run."
        ),
    ] = None,
    hierarchy: Hierarchy = "auto",
    sample: options.Sample = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="New folder for the tables; default: that of the run.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Posterior samples.")] = 25,
) -> None:
    """Name cells by the gates of a hierarchy of populations, with the probability of each.

    Writes tables of the populations by sample and of each cell's memberships. In the folder of a run it
    replaces those of the run, and names the cells in its results; `totalvi report` then shows them. In
    the folder of `totalvi map` or `impute` it names the cells of the query that was given then.

    \b
    Examples:
      totalvi gate results --hierarchy blood
      totalvi gate results --hierarchy my_gates.txt --sample donor
      totalvi gate mapped --hierarchy blood
      totalvi gate results new_cells.h5mu --hierarchy blood -o populations
    """
    import pandas as pd

    from totalvi.run.gate_folder import gate as name

    folder, table = name(
        model, input, hierarchy, output, reading=reading.of(), sample_key=sample, n_samples=samples
    )
    depth = {"": -1}
    for population, row in table.iterrows():
        depth[str(population)] = depth[row["parent"]] + 1
        label = "  " * depth[str(population)] + str(population)
        wants = f"  wants {row['wanting']}" if row["wanting"] else ""
        told = f"{row['cells']:8,} cells {row['percent_of_cells']:6.1f} %"
        typer.echo(f"{label:24}{'not told'.rjust(23) if pd.isna(row['cells']) else told}{wants}")
    typer.echo(f"hierarchy: {table['hierarchy'].iloc[0]}")
    typer.echo(f"written: {folder}")
    if output is None and (folder / "report.html").exists():
        typer.echo(
            f"note: the report shows the names of before; update it: totalvi report {folder}"
        )
