"""`run`: from a count file to a folder of results."""

import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anndata import AnnData
from mudata import MuData

from totalvi.data.columns import Columns, column_of
from totalvi.data.io.modalities import Rows
from totalvi.data.io.read import ReadOptions
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import (
    DataError,
    Finding,
    ReadError,
    allowed,
    argument,
    setting,
    warnings_and_notes,
)
from totalvi.posterior.doublets import check_rate
from totalvi.posterior.gates.hierarchy import read_hierarchy
from totalvi.progress import Steps
from totalvi.run.count_splitting import prepare_halves
from totalvi.run.folder import (
    RECORD,
    RESULTS_OF_LABELS,
    STORE,
    RunResult,
    WriteOptions,
    files_in,
    finished,
    holds_this_run,
    refuse_input_in_output,
    require_writable,
    results_folder,
)
from totalvi.run.inputs import NOTHING_APART, key_in_store, keys_in_store, open_input, read_input
from totalvi.run.prepare import prepare, prepare_on_disk
from totalvi.run.record import (
    RunOptions,
    asked,
    circumstances,
    completed,
    differences,
    incomplete_error,
    incomplete_record,
    named,
    paths_of,
    read_record,
    write_record,
)

if TYPE_CHECKING:
    from totalvi.run.pipeline import Outcome

_UNFINISHED = shutil.ignore_patterns(".*")  # files that a process which was killed left


