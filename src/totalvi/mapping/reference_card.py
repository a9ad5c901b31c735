"""What a minified reference keeps: posteriors, cells that calibrate, a card with its accuracy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from totalvi.data.cells import CiteData
from totalvi.data.counts import CountsInMemory
from totalvi.data.minified_cells import StoredPosterior
from totalvi.errors import DataError
from totalvi.fit.model_state import are_cells_of_fit
from totalvi.mapping.mapped_cells import chosen_to_calibrate, reference_posterior
from totalvi.mapping.query_imputation import reference_predictors
from totalvi.mapping.reference_neighbours import (
    Reference,
    calibrate,
    calibration_error,
    encode,
    label_probabilities,
)
from totalvi.nn.coders import CellPosterior
from totalvi.posterior.imputation import reporting_cells
from totalvi.posterior.latent import latent_clusters
from totalvi.posterior.protein_predictions import imputed_batches
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question, held_out_cells
from totalvi.posterior.rna_predictors import RnaPredictors
from totalvi.posterior.stacking import Hidden, observed_proteins, stacked_proteins
from totalvi.posterior.unmeasured import always_shown, fill_unmeasured

MEASURED = (
    "Measured when the reference was written, on its own cells as if they were new: labels of "
    "{labelled} cells from the 30 nearest of the others, proteins of {hidden} cells from RNA alone."
)
TRAINED_ON = " The fit saw the cells that were labelled, so others are labelled less well."
_N_NEIGHBORS, _SAMPLES = 30, 25
_FEWEST_LABELLED = 50
_MOST_CATEGORIES, _BYTES_FOR_LABELS = 255, 5  # bytes of a cell


class Minified(NamedTuple):
    """What is kept of a reference's cells.

    Attributes
    ----------
    posterior
        Of all cells.
    labels
        Columns of obs, by name.
    kept
        Positions of the cells whose counts are kept, ascending.
    card
        Description of the reference, and its accuracy.
    predictors
        Regression and neighbours in RNA, which `impute_query` stacks with the model, as arrays by name.
    """

    posterior: StoredPosterior
    labels: dict[str, pd.Categorical]
    kept: np.ndarray
    card: dict[str, Any]
    predictors: Mapping[str, np.ndarray]


def minify(model: Fitted) -> Minified:
    """Return what a minified reference keeps of the cells of a model.

    Raises
    ------
    DataError
        When the model has no data, or others than it was fitted to, or was mapped.
    """
    if model._mapping is not None:
        raise DataError(
            "The model is of a query that was mapped, and only references are minified; save the "
            "reference with minified=True, or this model without."
        )
    question = model._question(None, None, QUERY_BATCH_SIZE, False, n_samples=_SAMPLES)
    data = question.data
    if not are_cells_of_fit(None if model._result is None else model._result.fingerprint, data):
        raise DataError(
            "The data are not the cells that the model was fitted to, or in another order; load it "
            "with those, Model.load(path, data)."
        )
    posterior = stored_posterior(question) if data.posterior is None else data.posterior
    labels = labels_to_keep(data)
    codes = {name: values.codes for name, values in labels.items()}
    kept = _cells_to_keep(model, question, codes)
    predictors = reference_predictors(model)
    arrays = {} if predictors is None else predictors.arrays()
    card = _card(model, question, codes, kept, predictors)
    return Minified(posterior, labels, kept, card, arrays)


def labels_to_keep(data: CiteData) -> dict[str, pd.Categorical]:
    """Return the columns of obs with at most 255 different texts, whole numbers or truths.

    By their entropy they need at most 5 bytes a cell together; columns beyond that are left out.
    """
    kept, n_bytes = dict[str, pd.Categorical](), 0.0
    for name, column in data.annotation.obs().items():
        discrete = isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "OUTbiu"
        if not discrete or column.nunique() > _MOST_CATEGORIES:
            continue
        values: Any = pd.Categorical(column.astype(object).map(str, na_action="ignore"))
        share = np.unique(values.codes, return_counts=True)[1] / len(values)
        is_new = not any(values.equals(others) for others in kept.values())
        n_more = float(-(share * np.log2(share)).sum()) / 8 * is_new
        if n_bytes + n_more <= _BYTES_FOR_LABELS:
            kept[str(name)], n_bytes = values, n_bytes + n_more
    return kept


def stored_posterior(question: Question) -> StoredPosterior:
    """Return the posterior of all cells of a question."""
    parts: list[CellPosterior] = []
    with question.minibatches("posteriors") as batches:
        for batch in batches:
            found = batch.encode(question.network)
            known = question.network.masks.known_library(
                found, batch.context.panel, batch.library_log_mean, batch.library_log_variance
            )
            parts.append(known)
    return StoredPosterior(*(
        None if of_all[0] is None else torch.cat(of_all).cpu().numpy()
        for of_all in zip(*parts, strict=True)
    ))  # type: ignore[arg-type]  # fmt: skip


def _cells_to_keep(
    model: Fitted, question: Question, labels: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the cells on which answers about queries are calibrated, or proteins hidden."""
    usable = [np.ones(question.data.n_cells, dtype=bool), *(code >= 0 for code in labels.values())]
    chosen = [chosen_to_calibrate(model, some)[0] for some in usable if some.sum() >= 10]
    if _holds_out(model):
        chosen.append(held_out_cells(model, question, all_of_them=True).cells)
    kept = np.unique(np.concatenate([*chosen, np.array([], dtype=np.int64)]))
    return np.intersect1d(kept, question.data.cells_with_counts())


