"""`totalvi explore`, `report`, `denoise`, `de`, `map` and `impute`: what a fitted model says."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from totalvi.cli import options
from totalvi.cli.command_run import keeping, list_written
from totalvi.cli.options import Arguments, Reading, with_options
from totalvi.errors import DataWarning
from totalvi.processes import this_process

Counts = Annotated[
    str | None,
    typer.Argument(
        metavar="[INPUT]", help="Counts of the cells asked about; default: those of the run."
    ),
]


@with_options
def explore(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Folder of `totalvi run`, minified reference, or file of counts such as .h5mu.",
            show_default=False,
        ),
    ],
    reading: Reading,
    gates: Annotated[
        Path | None,
        options.text(
            "--gates", "FILE", "Gates to start with, of JSON or Gating-ML; default: saved ones."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Port to listen on; default: 5006 or the next free one.",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.")
    ] = False,
) -> None:
    """Gate the cells of a run, or of a file, in the browser, and compare them.

    Opens a page in your browser. Only this machine serves it, and only to users who have the printed
    address. Ctrl-C stops it. Unsaved gates are then kept in gates_unsaved.json, and offered when the
    command is started again. A file of counts needs no model: raw and transformed counts are shown.

    \b
    Examples:
      totalvi explore totalvi-demo
      totalvi explore results --gates other_results/gates.json
      totalvi explore cells.h5ad --protein-obsm X_adt
      totalvi explore results --no-browser --port 8000    # at the far end of an SSH tunnel
    """
    from totalvi.explorer.server import open_in_browser, serving
    from totalvi.explorer.workspace import open_workspace

    workspace = open_workspace(path, gates, reading.of())
    for note in workspace.notes:
        typer.echo(f"note: {note}")
    try:
        with serving(workspace, port) as server:
            n_cells, n_gates = workspace.cells.n_cells, len(workspace.saved.populations)
            typer.echo(f"{path}: {n_cells:,} cells, {n_gates} gates")
            typer.echo(f"open     {server.url}")
            typer.echo("to stop  press Ctrl-C here")
            if workspace.unsaved():
                typer.echo("note: gates of an earlier visit were not saved; the page offers them")
            opening = (
                nullcontext() if no_browser else open_in_browser(server.url, workspace.cells.folder)
            )
            with opening:
                server.run()
    finally:  # a terminated server also keeps them
        for kept in workspace.keep_unsaved():
            typer.echo(f"gates that were not saved: {kept}")
    typer.echo("stopped")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `totalvi run` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.html", help="File to write; default: DIR/report.html."
        ),
    ] = None,
) -> None:
    """Build the report of a run again, and print its path.

    The report is one HTML file that opens in a browser without an internet connection.

    \b
    Examples:
      totalvi report results
      totalvi report results -o for_the_lab.html
    """
    from totalvi.report.build import build_report

    typer.echo(build_report(folder, output))


@with_options
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


@with_options
def de(
    model: options.ModelPath,
    reading: Reading,
    input: Counts = None,
    groupby: Annotated[
        str, options.text("--groupby", "KEY", "Column of obs with the groups.")
    ] = "leiden_totalvi",
    group: options.Only = None,
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


@with_options
def map_cells(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Minified reference, folder of `totalvi run`, or model folder.",
            show_default=False,
        ),
    ],
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="Raw counts of the new cells; RNA alone will do."),
    ],
    output: options.Output,
    reading: Reading,
    writing: Arguments,
    reference: Annotated[
        Path | None,
        options.text(
            "--reference",
            "PATH",
            "Counts that the model was fitted to; default: results.h5mu (or .zarr) beside it.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        options.text(
            "--labels",
            "KEY",
            "Column of the reference with labels; default: leiden_totalvi, if there.",
        ),
    ] = None,
    batch: options.Batch = None,
    reference_batch: Annotated[
        str | None,
        options.text(
            "--reference-batch",
            "NAME",
            'Batch of the reference to start from, or "average"; default: the nearest.',
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Fit the weights of the query's batches (surgery).")
    ] = False,
) -> None:
    """Map new cells on a fitted model, without changing the model.

    Writes cells.csv.gz (label with its probability, unlikeness, place on the map, latent state),
    label_probabilities.csv.gz, the model of the query, and run.json. If the query lacks proteins, also
    writes imputed_proteins.csv.gz, imputed_lower.csv.gz and imputed_upper.csv.gz (intervals of 90 %),
    imputed_foreground_probability.csv.gz, levels.csv (at which level the query counts proteins) and
    reliability.csv. An interrupted --train is kept in DIR.checkpoint, and --resume resumes it.

    \b
    Examples:
      totalvi map results new_cells.h5 -o mapped
      totalvi map reference.totalvi new_cells.h5 -o mapped --labels cell_type
      totalvi map pbmc.totalvi rna.h5ad -o mapped --reference pbmc.h5mu --labels cell_type --train
    """
    from totalvi.run.map_cells import map_files

    with warnings.catch_warnings(record=True) as caught, keeping(output):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="The (query|reference model) ")
        warnings.filterwarnings("always", category=DataWarning)
        record = map_files(
            model,
            query,
            output,
            reference=reference,
            labels=labels,
            reading=reading.of(batch_key=batch),
            reference_batch=reference_batch,
            train=train,
            **writing,
        )
    for said in caught:
        typer.echo(f"warning: {said.message}")
    typer.echo(record["summary"])
    for note in record["notes"]:
        typer.echo(f"note: {note}")
    typer.echo(f"written: {output}")


@with_options
def impute(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE", help="Raw counts of RNA and proteins.", show_default=False
        ),
    ],
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            help="Raw counts of RNA, with other proteins or none; or of proteins alone.",
            show_default=False,
        ),
    ],
    output: options.Output,
    reading: Reading,
    fitting: Arguments,
    writing: Arguments,
    batch: Annotated[
        str | None,
        options.text("--batch", "KEY", "Column with the batches within REFERENCE or QUERY."),
    ] = None,
    keep_isotypes: options.KeepIsotypes = False,
    interval: Annotated[
        float, options.number("--interval", 0.01, 0.99, "Probability of the intervals.")
    ] = 0.9,
    samples: Annotated[
        int, typer.Option("--samples", min=20, help="Posterior samples a cell.")
    ] = 100,
) -> None:
    """Predict the proteins or the RNA that cells lack.

    Fits a model to REFERENCE, maps QUERY on it, and predicts the proteins that its cells lack
    (imputed.h5ad). If cells of QUERY have proteins alone, fits both together and predicts their RNA too
    (imputed_rna.h5ad).
    Also writes the uncertainty of each value and the reliability of each protein and gene, which is
    measured on held-out cells of REFERENCE with their proteins or RNA hidden; for proteins over all of
    them and within clusters, with lower 95 % confidence limits. Until the folder is complete, the fit
    is kept in DIR.checkpoint, and --resume resumes it to the same results.

    \b
    Examples:
      totalvi impute cite.h5mu rna.h5ad -o imputed
      totalvi impute cite.h5mu other_panel.h5mu -o imputed --batch donor
      totalvi impute cite.h5mu proteins_alone.h5ad -o imputed
    """
    from totalvi.run.impute import impute as impute_proteins

    with keeping(output):
        result = impute_proteins(
            reference,
            query,
            output,
            batch_key=batch,
            **reading.arguments,
            **reading.where,
            isotype_controls=() if keep_isotypes else None,
            unmeasured=reading.unmeasured,
            **fitting,
            n_samples=samples,
            interval=interval,
            **writing,
        )
    record = result.record
    found = [
        f"{n:,} {what} imputed in {cells:,} cells"
        for n, what, cells in (
            (record["proteins"], "proteins", record["cells"]),
            (record["genes"], "genes", record["cells_without_rna"]),
        )
        if n and cells
    ]
    typer.echo(
        f"{' and '.join(found)} from {record['reference_cells']:,} cells and "
        f"{record['genes']:,} genes, {sum(record['seconds'].values()):,.0f} s"
    )
    list_written(result)
