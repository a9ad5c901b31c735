"""Options that several commands share: where the counts and the annotation are."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import typer

from totalvi.errors import ReadError
from totalvi.run.folder import MODEL, RunResult, checkpoint_of

if TYPE_CHECKING:
    from totalvi.data.columns import Columns
    from totalvi.data.io.read import ReadOptions
    from totalvi.data.panels import antibodies


def a_number(value: float) -> float:
    """Refuse NaN, which passes every check of bounds."""
    if math.isnan(value):
        raise typer.BadParameter("NaN is not a number; give one.")
    return value


def text(flag: str, metavar: str, help: str) -> Any:
    """Return an option that takes a text or a path."""
    return typer.Option(flag, metavar=metavar, help=help)


def number(flag: str, least: float, most: float, help: str) -> Any:
    """Return an option that takes a number between bounds."""
    return typer.Option(flag, min=least, max=most, callback=a_number, help=help)


INPUT_HELP = "Raw counts: Cell Ranger .h5 or matrix folder, .h5ad, .h5mu, .zarr, or .csv/.tsv"

Input = Annotated[str, typer.Argument(metavar="INPUT", help=f"{INPUT_HELP}.", show_default=False)]
InputOfRun = Annotated[
    str | None, typer.Argument(metavar="INPUT", help=f"{INPUT_HELP}; not needed with --from.")
]
ProteinPath = Annotated[
    Path | None, text("--protein", "PATH", "Protein counts, if INPUT holds only RNA.")
]
RawPath = Annotated[
    list[str] | None,
    text(
        "--raw",
        "[BATCH=]PATH",
        "Raw matrix of all barcodes, whose empty droplets anchor the background; repeatable, one a "
        "batch.",
    ),
]
KeepIsotypes = Annotated[
    bool, typer.Option("--keep-isotypes", help="Model isotype controls like other antibodies, too.")
]
Genome = Annotated[str | None, text("--genome", "NAME", "Keep only the genes of this genome.")]
Hashtags = Annotated[
    str | None,
    text("--hashtags", "REGEX", "Which antibodies are hashtags; default: those named so."),
]
Controls = Annotated[
    str | None,
    text("--controls", "REGEX", "Which antibodies are isotype controls; default: those named so."),
]
CellsIn = Annotated[
    Literal["rows", "columns"] | None,
    typer.Option("--cells-in", help="Where cells are in tables; default: as their names tell."),
]
Batch = Annotated[str | None, text("--batch", "KEY", "Column of obs with each cell's batch.")]
Sample = Annotated[
    str | None,
    text("--sample", "KEY", "Column with each cell's sample: what is repeated, as a donor."),
]
Condition = Annotated[
    str | None, text("--condition", "KEY", "Column with conditions, compared over the samples.")
]
Panel = Annotated[
    str | None,
    text("--panel", "KEY", "Column with each cell's antibody panel; default: each batch is one."),
]
Labels = Annotated[str | None, text("--labels", "KEY", "Column with known cell labels.")]
SizeFactor = Annotated[
    str | None,
    text("--size-factor", "KEY", "Column with size factors; default: each cell's total RNA count."),
]
Covariates = Annotated[
    list[str] | None,
    text("--covariate", "KEY", "Categorical covariate to correct for; repeatable."),
]
ContinuousCovariates = Annotated[
    list[str] | None,
    text("--continuous-covariate", "KEY", "Continuous covariate to correct for; repeatable."),
]
AllowFractional = Annotated[
    bool,
    typer.Option("--allow-fractional", help="Accept counts with fractions, as after correction."),
]
RefuseEmptyCells = Annotated[
    bool,
    typer.Option(
        "--refuse-empty-cells",
        help="Stop at cells without RNA counts, in place of leaving them out.",
    ),
]
RnaModality = Annotated[str, text("--rna-modality", "NAME", "Modality with the RNA.")]
ProteinModality = Annotated[str, text("--protein-modality", "NAME", "Modality with the proteins.")]
RnaLayer = Annotated[str | None, text("--rna-layer", "NAME", "Layer with RNA counts.")]
ProteinLayer = Annotated[str | None, text("--protein-layer", "NAME", "Layer with protein counts.")]
ProteinObsm = Annotated[
    str | None, text("--protein-obsm", "KEY", "Entry of obsm with protein counts.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="The same seed gives the same results.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run wrote, at the end.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the interrupted run; start if there is none.")
]
CheckpointEvery = Annotated[
    float,
    typer.Option(
        "--checkpoint-every",
        metavar="MINUTES",
        min=0.0,
        max=1e6,
        callback=a_number,
        help="Time between checkpoints, in minutes.",
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Epochs at most; default: by number of cells.")
]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="New folder for the results.")
]
ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model folder, or folder of `totalvi run`.")
]


def raw_paths(given: list[str] | None) -> str | dict[str, str] | None:
    """Return the path of the raw matrix, or one for each batch.

    Raises
    ------
    ReadError
        When several are given without a batch each.

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
            raise ReadError(
                f"--raw {one}: of several raw matrices give each with its batch, --raw BATCH=PATH."
            )
        by_batch[batch] = path
    return by_batch


