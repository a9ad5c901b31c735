"""`totalvi simulate`: counts with known truth."""

from contextlib import ExitStack
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
    ubiquitous: Annotated[
        int, typer.Option("--ubiquitous", min=0, help="Proteins that every cell type carries.")
    ] = 0,
    foreground_factor: Annotated[
        float,
        typer.Option(
            "--foreground-factor",
            min=3,
            max=1e6,
            callback=options.a_number,
            help="Foreground over background of the median protein.",
        ),
    ] = 30.0,
    raw: Annotated[
        Path | None,
        typer.Option(
            "--raw", metavar="RAW.h5mu", help="Also write the raw matrix, with empty droplets."
        ),
    ] = None,
    empty: Annotated[int, typer.Option("--empty", min=1, help="Empty droplets in it.")] = 2000,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Simulate counts with known truth.

    Draws paired RNA and protein counts from the model's own generative process: cell types,
    batches, ambient background and library sizes, with the truth stored beside them.

    \b
    Examples:
      totalvi simulate -o simulated.h5mu --cells 5000 --batches 2
      totalvi simulate -o simulated.h5mu --raw raw.h5mu --ubiquitous 5 --foreground-factor 10
      totalvi simulate -o simulated.zarr --cells 1000000 --genes 4000 --proteins 30
    """
    from totalvi.analysis.output import staged_file
    from totalvi.data.simulate import simulate as simulate_counts
    from totalvi.data.simulate import simulate_to_zarr
    from totalvi.data.simulate_droplets import simulate_raw
    from totalvi.errors import DataError, OutputError

    if raw is not None and raw.resolve() == output.resolve():
        raise OutputError(f"--raw {raw} is the file of --output: give another name")
    if output.suffix == ".zarr":
        if unmeasured or raw is not None:
            option = f"--unmeasured {unmeasured}" if unmeasured else f"--raw {raw}"
            raise DataError(f"{option} needs all cells in memory: write .h5mu")
        simulate_to_zarr(
            output,
            n_cells=cells,
            n_genes=genes,
            n_proteins=proteins,
            n_batches=batches,
            n_cell_types=cell_types,
            n_ubiquitous=ubiquitous,
            median_foreground_factor=foreground_factor,
            seed=seed,
            overwrite=overwrite,
        )
        typer.echo(output)
        return
    with ExitStack() as files:
        staged = files.enter_context(staged_file(output, suffix=".h5mu", overwrite=overwrite))
        if raw is not None:
            staged_raw = files.enter_context(staged_file(raw, suffix=".h5mu", overwrite=overwrite))
        simulated = simulate_counts(
            n_cells=cells,
            n_genes=genes,
            n_proteins=proteins,
            n_batches=batches,
            n_cell_types=cell_types,
            n_unmeasured=unmeasured,
            n_ubiquitous=ubiquitous,
            median_foreground_factor=foreground_factor,
            seed=seed,
        )
        if raw is not None:
            simulate_raw(simulated, empty, seed=seed).write(staged_raw)
        simulated.write(staged)
    typer.echo(output)
    if raw is not None:
        typer.echo(raw)
