"""The parts of a run as separate commands: train, denoise, differential expression."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.atomic import locked, parents_of
from totalvi.data.columns import Columns
from totalvi.data.io.h5_zarr import can_stay_on_disk
from totalvi.data.io.modalities import mudata_of
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.io.write_zarr import shared_store
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import (
    DataError,
    Finding,
    OutputError,
    TotalviError,
    argument,
    setting,
    warnings_and_notes,
)
from totalvi.fit.checkpoint import CHECKPOINT_EVERY
from totalvi.formats.model_folder import is_model
from totalvi.model import Model
from totalvi.posterior.arguments import WhereUnmeasured
from totalvi.processes import first_alone, launch, this_process
from totalvi.progress import Steps
from totalvi.run.compare_samples import Design, write_conditions
from totalvi.run.folder import (
    MODEL,
    RECORD,
    checkpoint_of,
    counts_beside,
    refuse_input_in_output,
    staged_file,
)
from totalvi.run.inputs import AS_IS, Reading, counts_in_x, keys_in_store, open_input, read_input
from totalvi.run.new_model import new_model
from totalvi.run.prepare import prepare, prepare_on_disk


class Trained(NamedTuple):
    """A fitted model in its folder, with warnings and notes."""

    folder: Path
    model: Model
    warnings: list[str]
    notes: list[str]


def train_model(
    input: str | Path | MuData | AnnData,
    output: Path,
    keys: Columns,
    options: ReadOptions,
    *,
    unmeasured: Unmeasured | None = None,
    n_genes: int = 4000,
    staining_level: bool = False,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    on_disk: bool = False,
    devices: int | None = None,
    num_nodes: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: timedelta = CHECKPOINT_EVERY,
    progress: bool | None = None,
) -> Trained:
    """Check counts, select genes, fit a model, and save it, without the rest of a run.

    Several processes (see `totalvi.processes`) fit it together; the first selects genes and writes.

    Parameters
    ----------
    input, keys, options
        Counts, the places in them, and how to read them.
    unmeasured
        Proteins that a batch did not measure; see `totalvi.declare_unmeasured`.
    output
        The model's folder. Until it is there the fit is kept beside it, in ``<output>.checkpoint``.
    n_genes, staining_level, max_epochs, seed, on_disk, overwrite, resume, checkpoint_every, progress
        As in :func:`totalvi.run.run.run`. The cells and genes of a fit on disk are kept beside the
        model until it is there.
    batch_size, devices, num_nodes
        As in `Model.train`.

    Raises
    ------
    TotalviError
        When the input cannot be used, the output cannot be written, or the fit fails.
    """
    if output.exists() and not (overwrite and is_model(output)):
        replace = "" if overwrite else f", or replace it with {setting('overwrite', True)}"
        raise OutputError(f"{output} exists; choose another name{replace}.")
    launch(devices=devices, num_nodes=num_nodes)
    steps = Steps(progress if this_process().rank == 0 else False)
    checkpoint = checkpoint_of(output)
    with _cells_beside(output) as store:
        with steps.step("read, check and select genes"):
            if on_disk:
                counts, keys, findings = _prepared_on_disk(
                    input, keys, options, unmeasured, n_genes, store
                )
            else:
                data, keys = read_input(input, keys, options, unmeasured)
                counts, findings = prepare(data, keys, n_genes=n_genes)
        with steps.step("train", spinner=False):
            model = new_model(counts, keys, seed, staining_level)
            model.train(
                max_epochs=max_epochs,
                batch_size=batch_size,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                resume=resume,
                progress=steps.show,
                devices=devices,
                num_nodes=num_nodes,
            )
        with steps.step("save"), first_alone() as is_first:
            model.save(output, overwrite=overwrite)
            if is_first:
                checkpoint.unlink(missing_ok=True)
    return Trained(output, model, *warnings_and_notes(findings))


@contextmanager
def _cells_beside(output: Path) -> Iterator[Path]:
    """Yield the path of a temporary store beside ``output``, under a lock.

    With several processes, the first holds the lock and removes the store.
    """
    store = output.with_name(f".{output.name}.cells.zarr")
    if this_process().rank:
        yield store
        return
    with parents_of(output), locked(output.with_name(f"{output.name}.training")):
        try:
            yield store
        finally:
            shutil.rmtree(store, ignore_errors=True)


def _prepared_on_disk(
    input: str | Path | MuData | AnnData,
    keys: Columns,
    options: ReadOptions,
    unmeasured: Unmeasured | None,
    n_genes: int,
    store: Path,
) -> tuple[Path, Columns, list[Finding]]:
    """Write the cells and genes of a fit to ``store``."""
    if isinstance(input, MuData | AnnData):
        raise ValueError(
            f"{argument('on_disk')} is for the path of a file; leave it out for data in memory."
        )
    data, keys, rows = open_input(input, keys, options, unmeasured)
    findings: list[Finding] = []
    with first_alone() as is_first:
        if is_first:
            shutil.rmtree(store, ignore_errors=True)  # left by a process that was killed
            findings = prepare_on_disk(data, keys, store, n_genes=n_genes, rows=rows)
    return store, keys_in_store(keys), findings


def load_with_counts(
    model_path: Path,
    input: str | Path | None,
    reading: Reading = AS_IS,
    *,
    on_disk: bool = False,
) -> tuple[Model, Any]:
    """Return a model and the counts for its queries.

    Parameters
    ----------
    model_path
        A model folder, or the folder of `totalvi run`, whose results are then the counts
        unless ``input`` names others.
    reading
        Where the counts of ``input`` are, how it is read, and what it did not measure.
    on_disk
        Whether counts stay on disk if their format allows it; the path is then returned.

    Raises
    ------
    DataError
        When there are no counts.
    """
    folder, counts = _model_and_counts(model_path, input)
    if counts is None:
        fix = f"name the file with the counts as {argument('input')}"
        raise DataError(f"{model_path} holds no counts; {fix}.")
    data: Any = counts
    if input is not None and reading != AS_IS:
        of_model = Model.load(folder).schema.columns
        data = counts_in_x(*read_input(counts, *reading, of_model.group_key))
    elif not (on_disk and can_stay_on_disk(counts)):
        data = read(counts)
    if not reading[0].allow_fractional:
        return Model.load(folder, data), data
    model = Model.load(folder)
    columns = replace(model.schema.columns, allow_fractional=True)
    model.schema = replace(model.schema, columns=columns)
    model._data = model._describe(data)
    return model, data


def _model_and_counts(model_path: Path, input: str | Path | None) -> tuple[Path, str | Path | None]:
    """Return the model's folder, and the given counts or those beside it."""
    of_run = model_path / MODEL
    if is_model(model_path) or not of_run.is_dir():
        return model_path, input
    return of_run, counts_beside(of_run) if input is None else input


