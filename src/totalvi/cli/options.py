"""Options that several commands share: where the counts and the annotation are."""

import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, get_type_hints

import typer

from totalvi.errors import ReadError

if TYPE_CHECKING:
    from totalvi.data.columns import Columns
    from totalvi.data.io.read import ReadOptions
    from totalvi.data.panels import antibodies


def a_number(value: float | None) -> float | None:
    """Refuse NaN, which passes every check of bounds."""
    if value is not None and math.isnan(value):
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
    typer.Option("--cells-in", help="Where cells are in tables; default: by their names."),
]
Batch = Annotated[str | None, text("--batch", "KEY", "Column of obs with each cell's batch.")]
Sample = Annotated[
    str | None,
    text("--sample", "KEY", "Column with each cell's sample, what is repeated, such as a donor."),
]
Condition = Annotated[
    str | None, text("--condition", "KEY", "Column with conditions, compared over the samples.")
]
Only = Annotated[
    str | None, text("--group", "NAME", "Compare only this one with the others; default: each.")
]
Panel = Annotated[
    str | None,
    text("--panel", "KEY", "Column with each cell's antibody panel; default: each batch is one."),
]
Labels = Annotated[str | None, text("--labels", "KEY", "Column with known cell labels.")]
Unlabeled = Annotated[str | None, text("--unlabeled", "NAME", "Label of cells not labelled yet.")]
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
    typer.Option("--refuse-empty-cells", help="Stop at cells without RNA; do not leave them out."),
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
Genes = Annotated[
    int, typer.Option("--genes", min=1, help="How many highly variable genes to keep.")
]
StainingLevel = Annotated[
    bool, typer.Option("--staining-level", help="Infer how strongly each cell was stained.")
]
DoubletRate = Annotated[
    float | None,
    number("--doublet-rate", 0.0001, 0.9, "Share of doublets; default: as the data tell."),
]
ModalityInformation = Annotated[
    bool, typer.Option("--modality-information", help="Say what RNA and proteins each tell.")
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
        "Which rows are not antibodies; default: those with names such as unmapped.",
    ),
]
Mosaic = Annotated[
    bool | None,
    typer.Option("--mosaic/--no-mosaic", help="Take cells of one modality alone too, or not."),
]
Arguments: TypeAlias = dict[str, Any]
_Options: TypeAlias = dict[str, tuple[str, Any, Any]]  # argument, type and default of each option


class Reading(NamedTuple):
    """How to read counts: arguments of `ReadOptions`, of `Columns` and of `declare_unmeasured`."""

    arguments: Arguments
    where: Arguments
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


def _as_named(**kinds: Any) -> _Options:
    """Return options that are called like their arguments; by default they are not given."""
    return {name: (name, kind, None) for name, kind in kinds.items()}


_OF_FILES: _Options = {
    "protein": ("protein_path", ProteinPath, None),
    **_as_named(genome=Genome, hashtags=Hashtags, controls=Controls, leave_out=LeaveOut),
    **_as_named(cells_in=CellsIn, mosaic=Mosaic),
}
_OF_COUNTS: _Options = {
    "rna_modality": ("rna_modality", RnaModality, "rna"),
    "protein_modality": ("protein_modality", ProteinModality, "prot"),
    **_as_named(rna_layer=RnaLayer, protein_layer=ProteinLayer),
    "protein_obsm": ("protein_expression_obsm_key", ProteinObsm, None),
    "allow_fractional": ("allow_fractional", AllowFractional, False),
}
OF_READING = (*_OF_FILES, *_OF_COUNTS, "unmeasured")
_OF_CELLS: _Options = {
    "batch": ("batch_key", Batch, None),
    "panel": ("panel_key", Panel, None),
    "labels": ("labels_key", Labels, None),
    "unlabeled": ("unlabeled_category", Unlabeled, None),
    "size_factor": ("size_factor_key", SizeFactor, None),
    "covariate": ("categorical_covariate_keys", Covariates, None),
    "continuous_covariate": ("continuous_covariate_keys", ContinuousCovariates, None),
    "keep_isotypes": ("isotype_controls", KeepIsotypes, False),
}
_OF_FITTING: _Options = {
    "genes": ("n_genes", Genes, 4000),
    "staining_level": ("staining_level", StainingLevel, False),
    "epochs": ("max_epochs", Epochs, None),
    "seed": ("seed", Seed, 0),
}
_OF_WRITING: _Options = {
    "overwrite": ("overwrite", Overwrite, False),
    "resume": ("resume", Resume, False),
    "checkpoint_every": ("checkpoint_every", CheckpointEvery, 10.0),
}


