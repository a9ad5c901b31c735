"""Find the counts of each data set that is to be joined with others: with proteins or without."""

import re
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.find import CountSource, find_counts, find_rna_counts, genes_and_proteins
from totalvi.data.io.features import are_controls, are_hashtags, modalities_of
from totalvi.data.io.modalities import PROTEIN_OBSM_KEYS
from totalvi.errors import DataError

_LIKE_PROTEINS = re.compile(
    r"prote(in|om) | (?<![a-z]) (prot(?!o) | adt | antibod | cite)", re.I | re.X
)


class DataSet(NamedTuple):
    """Counts of one data set, with the annotation of its genes and antibodies.

    ``unused`` names what a data set without proteins has beside its RNA, such as guides of a CRISPR
    screen.
    """

    source: CountSource
    genes: pd.DataFrame
    controls: np.ndarray
    hashtags: tuple[str, ...]
    unused: tuple[str, ...] = ()


def find_data_set(name: str, data: MuData | AnnData, columns: Columns) -> DataSet:
    """Find the counts of one data set, without its hashtags."""
    obsm_key = _obsm_key(data, columns)
    has_proteins = _has_proteins(data, obsm_key, columns)
    try:
        if has_proteins:
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
            f'data set "{name}" has several cells named "{repeated}": make the names unique with '
            "obs_names_make_unique()"
        )
    names = source.protein_names
    if not names.is_unique:
        repeated = names[names.duplicated()][0]
        raise DataError(
            f'data set "{name}" has several antibodies named "{repeated}": make the names unique'
        )
    var = pd.DataFrame(index=names)
    in_mudata = isinstance(data, MuData) and len(names) > 0
    if in_mudata and "control" in data.mod[columns.protein_modality].var:
        var["control"] = data.mod[columns.protein_modality].var["control"].to_numpy()
    tags = are_hashtags(var, None, name)
    return DataSet(
        source._replace(
            protein=source.protein.columns(np.flatnonzero(~tags)), protein_names=names[~tags]
        ),
        _gene_var(data, columns),
        are_controls(var[~tags], None, name),
        tuple(names[tags]),
        () if has_proteins else _beside_rna(data, columns),
    )


def _gene_var(data: MuData | AnnData, columns: Columns) -> pd.DataFrame:
    if isinstance(data, MuData):
        return data.mod[columns.rna_modality].var
    is_gene, _ = genes_and_proteins(data.var)
    return data.var[is_gene]


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
    """Whether there are proteins to be found, if need be under another name than the one given."""
    if isinstance(data, MuData):
        return columns.protein_modality in data.mod or any(
            _may_be_proteins(name, data.mod[name].var) for name in _beside_rna(data, columns)
        )
    if isinstance(data, AnnData):
        return obsm_key is not None or bool(genes_and_proteins(data.var)[1].any())
    return True  # find_counts says what is wrong


def _beside_rna(data: MuData | AnnData, columns: Columns) -> tuple[str, ...]:
    """Return the names of what is neither RNA nor proteins nor hashtags."""
    if isinstance(data, MuData):
        found, known = list(data.mod), {columns.rna_modality, columns.protein_modality, "hto"}
    else:
        found, known = list(modalities_of(data.var)), {"rna", "prot", "hto"}
    return tuple(name for name in dict.fromkeys(map(str, found)) if name not in known)


def _may_be_proteins(name: str, var: pd.DataFrame) -> bool:
    """Whether a modality is named as proteins are, or says that its features are."""
    return bool(_LIKE_PROTEINS.search(name)) or "prot" in modalities_of(var)
