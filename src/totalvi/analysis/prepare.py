"""From data as read to the cells and genes that a model is fitted to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.checks import Finding, raise_errors
from totalvi.data.cite import Keys, check_source
from totalvi.data.read import read
from totalvi.data.source import CountSource, find_counts
from totalvi.errors import DataError


class Prepared(NamedTuple):
    """Checked cells and genes.

    Attributes
    ----------
    mdata
        Modalities ``rna`` (CSR float32 raw counts), ``prot`` (dense float32 raw counts, NaN where
        unmeasured) and, if there was one, ``hto``; all annotation of the cells in ``obs``.
    findings
        Warnings and notes of the checks and of what was left out.
    """

    mdata: MuData
    findings: list[Finding]


class ReadOptions(NamedTuple):
    """How to read a path; see :func:`totalvi.read`."""

    protein_path: str | Path | None = None
    genome: str | None = None
    hashtags: str | Sequence[str] | None = None
    controls: str | Sequence[str] | None = None
    cells_in: Literal["rows", "columns"] | None = None


def read_input(
    given: str | Path | MuData | AnnData, keys: Keys, options: ReadOptions
) -> tuple[MuData | AnnData, Keys]:
    """Read counts unless they are in memory already, and say where in what was read they are."""
    if isinstance(given, MuData | AnnData):
        return given, keys
    data = read(
        given,
        protein_expression_obsm_key=keys.protein_expression_obsm_key,
        **options._asdict(),
    )
    return data, replace(keys, protein_expression_obsm_key=None)


def find(data: MuData | AnnData, keys: Keys) -> CountSource:
    """Find the counts where ``keys`` say."""
    return find_counts(
        data,
        rna_modality=keys.rna_modality,
        protein_modality=keys.protein_modality,
        rna_layer=keys.rna_layer,
        protein_layer=keys.protein_layer,
        protein_expression_obsm_key=keys.protein_expression_obsm_key,
    )


def prepare(
    data: MuData | AnnData, keys: Keys, *, n_genes: int = 4000, drop_empty_cells: bool = True
) -> Prepared:
    """Find and check the counts, leave out empty cells and genes, and select variable genes.

    Parameters
    ----------
    data
        Never written to.
    keys
        Where counts and annotation are.
    n_genes
        With more genes than this, that many are selected for varying most.
    drop_empty_cells
        Whether cells without any RNA count are left out, with a warning; otherwise they are an error.

    Raises
    ------
    DataError
        When the counts or their annotation cannot be used.
    """
    source = find(data, keys)
    kept = np.ones(len(source.cell_names), dtype=bool)
    notes = []
    if drop_empty_cells:
        kept = source.rna.count_nonzero(axis=1) > 0  # NaN counts as well, and the checks name it
        if not kept.any():
            raise DataError("no cell has any RNA count: check which matrix is the RNA")
        if not kept.all():
            message = f"left out: {(~kept).sum():,} without any RNA count, of {kept.size:,} cells"
            notes.append(Finding("warning", "cells_left_out", message))
    source = _cells(source, kept)
    findings = check_source(source, keys)
    raise_errors(findings)
    chosen, gene_notes = _choose_genes(source, keys.batch_key, n_genes)
    notes += gene_notes
    findings = [finding for finding in findings if finding.code != "gene_zero"]
    return Prepared(_to_mudata(source, chosen, data, keys, kept), findings + notes)


def _choose_genes(
    source: CountSource, batch_key: str | None, n_genes: int
) -> tuple[np.ndarray, list[Finding]]:
    n_cells_with = np.bincount(
        source.rna.indices[source.rna.data > 0], minlength=source.rna.shape[1]
    )
    chosen = n_cells_with > 0
    notes = []
    if not chosen.all():
        message = f"left out: {(~chosen).sum():,} without a count, of {chosen.size:,} genes"
        notes.append(Finding("note", "genes_left_out", message))
    if chosen.sum() > n_genes:
        from totalvi.analysis.genes import select_genes  # loads scanpy, which takes seconds

        batch = None if batch_key is None else source.obs[batch_key].astype(str).to_numpy()
        message = f"the {n_genes:,} most variable of {chosen.sum():,} genes were selected"
        chosen = select_genes(source.rna, source.gene_names, n_genes=n_genes, batch=batch)
        notes.append(Finding("note", "genes_selected", message))
    return chosen, notes


def _cells(source: CountSource, kept: np.ndarray) -> CountSource:
    if kept.all():
        return source
    return source._replace(
        rna=source.rna[kept],
        protein=source.protein[kept],
        cell_names=source.cell_names[kept],
        obs=source.obs[kept],
    )


def _to_mudata(
    source: CountSource, genes: np.ndarray, data: MuData | AnnData, keys: Keys, kept: np.ndarray
) -> MuData:
    cells = pd.DataFrame(index=source.cell_names)
    found = data.mod if isinstance(data, MuData) else {}
    rna_var = pd.DataFrame(index=source.gene_names)
    protein_var = pd.DataFrame(index=source.protein_names)
    if keys.protein_modality in found and "control" in found[keys.protein_modality].var:
        protein_var["control"] = np.asarray(found[keys.protein_modality].var["control"], dtype=bool)
    modalities = {
        "rna": AnnData(source.rna[:, genes].astype(np.float32), obs=cells, var=rna_var[genes]),
        "prot": AnnData(source.protein, obs=cells, var=protein_var),
    }
    if "hto" in found and found["hto"].n_obs == len(kept):
        modalities["hto"] = found["hto"][kept].copy()
    with mudata.set_options(pull_on_update=False):
        prepared = MuData(modalities)
    prepared.obs = pd.DataFrame(source.obs, index=source.cell_names)
    return prepared