def _reading(chosen: Arguments) -> Reading:
    of_files, of_counts = _arguments(_OF_FILES, chosen), _arguments(_OF_COUNTS, chosen)
    return Reading(of_files, of_counts, unmeasured_proteins(chosen["unmeasured"]))


def _annotation(chosen: Arguments) -> Arguments:
    given = _arguments(_OF_CELLS, chosen)
    for several in ("categorical_covariate_keys", "continuous_covariate_keys"):
        given[several] = tuple(given[several] or ())
    return given | {"isotype_controls": () if given["isotype_controls"] else None}


def _writing(chosen: Arguments) -> Arguments:
    every = timedelta(minutes=chosen["checkpoint_every"])
    return _arguments(_OF_WRITING, chosen) | {"checkpoint_every": every}


def _arguments(options: _Options, chosen: Arguments) -> Arguments:
    return {argument: chosen[name] for name, (argument, _, _) in options.items()}


_TOGETHER: dict[str, tuple[_Options, Callable[[Arguments], Any]]] = {
    "reading": ({**_OF_FILES, **_OF_COUNTS, "unmeasured": ("", Unmeasured, None)}, _reading),
    "annotation": (_OF_CELLS, _annotation),
    "fitting": (_OF_FITTING, partial(_arguments, _OF_FITTING)),
    "writing": (_OF_WRITING, _writing),
}
"""Parameters of commands that stand for several options, and how these make its value."""


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that its parameters of `_TOGETHER` stand for, in their place."""
    types = get_type_hints(command, include_extras=True)
    parameters: dict[str, Parameter] = {}
    joined = [name for name in signature(command).parameters if name in _TOGETHER]
    for parameter in signature(command).parameters.values():
        options, _ = _TOGETHER.get(parameter.name, ({parameter.name: None}, None))
        for name, option in options.items():
            default = parameter.default if option is None else option[2]
            kind = types[name] if option is None else option[1]
            parameters[name] = Parameter(
                name, Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )

    @wraps(command)
    def taking_each_option(*given: Any, **chosen: Any) -> None:
        whole = {name: option.default for name, option in parameters.items()} | chosen
        values = {name: _TOGETHER[name][1](whole) for name in joined}
        apart = {name for part in joined for name in _TOGETHER[part][0]}
        command(*given, **{k: v for k, v in chosen.items() if k not in apart}, **values)

    taking_each_option.__signature__ = Signature(list(parameters.values()))  # type: ignore[attr-defined]
    taking_each_option.__annotations__ = {p.name: p.annotation for p in parameters.values()}
    return taking_each_option


def given(context: typer.Context) -> dict[str, str]:
    """Return what the command line gives: the option, or argument, of each parameter by its name."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            found[str(parameter.name)] = parameter.opts[0]
    return found


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


_SAME_NAMES = """
    allow_fractional batch_correction batch_size cells_in checkpoint_every config controls delta
    devices doublet_rate genome groupby hashtags hierarchy interval leave_out
    modality_information names num_nodes on_disk organism overwrite protein_layer protein_modality raw
    reference reference_batch resolution resume rna_layer rna_modality seed split_counts
    staining_level train
"""
"""Arguments whose options are called as they are, with dashes."""
OPTIONS = {
    **{name: f"--{name.replace('_', '-')}" for name in _SAME_NAMES.split()},
    "batch_key": "--batch",
    "block_key": "--block",
    "categorical_covariate_keys": "--covariate",
    **dict.fromkeys(("totalvi.declare_unmeasured", "unmeasured"), "--unmeasured"),
    'unmeasured="impute"': "--impute-unmeasured",
    "condition_key": "--condition",
    "continuous_covariate_keys": "--continuous-covariate",
    "covariate_keys": "--covariate",
    "fdr_target": "--fdr",
    "group1": "--group",
    "group2": "--against",
    "input": "INPUT",
    "isotype_controls": "--keep-isotypes",
    **dict.fromkeys(("labels", "labels_key"), "--labels"),
    "unlabeled_category": "--unlabeled",
    "max_epochs": "--epochs",
    "median_foreground_factor": "--foreground-factor",
    "totalvi.read(mosaic=False)": "--no-mosaic",
    "n_batches": "--batches",
    "n_cell_types": "--cell-types",
    "n_cells": "--cells",
    "n_empty": "--empty",
    "n_genes": "--genes",
    "n_proteins": "--proteins",
    "n_samples": "--samples",
    "n_ubiquitous": "--ubiquitous",
    "n_unmeasured": "--unmeasured",
    "panel_key": "--panel",
    "protein_expression_obsm_key": "--protein-obsm",
    "protein_path": "--protein",
    "sample_key": "--sample",
    "size_factor_key": "--size-factor",
    "transform_batch": "--as-batch",
}
"""Words of messages for Python, and their replacements for the command line."""
