"""Archetypes: what cells at the corners of a logistic-normal latent space would express."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.fit.batches import Minibatch
from totalvi.nn.decoder import Decoded
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.arguments import Cells, checked_number
from totalvi.posterior.draws import plausible_background
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asked, Asking, Data, Names
from totalvi.posterior.rows import Table


def distinct_contexts(data: CiteData, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one of ``cells`` for each combination of batch and covariates, and the share of each.

    Continuous covariates are left out.
    """
    columns = [data.batch[cells, None]]
    if data.categorical is not None:
        columns.append(data.categorical[cells])
    _, first, counts = np.unique(np.hstack(columns), axis=0, return_index=True, return_counts=True)
    return cells[first], counts / len(cells)


@torch.no_grad()
def archetype_expression(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    shares: np.ndarray,
    transform_batches: Sequence[int | None],
    continuous: np.ndarray | None,
    *,
    include_protein_background: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return RNA proportions and protein means at each corner, (n_latent, features).

    Parameters
    ----------
    batches
        One cell for each context to decode in, whose counts do not matter.
    shares
        Weight of each context; they sum to 1.
    transform_batches
        Codes of the batches to decode into, averaged over; (None,): each context's own.
    continuous
        Continuous covariates that all contexts are given, (covariates,).
    """
    rna = torch.zeros(module.n_latent, module.n_input_genes, dtype=torch.float64)
    protein = torch.zeros(module.n_latent, module.n_input_proteins, dtype=torch.float64)
    corners = torch.eye(module.n_latent)
    start = 0
    for batch in batches:
        n_contexts = len(batch.cells)
        weight = torch.from_numpy(shares[start : start + n_contexts]) / len(transform_batches)
        start += n_contexts
        own = batch.context
        if continuous is not None:
            own = own._replace(continuous=torch.from_numpy(continuous).repeat(n_contexts, 1))
        for code in transform_batches:
            context = module.in_batch(own, code)
            for k, corner in enumerate(corners):
                decoded = module.decode(corner.repeat(n_contexts, 1), context)
                rna[k] += weight @ module.proportions(decoded).double()
                protein[k] += weight @ _protein_mean(decoded, include_protein_background).double()
    return rna.numpy(), protein.numpy()


def _protein_mean(decoded: Decoded, include_background: bool) -> Tensor:
    """Return (1 - pi) E[beta] alpha [+ pi E[beta]], with E[beta] = exp(m + s^2 / 2)."""
    log_rate = decoded.background_mean + 0.5 * decoded.background_scale**2
    background_rate = plausible_background(log_rate).exp()
    background = torch.sigmoid(decoded.background_logit)
    value = (1 - background) * background_rate * decoded.foreground_factor
    return value + background * background_rate if include_background else value


def z_scores(by_archetype: np.ndarray) -> np.ndarray:
    """Return each feature's standard scores over the archetypes; 0 where all are the same."""
    deviation = by_archetype - by_archetype.mean(axis=0)
    scale = by_archetype.std(axis=0)
    rounding = np.finfo(np.float32).eps * np.abs(by_archetype).max(axis=0)
    varies = scale > rounding
    return np.where(varies, deviation / np.where(varies, scale, 1), 0.0)


class ArchetypeQueries(Asking):
    """What a model with ``latent_distribution="ln"`` says of the extremes between which cells lie."""

    def get_archetypes(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        library_size: float = 1.0,
        include_protein_background: bool = False,
        standardize: bool = False,
        batch_size: int = QUERY_BATCH_SIZE,
        progress: bool | None = None,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return what a cell at each corner of the latent space would express.

        With ``latent_distribution="ln"``, a cell's latent state holds shares that sum to one: it lies
        between as many corners, or archetypes, as there are latent dimensions (Gayoso, Steier et al.,
        2021). `get_latent_representation` gives each cell's shares, in the same order. RNA is rho
        times ``library_size``, protein (1 - pi) E[beta] alpha with E[beta] = exp(m + s^2 / 2); nothing
        is sampled.

        Parameters
        ----------
        adata, indices
            Cells in whose batches and categorical covariates the corners are decoded, averaged, with
            their mean continuous covariates. None: the training data; all cells.
        transform_batch
            Batch or batches to decode into instead, averaged.
        gene_list, protein_list
            Wanted features. None: all; an empty list: none.
        library_size
            Number that RNA proportions are multiplied by.
        include_protein_background
            Whether to add the background, pi E[beta].
        standardize
            Whether to return standard scores over the archetypes, which show what sets each apart.
        batch_size
            Combinations of batch and covariates decoded at a time.
        progress
            Whether to show a progress bar of these combinations; None: on a terminal.

        Returns
        -------
        RNA (archetypes, genes) and protein (archetypes, proteins), rows "archetype 0" and so on.

        Raises
        ------
        ValueError
            When the latent distribution is "normal", an argument has a value not allowed, or a feature
            or batch is not known.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4, latent_distribution="ln")
        >>> model.train(max_epochs=2)
        >>> rna, protein = model.get_archetypes()
        >>> rna.shape, protein.shape
        ((4, 30), (4, 5))
        """
        asked = self._asked(adata, indices)
        if self.module.latent_distribution != "ln":
            raise ValueError(
                'latent_distribution is "normal", whose latent space has no corners; build the Model '
                'with latent_distribution="ln" for archetypes.'
            )
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        codes = self._batch_codes(transform_batch)
        scale = checked_number("library_size", library_size)
        cells, shares = distinct_contexts(asked.data, asked.cells)
        continuous = asked.data.continuous
        contexts = Asked(self.module, asked.data, cells)
        with contexts.stream(batch_size, "archetypes", progress) as batches:
            rna, protein = archetype_expression(
                self.module,
                batches,
                shares,
                codes,
                None if continuous is None else continuous[asked.cells].mean(axis=0),
                include_protein_background=include_protein_background,
            )
        rna, protein = scale * rna[:, genes], protein[:, proteins]
        if standardize:
            rna, protein = z_scores(rna), z_scores(protein)
        index = pd.Index([f"archetype {k}" for k in range(len(rna))])
        return (
            Table(index, self._gene_names(genes)).frame(rna),
            Table(index, self._protein_names(proteins)).frame(protein),
        )
