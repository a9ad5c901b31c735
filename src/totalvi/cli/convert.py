"""`totalvi convert`: counts to the layout that trains from disk; a model to another format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from totalvi.cli import options
from totalvi.errors import DataError


def convert(
    input: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="Counts of any format that `totalvi run` reads; or a model of totalvi, of scvi-tools "
            "(its folder or model.pt), or 0.6.x weights.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUTPUT", help="Store (.zarr) or model folder to write.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUTPUT", help="The same, as an option."),
    ] = None,
    to: Annotated[
        Literal["totalvi", "scvi"] | None,
        typer.Option(
            "--to", help="Format of a model to write; default: the one that INPUT is not in."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.json",
            help="What 0.6.x weights do not say: options, gene_names, protein_names, ...",
        ),
    ] = None,
    allow_fractional: options.AllowFractional = False,
    protein: options.ProteinPath = None,
    rna_modality: options.RnaModality = "rna",
    protein_modality: options.ProteinModality = "prot",
    rna_layer: options.RnaLayer = None,
    protein_layer: options.ProteinLayer = None,
    protein_obsm: options.ProteinObsm = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Convert counts for training from disk, or a model to or from scvi-tools.

    OUTPUT that ends in .zarr is written from counts, some cells at a time: a MuData with RNA and
    proteins, which `totalvi run --on-disk` and Model(path) read fast. Otherwise INPUT is a model.
    Nothing in the files of other packages is run, and scvi-tools need not be installed.

    \b
    Examples:
      totalvi convert cells.h5ad cells.zarr
      totalvi convert scvi_folder -o pbmc.totalvi
      totalvi convert pbmc.totalvi -o scvi_folder --to scvi
    """
    if (target is None) == (output is None):
        raise DataError("convert needs one output: name it once, as in `convert INPUT OUTPUT`")
    written = target or output
    assert written is not None
    if written.suffix == ".zarr":
        from totalvi.analysis.convert import convert_counts
        from totalvi.analysis.prepare import ReadOptions
        from totalvi.data.schema import Keys

        if to is not None or config is not None:
            raise DataError(f"--to and --config are for models, and {written} is to hold counts")
        keys = Keys(
            rna_modality=rna_modality,
            protein_modality=protein_modality,
            rna_layer=rna_layer,
            protein_layer=protein_layer,
            protein_expression_obsm_key=protein_obsm,
        )
        options_of_reading = ReadOptions(protein_path=protein)
        typer.echo(
            convert_counts(
                input, written, keys=keys, options=options_of_reading, overwrite=overwrite
            )
        )
        return
    from totalvi.model import Model
    from totalvi.persistence.format import is_model
    from totalvi.persistence.scvi_read import model_of_scvi, read_config

    is_ours = is_model(input)
    to = to or ("scvi" if is_ours else "totalvi")
    if is_ours:
        model = Model.load(input)
    else:
        described = None if config is None else read_config(config)
        model = model_of_scvi(input, described, allow_fractional=allow_fractional)
    save = model.save_scvi if to == "scvi" else model.save
    typer.echo(save(written, overwrite=overwrite))
