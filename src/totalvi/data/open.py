"""Open an AnnData or MuData with its counts left on disk."""

from os import PathLike
from pathlib import Path
from typing import Any

import mudata
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset
from mudata import MuData

from totalvi.data.integrity import reading
from totalvi.data.read_anndata import open_hdf5, open_zarr
from totalvi.errors import ReadError

SUFFIXES = (".h5ad", ".h5mu", ".zarr")


def can_stay_on_disk(path: str | PathLike[str]) -> bool:
    """Return whether the counts of a file of this name can be read some cells at a time.

    Examples
    --------
    >>> can_stay_on_disk("cells.h5mu"), can_stay_on_disk("matrix.mtx.gz")
    (True, False)
    """
    return Path(path).suffix in SUFFIXES


def open_on_disk(path: str | PathLike[str]) -> AnnData | MuData:
    """Open an AnnData (``.h5ad``, ``.zarr``) or MuData (``.h5mu``, ``.zarr``), its counts on disk.

    ``X``, ``layers`` and ``obsm`` are datasets that are read as they are asked for; annotation of
    cells and features is in memory. Pairwise matrices and ``raw`` are left out.

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
        raise ReadError(f"{path} does not exist: check the path")
    if not can_stay_on_disk(path):
        raise ReadError(
            f"{path} cannot be read some cells at a time: write it as .zarr with `totalvi convert`, or "
            "read it into memory with totalvi.read"
        )
    with reading(path, "an AnnData or MuData"):
        group = open_zarr(path) if path.suffix == ".zarr" else open_hdf5(path)
        if "mod" not in group:
            if not {"obs", "var"} <= set(group):
                raise ReadError(
                    f"{path} holds neither an AnnData nor a MuData: write it again with the write "
                    "methods of one of them"
                )
            return _anndata(group)
        parts = group["mod"]
        names = [str(name) for name in parts.attrs.get("mod-order", sorted(parts))]
        with mudata.set_options(pull_on_update=False):
            mdata = MuData({name: _anndata(parts[name]) for name in names})
            obs = read_elem(group["obs"])
            if not mdata.obs_names.equals(obs.index):
                obs = obs.reindex(mdata.obs_names)
            for name in obs.columns:
                mdata.obs[name] = obs[name].array
            uns = group.get("uns", {})
            for name in uns:
                mdata.uns[name] = read_elem(uns[name])
        return mdata


def _anndata(group: Any) -> AnnData:
    stored = _stored(group["X"]) if "X" in group else None
    layers = group.get("layers", {})
    obsm = group.get("obsm", {})
    uns = group.get("uns", {})
    return AnnData(
        X=stored,
        obs=read_elem(group["obs"]),
        var=read_elem(group["var"]),
        layers={name: _stored(layers[name]) for name in layers},
        obsm={name: _stored(obsm[name]) for name in obsm},
        uns={name: read_elem(uns[name]) for name in uns},
    )


def _stored(found: Any) -> Any:
    """Return a dataset to read from, or what cannot be left on disk."""
    kind = found.attrs.get("encoding-type", "array")
    if kind in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(found)
    if kind == "array":
        return found
    return None if kind == "null" else read_elem(found)
