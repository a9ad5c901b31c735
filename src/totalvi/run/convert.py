"""Convert counts of any format to a zarr store, from which models train on disk."""

from collections.abc import Callable, Iterator
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
    marked_controls,
)
from totalvi.data.io.modalities import (
    NAME_IN_FILE,
    NO_ANTIBODY_MODALITY,
)
from totalvi.data.io.read import ReadOptions
from totalvi.data.io.write_zarr import name_in_store, new_store, without_slashes, write_counts
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import Finding
from totalvi.run.folder import refuse_input_in_output
from totalvi.run.inputs import (
    Apart,
    open_input,
    protein_table,
    rows_apart,
    store_findings,
    without,
)


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
    there are hashtags, isotype controls or rows of no antibody apart, ``hto``, ``isotype`` and
    ``no_antibody``; the annotation of cells and features; and the profile of empty droplets in ``uns``.
    Repeated feature names are made unique and isotype controls marked, as `totalvi.read` does. Other
    layers are kept, one at a time in memory, and so are ``obsm`` and ``uns``. Counts that are none are
    refused.

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
    data, keys, rows = open_input(given, keys, options, unmeasured)
    source = find_counts(data, keys, on_disk=True)
    apart = rows_apart(data, source, keys, rows)
    findings = check_counts(without(source, apart), keys)
    raise_errors([finding for finding in findings if finding.code not in OF_FITS])
    with new_store(output, overwrite=overwrite) as staged:
        ambient = AmbientProfile.in_uns(data.uns)
        write_source(staged, source, data, keys, apart=apart, ambient=ambient)
        write_the_rest(staged, data, keys, np.ones(len(source.cell_names), dtype=bool))
        _write_layers(staged, source, apart, data, keys)
    said = contents_findings(data, keys) + store_findings(apart, source.obs)
    return [*said, *(f for f in findings if f.severity == "warning")]


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
            key = name_in_store(named(name))
            write_elem(root, f"{place}obsm/{key}", without_slashes(values))
        for name, value in without_slashes(uns).items():
            write_elem(root, f"{place}uns/{name}", value)


def _write_layers(
    store: Path,
    source: CountSource,
    apart: Apart,
    data: MuData | AnnData,
    keys: Columns,
) -> None:
    """Write the layers that are not the counts, and X where it is not, beside the counts."""
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    written = np.flatnonzero(apart.left)
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
                found = found if name == "rna" else found[:, written]
                write_elem(root, f"mod/{name}/layers/{name_in_store(other)}", found)


def feature_annotation(
    source: CountSource, data: MuData | AnnData, keys: Columns
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Copy the annotation in ``data`` of the genes and of the proteins in ``source``."""
    genes = gene_table(data, keys).set_axis(source.gene_names)
    proteins = protein_table(data, source, keys)
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
    apart: Apart | None = None,
    ambient: AmbientProfile | None = None,
) -> None:
    """Write counts, or only the cells and genes that are True in masks, to a new store at ``path``.

    ``apart`` has antibodies of all cells that are kept out of the proteins, in modalities of their own;
    ``ambient`` is what empty droplets say.
    """
    kept = np.ones(len(source.cell_names), dtype=bool) if cells is None else cells
    rna_var, protein_var = feature_annotation(source, data, keys)
    if "control" not in protein_var:
        protein_var["control"] = are_controls(protein_var, None, source.protein_where)
    rna_var, protein_var = _unique(rna_var), _unique(protein_var)
    apart = apart or Apart({}, np.ones(len(source.protein_names), dtype=bool))
    proteins = apart.left
    others = _others(data, source.cell_names, kept)
    others |= {name: antibodies[kept].copy() for name, antibodies in apart.parts.items()}
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
