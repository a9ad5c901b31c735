"""Read AnnData and MuData from HDF5 and zarr."""

from pathlib import Path

import anndata
import h5py
import mudata
import zarr
from anndata import AnnData
from mudata import MuData

from totalvi.data.containers import require_honest_zarr, require_plain_folder, require_plain_hdf5
from totalvi.data.integrity import reading, require_sound_anndata
from totalvi.errors import ReadError


def read_h5ad(path: Path) -> AnnData:
    """Read an AnnData from HDF5."""
    with reading(path, "an AnnData"):
        _require_plain(path)
        return _checked(anndata.read_h5ad(path), path)


def read_h5mu(path: Path) -> MuData:
    """Read a MuData from HDF5."""
    with reading(path, "a MuData"), mudata.set_options(pull_on_update=False):
        _require_plain(path)
        return _checked_mudata(mudata.read_h5mu(path), path)


def read_zarr(path: Path) -> AnnData | MuData:
    """Read whichever of the two a zarr store holds."""
    with reading(path, "a zarr store"):
        group = open_zarr(path)
        if "mod" in group:
            with mudata.set_options(pull_on_update=False):
                return _checked_mudata(mudata.read_zarr(path), path)
        if not {"obs", "var"} <= set(group):
            found = ", ".join(sorted(group)) or "nothing"
            raise ReadError(
                f"{path} is a zarr store of neither an AnnData nor a MuData (it holds {found}): "
                "write it with the write_zarr method of one of them"
            )
        return _checked(anndata.read_zarr(path), path)


def open_zarr(path: Path) -> zarr.Group:
    """Open a zarr store that is whole and believable.

    Raises
    ------
    ReadError
        When it is not, naming the member.
    """
    require_plain_folder(path)
    group = zarr.open_group(path, mode="r")
    require_honest_zarr(group, path)
    _require_names(group, path)
    parts = group["mod"].groups() if "mod" in group else [("", group)]
    for _, part in parts:
        _require_all_chunks(part, path)
    return group


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file that is whole and believable.

    Raises
    ------
    ReadError
        When it is not, naming the member.
    """
    _require_plain(path)
    return h5py.File(path, "r")


def _require_plain(path: Path) -> None:
    with h5py.File(path, "r") as file:
        require_plain_hdf5(file, path)
        _require_names(file, path)


def _require_names(group: h5py.Group | zarr.Group, path: Path) -> None:
    """Refuse data whose cells or features lost their names, for which numbers would stand in."""
    parts = {"": group}
    if "mod" in group:
        parts = {**{f"mod/{name}/": group["mod"][name] for name in group["mod"]}, **parts}
    if not ({"obs", "var"} <= set(group) or len(parts) > 1):
        return  # neither an AnnData nor a MuData with modalities, which is said elsewhere
    for place, part in parts.items():
        for axis in ("obs", "var"):
            table = part.get(axis)
            if isinstance(table, h5py.Dataset):
                continue  # of AnnData before 0.7, in one piece with its names
            index = "" if table is None else str(table.attrs.get("_index", ""))
            if not (index and index in table):
                raise ReadError(
                    f'{path} has lost the names in "{place}{axis}": copy, download or write it again'
                )


def _require_all_chunks(group: zarr.Group, path: Path) -> None:
    """Refuse a store that lost chunks of its counts or names, which zarr would read as zeros."""
    needed = [name for name in ("X", "X/data", "X/indices") if name in group]
    needed += [
        f"{axis}/{group[axis].attrs.get('_index', '_index')}"
        for axis in ("obs", "var")
        if axis in group
    ]
    needed += [
        f"{place}/{name}"
        for place in ("layers", "obsm")
        if place in group
        for name, member in group[place].members(max_depth=None)
        if name.rpartition("/")[2] not in ("indptr", "codes", "categories")
    ]
    for name in needed:
        array = group.get(name)
        if not isinstance(array, zarr.Array):
            continue
        n_lost = array.nchunks - array.nchunks_initialized
        if n_lost > 0:
            raise ReadError(
                f'{path} lacks {n_lost} of {array.nchunks} chunks of "{array.path}": '
                "copy, download or write it again"
            )


def _checked(adata: AnnData, path: Path) -> AnnData:
    require_sound_anndata(adata, str(path))
    return adata


def _checked_mudata(mdata: MuData, path: Path) -> MuData:
    if not mdata.mod:
        raise ReadError(f"{path} is a MuData without modalities: write it again with its counts")
    for name, adata in mdata.mod.items():
        require_sound_anndata(adata, f'modality "{name}" of {path}')
    return mdata
