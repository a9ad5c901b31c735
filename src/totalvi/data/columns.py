"""Which column, modality or layer of the user's object is what, and the annotation of its cells."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Where in a MuData or AnnData the counts and the annotation of its cells are.

    The fields are arguments of `totalvi.Model`, which says what each of them means.
    """

    batch_key: str | None = None
    panel_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    rna_modality: str = "rna"
    protein_modality: str = "prot"
    rna_layer: str | None = None
    protein_layer: str | None = None
    protein_expression_obsm_key: str | None = None
    protein_names_uns_key: str | None = None
    allow_fractional: bool = False
    isotype_controls: tuple[str, ...] | None = None


def names_of(index: pd.Index) -> pd.Index:
    """Return names as an unnamed index of Python texts."""
    names: pd.Index = pd.Index(index.astype(str), dtype=object, name=None)
    return names


def feature_names(index: pd.Index, modality: str) -> pd.Index:
    """Return names of features, without the modality that MuData puts before all to make them unique.

    Examples
    --------
    >>> feature_names(pd.Index(["rna:CD4", "rna:CD3E"]), "rna").tolist()
    ['CD4', 'CD3E']
    """
    names = names_of(index)
    prefix = f"{modality}:"
    if len(names) and all(name.startswith(prefix) for name in names):
        return pd.Index([name[len(prefix) :] for name in names], dtype=object)
    return names


def require_same_cells(rna: AnnData, protein: AnnData, rna_name: str, protein_name: str) -> None:
    """Refuse modalities whose cells differ in set or order."""
    a, b = names_of(rna.obs_names), names_of(protein.obs_names)
    if a.equals(b):
        return
    counts = f'modality "{rna_name}" holds {len(a)} cells and modality "{protein_name}" {len(b)}'
    only_rna, only_protein = a[~a.isin(b)], b[~b.isin(a)]
    if len(only_rna) or len(only_protein):
        lonely, name = (only_rna, rna_name) if len(only_rna) else (only_protein, protein_name)
        raise DataError(
            f"{counts}, and {len(only_rna) + len(only_protein)} are in only one of them, the first "
            f'"{lonely[0]}" in "{name}": keep the cells of both with muon.pp.intersect_obs(mdata)'
        )
    if len(a) != len(b):
        raise DataError(
            f"{counts}, because cell names are repeated: make them unique with "
            "obs_names_make_unique() in both"
        )
    row = int(np.flatnonzero(a != b)[0])
    raise DataError(
        f"{counts}, the same ones in another order, which first differs at row {row} "
        f'("{a[row]}" and "{b[row]}"): reorder the proteins with '
        f'mdata["{protein_name}"][mdata["{rna_name}"].obs_names].copy()'
    )


def joined_obs(mdata: MuData, rna: AnnData, protein: AnnData) -> pd.DataFrame:
    """Join the MuData's own annotation with the columns only its modalities have."""
    own = mdata.obs
    cells = names_of(rna.obs_names)
    if names_of(own.index).equals(cells):
        columns = {name: own[name] for name in own.columns}
    elif own.index.is_unique and cells.isin(own.index).all():
        columns = {name: own[name].reindex(cells) for name in own.columns}
    else:
        columns = {}
    for adata in (rna, protein):
        for name in adata.obs.columns:
            columns.setdefault(name, adata.obs[name])
    values = {name: column.array.copy() for name, column in columns.items()}
    return pd.DataFrame(values, index=cells)
