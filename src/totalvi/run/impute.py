"""Impute the proteins or the RNA of a query from a reference, from files to a folder of results."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from anndata import AnnData
from mudata import MuData

from totalvi.data.cells import has_rna
from totalvi.data.checks import UNMEASURED
from totalvi.data.columns import Columns
from totalvi.data.io.read import ReadOptions
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import DataError, Finding, listed, setting, warnings_and_notes
from totalvi.progress import Steps
from totalvi.run.folder import (
    MODEL,
    RECORD,
    RunResult,
    WriteOptions,
    files_in,
    finished,
    holds_this_run,
    refuse_input_in_output,
    require_writable,
    results_folder,
)
from totalvi.run.impute_inputs import (
    BATCH,
    in_query,
    joined_batches,
    query_alone,
    read_both,
    reference_alone,
    require_column,
    without_rna,
)
from totalvi.run.imputed import (
    NOT_TOLD,
    imputed_proteins,
    imputed_rna,
    level_notes,
    unreliable_warnings,
    write_imputed,
)
from totalvi.run.prepare import prepare
from totalvi.run.record import Options, asked, circumstances, differences, write_record


@dataclass(frozen=True)
class ImputeOptions(Options):
    """What `impute` was asked, whose arguments these are."""

    INPUTS = ("reference", "query", "protein_path")

    reference: str | Path | MuData | AnnData
    query: str | Path | MuData | AnnData
    reading: ReadOptions
    keys: Columns
    unmeasured: Unmeasured | None
    n_genes: int
    staining_level: bool
    max_epochs: int | None
    n_samples: int
    interval: float
    seed: int
    writing: WriteOptions


def impute(
    reference: str | Path | MuData | AnnData,
    query: str | Path | MuData | AnnData,
    output: str | Path,
    *,
    batch_key: str | None = None,
    genome: str | None = None,
    hashtags: str | Sequence[str] | None = None,
    controls: str | Sequence[str] | None = None,
    leave_out: str | Sequence[str] | None = None,
    mosaic: bool | None = None,
    cells_in: Literal["rows", "columns"] | None = None,
    protein_path: str | Path | None = None,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
    rna_layer: str | None = None,
    protein_layer: str | None = None,
    protein_expression_obsm_key: str | None = None,
    allow_fractional: bool = False,
    isotype_controls: Sequence[str] | None = None,
    unmeasured: Unmeasured | None = None,
    n_genes: int = 4000,
    staining_level: bool = False,
    max_epochs: int | None = None,
    n_samples: int = 100,
    interval: float = 0.9,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: timedelta = timedelta(minutes=10),
    progress: bool | None = None,
) -> RunResult:
    """Predict the proteins or the RNA that a query lacks from a reference.

    A query with RNA is mapped on a fit of the reference, so that its cells may be of other types or in
    other shares. If cells of the query have no RNA, both are fitted together.

    ``output`` then holds ``imputed.h5ad`` of proteins (mean counts; layers ``sd``, ``log1p``,
    ``lower``, ``upper`` and ``foreground_probability``; the reliability of each protein in ``var``),
    ``imputed_rna.h5ad`` of the cells without RNA (mean counts at the usual library size; layers
    ``log1p``, ``lower`` and ``upper``; the reliability of each gene in ``var``), ``tables``,
    ``model.totalvi`` and ``run.json``. It appears at the end; until then the fit is kept in
    ``<output>.checkpoint``.

    Parameters
    ----------
    reference
        RNA and proteins: a path that :func:`totalvi.read` takes, or data in memory.
    query
        Cells of the same tissue: RNA with other proteins or none, or proteins without RNA.
    output
        A folder that does not exist or is empty, or a link to one.
    batch_key
        Column of ``obs`` with the batches within reference or query, where it is there.
    genome, hashtags, controls, leave_out, cells_in, mosaic
        How to read paths; see :func:`totalvi.read`.
    protein_path
        Proteins of the reference, if they are in a file of their own.
    rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
        Where the counts are, in whichever of the two has it; the other's are where they usually are.
    allow_fractional
        Whether counts may have fractions.
    isotype_controls
        Antibodies that are left out as controls, as in :class:`totalvi.Model`; () imputes them too.
    unmeasured
        Proteins that a batch did not measure; see :func:`totalvi.declare_unmeasured`.
    n_genes
        Number of highly variable genes to select if more are shared.
    staining_level
        Whether each cell has a latent level of all its protein counts, as in :class:`totalvi.Model`.
    max_epochs
        Largest number of epochs; None: by the number of cells.
    n_samples, interval
        See :meth:`totalvi.Model.impute_proteins` and :meth:`totalvi.Model.impute_rna`.
    seed
        The same seed gives the same results on the same machine.
    overwrite, resume, checkpoint_every, progress
        As in :func:`totalvi.run.run.run`.

    Raises
    ------
    TotalviError
        When the input cannot be used, the output cannot be written, or the fit fails.
    KeyboardInterrupt
        When SIGINT or SIGTERM ended the fit; its checkpoint is written.
    """
    return _run(
        ImputeOptions(
            reference=reference,
            query=query,
            reading=ReadOptions(
                protein_path, genome, hashtags, controls, cells_in, leave_out, mosaic
            ),
            keys=Columns(
                batch_key=batch_key,
                rna_modality=rna_modality,
                protein_modality=protein_modality,
                rna_layer=rna_layer,
                protein_layer=protein_layer,
                protein_expression_obsm_key=protein_expression_obsm_key,
                allow_fractional=allow_fractional,
                isotype_controls=None if isotype_controls is None else tuple(isotype_controls),
            ),
            unmeasured=unmeasured,
            n_genes=n_genes,
            staining_level=staining_level,
            max_epochs=max_epochs,
            n_samples=n_samples,
            interval=interval,
            seed=seed,
            writing=WriteOptions(Path(output), overwrite, resume, checkpoint_every, progress),
        )
    )


def _run(options: ImputeOptions) -> RunResult:
    writing, inputs = options.writing, options.inputs()
    output, batch_key = writing.output, options.keys.batch_key
    for path in inputs.values():
        refuse_input_in_output(path, output)
    are_paths = {"reference", "query"} <= set(inputs)
    resumed = writing.resume and are_paths
    if resumed and holds_this_run(writing, differences(output / RECORD, options)):
        return finished(output)
    request = asked(options)
    require_writable(output, overwrite=writing.overwrite)
    steps = Steps(writing.progress)
    with steps.step("read"):
        both, contents = read_both(
            options.reference, options.query, options.keys, options.reading, options.unmeasured
        )
    require_column(both, batch_key)
    with steps.step("join, check and select genes"):
        joined, keys = joined_batches(both, options.keys)
        mdata, findings = prepare(joined, keys, n_genes=options.n_genes)
        findings = [*contents, *(f for f in findings if f.code != "contents")]
        lacking = _lacking(mdata)
    # Loaded only now: bad input is refused before seconds go to loading torch.
    from totalvi.fit.plan import default_max_epochs
    from totalvi.run.new_model import fit_model, new_model

    with results_folder(writing) as folder:
        with steps.step("train", spinner=False):
            # a fit of both would take a query of other types, or in other shares, for a batch effect
            together = bool(without_rna(mdata).any())
            fitted = mdata if together else reference_alone(mdata)
            model = new_model(fitted, keys, options.seed, options.staining_level)
            fit_model(model, options.max_epochs, writing, steps.show)
        query = None
        if not together:
            with steps.step("map"):
                cells = query_alone(mdata, model.schema.protein_names)
                query = model.map_query(cells, batch_key=BATCH)
        given = options.n_samples, options.interval, steps
        proteins = None
        if lacking.any():
            proteins = imputed_proteins(model, query, mdata, lacking, *given)
        rna = imputed_rna(model, mdata, *given) if together else None
        with steps.step("save"):
            write_imputed(proteins, rna, folder)
            model.history.to_csv(folder / "tables" / "history.csv", float_format="%.6g")
            (model if query is None else query).save(folder / MODEL)
            joined.uns["concat"]["antibodies"].to_csv(
                folder / "tables" / "antibodies.csv", index=False
            )
        warnings, notes = warnings_and_notes(findings if together else _of_mapped(findings))
        notes += [] if together else _imputed_notes(mdata, lacking)
        if proteins is not None:
            warnings += unreliable_warnings(proteins.adata.var)
            notes += level_notes(proteins.levels)
        if rna is not None and "pearson" not in rna.var:
            warnings.append(NOT_TOLD)
        plan, split, n_cells = model.plan, model.split, int(in_query(mdata).sum())
        assert plan is not None
        assert split is not None
        request["arguments"]["max_epochs"] = plan.max_epochs  # None: of the checkpoint, or default
        record = {
            **circumstances(),
            **request,
            "cells": n_cells,
            "reference_cells": mdata.n_obs - n_cells,
            "genes": mdata["rna"].n_vars,
            "proteins": int(lacking.sum()),
            "cells_without_rna": 0 if rna is None else rna.n_obs,
            "epochs_asked": options.max_epochs,
            "default_max_epochs": default_max_epochs(len(split.train)),
            "epochs": len(model.history),
            **model.fit_summary,
            "seconds": steps.seconds,
            "warnings": warnings,
            "notes": [*notes, *_left_out(joined)],
        }
        write_record(record, folder / RECORD)
        files = files_in(folder)
    return RunResult(output, files, record)


def _of_mapped(findings: list[Finding]) -> list[Finding]:
    """Return findings without those of proteins to be imputed, as none is in the reference."""
    return [finding for finding in findings if finding.code != UNMEASURED]


def _imputed_notes(mdata: MuData, lacking: np.ndarray) -> list[str]:
    """Say which proteins are imputed in a mapped query, and which are left out."""
    names = mdata["prot"].var_names
    left_out = np.isnan(mdata["prot"].X[~in_query(mdata)]).all(axis=0)
    said = []
    for which, words in (
        (lacking, "imputed in the query"),
        (left_out, "left out, as the reference did not measure them"),
    ):
        if which.any():
            said.append(f"{words}: {which.sum()} of {len(names)} proteins, {listed(names[which])}.")
    return said


def _left_out(joined: MuData) -> list[str]:
    return [
        f"the {name} has {others} beside its RNA, which is left out."
        for name, others in joined.uns["concat"]["data_sets"]["others_left_out"].items()
        if others
    ]


def _lacking(mdata: MuData) -> np.ndarray:
    """Return which proteins are imputed, bool: those that no cell with RNA of the query has, or none
    of those without RNA; refuse data in which nothing is lacking or can be learned.
    """
    of_query, measured = in_query(mdata), ~np.isnan(mdata["prot"].X)
    if not measured[~of_query].any():
        raise DataError("the reference has no proteins; give it first, and then the query.")
    without = without_rna(mdata)
    kinds = [kind for kind in (of_query & ~without, without) if kind.any()]
    lacking: np.ndarray = np.any([~measured[kind].any(axis=0) for kind in kinds], axis=0)
    if not lacking.any() and not without.any():
        raise DataError(
            "the query has all proteins of the reference, so there is nothing to impute; give a query "
            "without some of them, or fit both with `totalvi run`; zeros count as measured, unless "
            f"they are declared otherwise, with {setting('unmeasured', 'zeros')}."
        )
    with_both = measured[~of_query & has_rna(mdata.obs)].any(axis=0)
    if without.any() and not (with_both & measured[without].any(axis=0)).any():
        raise DataError(
            "the query has cells without RNA, but no protein that cells of the reference have beside "
            "RNA, from which RNA could be learned; give a reference with cells that have both, or name "
            "antibodies alike."
        )
    return lacking