def _holds_out(model: Fitted) -> bool:
    """Return whether proteins of cells can be hidden that the fit did not see."""
    split, data = model.split, model._training_data()
    if split is None:
        return False
    cells = np.concatenate([split.validation, split.test])
    calibration = None if model._result is None else model._result.calibration
    if calibration is not None:
        cells = np.setdiff1d(cells, calibration.cells)
    return bool(data.has_rna[cells].any())


def _card(
    model: Fitted,
    question: Question,
    labels: Mapping[str, np.ndarray],
    kept: np.ndarray,
    predictors: RnaPredictors | None,
) -> dict[str, Any]:
    data, schema = question.data, model.schema
    held_out, _ = chosen_to_calibrate(model, np.ones(data.n_cells, dtype=bool))
    panels = schema.panel_names or schema.batch_names
    summary = {} if model._result is None else model._result.summary
    trained = np.array([], dtype=np.int64) if model.split is None else model.split.train
    hidden = held_out_cells(model, question).cells if _holds_out(model) else held_out[:0]
    measured = MEASURED.format(labelled=f"{len(held_out):,}", hidden=f"{len(hidden):,}")
    return {
        "cells": data.n_cells,
        "genes": len(schema.gene_names),
        "proteins": len(schema.protein_names),
        "cells_without_rna": int((~data.has_rna).sum()),
        "cells_with_counts": len(kept),
        "batches": _counted(schema.batch_names, data.batch),
        "panels": {
            name: {"cells": int((data.panel == code).sum()), "proteins": int(sum(of_panel))}
            for code, (name, of_panel) in enumerate(zip(panels, schema.panel_measured, strict=True))
        },
        "fit": {
            "n_latent": model.module.n_latent,
            "training_cells": len(trained),
            "epochs": 0 if model._result is None else len(model._result.history),
            **{name: summary[name] for name in ("best_epoch", "stopped") if name in summary},
        },
        "measured": measured + TRAINED_ON * bool(np.isin(held_out, trained).any()),
        "labels": _accuracy_of_labels(model, data, labels),
        "imputed_proteins": _accuracy_of_proteins(model, question, predictors),
    }


def _counted(names: tuple[str, ...], code: np.ndarray) -> dict[str, int]:
    return dict(zip(names, np.bincount(code, minlength=len(names)).tolist(), strict=True))


def with_rna_alone(model: Fitted, cells: CiteData) -> CiteData:
    """Return cells as the encoder sees those of a query that measured no protein."""
    panels = np.array(cells.schema.panel_measured)
    none = np.zeros((cells.n_cells, panels.shape[1]), dtype=np.float32)
    alone = replace(cells, protein=CountsInMemory(none))
    shown = always_shown(model.module, panels, cells.panel)
    fill_unmeasured(model.module, alone, shown & panels[cells.panel])
    return alone


def _accuracy_of_labels(
    model: Fitted, data: CiteData, labels: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return how often held-out cells get their own label, from RNA and proteins, and RNA alone."""
    found: dict[str, Any] = {}
    by_usable: dict[bytes, list[str]] = {}
    for name, code in labels.items():
        if code.max(initial=-1) > 0 and (code >= 0).sum() >= _FEWEST_LABELLED:
            by_usable.setdefault((code >= 0).tobytes(), []).append(name)
    everyone = reference_posterior(model)
    for columns in by_usable.values():
        usable = labels[columns[0]] >= 0
        held_out, _ = chosen_to_calibrate(model, usable)
        rest = np.setdiff1d(np.flatnonzero(usable), held_out)
        held_out = held_out[data.has_rna[held_out]]
        if not len(held_out) or not len(rest):
            continue
        reference = Reference(everyone.of(rest), _N_NEIGHBORS)
        cells = data.in_memory(held_out)
        for how, shown in (
            ("rna_and_proteins", cells),
            ("rna", with_rna_alone(model, cells)),
        ):
            near = reference.neighbours(encode(model.module, shown, np.arange(len(held_out))))
            for name in columns:
                known, truth = labels[name][rest], labels[name][held_out]
                n_labels = int(labels[name].max()) + 1
                calibration = calibrate(near, known, truth, n_labels)
                chance = label_probabilities(near, known, n_labels, calibration)
                about = found.setdefault(
                    name, {"labels": len(np.unique(known)), "cells": len(held_out)}
                )
                about[f"accuracy_{how}"] = float((chance.argmax(axis=1) == truth).mean())
                about[f"calibration_error_{how}"] = calibration_error(chance, truth)
    return {name: found[name] for name in labels if name in found}


def _accuracy_of_proteins(
    model: Fitted, question: Question, predictors: RnaPredictors | None
) -> dict[str, Any]:
    """Return how well each protein of held-out cells is predicted from their RNA alone."""
    if not _holds_out(model):
        return {}
    question, wanted = imputed_batches(model, question, None, None)
    held_out = held_out_cells(model, question, all_of_them=True)
    reporting = reporting_cells(model, held_out)
    cells = held_out.data.in_memory(held_out.cells)
    everyone = np.arange(cells.n_cells)
    counts = observed_proteins(cells, everyone, wanted.proteins.positions)
    alone = replace(question, data=with_rna_alone(model, cells), cells=everyone)
    hidden = Hidden(counts, np.ones(len(wanted.proteins), dtype=bool))
    found = stacked_proteins(alone, wanted, hidden, predictors).of_cells(reporting)
    clusters = latent_clusters(replace(held_out, cells=held_out.cells[reporting]))
    table = found.reliability(0.9, wanted.proteins.names, clusters)
    kept = ["n_cells", "pearson", "rmse", "coverage", "within_pearson", "reliable"]
    rows = table[kept].astype(object).to_dict(orient="index")
    return {str(name): row for name, row in rows.items()}
