"""Select the cells and genes for a model from the data."""

import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.background.ambient import AMBIENT
from totalvi.data.background.isotype_controls import (
    ISOTYPE_MODALITY,
    control_findings,
    split_controls,
)
from totalvi.data.background.prior import find_ambient
from totalvi.data.cells import has_rna
from totalvi.data.checks import check_counts, raise_errors, tally_by_group
from totalvi.data.columns import Columns
from totalvi.data.contents import beside_counts, contents_findings, name_in_results
from totalvi.data.counts import CountsInMemory
from totalvi.data.find import CountSource, find_counts
from totalvi.data.io.modalities import Rows, mudata_of, renamed_features
from totalvi.data.io.read import ReadOptions
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import DataError, Finding, did_you_mean, in_order
from totalvi.run.convert import feature_annotation, write_source, write_the_rest
from totalvi.run.inputs import (
    Apart,
    left_out_by_run,
    read_input,
    rows_apart,
    store_findings,
    without,
)

LARGEST_RAW = 2**31  # bytes of counts of all genes that results keep
RawPaths = str | Path | Mapping[str, str | Path]
NO_RNA_COUNT, NO_SELECTED_COUNT = "without any RNA count", "without a count of the selected genes"


class Prepared(NamedTuple):
    """Checked cells and genes.

    Attributes
    ----------
    mdata
        Raw counts: modalities ``rna`` (CSR float32), ``prot`` (dense float32, NaN where unmeasured),
        ``isotype`` (isotype controls) and, if there was one, ``hto``; all annotation.
    findings
        Warnings and notes of the checks and of what was left out.
    """

    mdata: MuData
    findings: list[Finding]


def check(
    data: str | Path | MuData | AnnData,
    *,
    raw: RawPaths | None = None,
    unmeasured: Unmeasured | None = None,
    **where: Any,
) -> list[Finding]:
    """Say what is in a file of counts, or in data, and what would prevent a fit.

    Parameters
    ----------
    data
        A path that `totalvi.read` takes, or data in memory, which are not changed.
    raw
        The raw matrix with the empty droplets, or one for each batch.
    unmeasured
        Proteins that a batch did not measure; see `totalvi.declare_unmeasured`.
    where
        How to read a path, as in `totalvi.read`, and where counts and annotation are, as in
        `totalvi.Model`: ``batch_key``, ``rna_layer``, ``protein_path``, ``hashtags`` and so on.

    Returns
    -------
    list of Finding
        Errors, then warnings, then notes; each has a ``severity``, a ``code`` and a ``message``.

    Raises
    ------
    ReadError
        When the file cannot be read.
    ValueError
        When an argument is not known.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=200, n_genes=250, n_proteins=4, n_batches=2, seed=1)
    >>> mdata["prot"].X[(mdata.obs["batch"] == mdata.obs["batch"].iloc[0]).to_numpy(), 1] = 0
    >>> "protein_zero_in_group" in [f.code for f in totalvi.check(mdata, batch_key="batch")]
    True
    """
    of_reading = {name: where.pop(name) for name in ReadOptions._fields if name in where}
    known = {field.name for field in fields(Columns)}
    unknown = [name for name in where if name not in known]
    if unknown:
        known |= set(ReadOptions._fields)
        raise ValueError(
            f"{unknown[0]} is not an argument of check; {did_you_mean(unknown[0], sorted(known))}."
        )
    keys, options = Columns(**where), ReadOptions(**of_reading)
    return check_input(data, keys, options, raw, unmeasured)


def check_input(
    given: str | Path | MuData | AnnData,
    keys: Columns,
    options: ReadOptions,
    raw: RawPaths | None,
    unmeasured: Unmeasured | None,
) -> list[Finding]:
    """Do what `check` does."""
    data, keys = read_input(given, keys, options, unmeasured)
    try:
        source = find_counts(data, keys)
        findings = left_out_by_run(check_counts(source, keys), source)
        findings += renamed_features(data) + contents_findings(data, keys)
        split = split_controls(data, source, keys)
        findings += control_findings(split[1])
        findings += find_ambient(data, keys, source.protein_names, raw)[1]
    except DataError as error:
        return [Finding("error", "counts_not_found", str(error))]
    return in_order(findings)


