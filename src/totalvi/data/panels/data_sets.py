"""Data sets to join: their counts, with or without proteins, and their genes in one order."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData

from totalvi.data.columns import Columns, names_of
from totalvi.data.contents import LIKE_PROTEINS
from totalvi.data.find import (
    CountSource,
    find_counts,
    find_rna_counts,
    gene_table,
    genes_and_proteins,
)
from totalvi.data.io.features import (
    ENSEMBL,
    are_controls,
    are_hashtags,
    are_no_antibodies,
    modalities_of,
    symbol_column,
)
from totalvi.data.io.modalities import PROTEIN_OBSM_KEYS
from totalvi.data.mosaic import as_mosaic, find_protein_counts, holds_proteins_alone
from totalvi.errors import DataError

Join = Literal["inner", "outer"]
_Kind = Literal["symbol", "Ensembl id"]

_GENOME = re.compile(r"((?:hg|mm|rn)\d+|GRC[hmz]\d+|mRatBN7|Rnor_6)(?:\.\w+)?_+", re.IGNORECASE)
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "ID", "id")
_LEAST_SHARED = 0.5


class DataSet(NamedTuple):
    """Counts of one data set, with the annotation of its genes and antibodies.

    ``unused`` names the other modalities of a data set without proteins, such as guides of a CRISPR
    screen.
    """

    source: CountSource
    genes: pd.DataFrame
    controls: np.ndarray
    hashtags: tuple[str, ...]
    unused: tuple[str, ...] = ()


def find_data_set(name: str, data: MuData | AnnData, columns: Columns) -> DataSet:
    """Find the counts of one data set, without its hashtags."""
    data = as_mosaic(data, columns)
    obsm_key = _obsm_key(data, columns)
    has_proteins = _has_proteins(data, obsm_key, columns)
    alone = holds_proteins_alone(data, columns) and obsm_key is None
    try:
        if alone:
            source = find_protein_counts(data, columns)
        elif has_proteins:
            layer = None if obsm_key is not None else columns.protein_layer
            found = replace(columns, protein_layer=layer, protein_expression_obsm_key=obsm_key)
            source = find_counts(data, found)
        else:
            source = find_rna_counts(data, columns)
    except DataError as error:
        raise DataError(f'data set "{name}": {error}') from error
    if not source.cell_names.is_unique:
        repeated = source.cell_names[source.cell_names.duplicated()][0]
        raise DataError(
            f'data set "{name}" has several cells named "{repeated}"; make the names unique with '
            "obs_names_make_unique()."
        )
    names = source.protein_names
    if not names.is_unique:
        repeated = names[names.duplicated()][0]
        raise DataError(
            f'data set "{name}" has several antibodies named "{repeated}"; make the names unique.'
        )
    var = pd.DataFrame(index=names)
    in_mudata = isinstance(data, MuData) and len(names) > 0
    if in_mudata and "control" in data.mod[columns.protein_modality].var:
        var["control"] = data.mod[columns.protein_modality].var["control"].to_numpy()
    tags = are_hashtags(var, None, name) | are_no_antibodies(var, None, name)
    return DataSet(
        source._replace(
            protein=source.protein.columns(np.flatnonzero(~tags)), protein_names=names[~tags]
        ),
        pd.DataFrame() if alone else gene_table(data, columns).set_axis(source.gene_names),
        are_controls(var[~tags], None, name),
        tuple(names[tags]),
        () if has_proteins else _beside_rna(data, columns),
    )


def _obsm_key(data: MuData | AnnData, columns: Columns) -> str | None:
    """Return the obsm entry with the proteins of an AnnData, if it has one."""
    if not isinstance(data, AnnData):
        return None
    given = columns.protein_expression_obsm_key
    if given is not None:
        return given if given in data.obsm else None
    if genes_and_proteins(data.var)[1].any():
        return None
    return next((key for key in PROTEIN_OBSM_KEYS if key in data.obsm), None)


def _has_proteins(data: Any, obsm_key: str | None, columns: Columns) -> bool:
    """Return whether there are proteins, possibly under another name than the given one."""
    if isinstance(data, MuData):
        return columns.protein_modality in data.mod or any(
            _may_be_proteins(name, data.mod[name].var) for name in _beside_rna(data, columns)
        )
    if isinstance(data, AnnData):
        return obsm_key is not None or bool(genes_and_proteins(data.var)[1].any())
    return True  # find_counts reports the problem


def _beside_rna(data: MuData | AnnData, columns: Columns) -> tuple[str, ...]:
    """Return the names of modalities that are neither RNA nor proteins nor hashtags."""
    if isinstance(data, MuData):
        found, known = list(data.mod), {columns.rna_modality, columns.protein_modality, "hto"}
    else:
        found, known = list(modalities_of(data.var)), {"rna", "prot", "hto"}
    return tuple(name for name in dict.fromkeys(map(str, found)) if name not in known)


def _may_be_proteins(name: str, var: pd.DataFrame) -> bool:
    """Return whether a modality has proteins, by its name or by the types of its features."""
    return bool(LIKE_PROTEINS.search(name)) or "prot" in modalities_of(var)


class GeneAlignment(NamedTuple):
    """The genes of several data sets in one order.

    Attributes
    ----------
    names
        Names of the joined genes: symbols if the first data set with the gene has them.
    ids
        Their Ensembl ids, "" if unknown; None if no data set has any.
    positions
        For each data set, the position of each of its genes among the joined ones, or -1.
    matched_by
        "symbol" or "Ensembl id".
    n_shared
        Number of genes that all data sets have.
    """

    names: pd.Index
    ids: pd.Index | None
    positions: dict[str, np.ndarray]
    matched_by: _Kind
    n_shared: int


def align_genes(var: Mapping[str, pd.DataFrame], join: Join) -> GeneAlignment:
    """Align genes by name or by id.

    A genome prefix of all names (``hg19_CD3E``) and the version of an Ensembl id are ignored.

    Parameters
    ----------
    var
        Annotation of each data set's genes, with their names as index.
    join
        "inner": the genes that all data sets have; "outer": those of any.

    Raises
    ------
    DataError
        When names are repeated, or data sets share less than half of the genes of the smaller one.

    Examples
    --------
    >>> a = pd.DataFrame(index=["CD4", "MS4A1", "NKG7"])
    >>> b = pd.DataFrame(index=["hg19_NKG7", "hg19_CD4"])
    >>> aligned = align_genes({"A": a, "B": b}, "inner")
    >>> aligned.names.tolist(), aligned.positions["B"].tolist()
    (['CD4', 'NKG7'], [1, 0])
    """
    labels = {data_set: _labels(frame, data_set) for data_set, frame in var.items()}
    kinds: list[_Kind] = ["symbol", "Ensembl id"]
    common = [kind for kind in kinds if all(kind in known for known in labels.values())]
    if not common:
        by_id, by_symbol = (next(d for d, known in labels.items() if k not in known) for k in kinds)
        raise DataError(
            f'the genes of "{by_symbol}" are known by symbol alone and those of "{by_id}" by Ensembl '
            f'id alone; add the ids of the former as var["gene_ids"] of its RNA.'
        )
    shared = {kind: _intersection([known[kind] for known in labels.values()]) for kind in common}
    kind = max(common, key=lambda kind: len(shared[kind]))
    genes = {data_set: known[kind] for data_set, known in labels.items()}
    _require_overlap(genes, join)
    joined = shared[kind]
    if join == "outer":
        joined = pd.Index(pd.unique(np.concatenate([g.to_numpy(object) for g in genes.values()])))
    other = _first_known(labels, kind, "Ensembl id" if kind == "symbol" else "symbol", joined)
    if kind == "symbol":
        names, ids = joined, other
    else:
        ids = joined
        names = joined if other is None else other.where(other != "", joined)
        names = make_index_unique(names)
    return GeneAlignment(
        names, ids, {d: joined.get_indexer(g) for d, g in genes.items()}, kind, len(shared[kind])
    )


def _labels(var: pd.DataFrame, data_set: str) -> dict[_Kind, pd.Index]:
    """Return each gene's symbol and Ensembl id if they are known and unique."""
    names = names_of(var.index)
    if not names.is_unique:
        repeated = names[names.duplicated()][0]
        raise DataError(
            f'data set "{data_set}" has several genes named "{repeated}"; make the names unique with '
            "var_names_make_unique()."
        )
    names = _without_genome(names)
    ids = _ensembl(names)
    if ids is not None:
        labels: dict[_Kind, pd.Index] = {"Ensembl id": ids}
        column = symbol_column(var)
        if column is not None:
            symbols = pd.Index(var[column].astype(str).to_numpy(object))
            labels["symbol"] = make_index_unique(_without_genome(symbols))
        return labels
    labels = {"symbol": names}
    for column in (name for name in _ID_COLUMNS if name in var):
        found = _ensembl(_without_genome(pd.Index(var[column].astype(str).to_numpy(object))))
        if found is not None:
            labels["Ensembl id"] = found
            break
    return labels


