"""What RNA and proteins each tell of a cell's state, in nats, and which features tell it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.counts import evenly_spaced
from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.network import Network
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.draws import GeneParameters
from totalvi.posterior.modality_posterior import (
    StatesOfCells,
    known_technical,
    posterior_given,
)
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, labels_of_cells

_N_OTHER_STATES = 16  # over which a feature's probability is averaged


class ModalityInformation(NamedTuple):
    """What each modality tells of cells' states, in nats.

    Attributes
    ----------
    cells
        A row for each cell. ``total``: what both modalities tell of its state. ``rna``, ``protein``:
        what either tells alone. ``rna_added``, ``protein_added``: what it adds to the other, ``total``
        less what the other tells alone.
    features
        A row for each gene and protein: its ``modality``, and the nats that its count alone tells of
        the state, the mean over all cells (column "all") or over those of each group.
    dimensions
        A row for each dimension of the latent state: the means of ``total``, ``rna`` and ``protein``.
    rna_states, protein_states
        Mean of the latent state u given RNA alone, and given proteins alone, (cells, dimensions).
    """

    cells: pd.DataFrame
    features: pd.DataFrame
    dimensions: pd.DataFrame
    rna_states: np.ndarray
    protein_states: np.ndarray


def feature_log_prob(network: Network, batch: Minibatch, u: Tensor) -> Tensor:
    """Return log p of each count at states u (B, d), genes and then proteins, (B, G + T).

    That of a protein has its log background integrated over its prior; that of an unmeasured protein,
    and of the RNA of a cell without it, is 0.
    """
    library_size, context = known_technical(network, batch)
    decoded = network.decode(network.transform_latent(u), context)
    genes = network.genes(decoded, library_size, context)
    of_genes = GeneParameters(genes.log_mean(), genes.log_r, genes.dropout_logit())
    rna = of_genes.log_prob(batch.x.to_dense())
    if network.rna_mask is not None:
        rna = rna * network.rna_mask[batch.context.panel][:, None]
    return torch.cat([rna, network.protein_log_prob(batch.y, decoded, context)], dim=1)


def _feature_nats(states: StatesOfCells, batch: Minibatch, u: Tensor) -> Tensor:
    """Return log p(count | u) - log p(count) of each feature, (B, G + T), p averaged over states."""
    some = evenly_spaced(np.arange(len(states.u)), _N_OTHER_STATES)
    total = torch.full((len(u), 1), -torch.inf)
    for other in states.u[some]:
        at_other = feature_log_prob(states.network, batch, other.expand_as(u))
        total = torch.logaddexp(total, at_other)
    of_state = feature_log_prob(states.network, batch, u)
    return of_state - total + math.log(len(some))


@documented
class ModalityQueries(Fitted):
    """What each modality tells of the state of cells."""

    def get_modality_information(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        groupby: str | Sequence[object] | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> ModalityInformation:
        """Return what RNA and proteins each tell of a cell's state, and which features tell it.

        Counts tell the divergence KL(q(u | counts) || N(0, I)) of the posterior of the state from its
        prior, in nats. The posterior is fitted to each cell by itself, given both modalities, RNA
        alone and proteins alone. ``protein_added`` is what the proteins tell that the RNA does not; its
        mean is the mutual information of proteins and state given RNA. A feature by itself tells
        log p(count | u) - log p(count); features that tell the same tell it several times. All of it
        rests on the fitted model. docs/model.md has the formulas.

        It takes about 40 ms a cell (4,000 genes, two processors), so with thousands of cells ask about
        some by ``indices``: means over groups need few hundred.

        Parameters
        ----------
        {cells}
        groupby
            Column of ``obs``, or a group for each cell of ``adata``, such as clusters: the columns of
            ``features``. None: one column, "all".
        {batch_size} {seed} {progress}

        Returns
        -------
        ModalityInformation
            Tables of ``cells``, ``features`` and ``dimensions``, and the states given one modality. A
            modality that a cell lacks tells 0.

        {value_error}

        {fitted_model}
        >>> told = model.get_modality_information()
        >>> list(told.cells)
        ['total', 'rna', 'protein', 'rna_added', 'protein_added']
        >>> list(told.dimensions)
        ['total', 'rna', 'protein']
        """
        question = self._question(adata, indices, batch_size, progress, seed)
        groups = pd.Categorical(
            np.repeat("all", len(question.cells))
            if groupby is None
            else labels_of_cells(question, "groupby", groupby)
        )
        states = StatesOfCells.of(question)
        genes, proteins = self.schema.gene_names, self.schema.protein_names
        sums = np.zeros((len(groups.categories), len(genes) + len(proteins)))
        nats, means, start = [], [], 0
        with question.minibatches("modality information") as batches:
            for batch in batches:
                posteriors = [
                    posterior_given(states, batch, given, question.noise)
                    for given in (("rna", "protein"), ("rna",), ("protein",))
                ]
                code = groups.codes[start : start + len(batch.cells)]
                start += len(batch.cells)
                of_features = _feature_nats(states, batch, posteriors[0].mean).double().numpy()
                np.add.at(sums, code[code >= 0], of_features[code >= 0])
                nats.append(torch.stack([each.nats() for each in posteriors]).numpy())
                means.append(torch.stack([each.mean for each in posteriors[1:]]).numpy())
        by_dimension = np.concatenate(nats, axis=1)
        total, rna, protein = by_dimension.sum(axis=2, dtype=np.float64)
        columns = {"total": total, "rna": rna, "protein": protein}
        columns |= {"rna_added": total - protein, "protein_added": total - rna}
        features = pd.DataFrame(
            (sums / np.bincount(groups.codes[groups.codes >= 0])[:, None]).T,
            index=pd.Index([*genes, *proteins], name="feature"),
            columns=groups.categories.astype(str),
        )
        features.insert(0, "modality", ["rna"] * len(genes) + ["protein"] * len(proteins))
        dimensions = pd.DataFrame(by_dimension.mean(axis=1).T, columns=list(columns)[:3])
        table = pd.DataFrame(columns, index=question.cell_names)
        return ModalityInformation(table, features, dimensions, *np.concatenate(means, axis=1))
