"""The gates of each cell: as a table, as CSV, and in a copy of the results."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem

from totalvi.errors import OutputError
from totalvi.explorer.gates import Gating, deepest, members
from totalvi.explorer.run_cells import Cells, RunCells
from totalvi.run.folder import staged_file

GATE, PREFIX, PROBABILITY = "gate", "in_gate ", "probability "  # columns of exported gates


def gate_columns(
    cells: Cells, gating: Gating, probabilities: Mapping[Gating, np.ndarray] | None = None
) -> pd.DataFrame:
    """Return the gates of each cell.

    Parameters
    ----------
    probabilities
        Of each cell to lie in a gate, (N,), by the gate with all that it needs; those of other gates
        are left out.

    Returns
    -------
    pandas.DataFrame
        Indexed by cell: ``gate``, categorical, the path of the innermost gate, such as
        "T cells/CD4 T", or "" in none; a boolean column ``in_gate NAME`` for each gate; and
        ``probability NAME`` of those whose probability was computed.
    """
    inside = members(gating, cells.inside, cells.n_cells)
    table = gate_table(gating, inside, cells.obs.index)
    for name in gating.populations:
        known = (probabilities or {}).get(gating.needed(name))
        if known is not None:
            table[f"{PROBABILITY}{name}"] = known
    return table.rename_axis("cell")


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table for a CSV file, in which no spreadsheet reads a name of a gate as a formula.

    An apostrophe goes before names that begin with =, +, - or @.

    Examples
    --------
    >>> without_formulas(pd.DataFrame({"gate": ["=1+1", "CD4+", ""]}))["gate"].tolist()
    ["'=1+1", 'CD4+', '']
    """
    names = table[GATE].astype(str)
    return table.assign(**{GATE: names.where(~names.str.match("[=+@-]"), "'" + names)})


def gate_table(
    gating: Gating, inside: Mapping[str | None, np.ndarray], index: pd.Index
) -> pd.DataFrame:
    """Return the table of `gate_columns` from masks of `totalvi.explorer.gates.members`."""
    paths = ["", *("/".join(gating.path(gate.name)) for _, gate in gating.walk())]
    columns: dict[str, object] = {
        GATE: pd.Categorical(deepest(gating, inside), categories=list(dict.fromkeys(paths)))
    }
    columns |= {f"{PREFIX}{name}": inside[name] for name in gating.populations}
    return pd.DataFrame(columns, index=index)


def write_gated(
    cells: Cells,
    gating: Gating,
    output: Path,
    probabilities: Mapping[Gating, np.ndarray] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a copy of the run's `results.h5mu` with the gates of each cell in ``obs``.

    They are in ``obs`` of the MuData and of each modality, in place of those of an earlier export.

    Parameters
    ----------
    output
        A file ending in ``.h5mu``, other than `results.h5mu`.
    probabilities
        As of `gate_columns`.

    Raises
    ------
    OutputError
        When ``output`` exists and ``overwrite`` is False, or cannot be written; of a run on disk; or
        where there are no results of a run.
    """
    if not isinstance(cells, RunCells):
        raise OutputError(
            f"{cells.title} is not a run, so it has no results to copy; take the gates as CSV."
        )
    if cells.on_disk:
        raise OutputError(
            f"{cells.results} is too large to copy; take the gates of each cell as CSV."
        )
    table = gate_columns(cells, gating, probabilities)
    with staged_file(output, suffix=".h5mu", overwrite=overwrite) as staged:
        shutil.copyfile(cells.results, staged)
        with h5py.File(staged, "r+") as file:
            for where in ("obs", *(f"mod/{modality}/obs" for modality in file["mod"])):
                _add_columns(file, where, table)
    return output


def _add_columns(file: h5py.File, where: str, table: pd.DataFrame) -> None:
    obs = read_elem(file[where])
    earlier = [name for name in obs if name == GATE or str(name).startswith((PREFIX, PROBABILITY))]
    obs = obs.drop(columns=earlier)
    if not obs.index.equals(table.index):
        table = table.reindex(obs.index)
    for name in table:
        obs[name] = table[name]
    write_elem(file, where, obs)