def prepare(
    data: MuData | AnnData,
    keys: Columns,
    *,
    n_genes: int = 4000,
    drop_empty_cells: bool = True,
    raw: RawPaths | None = None,
) -> Prepared:
    """Check the counts, leave out empty cells and genes, and select variable genes.

    Parameters
    ----------
    data
        The data, which are not changed.
    keys
        Places of counts and annotation.
    n_genes
        Number of highly variable genes to select if there are more genes.
    drop_empty_cells
        Whether cells without any RNA count are left out, with a warning; otherwise they are an error.
    raw
        The raw matrix with the empty droplets, or one for each batch.

    Raises
    ------
    DataError
        When the counts or their annotation cannot be used.
    """
    source = whole = find_counts(data, keys)
    all_cells = source.cell_names
    kept = np.ones(len(all_cells), dtype=bool)
    notes = renamed_features(data) + contents_findings(data, keys)
    if drop_empty_cells:
        counted = source.rna.read().count_nonzero(axis=1) > 0  # NaN too, which the checks name
        kept = counted | ~has_rna(source.obs)
        if not counted.any():
            raise DataError("no cell has any RNA count; check which matrix is the RNA.")
        notes += _left_out(kept, NO_RNA_COUNT)
    source = _cells(source, kept)
    findings = check_counts(source, keys)
    raise_errors(findings)
    rna = source.rna.read()
    has_count = np.bincount(rna.indices[rna.data > 0], minlength=rna.shape[1]) > 0
    with_rna = has_rna(source.obs)
    chosen, gene_notes = _choose_genes(source, keys.batch_key, n_genes, has_count, with_rna)
    notes += gene_notes
    expressed = (source.rna.read()[:, chosen].count_nonzero(axis=1) > 0) | ~with_rna
    if not expressed.all():
        if not drop_empty_cells:
            raise DataError(_no_selected_count(source.cell_names[~expressed]))
        notes += _left_out(expressed, NO_SELECTED_COUNT)
        source = _cells(source, expressed)
        kept[kept] = expressed
    hashtags, hashtag_notes = _hashtags(data, all_cells, kept)
    findings = [finding for finding in findings if finding.code != "gene_zero"]
    mdata = _to_mudata(source, chosen, data, keys, hashtags)
    controls = split_controls(data, whole, keys)[1]
    notes += control_findings(controls)
    if controls.shape[1]:
        mdata = _with_controls_apart(mdata, controls.iloc[kept])
    keep_the_rest(mdata, data, keys, kept, None if chosen.all() else source)
    ambient, ambient_notes = find_ambient(data, keys, source.protein_names, raw)
    if ambient is not None:
        mdata.uns[AMBIENT] = ambient.to_table()
    notes += ambient_notes
    return Prepared(mdata, findings + notes + hashtag_notes)


def keep_the_rest(
    mdata: MuData,
    data: MuData | AnnData,
    keys: Columns,
    kept: np.ndarray,
    source: CountSource | None,
) -> None:
    """Keep what the input has beside its counts, and the counts of genes that are not modelled.

    The latter, of ``source``, become ``raw`` of the RNA, for plots, unless they are above 2 GiB.
    """
    for owner, obsm, uns in beside_counts(data, keys, np.flatnonzero(kept)):
        target = mdata.mod[owner] if owner else mdata
        for name, values in obsm.items():
            if isinstance(values, pd.DataFrame):
                values = values.set_axis(mdata.obs_names, axis=0)
            target.obsm[name_in_results(name)] = values
        target.uns.update(uns)
    if source is None:
        return
    counts = source.rna.read().astype(np.float32)
    if counts.nnz * (counts.data.itemsize + counts.indices.itemsize) <= LARGEST_RAW:
        var = feature_annotation(source, data, keys)[0].filter(["gene_ids"])
        cells = pd.DataFrame(index=mdata.obs_names)
        mdata.mod["rna"].raw = AnnData(counts, obs=cells, var=var)


def _choose_genes(
    source: CountSource,
    batch_key: str | None,
    n_genes: int,
    expressed: np.ndarray,
    cells: np.ndarray,
) -> tuple[np.ndarray, list[Finding]]:
    """Return which genes are kept, of those that are ``expressed``, judged by some of the cells."""
    chosen, notes = expressed, []
    if not chosen.all():
        message = f"left out: {(~chosen).sum():,} without a count, of {chosen.size:,} genes."
        notes.append(Finding("note", "genes_left_out", message))
    if chosen.sum() > n_genes:
        # Loads scanpy, which takes seconds.
        from totalvi.run.variable_genes import BatchesLeftOut, variable_genes

        batch = None if batch_key is None else source.obs[batch_key].astype(str).to_numpy()
        message = f"the {n_genes:,} most variable of {chosen.sum():,} genes were selected."
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")  # scanpy warns about its own future versions
            warnings.simplefilter("always", BatchesLeftOut)
            chosen = variable_genes(
                source.rna, source.gene_names, n_genes=n_genes, batch=batch, cells=cells
            )
        notes.append(Finding("note", "genes_selected", message))
        notes += [Finding("warning", "batches_left_out", str(said.message)) for said in caught]
    return chosen, notes


def _cells(source: CountSource, kept: np.ndarray) -> CountSource:
    if kept.all():
        return source
    return source._replace(
        rna=CountsInMemory(source.rna.rows(kept)),
        protein=CountsInMemory(source.protein.rows(kept)),
        cell_names=source.cell_names[kept],
        obs=source.obs[kept],
    )


def _hashtags(
    data: MuData | AnnData, all_cells: pd.Index, kept: np.ndarray
) -> tuple[AnnData | None, list[Finding]]:
    """Take the kept cells from the modality ``hto``, by name unless it lists the same cells."""
    if not isinstance(data, MuData) or "hto" not in data.mod:
        return None, []
    hashtags, names = data["hto"], all_cells[kept]
    if hashtags.obs_names.equals(all_cells):
        return hashtags[kept].copy(), []
    if hashtags.obs_names.is_unique and names.isin(hashtags.obs_names).all():
        return hashtags[names].copy(), []
    message = 'left out: modality "hto", which lacks some of the cells or repeats their names.'
    return None, [Finding("note", "hashtags_left_out", message)]


