"""Which genes and proteins tell the cells of a label from those of the others."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.counts import evenly_spaced
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.network import Network
from totalvi.posterior.modality_information import feature_log_prob
from totalvi.posterior.question import Question

_N_STATES, _N_CELLS = 6, 32  # of each label: states that describe it, and cells that are told
_AT_ONCE = 64
_LIBRARY_SIZE = 10_000  # RNA counts of a cell, to which means are scaled


def deciding_features(question: Question, code: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return how much the counts of each feature speak for each label.

    For a label k that is the mean over its cells of log p(count | k) - log p(count | other labels), in
    nats. A label is the mixture of the states of six of its cells; the other labels together are the
    mixture of all of these, by how many cells they have.

    Parameters
    ----------
    question
        Its data are all cells.
    code
        Label of each cell, (N,); -1 for those of none.
    names
        Of the labels. Those without cells are left out.

    Returns
    -------
    A row for each label and feature, with the features that speak most for a label first.
    """
    question = replace(question, batch_size=_AT_ONCE, progress=False)
    n_cells = np.bincount(code[code >= 0], minlength=len(names))
    used = np.flatnonzero(n_cells)
    states, told = [], []
    for k in used:
        cells = np.flatnonzero(code == k)
        shown = evenly_spaced(cells, _N_STATES)
        rest = evenly_spaced(np.setdiff1d(cells, shown), _N_CELLS)
        states.append(_states(question.about(shown)))
        told.append(rest if len(rest) else shown)
    of_told = np.repeat(np.arange(len(used)), [len(cells) for cells in told])
    share = n_cells[used] / n_cells.sum()
    n_features = question.network.n_input_genes + question.network.n_input_proteins
    nats, level, n_measured = np.zeros((3, len(used), n_features))
    start = 0
    with question.about(np.concatenate(told)).minibatches("deciding features") as batches:
        for batch in batches:
            own = of_told[start : start + len(batch.cells)]
            start += len(own)
            np.add.at(nats, own, _speaking_for(question, batch, states, own, share))
            measured = _measured(question.network, batch)
            np.add.at(level, own, np.where(measured, _levels(batch), 0.0))
            np.add.at(n_measured, own, measured)
    with np.errstate(invalid="ignore"):  # NaN where no cell of a label measured a feature
        nats, level = nats / n_measured, level / n_measured
    return _table(question, [names[int(k)] for k in used], nats, level, share)


def _states(question: Question) -> Tensor:
    """Return the mean latent state u of the question's cells, (cells, d)."""
    found = question.gather("states", lambda batch: batch.encode(question.network).qz_m)
    return torch.from_numpy(found)


def _speaking_for(
    question: Question,
    batch: Minibatch,
    states: Sequence[Tensor],
    own: np.ndarray,
    share: np.ndarray,
) -> np.ndarray:
    """Return log p(count | own label) - log p(count | others) of each feature, (B, features)."""
    of_own = others = torch.empty(0)
    for k, of_label in enumerate(states):
        logs = [feature_log_prob(question.network, batch, u.expand(len(own), -1)) for u in of_label]
        of_k = torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))
        is_own = torch.from_numpy(own == k)[:, None]
        if k == 0:
            of_own, others = torch.zeros_like(of_k), torch.full_like(of_k, -torch.inf)
        of_own = torch.where(is_own, of_k, of_own)
        weighted = of_k + math.log(share[k])
        others = torch.where(is_own, others, torch.logaddexp(others, weighted))
    of_others = others - torch.from_numpy(np.log(1 - share[own])).to(others)[:, None]
    return (of_own - of_others).double().numpy()


def _measured(network: Network, batch: Minibatch) -> np.ndarray:
    """Return which features the panel of each cell measures, (B, features)."""
    panel = batch.context.panel
    genes = torch.ones(len(panel), network.n_input_genes, dtype=torch.bool)
    proteins = torch.ones(len(panel), network.n_input_proteins, dtype=torch.bool)
    if network.rna_mask is not None:
        genes &= network.rna_mask[panel].bool()[:, None]
    of_panel = network.measured(panel)
    if of_panel is not None:
        proteins &= of_panel.bool()
    return torch.cat([genes, proteins], dim=1).numpy()


def _levels(batch: Minibatch) -> np.ndarray:
    """Return RNA counts scaled to 10,000 a cell, and protein counts, (B, features)."""
    rna = batch.x.to_dense()
    scaled = rna * (_LIBRARY_SIZE / rna.sum(dim=1, keepdim=True).clamp(min=1))
    return torch.cat([scaled, batch.y], dim=1).double().numpy()


def _table(
    question: Question, names: Sequence[str], nats: np.ndarray, level: np.ndarray, share: np.ndarray
) -> pd.DataFrame:
    schema = question.data.schema
    features = np.array([*schema.gene_names, *schema.protein_names], dtype=object)
    modality = np.repeat(["rna", "protein"], [len(schema.gene_names), len(schema.protein_names)])
    weight = np.where(np.isnan(level), 0.0, share[:, None])
    of_all, in_all = (weight * np.nan_to_num(level)).sum(axis=0), weight.sum(axis=0)
    tables = []
    for k, name in enumerate(names):
        order = np.argsort(-nats[k], kind="stable")
        columns = {
            "label": name,
            "feature": features[order],
            "modality": modality[order],
            "nats": nats[k, order],
            "mean": level[k, order],
            "mean_of_others": _of_others(of_all, in_all, weight[k], level[k])[order],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _of_others(
    of_all: np.ndarray, in_all: np.ndarray, weight: np.ndarray, level: np.ndarray
) -> np.ndarray:
    """Return the mean of each feature over the other labels, NaN where none of them measured it."""
    others = in_all - weight
    some = others > 1e-9
    rest = of_all - weight * np.nan_to_num(level)
    result: np.ndarray = np.where(some, rest / np.where(some, others, 1.0), np.nan)
    return result
