"""Convert counts of any format to a zarr store, from which models train on disk."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, write_elem
from anndata.utils import make_index_unique
from mudata import MuData
from scipy import sparse

from totalvi.data.background.ambient import AMBIENT, AmbientProfile
from totalvi.data.background.isotype_controls import ISOTYPE_MODALITY
from totalvi.data.checks import TRAINING_ONLY, check_counts, raise_errors
from totalvi.data.columns import Columns
from totalvi.data.contents import beside_counts, contents_findings
from totalvi.data.counts import in_memory
from totalvi.data.find import CountSource, find_counts, gene_table, genes_and_proteins
from totalvi.data.io.features import (
    are_controls,
    are_no_antibodies,
    marked_controls,
    modalities_of,
    with_symbols,
)
from totalvi.data.io.h5_zarr import can_stay_on_disk, open_on_disk
from totalvi.data.io.modalities import (
    NAME_IN_FILE,
    NO_ANTIBODY_MODALITY,
    known_protein_obsm_key,
    mudata_of,
)
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.io.write_zarr import new_store, write_counts
from totalvi.data.mosaic import as_mosaic
from totalvi.data.panels.antibodies import Unmeasured, declare_unmeasured
from totalvi.errors import Finding
from totalvi.run.folder import refuse_input_in_output

Reading = tuple[Columns, ReadOptions, Unmeasured | None]
"""Where counts are, how files are read, and what was not measured."""
AS_IS: Reading = (Columns(), ReadOptions(), None)


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
) -> tuple[MuData | AnnData, Columns]:
    """Open counts on disk if their format allows it; read other formats into memory.

    So is what has to be put in order to be read, and counts that are stored by gene (CSC) or in raw.

    Returns
    -------
    The data, and the places of the counts in them.
    """
    if options != ReadOptions() or not can_stay_on_disk(given):
        return read_input(given, keys, options, unmeasured)
    data = open_on_disk(given)
    if _must_be_read(data, keys):
        return read_input(given, keys, options, unmeasured)
    if isinstance(data, AnnData) and keys.protein_expression_obsm_key is None:
        keys = replace(keys, protein_expression_obsm_key=known_protein_obsm_key(data))
    rna: AnnData = data.mod[keys.rna_modality] if isinstance(data, MuData) else data
    names = with_symbols(pd.DataFrame(rna.var))
    if not names.index.equals(rna.var_names):
        rna.var = names
    return _declared(data, keys, unmeasured), keys


def _must_be_read(data: MuData | AnnData, keys: Columns) -> bool:
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
        antibodies = data.var_names[modalities_of(data.var) == "prot"]
        return bool(are_no_antibodies(pd.DataFrame(index=antibodies), None, "").any())
    protein = data.mod.get(keys.protein_modality)
    if protein is None:
        return False
    layer = keys.protein_layer
    counts = protein.X if layer is None else protein.layers.get(layer)
    if getattr(counts, "format", "csr") != "csr":
        return True
    none = are_no_antibodies(pd.DataFrame(index=protein.var_names), None, "")
    return bool(none.any()) or not rna.obs_names.equals(protein.obs_names)


def convert_counts(
    given: str | Path,
    output: str | Path,
    *,
    keys: Columns | None = None,
    options: ReadOptions | None = None,
    unmeasured: Unmeasured | None = None,
    overwrite: bool = False,
) -> Path:
    """Write raw counts as a MuData in zarr with a layout that is fast to read, some cells at a time.

    The store has the modalities ``rna`` (CSR, in compressed chunks and shards), ``prot`` and, where
    there are hashtags or isotype controls apart, ``hto`` and ``isotype``; the annotation of cells and
    features; and the profile of empty droplets in ``uns``. Repeated feature names are made unique and
    isotype controls marked, as `totalvi.read` does. Other layers are kept, one at a time in memory, and
    so are ``obsm`` and ``uns``. Counts that are none are refused.

    Parameters
    ----------
    given
        Any file of counts that `totalvi.read` takes; of ``.h5ad``, ``.h5mu`` and ``.zarr`` memory
        never holds more than some thousand cells.
    output
        Folder of the new store.
    keys, options
        Places of the counts, and how to read formats that are read into memory.
    unmeasured
        Proteins that a batch did not measure; see `totalvi.declare_unmeasured`.
    overwrite
        Whether to replace an existing store.

    Returns
    -------
    Path of the store.

    Raises
    ------
    DataError
        When the counts cannot be found or read, or are none.
    OutputError
        When ``output`` exists, is or holds ``given``, or cannot be written.

    Examples
    --------
    >>> import tempfile, totalvi
    >>> folder = Path(tempfile.mkdtemp())
    >>> totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5).write(folder / "cells.h5mu")
    >>> store = convert_counts(folder / "cells.h5mu", folder / "cells.zarr")
    >>> model = totalvi.Model(store, n_hidden=16)
    """
    write_store(given, output, keys or Columns(), options or ReadOptions(), unmeasured, overwrite)
    return Path(output)


def write_store(
    given: str | Path,
    output: str | Path,
    keys: Columns,
    options: ReadOptions,
    unmeasured: Unmeasured | None,
    overwrite: bool,
) -> list[Finding]:
    """Do what `convert_counts` does, and return what is to be said of the counts."""
    refuse_input_in_output(Path(given), Path(output))
    data, keys = open_input(given, keys, options, unmeasured)
    source = find_counts(data, keys, on_disk=True)
    findings = check_counts(source, keys)
    raise_errors([finding for finding in findings if finding.code not in OF_FITS])
    with new_store(output, overwrite=overwrite) as staged:
        write_source(staged, source, data, keys, ambient=AmbientProfile.in_uns(data.uns))
        write_the_rest(staged, data, keys, np.ones(len(source.cell_names), dtype=bool))
        _write_layers(staged, source, data, keys)
    return [*contents_findings(data, keys), *(f for f in findings if f.severity == "warning")]


# Errors that stand in the way of a fit, but not of a store of the same counts.
OF_FITS = TRAINING_ONLY | {"cell_without_rna", "protein_all_zero", "protein_partly_unmeasured"}


def write_the_rest(
    store: Path,
    data: MuData | AnnData,
    keys: Columns,
    kept: np.ndarray,
    named: Callable[[str], str] = str,
) -> None:
    """Write embeddings, coordinates and unstructured annotation of the cells that are kept.

    ``named`` gives the name of an entry of ``obsm`` in the store.
    """
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    cells = None
    for owner, obsm, uns in beside_counts(data, keys, np.flatnonzero(kept)):
        place = f"mod/{owner}/" if owner else ""
        for name, values in obsm.items():
            if isinstance(values, pd.DataFrame):
                cells = read_elem(root["obs"]).index if cells is None else cells
                values = values.set_axis(cells, axis=0)
            write_elem(root, f"{place}obsm/{named(name)}", values)
        for name, value in uns.items():
            write_elem(root, f"{place}uns/{name}", value)


def _write_layers(store: Path, source: CountSource, data: MuData | AnnData, keys: Columns) -> None:
    """Write the layers that are not the counts, and X where it is not, beside the counts."""
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name, layer, n_features in (
        ("rna", keys.rna_layer, source.rna.shape[1]),
        ("prot", keys.protein_layer, source.protein.shape[1]),
    ):
        columns = None
        if isinstance(data, MuData):
            adata = data.mod[keys.rna_modality if name == "rna" else keys.protein_modality]
        elif name == "prot" and keys.protein_expression_obsm_key is not None:
            continue
        else:
            adata, columns = data, genes_and_proteins(data.var)[name == "prot"]
            layer = layer or keys.rna_layer
        others = {other: values for other, values in adata.layers.items() if other != layer}
        if layer is not None and adata.X is not None:
            others["X"] = adata.X
        for other, values in others.items():
            found = in_memory(values)
            found = found if columns is None else found[:, np.flatnonzero(columns)]
            if found.shape[1] == n_features:  # not so beside the counts of raw
                write_elem(root, f"mod/{name}/layers/{other}", found)


def feature_annotation(
    source: CountSource, data: MuData | AnnData, keys: Columns
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Copy the annotation in ``data`` of the genes and of the proteins in ``source``."""
    if isinstance(data, MuData):
        proteins = data[keys.protein_modality].var
    else:
        proteins = data.var[genes_and_proteins(data.var)[1]]
        if keys.protein_expression_obsm_key is not None:
            proteins = pd.DataFrame(index=source.protein_names)
    genes = gene_table(data, keys).set_axis(source.gene_names)
    proteins = proteins.set_axis(source.protein_names)
    if "control" in proteins:
        proteins["control"] = marked_controls(proteins["control"], source.protein_where)
    return genes, proteins


