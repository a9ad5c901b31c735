"""`totalvi run`, `train` and `demo`: fit a model to counts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from totalvi import errors
from totalvi.cli import options
from totalvi.cli.command_gate import Hierarchy
from totalvi.cli.options import Arguments, Reading, with_options
from totalvi.processes import this_process
from totalvi.run.first_use import compiling_beside
from totalvi.run.folder import MODEL, RunResult, checkpoint_of, require_writable

DEMO: dict[str, Any] = {
    "batch_key": "donor",
    "labels_key": "cell_type",
    "max_epochs": 60,
}  # enough for these data

REPEATED = {
    *("input", "raw", "protein", "output", "record"),
    *("overwrite", "resume", "checkpoint_every", "as_json"),
}
"""Options of a run that can be given with ``--from``."""


@with_options
def run(
    context: typer.Context,
    output: options.Output,
    reading: Reading,
    annotation: Arguments,
    fitting: Arguments,
    writing: Arguments,
    input: options.InputOfRun = None,
    raw: options.RawPath = None,
    resolution: Annotated[
        float, options.number("--resolution", 0.01, 1000, "Of the clusters; higher gives more.")
    ] = 1.0,
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
    hierarchy: Hierarchy = "auto",
    doublet_rate: options.DoubletRate = None,
    modality_information: options.ModalityInformation = False,
    record: Annotated[
        Path | None, options.text("--from", "run.json", "Repeat the run that wrote this.")
    ] = None,
    refuse_empty_cells: options.RefuseEmptyCells = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of the run as JSON.")
    ] = False,
) -> None:
    """Fit a model to raw counts and write a folder of results.

    Checks the counts, selects genes, fits the model, clusters and names the cells, and writes denoised
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
    if record is not None:
        from totalvi.run.run import repeat

        _refuse_others_than_repeated(context)
        with keeping(output), reporting_what_is_there(output):
            result = repeat(
                record,
                output,
                input=input,
                raw=raw_paths(raw),
                protein_path=reading.arguments["protein_path"],
                **writing,
            )
        _finish(result, as_json)
        return
    if input is None:
        raise typer.BadParameter("INPUT is missing; give a file of counts, or --from run.json.")
    with compiling_beside(), keeping(output), reporting_what_is_there(output):
        from totalvi.run.run import run as run_pipeline  # takes seconds, while loops are compiled

        result = run_pipeline(
            input,
            output,
            raw=raw_paths(raw),
            **reading.arguments,
            **reading.where,
            **annotation,
            unmeasured=reading.unmeasured,
            **fitting,
            resolution=resolution,
            split_counts=split_counts,
            on_disk=on_disk,
            sample_key=sample,
            condition_key=condition,
            hierarchy=hierarchy,
            doublet_rate=doublet_rate,
            modality_information=modality_information,
            **writing,
            drop_empty_cells=not refuse_empty_cells,
        )
    _finish(result, as_json)


@with_options
def train(
    input: options.Input,
    reading: Reading,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="New folder for the model.")
    ],
    annotation: Arguments,
    fitting: Arguments,
    writing: Arguments,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=3,
            help="Cells in a minibatch of all processes; default: 128 or 256.",
        ),
    ] = None,
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
) -> None:
    """Fit a model to raw counts and save it, without the rest of `run`.

    \b
    Examples:
      totalvi train cells.h5mu -o pbmc.totalvi --batch donor
      totalvi train cells.h5mu -o pbmc.totalvi --batch donor --resume
      totalvi train cells.zarr -o atlas.totalvi --on-disk --devices 4 --batch-size 1024
    """
    from totalvi.run.commands import train_model

    with keeping(output):
        trained = train_model(
            input,
            output,
            reading.columns(**annotation),
            reading.options(),
            unmeasured=reading.unmeasured,
            **fitting,
            batch_size=batch_size,
            on_disk=on_disk,
            devices=devices,
            num_nodes=num_nodes,
            **writing,
        )
    if this_process().rank:
        return
    for kind, messages in (("note", trained.notes), ("warning", trained.warnings)):
        for message in messages:
            typer.echo(f"{kind}: {message}")
    history = trained.model.history["validation_loss"]
    typer.echo(
        f"{errors.counted(len(history), 'epoch')}, held-out loss {history.min():,.1f} per cell"
    )
    typer.echo(f"written: {output}")


def demo(
    output: options.Output = Path("totalvi-demo"),
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
) -> None:
    """Run everything on simulated human blood.

    Simulates 2,000 cells and doublets of two donors with 500 genes and 20 antibodies, one of which
    failed, and runs `totalvi run` on them. obs["cell_type"] of the results has the truth.

    \b
    Example:
      totalvi demo -o totalvi-demo
    """
    if not resume:
        require_writable(output, overwrite=overwrite)
    said = "The first run on a machine compiles loops for a while before its first epoch."
    typer.echo(f"Fitting simulated blood of two donors; results go to {output}. {said}", err=True)
    with compiling_beside(), keeping(output), reporting_what_is_there(output):
        from totalvi.data.simulate_blood import simulate_blood
        from totalvi.run.run import run as run_pipeline

        data = simulate_blood(2000, seed=seed)
        result = run_pipeline(data, output, **DEMO, seed=seed, overwrite=overwrite, resume=resume)
    _finish(result)


