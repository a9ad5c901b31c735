"""From data on disk to a store of the cells and genes that a model is fitted to."""

import warnings
from pathlib import Path

import numpy as np
from anndata import AnnData
from mudata import MuData

from totalvi.analysis.convert import write_source
from totalvi.analysis.prepare import RawPaths, find_ambient
from totalvi.data.background.isotype_controls import control_findings, split_controls
from totalvi.data.checks import check_counts, raise_errors, tally_by_group
from totalvi.data.columns import Columns
from totalvi.data.counts import CountsInMemory
from totalvi.data.find import CountSource, find_counts
from totalvi.data.finding import Finding
from totalvi.data.io.modalities import renamed_features
from totalvi.errors import DataError


def prepare_on_disk(
    data: MuData | AnnData,
    keys: Columns,
    store: Path,
    *,
    n_genes: int = 4000,
    drop_empty_cells: bool = True,
    raw: RawPaths | None = None,
) -> list[Finding]:
    """Do what `totalvi.analysis.prepare.prepare` does, some cells at a time; write the rest to a store.

    Parameters
    ----------
    data
        From `totalvi.analysis.convert.open_input`.
    keys, n_genes, drop_empty_cells, raw
        As in `prepare`.
    store
        Folder of the store to write: modalities ``rna``, ``prot``, ``hto`` and ``isotype``.

    Returns
    -------
    Warnings and notes of the checks and of what was left out.
    """
    source = find_counts(data, keys, on_disk=True)
    tally = tally_by_group(source, keys)
    findings = check_counts(source, keys, tally)
    kept = tally.n_rna > 0
    if not kept.any():
        raise DataError("no cell has any RNA count: check which matrix is the RNA")
    if drop_empty_cells:
        findings = [finding for finding in findings if finding.code != "cell_without_rna"]
    raise_errors(findings)
    controls = split_controls(data, source, keys)[1]
    ambient, ambient_notes = find_ambient(data, keys, source.protein_names, raw)
    notes = renamed_features(data) + _left_out(kept, "without any RNA count")
    genes, gene_notes = _choose_genes(source, keys.batch_key, n_genes, tally.gene_total > 0, kept)
    expressed = kept & _expressed(source, genes)
    lost = _left_out(expressed[kept], "without a count of the selected genes")
    if lost and not drop_empty_cells:
        first = source.cell_names[kept & ~expressed][0]
        raise DataError(
            f'cells: {lost[0].message.removeprefix("left out: ")}, such as "{first}": select more '
            "genes, or leave such cells out"
        )
    write_source(
        store, source, data, keys, cells=expressed, genes=genes, controls=controls, ambient=ambient
    )
    findings = [finding for finding in findings if finding.code != "gene_zero"]
    return findings + notes + gene_notes + lost + control_findings(controls) + ambient_notes


def _choose_genes(
    source: CountSource,
    batch_key: str | None,
    n_genes: int,
    expressed: np.ndarray,
    cells: np.ndarray,
) -> tuple[np.ndarray, list[Finding]]:
    chosen, notes = expressed, []
    if not chosen.all():
        message = f"left out: {(~chosen).sum():,} without a count, of {chosen.size:,} genes"
        notes.append(Finding("note", "genes_left_out", message))
    if chosen.sum() > n_genes:
        # Loads scanpy, which takes seconds.
        from totalvi.analysis.genes import BatchesLeftOut, select_genes
        from totalvi.analysis.genes_on_disk import select_genes_on_disk

        batch = None if batch_key is None else source.obs[batch_key].astype(str).to_numpy()
        message = f"the {n_genes:,} most variable of {chosen.sum():,} genes were selected"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", BatchesLeftOut)
            if not isinstance(source.rna, CountsInMemory):
                chosen = select_genes_on_disk(source.rna, n_genes=n_genes, batch=batch, cells=cells)
            else:  # of a format that is read whole
                chosen = select_genes(
                    source.rna.rows(cells), source.gene_names, n_genes=n_genes,
                    batch=None if batch is None else batch[cells],
                )  # fmt: skip
        notes.append(Finding("note", "genes_selected", message))
        notes += [Finding("warning", "batches_left_out", str(said.message)) for said in caught]
    return chosen, notes


def _expressed(source: CountSource, genes: np.ndarray) -> np.ndarray:
    """Return which cells have a count of the genes."""
    columns = np.flatnonzero(genes)
    counts = [block[:, columns].count_nonzero(axis=1) > 0 for _, block in source.rna.blocks()]
    return np.concatenate(counts)


def _left_out(kept: np.ndarray, why: str) -> list[Finding]:
    if kept.all():
        return []
    message = f"left out: {(~kept).sum():,} {why}, of {kept.size:,} cells"
    return [Finding("warning", "cells_left_out", message)]
