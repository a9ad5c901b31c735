"""`totalvi run` and `totalvi demo`: write a folder of results from counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from totalvi.cli import options
from totalvi.cli.options import Reading, keeping, that_reads
from totalvi.errors import IncompleteError, TotalviError

if TYPE_CHECKING:
    from totalvi.run.folder import RunResult

DEMO_EPOCHS = 60  # enough for these data

REPEATED = {
    *("input", "raw", "protein", "output", "record"),
    *("overwrite", "resume", "checkpoint_every", "as_json"),
}
"""Options of a run that can be given with ``--from``."""


@that_reads
def run(
    context: typer.Context,
    output: options.Output,
    reading: Reading,
    input: options.InputOfRun = None,
    raw: options.RawPath = None,
    batch: options.Batch = None,
    panel: options.Panel = None,
    labels: options.Labels = None,
    size_factor: options.SizeFactor = None,
    covariate: options.Covariates = None,
    continuous_covariate: options.ContinuousCovariates = None,
    genes: Annotated[
        int, typer.Option("--genes", min=1, help="Number of highly variable genes to use.")
    ] = 4000,
    epochs: options.Epochs = None,
    resolution: Annotated[
        float, options.number("--resolution", 0.01, 1000, "Of the clusters; higher gives more.")
    ] = 1.0,
    seed: options.Seed = 0,
    split_counts: Annotated[
        bool,
        typer.Option(
            "--split-counts",
            help="Find clusters in one half of the counts, and test markers and differential "
            "expression on the other; else clusters that cut one population have false markers.",
        ),
    ] = False,
    on_disk: Annotated[
        bool,
        typer.Option(
            "--on-disk",
            help="Read counts some cells at a time, for data larger than memory; INPUT is .h5ad, "
            ".h5mu or .zarr. Writes results.zarr, without denoised RNA.",
        ),
    ] = False,
    sample: options.Sample = None,
    condition: options.Condition = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    checkpoint_every: options.CheckpointEvery = 10.0,
    record: Annotated[
        Path | None, options.text("--from", "run.json", "Repeat the run that wrote this.")
    ] = None,
    refuse_empty_cells: options.RefuseEmptyCells = False,
    keep_isotypes: options.KeepIsotypes = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of the run as JSON.")
    ] = False,
) -> None:
    """Fit a model to raw counts and write a folder of results.

    Checks the counts, selects genes, fits the model, clusters the cells, and writes denoised
    counts, tables, figures, the model and a report. The folder appears at the end. Until then the fit
    is kept in DIR.checkpoint. SIGINT (Ctrl-C) and SIGTERM end it after a step, with exit status 130 and
    143, and --resume resumes it to the same results. If a step after the fit fails, the folder holds
    everything else, the exit status is 1, and --resume completes the results.

    \b
    Examples:
      totalvi run filtered_feature_bc_matrix.h5 -o results
      totalvi run cells.h5mu -o results --batch donor
      totalvi run cells.h5mu -o results --batch lane --sample donor --condition treatment
      totalvi run rna.csv --protein adt.csv -o results
      totalvi run filtered_feature_bc_matrix.h5 --raw raw_feature_bc_matrix.h5 -o results
      totalvi run cells.h5mu -o results --batch donor --resume
      totalvi run --from results/run.json -o again
      totalvi run million_cells.h5ad -o results --on-disk
    """
    from totalvi.run.run import repeat
    from totalvi.run.run import run as run_pipeline

    every = timedelta(minutes=checkpoint_every)
    if record is not None:
        _refuse_others_than_repeated(context)
        with keeping(output), reporting_what_is_there(output):
            result = repeat(
                record,
                output,
                input=input,
                raw=options.raw_paths(raw),
                protein_path=reading.arguments["protein_path"],
                overwrite=overwrite,
                resume=resume,
                checkpoint_every=every,
            )
        _finish(result, as_json)
        return
    if input is None:
        raise typer.BadParameter("INPUT is missing; give a file of counts, or --from run.json.")
    with keeping(output), reporting_what_is_there(output):
        result = run_pipeline(
            input,
            output,
            raw=options.raw_paths(raw),
            **reading.arguments,
            **reading.where,
            unmeasured=reading.unmeasured,
            batch_key=batch,
            panel_key=panel,
            labels_key=labels,
            size_factor_key=size_factor,
            categorical_covariate_keys=covariate or (),
            continuous_covariate_keys=continuous_covariate or (),
            n_genes=genes,
            max_epochs=epochs,
            resolution=resolution,
            seed=seed,
            split_counts=split_counts,
            on_disk=on_disk,
            sample_key=sample,
            condition_key=condition,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=every,
            drop_empty_cells=not refuse_empty_cells,
            isotype_controls=() if keep_isotypes else None,
        )
    _finish(result, as_json)


def demo(
    output: options.Output = Path("totalvi-demo"),
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
) -> None:
    """Run everything on simulated counts.

    Simulates 2,000 cells with 500 genes and 20 proteins in 2 batches, and does the same with
    them as `totalvi run`. Needs no internet connection.

    \b
    Example:
      totalvi demo -o totalvi-demo
    """
    from totalvi.data.simulate import simulate
    from totalvi.run.run import run as run_pipeline

    data = simulate(n_cells=2000, n_genes=500, n_proteins=20, n_batches=2, seed=seed)
    with keeping(output), reporting_what_is_there(output):
        result = run_pipeline(
            data,
            output,
            batch_key="batch",
            labels_key="cell_type",
            max_epochs=DEMO_EPOCHS,
            seed=seed,
            overwrite=overwrite,
            resume=resume,
        )
    _finish(result)


@contextmanager
def reporting_what_is_there(output: Path) -> Iterator[None]:
    """Build the report of a run even if some of its steps failed; the report names them."""
    try:
        yield
    except IncompleteError as error:
        try:
            _report(output)
        except IncompleteError as report_error:
            raise IncompleteError(f"{error} {report_error}") from error
        raise


def _report(folder: Path) -> Path:
    """Build the report of a run."""
    from totalvi.run.record import named
    from totalvi.view.report.build import build_report

    try:
        return build_report(folder)
    except (OSError, TotalviError):
        raise
    except Exception as error:
        raise IncompleteError(
            f"report.html failed ({named(error)}); all else is in {folder}, and the "
            "same command with --resume makes what is missing."
        ) from error


def _refuse_others_than_repeated(context: typer.Context) -> None:
    """Refuse options beside ``--from`` that would change the run."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name not in REPEATED and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"{parameter.opts[0]} was given with --from, which repeats a run as it was; leave "
                "it out."
            )


def _finish(result: RunResult, as_json: bool = False) -> None:
    """Build the report of a run whose folder is in place, and print a summary."""
    report, record = _report(result.folder), result.record
    if as_json:
        folder = {"folder": str(result.folder.absolute())}
        typer.echo(json.dumps(folder | record, ensure_ascii=False, allow_nan=False))
        return
    typer.echo(
        f"{record['cells']:,} cells, {record['genes']:,} genes, {record['proteins']:,} proteins: "
        f"{record['clusters']} clusters, held-out loss {record['held_out_loss_per_cell']:,.1f} "
        f"per cell, {sum(record['seconds'].values()):,.0f} s"
    )
    options.list_written(result, apart=(report.name,))
    typer.echo(f"  {report}  (open it in a browser)")
