"""Read the ``.h5`` files that Cell Ranger writes, of versions 2 and later."""

from pathlib import Path

import h5py
import pandas as pd
from anndata import AnnData

from totalvi.data.containers import require_plain_hdf5
from totalvi.data.genomes import join_genomes, pick_genomes, prefix_shared_names
from totalvi.data.integrity import counts_from_csr, reading, require_lengths
from totalvi.errors import ReadError

V2_MEMBERS = ("barcodes", "data", "genes", "gene_names", "indices", "indptr", "shape")
V3_MEMBERS = ("barcodes", "data", "indices", "indptr", "shape", "features")
V3_FEATURE_MEMBERS = ("id", "name", "feature_type")


def read_10x_h5(path: Path, genome: str | None) -> AnnData:
    """Read a Cell Ranger ``.h5`` file; of version 2, all genomes or only the one named."""
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
    """Build the AnnData; the file's features x barcodes CSC is a cells x features CSR."""
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
            f'{dataset.file.filename} holds {dataset.dtype} in "{dataset.name}" in place of text: '
            "copy, download or write it again"
        )
    return [v.decode() if isinstance(v, bytes) else str(v) for v in dataset[:].tolist()]


def _same_length(values: list[str], n: int, what: str, path: Path) -> list[str]:
    if len(values) != n:
        raise ReadError(
            f"{path} is damaged (it lists {n} feature ids but {len(values)} {what}): "
            "copy, download or write it again"
        )
    return values


def _require_members(group: h5py.Group, members: tuple[str, ...], path: Path) -> None:
    missing = [name for name in members if name not in group]
    if missing:
        raise ReadError(
            f'{path} lacks {", ".join(missing)} in its group "{group.name}", which a Cell Ranger '
            ".h5 file has: write it again, or convert what it holds to .h5ad or .h5mu"
        )
