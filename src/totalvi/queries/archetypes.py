"""Queries of the corners of a logistic-normal latent space."""

from collections.abc import Sequence

import pandas as pd

from totalvi.arguments import Cells, checked_number
from totalvi.posterior.archetypes import archetype_expression, distinct_contexts, z_scores
from totalvi.queries.asking import QUERY_BATCH_SIZE, Asked, Asking, Data, Names
from totalvi.queries.store import Table


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
