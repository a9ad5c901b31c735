"""Read AnnData and MuData from HDF5 and zarr, and the ``.h5`` files that Cell Ranger writes."""

import os
import stat
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import anndata
import h5py
import mudata
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset
from mudata import MuData

from totalvi.data.io.features import join_genomes, pick_genomes, prefix_shared_names
from totalvi.data.io.readable_parts import gathered, readable_anndata, readable_mudata
from totalvi.data.io.stand_ins import require_file_itself
from totalvi.data.io.trust import (
    counts_from_csr,
    reading,
    require_honest_zarr,
    require_lengths,
    require_plain_hdf5,
    require_sound_anndata,
)
from totalvi.errors import ReadError, TotalviError

_Data = TypeVar("_Data", AnnData, MuData)


def read_h5ad(path: Path) -> AnnData:
    """Read an AnnData from HDF5."""
    with reading(path, "an AnnData"), open_hdf5(path) as file:
        return _whole_or_parts(
            lambda: _checked(anndata.read_h5ad(path), path),
            lambda error: _checked(readable_anndata(file, error), path),
        )


def read_h5mu(path: Path) -> MuData:
    """Read a MuData from HDF5."""
    with (
        reading(path, "a MuData"),
        mudata.set_options(pull_on_update=False),
        open_hdf5(path) as file,
    ):
        return _whole_or_parts(
            lambda: _checked_mudata(mudata.read_h5mu(path), path),
            lambda error: _checked_mudata(readable_mudata(file, error), path),
        )


def read_zarr(path: Path) -> AnnData | MuData:
    """Read the AnnData or MuData in a zarr store."""
    with reading(path, "a zarr store"), mudata.set_options(pull_on_update=False):
        group = open_zarr(path)
        if "mod" in group:
            return _whole_or_parts(
                lambda: _checked_mudata(mudata.read_zarr(path), path),
                lambda error: _checked_mudata(readable_mudata(group, error), path),
            )
        if not {"obs", "var"} <= set(group):
            found = ", ".join(sorted(group)) or "nothing"
            raise ReadError(
                f"{path} is a zarr store of neither an AnnData nor a MuData (it holds {found}); "
                "write it with the write_zarr method of one of them."
            )
        return _whole_or_parts(
            lambda: _checked(anndata.read_zarr(path), path),
            lambda error: _checked(readable_anndata(group, error), path),
        )


def _whole_or_parts(whole: Callable[[], _Data], parts: Callable[[Exception], _Data]) -> _Data:
    """Return what is read at once or, where a library fails at that, part by part."""
    try:
        return whole()
    except TotalviError:
        raise
    except Exception as error:
        return parts(error)


def open_zarr(path: Path) -> zarr.Group:
    """Open a zarr store after checking that it is complete and consistent.

    Raises
    ------
    ReadError
        When it is not; the message names the member.
    """
    require_plain_folder(path)
    group = zarr.open_group(path, mode="r")
    require_honest_zarr(group, path)
    _require_names(group, path)
    parts = group["mod"].groups() if "mod" in group else [("", group)]
    for _, part in parts:
        _require_all_chunks(part, path)
    return group


