"""`totalvi simulate`: counts with known truth."""

from pathlib import Path
from typing import Annotated

import typer

from totalvi.cli import options


def simulate(
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="FILE.h5mu; or FILE.zarr, for any number of cells, without the truth of each.",
        ),
    ],
    cells: Annotated[int, typer.Option("--cells", min=1)] = 2000,
    genes: Annotated[int, typer.Option("--genes", min=1)] = 500,
    proteins: Annotated[int, typer.Option("--proteins", min=1)] = 20,
    batches: Annotated[int, typer.Option("--batches", min=1)] = 1,
    cell_types: Annotated[int, typer.Option("--cell-types", min=1)] = 6,
    unmeasured: Annotated[
        int, typer.Option("--unmeasured", min=0, help="Proteins that the last batch lacks.")
    ] = 0,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Simulate counts with known truth.

    Draws paired RNA and protein counts from the model's own generative process: cell types,
    batches, ambient background and library sizes, with the truth stored beside them.

    \b
    Examples:
      totalvi simulate -o simulated.h5mu --cells 5000 --batches 2
      totalvi simulate -o simulated.zarr --cells 1000000 --genes 4000 --proteins 30
    """
    from totalvi.analysis.output import staged_file
    from totalvi.data.simulate import simulate as simulate_counts
    from totalvi.data.simulate import simulate_to_zarr
    from totalvi.errors import DataError

    if output.suffix == ".zarr":
        if unmeasured:
            raise DataError(f"unmeasured={unmeasured} needs all cells in memory: write .h5mu")
        simulate_to_zarr(
            output,
            n_cells=cells,
            n_genes=genes,
            n_proteins=proteins,
            n_batches=batches,
            n_cell_types=cell_types,
            seed=seed,
            overwrite=overwrite,
        )
        typer.echo(output)
        return
    with staged_file(output, suffix=".h5mu", overwrite=overwrite) as staged:
        simulate_counts(
            n_cells=cells,
            n_genes=genes,
            n_proteins=proteins,
            n_batches=batches,
            n_cell_types=cell_types,
            n_unmeasured=unmeasured,
            seed=seed,
        ).write(staged)
    typer.echo(output)
