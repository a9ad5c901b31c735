"""Proteins that the panel of a cell lacks: what the encoder sees of them, and what a query returns."""

import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from totalvi.data.cells import CiteData, QueryMapping
from totalvi.errors import DataError, DataWarning, argument
from totalvi.fit.batches import minibatches
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.network import Network
from totalvi.posterior.arguments import WhereUnmeasured, check_choice
from totalvi.posterior.draws import naming_proteins, plausible
from totalvi.posterior.question import Features, Fitted, Question

_FILLING_BATCH_SIZE, _FILLING_ROUNDS = 1024, 6


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


def always_shown(module: Network, panels: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """Return which proteins the encoder saw in every training cell with the panels in ``panel``.

    For these proteins, the encoder reads a 0 as a cell without the protein. It has learned to work
    without the others.

    Parameters
    ----------
    panels
        Which proteins each panel of the reference measured, (panels, T).
    panel
        Codes, (N,).

    Returns
    -------
    Shape (N, T).
    """
    if module.hidden_protein_rate:  # the encoder also saw cells with other panels
        return np.broadcast_to(panels.all(axis=0), (len(panel), panels.shape[1]))
    shown: np.ndarray = panels[panel]
    return shown


def filled_proteins(
    module: Network, data: CiteData, mapping: QueryMapping, start: str | None = None
) -> np.ndarray:
    """Return which unmeasured proteins of each cell are filled in for the encoder, (N, T).

    They are those that it always saw in the reference batch from which the cell's batch started.

    Parameters
    ----------
    start
        A reference batch that replaces those in ``mapping``.
    """
    schema, n_batches = data.schema, mapping.n_reference_batches
    panels = np.array(schema.panel_measured)
    of_reference = panels[: mapping.n_reference_panels]
    always = of_reference.all(axis=0)
    starts = mapping.reference_batches if start is None else (start,) * len(mapping.batches)
    by_batch = np.zeros((len(schema.batch_names), panels.shape[1]), dtype=bool)
    for code, name in enumerate(starts, start=n_batches):
        known = schema.batch_names[:n_batches]
        own_panel = name in known and not mapping.panels
        by_batch[code] = (
            always_shown(module, of_reference, np.array([known.index(name)]))[0]
            if own_panel
            else always
        )
    filled: np.ndarray = by_batch[data.batch] & ~panels[data.panel]
    return filled


def fill_query(module: Network, data: CiteData, mapping: QueryMapping) -> None:
    """Fill in the unmeasured proteins of a query's cells for the encoder, with the module."""
    fill_unmeasured(module, data, filled_proteins(module, data, mapping))


@torch.no_grad()
def fill_unmeasured(module: Network, data: CiteData, filled: np.ndarray) -> None:
    """Write expected counts where ``filled`` (N, T) into the proteins of ``data``, for the encoder.

    Likelihoods leave these values out, because the panel did not measure them.
    """
    cells, protein = np.flatnonzero(filled.any(axis=1)), data.protein.read()
    with naming_proteins(data.schema.protein_names):
        for batch in minibatches(data, module, cells, _FILLING_BATCH_SIZE):
            protein[batch.cells] = with_expected(module, batch, filled[batch.cells]).numpy()


@torch.no_grad()
def with_expected(module: Network, batch: Minibatch, filled: np.ndarray) -> Tensor:
    """Return protein counts (B, T) with expected counts where ``filled`` is true.

    The function encodes and decodes in turn and replaces these counts by their means each time,
    until the two agree. This is the deterministic form of the pseudo-Gibbs sampler for missing data
    of Rezende, Mohamed and Wierstra (2014, appendix F).
    """
    where = torch.from_numpy(filled)
    y = batch.y.masked_fill(where, 0)  # so that earlier filled-in values do not matter
    for _ in range(_FILLING_ROUNDS if filled.any() else 0):
        posterior = module.encode(batch.x, y, batch.context)
        context = module.at_level(batch.context, posterior.level_m)
        decoded = module.decode(module.transform_latent(posterior.qz_m), context)
        mixture = module.proteins(decoded, decoded.background_mean, context)
        log_background = mixture.log_background.where(where, 0.0)  # other values may be implausible
        mixture = plausible(mixture._replace(log_background=log_background))
        expected = mixture.background_mean() * mixture.mean_over_background()
        y = torch.where(where, expected, y)
    return y