def raw_paths(given: list[str] | None) -> str | dict[str, str] | None:
    """Return the path of the raw matrix, or one for each batch; refuse several without batches.

    Examples
    --------
    >>> raw_paths(["raw.h5"]), raw_paths(["a=raw_a.h5", "b=raw_b.h5"])
    ('raw.h5', {'a': 'raw_a.h5', 'b': 'raw_b.h5'})
    """
    if not given:
        return None
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).exists()):
        return given[0]
    by_batch: dict[str, str] = {}
    for one in given:
        batch, equals, path = one.partition("=")
        if not (equals and batch and path) or batch in by_batch:
            raise errors.ReadError(
                f"--raw {one}: of several raw matrices give each with its batch, --raw BATCH=PATH."
            )
        by_batch[batch] = path
    return by_batch


@contextmanager
def keeping(output: Path) -> Iterator[None]:
    """Print where the fit is kept if a run ends early, and exit with the status of a signal."""
    checkpoint, started = checkpoint_of(output), time.time()
    try:
        yield
    except BaseException as error:
        is_kept = checkpoint.exists() and str(checkpoint) not in str(error)
        if isinstance(error, errors.OutputError):  # perhaps before anything was done
            is_others = isinstance(error, errors.LockedError)
            is_kept = is_kept and not is_others and checkpoint.stat().st_mtime >= started
        if (is_kept or isinstance(error, errors.Interrupted)) and this_process().rank == 0:
            typer.echo(f"the fit is kept in {checkpoint}; go on with --resume.", err=True)
        if isinstance(error, errors.Interrupted):
            raise typer.Exit(128 + error.signal_number) from error
        raise


def list_written(result: RunResult, *, apart: Collection[str] = ()) -> None:
    """Print what the record notes and warns of, and which files there are; of the model its folder."""
    for kind in ("notes", "warnings"):
        for message in result.record[kind]:
            typer.echo(f"{kind.removesuffix('s')}: {message}")
    typer.echo("written:")
    for file in result.files:
        if file.parts[0] not in (MODEL, *apart):
            typer.echo(f"  {result.folder / file}")
    typer.echo(f"  {result.folder / MODEL}")


def compare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `totalvi run` wrote.")],
    sample: Annotated[
        str, options.text("--sample", "KEY", "Column with each cell's sample, such as the donor.")
    ],
    condition: Annotated[
        str, options.text("--condition", "KEY", "Column with the conditions to compare.")
    ],
    groupby: Annotated[
        str, options.text("--groupby", "KEY", "Compare within each category of this column.")
    ] = "leiden_totalvi",
    group: options.Only = None,
    against: Annotated[
        str | None,
        options.text("--against", "NAME", "Condition to compare with; default: the first."),
    ] = None,
    block: Annotated[
        str | None, options.text("--block", "KEY", "Column within which samples are compared.")
    ] = None,
    covariate: Annotated[
        list[str] | None,
        options.text("--covariate", "KEY", "Effect on samples to take out; repeatable."),
    ] = None,
) -> None:
    """Compare conditions over samples, such as donors, within the clusters of a run.

    Writes tables/conditions.csv.gz (effects with intervals and p-values that are about the donors'
    populations), condition_samples.csv (the level of each sample), condition_abundance.csv, and
    condition_power.csv.gz with figures/power_by_samples.png: how many samples would find a twofold
    change. Replaces those of an earlier comparison, and builds the report again.

    \b
    Examples:
      totalvi compare results --sample donor --condition treatment --against control
      totalvi compare results --sample visit --condition time --block donor --covariate sex
    """
    from totalvi.report.build import build_report
    from totalvi.run.commands import compare_conditions
    from totalvi.run.compare_samples import FDR_TARGET, Design

    design = Design(sample, condition, groupby, group, against, block, tuple(covariate or ()))
    table, found = compare_conditions(folder, design)
    for message in found:
        typer.echo(f"warning: {message}")
    tested = table.dropna(subset="p_value")
    called = int(tested[f"is_de_fdr_{FDR_TARGET:g}"].sum())
    designs = " or ".join(tested["design"].unique())
    typer.echo(
        f"{len(tested):,} tests of features in {tested['comparison'].nunique()} comparisons of samples "
        f"({designs}), {called:,} called at a false discovery rate of {FDR_TARGET:g}"
    )
    typer.echo(f"written: {build_report(folder)}")


@contextmanager
def reporting_what_is_there(output: Path) -> Iterator[None]:
    """Build the report of a run even if some of its steps failed; the report names them."""
    try:
        yield
    except errors.IncompleteError as error:
        try:
            _report(output)
        except errors.IncompleteError as report_error:
            raise errors.IncompleteError(f"{error} {report_error}") from error
        raise


def _report(folder: Path) -> Path:
    """Build the report of a run."""
    from totalvi.report.build import REPORT, build_report
    from totalvi.run.record import named

    if (folder / REPORT).exists() and not os.access(folder, os.W_OK):  # they were put away
        return folder / REPORT
    try:
        return build_report(folder)
    except Exception as error:
        if isinstance(error, OSError | errors.TotalviError):
            raise
        raise errors.IncompleteError(
            f"report.html failed ({named(error)}); all else is in {folder}, and the same command "
            "with --resume makes what is missing."
        ) from error


def _refuse_others_than_repeated(context: typer.Context) -> None:
    """Refuse options beside ``--from`` that would change the run."""
    for name, option in options.given(context).items():
        if name not in REPEATED:
            raise typer.BadParameter(
                f"{option} was given with --from, which repeats a run as it was; leave it out."
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
    if (doublets := record.get("doublets")) is not None:
        share = f"{doublets / record['cells']:.1%}"
        typer.echo(f"note: {doublets:,} cells ({share}) are likely doublets; none is removed.")
    if tags := record.get("hashtags"):
        two = f"{tags['two']:,} carry two and {tags['none']:,} none"
        typer.echo(f"note: hashtags name the sample of {tags['one']:,} cells; {two}.")
    list_written(result, apart=(report.name,))
    typer.echo(f"next, open in a browser: {report}")
