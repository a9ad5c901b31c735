"""Recognise the features of a file, and build the modalities "rna", "prot" and "hto" from them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData

from totalvi.data.cell_pairs import pair_modalities
from totalvi.data.io.features import (
    are_controls,
    are_hashtags,
    are_no_antibodies,
    has_types,
    modalities_of,
)
from totalvi.data.io.readable_parts import UNREAD, gathered, joined, say_of_reading
from totalvi.data.io.trust import counts_from
from totalvi.errors import Finding, ReadError, argument, did_you_mean, listed

PROTEIN_OBSM_KEYS = (
    "protein_expression",
    "protein_counts",
    "proteins",
    "protein",
    "prot",
    "adt_counts",
    "ADT",
    "adt",
)

NAME_IN_FILE = "name_in_file"  # column of var
NO_ANTIBODY_MODALITY = "no_antibody"

Names = str | Sequence[str] | None


class Rows(NamedTuple):
    """Which rows of an antibody matrix are hashtags, isotype controls, or no antibodies; see `read`."""

    hashtags: Names = None
    controls: Names = None
    leave_out: Names = None


def modalities_of_antibodies(
    var: pd.DataFrame, rows: Rows, where: str, sums: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Name the modality of each antibody: "prot", "hto" (hashtags) or "no_antibody".

    ``sums`` returns each cell's sum of the counts of some of them.
    """
    modality = np.full(len(var), "prot", dtype=object)
    tags = are_hashtags(var, rows.hashtags, where)
    none = are_no_antibodies(var, rows.leave_out, where, sums) & ~tags
    modality[tags] = "hto"
    if not (none | tags).all():  # a file of nothing else is read as it is
        modality[none] = NO_ANTIBODY_MODALITY
    return modality


def split_anndata(
    adata: AnnData, modality: np.ndarray, rows: Rows, where: str
) -> dict[str, AnnData]:
    """Split the features by the modality named for each.

    Antibodies that are hashtags go to "hto", and rows that are of no antibody to "no_antibody".

    The counts become CSR float32. Cell annotation, ``obsm``, ``obsp`` and ``uns`` stay with the
    first of "rna", "prot" or any other modality. All modalities keep their ``var`` and layers.
    """
    if adata.X is not None or not adata.layers:  # else the counts are in a layer
        adata.X = counts_from(adata.X, where, adata.obs_names, adata.var_names)
    is_antibody = np.flatnonzero(modality == "prot")

    def sums(some: np.ndarray) -> np.ndarray:
        return np.asarray(adata.X[:, is_antibody[some]].sum(axis=1)).ravel()

    modality[is_antibody] = modalities_of_antibodies(
        adata.var.iloc[is_antibody], rows, where, None if adata.X is None else sums
    )
    found = list(pd.unique(modality)) or ["rna"]
    found.sort(key=lambda name: ["rna", "prot", "hto", name].index(name))
    if len(found) == 1:
        return {found[0]: adata}
    parts = {
        name: adata[:, modality == name].copy() if i == 0 else _bare(adata, modality == name)
        for i, name in enumerate(found)
    }
    if "rna" in parts:
        _split_raw(parts)
    return parts


def _split_raw(parts: dict[str, AnnData], rna: str = "rna") -> None:
    """Leave RNA the genes of its ``raw``; the antibodies there become a layer "raw" of the others."""
    own = parts[rna]
    if own.raw is None:
        return
    var = pd.DataFrame(own.raw.var)
    others = {name for part in parts.values() if part is not own for name in part.var_names}
    of_others = var.index.isin(list(others)) & ~var.index.isin(own.var_names)
    apart = np.flatnonzero((modalities_of(var) != "rna") | of_others)
    if not 0 < len(apart) < len(var):
        return
    values, names = own.raw.X, var.index[apart]
    genes = np.setdiff1d(np.arange(len(var)), apart)
    own.raw = AnnData(values[:, genes], pd.DataFrame(index=own.obs_names), var.iloc[genes])
    for part in parts.values():
        places = names.get_indexer(part.var_names) if names.is_unique else np.array([-1])
        is_whole = part is not own and part.obs_names.equals(own.obs_names) and (places >= 0).all()
        if is_whole and "raw" not in part.layers:
            part.layers["raw"] = values[:, apart[places]]


