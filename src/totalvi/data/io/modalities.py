"""Recognise the features of a file, and build the modalities "rna", "prot" and "hto" from them."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData

from totalvi.data.finding import Finding, did_you_mean
from totalvi.data.io.trust import counts_from
from totalvi.errors import ReadError, argument, setting

MODALITY_OF_TYPE = {
    "gene expression": "rna",
    "gex": "rna",
    "rna": "rna",
    "antibody capture": "prot",
    "adt": "prot",
    "protein": "prot",
    "prot": "prot",
    "multiplexing capture": "hto",
    "hto": "hto",
    "hashtag": "hto",
}

HASHTAG = re.compile(
    r"""hash[ _-]?tag | multi-?seq
        | (?<![a-z0-9]) hto (?![a-z])
        | (?<![a-z0-9]) cmo \d{3} (?!\d)""",
    re.IGNORECASE | re.VERBOSE,
)

CONTROL = re.compile(
    r"""iso[ _.-]?(type|ctrl|control)
        | ig[gmade] .* (control|ctrl)
        | (control|ctrl) .* ig[gmade]
        | ^ (?! .* anti[ _-]* ((human|mouse|rat|hamster)[ _-]*)? igg)  # anti-IgG1 is a target,
          .* ig[ ]?g[ _]?[1-4][a-c]? (?! \d | [ _.-]*fc)               # and so is IgG1 Fc""",
    re.IGNORECASE | re.VERBOSE,
)


TRUTH_OF_TEXT = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def modalities_of(var: pd.DataFrame) -> np.ndarray:
    """Return the modality of each feature by ``var["feature_types"]``; without it, all are genes.

    Each type other than genes, antibodies and multiplexing becomes a modality with its own name:
    "CRISPR Guide Capture" becomes ``crispr_guide_capture``.
    """
    if "feature_types" not in var:
        return np.full(len(var), "rna", dtype=object)
    types = var["feature_types"].astype(str).str.strip().str.lower()
    named = {t: MODALITY_OF_TYPE.get(t, re.sub(r"\W+", "_", t).strip("_")) for t in types.unique()}
    return types.map(named).to_numpy(dtype=object)


def are_hashtags(var: pd.DataFrame, hashtags: str | Sequence[str] | None, where: str) -> np.ndarray:
    """Mark hashtag antibodies by name, or by the user's list or regular expression."""
    return _chosen(var, hashtags, HASHTAG, "hashtags", where)


def are_controls(var: pd.DataFrame, controls: str | Sequence[str] | None, where: str) -> np.ndarray:
    """Mark isotype controls by ``var["control"]``, name, or the user's list or regular expression."""
    if controls is None and "control" in var:
        return marked_controls(var["control"], where)
    return _chosen(var, controls, CONTROL, "controls", where)


def marked_controls(control: pd.Series, where: str) -> np.ndarray:
    """Read ``var["control"]``: bool, 0 and 1, or the texts of these.

    Raises
    ------
    ReadError
        If a value is neither true nor false.

    Examples
    --------
    >>> marked_controls(pd.Series(["True", "False"]), "panel.csv")
    array([ True, False])
    """
    marks = control.astype(str).str.strip().str.lower().map(TRUTH_OF_TEXT)
    unknown = np.flatnonzero(marks.isna())
    if unknown.size:
        first = unknown[0]
        raise ReadError(
            f'var["control"] of "{control.index[first]}" in {where} is "{control.iloc[first]}"; '
            "write True for isotype controls and False for the other antibodies."
        )
    return marks.to_numpy(dtype=bool)


def _chosen(
    var: pd.DataFrame,
    choice: str | Sequence[str] | None,
    default: re.Pattern[str],
    option: str,
    where: str,
) -> np.ndarray:
    """Mark the features whose name or id is in a list or matches a regular expression."""
    names = [var.index.astype(str)]
    if "gene_ids" in var:
        names.append(pd.Index(var["gene_ids"].astype(str)))
    if choice is not None and not isinstance(choice, str):
        known = names[0].union(names[-1]) if len(names) > 1 else names[0]
        for name in choice:
            if name not in known:
                raise ReadError(
                    f'{argument(option)} names "{name}", which is no antibody of {where}; '
                    f"{did_you_mean(str(name), names[0])}."
                )
        return np.asarray(np.any([index.isin(list(choice)) for index in names], axis=0))
    try:
        pattern = default if choice is None else re.compile(choice)
    except re.error as error:
        raise ReadError(
            f"{setting(option, choice)} is not a regular expression ({error}); "
            "fix it, or give a list of names."
        ) from error
    found = [[pattern.search(name) is not None for name in index] for index in names]
    marked: np.ndarray = np.any(np.array(found, dtype=bool).reshape(len(names), len(var)), axis=0)
    if choice is not None and not marked.any():
        raise ReadError(
            f"{setting(option, choice)} matches no antibody of {where}; "
            f"{did_you_mean(choice, names[0])}."
        )
    return marked


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

Names = str | Sequence[str] | None


