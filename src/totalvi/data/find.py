"""Find the RNA and protein counts in a MuData or AnnData, without changing it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.columns import Columns, joined_obs, names_of, require_same_cells
from totalvi.data.counts import (
    Counts,
    CountsInMemory,
    DenseOnDisk,
    SparseOnDisk,
    in_memory,
    lies_on_disk,
    to_csr,
    to_dense,
)
from totalvi.data.finding import did_you_mean, listed
from totalvi.data.io.modalities import modalities_of
from totalvi.errors import DataError, argument, setting


class CountSource(NamedTuple):
    """Paired counts and annotation of the same cells, with the words to name them in messages.

    Attributes
    ----------
    rna
        RNA counts, (cells, genes), canonical (sorted column indices, none twice). Counts in memory keep
        their data type and may share memory with the user's object: do not write to them. Counts on
        disk are read as float32.
    protein
        Protein counts, (cells, proteins), float32; NaN means unmeasured.
    gene_names, protein_names, cell_names
        Names of the columns and rows.
    obs
        All annotation of the cells (a copy): the MuData's own columns first, then those of the
        RNA and protein modalities whose names are not yet present.
    rna_where, protein_where
        Place where the counts were found, such as ``modality "rna"`` or ``obsm["protein_counts"]``.
    rna_layers, protein_layers
        Names of the other layers, for error messages.
    """

    rna: Counts[sparse.csr_matrix]
    protein: Counts[np.ndarray]
    gene_names: pd.Index
    protein_names: pd.Index
    cell_names: pd.Index
    obs: pd.DataFrame
    rna_where: str
    protein_where: str
    rna_layers: tuple[str, ...] = ()
    protein_layers: tuple[str, ...] = ()


def find_counts(data: MuData | AnnData, columns: Columns, *, on_disk: bool = False) -> CountSource:
    """Find the paired RNA and protein counts of a MuData or AnnData.

    Parameters
    ----------
    data
        A MuData with an RNA and a protein modality of the same cells in the same order; or an
        AnnData with RNA in ``X`` and proteins in an ``obsm`` entry, or with both in ``X``, marked in
        ``var["feature_types"]`` ("Gene Expression" and "Antibody Capture", in upper or lower case).
        It is not changed.
    columns
        Modality, layer or ``obsm`` entry of the counts. The protein names are the column names of a
        DataFrame in ``obsm``. For an array, they are in the ``uns`` entry ``protein_names_uns_key``, or
        are ``protein_0``, ``protein_1``, ...
    on_disk
        Whether counts on disk (see `totalvi.data.io.h5_zarr.open_on_disk`) stay there.

    Raises
    ------
    DataError
        If a modality, layer or ``obsm`` entry is missing, if there are no cells, genes or
        proteins, if the modalities do not hold the same cells in the same order, or if the
        counts are not numbers.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> cells = AnnData(np.array([[0, 3], [1, 0]]))
    >>> cells.obsm["protein_counts"] = pd.DataFrame({"CD3": [90, 4]}, index=cells.obs_names)
    >>> source = find_counts(cells, Columns(protein_expression_obsm_key="protein_counts"))
    >>> source.rna.shape, source.protein_names.tolist(), source.protein.read().tolist()
    ((2, 2), ['CD3'], [[90.0], [4.0]])
    """
    if isinstance(data, MuData):
        if columns.protein_expression_obsm_key is not None:
            raise DataError(
                f"{argument('protein_expression_obsm_key')} belongs to an AnnData, but the data are a "
                "MuData; name the modality that holds the proteins with "
                f"{argument('protein_modality')} instead."
            )
        source = _from_mudata(data, columns, on_disk)
    elif isinstance(data, AnnData):
        source = _from_anndata(data, columns, on_disk)
    else:
        raise DataError(
            f"data must be a MuData or an AnnData, not {type(data).__name__}; "
            "read a count file with totalvi.read(path) first."
        )
    for count, what in zip(source.rna.shape, ("cells", "genes"), strict=True):
        if count == 0:
            raise DataError(f"no {what} at all in {source.rna_where}; check how it was filtered.")
    if source.protein.shape[1] == 0:
        raise DataError(f"no proteins at all in {source.protein_where}; {_protein_fix(data)}.")
    return source


def find_rna_counts(data: MuData | AnnData, columns: Columns) -> CountSource:
    """Find the RNA counts of data without proteins: the result has no protein columns.

    Parameters
    ----------
    data
        A MuData, or an AnnData with only genes as features; it is not changed.
    columns
        Places of the counts, as in `find_counts`.

    Raises
    ------
    DataError
        As in `find_counts`, and if an ``obsm`` entry of an AnnData looks like protein counts.

    Examples
    --------
    >>> find_rna_counts(AnnData(np.array([[0, 3], [1, 0]])), Columns()).protein.shape
    (2, 0)
    """
    rna_modality, layer = columns.rna_modality, columns.rna_layer
    if isinstance(data, MuData):
        if rna_modality not in data.mod:
            raise DataError(_no_rna(rna_modality, data.mod))
        rna = data.mod[rna_modality]
        obs, where = joined_obs(data, rna, rna), _where(f'modality "{rna_modality}"', layer)
    else:
        likely = [key for key, value in data.obsm.items() if _looks_like_counts(value)]
        if likely:
            raise DataError(
                f"there are no antibodies among the features, but {listed(likely)} in obsm looks like "
                "counts; name the entry that holds the proteins with "
                f"{argument('protein_expression_obsm_key')}, or remove it."
            )
        rna = data[:, genes_and_proteins(data.var)[0]]
        obs, where = pd.DataFrame(data.obs).copy(), "X" if layer is None else f'layers["{layer}"]'
    for count, what in zip(rna.shape, ("cells", "genes"), strict=True):
        if count == 0:
            raise DataError(f"no {what} at all in {where}; check how it was filtered.")
    values = _matrix(rna, layer, "the RNA", "rna_layer")
    return CountSource(
        rna=CountsInMemory(to_csr(values, where, rna.obs_names, rna.var_names)),
        protein=CountsInMemory(np.empty((rna.shape[0], 0), dtype=np.float32)),
        gene_names=names_of(rna.var_names),
        protein_names=pd.Index([], dtype=object),
        cell_names=names_of(rna.obs_names),
        obs=obs,
        rna_where=where,
        protein_where="nowhere",
        rna_layers=tuple(map(str, rna.layers)),
    )


def _no_rna(rna_modality: str, mod: Mapping[str, AnnData]) -> str:
    return (
        f'no modality "{rna_modality}" in the MuData; name the modality that holds the RNA '
        f"with {argument('rna_modality')} ({did_you_mean(rna_modality, mod)})."
    )


def _protein_fix(data: MuData | AnnData) -> str:
    """Return the words for how to name the place of the proteins."""
    if isinstance(data, MuData):
        return (
            "totalVI needs protein counts paired with the RNA; name the modality that holds them "
            f"with {argument('protein_modality')} (there are: {listed(data.mod)})"
        )
    likely = [key for key, value in data.obsm.items() if _looks_like_counts(value)]
    hint = f" (these look like counts: {listed(likely)})" if likely else ""
    return (
        "totalVI needs protein counts paired with the RNA; name the obsm entry that holds them "
        f"with {argument('protein_expression_obsm_key')}{hint}"
    )


def _looks_like_counts(values: Any) -> bool:
    """Return whether the first rows of an obsm entry hold only whole numbers >= 0, one of them > 1."""
    try:
        first = values.iloc[:1000] if isinstance(values, pd.DataFrame) else values[:1000]
        rows = pd.RangeIndex(1000)
        numbers = to_dense(first, "obsm", rows, _obsm_names(first))
    except (DataError, ValueError):
        return False
    numbers = numbers[~np.isnan(numbers)]
    whole = (numbers >= 0) & (numbers == np.floor(numbers))
    return bool(numbers.size and whole.all() and numbers.max() > 1)


def _from_mudata(mdata: MuData, columns: Columns, on_disk: bool) -> CountSource:
    mod: Mapping[str, AnnData] = mdata.mod
    rna_modality, protein_modality = columns.rna_modality, columns.protein_modality
    rna_layer, protein_layer = columns.rna_layer, columns.protein_layer
    if rna_modality not in mod:
        raise DataError(_no_rna(rna_modality, mod))
    if protein_modality not in mod:
        if len(mod) == 1:
            raise DataError(
                f'no proteins at all; the MuData holds only the modality "{rna_modality}", and '
                "totalVI needs protein counts paired with the RNA; add them as the modality "
                f'"{protein_modality}".'
            )
        raise DataError(
            f'no modality "{protein_modality}" in the MuData; name the modality that holds the '
            f"proteins with {argument('protein_modality')} ({did_you_mean(protein_modality, mod)})."
        )
    rna, protein = mod[rna_modality], mod[protein_modality]
    require_same_cells(rna, protein, rna_modality, protein_modality)
    rna_where = _where(f'modality "{rna_modality}"', rna_layer)
    protein_where = _where(f'modality "{protein_modality}"', protein_layer)
    rna_values = _matrix(rna, rna_layer, f'modality "{rna_modality}"', "rna_layer")
    protein_values = _matrix(
        protein, protein_layer, f'modality "{protein_modality}"', "protein_layer"
    )
    return CountSource(
        rna=_rna(rna_values, _Place(rna_where, rna.obs_names, rna.var_names), on_disk),
        protein=_protein(
            protein_values, _Place(protein_where, protein.obs_names, protein.var_names), on_disk
        ),
        gene_names=names_of(rna.var_names),
        protein_names=names_of(protein.var_names),
        cell_names=names_of(rna.obs_names),
        obs=joined_obs(mdata, rna, protein),
        rna_where=rna_where,
        protein_where=protein_where,
        rna_layers=tuple(map(str, rna.layers)),
        protein_layers=tuple(map(str, protein.layers)),
    )


def _from_anndata(adata: AnnData, columns: Columns, on_disk: bool) -> CountSource:
    rna_layer, protein_layer = columns.rna_layer, columns.protein_layer
    obsm_key, names_key = columns.protein_expression_obsm_key, columns.protein_names_uns_key
    is_gene, is_protein = genes_and_proteins(adata.var)
    protein_columns: np.ndarray | None = None  # all
    rna_where = "X" if rna_layer is None else f'layers["{rna_layer}"]'
    rna_values = _matrix(adata, rna_layer, "the AnnData", "rna_layer")
    gene_names = names_of(adata.var_names[is_gene])
    if obsm_key is not None:
        if obsm_key not in adata.obsm:
            raise DataError(
                f'no obsm["{obsm_key}"] in the AnnData; give the entry that holds the proteins as '
                f"{argument('protein_expression_obsm_key')} ({did_you_mean(obsm_key, adata.obsm)})."
            )
        if protein_layer is not None:
            raise DataError(
                f"{setting('protein_layer', protein_layer)} cannot be used together with "
                f"{argument('protein_expression_obsm_key')}; give only the one that holds the protein "
                "counts."
            )
        protein_where = f'obsm["{obsm_key}"]'
        protein_values = adata.obsm[obsm_key]
        protein_names = _obsm_names(protein_values)
        if names_key is not None and not isinstance(protein_values, pd.DataFrame):
            protein_names = _uns_names(adata, names_key, len(protein_names))
    elif is_protein.any():
        layer = protein_layer if protein_layer is not None else rna_layer
        protein_where = "X" if layer is None else f'layers["{layer}"]'
        protein_values = _matrix(adata, layer, "the AnnData", "protein_layer")
        protein_columns = np.flatnonzero(is_protein)
        protein_where = f"the antibody features of {protein_where}"
        protein_names = names_of(adata.var_names[is_protein])
    else:
        raise DataError(f"no proteins at all in the AnnData; {_protein_fix(adata)}.")
    gene_columns = None if is_gene.all() else np.flatnonzero(is_gene)
    cells = adata.obs_names
    return CountSource(
        rna=_rna(rna_values, _Place(rna_where, cells, gene_names), on_disk, gene_columns),
        protein=_protein(
            protein_values, _Place(protein_where, cells, protein_names), on_disk, protein_columns
        ),
        gene_names=gene_names,
        protein_names=protein_names,
        cell_names=names_of(adata.obs_names),
        obs=pd.DataFrame(adata.obs).copy(),
        rna_where=rna_where,
        protein_where=protein_where,
        rna_layers=tuple(map(str, adata.layers)),
        protein_layers=() if obsm_key is not None else tuple(map(str, adata.layers)),
    )


class _Place(NamedTuple):
    """The place of counts, and the names of their cells and features, for messages."""

    where: str
    cells: pd.Index
    features: pd.Index


def _rna(
    values: Any, place: _Place, on_disk: bool, columns: np.ndarray | None = None
) -> Counts[sparse.csr_matrix]:
    if on_disk and lies_on_disk(values):
        return SparseOnDisk(values, place.where, columns=columns)
    return CountsInMemory(to_csr(_columns(values, columns), *place))


def _protein(
    values: Any, place: _Place, on_disk: bool, columns: np.ndarray | None = None
) -> Counts[np.ndarray]:
    if on_disk and lies_on_disk(values):
        return DenseOnDisk(values, place.where, columns=columns)
    return CountsInMemory(to_dense(_columns(values, columns), *place))


def _columns(values: Any, columns: np.ndarray | None) -> Any:
    return values if columns is None else in_memory(values)[:, columns]


def genes_and_proteins(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mark the features of an AnnData that are genes, and those that are proteins.

    If no feature is marked as a gene, all features that are not proteins are genes.
    """
    modality = modalities_of(var)
    is_gene, is_protein = modality == "rna", modality == "prot"
    return (is_gene if is_gene.any() else ~is_protein), is_protein


