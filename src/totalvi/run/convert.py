"""Convert counts of any format to a zarr store, from which models train on disk."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData
from scipy import sparse

from totalvi.data.background.ambient import AMBIENT, AmbientProfile
from totalvi.data.background.isotype_controls import ISOTYPE_MODALITY
from totalvi.data.columns import Columns
from totalvi.data.counts import in_memory
from totalvi.data.find import CountSource, find_counts, genes_and_proteins
from totalvi.data.io.h5_zarr import can_stay_on_disk, open_on_disk
from totalvi.data.io.modalities import (
    NAME_IN_FILE,
    are_controls,
    known_protein_obsm_key,
    marked_controls,
)
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.io.write_zarr import new_store, write_counts
from totalvi.run.folder import refuse_input_in_output


def read_input(
    given: str | Path | MuData | AnnData, keys: Columns, options: ReadOptions
) -> tuple[MuData | AnnData, Columns]:
    """Read counts unless they are already in memory; return the data and the places of the counts."""
    if isinstance(given, MuData | AnnData):
        return given, keys
    data = read(
        given,
        protein_expression_obsm_key=keys.protein_expression_obsm_key,
        rna_modality=keys.rna_modality,
        protein_modality=keys.protein_modality,
        **options._asdict(),
    )
    return data, replace(keys, protein_expression_obsm_key=None)


def open_input(
    given: str | Path, keys: Columns, options: ReadOptions
) -> tuple[MuData | AnnData, Columns]:
    """Open counts on disk if their format allows it; read other formats into memory.

    Returns
    -------
    The data, and the places of the counts in them.
    """
    if options != ReadOptions() or not can_stay_on_disk(given):
        return read_input(given, keys, options)
    data = open_on_disk(given)
    if isinstance(data, AnnData) and keys.protein_expression_obsm_key is None:
        keys = replace(keys, protein_expression_obsm_key=known_protein_obsm_key(data))
    return data, keys


def convert_counts(
    given: str | Path,
    output: str | Path,
    *,
    keys: Columns | None = None,
    options: ReadOptions | None = None,
    overwrite: bool = False,
) -> Path:
    """Write raw counts as a MuData in zarr with a layout that is fast to read, some cells at a time.

    The store has the modalities ``rna`` (CSR, in compressed chunks and shards), ``prot`` and, where
    there are hashtags or isotype controls apart, ``hto`` and ``isotype``; the annotation of cells and
    features; and the profile of empty droplets in ``uns``. Repeated feature names are made unique and
    isotype controls marked, as `totalvi.read` does. Layers, ``obsm`` and other ``uns`` are left out.

    Parameters
    ----------
    given
        Any file of counts that `totalvi.read` takes; of ``.h5ad``, ``.h5mu`` and ``.zarr`` memory
        never holds more than some thousand cells.
    output
        Folder of the new store.
    keys, options
        Places of the counts, and how to read formats that are read into memory.
    overwrite
        Whether to replace an existing store.

    Raises
    ------
    DataError
        When the counts cannot be found or read.
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
    refuse_input_in_output(Path(given), Path(output))
    data, keys = open_input(given, keys or Columns(), options or ReadOptions())
    source = find_counts(data, keys, on_disk=True)
    with new_store(output, overwrite=overwrite) as staged:
        write_source(staged, source, data, keys, ambient=AmbientProfile.in_uns(data.uns))
    return Path(output)


def feature_annotation(
    source: CountSource, data: MuData | AnnData, keys: Columns
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Copy the annotation in ``data`` of the genes and of the proteins in ``source``."""
    if isinstance(data, MuData):
        genes, proteins = data[keys.rna_modality].var, data[keys.protein_modality].var
    else:
        is_gene, is_protein = genes_and_proteins(data.var)
        genes, proteins = data.var[is_gene], data.var[is_protein]
        if keys.protein_expression_obsm_key is not None:
            proteins = pd.DataFrame(index=source.protein_names)
    genes, proteins = genes.set_axis(source.gene_names), proteins.set_axis(source.protein_names)
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
    """Return the kept cells of hashtags and isotype controls, where those list the same cells."""
    found = {}
    for name in ("hto", ISOTYPE_MODALITY):
        if isinstance(data, MuData) and name in data.mod and data[name].obs_names.equals(cells):
            adata = data[name]
            found[name] = AnnData(in_memory(adata.X)[kept], obs=adata.obs[kept], var=adata.var)
    return found
