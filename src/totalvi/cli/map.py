"""`totalvi map`: new cells on a fitted model."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from totalvi.cli import options
from totalvi.cli.keeping import keeping
from totalvi.cli.wording import with_options


def map_cells(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model folder, or folder of `totalvi run`.")
    ],
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="Raw counts of the new cells; RNA alone will do."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="New folder for the results.")
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="PATH",
            help="Counts that the model was fitted to; default: results.h5mu (or .zarr) beside it.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="KEY",
            help="Column of the reference with labels; default: leiden_totalvi, if there.",
        ),
    ] = None,
    batch: options.Batch = None,
    reference_batch: Annotated[
        str | None,
        typer.Option(
            "--reference-batch",
            metavar="NAME",
            help='Batch of the reference to start from, or "average"; default: the nearest.',
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Fit the weights of the query's batches (surgery).")
    ] = False,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    checkpoint_every: options.CheckpointEvery = 10.0,
) -> None:
    """Lay new cells on a fitted model, which is not changed.

    Writes cells.csv.gz (label with its probability, how unlike the reference the cell is, latent
    state), label_probabilities.csv.gz, where the query lacks proteins imputed_proteins.csv.gz and how
    far they can be trusted (reliability.csv), the model of the query, and run.json. An interrupted
    --train is kept in DIR.checkpoint, from which --resume goes on.

    \b
    Examples:
      totalvi map results new_cells.h5 -o mapped
      totalvi map pbmc.totalvi rna.h5ad -o mapped --reference pbmc.h5mu --labels cell_type --train
    """
    from totalvi.analysis.map import map_files

    with warnings.catch_warnings(record=True) as caught, keeping(output):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="The (query|reference model) ")
        record = map_files(
            model,
            query,
            output,
            reference=reference,
            labels=labels,
            batch_key=batch,
            reference_batch=reference_batch,
            train=train,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=timedelta(minutes=checkpoint_every),
        )
    for said in caught:
        typer.echo(f"warning: {said.message}")
    typer.echo(record["summary"])
    for note in record["notes"]:
        typer.echo(f"note: {with_options(note)}")
    typer.echo(f"written: {output}")
