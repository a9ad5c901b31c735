"""What a query returns for proteins that the panel of a cell lacks."""

import warnings
from dataclasses import replace

import numpy as np
import torch

from totalvi.data.cells import CiteData
from totalvi.errors import DataError, DataWarning, argument
from totalvi.posterior.arguments import WhereUnmeasured, check_choice
from totalvi.posterior.question import Features, Fitted, Question


def measured_by_batch(data: CiteData) -> np.ndarray:
    """Return which proteins any cell of each batch measured, bool (batches, T)."""
    by_panel = np.array(data.schema.panel_measured, dtype=bool)
    measured = np.zeros((len(data.schema.batch_names), by_panel.shape[1]), dtype=bool)
    for batch, panel in np.unique([data.batch, data.panel], axis=1).T:
        measured[batch] |= by_panel[panel]
    return measured


def measured_in_batches(model: Fitted, data: CiteData) -> np.ndarray:
    """Return which proteins each batch measured in ``data``, bool (batches, T).

    The batches of a query's reference, none of whose cells are in ``data``, count as having measured
    what all of its panels did: it is not known which batch had which panel.
    """
    measured = np.array(model.schema.panel_measured)
    if model.schema.columns.panel_key is None:
        return measured  # each batch is a panel
    by_batch = measured_by_batch(data)
    if model._mapping is not None:
        reference_panels = measured[: model._mapping.n_reference_panels]
        by_batch[: model._mapping.n_reference_batches] = reference_panels.all(axis=0)
    return by_batch


def batches_to_impute_from(
    model: Fitted, question: Question, proteins: Features
) -> tuple[tuple[int | None, ...], np.ndarray]:
    """Return the codes of batches, and which proteins each imputes, bool (batches, proteins).

    Those that measured a protein impute it. None, each cell's own batch, imputes what a mapped query
    knows no such batch of.

    Raises
    ------
    DataError
        When a model that was not mapped has no cells of a batch that measured a protein.
    """
    measured = measured_in_batches(model, model._data or question.data)[:, proteins.positions]
    nowhere = ~measured.any(axis=0)
    if nowhere.any() and model._mapping is None:
        raise DataError(
            f'No cell given is of a batch that measured protein "{proteins.names[nowhere][0]}"; give '
            "the training data to Model.load, or name batches with transform_batch."
        )
    decoded = np.vstack([measured, nowhere])
    used = np.flatnonzero(decoded.any(axis=1))
    codes = (*range(len(measured)), None)
    return tuple(codes[i] for i in used), decoded[used]


def answering_for(
    model: Fitted,
    question: Question,
    proteins: Features,
    unmeasured: WhereUnmeasured = "nan",
    *,
    warn: bool = False,
) -> Question:
    """Return the question with what is answered where a panel lacks proteins.

    A protein's mean is over those of the batches decoded into that measured it. Where the cell's panel
    lacks it, it is NaN, of which a query may warn its caller; with "impute" it is decoded into the
    batches that were named and measured it, or into all that did.
    """
    check_choice("unmeasured", unmeasured, ("nan", "impute"))
    measured = np.array(model.schema.panel_measured, dtype=bool)
    if measured.all() or not len(proteins):
        return question
    by_batch = measured_in_batches(model, model._data or question.data)
    decoded = np.stack(
        [
            measured if code is None else np.broadcast_to(by_batch[code], measured.shape)
            for code in question.transform_batch
        ],
        axis=1,
    )
    panel = question.data.panel[question.cells]
    lacking = ~measured[np.unique(panel)][:, proteins.positions].all()
    if unmeasured == "nan":
        decoded = decoded & measured[:, None]
    elif question.transform_batch == (None,) and lacking:
        codes, of_wanted = batches_to_impute_from(model, question, proteins)
        further = np.zeros((len(codes), measured.shape[1]), dtype=bool)
        further[:, proteins.positions] = of_wanted
        decoded = np.concatenate([decoded, further & ~measured[:, None]], axis=1)
        question = replace(question, imputing=codes)
    n_decoded = decoded.sum(axis=1, keepdims=True)
    shares = np.where(n_decoded > 0, decoded / np.maximum(n_decoded, 1), np.nan)
    if warn:
        _warn_of_unanswered(np.isnan(shares[:, 0, proteins.positions]), panel, proteins, unmeasured)
    device = question.network.background_prior_mean.device
    return replace(question, shares=torch.from_numpy(shares).float().to(device))


def _warn_of_unanswered(
    unanswered: np.ndarray, panel: np.ndarray, proteins: Features, unmeasured: WhereUnmeasured
) -> None:
    """Warn of proteins that are NaN in the cells of some panels, (panels, proteins)."""
    n_cells = int(np.any(unanswered, axis=1)[panel].sum())
    if n_cells == 0:
        return
    lacked = proteins.names[np.any(unanswered[np.unique(panel)], axis=0)]
    several = len(lacked) > 1
    which = f'Protein "{lacked[0]}"' + (f" and {len(lacked) - 1} more are" if several else " is")
    what = (
        argument('unmeasured="impute"') + " gives what the model expects there"
        if unmeasured == "nan"
        else f"give {argument('transform_batch')} batches that measured {'them' if several else 'it'}"
    )
    warnings.warn(
        f"{which} NaN in {n_cells:,} of {len(panel):,} cells, which lack "
        f"{'them' if several else 'it'}; {what}.",
        DataWarning,
        stacklevel=4,
    )