def _layer_of_raw(protein: AnnData) -> None:
    """Make a layer of the ``raw`` of proteins, if it has the counts of each."""
    if protein.raw is None or "raw" in protein.layers:
        return
    names = pd.Index(protein.raw.var_names)
    places = names.get_indexer(protein.var_names) if names.is_unique else np.array([-1])
    if (places >= 0).all():
        protein.layers["raw"] = protein.raw.X[:, places]
        del protein.raw


def _bare(adata: AnnData, chosen: np.ndarray) -> AnnData:
    columns = np.flatnonzero(chosen)
    return AnnData(
        None if adata.X is None else adata.X[:, columns],
        obs=pd.DataFrame(index=adata.obs_names),
        var=adata.var.iloc[columns].copy(),
        layers={name: layer[:, columns] for name, layer in adata.layers.items()},
    )


def proteins_in_obsm(adata: AnnData, key: str | None, where: str) -> AnnData | None:
    """Return the proteins in ``obsm``, under the given key or a well-known one.

    Well-known keys do not count when the antibodies are features of ``X``. Names are a DataFrame's
    columns, else ``uns["<key>_names"]`` or ``uns["protein_names"]``, else protein_0, protein_1, ...
    """
    if key is None:
        key = known_protein_obsm_key(adata)
        if key is None:
            _require_read(adata, PROTEIN_OBSM_KEYS, where)
            return None
    elif key not in adata.obsm:
        _require_read(adata, (key,), where)
        hint = did_you_mean(key, adata.obsm)
        raise ReadError(
            f'no obsm["{key}"] in {where}; give another entry as '
            f"{argument('protein_expression_obsm_key')} ({hint})."
        )
    values = adata.obsm.pop(key)
    where = f'obsm["{key}"] of {where}'
    if values.ndim == 1:
        values = values.reshape(-1, 1)
    names = _obsm_names(adata, values, key)
    counts = counts_from(values, where, adata.obs_names, names)
    return AnnData(counts, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=names))


def known_protein_obsm_key(adata: AnnData) -> str | None:
    """Return a well-known key of proteins in ``obsm``; None if antibodies are features of ``X``."""
    if "prot" in modalities_of(adata.var):
        return None
    return next((known for known in PROTEIN_OBSM_KEYS if known in adata.obsm), None)


def _require_read(adata: AnnData, keys: Sequence[str], where: str) -> None:
    """Refuse a file whose entry with the proteins could not be read."""
    unread = adata.uns.get(UNREAD, {})
    for key in keys:
        reason = unread.get(f'obsm["{key}"]')
        if reason is not None:
            raise ReadError(
                f'obsm["{key}"] of {where}, which may hold the proteins, cannot be read ({reason}); '
                "write it again for the same cells, or as a table of its own."
            )


def _obsm_names(adata: AnnData, values: Any, key: str) -> pd.Index:
    return names_in_obsm(values, adata.uns, key)


def names_in_obsm(values: Any, uns: Mapping[str, Any], key: str) -> pd.Index:
    """Return the names of the columns of an ``obsm`` entry.

    Those of a DataFrame, or of ``uns["<key>_names"]``, ``uns["protein_names"]`` and the like; else
    protein_0, protein_1, ...
    """
    if isinstance(values, pd.DataFrame):
        names: pd.Index = pd.Index(values.columns.astype(str), dtype=object)
        return names
    n_columns = values.shape[1] if len(values.shape) > 1 else 1
    stem = key.removeprefix("X_")
    usual = [f"{name}_{what}" for name in (key, stem) for what in ("names", "columns", "var_names")]
    for name in (*usual, "protein_names", "adt_names", "antibody_names"):
        if name in uns and (
            name in usual or len(uns[name]) == n_columns or name == "protein_names"
        ):
            return pd.Index([str(protein) for protein in uns[name]], dtype=object)
    return pd.Index([f"protein_{i}" for i in range(n_columns)], dtype=object)


