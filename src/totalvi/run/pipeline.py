"""Fit a model to checked counts, save it, and run the steps after the fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mudata import MuData

from totalvi.data.cells import fingerprint
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.errors import DataError, OutputError
from totalvi.fit.plan import default_max_epochs
from totalvi.model import Model
from totalvi.progress import Steps
from totalvi.run.after_fit import AFTER_FIT, Work
from totalvi.run.doublet_tables import n_likely
from totalvi.run.folder import MODEL
from totalvi.run.hashtag_samples import count_calls
from totalvi.run.modality_nats import require_both, tell_modalities
from totalvi.run.new_model import fit_model, new_model
from totalvi.run.predicted_labels import predict_labels
from totalvi.run.record import RunOptions, Step, do_each
from totalvi.run.results import ResultsFile, posterior_samples

IN_THE_FILE = (
    "latent space",
    "denoised counts",
    "clusters and UMAP",
    "hashtags",
    "doublets",
    "populations",
    "labels",
    "modality information",
)
"""Steps whose result is what they add to the results file."""
_TAKEN_BY = {
    "hashtags": ("doublets", "populations", "tables"),
    "doublets": ("populations", "tables"),
    "populations": ("differential expression", "modality information"),
    "tables": ("modality information",),
}
"""Steps that take in what another adds to the results file or the tables, where it is there."""


class Outcome(NamedTuple):
    """The results of a run.

    Attributes
    ----------
    summary
        Sizes of the data, and the course of the fit, for the record.
    warnings
        About antibodies.
    failed
        Errors of the steps that failed, by name.
    """

    summary: dict[str, Any]
    warnings: list[str]
    failed: dict[str, Exception]


def fit_and_write(
    data: MuData | Path,
    options: RunOptions,
    folder: Path,
    steps: Steps,
    earlier: Mapping[str, Any] | None = None,
) -> Outcome:
    """Fit a model, and write it and all results into ``folder``.

    For data on disk, the store gets no denoised RNA, which has as many values as cells times genes;
    `Model.get_normalized_expression` writes it with ``out=``. Above `clusters.MAP_CELLS` cells, figures
    and all tables except those of cells, epochs and batches cover this number of cells, spread evenly
    over each batch.

    Parameters
    ----------
    data
        From :func:`totalvi.run.prepare.prepare`, or the store in ``folder`` that
        :func:`totalvi.run.prepare.prepare_on_disk` wrote.
    options
        What the run was asked. Counts are in ``X`` of the modalities ``rna`` and ``prot``; where there
        is a checkpoint, the fit goes on from it.
    folder
        Empty except for the store, or the folder of an incomplete run.
    steps
        Times the steps and shows them.
    earlier
        Record of an incomplete run: its model is loaded, and only the failed steps are done.
    """
    if earlier is None:
        with steps.step("train", spinner=False):
            model = new_model(data, options.keys, options.seed, options.staining_level)
            if options.modality_information:
                require_both(model)
            fit_model(model, options.max_epochs, options.writing, steps.show)
        with steps.step("save"):
            model.save(folder / MODEL)
    else:
        model = _model_of(folder, data, earlier)
    cells = open_on_disk(data) if isinstance(data, Path) else data
    assert isinstance(cells, MuData)
    if not options.on_disk:  # the model has a copy of the counts: one of the two is enough
        cells["rna"].X = model._training_data().rna.read()
    work = Work(model, cells, options, folder, ResultsFile(folder, on_disk=options.on_disk))
    after = after_fit(options)
    done = set() if earlier is None else {step.name for step in after} - to_do(earlier, work.file)
    failed = do_each(after, work, steps, done)
    return Outcome(_summary(work), work.warnings, failed)


def after_fit(options: RunOptions) -> tuple[Step[Work], ...]:
    """Return the steps of a run after its fit, with those that it was asked for."""
    more = []
    if options.keys.unlabeled_category is not None:
        more.append(Step("labels", predict_labels))
    if options.modality_information:
        more.append(Step("modality information", tell_modalities, ("populations", "tables")))
    return (*AFTER_FIT, *more)


def to_do(earlier: Mapping[str, Any], file: ResultsFile) -> set[str]:
    """Return the names of the steps that an incomplete run failed at, or whose results are lost."""
    wanted = [*earlier["failed"], *(() if file.is_there else IN_THE_FILE)]
    for name in wanted:  # which grows by what takes in the results of its steps
        wanted += [other for other in _TAKEN_BY.get(name, ()) if other not in wanted]
    return set(wanted)


def _model_of(folder: Path, data: MuData | Path, earlier: Mapping[str, Any]) -> Model:
    """Return the model of an incomplete run, on the cells that it was fitted to."""
    other = OutputError(
        "the cells are not those of the incomplete run that is there; give the same ones, or choose "
        "another output folder."
    )
    try:
        model = Model.load(folder / MODEL, data)
    except DataError as error:
        raise other from error
    if fingerprint(model._training_data()) != earlier["fingerprint"]:
        raise other
    return model


def _title(data: MuData) -> str | None:
    """Return the title that the data have, as files of CELLxGENE do; None: none."""
    given = (part.uns.get("title") for part in (data, *data.mod.values()))
    return next((title for title in given if isinstance(title, str) and title), None)


def _summary(work: Work) -> dict[str, Any]:
    """Return the sizes and the course of the fit, for the record of a run."""
    model = work.model
    assert model.plan is not None
    assert model.split is not None
    return {
        "title": _title(work.data),
        "cells": work.data.n_obs,
        "genes": work.data["rna"].n_vars,
        "proteins": work.data["prot"].n_vars,
        "clusters": None if work.clusters is None else len(work.clusters.labels.categories),
        "doublets": n_likely(work.doublets),
        "hashtags": count_calls(work.hashtags),
        "cells_on_map": len(work.sample),
        "posterior_samples": posterior_samples(work.data.n_obs),
        "epochs": len(model.history),
        "max_epochs": model.plan.max_epochs,
        "default_max_epochs": default_max_epochs(len(model.split.train)),
        **model.fit_summary,
        "fingerprint": model.fingerprint,
        "held_out_loss_per_cell": float(
            model.history["validation_loss"][model.fit_summary["best_epoch"]]
        ),
    }
