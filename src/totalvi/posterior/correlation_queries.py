"""Queries of how genes and proteins vary together."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.data.counts import ROWS_AT_A_TIME
from totalvi.data.panels.antibody_names import matched_pairs
from totalvi.errors import DataError
from totalvi.fit.batches import Minibatch, minibatch
from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import Cells, check_choice, checked_number, feature_positions
from totalvi.posterior.correlation import (
    CorrelationQuery,
    CorrelationType,
    feature_correlations,
    spearman,
)
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asked, Asking, Data, Names

_PERMUTATION = 1  # of the genes' cells: beside the noise, which has the seed itself


class CorrelationQueries(Asking):
    """What a model says of how genes and proteins vary together over cells."""

    def get_feature_correlation_matrix(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        n_samples: int = 10,
        batch_size: int = QUERY_BATCH_SIZE,
        rna_size_factor: float = 1000,
        transform_batch: Names = None,
        correlation_type: CorrelationType = "spearman",
        log_transform: bool = False,
        *,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        permute_genes: bool = False,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return the correlations of genes and proteins over cells, free of technical variation.

        A sample of each cell is drawn from Gamma(r, r / mean), which has the denoised mean and the
        spread that the inverse dispersion r says: for genes, the mean is rho times
        ``rna_size_factor``; for proteins (1 - pi) beta alpha, whose background is set to zero (Gayoso,
        Steier et al., 2021). Each sample, decoded into each batch, gives a correlation matrix over the
        cells; the result is their mean.

        Cells are decoded in minibatches, once for each sample and batch. "pearson" holds no more than
        a minibatch beside the matrix; "spearman" holds one value a cell and feature, as ranks need.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        n_samples
            Posterior samples a cell and batch; one is enough for a first look at many cells.
        rna_size_factor
            Number that RNA proportions are multiplied by; it matters with ``log_transform`` alone.
        transform_batch
            Batch or batches to decode every cell into; their correlations are averaged. None: each
            cell's own.
        correlation_type
            "spearman" or "pearson".
        log_transform
            Whether log(1 + value) is correlated; it does not change "spearman".
        gene_list, protein_list
            Wanted features. None: all; an empty list: none. The matrix has the square of their number.
        permute_genes
            Whether to set the genes of another cell, drawn at random, beside the proteins of each: a
            control, whose gene-protein correlations are those of chance. Correlations within a
            modality stay.

        Returns
        -------
        Data frame (features, features), genes first. Rows and columns have two levels, ``modality``
        ("rna" or "protein") and ``feature``, so that a gene and a protein may share a name, and
        ``result.loc["rna", "protein"]`` are the correlations of genes with proteins. A feature that is
        the same in all cells has the correlation 0 with any other.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a feature or batch is not known, or fewer than
            two cells are asked about.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> correlations = model.get_feature_correlation_matrix(n_samples=2)
        >>> correlations.loc["rna", "protein"].shape
        (30, 5)
        """
        asked = self._asked(adata, indices)
        check_choice("correlation_type", correlation_type, ("spearman", "pearson"))
        query = CorrelationQuery(
            genes=self._genes(gene_list),
            proteins=self._proteins(protein_list),
            transform_batches=self._batch_codes(transform_batch),
            n_samples=at_least_one("n_samples", n_samples),
            correlation_type=correlation_type,
            rna_size_factor=checked_number("rna_size_factor", rna_size_factor),
            log_transform=log_transform,
        )
        values = self._correlations(asked, query, batch_size, permute_genes, seed, progress)
        names = pd.MultiIndex.from_tuples(
            [("rna", name) for name in self._gene_names(query.genes)]
            + [("protein", name) for name in self._protein_names(query.proteins)],
            names=["modality", "feature"],
        )
        return pd.DataFrame(values, index=names, columns=names)

    def get_gene_protein_pairs(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        n_samples: int = 10,
        batch_size: int = QUERY_BATCH_SIZE,
        transform_batch: Names = None,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return the Spearman correlation of proteins with their genes, raw and denoised.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        pairs
            (protein, gene) names. None: the proteins that a built-in table knows, each with the gene
            that encodes its target and, for some, a gene of the same lineage; see
            `totalvi.data.panels.antibody_names.matched_pairs`.
        n_samples, transform_batch
            As in `get_feature_correlation_matrix`.

        Returns
        -------
        Data frame of the pairs with the columns ``protein``, ``gene``, ``raw`` (of protein counts with
        RNA counts divided by the cell's total) and ``denoised`` (as in
        `get_feature_correlation_matrix`). Cells that did not measure a protein are left out of its
        raw correlation.

        Raises
        ------
        DataError
            When no pair is given and none is known.
        ValueError
            When an argument has a value not allowed, or a feature or batch is not known.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> names = model.schema
        >>> pair = names.protein_names[0], names.gene_names[0]
        >>> list(model.get_gene_protein_pairs(pairs=[pair], n_samples=2))
        ['protein', 'gene', 'raw', 'denoised']
        """
        asked = self._asked(adata, indices)
        proteins, genes = zip(*self._pairs(pairs), strict=True)
        gene_list, protein_list = list(dict.fromkeys(genes)), list(dict.fromkeys(proteins))
        query = CorrelationQuery(
            genes=feature_positions(gene_list, self.schema.gene_names, "pairs"),
            proteins=feature_positions(protein_list, self.schema.protein_names, "pairs"),
            transform_batches=self._batch_codes(transform_batch),
            n_samples=at_least_one("n_samples", n_samples),
        )
        values = self._correlations(asked, query, batch_size, False, seed, progress)
        denoised = values[: len(gene_list), len(gene_list) :]
        return pd.DataFrame(
            {
                "protein": proteins,
                "gene": genes,
                "raw": self._raw_correlations(asked, proteins, genes),
                "denoised": [
                    denoised[gene_list.index(gene), protein_list.index(protein)]
                    for protein, gene in zip(proteins, genes, strict=True)
                ],
            }
        )

    def _correlations(
        self,
        asked: Asked,
        query: CorrelationQuery,
        batch_size: int,
        permute_genes: bool,
        seed: int,
        progress: bool | None,
    ) -> np.ndarray:
        if len(asked.cells) < 2:
            raise ValueError("indices selects one cell; correlations need two or more.")
        noise = self._noise(seed)
        rng = np.random.default_rng((noise.seed, _PERMUTATION))
        partners = _permuted_cells(asked, rng) if permute_genes else None
        with asked.stream(batch_size, "correlations", progress, query.n_passes()) as batches:
            return feature_correlations(
                self.module, batches, len(asked.cells), query, noise, partners
            )

    def _pairs(self, pairs: Sequence[tuple[str, str]] | None) -> Sequence[tuple[str, str]]:
        if pairs is None:
            pairs = matched_pairs(self.schema.protein_names, self.schema.gene_names)
            if not pairs:
                raise DataError(
                    "No protein of the model is known to go with one of its genes; name pairs of "
                    "(protein, gene) in pairs."
                )
        if not len(pairs) or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
            raise ValueError(f"pairs is {pairs!r}; allowed are lists of (protein, gene), or None.")
        return pairs

    def _raw_correlations(
        self, asked: Asked, proteins: Sequence[str], genes: Sequence[str]
    ) -> list[float]:
        data, cells = asked.data, asked.cells
        gene_columns = feature_positions(genes, self.schema.gene_names, "pairs")
        columns = feature_positions(proteins, self.schema.protein_names, "pairs")
        totals, some_genes, some_proteins = [], [], []
        for start in range(0, len(cells), ROWS_AT_A_TIME):
            some = cells[start : start + ROWS_AT_A_TIME]
            block = data.rna.rows(some)
            totals.append(np.maximum(np.asarray(block.sum(axis=1)).ravel(), 1))
            some_genes.append(block[:, gene_columns])
            some_proteins.append(data.protein.rows(some)[:, columns])
        total, protein = np.concatenate(totals), np.concatenate(some_proteins)
        rna = sparse.vstack(some_genes, format="csc")
        measured = np.array(self.schema.panel_measured)[data.panel[cells]][:, columns]
        correlations = []
        for i in range(len(columns)):
            pair = [rna[:, [i]].toarray().ravel() / total, protein[:, i]]
            values = np.column_stack(pair)[measured[:, i]]
            correlations.append(float(spearman([values], 2, len(values))[0, 1]))
        return correlations


def _permuted_cells(asked: Asked, rng: np.random.Generator) -> Callable[[Minibatch], Minibatch]:
    other_cell = np.arange(asked.data.n_cells)
    other_cell[asked.cells] = rng.permutation(asked.cells)
    return lambda batch: minibatch(asked.data, asked.module, other_cell[batch.cells])
