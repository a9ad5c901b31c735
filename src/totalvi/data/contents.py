"""What a file holds beside the counts that are used, and what in it looks like antibodies."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from mudata import MuData

from totalvi.data.cells import MODALITIES
from totalvi.data.columns import Columns, cell_groups
from totalvi.data.counts import in_memory, lies_on_disk, to_dense
from totalvi.data.io.features import has_types, modalities_of, says_antibody
from totalvi.data.io.readable_parts import READING, UNREAD
from totalvi.data.panels.antibody_names import GENES_OF_ANTIGEN, has_known_target, identify
from totalvi.errors import DataError, Finding, argument, counted, did_you_mean, listed, setting

LIKE_PROTEINS = re.compile(
    r"prote(in|om) | (?<![a-z]) (prot(?!o) | adt | antibod | abseq | ab(?![a-z]) | cite)",
    re.IGNORECASE | re.VERBOSE,
)
# Entries of obsm that may hold whole numbers, and are no antibodies.
_NO_COUNTS = re.compile(
    r"spatial|coord|locat|position|umap|tsne|pca|lsi|draw_graph|hto|hash|cluster|leiden|peak|guide",
    re.IGNORECASE,
)
_GENE_ID = re.compile(r"ENS[A-Z]*G\d{6,}")
_BARCODE = re.compile(r"[ACGT]{12,}")
_CD = re.compile(r"(?<![a-z])cd[-_. ]?\d", re.IGNORECASE)  # as most antibodies of a panel are named
_DESIGNATION = re.compile(r"cd\d+[a-z]{0,2}(?![a-z0-9])", re.IGNORECASE)
_FEW = 1000  # antibodies that no panel exceeds
AMBIENT_KEY = "ambient"  # entry of uns with the profile of empty droplets, which is kept elsewhere
_SEEN = 1000  # cells that are looked at
_NAMED = 20  # features of a modality that is set apart


def with_panels(obs: pd.DataFrame, columns: Columns) -> Columns:
    """Return the columns with a panel key that tells cells apart by what was measured.

    A panel (or batch) measures the same in all of its cells. Where batches do not, and no panels are
    named, ``obs["measured_modalities"]`` says them.
    """
    if columns.panel_key is not None or MODALITIES not in obs:
        return columns
    groups = cell_groups(obs, "batch", columns.batch_key)
    if groups is None:  # the checks say why
        return columns
    kinds = pd.Series(obs[MODALITIES].astype(str).to_numpy()).groupby(groups.codes).nunique()
    return replace(columns, panel_key=MODALITIES) if (kinds > 1).any() else columns


def likely_proteins(data: MuData | AnnData, columns: Columns) -> list[tuple[str, str]]:
    """Find what looks like antibody counts and is not read as such.

    Returns
    -------
    For each: what it is, and how to have it read.
    """
    rna = data.mod.get(columns.rna_modality) if isinstance(data, MuData) else data
    found = list(_modalities(data, columns)) if isinstance(data, MuData) else []
    for owner in (data, rna) if isinstance(data, MuData) else (data,):
        if owner is not None:
            used = columns.protein_expression_obsm_key
            for key in _obsm_entries(owner):
                if key != used and _looks_like_antibodies(key, owner.obsm[key]):
                    how = f"name it with {setting('protein_expression_obsm_key', key)}"
                    found.append((f'obsm["{key}"]', how))
    if rna is None:
        return list(dict.fromkeys(found))
    found += _in_annotation(rna)
    names = rna.var_names.astype(str)
    odd = [name for name in names if says_antibody(name)]
    designated = [name for name in names if _names_no_gene(name)]
    odd = odd or (designated if len(designated) > 1 else [])
    if odd and len(odd) < len(names) and "prot" not in modalities_of(rna.var):
        how = (
            'mark them as "Antibody Capture" in var["feature_types"], and the others as '
            '"Gene Expression"'
        )
        found.append((f"the features {listed(odd, at_most=3)}", how))
    return list(dict.fromkeys(found))


def _names_no_gene(name: str) -> bool:
    """Whether a name is the CD designation of an antigen whose genes are called otherwise, as CD3."""
    found = _DESIGNATION.match(name.strip())
    if found is None:
        return False
    target = identify(found.group()).target
    is_isoform = target.upper().startswith("CD45R")
    genes = GENES_OF_ANTIGEN.get(target)
    return is_isoform or (genes is not None and found.group().upper() not in genes)


def _modalities(mdata: MuData, columns: Columns) -> Iterator[tuple[str, str]]:
    for name, adata in mdata.mod.items():
        if name in (columns.rna_modality, columns.protein_modality, "hto", "isotype"):
            continue
        names = adata.var_names.astype(str)
        known = sum(map(has_known_target, names)) if len(names) <= _FEW else 0
        of_proteins = LIKE_PROTEINS.search(name) or "prot" in modalities_of(adata.var)
        if of_proteins or known > len(names) / 2:
            yield f'modality "{name}"', f"name it with {setting('protein_modality', name)}"


def _obsm_entries(data: MuData | AnnData) -> list[str]:
    return [str(key) for key in data.obsm if not (isinstance(data, MuData) and key in data.mod)]


def _in_annotation(rna: AnnData) -> Iterator[tuple[str, str]]:
    """Find antibodies in ``obs``, ``raw`` or ``uns``, and cells that are named as genes."""
    numeric = [
        str(name)
        for name in rna.obs
        if pd.api.types.is_numeric_dtype(rna.obs[name]) and len(str(name)) < 60
    ]
    odd = [name for name in numeric if says_antibody(name) or has_known_target(name)]
    if len(odd) > 1 and looks_like_counts(rna.obs[odd]):
        how = 'move them into a table obsm["protein_expression"]'
        yield f"the columns {listed(odd, at_most=3)} of obs", how
    raw = getattr(rna, "raw", None)
    if raw is not None and "prot" in modalities_of(raw.var):
        fix = 'adata.raw.to_adata().write_h5ad("cells.h5ad")'
        yield "the antibodies in raw", f"make them the data, with {fix}"
    for key, value in rna.uns.items():
        if isinstance(value, Mapping):  # counts and names side by side
            value = next((each for each in value.values() if _is_of_cells(each, rna)), None)
        if not _is_of_cells(value, rna):
            continue
        is_named = isinstance(value, pd.DataFrame) and value.index.equals(rna.obs_names)
        if (is_named or LIKE_PROTEINS.search(str(key))) and looks_like_counts(value):
            yield f'the table uns["{key}"]', f'move it to obsm["{key}"]'
    cells, features = rna.obs_names.astype(str)[:_SEEN], rna.var_names.astype(str)[:_SEEN]
    barcodes = [_BARCODE.search(name) is not None for name in features]
    ids = [_GENE_ID.match(name) is not None or has_known_target(name) for name in cells]
    if barcodes and np.mean(barcodes) > 0.5 and not any(map(_BARCODE.search, cells)):
        example = next((cell for cell, known in zip(cells, ids, strict=True) if known), cells[0])
        yield (
            "",
            f'its cells are named as genes ("{example}"), so write it transposed, cells as rows',
        )


def _is_of_cells(value: Any, rna: AnnData) -> bool:
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return len(shape) == 2 and shape[0] == rna.n_obs and shape[1] <= _FEW


def _looks_like_antibodies(key: str, values: Any) -> bool:
    return not _NO_COUNTS.search(key) and looks_like_counts(values)


def looks_like_counts(values: Any) -> bool:
    """Whether the first rows of a matrix hold only whole numbers >= 0, one of them > 1."""
    try:
        first = values.iloc[:_SEEN] if isinstance(values, pd.DataFrame) else values[:_SEEN]
        if lies_on_disk(first):
            first = in_memory(first)
        shape: tuple[int, ...] = getattr(first, "shape", ())
        if len(shape) != 2 or shape[1] > 10 * _FEW:
            return False
        numbers = to_dense(first, "", pd.RangeIndex(shape[0]), pd.RangeIndex(shape[1]))
    except (DataError, ValueError, TypeError, KeyError):
        return False
    numbers = numbers[~np.isnan(numbers)]
    whole = (numbers >= 0) & (numbers == np.floor(numbers))
    return bool(numbers.size and whole.all() and numbers.max() > 1)


def require_no_proteins(data: MuData | AnnData, columns: Columns) -> None:
    """Refuse to take data for RNA alone in which something looks like antibody counts.

    Raises
    ------
    DataError
        Naming it, and how to have it read.
    """
    found = likely_proteins(data, columns)
    if found:
        raise DataError(
            f"No proteins are read, but {_in_words(found)}; if they are no antibodies, remove them to "
            "go on with the RNA alone."
        )


def no_proteins(data: MuData | AnnData, columns: Columns) -> str:
    """Return the message that there are no proteins, and where they may be."""
    alone = _antibodies_alone(data, columns)
    if alone:
        return alone
    found = likely_proteins(data, columns)
    if found:
        name = columns.protein_modality
        asked = isinstance(data, MuData) and name != "prot" and name not in data.mod
        where = f' (no modality "{name}" is there)' if asked else ""
        return f"There are no proteins at all{where}, but {_in_words(found)}."
    if isinstance(data, MuData) and set(data.mod) == {columns.rna_modality, "hto"}:
        tags = data.mod["hto"].var_names
        return (
            f"There are no proteins at all, only hashtags ({listed(tags, at_most=3)}), which tell "
            f"samples apart; give the file of the antibodies as {argument('protein_path')}, or name as "
            f"hashtags only what is one with {argument('hashtags')}."
        )
    if isinstance(data, MuData) and len(data.mod) > 1:
        name = columns.protein_modality
        missing = (
            f'modality "{name}" is empty' if name in data.mod else f'no modality "{name}" is there'
        )
        return (
            f"There are no proteins at all: {missing}; if another modality holds them, name it with "
            f"{argument('protein_modality')} ({did_you_mean(name, data.mod)}), or give their file as "
            f"{argument('protein_path')}."
        )
    rna = data.mod.get(columns.rna_modality) if isinstance(data, MuData) else data
    entries = [] if rna is None else _obsm_entries(rna)
    transformed = [f'obsm["{key}"]' for key in entries if LIKE_PROTEINS.search(key)]
    if transformed:
        return (
            f"There are no proteins at all: {transformed[0]} is named as if it held them, but holds no "
            "counts; give the raw counts as another entry of obsm, or in a file of their own as "
            f"{argument('protein_path')}."
        )
    of_genes = rna is not None and has_types(rna.var) and set(modalities_of(rna.var)) == {"rna"}
    typed = "; scanpy.read_10x_h5 keeps antibodies with gex_only=False alone" if of_genes else ""
    return (
        f"There are no proteins at all{' (all features are genes)' if of_genes else ''}, and totalVI "
        f"needs their counts paired with the RNA{typed}; give the file that has both, or that of the "
        f"proteins as {argument('protein_path')}; in an AnnData they are features with "
        '"Antibody Capture" in var["feature_types"], or an entry of obsm that '
        f"{argument('protein_expression_obsm_key')} names."
    )


def _antibodies_alone(data: MuData | AnnData, columns: Columns) -> str:
    """Return the message that what is taken for genes seems to be antibodies; empty if it does not."""
    rna = data.mod.get(columns.rna_modality) if isinstance(data, MuData) else data
    if rna is None or not 0 < rna.n_vars <= _FEW:
        return ""
    names = rna.var_names.astype(str)
    if sum(_CD.search(name) is not None for name in names) <= len(names) / 2:
        return ""
    return (
        f"There are no proteins beside the {counted(len(names), 'feature')}, which are named as "
        f"antibodies ({listed(names, at_most=3)}); if they are, give the file of the RNA first, and "
        f"this one as {argument('protein_path')}."
    )


def _in_words(found: Iterable[tuple[str, str]]) -> str:
    words = []
    for what, how in found:
        look = "look" if what.startswith("the ") and not what.startswith("the table") else "looks"
        words.append(f"{what} {look} like antibody counts ({how})" if what else how)
    return " and ".join(words)


def _of_mudata(mdata: MuData, columns: Columns) -> tuple[list[str], list[str]]:
    """Return what of a MuData is used and what is set apart."""
    used, apart = [], []
    for name, layer, noun in (
        (columns.rna_modality, columns.rna_layer, "gene"),
        (columns.protein_modality, columns.protein_layer, "protein"),
    ):
        if name in mdata.mod:
            adata = mdata.mod[name]
            n_features = _n_features(adata, layer)
            used.append(f'{counted(n_features, noun)} ({_matrix_of(layer)} of modality "{name}")')
            apart += _beside(adata, layer, None, f' of "{name}"')
    for name, adata in mdata.mod.items():
        if name not in (columns.rna_modality, columns.protein_modality):
            few = f": {listed(adata.var_names)}" if 0 < adata.n_vars <= _NAMED else ""
            apart.append(f'modality "{name}" ({counted(adata.n_vars, "feature")}{few})')
    return used, apart + [f'obsm["{key}"]' for key in _obsm_entries(mdata)]


def _of_anndata(adata: AnnData, columns: Columns) -> tuple[list[str], list[str]]:
    """Return what of an AnnData is used and what is set apart."""
    key, layer = columns.protein_expression_obsm_key, columns.rna_layer
    used, apart = [], []
    modality = modalities_of(adata.var)
    if "rna" not in modality:  # then all that is no antibody are genes
        modality = np.where(modality == "prot", modality, "rna")
    for name in pd.unique(modality):
        n_features = int((modality == name).sum())
        if name == "rna":
            n_genes = n_features if layer != "raw" else _n_features(adata, layer)
            used.append(f"{counted(n_genes, 'gene')} ({_matrix_of(layer)})")
        elif name == "prot" and key is None:
            matrix = _matrix_of(columns.protein_layer or layer)
            used.append(f"{counted(n_features, 'protein')} ({matrix})")
        else:
            apart.append(f'{counted(n_features, "feature")} of the type "{name}"')
    if key is not None and key in adata.obsm:
        n_proteins = adata.obsm[key].shape[1] if len(adata.obsm[key].shape) > 1 else 1
        used.append(f'{counted(n_proteins, "protein")} (obsm["{key}"])')
    return used, apart + _beside(adata, columns.rna_layer, key, "")


def contents_findings(data: MuData | AnnData, columns: Columns, which: str = "") -> list[Finding]:
    """Say in one note what of the data is used and what is set apart, and what reading them changed.

    ``which`` names the data, where there are others.
    """
    used, apart = (_of_mudata if isinstance(data, MuData) else _of_anndata)(data, columns)
    start = f"{which}, used" if which else "Used"
    message = f"{start}: {' and '.join(used)}; set apart: {', '.join(apart) or 'nothing'}."
    notes = [Finding("note", "contents", message)]
    said = data.uns.get(READING)
    if isinstance(said, Mapping):
        of = f"{which}: " if which else ""
        notes += [Finding("warning", str(code), f"{of}{text}") for code, text in said.items()]
    return notes


def _n_features(adata: AnnData, layer: str | None) -> int:
    of_raw = layer == "raw" and "raw" not in adata.layers and adata.raw is not None
    n_genes = (modalities_of(adata.raw.var) == "rna").sum() if of_raw else 0
    return int(n_genes or (adata.raw if of_raw else adata).n_vars)


def _matrix_of(layer: str | None) -> str:
    return "X" if layer is None else "raw" if layer == "raw" else f'layers["{layer}"]'


def _beside(adata: AnnData, layer: str | None, obsm_key: str | None, of: str) -> list[str]:
    found = [f'layers["{name}"]{of}' for name in adata.layers if name != layer]
    if layer is not None and adata.X is not None:
        found.append(f"X{of}")
    found += [f'obsm["{name}"]{of}' for name in adata.obsm if name != obsm_key]
    if getattr(adata, "raw", None) is not None and layer != "raw":
        found.append(f"raw{of}")
    return found


class Beside(NamedTuple):
    """What one owner, the data as a whole ("") or a modality, holds beside the counts."""

    owner: str
    obsm: dict[str, Any]
    uns: dict[str, Any]


def beside_counts(data: MuData | AnnData, columns: Columns, rows: np.ndarray) -> list[Beside]:
    """Return embeddings, coordinates and unstructured annotation of the cells at ``rows``.

    Results keep them. The entry of ``obsm`` with the proteins is not among them, nor is what cannot
    be written to a file.
    """
    owners: list[tuple[str, MuData | AnnData]] = [("rna", data)]
    if isinstance(data, MuData):
        owners = [("", data), ("rna", data.mod[columns.rna_modality])]
        if columns.protein_modality in data.mod:
            owners.append(("prot", data.mod[columns.protein_modality]))
    found = []
    for owner, adata in owners:
        if adata.n_obs <= (rows.max() if len(rows) else 0):
            continue
        obsm = {}
        for key in _obsm_entries(adata):
            if key == columns.protein_expression_obsm_key:
                continue
            values = adata.obsm[key]
            if isinstance(values, pd.DataFrame):
                obsm[key] = values.iloc[rows]
            else:
                obsm[key] = in_memory(values)[rows]
        uns = {
            str(key): value
            for key, value in adata.uns.items()
            if key not in (READING, UNREAD, AMBIENT_KEY) and _can_be_written(value)
        }
        found.append(Beside(owner, obsm, uns))
    return found


def name_in_results(name: str) -> str:
    """Return the name of an input's entry of ``obsm`` in results, which have some of their own.

    Examples
    --------
    >>> name_in_results("X_umap"), name_in_results("X_pca")
    ('X_umap_of_input', 'X_pca')
    """
    return f"{name}_of_input" if name in ("X_umap", "X_totalvi") else name


def _can_be_written(value: Any) -> bool:
    """Whether a file can hold an entry of ``uns``, whatever objects people keep there."""
    with h5py.File("uns", "w", driver="core", backing_store=False) as file:
        try:
            write_elem(file, "value", value)
        except Exception:  # of any type, as no writer is known for it
            return False
    return True
