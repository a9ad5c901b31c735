"""`totalvi check`: what is in a file, and what stands in the way of a fit."""

import json
from typing import Annotated

import typer

from totalvi.cli import options
from totalvi.cli.wording import with_options

COLORS = {"error": typer.colors.RED, "warning": typer.colors.YELLOW, "note": None}


def check(
    input: options.Input,
    raw: options.RawPath = None,
    protein: options.ProteinPath = None,
    genome: options.Genome = None,
    hashtags: options.Hashtags = None,
    controls: options.Controls = None,
    cells_in: options.CellsIn = None,
    batch: options.Batch = None,
    panel: options.Panel = None,
    labels: options.Labels = None,
    size_factor: options.SizeFactor = None,
    covariate: options.Covariates = None,
    continuous_covariate: options.ContinuousCovariates = None,
    allow_fractional: options.AllowFractional = False,
    keep_isotypes: options.KeepIsotypes = False,
    rna_modality: options.RnaModality = "rna",
    protein_modality: options.ProteinModality = "prot",
    rna_layer: options.RnaLayer = None,
    protein_layer: options.ProteinLayer = None,
    protein_obsm: options.ProteinObsm = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is in a file of counts.

    Lists errors, warnings and notes, each with its mend. The exit status is 2 when there is an
    error.

    \b
    Examples:
      totalvi check filtered_feature_bc_matrix.h5
      totalvi check cells.h5mu --batch donor --json
      totalvi check filtered_feature_bc_matrix.h5 --raw raw_feature_bc_matrix.h5
    """
    from totalvi.analysis.prepare import ReadOptions, find_ambient, read_input
    from totalvi.data.describe import check_source, find_source
    from totalvi.data.finding import Finding
    from totalvi.data.isotypes import control_findings, split_controls
    from totalvi.data.modalities import renamed_features
    from totalvi.data.schema import Keys
    from totalvi.errors import DataError

    keys = Keys(
        batch_key=batch,
        panel_key=panel,
        labels_key=labels,
        size_factor_key=size_factor,
        categorical_covariate_keys=tuple(covariate or ()),
        continuous_covariate_keys=tuple(continuous_covariate or ()),
        rna_modality=rna_modality,
        protein_modality=protein_modality,
        rna_layer=rna_layer,
        protein_layer=protein_layer,
        protein_expression_obsm_key=protein_obsm,
        allow_fractional=allow_fractional,
        isotype_controls=() if keep_isotypes else None,
    )
    read_options = ReadOptions(protein, genome, hashtags, controls, cells_in)
    data, keys = read_input(input, keys, read_options)
    try:
        source = find_source(data, keys)
        findings = [*check_source(source, keys), *renamed_features(data)]
        split = split_controls(data, source, keys.protein_modality, keys.isotype_controls)
        findings += control_findings(split[1])
        findings += find_ambient(data, keys, source.protein_names, options.raw_paths(raw))[1]
    except DataError as error:
        findings = [Finding("error", "counts_not_found", str(error))]
    findings = [finding._replace(message=with_options(finding.message)) for finding in findings]
    if as_json:
        listed = [finding._asdict() for finding in findings]
        typer.echo(json.dumps({"input": str(input), "findings": listed}, indent=2))
    else:
        for finding in findings:
            severity = typer.style(f"{finding.severity:<9}", fg=COLORS[finding.severity])
            typer.echo(f"{severity}{finding.message}")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(2)
