"""Map the cells of a file on a fitted model, and write a folder of results."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData
from totalvi.data.columns import Columns
from totalvi.data.describe import Data
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.minified_cells import is_minified
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import DataError, argument, did_you_mean, listed, setting
from totalvi.fit.model_state import are_cells_of_fit
from totalvi.formats.model_folder import is_model, require_model
from totalvi.mapping.map_query import AVERAGE
from totalvi.model import Model
from totalvi.progress import Steps
from totalvi.run.folder import (
    CLUSTER_COLUMN,
    MODEL,
    RECORD,
    STORE,
    WriteOptions,
    counts_beside,
    finished,
    holds_this_run,
    refuse_input_in_output,
    results_folder,
)
from totalvi.run.imputed import level_notes, unreliable_warnings
from totalvi.run.inputs import AS_IS, Reading, read_input
from totalvi.run.record import Options, asked, circumstances, differences, write_record

POSTERIOR_SAMPLES = 25
_MANY_UNLIKE = 0.2  # share of cells, where 0.05 is expected
_BY_MODEL_ALONE = (
    "proteins are imputed by the model alone, without calibrated intervals and reliability, as the "
    "cells of the reference are not those of its fit, or none was held out."
)


@dataclass(frozen=True)
class MapOptions(Options):
    """What `map_files` was asked, whose arguments these are, with the model and reference it found."""

    INPUTS = ("model_path", "query_path", "reference", "protein_path")

    model_path: Path
    query_path: str | Path
    reference: Path | None
    labels: str | None
    reading: ReadOptions
    keys: Columns
    unmeasured: Unmeasured | None
    reference_batch: str | None
    train: bool
    writing: WriteOptions


def map_files(
    model_path: Path,
    query_path: str | Path,
    output: Path,
    *,
    reading: Reading = AS_IS,
    reference: Path | None = None,
    labels: str | None = None,
    reference_batch: str | None = None,
    train: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: timedelta = timedelta(minutes=10),
) -> dict[str, Any]:
    """Map the cells of a file on a model, and write the results into a new folder.

    Parameters
    ----------
    model_path
        Minified reference; model folder; or the folder of `totalvi run` that holds one.
    query_path
        Counts of the query.
    output
        A folder that does not exist or is empty. It appears complete at the end.
    reading
        Where the counts and batches of the query are, how it is read, and what its batches did not
        measure.
    reference
        Counts that the model was fitted to. None: ``results.h5mu`` or ``results.zarr`` (which stays on
        disk) beside the model, if it exists. Without a reference that is not minified, there are
        neither labels nor unlikeness.
    labels
        Column of the reference's ``obs``. None: ``leiden_totalvi``, if it exists.
    reference_batch, train
        As in `Model.map_query`.
    overwrite, resume, checkpoint_every
        As in `totalvi.run.run.run`; what is kept is the fit of ``train``.

    Returns
    -------
    The content of ``run.json``.
    """
    for given in (model_path, Path(query_path), *([] if reference is None else [reference])):
        refuse_input_in_output(given, output)
    is_run = not is_model(model_path) and (model_path / MODEL).is_dir()
    folder = model_path / MODEL if is_run else model_path
    if not is_minified(folder):
        require_model(folder)
    if reference is None and not is_minified(folder):
        reference = counts_beside(folder)
    return _run(
        MapOptions(
            model_path=folder,
            query_path=query_path,
            reference=reference,
            labels=labels,
            keys=reading[0],
            reading=reading[1],
            unmeasured=reading[2],
            reference_batch=reference_batch,
            train=train,
            writing=WriteOptions(output, overwrite, resume, checkpoint_every),
        )
    )


def _run(options: MapOptions) -> dict[str, Any]:
    writing, folder = options.writing, options.model_path
    differing = differences(writing.output / RECORD, options) if writing.resume else None
    if holds_this_run(writing, differing):
        return finished(writing.output).record
    request = asked(options)
    with results_folder(writing) as place:
        alone = options.reference is None and not is_minified(folder)
        if options.labels is not None and alone:
            raise DataError(
                f"{argument('labels')} are those of the reference's cells, whose counts are not beside "
                f"{folder}; give them with {setting('reference', 'PATH')}."
            )
        found = _map(options)
        record = {**circumstances(), **request, **found.record}
        (place / "tables").mkdir()
        for name, table in found.tables.items():
            table.to_csv(place / "tables" / f"{name}.csv.gz", float_format="%.6g")
        if found.levels is not None:
            found.levels.to_csv(place / "tables" / "levels.csv", float_format="%.4g")
        if found.reliability is not None:
            found.reliability.to_csv(place / "tables" / "reliability.csv", float_format="%.4g")
        found.query.save(place / MODEL)
        write_record(record, place / RECORD)
    return record


class _Mapped(NamedTuple):
    query: Model
    tables: dict[str, pd.DataFrame]
    levels: pd.DataFrame | None
    reliability: pd.DataFrame | None
    record: dict[str, Any]


def _models(options: MapOptions, steps: Steps) -> tuple[Model, Model]:
    """Return the reference's model and the query's."""
    reference = options.reference
    with steps.step("read"):
        cells_of_model: Data | None = reference
        if reference is not None and reference.name != STORE:
            cells_of_model = read(reference)
        model = Model.load(options.model_path, cells_of_model)
        _require_known(model, options.labels, options.reference_batch)
        query_data, keys = read_input(
            options.query_path, options.keys, options.reading, options.unmeasured,
            model.schema.columns.group_key,
        )  # fmt: skip
    fit: dict[str, Any] = {}
    if options.train:
        fit = {
            "train": True,
            "checkpoint": options.writing.checkpoint,
            "checkpoint_every": options.writing.checkpoint_every,
            "resume": True,
            "devices": 1,
        }
    with steps.step("map", spinner=not fit):
        query = model.map_query(
            query_data,
            batch_key=keys.batch_key,
            reference_batch=options.reference_batch,
            rna_modality=None if keys.rna_modality == "rna" else keys.rna_modality,
            protein_modality=None if keys.protein_modality == "prot" else keys.protein_modality,
            rna_layer=keys.rna_layer,
            protein_layer=keys.protein_layer,
            allow_fractional=keys.allow_fractional or None,
            **fit,
        )
    return model, query


def _map(options: MapOptions) -> _Mapped:
    """Map, compare and impute."""
    labels = options.labels
    steps, notes = Steps(options.writing.progress), []
    model, query = _models(options, steps)
    tables: dict[str, pd.DataFrame] = {}
    query_cells = _described(query).cell_names
    cells = pd.DataFrame(index=query_cells.rename("cell"))
    has_cells = model._data is not None
    calibrates = has_cells and _holds_cells_out(model)
    if not has_cells:
        notes.append(
            "no labels, no unlikeness and no reliability of imputed proteins, as the counts of the "
            "reference were not given."
        )
    else:
        with steps.step("compare with the reference"):
            unlike = model.get_unlikeness(query)
            places = model.get_map_coordinates(query)
            for about in (unlike, places) if places is not None else (unlike,):
                cells = cells.join(about.rename(columns=lambda name: f"reference_{name}"))
            labels = labels or _default_labels(model)
            if labels is not None:
                transfer = model.transfer_labels(query, labels)
                cells.insert(0, "label", transfer.labels)
                cells.insert(1, "label_probability", transfer.probabilities.max(axis=1))
                tables["label_probabilities"] = transfer.probabilities.rename_axis("cell")
            elif options.reference is None:
                notes.append(
                    f"no labels; choose those of the reference with {argument('labels')}: "
                    f"{listed(map(str, _described(model).annotation.obs()))}."
                )
    latent = query.get_latent_representation(progress=False)
    width = len(str(latent.shape[1]))
    names = [f"latent_{i + 1:0{width}}" for i in range(latent.shape[1])]
    tables["cells"] = cells.join(pd.DataFrame(latent, index=cells.index, columns=names))
    missing, levels = _unmeasured(query), None
    if missing:
        with steps.step("impute"):
            asked: Any = {
                "protein_list": missing, "n_samples": POSTERIOR_SAMPLES, "progress": False
            }  # fmt: skip
            if calibrates:
                imputed = model.impute_query(query, **asked)
            else:
                imputed = query.impute_proteins(calibrated=False, **asked)
                notes += [_BY_MODEL_ALONE] if has_cells else []
            for name, part in (
                ("imputed_proteins", imputed.mean),
                ("imputed_lower", imputed.lower),
                ("imputed_upper", imputed.upper),
                ("imputed_foreground_probability", imputed.foreground_probability),
            ):
                tables[name] = part.rename_axis("cell")
            levels = imputed.levels
            notes += level_notes(levels)
    reliability = None
    if missing and calibrates:
        with steps.step("reliability"):
            reliability = model.get_query_reliability(
                query, protein_list=missing, n_samples=POSTERIOR_SAMPLES, progress=False
            )
            notes += unreliable_warnings(reliability.groupby("protein", sort=False).min())
    n_batches = len(model.schema.batch_names)
    summary = f"{len(cells):,} cells on {n_batches} reference batch{'es' * (n_batches > 1)}"
    if "label" in cells:
        summary += f", {cells['label'].nunique()} labels"
    if has_cells:
        said, is_much = _unlike_words(
            cells["reference_p_value"], cells["reference_p_value_after_shift"]
        )
        summary += f", {said}"
        notes += is_much
    notes = [f.message for f in query.findings if f.severity == "note"] + notes
    record = {
        "summary": summary,
        "notes": notes,
        "imputed_proteins": missing,
        "seconds": steps.seconds,
    }
    return _Mapped(query, tables, levels, reliability, record)


def _unlike_words(p_value: pd.Series, after_shift: pd.Series) -> tuple[str, list[str]]:
    """Say how many cells are unlike the reference, and note what it means if they are many."""
    before, after = (float(np.mean(values < 0.05)) for values in (p_value, after_shift))
    said = (
        f"{100 * before:.1f} % of the cells unlike the reference (5 % are expected), "
        f"{100 * after:.1f} % after the shift that all cells share is taken out"
    )
    notes = []
    if before > _MANY_UNLIKE >= after:
        notes.append(
            "many cells are unlike the reference by a shift that they all share: a batch effect, which "
            "a reference of several batches corrects best."
        )
    elif after > _MANY_UNLIKE:
        notes.append(
            "many cells are unlike the reference beyond a shift that all cells share: states that it "
            "lacks, or a batch effect that differs between states."
        )
    return said, notes


def _require_known(model: Model, labels: str | None, reference_batch: str | None) -> None:
    """Refuse names that the reference does not have, before anything is computed."""
    if labels is not None:
        columns = list(map(str, _described(model).annotation.obs()))
        if labels not in columns:
            raise DataError(
                f"{setting('labels', labels)} is no column of the reference's obs; "
                f"{did_you_mean(labels, columns)}."
            )
    known = (*model.schema.batch_names, AVERAGE)
    if reference_batch is not None and reference_batch not in known:
        raise DataError(
            f"{setting('reference_batch', reference_batch)} is no batch of the reference; "
            f"{did_you_mean(reference_batch, known)}."
        )


def _holds_cells_out(model: Model) -> bool:
    """Return whether it is known which of the reference's cells the fit held out."""
    assert model.split is not None
    assert model._result is not None
    some = len(model.split.validation) + len(model.split.test) > 0
    return some and are_cells_of_fit(model._result.fingerprint, _described(model))


def _default_labels(model: Model) -> str | None:
    return CLUSTER_COLUMN if CLUSTER_COLUMN in _described(model).annotation.obs() else None


def _described(model: Model) -> CiteData:
    return model._training_data()


def _unmeasured(query: Model) -> list[str]:
    """Return the proteins that some panel of the query lacks."""
    panels = np.unique(_described(query).panel)
    measured = np.array(query.schema.panel_measured)[panels].all(axis=0)
    return [
        name
        for name, is_there in zip(query.schema.protein_names, measured, strict=True)
        if not is_there
    ]
