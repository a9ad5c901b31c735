"""Find the RNA and protein counts in a MuData or AnnData, without changing it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.cell_pairs import require_same_cells
from totalvi.data.cells import MODALITIES
from totalvi.data.columns import Columns, feature_names, joined_obs, names_of
from totalvi.data.contents import looks_like_counts, no_proteins, require_no_proteins
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
from totalvi.data.io.features import modalities_of, modality_of_type, with_symbols
from totalvi.data.io.modalities import names_in_obsm
from totalvi.errors import DataError, argument, did_you_mean, first_and_count, setting

_Rows = TypeVar("_Rows", sparse.csr_matrix, np.ndarray)


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
    if columns.panel_key == MODALITIES and MODALITIES not in source.obs:
        source.obs[MODALITIES] = "both"  # the panels of a mosaic, in data that are none
    for count, what in zip(source.rna.shape, ("cells", "genes"), strict=True):
        if count == 0:
            raise DataError(f"no {what} at all in {source.rna_where}; check how it was filtered.")
    if source.protein.shape[1] == 0:
        raise DataError(no_proteins(data, columns))
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
        require_no_proteins(data, columns)
        rna = data.mod[rna_modality]
        obs, where = joined_obs(data, rna, rna), _where(f'modality "{rna_modality}"', layer, rna)
    else:
        require_no_proteins(data, columns)
        rna = data if _is_raw(data, layer) else data[:, genes_and_proteins(data.var)[0]]
        obs, where = pd.DataFrame(data.obs).copy(), _where("", layer, rna)
    values, var = _rna_matrix(rna, layer, "the RNA")
    if columns.panel_key == MODALITIES and MODALITIES not in obs:
        obs[MODALITIES] = "rna"
    for count, what in zip((rna.n_obs, len(var)), ("cells", "genes"), strict=True):
        if count == 0:
            raise DataError(f"no {what} at all in {where}; check how it was filtered.")
    return CountSource(
        rna=CountsInMemory(to_csr(values, where, rna.obs_names, var.index)),
        protein=CountsInMemory(np.empty((rna.shape[0], 0), dtype=np.float32)),
        gene_names=feature_names(var.index, rna_modality),
        protein_names=pd.Index([], dtype=object),
        cell_names=names_of(rna.obs_names),
        obs=obs,
        rna_where=where,
        protein_where="nowhere",
        rna_layers=_layers_of(rna),
    )


def _no_rna(rna_modality: str, mod: Mapping[str, AnnData]) -> str:
    if "prot" in mod and set(mod) <= {"prot", "hto", "no_antibody"}:
        return (
            f"There is no RNA, only {first_and_count(mod['prot'].var_names, 'protein')}; give the file "
            f"of the RNA first, and this one as {argument('protein_path')}."
        )
    likely = [name for name in mod if modality_of_type(name) == "rna"]
    proteins = [name for name in mod if modality_of_type(name) == "prot" and name != "prot"]
    how = f"{argument('rna_modality')} ({did_you_mean(rna_modality, mod)})"
    if len(likely) == 1 and rna_modality == "rna":
        how = f"{argument('rna_modality')}, likely {setting('rna_modality', likely[0])}"
        if len(proteins) == 1:
            how += f", and that of the proteins, {setting('protein_modality', proteins[0])}"
    return (
        f'no modality "{rna_modality}" in the MuData; name the modality that holds the RNA with '
        f"{how}."
    )


def _from_mudata(mdata: MuData, columns: Columns, on_disk: bool) -> CountSource:
    mod: Mapping[str, AnnData] = mdata.mod
    rna_modality, protein_modality = columns.rna_modality, columns.protein_modality
    rna_layer, protein_layer = columns.rna_layer, columns.protein_layer
    if rna_modality not in mod:
        raise DataError(_no_rna(rna_modality, mod))
    if protein_modality not in mod:
        raise DataError(no_proteins(mdata, columns))
    rna, protein = mod[rna_modality], mod[protein_modality]
    require_same_cells(rna, protein, rna_modality, protein_modality)
    rna_where = _where(f'modality "{rna_modality}"', rna_layer, rna)
    protein_where = _where(f'modality "{protein_modality}"', protein_layer, protein)
    rna_values, rna_var = _rna_matrix(rna, rna_layer, f'modality "{rna_modality}"')
    protein_values = _protein_matrix(protein, protein_layer, f'modality "{protein_modality}"')
    return CountSource(
        rna=_rna(rna_values, _Place(rna_where, rna.obs_names, rna_var.index), on_disk),
        protein=_protein(
            protein_values, _Place(protein_where, protein.obs_names, protein.var_names), on_disk
        ),
        gene_names=feature_names(rna_var.index, rna_modality),
        protein_names=feature_names(protein.var_names, protein_modality),
        cell_names=names_of(rna.obs_names),
        obs=joined_obs(mdata, rna, protein),
        rna_where=rna_where,
        protein_where=protein_where,
        rna_layers=_layers_of(rna),
        protein_layers=_layers_of(protein),
    )


def _from_anndata(adata: AnnData, columns: Columns, on_disk: bool) -> CountSource:
    rna_layer, protein_layer = columns.rna_layer, columns.protein_layer
    obsm_key, names_key = columns.protein_expression_obsm_key, columns.protein_names_uns_key
    protein_columns: np.ndarray | None = None  # all
    rna_where = _where("", rna_layer, adata)
    rna_values, rna_var = _rna_matrix(adata, rna_layer, "the AnnData")
    is_gene = genes_and_proteins(rna_var)[0]
    is_protein = genes_and_proteins(adata.var)[1]
    gene_names = names_of(rna_var.index[is_gene])
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
        protein_names = names_of(names_in_obsm(protein_values, adata.uns, obsm_key))
        if names_key is not None and not isinstance(protein_values, pd.DataFrame):
            protein_names = _uns_names(adata, names_key, len(protein_names))
    elif is_protein.any():
        layer = protein_layer if protein_layer is not None else rna_layer
        protein_values, var, protein_where = None, pd.DataFrame(adata.var), "X"
        if layer is not None and _is_raw(adata, layer):
            of_raw = pd.DataFrame(adata.raw.var)
            layer = None
            if genes_and_proteins(of_raw)[1].any():
                protein_values, var, protein_where = adata.raw.X, of_raw, "raw"
        elif layer is not None:
            protein_where = f'layers["{layer}"]'
        if protein_values is None:
            protein_values = _matrix(adata, layer, "the AnnData", "protein_layer")
        protein_columns = np.flatnonzero(genes_and_proteins(var)[1])
        protein_where = f"the antibody features of {protein_where}"
        protein_names = names_of(var.index[protein_columns])
    else:
        raise DataError(no_proteins(adata, columns))
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
        rna_layers=_layers_of(adata),
        protein_layers=() if obsm_key is not None else tuple(map(str, adata.layers)),
    )


class _Place(NamedTuple):
    """The place of counts, and the names of their cells and features, for messages."""

    where: str
    cells: pd.Index
    features: pd.Index


def _counts(
    on_disk_as: Callable[..., Counts[_Rows]],
    in_memory_as: Callable[..., _Rows],
    values: Any,
    place: _Place,
    on_disk: bool,
    columns: np.ndarray | None = None,
) -> Counts[_Rows]:
    if on_disk and lies_on_disk(values):
        return on_disk_as(values, place.where, columns=columns)
    return CountsInMemory(in_memory_as(_columns(values, columns), *place))


_rna = partial(_counts, SparseOnDisk, to_csr)
_protein = partial(_counts, DenseOnDisk, to_dense)


def _columns(values: Any, columns: np.ndarray | None) -> Any:
    return values if columns is None else in_memory(values)[:, columns]


def genes_and_proteins(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mark the features of an AnnData that are genes, and those that are proteins.

    If no feature is marked as a gene, all features that are not proteins are genes.
    """
    modality = modalities_of(var)
    is_gene, is_protein = modality == "rna", modality == "prot"
    return (is_gene if is_gene.any() else ~is_protein), is_protein


