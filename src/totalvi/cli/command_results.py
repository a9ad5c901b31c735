"""`totalvi explore`, `report`, `map` and `impute`: commands on results and models."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from totalvi.cli import options
from totalvi.cli.options import Reading, keeping, that_reads
from totalvi.errors import DataWarning


def explore(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `totalvi run` wrote.", show_default=False)
    ],
    gates: Annotated[
        Path | None,
        options.text("--gates", "FILE", "Gates to start with; default: those saved in DIR."),
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
    """Gate the cells of a run in the browser, and compare them.

    Opens a page in your browser. Only this machine serves it, and only to users who have the printed
    address. Ctrl-C stops it. Unsaved gates are then kept in DIR/gates_unsaved.json, and offered when
    the command is started again.

    \b
    Examples:
      totalvi explore totalvi-demo
      totalvi explore results --gates other_results/gates.json
      totalvi explore results --no-browser --port 8000    # at the far end of an SSH tunnel
    """
    from totalvi.view.explorer.server import open_in_browser, serving
    from totalvi.view.explorer.workspace import open_workspace

    workspace = open_workspace(folder, gates)
    for note in workspace.notes:
        typer.echo(f"note: {note}")
    try:
        with serving(workspace, port) as server:
            n_cells, n_gates = workspace.cells.n_cells, len(workspace.saved.gates)
            typer.echo(f"{folder}: {n_cells:,} cells, {n_gates} gates")
            typer.echo(f"open     {server.url}")
            typer.echo("to stop  press Ctrl-C here")
            if workspace.unsaved():
                typer.echo("note: gates of an earlier visit were not saved; the page offers them")
            opening = nullcontext() if no_browser else open_in_browser(server.url, folder)
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
    from totalvi.view.report.build import build_report

    typer.echo(build_report(folder, output))


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
    group: Annotated[
        str | None, options.text("--group", "NAME", "Only this condition; default: each.")
    ] = None,
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
    from totalvi.run.commands import compare_conditions
    from totalvi.run.compare_samples import FDR_TARGET, Design
    from totalvi.view.report.build import build_report

    design = Design(sample, condition, groupby, group, against, block, tuple(covariate or ()))
    table, found = compare_conditions(folder, design)
    for message in found:
        typer.echo(f"warning: {message}")
    tested = table.dropna(subset="p_value")
    called = int(tested[f"is_de_fdr_{FDR_TARGET:g}"].sum())
    typer.echo(
        f"{len(tested):,} features tested in {tested['comparison'].nunique()} comparisons, {called:,} "
        f"called at a false discovery rate of {FDR_TARGET:g}"
    )
    typer.echo(f"written: {build_report(folder)}")


@that_reads
def map_cells(
    model: options.ModelPath,
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="Raw counts of the new cells; RNA alone will do."),
    ],
    output: options.Output,
    reading: Reading,
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
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    checkpoint_every: options.CheckpointEvery = 10.0,
) -> None:
    """Map new cells on a fitted model, without changing the model.

    Writes cells.csv.gz (label with its probability, unlikeness, latent state),
    label_probabilities.csv.gz, the model of the query, and run.json. If the query lacks proteins, also
    writes imputed_proteins.csv.gz and their reliability (reliability.csv). An interrupted --train is
    kept in DIR.checkpoint, and --resume resumes it.

    \b
    Examples:
      totalvi map results new_cells.h5 -o mapped
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
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=timedelta(minutes=checkpoint_every),
        )
    for said in caught:
        typer.echo(f"warning: {said.message}")
    typer.echo(record["summary"])
    for note in record["notes"]:
        typer.echo(f"note: {note}")
    typer.echo(f"written: {output}")


@that_reads
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
            help="Raw counts of RNA, with other proteins or none.",
            show_default=False,
        ),
    ],
    output: options.Output,
    reading: Reading,
    batch: Annotated[
        str | None,
        options.text("--batch", "KEY", "Column with the batches within REFERENCE or QUERY."),
    ] = None,
    genes: Annotated[
        int, typer.Option("--genes", min=1, help="Variable genes to keep, of more shared ones.")
    ] = 4000,
    epochs: options.Epochs = None,
    interval: Annotated[
        float, options.number("--interval", 0.01, 0.99, "Probability of the intervals.")
    ] = 0.9,
    samples: Annotated[
        int, typer.Option("--samples", min=20, help="Posterior samples a cell.")
    ] = 100,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    checkpoint_every: options.CheckpointEvery = 10.0,
) -> None:
    """Predict the proteins that cells lack.

    Fits a model to both inputs together and predicts the proteins of REFERENCE in the cells of QUERY.
    Also writes the uncertainty of each value and the reliability of each protein, which is measured
    on held-out cells of REFERENCE with their proteins hidden, over all of them and within clusters,
    with lower 95 % confidence limits. Until the folder is complete, the fit is kept in DIR.checkpoint,
    and --resume resumes it to the same results.

    \b
    Examples:
      totalvi impute cite.h5mu rna.h5ad -o imputed
      totalvi impute cite.h5mu other_panel.h5mu -o imputed --batch donor
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
            unmeasured=reading.unmeasured,
            n_genes=genes,
            max_epochs=epochs,
            n_samples=samples,
            interval=interval,
            seed=seed,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=timedelta(minutes=checkpoint_every),
        )
    record = result.record
    typer.echo(
        f"{record['proteins']} proteins imputed in {record['cells']:,} cells from "
        f"{record['reference_cells']:,} cells and {record['genes']:,} genes, "
        f"{sum(record['seconds'].values()):,.0f} s"
    )
    options.list_written(result)