Unmeasured = Annotated[
    list[str] | None,
    text(
        "--unmeasured",
        "zeros|BATCH=NAME,...",
        'Proteins that a batch did not measure; repeatable. "zeros": those that are zero in all of it.',
    ),
]
LeaveOut = Annotated[
    str | None,
    text(
        "--leave-out",
        "REGEX",
        "Which rows of the antibodies are of none; default: those named so, as unmapped.",
    ),
]


class Reading(NamedTuple):
    """How to read counts: arguments of `ReadOptions`, of `Columns` and of `declare_unmeasured`."""

    arguments: dict[str, Any]
    where: dict[str, Any]
    unmeasured: dict[str, list[str]] | Literal["zeros"] | None

    def of(self, **columns: Any) -> "tuple[Columns, ReadOptions, antibodies.Unmeasured | None]":
        """Return where the counts are, how files are read, and what was not measured."""
        return self.columns(**columns), self.options(), self.unmeasured

    def options(self) -> "ReadOptions":
        """Return how files are read."""
        from totalvi.data.io.read import ReadOptions

        return ReadOptions(**self.arguments)

    def columns(self, **others: Any) -> "Columns":
        """Return where in what was read counts and annotation are."""
        from totalvi.data.columns import Columns

        return Columns(**self.where, **others)


_OF_FILES: dict[str, tuple[str, Any, Any]] = {  # argument, type and default of each option
    "protein": ("protein_path", ProteinPath, None),
    "genome": ("genome", Genome, None),
    "hashtags": ("hashtags", Hashtags, None),
    "controls": ("controls", Controls, None),
    "leave_out": ("leave_out", LeaveOut, None),
    "cells_in": ("cells_in", CellsIn, None),
}
_OF_COUNTS: dict[str, tuple[str, Any, Any]] = {
    "rna_modality": ("rna_modality", RnaModality, "rna"),
    "protein_modality": ("protein_modality", ProteinModality, "prot"),
    "rna_layer": ("rna_layer", RnaLayer, None),
    "protein_layer": ("protein_layer", ProteinLayer, None),
    "protein_obsm": ("protein_expression_obsm_key", ProteinObsm, None),
    "allow_fractional": ("allow_fractional", AllowFractional, False),
}