def split_proteins(proteins: AnnData, rows: Rows, where: str) -> dict[str, AnnData]:
    """Split a file that is read for its proteins: all are antibodies if none is said to be one."""
    modality = modalities_of(proteins.var)
    is_antibody = np.isin(modality, ("prot", "hto"))
    if not (has_types(proteins.var) and is_antibody.any()):
        modality = np.full(proteins.n_vars, "prot", dtype=object)
    elif not is_antibody.all():
        others = listed(dict.fromkeys(map(str, modality[~is_antibody])))
        proteins, modality = proteins[:, is_antibody].copy(), modality[is_antibody]
        say_of_reading(
            proteins,
            "features_of_proteins",
            f"Left out: {(~is_antibody).sum():,} features of {where} that are no antibodies "
            f"({others}), as the file is read for its proteins.",
        )
    return split_anndata(proteins, modality, rows, where)


def join_proteins(
    adata: AnnData, proteins: AnnData | None, rows: Rows, where: str, protein_where: str
) -> dict[str, AnnData]:
    """Split the features of a file, and add the proteins that were stored separately, if any."""
    if proteins is None:
        return split_anndata(adata, modalities_of(adata.var), rows, where)
    modalities = split_anndata(adata, modalities_of(adata.var), Rows((), (), ()), where)
    antibodies = split_proteins(proteins, rows, protein_where)
    for name in modalities.keys() & antibodies.keys():
        raise ReadError(
            f'there are "{name}" features beside the genes of {where} and again apart from them in '
            f"{protein_where}; give the antibodies once, beside the genes or apart from them."
        )
    return modalities | antibodies


def assemble(
    modalities: dict[str, AnnData],
    obs: pd.DataFrame,
    controls: Names,
    where: str,
    protein_modality: str = "prot",
) -> MuData:
    """Make names of features unique, mark the isotype controls, and join the modalities.

    If names were repeated, ``var["name_in_file"]`` keeps the original names.
    """
    if protein_modality in modalities:
        var = modalities[protein_modality].var
        var["control"] = are_controls(var, controls, where)
    elif controls:
        raise ReadError(
            f"{where} has no antibodies that could be controls; leave out {argument('controls')}."
        )
    for adata in modalities.values():
        names = adata.var_names.astype(str)
        if not names.is_unique:
            adata.var[NAME_IN_FILE] = names.to_numpy()
        adata.var_names = make_index_unique(names)
    _require_pairable(modalities, where)
    left_out = gathered((name, adata.uns) for name, adata in modalities.items())
    mdata = joined(modalities, obs)
    left_out.say_in(mdata.uns)
    return mdata


def mudata_of(modalities: dict[str, AnnData], obs: pd.DataFrame) -> MuData:
    """Join modalities of the same cells; a gene and a protein may share a name."""
    with warnings.catch_warnings(), mudata.set_options(pull_on_update=False):
        warnings.filterwarnings("ignore", message=".*names are not unique")
        mdata = MuData(modalities)
        mdata.obs = obs
    return mdata


def renamed_features(data: MuData | AnnData) -> list[Finding]:
    """Note which repeated feature names were made unique on reading."""
    notes = []
    for modality, adata in data.mod.items() if isinstance(data, MuData) else ():
        before = adata.var.get(NAME_IN_FILE)
        if before is None:
            continue
        renamed = np.flatnonzero(before.astype(str) != adata.var_names)
        if renamed.size:
            features = "feature was" if renamed.size == 1 else "features were"
            message = (
                f'{renamed.size:,} {features} renamed in modality "{modality}", since names were '
                f'repeated in the file, first "{before.iloc[renamed[0]]}" to '
                f'"{adata.var_names[renamed[0]]}".'
            )
            notes.append(Finding("note", "feature_renamed", message))
    return notes


def _require_pairable(modalities: dict[str, AnnData], where: str) -> None:
    """Refuse repeated cell names unless all modalities list the same cells in the same order."""
    (first, cells), *others = [(name, adata.obs_names) for name, adata in modalities.items()]
    for name, more in others:
        for modality, names in ((first, cells), (name, more)):
            if not names.is_unique and not cells.equals(more):
                repeated = names[names.duplicated()][0]
                raise ReadError(
                    f'the cell "{repeated}" occurs more than once in "{modality}" of {where}, and '
                    f'"{first}" and "{name}" do not list the same cells in the same order, so that '
                    "they cannot be paired; give every cell its own name."
                )