def require_plain_folder(folder: Path) -> None:
    """Refuse a folder that holds anything except its own files and folders.

    Raises
    ------
    ReadError
        For a link that points out of it, a pipe, a device, or an empty folder.
    """
    root = folder.resolve()
    for place, folders, files in os.walk(root):
        if not (folders or files):
            raise ReadError(f"{place} is empty; copy, download or write {folder} again.")
        for name in (*folders, *files):
            entry = Path(place, name)
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode) and not entry.resolve().is_relative_to(root):
                raise ReadError(
                    f"{entry} is a link out of {folder}; replace it by the file that it points to."
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or entry.is_file() or entry.is_dir()):
                raise ReadError(f"{entry} is not a file; copy, download or write {folder} again.")


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file, under the conditions of `open_zarr`."""
    _require_plain(path)
    return h5py.File(path, "r")


def _require_plain(path: Path) -> None:
    with h5py.File(path, "r") as file:
        require_plain_hdf5(file, path)
        _require_names(file, path)


def _require_names(group: h5py.Group | zarr.Group, path: Path) -> None:
    """Refuse data whose cells or features lost their names, which numbers would replace."""
    parts = {"": group}
    if "mod" in group:
        parts = {**{f"mod/{name}/": group["mod"][name] for name in group["mod"]}, **parts}
    if not ({"obs", "var"} <= set(group) or len(parts) > 1):
        return  # neither an AnnData nor a MuData with modalities, which another check reports
    for place, part in parts.items():
        for axis in ("obs", "var"):
            table = part.get(axis)
            if isinstance(table, h5py.Dataset):
                continue  # AnnData before 0.7 stored it in one piece with its names
            index = "" if table is None else str(table.attrs.get("_index", ""))
            if not (index and index in table):
                raise ReadError(
                    f'{path} has lost the names in "{place}{axis}"; copy, download or write it again.'
                )


def _require_all_chunks(group: zarr.Group, path: Path) -> None:
    """Refuse a store that lost names or counts, which zarr would read as empty texts and zeros.

    Chunks of zeros are not stored, so that one of a dense array, or of the values of a sparse layer,
    may rightly be absent; a chunk of names, or of where the counts of a sparse matrix are, may not.
    """
    needed = [name for name in ("X", "X/data", "X/indices", "X/indptr") if name in group]
    needed += [
        f"{axis}/{group[axis].attrs.get('_index', '_index')}"
        for axis in ("obs", "var")
        if axis in group
    ]
    needed += [
        f"{place}/{name}/{part}"
        for place in ("layers", "obsm")
        for name in group.get(place, ())
        for part in ("indices", "indptr")
        if isinstance(group[place][name], zarr.Group) and part in group[place][name]
    ]
    for name in needed:
        array = group.get(name)
        if not isinstance(array, zarr.Array):
            continue
        n_lost = array.nchunks - array.nchunks_initialized
        if name == "X" and n_lost < array.nchunks:
            continue  # a count that is not there may be zero, but hardly all of them
        if n_lost > 0 and array.size:
            raise ReadError(
                f'{path} lacks {n_lost} of {array.nchunks} chunks of "{array.path}"; '
                "copy, download or write it again."
            )
    for name, array in group.members(max_depth=None):
        folder = path / array.path
        if isinstance(array, zarr.Array) and not any(
            (folder / file).is_file() for file in (".zarray", "zarr.json")
        ):
            raise ReadError(f'{path} has lost "{name}"; copy, download or write it again.')


def _checked(adata: AnnData, path: Path) -> AnnData:
    require_sound_anndata(adata, str(path))
    return adata


def _checked_mudata(mdata: MuData, path: Path) -> MuData:
    if not mdata.mod:
        raise ReadError(f"{path} is a MuData without modalities; write it again with its counts.")
    for name, adata in mdata.mod.items():
        require_sound_anndata(adata, f'modality "{name}" of {path}')
    return mdata


SUFFIXES = (".h5ad", ".h5mu", ".zarr")


def can_stay_on_disk(path: str | PathLike[str]) -> bool:
    """Return whether the counts of a file with this name can be read some cells at a time.

    Examples
    --------
    >>> can_stay_on_disk("cells.h5mu"), can_stay_on_disk("matrix.mtx.gz")
    (True, False)
    """
    return Path(path).suffix in SUFFIXES


def open_on_disk(path: str | PathLike[str]) -> AnnData | MuData:
    """Open an AnnData (``.h5ad``, ``.zarr``) or MuData (``.h5mu``, ``.zarr``) with its counts on disk.

    ``X``, ``layers`` and ``obsm`` are datasets that are read on access. Annotation of cells and
    features is in memory. Pairwise matrices are left out.

    Raises
    ------
    ReadError
        When there is no such file, it is damaged, or its counts cannot be read some cells at a time.

    Examples
    --------
    >>> import tempfile, totalvi
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5mu"
    >>> totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5).write(path)
    >>> mdata = open_on_disk(path)
    >>> mdata.shape, type(mdata["rna"].X).__name__
    ((60, 35), '_CSRDataset')
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ReadError(f"{path} does not exist; check the path.")
    if not can_stay_on_disk(path):
        raise ReadError(
            f"{path} cannot be read some cells at a time; write it as .zarr with `totalvi convert`, or "
            "read it into memory with totalvi.read."
        )
    if path.is_file():
        require_file_itself(path, may_be_gzip=False)
    with reading(path, "an AnnData or MuData"):
        group = open_zarr(path) if path.suffix == ".zarr" else open_hdf5(path)
        if "mod" not in group:
            if not {"obs", "var"} <= set(group):
                raise ReadError(
                    f"{path} holds neither an AnnData nor a MuData; write it again with the write "
                    "methods of one of them."
                )
            return readable_anndata(group, take=_stored)
        mdata = readable_mudata(group, take=_stored)
        owners = [("", mdata.uns), *((name, part.uns) for name, part in mdata.mod.items())]
        gathered(owners).say_in(mdata.uns)
        return mdata