def split_anndata(
    adata: AnnData, modality: np.ndarray, hashtags: Names, where: str
) -> dict[str, AnnData]:
    """Split the features by modality; hashtag antibodies go to "hto".

    The counts become CSR float32. Cell annotation, ``obsm``, ``obsp`` and ``uns`` stay with the
    first of "rna", "prot" or any other modality. All modalities keep their ``var`` and layers.
    """
    adata.X = counts_from(adata.X, where, adata.obs_names, adata.var_names)
    is_antibody = np.flatnonzero(modality == "prot")
    tags = are_hashtags(adata.var.iloc[is_antibody], hashtags, where)
    modality[is_antibody[tags]] = "hto"
    found = list(pd.unique(modality)) or ["rna"]
    found.sort(key=lambda name: ["rna", "prot", "hto", name].index(name))
    if len(found) == 1:
        return {found[0]: adata}
    return {
        name: adata[:, modality == name].copy() if i == 0 else _bare(adata, modality == name)
        for i, name in enumerate(found)
    }


def _bare(adata: AnnData, chosen: np.ndarray) -> AnnData:
    columns = np.flatnonzero(chosen)
    return AnnData(
        adata.X[:, columns],
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
            return None
    elif key not in adata.obsm:
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


def _obsm_names(adata: AnnData, values: Any, key: str) -> pd.Index:
    if isinstance(values, pd.DataFrame):
        names: pd.Index = pd.Index(values.columns.astype(str), dtype=object)
        return names
    for name in (f"{key}_names", "protein_names"):
        if name in adata.uns:
            return pd.Index([str(protein) for protein in adata.uns[name]], dtype=object)
    return pd.Index([f"protein_{i}" for i in range(values.shape[1])], dtype=object)


def split_proteins(proteins: AnnData, hashtags: Names, where: str) -> dict[str, AnnData]:
    """Split a file that is read for its proteins; if no feature is marked as antibody, all are."""
    modality = modalities_of(proteins.var)
    is_antibody = np.isin(modality, ("prot", "hto"))
    if not is_antibody.any():
        modality = np.full(proteins.n_vars, "prot", dtype=object)
    elif not is_antibody.all():
        proteins, modality = proteins[:, is_antibody].copy(), modality[is_antibody]
    return split_anndata(proteins, modality, hashtags, where)


def join_proteins(
    adata: AnnData, proteins: AnnData | None, hashtags: Names, where: str, protein_where: str
) -> dict[str, AnnData]:
    """Split the features of a file, and add the proteins that were stored separately, if any."""
    if proteins is None:
        return split_anndata(adata, modalities_of(adata.var), hashtags, where)
    modalities = split_anndata(adata, modalities_of(adata.var), (), where)
    antibodies = split_proteins(proteins, hashtags, protein_where)
    for name in modalities.keys() & antibodies.keys():
        raise ReadError(
            f'there are "{name}" features beside the genes of {where} and again apart from them in '
            f"{protein_where}; give the antibodies once, beside the genes or apart from them."
        )
    return modalities | antibodies


def in_order_of(proteins: AnnData, cells: pd.Index) -> AnnData:
    """Return the cells in the given order if they are the same ones, else unchanged."""
    names = proteins.obs_names
    same = (
        len(names) == len(cells) and names.is_unique and not names.symmetric_difference(cells).size
    )
    return proteins[cells].copy() if same and not names.equals(cells) else proteins


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
    with mudata.set_options(pull_on_update=False):
        mdata = MuData(modalities)
        if not mdata.obs_names.equals(obs.index):
            obs = obs.reindex(mdata.obs_names)
        for name in obs.columns:
            mdata.obs[name] = obs[name].array
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


def tidy_mudata(
    mdata: MuData,
    hashtags: Names,
    controls: Names,
    path: Path,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
) -> MuData:
    """Convert a MuData from a file to the form that ``read`` returns.

    Counts of RNA and proteins become CSR float32, hashtags among the proteins move to "hto", and
    isotype controls are marked. Other modalities and the annotation of the cells do not change.
    """
    if mdata.axis != 0:
        raise ReadError(
            f"{path} is a MuData whose modalities share no cells; write it with axis=0."
        )
    if hashtags and "hto" in mdata.mod:
        raise ReadError(
            f'{path} has a modality "hto" for hashtags already; leave out {argument("hashtags")}.'
        )
    if (hashtags or controls) and protein_modality not in mdata.mod:
        raise ReadError(
            f'no modality "{protein_modality}" in {path}, to look for hashtags and controls; name '
            f"that of the proteins with {argument('protein_modality')} "
            f"({did_you_mean(protein_modality, mdata.mod)})."
        )
    parts: dict[str, AnnData] = {}
    for name, adata in mdata.mod.items():
        where = f'modality "{name}" of {path}'
        if name == rna_modality:
            adata.X = counts_from(adata.X, where, adata.obs_names, adata.var_names)
            parts[name] = adata
        elif name == protein_modality:
            modality = np.full(adata.n_vars, "prot", dtype=object)
            split = split_anndata(adata, modality, () if "hto" in mdata.mod else hashtags, where)
            parts |= {name if part == "prot" else part: found for part, found in split.items()}
        else:
            parts[name] = adata
    tidy = assemble(parts, mdata.obs, controls, str(path), protein_modality)
    if tidy.obs_names.equals(mdata.obs_names):
        for name in mdata.obsm.keys() - mdata.mod.keys():
            tidy.obsm[name] = mdata.obsm[name]
        for name, values in mdata.obsp.items():
            if name not in mdata.mod:
                tidy.obsp[name] = values
    tidy.uns.update(mdata.uns)
    if tidy.var_names.equals(mdata.var_names):
        for name in mdata.var.columns:
            tidy.var[name] = mdata.var[name].array
    return tidy