def run(
    input: str | Path | MuData | AnnData,
    output: str | Path,
    *,
    raw: str | Path | Mapping[str, str | Path] | None = None,
    protein_path: str | Path | None = None,
    genome: str | None = None,
    hashtags: str | Sequence[str] | None = None,
    controls: str | Sequence[str] | None = None,
    cells_in: Literal["rows", "columns"] | None = None,
    leave_out: str | Sequence[str] | None = None,
    mosaic: bool | None = None,
    unmeasured: Unmeasured | None = None,
    batch_key: str | None = None,
    panel_key: str | None = None,
    labels_key: str | None = None,
    unlabeled_category: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] = (),
    continuous_covariate_keys: Sequence[str] = (),
    rna_modality: str = "rna",
    protein_modality: str = "prot",
    rna_layer: str | None = None,
    protein_layer: str | None = None,
    protein_expression_obsm_key: str | None = None,
    allow_fractional: bool = False,
    isotype_controls: Sequence[str] | None = None,
    drop_empty_cells: bool = True,
    n_genes: int = 4000,
    staining_level: bool = False,
    max_epochs: int | None = None,
    resolution: float = 1.0,
    seed: int = 0,
    split_counts: bool = False,
    on_disk: bool = False,
    sample_key: str | None = None,
    condition_key: str | None = None,
    hierarchy: str = "auto",
    doublet_rate: float | None = None,
    modality_information: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: timedelta = timedelta(minutes=10),
    progress: bool | None = None,
) -> RunResult:
    """Check, select genes, fit, embed, cluster, denoise, and write tables and figures.

    ``output`` then holds ``results.h5mu`` (``results.zarr`` with ``on_disk``), ``model.totalvi``,
    ``tables``, ``figures`` and ``run.json``. It appears complete at the end. Until then the fit is kept
    beside it in ``<output>.checkpoint``. A run that ends before the first checkpoint leaves nothing
    behind.

    Parameters
    ----------
    input
        A path for :func:`totalvi.read`, or data in memory, which are not changed.
    output
        A folder that does not exist or is empty, or a link to one.
    raw
        The raw matrix of all barcodes, or one for each batch, whose empty droplets anchor the
        background; see :func:`totalvi.ambient_profile`.
    protein_path, genome, hashtags, controls, cells_in, leave_out, mosaic
        How to read a path; see :func:`totalvi.read`.
    unmeasured
        Proteins that a batch did not measure; see :func:`totalvi.declare_unmeasured`.
    batch_key, panel_key, labels_key, size_factor_key
        Columns of ``obs``; see :class:`totalvi.Model`.
    unlabeled_category
        The label of cells whose label is not known; the others' labels then predict theirs, as
        `Model.predict` does.
    categorical_covariate_keys, continuous_covariate_keys
        Columns of ``obs``; see :class:`totalvi.Model`.
    rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
        Places of the counts; see :class:`totalvi.Model`.
    allow_fractional
        Whether counts may have fractions.
    isotype_controls
        As in :class:`totalvi.Model`; they become the modality ``isotype``.
    drop_empty_cells
        Leave out cells without any RNA count, with a warning; otherwise they are an error.
    n_genes
        Number of highly variable genes to select if there are more genes.
    staining_level
        Whether each cell has a latent level of all its protein counts, as in :class:`totalvi.Model`.
        It becomes the column ``staining_level`` of ``obs`` and of ``tables/cells.csv.gz``.
    max_epochs
        Largest number of epochs; None: by the number of cells.
    resolution
        Resolution of the clusters; a higher value gives more.
    seed
        The same seed gives the same results on the same machine.
    split_counts
        Whether to fit the model and find the clusters in one half of the counts, and to test markers
        and differential expression on the other half, so that clusters which cut one population of
        cells have hardly any false markers; see :func:`totalvi.split_counts`. All results but these
        tests are of the first half; the other is in the layers ``held_out``. For counts in memory. To
        map or impute other cells, take a run on all counts.
    on_disk
        Whether counts stay on disk and are read some cells at a time; ``input`` is then a path.
        `totalvi.run.pipeline.fit_and_write` describes the differences.
    sample_key
        Column of ``obs`` by which cells are counted. None: batches, and samples that hashtags tell.
    condition_key
        Column of ``obs`` with conditions, which are compared over samples within the clusters; see
        `totalvi.run.compare_samples.condition_tables`.
    hierarchy
        Populations that cells are named by, as in `Model.gate`; "auto": those of the hierarchy that
        comes with the package and suits the panel and the cells, if any does; "none": no names.
    doublet_rate
        Share of doublets among the cells; None: as the data tell. See `Model.find_doublets`.
    modality_information
        Whether to say what RNA and proteins each tell; see `totalvi.run.modality_nats.tell_modalities`.
    overwrite
        Replace the folder of an earlier run, which holds nothing else, at the end. Discard the
        checkpoint of an interrupted run, unless ``resume``.
    resume
        Resume an interrupted run with the same arguments from its checkpoint, to the same results.
        Complete a run with failed steps. Start if there is neither. Do nothing if all results exist.
    checkpoint_every
        Time between checkpoints.
    progress
        Whether to show the steps on standard error; by default on a terminal, and elsewhere
        those that take long.

    Raises
    ------
    TotalviError
        When the input cannot be used, the output cannot be written, or the fit fails.
    IncompleteError
        When a step after the fit failed; everything that does not depend on it is in ``output``.
    KeyboardInterrupt
        When SIGINT or SIGTERM ended the fit; its checkpoint is written.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(allowed("seed", seed, "whole numbers from 0 to 4294967295"))
    if condition_key is not None and sample_key is None:
        raise ValueError(
            f"{argument('condition_key')} is compared over samples; give {argument('sample_key')} too."
        )
    if unlabeled_category is not None and labels_key is None:
        raise DataError(
            f"{setting('unlabeled_category', unlabeled_category)} is of a column of labels; give "
            f"{argument('labels_key')} as well."
        )
    if unlabeled_category is not None and labels_key in RESULTS_OF_LABELS:
        raise DataError(
            f"{argument('labels_key')} is {labels_key!r}, where the predicted labels would go; rename "
            "the column."
        )
    check_rate("doublet_rate", doublet_rate)
    if hierarchy not in ("auto", "none"):
        read_hierarchy(hierarchy)  # refused now, if it cannot be read, not after the fit
    if split_counts and on_disk:
        raise ValueError(
            f"{argument('split_counts')} is for counts in memory; leave it or {argument('on_disk')} "
            "out."
        )
    return _run(
        RunOptions(
            input=input,
            raw=raw,
            unmeasured=unmeasured,
            reading=ReadOptions(
                protein_path, genome, hashtags, controls, cells_in, leave_out, mosaic
            ),
            keys=Columns(
                batch_key=batch_key,
                panel_key=panel_key,
                labels_key=labels_key,
                unlabeled_category=unlabeled_category,
                size_factor_key=size_factor_key,
                categorical_covariate_keys=tuple(categorical_covariate_keys),
                continuous_covariate_keys=tuple(continuous_covariate_keys),
                rna_modality=rna_modality,
                protein_modality=protein_modality,
                rna_layer=rna_layer,
                protein_layer=protein_layer,
                protein_expression_obsm_key=protein_expression_obsm_key,
                allow_fractional=allow_fractional,
                isotype_controls=None if isotype_controls is None else tuple(isotype_controls),
            ),
            drop_empty_cells=drop_empty_cells,
            n_genes=n_genes,
            staining_level=staining_level,
            max_epochs=max_epochs,
            resolution=resolution,
            seed=seed,
            split_counts=split_counts,
            on_disk=on_disk,
            sample_key=sample_key,
            condition_key=condition_key,
            hierarchy=str(hierarchy),
            doublet_rate=doublet_rate,
            modality_information=modality_information,
            writing=WriteOptions(Path(output), overwrite, resume, checkpoint_every, progress),
        )
    )


def _run(options: RunOptions) -> RunResult:
    writing, inputs = options.writing, options.inputs()
    output = writing.output
    for path in inputs.values():
        refuse_input_in_output(path, output)
    earlier = None
    if writing.resume and holds_this_run(writing, differences(output / RECORD, options)):
        earlier = incomplete_record(output / RECORD)
        if earlier is None and "input" in inputs:
            return finished(output)
    request = asked(options)  # of the inputs as they are read, not as they are later
    request["epochs_asked"] = options.max_epochs
    steps = Steps(writing.progress)
    if earlier is not None:
        writing = replace(writing, overwrite=True)
    require_writable(output, overwrite=writing.overwrite)
    choice: dict[str, Any] = {
        "n_genes": options.n_genes,
        "drop_empty_cells": options.drop_empty_cells,
        "raw": options.raw,
    }
    findings: list[Finding] = []
    with steps.step("read"):
        data, keys, rows = _read(options)
        options = replace(options, keys=keys)
        for name in ("sample_key", "condition_key"):
            if (key := getattr(options, name)) is not None:
                column_of(data.obs, name, key)
    if not options.on_disk:
        with steps.step("check and select genes"):
            if options.split_counts:
                data, findings = prepare_halves(data, keys, options.seed, **choice)
            else:
                data, findings = prepare(data, keys, **choice)
    # What fits a model is loaded only now: bad input is refused before seconds go to loading torch.
    with results_folder(writing) as folder:
        if earlier is not None:
            shutil.copytree(output, folder, ignore=_UNFINISHED, dirs_exist_ok=True)
        if options.on_disk:
            if earlier is None:
                with steps.step("check and select genes"):
                    findings = prepare_on_disk(data, keys, folder / STORE, rows=rows, **choice)
            data = folder / STORE
            options = replace(
                options,
                keys=keys_in_store(keys),
                sample_key=key_in_store(options.sample_key),
                condition_key=key_in_store(options.condition_key),
            )
        from totalvi.run.pipeline import fit_and_write

        outcome = fit_and_write(data, options, folder, steps, earlier)
        record = _record_of(outcome, request, findings, steps, earlier)
        write_record(record, folder / RECORD)
        files = files_in(folder)
    if outcome.failed:
        raise incomplete_error(output, outcome.failed, repeatable="input" in inputs)
    return RunResult(output, files, record)


def _read(options: RunOptions) -> tuple[MuData | AnnData, Columns, Rows]:
    """Return what `open_input` does, with counts that stay on disk if asked for."""
    if not options.on_disk:
        found = read_input(options.input, options.keys, options.reading, options.unmeasured)
        return *found, NOTHING_APART
    if isinstance(options.input, MuData | AnnData):
        raise ValueError(
            f"{argument('on_disk')} is for the path of a file; leave it out for data in memory."
        )
    return open_input(options.input, options.keys, options.reading, options.unmeasured)


def _record_of(
    outcome: "Outcome",
    request: dict[str, Any],
    findings: list[Finding],
    steps: Steps,
    earlier: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the record of a run, or of what completes an earlier one."""
    # The epochs as planned: those of the checkpoint that the fit was resumed from, or by default.
    request["arguments"]["max_epochs"] = outcome.summary.pop("max_epochs")
    warnings, notes = warnings_and_notes(findings)
    record = {
        **circumstances(),
        **request,
        **outcome.summary,
        "seconds": steps.seconds,
        "warnings": [*warnings, *outcome.warnings],
        "notes": notes,
    }
    if earlier is not None:
        record = completed(earlier, record)
    if outcome.failed:
        record["failed"] = {name: named(error) for name, error in outcome.failed.items()}
    return record


def repeat(
    record: str | Path,
    output: str | Path,
    *,
    input: str | Path | None = None,
    raw: str | Path | Mapping[str, str | Path] | None = None,
    protein_path: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: timedelta = timedelta(minutes=10),
    progress: bool | None = None,
) -> RunResult:
    """Repeat the run of a ``run.json``: on the same machine, with the same numbers.

    Parameters
    ----------
    record
        The ``run.json``.
    output, overwrite, resume, checkpoint_every, progress
        As in :func:`run`.
    input, raw, protein_path
        New path of the input, if it was moved.

    Raises
    ------
    TotalviError
        When the record cannot be read, or the input is gone or has changed; as in :func:`run`.
    """
    moved = paths_of({"input": input, "protein_path": protein_path, "raw": raw})
    arguments, notes = read_record(Path(record), moved)
    unknown = sorted(set(arguments) - set(inspect.signature(run).parameters))
    if unknown:
        raise ReadError(
            f"{record} asks for {unknown[0]}, which this totalvi does not know; update it."
        )
    writing = WriteOptions(Path(output), overwrite, resume, checkpoint_every, progress)
    result = run(**arguments, **vars(writing))
    return result._replace(record=result.record | {"notes": [*result.record["notes"], *notes]})