def _refuse_to_replace(output: Path, model_path: Path, input: str | Path | None) -> None:
    """Refuse an output that is, or holds, the model or the counts."""
    for given in _model_and_counts(model_path, input):
        if given is not None:
            refuse_input_in_output(Path(given), output)


@contextmanager
def values_of_the_user() -> Iterator[None]:
    """Turn the error of a query about a wrong name into one about the input."""
    try:
        yield
    except TotalviError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from error


def denoise(
    model_path: Path,
    input: str | Path | None,
    output: Path,
    *,
    reading: Reading = AS_IS,
    transform_batch: Sequence[str] | None = None,
    unmeasured: WhereUnmeasured = "nan",
    n_samples: int = 25,
    seed: int = 0,
    devices: int | None = None,
    num_nodes: int = 1,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path:
    """Write denoised counts: RNA scaled to 10,000 per cell, proteins without background.

    ``output`` ends in .h5mu (with the foreground probability as a layer) or in .zarr. A zarr store is
    written some cells at a time, by all processes (see `totalvi.processes`), from counts that stay on
    disk if possible.

    Raises
    ------
    TotalviError
        When the model or the counts cannot be used, or the output cannot be written.
    """
    asked: dict[str, Any] = {
        "transform_batch": transform_batch,
        "unmeasured": unmeasured,
        "n_samples": n_samples,
        "seed": seed,
        "progress": progress,
    }
    _refuse_to_replace(output, model_path, input)
    launch("cpu", devices, num_nodes)  # queries run there
    if output.suffix == ".zarr":
        with shared_store(output, overwrite=overwrite) as staged, values_of_the_user():
            model = load_with_counts(model_path, input, reading, on_disk=True)[0]
            model.get_normalized_expression(**asked, library_size=1e4, out=staged)
        return output
    if this_process().n_processes > 1:
        raise OutputError(f"{output} is written by one process; give a name that ends in .zarr.")
    with staged_file(output, suffix=".h5mu", overwrite=overwrite) as staged, values_of_the_user():
        model, data = load_with_counts(model_path, input, reading)
        schema, cells = model.schema, pd.DataFrame(index=model._training_data().cell_names)
        names = schema.gene_names, schema.protein_names, schema.protein_names
        rna, protein, foreground = (np.empty((len(cells), len(of)), np.float32) for of in names)
        model._write_denoised(rna, protein, foreground, **asked, library_size=1e4, warn=True)
        modalities = {
            name: AnnData(values, cells.copy(), pd.DataFrame(index=list(features)))
            for name, values, features in zip(("rna", "prot"), (rna, protein), names, strict=False)
        }
        modalities["prot"].layers["foreground_probability"] = foreground
        mudata_of(modalities, data.obs).write(staged)  # compression would take longer than all else
    return output


def compare(
    model_path: Path,
    input: str | Path | None,
    output: Path,
    *,
    reading: Reading = AS_IS,
    groupby: str,
    group: str | None = None,
    against: str | None = None,
    delta: float = 0.25,
    fdr_target: float = 0.05,
    batch_correction: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Write the table of `Model.differential_expression` as .csv.

    Raises
    ------
    TotalviError
        When the model or the counts cannot be used, or the output cannot be written.
    """
    _refuse_to_replace(output, model_path, input)
    with staged_file(output, suffix=".csv", overwrite=overwrite) as staged, values_of_the_user():
        model, _ = load_with_counts(model_path, input, reading)
        table: pd.DataFrame = model.differential_expression(
            groupby=groupby,
            group1=group,
            group2=against,
            delta=delta,
            fdr_target=fdr_target,
            batch_correction=batch_correction,
            seed=seed,
        )
        table.to_csv(staged, index_label="name")
    return table


def compare_conditions(folder: Path, design: Design) -> tuple[pd.DataFrame, list[str]]:
    """Write the tables of conditions compared over samples into a folder of results.

    Returns
    -------
    The table of effects, and warnings.

    Raises
    ------
    TotalviError
        When the folder is not one of a run, or its samples cannot be compared.
    """
    if not (folder / RECORD).is_file():
        raise OutputError(f"{folder} is no folder of `totalvi run`; give one.")
    with values_of_the_user():
        model, _ = load_with_counts(folder, None)
        warnings = write_conditions(model, None, design, folder)
    return pd.read_csv(folder / "tables" / "conditions.csv.gz", index_col=0), warnings