def _stored(found: Any) -> Any:
    """Return a dataset on disk, or the values in memory if they cannot stay on disk."""
    kind = found.attrs.get("encoding-type", "array")
    if kind in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(found)
    if kind == "array":
        return found
    return None if kind == "null" else read_elem(found)


V2_MEMBERS = ("barcodes", "data", "genes", "gene_names", "indices", "indptr", "shape")
V3_MEMBERS = ("barcodes", "data", "indices", "indptr", "shape", "features")
V3_FEATURE_MEMBERS = ("id", "name", "feature_type")


def read_10x_h5(path: Path, genome: str | None) -> AnnData:
    """Read a Cell Ranger ``.h5`` file; in version 2, all genomes or only the given one."""
    with reading(path, "a Cell Ranger .h5 file"), h5py.File(path, "r") as file:
        require_plain_hdf5(file, path)
        if "matrix" in file:
            adata = _read_v3_group(file["matrix"], path)
        else:
            groups = {k: g for k, g in file.items() if isinstance(g, h5py.Group)}
            chosen = pick_genomes(groups, genome, path)
            adata = join_genomes({k: _read_v2_group(g, path, k) for k, g in chosen.items()}, path)
    return prefix_shared_names(adata)


def _read_v3_group(group: h5py.Group, path: Path) -> AnnData:
    _require_members(group, V3_MEMBERS, path)
    features = group["features"]
    _require_members(features, V3_FEATURE_MEMBERS, path)
    var = pd.DataFrame(
        {"gene_ids": _text(features["id"]), "feature_types": _text(features["feature_type"])},
        index=_same_length(_text(features["name"]), len(features["id"]), "names", path),
    )
    for name, member in features.items():
        is_column = isinstance(member, h5py.Dataset) and member.shape == (len(var),)
        if name not in V3_FEATURE_MEMBERS and is_column and h5py.check_string_dtype(member.dtype):
            var[name] = _text(member)
    return _from_group(group, var, path)


def _read_v2_group(group: h5py.Group, path: Path, genome: str) -> AnnData:
    _require_members(group, V2_MEMBERS, path)
    names = _same_length(_text(group["gene_names"]), len(group["genes"]), "gene names", path)
    var = pd.DataFrame(
        {
            "gene_ids": _text(group["genes"]),
            "feature_types": "Gene Expression",
            "genome": genome,
        },
        index=names,
    )
    return _from_group(group, var, path)


def _from_group(group: h5py.Group, var: pd.DataFrame, path: Path) -> AnnData:
    """Build the AnnData; the file's features x barcodes CSC is read as cells x features CSR."""
    cells = pd.Index(_text(group["barcodes"]), dtype=object)
    n_features, n_cells = (int(n) for n in group["shape"][:])
    require_lengths(path, n_features, len(var), n_cells, len(cells))
    counts = counts_from_csr(
        group["data"][:], group["indices"][:], group["indptr"][:], (n_cells, n_features), str(path)
    )
    return AnnData(counts, obs=pd.DataFrame(index=cells), var=var)


def _text(dataset: h5py.Dataset) -> list[str]:
    if h5py.check_string_dtype(dataset.dtype) is None:
        raise ReadError(
            f'{dataset.file.filename} holds {dataset.dtype} in "{dataset.name}" in place of text; '
            "copy, download or write it again."
        )
    return [v.decode() if isinstance(v, bytes) else str(v) for v in dataset[:].tolist()]


def _same_length(values: list[str], n: int, what: str, path: Path) -> list[str]:
    if len(values) != n:
        raise ReadError(
            f"{path} is damaged (it lists {n} feature ids but {len(values)} {what}); "
            "copy, download or write it again."
        )
    return values


def _require_members(group: h5py.Group, members: tuple[str, ...], path: Path) -> None:
    missing = [name for name in members if name not in group]
    if missing:
        raise ReadError(
            f'{path} lacks {", ".join(missing)} in its group "{group.name}", which a Cell Ranger '
            ".h5 file has; write it again, or convert what it holds to .h5ad or .h5mu."
        )