def _to_mudata(
    source: CountSource,
    genes: np.ndarray,
    data: MuData | AnnData,
    keys: Columns,
    hashtags: AnnData | None,
) -> MuData:
    cells = pd.DataFrame(index=source.cell_names)
    rna_var, protein_var = feature_annotation(source, data, keys)
    modalities = {
        "rna": AnnData(
            source.rna.read()[:, genes].astype(np.float32), obs=cells, var=rna_var[genes]
        ),
        "prot": AnnData(source.protein.read(), obs=cells, var=protein_var),
    }
    if hashtags is not None:
        modalities["hto"] = hashtags
    with mudata.set_options(pull_on_update=False):
        prepared = MuData(modalities)
    prepared.obs = pd.DataFrame(source.obs, index=source.cell_names)
    return prepared


def _with_controls_apart(mdata: MuData, controls: pd.DataFrame) -> MuData:
    """Move the isotype controls from the proteins to a modality of their own."""
    names = controls.columns
    others = ~mdata["prot"].var_names.isin(names)
    modalities = {**mdata.mod, "prot": mdata["prot"][:, others].copy()}
    modalities[ISOTYPE_MODALITY] = _of_controls(controls)
    return mudata_of(modalities, mdata.obs)


def _of_controls(controls: pd.DataFrame) -> AnnData:
    cells, names = pd.DataFrame(index=controls.index), pd.DataFrame(index=controls.columns)
    return AnnData(controls.to_numpy(np.float32), obs=cells, var=names)


def prepare_on_disk(
    data: MuData | AnnData,
    keys: Columns,
    store: Path,
    *,
    n_genes: int = 4000,
    drop_empty_cells: bool = True,
    raw: RawPaths | None = None,
    rows: Rows | None = None,
) -> list[Finding]:
    """Do what `prepare` does, some cells at a time; write the rest to a store, and return findings.

    Parameters
    ----------
    data
        From `totalvi.run.inputs.open_input`.
    keys, n_genes, drop_empty_cells, raw
        As in `prepare`.
    rows
        What among the antibodies is to be set apart, from `open_input`. None: what names say.
    store
        Folder of the store to write.
    """
    whole = find_counts(data, keys, on_disk=True)
    apart = rows_apart(data, whole, keys, rows or Rows())
    source = without(whole, apart)
    tally = tally_by_group(source, keys)
    findings = check_counts(source, keys, tally)
    with_rna = has_rna(source.obs)
    kept = (tally.n_rna > 0) | ~with_rna
    if not (kept & with_rna).any():
        raise DataError("no cell has any RNA count; check which matrix is the RNA.")
    if drop_empty_cells:
        findings = [finding for finding in findings if finding.code != "cell_without_rna"]
    raise_errors(findings)
    controls = split_controls(data, source, keys)[1]
    ambient, ambient_notes = find_ambient(data, keys, source.protein_names, raw)
    notes = (
        renamed_features(data) + contents_findings(data, keys) + store_findings(apart, source.obs)
    )
    notes += _left_out(kept, NO_RNA_COUNT)
    genes, gene_notes = _choose_genes(
        source, keys.batch_key, n_genes, tally.gene_total > 0, kept & with_rna
    )
    expressed = kept & (_expressed(source, genes) | ~with_rna)
    lost = kept & ~expressed
    if lost.any() and not drop_empty_cells:
        raise DataError(_no_selected_count(source.cell_names[lost]))
    notes += gene_notes + _left_out(expressed[kept], NO_SELECTED_COUNT)
    if controls.shape[1]:
        left = apart.left & ~whole.protein_names.isin(controls.columns)
        apart = Apart({**apart.parts, ISOTYPE_MODALITY: _of_controls(controls)}, left)
    write_source(
        store, whole, data, keys, cells=expressed, genes=genes, apart=apart, ambient=ambient
    )
    write_the_rest(store, data, keys, expressed, name_in_results)
    findings = [finding for finding in findings if finding.code != "gene_zero"]
    return findings + notes + control_findings(controls) + ambient_notes


def _expressed(source: CountSource, genes: np.ndarray) -> np.ndarray:
    """Return which cells have a count of the genes."""
    columns = np.flatnonzero(genes)
    counts = [block[:, columns].count_nonzero(axis=1) > 0 for _, block in source.rna.blocks()]
    return np.concatenate(counts)


def _left_out(kept: np.ndarray, why: str) -> list[Finding]:
    if kept.all():
        return []
    message = f"left out: {(~kept).sum():,} {why}, of {kept.size:,} cells."
    return [Finding("warning", "cells_left_out", message)]


def _no_selected_count(cells: pd.Index) -> str:
    without = f'{len(cells):,} cells are {NO_SELECTED_COUNT}, such as "{cells[0]}"'
    return f"{without}; select more genes, or leave such cells out."
