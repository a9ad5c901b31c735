"""Read the counts that a command is given, or open them on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.counts import DenseOnDisk, SparseOnDisk, in_memory, lies_on_disk, to_dense
from totalvi.data.find import CountSource, genes_and_proteins
from totalvi.data.io.features import modalities_of, with_symbols
from totalvi.data.io.h5_zarr import can_stay_on_disk, open_on_disk
from totalvi.data.io.modalities import (
    NO_ANTIBODY_MODALITY,
    Rows,
    known_protein_obsm_key,
    modalities_of_antibodies,
    mudata_of,
    names_in_obsm,
    refuse_set_apart,
)
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.io.write_zarr import name_in_store
from totalvi.data.mosaic import as_mosaic
from totalvi.data.panels.antibodies import Unmeasured, declare_unmeasured
from totalvi.errors import DataError, Finding, argument, counted, listed

Reading = tuple[Columns, ReadOptions, Unmeasured | None]
"""Where counts are, how files are read, and what was not measured."""
AS_IS: Reading = (Columns(), ReadOptions(), None)

NOTHING_APART = Rows((), (), ())


def read_input(
    given: str | Path | MuData | AnnData,
    keys: Columns,
    options: ReadOptions,
    unmeasured: Unmeasured | None = None,
    batch_key_of_model: str | None = None,
) -> tuple[MuData | AnnData, Columns]:
    """Read counts unless they are already in memory; return the data and the places of the counts.

    ``unmeasured`` is as in `totalvi.declare_unmeasured`. Its batches are in the column that ``keys``
    name, or else in the one of a model that takes the data, if they have it.
    """
    if isinstance(given, MuData | AnnData):
        return _declared(as_mosaic(given, keys), keys, unmeasured, batch_key_of_model), keys
    data = read(
        given,
        protein_expression_obsm_key=keys.protein_expression_obsm_key,
        rna_modality=keys.rna_modality,
        protein_modality=keys.protein_modality,
        **options._asdict(),
    )
    keys = replace(keys, protein_expression_obsm_key=None)
    return _declared(data, keys, unmeasured, batch_key_of_model), keys


def _declared(
    data: MuData | AnnData,
    keys: Columns,
    unmeasured: Unmeasured | None,
    batch_key_of_model: str | None = None,
) -> MuData | AnnData:
    """Return the data with NaN for proteins that a batch did not measure."""
    if not unmeasured or (isinstance(data, MuData) and keys.protein_modality not in data.mod):
        return data
    batch_key = keys.group_key
    parts = [data, *data.mod.values()] if isinstance(data, MuData) else [data]
    if batch_key is None and any(batch_key_of_model in part.obs for part in parts):
        batch_key = batch_key_of_model
    return declare_unmeasured(
        data,
        unmeasured,
        batch_key=batch_key,
        rna_modality=keys.rna_modality,
        protein_modality=keys.protein_modality,
        protein_layer=keys.protein_layer,
        protein_expression_obsm_key=keys.protein_expression_obsm_key,
    )


def counts_in_x(data: MuData | AnnData, keys: Columns) -> MuData | AnnData:
    """Return data that were read with the counts in ``X`` of modalities "rna" and "prot".

    A layer that ``data`` lack is not asked for: the counts of one of two inputs may be in ``X``.
    """
    rna_modality, protein_modality = keys.rna_modality, keys.protein_modality
    if not isinstance(data, MuData) or not {rna_modality, protein_modality} & set(data.mod):
        return data
    parts = {}
    for name, adata in data.mod.items():
        layer = {rna_modality: keys.rna_layer, protein_modality: keys.protein_layer}.get(name)
        if layer == "raw" and "raw" not in adata.layers and adata.raw is not None:
            raw_var = with_symbols(pd.DataFrame(adata.raw.var))
            adata = AnnData(adata.raw.X, obs=adata.obs, var=raw_var, obsm=dict(adata.obsm))
        elif layer is not None and layer in adata.layers:
            adata = adata.copy()
            adata.X = adata.layers.pop(layer)
        new = {rna_modality: "rna", protein_modality: "prot"}.get(name, name)
        parts[new] = adata
    found = mudata_of(parts, data.obs)
    found.uns.update(data.uns)
    return found


def open_input(
    given: str | Path,
    keys: Columns,
    options: ReadOptions,
    unmeasured: Unmeasured | None = None,
) -> tuple[MuData | AnnData, Columns, Rows]:
    """Open counts on disk if their format allows it; read other formats into memory.

    So is what has to be put in order to be read, and counts that are stored by gene (CSC) or in raw.

    Returns
    -------
    The data, the places of the counts in them, and what among the antibodies is still to be set apart.
    """
    of_rows = ReadOptions(hashtags=options.hashtags, leave_out=options.leave_out)
    if options == of_rows and can_stay_on_disk(given):
        data = open_on_disk(given)
        if not _must_be_read(data, keys, options.rows):
            data, keys = _as_opened(data, keys, unmeasured)
            return data, keys, options.rows
    return *read_input(given, keys, options, unmeasured), NOTHING_APART


def _as_opened(
    data: MuData | AnnData, keys: Columns, unmeasured: Unmeasured | None
) -> tuple[MuData | AnnData, Columns]:
    if isinstance(data, AnnData) and keys.protein_expression_obsm_key is None:
        keys = replace(keys, protein_expression_obsm_key=known_protein_obsm_key(data))
    rna: AnnData = data.mod[keys.rna_modality] if isinstance(data, MuData) else data
    names = with_symbols(pd.DataFrame(rna.var))
    if not names.index.equals(rna.var_names):
        rna.var = names
    return _declared(data, keys, unmeasured), keys


def _must_be_read(data: MuData | AnnData, keys: Columns, rows: Rows) -> bool:
    """Whether data cannot be used as they lie on disk, but can once they are read into memory."""
    rna: AnnData = data.mod.get(keys.rna_modality) if isinstance(data, MuData) else data
    if rna is None:
        return True
    if "raw" in (keys.rna_layer, keys.protein_layer) and "raw" not in rna.layers:
        return True
    counts = rna.X if keys.rna_layer is None else rna.layers.get(keys.rna_layer)
    if getattr(counts, "format", "csr") != "csr":
        return True
    if isinstance(data, AnnData):
        return not _proteins_are_named_once(data, keys)
    protein = data.mod.get(keys.protein_modality)
    if protein is None or (rows.hashtags and "hto" in data.mod):
        return rows != Rows()  # reading says why
    layer = keys.protein_layer
    counts = protein.X if layer is None else protein.layers.get(layer)
    is_csr = getattr(counts, "format", "csr") == "csr"
    are_paired = rna.obs_names.equals(protein.obs_names)
    return not (is_csr and are_paired and protein.var_names.is_unique)


def _proteins_are_named_once(adata: AnnData, keys: Columns) -> bool:
    """Whether the antibodies, in an entry of ``obsm`` or beside the genes, differ in their names."""
    key = keys.protein_expression_obsm_key or known_protein_obsm_key(adata)
    if key is None:
        return bool(adata.var_names[genes_and_proteins(adata.var)[1]].is_unique)
    if key not in adata.obsm:
        return True
    return names_in_obsm(adata.obsm[key], adata.uns, key).is_unique


def protein_table(data: MuData | AnnData, source: CountSource, keys: Columns) -> pd.DataFrame:
    """Return what ``data`` says of the proteins whose counts are used."""
    if isinstance(data, MuData):
        proteins = pd.DataFrame(data.mod[keys.protein_modality].var)
    elif keys.protein_expression_obsm_key is None:
        proteins = data.var[genes_and_proteins(data.var)[1]]
    else:
        proteins = pd.DataFrame(index=source.protein_names)
    return proteins.set_axis(source.protein_names)


class Apart(NamedTuple):
    """Antibodies that are set apart as counts are written, and which are left.

    Attributes
    ----------
    parts
        Their counts and annotation, by the modality that they will be.
    left
        Whether each antibody of the source is left, (T,).
    """

    parts: dict[str, AnnData]
    left: np.ndarray


def rows_apart(data: MuData | AnnData, source: CountSource, keys: Columns, rows: Rows) -> Apart:
    """Find hashtags and rows of no antibody among the antibodies, and hashtags beside them.

    Raises
    ------
    DataError
        When nothing else is among the antibodies.
    ReadError
        When rows are named of a kind that the file has set apart already.
    """
    protein, where = source.protein, source.protein_where
    if isinstance(data, MuData):
        refuse_set_apart(data, rows, "the file")
        rows = rows._replace(
            hashtags=() if "hto" in data.mod else rows.hashtags,
            leave_out=() if NO_ANTIBODY_MODALITY in data.mod else rows.leave_out,
        )

    def sums(some: np.ndarray) -> np.ndarray:
        return np.concatenate([np.nansum(block, 1) for _, block in protein.columns(some).blocks()])

    var = protein_table(data, source, keys)
    modality = modalities_of_antibodies(var, rows, where, sums)
    if not (modality == "prot").any():
        raise DataError(
            f"{where} holds no proteins at all, only hashtags and the like "
            f"({listed(source.protein_names, at_most=3)}); give the file of the antibodies, or name as "
            f"hashtags only what is one with {argument('hashtags')}."
        )
    found = {
        name: [(protein.columns(np.flatnonzero(modality == name)).read(), var[modality == name])]
        for name in ("hto", NO_ANTIBODY_MODALITY)
        if (modality == name).any()
    }
    if isinstance(data, AnnData) and (modalities_of(data.var) == "hto").any():
        found["hto"] = [_typed_hashtags(data, keys, where), *found.get("hto", [])]
    cells, parts = pd.DataFrame(index=source.cell_names), {}
    for name, pieces in found.items():
        # a hashtag that no cell of a batch has was used all the same
        counts = np.nan_to_num(np.hstack([values for values, _ in pieces]))
        annotation = pd.concat([of for _, of in pieces])
        annotation.index = make_index_unique(annotation.index.astype(str))
        parts[name] = AnnData(counts, obs=cells, var=annotation)
    return Apart(parts, modality == "prot")


def _typed_hashtags(adata: AnnData, keys: Columns, where: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the counts and annotation of features whose type says that they are hashtags."""
    columns = np.flatnonzero(modalities_of(adata.var) == "hto")
    layer = keys.protein_layer or keys.rna_layer
    stored = adata.X if layer is None else adata.layers[layer]
    var = adata.var.iloc[columns]
    if lies_on_disk(stored):
        on_disk = SparseOnDisk if hasattr(stored, "format") else DenseOnDisk
        values = on_disk(stored, where, columns=columns).read()
    else:
        values = in_memory(stored)[:, columns]
    return to_dense(values, where, adata.obs_names, var.index), var


