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
    genes: Features | None = None,
    warn: bool = False,
) -> Question:
    """Return the question with what is answered where a panel lacks proteins, or RNA.

    A protein's mean is over those of the batches decoded into that measured it. Where the cell's panel
    lacks it, it is NaN, of which a query may warn its caller; with "impute" it is decoded into the
    batches that were named and measured it, or into all that did. So it is with the RNA of ``genes``.
    """
    check_choice("unmeasured", unmeasured, ("nan", "impute"))
    question = _proteins_answered(model, question, proteins, unmeasured, warn=warn)
    if genes is None or not len(genes) or not model.schema.panel_measured_rna:
        return question
    return _rna_answered(model, question, unmeasured, warn=warn)


def rna_in_batches(model: Fitted, data: CiteData) -> np.ndarray:
    """Return which batches measured RNA, bool (batches,); in part does not count."""
    measured = model.schema.measured_rna
    if model.schema.columns.panel_key is None:
        return measured  # each batch is a panel
    by_batch = np.zeros(len(model.schema.batch_names), dtype=bool)
    for batch, panel in np.unique([data.batch, data.panel], axis=1).T:
        by_batch[batch] |= measured[panel]
    return by_batch


def with_rna_of(codes: tuple[int, ...], by_batch: np.ndarray) -> tuple[int, ...]:
    """Return the codes of those batches that measured RNA.

    Raises
    ------
    DataError
        When there are batches, but none that measured RNA.
    """
    kept = tuple(code for code in codes if by_batch[code])
    if codes and not kept:
        raise DataError("No batch decoded into measured RNA; name others.")
    return kept


def _rna_answered(
    model: Fitted, question: Question, unmeasured: WhereUnmeasured, *, warn: bool
) -> Question:
    """Return the question with the share of each batch decoded into in the mean of RNA."""
    measured = model.schema.measured_rna
    by_batch = rna_in_batches(model, model._data or question.data)
    impute = unmeasured == "impute" and question.transform_batch == (None,)
    if impute:  # further batches are those that proteins are decoded into, and those with RNA
        further = [code for code in np.flatnonzero(by_batch) if code not in question.imputing]
        shares = question.shares
        if shares is not None and further:
            zeros = shares.new_zeros(len(shares), len(further), shares.shape[2])
            shares = torch.cat([shares, zeros], dim=1)
        elif further and len(
            measured
        ):  # no panel lacks a protein, of which only the own batch counts
            shares = torch.zeros(len(measured), 1 + len(further), question.network.n_input_proteins)
            shares[:, 0] = 1
        codes = (*question.imputing, *map(int, further))
        question = replace(question, imputing=codes, shares=shares)
    decoded = np.zeros((len(measured), question.n_decoded), dtype=bool)
    for position, code in enumerate((*question.transform_batch, *question.imputing)):
        if position < len(question.transform_batch):
            decoded[:, position] = measured if code is None else by_batch[code]
            if unmeasured == "nan":
                decoded[:, position] &= measured
        else:
            decoded[:, position] = ~measured & (code is not None and by_batch[code])
    n_decoded = decoded.sum(axis=1, keepdims=True)
    of_rna = np.where(n_decoded > 0, decoded / np.maximum(n_decoded, 1), np.nan)
    lacking = np.isnan(of_rna[:, 0])[question.data.panel[question.cells]]
    if warn and lacking.any():
        what = (
            argument('unmeasured="impute"') + " gives what the model expects there"
            if unmeasured == "nan"
            else f"give {argument('transform_batch')} batches that measured it"
        )
        warnings.warn(
            f"RNA is NaN in {lacking.sum():,} of {len(lacking):,} cells, which lack it; {what}.",
            DataWarning,
            stacklevel=5,
        )
    device = question.network.background_prior_mean.device
    return replace(question, rna_shares=torch.from_numpy(of_rna).float().to(device))


def _proteins_answered(
    model: Fitted,
    question: Question,
    proteins: Features,
    unmeasured: WhereUnmeasured,
    *,
    warn: bool,
) -> Question:
    """Return the question with the share of each batch decoded into in the mean of a protein."""
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
        stacklevel=6,
    )