def refuse_set_apart(mdata: MuData, rows: Rows, where: str) -> None:
    """Raise ReadError where rows are named of a kind that has a modality of its own already."""
    for name, modality in (("hashtags", "hto"), ("leave_out", NO_ANTIBODY_MODALITY)):
        if getattr(rows, name) and modality in mdata.mod:
            raise ReadError(
                f'{where} has a modality "{modality}" for these already; leave out {argument(name)}.'
            )


def tidy_mudata(
    mdata: MuData,
    rows: Rows,
    path: Path,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
) -> MuData:
    """Convert a MuData from a file to the form that ``read`` returns.

    Counts of RNA and proteins become CSR float32, hashtags among the proteins move to "hto", and
    isotype controls are marked. Other modalities and the annotation of the cells do not change.
    """
    hashtags, controls = rows.hashtags, rows.controls
    if mdata.axis != 0:
        raise ReadError(
            f"{path} is a MuData whose modalities share no cells; write it with axis=0."
        )
    refuse_set_apart(mdata, rows, str(path))
    if (hashtags or controls) and protein_modality not in mdata.mod:
        raise ReadError(
            f'no modality "{protein_modality}" in {path}, to look for hashtags and controls; name '
            f"that of the proteins with {argument('protein_modality')} "
            f"({did_you_mean(protein_modality, mdata.mod)})."
        )
    own = dict(mdata.mod)
    if {rna_modality, protein_modality} <= set(own):
        where_both = f'modality "{rna_modality}" of {path}', f'modality "{protein_modality}"'
        rna, protein = own[rna_modality], own[protein_modality]
        own[rna_modality], own[protein_modality] = pair_modalities(rna, protein, where_both)
        _split_raw({name: own[name] for name in (rna_modality, protein_modality)}, rna_modality)
        _layer_of_raw(own[protein_modality])
        for name, adata in own.items():
            has_all = adata.obs_names.is_unique and rna.obs_names.isin(adata.obs_names).all()
            if has_all and not adata.obs_names.equals(own[rna_modality].obs_names):
                own[name] = adata[own[rna_modality].obs_names].copy()
    parts: dict[str, AnnData] = {}
    for name, adata in own.items():
        where = f'modality "{name}" of {path}'
        if name == rna_modality and (adata.X is not None or not adata.layers):
            adata.X = counts_from(adata.X, where, adata.obs_names, adata.var_names)
            parts[name] = adata
        elif name == protein_modality:
            modality = np.full(adata.n_vars, "prot", dtype=object)
            known = rows._replace(hashtags=()) if "hto" in mdata.mod else rows
            if NO_ANTIBODY_MODALITY in mdata.mod:
                known = known._replace(leave_out=())
            split = split_anndata(adata, modality, known, where)
            parts |= {name if part == "prot" else part: found for part, found in split.items()}
        else:
            parts[name] = adata
    tidy = assemble(parts, mdata.obs, controls, str(path), protein_modality)
    places = np.arange(tidy.n_obs)
    if not tidy.obs_names.equals(mdata.obs_names):
        known = mdata.obs_names.is_unique
        places = mdata.obs_names.get_indexer(tidy.obs_names) if known else np.array([-1])
    if (places >= 0).all():
        for name in mdata.obsm.keys() - mdata.mod.keys():
            values = mdata.obsm[name]
            tidy.obsm[name] = (
                values.iloc[places] if isinstance(values, pd.DataFrame) else values[places]
            )
        for name, values in mdata.obsp.items():
            if name not in mdata.mod:
                tidy.obsp[name] = values[places][:, places]
    left_out = gathered([("", dict(mdata.uns)), ("", tidy.uns)])
    tidy.uns.update(mdata.uns)
    left_out.say_in(tidy.uns)
    if tidy.var_names.equals(mdata.var_names):
        for name in mdata.var.columns:
            tidy.var[name] = mdata.var[name].array
    return tidy
