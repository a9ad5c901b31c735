"""Write the tables of a run as CSV, and read what a later step needs of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LONG_TABLES = {
    *("cells", "differential_expression", "population_expression", "conditions"),
    *("condition_power", "memberships"),
}
DIGITS = 6  # that are kept of a number
_EXACT_POWER = 22  # the largest power of ten that a float64 holds


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as CSV, numbers with six digits; those of many rows with gzip."""
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        if name in LONG_TABLES:
            fast = {"method": "gzip", "compresslevel": 1}  # a sixth larger, in a fifth of the time
            _in_short(table).to_csv(folder / f"{name}.csv.gz", compression=fast)
        else:
            _in_short(table).to_csv(folder / f"{name}.csv")


def _in_short(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that prints with six digits, or all of whole numbers, faster than by a format."""
    columns: dict[Any, Any] = {}
    for name, column in table.items():
        columns[name] = column
        if column.dtype.kind == "f":
            values = column.to_numpy(np.float64)
            whole = bool((np.abs(values) < 2**53).all()) and np.array_equal(values, np.rint(values))
            columns[name] = values.astype(np.int64) if whole else rounded(values).astype(object)
    return pd.DataFrame(columns, index=table.index, columns=table.columns)


def rounded(values: np.ndarray) -> np.ndarray:
    """Return the numbers that six digits stand for, so that Python prints no more of them.

    Examples
    --------
    >>> rounded(np.array([0.1234567, 1234567.0, -2.0, np.nan])).tolist()
    [0.123457, 1234570.0, -2.0, nan]
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        places = DIGITS - 1 - np.floor(np.log10(np.abs(values)))
        power = 10.0 ** np.abs(places)
        fewer = np.where(
            places >= 0, np.rint(values * power) / power, np.rint(values / power) * power
        )
    result: np.ndarray = np.where(np.isfinite(places), fewer, values)
    beyond = np.isfinite(places) & (np.abs(places) > _EXACT_POWER)
    result[beyond] = [float(f"{value:.{DIGITS}g}") for value in values[beyond]]
    return result


def read_protein_warnings(folder: Path) -> list[str]:
    """Return the warning of each antibody from the table of proteins in a folder of tables."""
    table = pd.read_csv(folder / "proteins.csv", usecols=["warning"], keep_default_na=False)
    return list(table["warning"])
