"""The words of the command line in place of those of Python."""

import re

OPTIONS = {
    "allow_fractional": "--allow-fractional",
    "batch_key": "--batch",
    "panel_key": "--panel",
    "labels_key": "--labels",
    "size_factor_key": "--size-factor",
    "categorical_covariate_keys": "--covariate",
    "continuous_covariate_keys": "--continuous-covariate",
    "rna_modality": "--rna-modality",
    "protein_modality": "--protein-modality",
    "rna_layer": "--rna-layer",
    "protein_layer": "--protein-layer",
    "protein_expression_obsm_key": "--protein-obsm",
    "protein_path": "--protein",
    "n_ubiquitous": "--ubiquitous",
    "median_foreground_factor": "--foreground-factor",
    "n_empty": "--empty",
    "cells_in": "--cells-in",
    "n_cells": "--cells",
    "n_genes": "--genes",
    "n_proteins": "--proteins",
    "n_batches": "--batches",
    "n_cell_types": "--cell-types",
    "n_unmeasured": "--unmeasured",
    "max_epochs": "--epochs",
    # Arguments whose names are also words, where they mean the argument.
    "isotype_controls=()": "--keep-isotypes",
    "checkpoint_every": "--checkpoint-every",
    "on_disk": "--on-disk",
    "hashtags=": "--hashtags ",
    "controls=": "--controls ",
    "reference=": "--reference ",
    "labels=": "--labels ",
    "reference_batch": "--reference-batch",
    "leave out hashtags": "leave out --hashtags",
    "leave out controls": "leave out --controls",
    "leave out raw": "leave out --raw",
    "leave out genome": "leave out --genome",
    "another as genome": "another with --genome",
    "by genome=": "with --genome",
    "with overwrite": "with --overwrite",
    "go on with resume": "go on with --resume",
    "the same call with resume": "the same command with --resume",
    "give overwrite=True": "give --overwrite",
    "describe it with config": "describe it with --config",
}
"""What a message says for Python, and the same for the command line."""

# Not inside of quoted names and paths.
_ARGUMENT = re.compile(
    rf"(?<![\w\"/.-])({'|'.join(map(re.escape, OPTIONS))})(?![\w/-]|\.\w)(=True|=)?"
)


def with_options(message: str) -> str:
    """Return a message that names options in place of Python arguments.

    Examples
    --------
    >>> with_options('give the raw counts, likely with rna_layer="counts"')
    'give the raw counts, likely with --rna-layer "counts"'
    >>> with_options("accept fractions on purpose with allow_fractional=True")
    'accept fractions on purpose with --allow-fractional'
    """
    return _ARGUMENT.sub(
        lambda found: OPTIONS[found[1]] + (" " if found[2] == "=" else ""), message
    )