def _uns_names(adata: AnnData, key: str, n_proteins: int) -> pd.Index:
    names = adata.uns.get(key)
    if names is None or len(names) != n_proteins:
        raise DataError(
            f'uns["{key}"] does not hold the names of {n_proteins} proteins; give them there, or make '
            "the protein counts a DataFrame."
        )
    return names_of(pd.Index(names))


def gene_table(data: MuData | AnnData, columns: Columns) -> pd.DataFrame:
    """Return what ``data`` says of the genes whose counts are used."""
    rna = data.mod[columns.rna_modality] if isinstance(data, MuData) else data
    if _is_raw(rna, columns.rna_layer):
        return _genes_of_raw(rna)[1]
    var = pd.DataFrame(rna.var)
    return var if isinstance(data, MuData) else var[genes_and_proteins(var)[0]]


def _is_raw(adata: AnnData, layer: str | None) -> bool:
    return layer == "raw" and "raw" not in adata.layers and adata.raw is not None


def _layers_of(rna: AnnData) -> tuple[str, ...]:
    """Return the names of what may hold other counts: layers, and raw where it does."""
    raw = ("raw",) if rna.raw is not None and looks_like_counts(rna.raw.X) else ()
    return (*map(str, rna.layers), *raw)


def _rna_matrix(rna: AnnData, layer: str | None, owner: str) -> tuple[Any, pd.DataFrame]:
    """Return the matrix of a layer, of raw, or X, and the annotation of its features."""
    if _is_raw(rna, layer):
        return _genes_of_raw(rna)
    return _matrix(rna, layer, owner, "rna_layer"), pd.DataFrame(rna.var)


def _genes_of_raw(rna: AnnData) -> tuple[Any, pd.DataFrame]:
    """Return the matrix and annotation of the genes in raw, which may hold antibodies as well."""
    var = pd.DataFrame(rna.raw.var)
    is_gene = genes_and_proteins(var)[0]
    values = rna.raw.X if is_gene.all() else in_memory(rna.raw.X)[:, np.flatnonzero(is_gene)]
    return values, with_symbols(var)[is_gene]


def _protein_matrix(protein: AnnData, layer: str | None, owner: str) -> Any:
    """Return the matrix of a layer, or X, or the same proteins of raw."""
    names = pd.Index([]) if protein.raw is None else pd.Index(protein.raw.var_names)
    if _is_raw(protein, layer) and names.is_unique and protein.var_names.isin(names).all():
        return in_memory(protein.raw.X)[:, names.get_indexer(protein.var_names)]
    return _matrix(protein, layer, owner, "protein_layer")


def _where(modality: str, layer: str | None, owner: AnnData | None = None) -> str:
    if layer is None:
        return modality or "X"
    if owner is not None and _is_raw(owner, layer):
        return f"raw of {modality}" if modality else "raw"
    return f'{modality} layers["{layer}"]'.strip()


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