def write_source(
    path: Path,
    source: CountSource,
    data: MuData | AnnData,
    keys: Columns,
    *,
    cells: np.ndarray | None = None,
    genes: np.ndarray | None = None,
    controls: pd.DataFrame | None = None,
    ambient: AmbientProfile | None = None,
) -> None:
    """Write counts, or only the cells and genes that are True in masks, to a new store at ``path``.

    ``controls``, counts of isotype controls (all cells, controls), are kept out of the proteins, in a
    modality of their own; ``ambient`` is what empty droplets say.
    """
    kept = np.ones(len(source.cell_names), dtype=bool) if cells is None else cells
    rna_var, protein_var = feature_annotation(source, data, keys)
    if "control" not in protein_var:
        protein_var["control"] = are_controls(protein_var, None, source.protein_where)
    rna_var, protein_var = _unique(rna_var), _unique(protein_var)
    others = _others(data, source.cell_names, kept)
    proteins = np.ones(len(protein_var), dtype=bool)
    if controls is not None and controls.shape[1]:
        proteins = ~source.protein_names.isin(controls.columns)
        others[ISOTYPE_MODALITY] = AnnData(
            controls.to_numpy(np.float32)[kept],
            obs=pd.DataFrame(index=source.cell_names[kept]),
            var=pd.DataFrame(index=controls.columns),
        )
    columns = None if genes is None else np.flatnonzero(genes)

    def blocks() -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
        measured = source.protein.columns(np.flatnonzero(proteins))
        pairs = zip(source.rna.blocks(), measured.blocks(), strict=True)
        for (start, rna), (_, protein) in pairs:
            some = kept[start : start + len(protein)]
            rna = rna if columns is None else rna[:, columns]
            yield (rna, protein) if some.all() else (rna[some], protein[some])

    write_counts(
        path,
        blocks,
        obs=source.obs[kept],
        rna_var=rna_var if genes is None else rna_var[genes],
        protein_var=protein_var[proteins],
        others=others,
        uns={} if ambient is None else {AMBIENT: ambient.to_table()},
    )


def _unique(var: pd.DataFrame) -> pd.DataFrame:
    if var.index.is_unique:
        return var
    var = var.assign(**{NAME_IN_FILE: var.index.to_numpy()})
    return var.set_axis(make_index_unique(var.index), axis=0)


def _others(data: MuData | AnnData, cells: pd.Index, kept: np.ndarray) -> dict[str, AnnData]:
    """Return the kept cells of hashtags, controls and rows of no antibody that list these cells."""
    found = {}
    for name in ("hto", NO_ANTIBODY_MODALITY, ISOTYPE_MODALITY):
        if isinstance(data, MuData) and name in data.mod and data[name].obs_names.equals(cells):
            adata = data[name]
            found[name] = AnnData(in_memory(adata.X)[kept], obs=adata.obs[kept], var=adata.var)
    return found
