"""`totalvi check`, `convert`, `datasets` and `simulate`: commands on files of counts."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from totalvi.cli import options
from totalvi.cli.command_run import raw_paths
from totalvi.cli.options import Arguments, Reading, with_options
from totalvi.errors import DataError

COLORS = {"error": typer.colors.RED, "warning": typer.colors.YELLOW, "note": None}


@with_options
def check(
    input: options.Input,
    reading: Reading,
    annotation: Arguments,
    raw: options.RawPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a file of counts and list its problems.

    Lists errors, warnings and notes, each with a suggested fix. The exit status is 2 when there is an
    error.

    \b
    Examples:
      totalvi check filtered_feature_bc_matrix.h5
      totalvi check cells.h5mu --batch donor --json
      totalvi check filtered_feature_bc_matrix.h5 --raw raw_feature_bc_matrix.h5
    """
    from totalvi.run.prepare import check_input

    keys = reading.columns(**annotation)
    findings = check_input(input, keys, reading.options(), raw_paths(raw), reading.unmeasured)
    if as_json:
        listed = [finding._asdict() for finding in findings]
        typer.echo(json.dumps({"input": str(input), "findings": listed}, indent=2))
    else:
        for finding in findings:
            severity = typer.style(f"{finding.severity:<9}", fg=COLORS[finding.severity])
            typer.echo(f"{severity}{finding.message}")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(2)


@with_options
def convert(
    context: typer.Context,
    input: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="Counts of any format that `totalvi run` reads; or a model of totalvi, of scvi-tools "
            "(its folder or model.pt), or 0.6.x weights; with --to minified or cellxgene, folder of "
            "`totalvi run`.",
            show_default=False,
        ),
    ],
    reading: Reading,
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUTPUT",
            help="Store (.zarr), model folder, minified reference or .h5ad to write.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUTPUT", help="The same, as an option."),
    ] = None,
    to: Annotated[
        Literal["totalvi", "scvi", "minified", "cellxgene"] | None,
        typer.Option(
            "--to",
            help="Format of a model to write; minified: one file, on which `totalvi map` maps without "
            "other data; cellxgene: results as the .h5ad that CELLxGENE takes. Default: that of "
            "totalvi or scvi-tools which INPUT is not in.",
        ),
    ] = None,
    obs: Annotated[
        list[str] | None,
        options.text(
            "--obs",
            "NAME=TEXT|NAME=@KEY",
            "For CELLxGENE: column of obs to add, one text for all cells, or the values of column KEY; "
            "repeatable.",
        ),
    ] = None,
    title: Annotated[
        str | None, options.text("--title", "TEXT", "For CELLxGENE: title of the data set.")
    ] = None,
    organism: Annotated[
        str | None,
        options.text("--organism", "TERM", "For CELLxGENE: such as NCBITaxon:9606, human."),
    ] = None,
    known_genes: Annotated[
        Path | None,
        options.text(
            "--known-genes",
            "FILE",
            "For CELLxGENE: table of Ensembl ids; other genes are left out.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        options.text(
            "--config",
            "FILE.json",
            "What 0.6.x weights do not say: options, gene_names, protein_names, ...",
        ),
    ] = None,
    batch: options.Batch = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Convert counts for training from disk, or a model to a reference, or to or from scvi-tools.

    If OUTPUT ends in .zarr, INPUT has counts. They are read some cells at a time and written as a
    MuData with RNA and proteins, which `totalvi run --on-disk` and Model(path) read fast. Otherwise
    INPUT is a model. No code in the files of other packages is run, and scvi-tools need not be
    installed. With --to cellxgene, what the file still lacks of CELLxGENE's schema is listed.

    \b
    Examples:
      totalvi convert cells.h5ad cells.zarr
      totalvi convert scvi_folder -o pbmc.totalvi
      totalvi convert pbmc.totalvi -o scvi_folder --to scvi
      totalvi convert results reference.totalvi --to minified
      totalvi convert results blood.h5ad --to cellxgene --organism NCBITaxon:9606 --obs donor_id=@donor
    """
    if (target is None) == (output is None):
        raise DataError("convert needs one output; name it once, as in `convert INPUT OUTPUT`.")
    written = target or output
    assert written is not None
    is_store = written.suffix == ".zarr"
    if is_store and to is not None:
        raise DataError(
            f"--to is not for a store of counts, as {written} is named; leave it out, or name the "
            "output otherwise."
        )
    kind = "store" if is_store else to if to in ("cellxgene", "minified") else "model"
    _refuse_options_of_others(context, kind)
    if to == "cellxgene":
        about = {"title": title, "organism": organism, "known_genes": known_genes}
        _write_cellxgene(input, written, obs or [], about, overwrite)
        return
    if is_store:
        from totalvi.run.convert import write_store

        keys = reading.columns(batch_key=batch)
        findings = write_store(
            input, written, keys, reading.options(), reading.unmeasured, overwrite
        )
        for finding in findings:
            typer.echo(f"{finding.severity}: {finding.message}")
        typer.echo(written)
        return
    if to == "minified":
        from totalvi.run.reference_file import write_reference

        typer.echo(write_reference(input, written, overwrite))
        return
    from totalvi.data.minified_cells import is_minified
    from totalvi.formats.model_folder import is_model
    from totalvi.formats.scvi_06 import read_config
    from totalvi.model import Model
    from totalvi.persistence import model_of_scvi

    is_ours = is_model(input) or is_minified(input)
    to = to or ("scvi" if is_ours else "totalvi")
    if is_ours:
        model = Model.load(input)
    else:
        described = None if config is None else read_config(config)
        model = model_of_scvi(input, described, allow_fractional=reading.where["allow_fractional"])
    save = model.save_scvi if to == "scvi" else model.save
    typer.echo(save(written, overwrite=overwrite))


_ONLY_FOR = {
    "store": {*options.OF_READING, "batch"},
    "model": {"config", "allow_fractional"},
    "minified": set[str](),
    "cellxgene": {"obs", "title", "organism", "known_genes"},
}
_NAMES = {"store": "a store of counts", "model": "a model folder"}


def _refuse_options_of_others(context: typer.Context, kind: str) -> None:
    """Refuse options that only other kinds of output take."""
    others = set().union(*_ONLY_FOR.values()) - _ONLY_FOR[kind]
    for name, option in options.given(context).items():
        if name in others:
            what = _NAMES.get(kind, f"--to {kind}")
            of_store = kind == "model" and name in _ONLY_FOR["store"]
            fix = ", or name the output NAME.zarr if it is to hold counts" if of_store else ""
            raise DataError(f"{option} is not for {what}; leave it out{fix}.")


def _write_cellxgene(
    folder: Path,
    output: Path,
    obs: list[str],
    about: dict[str, Any],
    overwrite: bool,
) -> None:
    """Write the file for CELLxGENE; print its path, what was changed, and what it lacks."""
    from totalvi.run.cellxgene import write_cellxgene

    columns = {}
    for given in obs:
        name, equals, value = given.partition("=")
        if not (name and equals and value):
            raise DataError(f"--obs {given} has no value; give it as NAME=TEXT or NAME=@KEY.")
        columns[name] = value
    made = write_cellxgene(folder, output, obs=columns, **about, overwrite=overwrite)
    for note in made.notes:
        typer.echo(f"note: {note}")
    if made.missing:
        typer.echo(
            f"warning: CELLxGENE also needs {', '.join(made.missing)}; give columns of obs with --obs "
            "NAME=TEXT or NAME=@KEY, the rest with --title and --organism, or add them to the file."
        )
    typer.echo(made.path)


def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Minified reference, model folder, folder that a command wrote, or checkpoint.",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file or folder of totalvi is.

    Of a minified reference it prints the card: the data, the fit, and the accuracy of labels and of
    imputed proteins that was measured when it was written.

    \b
    Examples:
      totalvi info reference.totalvi
      totalvi info results --json
    """
    from totalvi.run.reference_file import information, lines_of

    found = information(path)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines_of(path, found)))