def _without_genome(names: pd.Index) -> pd.Index:
    """Remove the genome prefix if all names have the same one."""
    matches = [_GENOME.match(name) for name in names]
    genomes = {match[1] for match in matches if match is not None}
    if len(genomes) != 1 or None in matches:
        return names
    bare = pd.Index([name[m.end() :] for name, m in zip(names, matches, strict=True) if m])
    return bare if bare.is_unique or not names.is_unique else names


def _ensembl(names: pd.Index) -> pd.Index | None:
    """Return Ensembl ids without their versions; None if most names are not ids, or some repeat."""
    matches = [ENSEMBL.fullmatch(name) for name in names]
    if sum(match is not None for match in matches) <= len(names) / 2:
        return None
    bare = pd.Index([m[1] if m else name for name, m in zip(names, matches, strict=True)])
    if bare.is_unique:
        return bare
    return names if names.is_unique else None


def _intersection(genes: list[pd.Index]) -> pd.Index:
    shared = genes[0]
    for more in genes[1:]:
        shared = shared[shared.isin(more)]
    return shared


def _require_overlap(genes: Mapping[str, pd.Index], join: Join) -> None:
    """Refuse data sets that share few genes, because their names are likely of different kinds."""
    (_, known), *others = genes.items()
    n_smaller = len(known)
    for data_set, more in others:
        n_smaller = min(n_smaller, len(more))
        n_shared = int(known.isin(more).sum())
        if n_shared < _LEAST_SHARED * n_smaller:
            fix = (
                "give counts of all genes of the query, or fit a reference to the shared genes"
                if data_set == "query"
                else "join before variable genes are selected, or, if the data sets do differ that "
                "much, keep only the shared genes first"
            )
            raise DataError(
                f'"{data_set}" shares only {n_shared:,} of {n_smaller:,} genes with the data sets '
                f'before it (their first gene is "{known[0]}", its own "{more[0]}"); name genes alike '
                f'(Ensembl ids in var["gene_ids"] will do), {fix}.'
            )
        if join == "inner":
            known = known[known.isin(more)]
        else:
            known = known.append(more[~more.isin(known)])
            n_smaller = len(known)


def _first_known(
    labels: Mapping[str, Mapping[_Kind, pd.Index]], kind: _Kind, other: _Kind, joined: pd.Index
) -> pd.Index | None:
    """Return the names of the other kind, from the first data set that has them."""
    found: dict[str, str] = {}
    for known in labels.values():
        if other in known:
            for name, label in zip(known[kind], known[other], strict=True):
                found.setdefault(name, label)
    return pd.Index([found.get(name, "") for name in joined], dtype=object) if found else None