def without(source: CountSource, apart: Apart) -> CountSource:
    """Return the counts without the antibodies that are set apart."""
    proteins = source.protein.columns(np.flatnonzero(apart.left))
    return source._replace(protein=proteins, protein_names=source.protein_names[apart.left])


def keys_in_store(keys: Columns) -> Columns:
    """Return the columns of ``obs`` by their names in a zarr store."""
    of_obs = ("batch_key", "panel_key", "labels_key", "size_factor_key")
    of_covariates = ("categorical_covariate_keys", "continuous_covariate_keys")
    named: dict[str, Any] = {name: key_in_store(getattr(keys, name)) for name in of_obs}
    several: dict[str, Any] = {
        name: tuple(map(name_in_store, getattr(keys, name))) for name in of_covariates
    }
    return replace(keys, **named, **several)


def key_in_store(key: str | None) -> str | None:
    """Return the name of a column in a zarr store, if there is one."""
    return None if key is None else name_in_store(key)


def slash_findings(obs: pd.DataFrame) -> list[Finding]:
    """Note which columns of ``obs`` have other names in a zarr store."""
    renamed = [f'"{name}" is "{name_in_store(name)}"' for name in map(str, obs) if "/" in name]
    if not renamed:
        return []
    message = f"obs, whose columns have no slash in a zarr store: {', '.join(renamed)}."
    return [Finding("note", "columns_renamed", message)]


def apart_findings(apart: Apart) -> list[Finding]:
    """Note which antibodies are set apart as the counts are written."""
    few = [
        f'{counted(part.n_vars, "feature")} as modality "{name}" ({listed(part.var_names)})'
        for name, part in apart.parts.items()
    ]
    return [Finding("note", "rows_apart", f"set apart: {', '.join(few)}.")] if few else []


def store_findings(apart: Apart, obs: pd.DataFrame) -> list[Finding]:
    """Note what a store sets apart and names otherwise."""
    return apart_findings(apart) + slash_findings(obs)


def left_out_by_run(findings: list[Finding], source: CountSource) -> list[Finding]:
    """Return warnings in place of the error of cells without RNA, unless all cells are without."""
    some = source.rna.read().count_nonzero() > 0
    return [
        f._replace(severity="warning") if some and f.code == "cell_without_rna" else f
        for f in findings
    ]