datasets = typer.Typer(
    help="List and fetch public CITE-seq data sets.", rich_markup_mode=None, no_args_is_help=False
)


@datasets.callback(invoke_without_command=True)
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_names()


@datasets.command("list")
def list_names() -> None:
    """List the data sets that can be downloaded by name.

    \b
    Example:
      totalvi datasets list
    """
    from totalvi.data.datasets import DATASETS

    width = max(len(dataset.name) for dataset in DATASETS)
    for dataset in DATASETS:
        cells = "" if dataset.cells is None else f" ({dataset.cells:,} cells)"
        typer.echo(f"{dataset.name:<{width}}  {dataset.title}{cells}")


@datasets.command("fetch")
def fetch_by_name(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `totalvi datasets` lists it.")],
    folder: Annotated[
        Path | None,
        typer.Option("-o", "--folder", metavar="DIR", help="Where to keep it; default: a cache."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="All barcodes, rather than those called cells.")
    ] = False,
) -> None:
    """Download a data set unless it is already there, and print the path of its file.

    \b
    Example:
      totalvi run "$(totalvi datasets fetch pbmc_10k_protein_v3)" -o results
    """
    from totalvi.data.datasets import fetch

    typer.echo(fetch(name, kind="raw" if raw else "filtered", folder=folder))


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
        options.number(
            "--foreground-factor", 3, 1e6, "Foreground over background of the median protein."
        ),
    ] = 30.0,
    raw: Annotated[
        Path | None,
        options.text("--raw", "RAW.h5mu", "Also write the raw matrix, with empty droplets."),
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
    from totalvi.data.simulate import simulate as simulate_counts
    from totalvi.data.simulate import simulate_raw, simulate_to_zarr
    from totalvi.errors import DataError, OutputError
    from totalvi.run.folder import staged_file

    if raw is not None and raw.resolve() == output.resolve():
        raise OutputError(f"--raw {raw} is the file of --output; give another name.")
    wanted: dict[str, Any] = {
        "n_cells": cells,
        "n_genes": genes,
        "n_proteins": proteins,
        "n_batches": batches,
        "n_cell_types": cell_types,
        "n_ubiquitous": ubiquitous,
        "median_foreground_factor": foreground_factor,
        "seed": seed,
    }
    if output.suffix == ".zarr":
        if unmeasured or raw is not None:
            option = f"--unmeasured {unmeasured}" if unmeasured else f"--raw {raw}"
            raise DataError(f"{option} needs all cells in memory; write .h5mu.")
        simulate_to_zarr(output, **wanted, overwrite=overwrite)
        typer.echo(output)
        return
    with ExitStack() as files:
        staged = files.enter_context(staged_file(output, suffix=".h5mu", overwrite=overwrite))
        if raw is not None:
            staged_raw = files.enter_context(staged_file(raw, suffix=".h5mu", overwrite=overwrite))
        simulated = simulate_counts(**wanted, n_unmeasured=unmeasured)
        if raw is not None:
            simulate_raw(simulated, empty, seed=seed).write(staged_raw)
        simulated.write(staged)
    typer.echo(output)
    if raw is not None:
        typer.echo(raw)
