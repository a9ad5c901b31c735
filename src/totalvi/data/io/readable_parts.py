"""Read the parts of an AnnData or MuData that can be read, and note which cannot.

A part that nobody asked for may be written in a way that the reader of the whole does not know.
"""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

import h5py
import mudata
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem
from mudata import MuData

from totalvi.data.io.trust import first_line

READING = "totalvi_reading"  # entry of uns: what reading changed or left out, by code
UNREAD = "parts that cannot be read"  # entry of uns: why, for each of them
_PARTS = ("layers", "obsm", "varm", "uns")
_PAIRWISE = ("obsp", "varp")


class LeftOut(NamedTuple):
    """What was not read, and what was read otherwise than it is written.

    Attributes
    ----------
    unread
        Why an entry could not be read, by its name.
    notes
        Sentences, by the code of a finding.
    """

    unread: dict[str, str]
    notes: dict[str, str]

    def say_in(self, uns: MutableMapping[str, Any]) -> None:
        """Keep it in ``uns``, for those who report on the data."""
        if self.unread:
            uns[UNREAD] = self.unread
            parts = "; ".join(f"{part} ({why})" for part, why in self.unread.items())
            self.notes["unread"] = f"Left out, as they cannot be read: {parts}."
        if self.notes:
            uns[READING] = {**uns.get(READING, {}), **self.notes}


def say_of_reading(data: AnnData | MuData, code: str, message: str) -> None:
    """Note in ``uns`` what reading changed or left out, which the checks then report."""
    data.uns[READING] = {**data.uns.get(READING, {}), code: message}


def gathered(owners: Iterable[tuple[str, MutableMapping[str, Any]]]) -> LeftOut:
    """Take what `LeftOut.say_in` kept out of the ``uns`` of modalities, by name; "" is the whole."""
    all_of_them = LeftOut({}, {})
    for modality, uns in owners:
        where = f' of modality "{modality}"' if modality else ""
        unread = uns.pop(UNREAD, {}).items()
        all_of_them.unread.update({f"{part}{where}": reason for part, reason in unread})
        all_of_them.notes.update(uns.pop(READING, {}))
    return all_of_them


def readable_anndata(
    group: h5py.Group | zarr.Group,
    error: Exception | None = None,
    take: Callable[[Any], Any] = read_elem,
) -> AnnData:
    """Read an AnnData without the parts that cannot be, which ``uns`` then names.

    ``take`` reads all that may stay on disk. ``error`` is what the reader of the whole raised, and is
    raised again where the counts or the annotation are what cannot be read.
    """
    left_out = LeftOut({}, {})
    try:
        obs, var = (_readable_table(group, axis, left_out) for axis in ("obs", "var"))
        counts = take(group["X"]) if "X" in group else None
        places = (*_PARTS, *_PAIRWISE) if take is read_elem else _PARTS
        axes = (obs.index, var.index)
        parts = {place: _readable_parts(group, place, axes, take, left_out) for place in places}
        if error is not None and counts is None and not left_out.unread:
            raise error
        adata = AnnData(
            counts, obs=obs, var=var, raw=_raw(group, len(obs), take, left_out), **parts
        )
    except Exception as fault:
        raise (error or fault) from None
    left_out.say_in(adata.uns)
    return adata


def _readable_table(group: h5py.Group | zarr.Group, axis: str, left_out: LeftOut) -> pd.DataFrame:
    """Return ``obs`` or ``var`` with the columns that can be read, and note the others."""
    stored = group[axis]
    try:
        whole: pd.DataFrame = read_elem(stored)
        return whole
    except Exception:
        if not isinstance(stored, h5py.Group | zarr.Group):
            raise
    index = pd.Index(read_elem(stored[str(stored.attrs["_index"])]))
    columns = {}
    for name in map(str, stored.attrs["column-order"]):
        try:
            if "categories" in stored[name].attrs:  # codes, of the categories of an old format
                raise ValueError("its format is older than AnnData 0.7; write the file again.")
            columns[name] = pd.Series(read_elem(stored[name]), index=index)
        except Exception as fault:  # as of any part that nobody asked for
            left_out.unread[f'{axis}["{name}"]'] = first_line(fault)
    return pd.DataFrame(columns, index=index)


