"""How to do a run again: the command line that makes the same results."""

import shlex
from collections.abc import Mapping
from typing import Any

from totalvi.analysis.record import OF_THE_OUTPUT
from totalvi.cli.wording import OPTIONS

DEFAULTS = {"n_genes": 4000, "resolution": 1.0, "seed": 0, "drop_empty_cells": True}
DEFAULT_MODALITIES = {"rna_modality": "rna", "protein_modality": "prot"}
UNNAMED = {"input", *OF_THE_OUTPUT, "drop_empty_cells"}


def command_line(arguments: Mapping[str, Any]) -> str:
    """Return the `totalvi run` command of these arguments of a run; the seed is always said.

    Examples
    --------
    >>> command_line({"input": "a b.h5", "output": "out", "batch_key": "donor", "seed": 3})
    "totalvi run 'a b.h5' -o out --batch donor --seed 3"
    """
    words = ["totalvi", "run", str(arguments["input"]), "-o", str(arguments["output"])]
    for name, value in arguments.items():
        default = {**DEFAULTS, **DEFAULT_MODALITIES}.get(name)
        if name in UNNAMED or value in (None, False, []) or (value == default and name != "seed"):
            continue
        option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
        for item in value if isinstance(value, list) else [value]:
            words += [option] if item is True else [option, str(item)]
    if arguments.get("drop_empty_cells") is False:
        words.append("--refuse-empty-cells")
    return shlex.join(words)
