"""Tables of what is in empty droplets, by batch and protein: what makes one, and joining them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from totalvi.data.ambient import pooled_ambient
from totalvi.data.finding import listed
from totalvi.errors import DataError

AMBIENT = "ambient"  # entry of uns
ANY_BATCH = ""
NUMBERS = ["log_mean", "log_sd", "standard_error", "n_droplets"]
COLUMNS = ["batch", "protein", *NUMBERS]


def ambient_in(uns: Mapping[str, Any]) -> pd.DataFrame | None:
    """Return the table that `totalvi.read` or `concat` left; None where there is none, or another's.

    Raises
    ------
    DataError
        When it has the columns of such a table and cannot be used.
    """
    found = uns.get(AMBIENT)
    if not isinstance(found, pd.DataFrame) or not set(COLUMNS) <= set(found):
        return None
    return checked_table(found, f'uns["{AMBIENT}"]')


def checked_table(given: Any, where: str) -> pd.DataFrame:
    """Return a table of `totalvi.ambient_profile`, its names as texts, once it is one.

    Raises
    ------
    DataError
        When it is something else, or a batch and protein have no row of finite numbers of their own.
    """
    fault = _fault(given)
    if fault is not None:
        raise DataError(
            f"{where} is not a table of totalvi.ambient_profile ({fault}): remove it, or give "
            "empty_droplets=False"
        )
    texts = {column: given[column].astype(str).astype(object) for column in ("batch", "protein")}
    return pd.DataFrame(
        given.assign(**texts, **{name: pd.to_numeric(given[name]) for name in NUMBERS})
    )


def _fault(given: Any) -> str | None:
    if not isinstance(given, pd.DataFrame):
        return f"but a {type(given).__name__}"
    missing = [column for column in COLUMNS if column not in given]
    if missing:
        return f"without {listed(missing)}"
    if given.empty:
        return "without rows"
    numbers = given[NUMBERS].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    least = [-np.inf, 0, 0, 1]
    for column, values, at_least in zip(NUMBERS, numbers.T, least, strict=True):
        if not (np.isfinite(values) & (values >= at_least)).all():
            return f'"{column}" has values that cannot be'
    names = given[["batch", "protein"]].astype(str)
    if names.duplicated().any():
        batch, protein = names[names.duplicated()].iloc[0]
        of_batch = f' in batch "{batch}"' if batch else ""
        return f'"{protein}" has several rows{of_batch}'
    return None


def of_batches(table: pd.DataFrame, batches: Sequence[str], prefix: str) -> pd.DataFrame:
    """Return what a data set's table says of each of its batches in the joined data.

    Rows of a batch that is there under the same name behind ``prefix`` are of it alone. The others,
    of lanes that were not kept apart or of all batches, are pooled, and stand for each batch that has
    none of its own.
    """
    named = prefix + table["batch"]
    others = table[~named.isin(batches)]
    parts = []
    for batch in batches:
        own = table[named == batch]
        rows = own if len(own) else others
        if len(rows):
            parts.append(_pooled(rows).assign(batch=batch))
    return pd.concat(parts, ignore_index=True)


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each protein, as if its droplets were estimated from together."""
    if not rows["protein"].duplicated().any():
        return rows
    tables = [
        rows.pivot(index="batch", columns="protein", values=column)[rows["protein"].unique()]
        for column in ("log_mean", "log_sd", "n_droplets")
    ]
    log_mean, log_sd, n_droplets = (table.to_numpy(float) for table in tables)
    ambient = pooled_ambient(log_mean, log_sd, n_droplets)
    pooled = pd.DataFrame({"protein": tables[0].columns.to_numpy(object), **ambient._asdict()})
    total = np.nansum(n_droplets, axis=0).astype(np.int64)
    return pooled.assign(batch=ANY_BATCH, n_droplets=total)[COLUMNS]