def _readable_parts(
    group: h5py.Group | zarr.Group,
    place: str,
    axes: tuple[pd.Index, pd.Index] | None,
    take: Callable[[Any], Any],
    left_out: LeftOut,
) -> dict[str, Any]:
    """Return the entries of a part such as ``obsm`` that can be read, and note the others.

    Raises
    ------
    ValueError
        If ``place`` is no group, as the proteins may have been in it.
    """
    held = group.get(place, {})
    if not isinstance(held, h5py.Group | zarr.Group | dict):
        raise ValueError(f"The entries of {place} cannot be read, as it is no group.")
    parts: dict[str, Any] = {}
    for name in held:
        try:
            found = (read_elem if place == "uns" else take)(held[name])
            if axes is not None and place != "uns":
                found = _fitting(found, f'{place}["{name}"]', axes, left_out)
            parts[name] = found
        except Exception as fault:  # any library may fail on a part that nobody asked for
            left_out.unread[f'{place}["{name}"]'] = first_line(fault)
    return parts


def _fitting(found: Any, entry: str, axes: tuple[pd.Index, pd.Index], left_out: LeftOut) -> Any:
    """Return an entry after checking that it is of these cells and features."""
    n_obs, n_vars = map(len, axes)
    place = entry.partition("[")[0]
    shapes = {"layers": (n_obs, n_vars), "obsm": (n_obs,), "varm": (n_vars,)}
    shape = (shapes | {"obsp": (n_obs, n_obs), "varp": (n_vars, n_vars)})[place]
    if found.shape[: len(shape)] != shape:
        raise ValueError(f"it is {' x '.join(map(str, found.shape))}")
    if place == "obsm" and isinstance(found, pd.DataFrame):
        cells = axes[0]
        rows = _rows_of_cells(found.index, cells)
        if not rows.equals(found.index.astype(str)):
            left_out.notes["rows_numbered"] = (
                f"The rows of {entry} have numbers in place of names; they were taken as the cells, in "
                "their order."
            )
        found = found.set_axis(rows, axis=0)
        found = found.loc[cells] if cells.is_unique else found
    return found


def _raw(
    group: h5py.Group | zarr.Group, n_obs: int, take: Callable[[Any], Any], left_out: LeftOut
) -> dict[str, Any] | None:
    raw = group.get("raw")
    if (
        raw is None or raw.attrs.get("encoding-type") == "null"
    ):  # as anndata writes that there is none
        return None
    try:
        found = {"X": take(raw["X"]), "var": read_elem(raw["var"])}
        if found["X"].shape != (n_obs, len(found["var"])):
            raise ValueError(f"it is {' x '.join(map(str, found['X'].shape))}")
    except Exception as fault:  # as of any part that nobody asked for
        left_out.unread["raw"] = first_line(fault)
        return None
    return found | {"varm": _readable_parts(raw, "varm", None, read_elem, left_out)}


def _rows_of_cells(rows: pd.Index, cells: pd.Index) -> pd.Index:
    """Return the cells that the rows of a table are of, by name, or in order where they are numbered.

    Raises
    ------
    ValueError
        If the rows are named otherwise than the cells.
    """
    names = rows.astype(str)
    if names.isin(cells).all():
        return names
    numbers = np.arange(len(cells))
    if any(np.array_equal(names, (numbers + first).astype(str)) for first in (0, 1)):
        return cells
    raise ValueError(f'its rows are named "{names[0]}", ... and the cells "{cells[0]}", ...')


def readable_mudata(
    group: h5py.Group | zarr.Group,
    error: Exception | None = None,
    take: Callable[[Any], Any] = read_elem,
) -> MuData:
    """Read a MuData without the parts that cannot be read."""
    held = group["mod"]
    names = [str(name) for name in held.attrs.get("mod-order", sorted(held))]
    modalities = {name: readable_anndata(held[name], error, take) for name in names}
    left_out = LeftOut({}, {})
    try:
        obs = _readable_table(group, "obs", left_out)
        places = ("obsm", "obsp", "uns") if take is read_elem else ("uns",)
        parts = {place: _readable_parts(group, place, None, take, left_out) for place in places}
        mdata = joined(modalities, obs)
    except Exception as fault:
        raise (error or fault) from None
    for place, entries in parts.items():
        entries = {name: entry for name, entry in entries.items() if name not in modalities}
        getattr(mdata, place).update(entries)
    left_out.say_in(mdata.uns)
    return mdata


def joined(modalities: dict[str, AnnData], obs: pd.DataFrame) -> MuData:
    """Join modalities, with the columns of ``obs`` for the cells that are left."""
    names: pd.Index | None = None
    for adata in modalities.values():
        if names is None:
            names = adata.obs_names
        elif adata.obs_names.equals(names):
            # the names of a million cells take 70 MB, so they are kept once
            adata.obs_names = names.rename(adata.obs_names.name)
    with mudata.set_options(pull_on_update=False):
        mdata = MuData(modalities)
        if not mdata.obs_names.equals(obs.index):
            obs = obs.reindex(mdata.obs_names)
        for name in obs.columns:
            mdata.obs[name] = obs[name].array
    return mdata
