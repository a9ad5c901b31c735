"""`totalvi train`, `denoise` and `de`: the parts of a run, one at a time."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from totalvi.cli import options
from totalvi.cli.options import Reading, that_reads
from totalvi.errors import DataWarning
from totalvi.processes import this_process

Counts = Annotated[
    str | None,
    typer.Argument(
        metavar="[INPUT]", help="Counts of the cells asked about; default: those of the run."
    ),
]


@that_reads
def train(
    input: options.Input,
    reading: Reading,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="New folder for the model.")
    ],
    batch: options.Batch = None,
    panel: options.Panel = None,
    labels: options.Labels = None,
    covariate: options.Covariates = None,
    continuous_covariate: options.ContinuousCovariates = None,
    genes: Annotated[int, typer.Option("--genes", min=1, help="Variable genes to keep.")] = 4000,
    epochs: options.Epochs = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=3,
            help="Cells in a minibatch of all processes; default: 128 or 256.",
        ),
    ] = None,
    seed: options.Seed = 0,
    on_disk: Annotated[
        bool,
        typer.Option(
            "--on-disk",
            help="Read counts some cells at a time, for data larger than memory; INPUT is .h5ad, "
            ".h5mu or .zarr.",
        ),
    ] = False,
    devices: options.Devices = None,
    num_nodes: options.NumNodes = 1,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    checkpoint_every: options.CheckpointEvery = 10,
    size_factor: options.SizeFactor = None,
    keep_isotypes: options.KeepIsotypes = False,
) -> None:
    """Fit a model to raw counts and save it, without the rest of `run`.

    \b
    Examples:
      totalvi train cells.h5mu -o pbmc.totalvi --batch donor
      totalvi train cells.h5mu -o pbmc.totalvi --batch donor --resume
      totalvi train cells.zarr -o atlas.totalvi --on-disk --devices 4 --batch-size 1024
    """
    from totalvi.cli.options import keeping
    from totalvi.data.finding import counted
    from totalvi.run.commands import train_model

    keys = reading.columns(
        batch_key=batch,
        panel_key=panel,
        labels_key=labels,
        size_factor_key=size_factor,
        categorical_covariate_keys=tuple(covariate or ()),
        continuous_covariate_keys=tuple(continuous_covariate or ()),
        isotype_controls=() if keep_isotypes else None,
    )
    with keeping(output):
        trained = train_model(
            input,
            output,
            keys,
            reading.options(),
            unmeasured=reading.unmeasured,
            n_genes=genes,
            max_epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            on_disk=on_disk,
            devices=devices,
            num_nodes=num_nodes,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=timedelta(minutes=checkpoint_every),
        )
    if this_process().rank:
        return
    for kind, messages in (("note", trained.notes), ("warning", trained.warnings)):
        for message in messages:
            typer.echo(f"{kind}: {message}")
    history = trained.model.history["validation_loss"]
    typer.echo(f"{counted(len(history), 'epoch')}, held-out loss {history.min():,.1f} per cell")
    typer.echo(f"written: {output}")


@that_reads
def denoise(
    model: options.ModelPath,
    reading: Reading,
    input: Counts = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="New .h5mu or .zarr.")
    ] = Path("denoised.h5mu"),
    transform_batch: Annotated[
        list[str] | None,
        options.text(
            "--as-batch", "NAME", "Decode all cells as if from this batch; of several the average."
        ),
    ] = None,
    impute: Annotated[
        bool,
        typer.Option(
            "--impute-unmeasured",
            help="Write what the model expects of proteins that a cell's panel lacks, in place of NaN.",
        ),
    ] = False,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Posterior samples.")] = 25,
    seed: options.Seed = 0,
    devices: options.Devices = None,
    num_nodes: options.NumNodes = 1,
    overwrite: options.Overwrite = False,
) -> None:
    """Write denoised counts: RNA scaled to 10,000 per cell, and proteins without background.

    \b
    Examples:
      totalvi denoise results -o denoised.h5mu
      totalvi denoise pbmc.totalvi cells.h5mu -o denoised.zarr --as-batch donor_1
      totalvi denoise atlas.totalvi cells.zarr -o denoised.zarr --devices 4
    """
    from totalvi.run.commands import denoise as write

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        path = write(
            model,
            input,
            output,
            reading=reading.of(),
            transform_batch=transform_batch or None,
            unmeasured="impute" if impute else "nan",
            n_samples=samples,
            seed=seed,
            devices=devices,
            num_nodes=num_nodes,
            overwrite=overwrite,
        )
    if this_process().rank == 0:
        for warning in caught:
            if isinstance(warning.message, DataWarning):
                typer.echo(f"warning: {warning.message}")
        typer.echo(f"written: {path}")


@that_reads
def de(
    model: options.ModelPath,
    reading: Reading,
    input: Counts = None,
    groupby: Annotated[
        str, options.text("--groupby", "KEY", "Column of obs with the groups.")
    ] = "leiden_totalvi",
    group: Annotated[
        str | None, options.text("--group", "NAME", "Only this group; default: each.")
    ] = None,
    against: Annotated[
        str | None, options.text("--against", "NAME", "The other group; default: all the rest.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="New .csv file.")
    ] = Path("differential_expression.csv"),
    delta: Annotated[
        float, options.number("--delta", 0.0, 100, "Smallest log2 fold change of interest.")
    ] = 0.25,
    fdr: Annotated[
        float, options.number("--fdr", 0.001, 0.999, "Expected false discovery rate.")
    ] = 0.05,
    batch_correction: Annotated[
        bool, typer.Option("--batch-correction", help="Decode both groups into the same batches.")
    ] = False,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare genes and proteins between groups of cells, from the model's posterior.

    \b
    Examples:
      totalvi de results -o clusters.csv
      totalvi de pbmc.totalvi cells.h5mu --groupby cell_type --group B --against NK -o b_nk.csv
    """
    from totalvi.run.commands import compare

    table = compare(
        model,
        input,
        output,
        reading=reading.of(),
        groupby=groupby,
        group=group,
        against=against,
        delta=delta,
        fdr_target=fdr,
        batch_correction=batch_correction,
        seed=seed,
        overwrite=overwrite,
    )
    called = [column for column in table if str(column).startswith("is_de")]
    found = int(table[called[0]].sum()) if called else 0
    typer.echo(f"{len(table):,} rows, {found:,} called at a false discovery rate of {fdr:g}")
    typer.echo(f"written: {output}")