def that_reads(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of reading in place of its parameter ``reading``."""
    options = {**_OF_FILES, **_OF_COUNTS, "unmeasured": ("unmeasured", Unmeasured, None)}

    @wraps(command)
    def with_options_of_reading(*given: Any, **chosen: Any) -> None:
        values = {name: chosen.pop(name, default) for name, (_, _, default) in options.items()}
        reading = Reading(
            {argument: values[name] for name, (argument, _, _) in _OF_FILES.items()},
            {argument: values[name] for name, (argument, _, _) in _OF_COUNTS.items()},
            unmeasured_proteins(values["unmeasured"]),
        )
        command(*given, **chosen, reading=reading)

    types = get_type_hints(command, include_extras=True)
    types |= {name: kind for name, (_, kind, _) in options.items()}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        names = options if parameter.name == "reading" else (parameter.name,)
        for name in names:
            default = options[name][2] if name in options else parameter.default
            kind = Parameter.KEYWORD_ONLY
            parameters.append(Parameter(name, kind, default=default, annotation=types[name]))
    with_options_of_reading.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    with_options_of_reading.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options_of_reading


def unmeasured_proteins(given: list[str] | None) -> dict[str, list[str]] | Literal["zeros"] | None:
    """Return the names of the proteins that each batch did not measure, or "zeros".

    Raises
    ------
    ReadError
        When one is neither.

    Examples
    --------
    >>> unmeasured_proteins(["d2=CD3,CD4"]), unmeasured_proteins(["zeros"])
    ({'d2': ['CD3', 'CD4']}, 'zeros')
    """
    if not given:
        return None
    if given == ["zeros"]:
        return "zeros"
    found: dict[str, list[str]] = {}
    for one in given:
        batch, equals, names = one.partition("=")
        if not (equals and batch and names):
            raise ReadError(
                f'--unmeasured {one}; give a batch and its proteins, BATCH=NAME,NAME, or "zeros".'
            )
        found.setdefault(batch, []).extend(name.strip() for name in names.split(","))
    return found


Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="Processes on this machine, one for each GPU; default: 1, or what torchrun or srun "
        "started.",
    ),
]
NumNodes = Annotated[
    int,
    typer.Option("--num-nodes", min=1, help="Machines that run this command with the same data."),
]


@contextmanager
def keeping(output: Path) -> Iterator[None]:
    """Print where the fit is kept if a signal ends a run early, and exit with its status."""
    from totalvi.errors import Interrupted
    from totalvi.processes import this_process

    try:
        yield
    except BaseException as error:
        checkpoint = checkpoint_of(output)
        is_kept = checkpoint.exists() and str(checkpoint) not in str(error)
        if (is_kept or isinstance(error, Interrupted)) and this_process().rank == 0:
            typer.echo(f"the fit is kept in {checkpoint}; go on with --resume.", err=True)
        if isinstance(error, Interrupted):
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


OPTIONS = {
    "allow_fractional": "--allow-fractional",
    "batch_correction": "--batch-correction",
    "batch_key": "--batch",
    "batch_size": "--batch-size",
    "block_key": "--block",
    "categorical_covariate_keys": "--covariate",
    "leave_out": "--leave-out",
    "totalvi.declare_unmeasured": "--unmeasured",
    "unmeasured": "--unmeasured",
    'unmeasured="impute"': "--impute-unmeasured",
    "cells_in": "--cells-in",
    "checkpoint_every": "--checkpoint-every",
    "condition_key": "--condition",
    "config": "--config",
    "continuous_covariate_keys": "--continuous-covariate",
    "controls": "--controls",
    "covariate_keys": "--covariate",
    "delta": "--delta",
    "devices": "--devices",
    "fdr_target": "--fdr",
    "genome": "--genome",
    "group1": "--group",
    "group2": "--against",
    "groupby": "--groupby",
    "hashtags": "--hashtags",
    "input": "INPUT",
    "interval": "--interval",
    "isotype_controls": "--keep-isotypes",
    "labels": "--labels",
    "labels_key": "--labels",
    "max_epochs": "--epochs",
    "median_foreground_factor": "--foreground-factor",
    "n_batches": "--batches",
    "n_cell_types": "--cell-types",
    "n_cells": "--cells",
    "n_empty": "--empty",
    "n_genes": "--genes",
    "n_proteins": "--proteins",
    "n_samples": "--samples",
    "n_ubiquitous": "--ubiquitous",
    "n_unmeasured": "--unmeasured",
    "num_nodes": "--num-nodes",
    "on_disk": "--on-disk",
    "overwrite": "--overwrite",
    "panel_key": "--panel",
    "protein_expression_obsm_key": "--protein-obsm",
    "protein_layer": "--protein-layer",
    "protein_modality": "--protein-modality",
    "protein_path": "--protein",
    "raw": "--raw",
    "reference": "--reference",
    "reference_batch": "--reference-batch",
    "resolution": "--resolution",
    "resume": "--resume",
    "rna_layer": "--rna-layer",
    "rna_modality": "--rna-modality",
    "sample_key": "--sample",
    "seed": "--seed",
    "size_factor_key": "--size-factor",
    "split_counts": "--split-counts",
    "train": "--train",
    "transform_batch": "--as-batch",
}
"""Words of messages for Python, and their replacements for the command line."""