def _obsm_names(values: Any) -> pd.Index:
    if isinstance(values, pd.DataFrame):
        return names_of(values.columns)
    if values.ndim != 2:
        return pd.Index(["protein_0"])
    return pd.Index([f"protein_{i}" for i in range(values.shape[1])], dtype=object)


def _uns_names(adata: AnnData, key: str, n_proteins: int) -> pd.Index:
    names = adata.uns.get(key)
    if names is None or len(names) != n_proteins:
        raise DataError(
            f'uns["{key}"] does not hold the names of {n_proteins} proteins; give them there, or make '
            "the protein counts a DataFrame."
        )
    return names_of(pd.Index(names))


def _where(modality: str, layer: str | None) -> str:
    return modality if layer is None else f'{modality} layers["{layer}"]'


def _matrix(adata: AnnData, layer: str | None, owner: str, name: str) -> Any:
    """Return the matrix of a layer, or X."""
    if layer is not None:
        if layer not in adata.layers:
            hint = did_you_mean(layer, adata.layers)
            raise DataError(
                f'no layer "{layer}" in {owner}; name another as {argument(name)} ({hint}).'
            )
        return adata.layers[layer]
    if adata.X is None:
        hint = did_you_mean("counts", adata.layers)
        raise DataError(
            f"no X in {owner}; name a layer with the counts as {argument(name)} ({hint})."
        )
    return adata.X
