"""Read the counts that a command is given, or open them on disk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.counts import DenseOnDisk, SparseOnDisk
from totalvi.data.find import CountSource, genes_and_proteins
from totalvi.data.io.features import (
    modalities_of,
    with_symbols,
)
from totalvi.data.io.h5_zarr import can_stay_on_disk, open_on_disk
from totalvi.data.io.modalities import (
    NO_ANTIBODY_MODALITY,
    Rows,
    known_protein_obsm_key,
    modalities_of_antibodies,
    mudata_of,
    names_in_obsm,
)
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.io.write_zarr import name_in_store
from totalvi.data.mosaic import as_mosaic
from totalvi.data.panels.antibodies import Unmeasured, declare_unmeasured
from totalvi.errors import Finding, counted, listed

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
    if not isinstance(data, MuData) or rna_modality not in data.mod:
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
    return not (is_csr and rna.obs_names.equals(protein.obs_names))


def _proteins_are_named_once(adata: AnnData, keys: Columns) -> bool:
    """Whether the columns of the entry of ``obsm`` with the proteins differ in their names."""
    key = keys.protein_expression_obsm_key or known_protein_obsm_key(adata)
    if key is None or key not in adata.obsm:
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


def rows_apart(
    data: MuData | AnnData, source: CountSource, keys: Columns, rows: Rows
) -> dict[str, AnnData]:
    """Return hashtags and rows of no antibody, of which modalities will be; they stay in ``source``."""
    protein, where = source.protein, source.protein_where
    if isinstance(data, MuData):
        rows = rows._replace(
            hashtags=() if "hto" in data.mod else rows.hashtags,
            leave_out=() if NO_ANTIBODY_MODALITY in data.mod else rows.leave_out,
        )

    def sums(some: np.ndarray) -> np.ndarray:
        return np.concatenate([np.nansum(block, 1) for _, block in protein.columns(some).blocks()])

    var = protein_table(data, source, keys)
    modality = modalities_of_antibodies(var, rows, where, sums)
    cells, found = pd.DataFrame(index=source.cell_names), {}
    for name in ("hto", NO_ANTIBODY_MODALITY):
        some = np.flatnonzero(modality == name)
        if len(some):
            found[name] = AnnData(protein.columns(some).read(), obs=cells, var=var.iloc[some])
    typed = np.zeros(0) if isinstance(data, MuData) else modalities_of(data.var) == "hto"
    if typed.any():
        layer = keys.protein_layer or keys.rna_layer
        stored = data.X if layer is None else data.layers[layer]
        on_disk = SparseOnDisk if hasattr(stored, "format") else DenseOnDisk
        tags = on_disk(stored, where, columns=np.flatnonzero(typed)).read()
        found.setdefault("hto", AnnData(tags, obs=cells, var=data.var[typed]))
    return found


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


def apart_findings(apart: Mapping[str, AnnData]) -> list[Finding]:
    """Note which antibodies are set apart as the counts are written."""
    few = [
        f'{counted(part.n_vars, "feature")} as modality "{name}" ({listed(part.var_names)})'
        for name, part in apart.items()
    ]
    return [Finding("note", "rows_apart", f"set apart: {', '.join(few)}.")] if few else []


def are_left(source: CountSource, apart: Mapping[str, AnnData]) -> np.ndarray:
    """Return which antibodies are not set apart."""
    names = [name for antibodies in apart.values() for name in antibodies.var_names]
    return np.asarray(~source.protein_names.isin(names))


def without(source: CountSource, apart: Mapping[str, AnnData]) -> CountSource:
    """Return the counts without the antibodies that are set apart."""
    left = are_left(source, apart)
    proteins = source.protein.columns(np.flatnonzero(left))
    return source._replace(protein=proteins, protein_names=source.protein_names[left])
