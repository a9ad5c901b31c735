"""How genes and proteins vary together over cells, free of technical variation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse
from torch import Tensor

from totalvi.data.counts import ROWS_AT_A_TIME
from totalvi.data.describe import Data
from totalvi.data.panels.antibody_names import matched_pairs
from totalvi.errors import DataError, allowed
from totalvi.fit.batches import minibatch
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import Cells, Names, check_choice, checked_number, documented
from totalvi.posterior.column_correlations import pairwise_pearson, pearson, spearman
from totalvi.posterior.draws import drawn_background, draws, plausible
from totalvi.posterior.noise import Drawn, gamma_values
from totalvi.posterior.question import QUERY_BATCH_SIZE, Features, Fitted, Question
from totalvi.posterior.unmeasured import answering_for

CorrelationType: TypeAlias = Literal["spearman", "pearson"]
_PERMUTATION = 1  # tells the order of the genes' cells from the noise, which has the seed itself


@dataclass(frozen=True)
class Correlated:
    """What is correlated: which features, and how.

    Parameters
    ----------
    genes, proteins
        Positions of the wanted features.
    correlation_type
        "spearman" or "pearson".
    rna_size_factor
        What RNA proportions are multiplied by.
    log_transform
        Whether log(1 + value) is correlated.
    """

    genes: np.ndarray
    proteins: np.ndarray
    correlation_type: CorrelationType = "spearman"
    rna_size_factor: float = 1000.0
    log_transform: bool = False


def feature_correlations(
    question: Question,
    wanted: Correlated,
    gene_partners: Callable[[Minibatch], Minibatch] | None = None,
) -> np.ndarray:
    """Return the correlations of genes, then proteins, (features, features).

    Each sample of the posterior, in each batch, has a correlation matrix over cells; it is their mean.

    Parameters
    ----------
    gene_partners
        The cells whose genes are set beside the proteins of a minibatch's; None: the same cells.
    """
    n_features, n_cells = len(wanted.genes) + len(wanted.proteins), len(question.cells)
    is_partial = not (question.shares is None and question.rna_shares is None)

    def correlate(parts: Iterator[np.ndarray]) -> np.ndarray:
        values = map(np.log1p, parts) if wanted.log_transform else parts
        if wanted.correlation_type == "pearson":
            return (pairwise_pearson if is_partial else pearson)(values, n_features)
        return spearman(values, n_features, n_cells)

    return _mean_over_samples(question, wanted, correlate, gene_partners)


def _mean_over_samples(
    question: Question,
    wanted: Correlated,
    correlate: Callable[[Iterator[np.ndarray]], np.ndarray],
    gene_partners: Callable[[Minibatch], Minibatch] | None = None,
) -> np.ndarray:
    """Return the mean over samples and batches of what ``correlate`` makes of the blocks of cells.

    Batches in which a correlation is not known (NaN) are left out of its mean.
    """
    n_batches = -(-len(question.cells) // question.batch_size)
    with question.minibatches("correlations", n_passes=question.n_draws) as batches:
        found = (
            correlate(
                _values(question, wanted, batch, gene_partners, sample, position)
                for batch in islice(batches, n_batches)
            )
            for sample, position in product(
                range(question.n_samples), range(len(question.transform_batch))
            )
        )
        total, n_known = np.zeros(1), np.zeros(1)
        for values in found:
            total = total + np.nan_to_num(values)
            n_known = n_known + np.isfinite(values)
    return np.divide(total, n_known, out=np.full_like(total, np.nan), where=n_known > 0)


def _values(
    question: Question,
    wanted: Correlated,
    batch: Minibatch,
    gene_partners: Callable[[Minibatch], Minibatch] | None,
    sample: int,
    position: int,
) -> np.ndarray:
    """Return the values to correlate: a sample of the wanted genes, then proteins, (B, features).

    What the cell's panel lacks, or the batch at a position of those decoded into, is NaN.
    """
    code = question.transform_batch[position]
    genes, proteins = _denoised_sample(question, wanted, batch, sample, code)
    if gene_partners is not None and len(wanted.genes):
        partners = gene_partners(batch)
        genes, _ = _denoised_sample(question, wanted, partners, sample, code)
    if question.shares is not None:
        share = question.shares[batch.context.panel, position][:, wanted.proteins]
        proteins[~(share > 0).cpu().numpy()] = np.nan
    if question.rna_shares is not None:
        of_rna = question.rna_shares[batch.context.panel, position]
        genes[~(of_rna > 0).cpu().numpy()] = np.nan
    return np.hstack([genes, proteins])


def _denoised_sample(
    question: Question, wanted: Correlated, batch: Minibatch, sample: int, code: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return Gamma(r, r / mean) samples of genes and proteins.

    The mean of a protein is that of its foreground; where the protein is drawn to be background, the
    sample is zero.
    """
    network, noise = question.network, question.noise
    (draw,) = draws(network, batch, 1, noise, (code,), first_sample=sample)

    def values(mean: Tensor, log_r: Tensor, some: np.ndarray, number: int) -> np.ndarray:
        return gamma_values(
            Drawn(noise, sample, batch.keys, number + some),
            mean[:, some].cpu().numpy(), log_r[:, some].exp().cpu().numpy(),
        )  # fmt: skip

    mixture = plausible(draw.proteins)
    foreground = mixture.foreground_mean()
    proteins = values(foreground, mixture.log_r, wanted.proteins, network.n_input_genes)
    in_background = drawn_background(mixture.background_probability(), noise, sample, batch.keys)
    proteins[in_background[:, wanted.proteins].cpu().numpy() > 0] = 0.0
    if not len(wanted.genes):
        return np.empty((len(proteins), 0), dtype=np.float32), proteins
    rna = wanted.rna_size_factor * network.proportions(draw.decoded)
    genes = network.genes(draw.decoded, draw.library_size, draw.context)
    return values(rna, genes.log_r, wanted.genes, 0), proteins


@documented
class CorrelationQueries(Fitted):
    """What a model says of how genes and proteins vary together over cells.

    Correlations are of denoised values, or for pairs of genes and proteins of counts given their depth.
    """

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

        A sample of each cell is drawn from Gamma(r, r / mean). For genes, the mean is rho times
        ``rna_size_factor``. For proteins it is that of the foreground, beta alpha, and the sample is
        zero where the protein is drawn to be background, with probability pi (Gayoso, Steier et al.,
        2021). Each sample, decoded into each batch, gives a correlation matrix over the
        cells; the result is their mean.

        "pearson" holds no more than a minibatch of cells beside the matrix; "spearman" holds one value
        for each cell and feature, as ranks need.

        Parameters
        ----------
        {cells} {n_samples} {batch_size}
        rna_size_factor
            Number that RNA proportions are multiplied by; it matters with ``log_transform`` only.
        {batches_correlated}
        correlation_type
            "spearman" or "pearson".
        log_transform
            Whether log(1 + value) is correlated; it does not change "spearman".
        {features}
        permute_genes
            Whether to set the genes of another cell, drawn at random, beside the proteins of each: a
            control, whose gene-protein correlations are those of chance.
        {seed} {progress}

        Returns
        -------
        Data frame (features, features), genes first. Rows and columns have two levels, ``modality``
        ("rna" or "protein") and ``feature``, so that a gene and a protein may share a name, and
        ``result.loc["rna", "protein"]`` are the correlations of genes with proteins. A feature that is
        the same in all cells has the correlation 0 with any other. Cells whose panel lacks a protein,
        or RNA, are left out of its correlations, and so are batches decoded into that did not measure
        it; NaN where no two cells are left.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a feature or batch is not known, or fewer than
            two cells are selected.

        {fitted_model}
        >>> correlations = model.get_feature_correlation_matrix(n_samples=2)
        >>> correlations.loc["rna", "protein"].shape
        (30, 5)
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch
        )
        check_choice("correlation_type", correlation_type, ("spearman", "pearson"))
        _require_two_cells(question)
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        question = answering_for(self, question, proteins, genes=genes)
        scale = checked_number("rna_size_factor", rna_size_factor)
        wanted = Correlated(
            genes.positions, proteins.positions, correlation_type, scale, log_transform
        )
        partners = _permuted_cells(question) if permute_genes else None
        modality = np.repeat(["rna", "protein"], [len(genes), len(proteins)])
        names = pd.MultiIndex.from_arrays(
            [modality, [*genes.names, *proteins.names]], names=["modality", "feature"]
        )
        values = feature_correlations(question, wanted, partners)
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
        """Return the correlation of proteins with their genes, raw and denoised.

        Spearman's correlation ranks all cells, even those whose values hardly differ. Pearson's
        correlation of log(1 + value) ignores such small differences.

        Parameters
        ----------
        {cells}
        pairs
            (protein, gene) names. None: those of `totalvi.data.panels.antibody_names.matched_pairs`,
            a protein with the gene of its target and, for some, a gene of the same lineage.
        {n_samples} {batch_size} {batches_correlated} {seed} {progress}

        Returns
        -------
        Data frame of the pairs with the columns ``protein``, ``gene``, ``raw`` (of protein counts with
        RNA counts divided by the cell's total) and ``denoised`` (as in
        `get_feature_correlation_matrix`), which are Spearman's correlations; ``raw_log_pearson`` and
        ``denoised_log_pearson`` are Pearson's of log(1 + value), RNA by 1,000 a cell. Cells that did
        not measure a protein are left out of its correlations, which are NaN where none did.

        {name_error}
        DataError
            When no pair is given and none is known.

        {fitted_model}
        >>> names = model.schema
        >>> pair = names.protein_names[0], names.gene_names[0]
        >>> list(model.get_gene_protein_pairs(pairs=[pair], n_samples=2))
        ['protein', 'gene', 'raw', 'denoised', 'raw_log_pearson', 'denoised_log_pearson']
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch
        )
        protein_names, gene_names = zip(*self._pairs(pairs), strict=True)
        genes = self._genes(list(dict.fromkeys(gene_names)), "pairs")
        proteins = self._proteins(list(dict.fromkeys(protein_names)), "pairs")
        _require_two_cells(question)
        question = answering_for(self, question, proteins, genes=genes)
        rows = pd.Index(genes.names).get_indexer(pd.Index(gene_names))
        columns = pd.Index(proteins.names).get_indexer(pd.Index(protein_names))

        def correlate(parts: Iterator[np.ndarray]) -> np.ndarray:
            values = np.concatenate(list(parts))
            pairs = zip(rows, len(genes) + columns, strict=True)
            return np.array([_both_correlations(values[:, list(pair)]) for pair in pairs]).T

        wanted = Correlated(genes.positions, proteins.positions)
        denoised = _mean_over_samples(question, wanted, correlate)
        raw = _raw_correlations(
            question, self._genes(gene_names, "pairs"), self._proteins(protein_names, "pairs")
        )
        found = pd.DataFrame({"protein": protein_names, "gene": gene_names})
        for suffix, of_counts, of_samples in zip(("", "_log_pearson"), raw, denoised, strict=True):
            found[f"raw{suffix}"], found[f"denoised{suffix}"] = of_counts, of_samples
        return found

    def _pairs(self, pairs: Sequence[tuple[str, str]] | None) -> Sequence[tuple[str, str]]:
        """Return pairs of (protein, gene), those given or those known."""
        if pairs is None:
            pairs = matched_pairs(self.schema.protein_names, self.schema.gene_names)
            if not pairs:
                raise DataError(
                    "No protein of the model is known to go with one of its genes; name pairs of "
                    "(protein, gene) in pairs."
                )
        if not len(pairs) or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
            raise ValueError(allowed("pairs", pairs, "lists of (protein, gene), or None"))
        return pairs


def _require_two_cells(question: Question) -> None:
    if len(question.cells) < 2:
        raise ValueError("indices selects one cell; correlations need two or more.")


def _both_correlations(values: np.ndarray) -> tuple[float, float]:
    """Return Spearman's correlation of two columns, and Pearson's of their log(1 + value).

    Rows with NaN are left out.
    """
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < 2:
        return np.nan, np.nan
    ranked = spearman([values], 2, len(values))[0, 1]
    return float(ranked), float(pearson([np.log1p(values)], 2)[0, 1])


def _raw_correlations(question: Question, genes: Features, proteins: Features) -> np.ndarray:
    """Return both correlations of each gene's RNA, by 1,000 a cell, with its protein's counts."""
    data, cells, columns = question.data, question.cells, proteins.positions
    totals, some_genes, some_proteins = [], [], []
    for start in range(0, len(cells), ROWS_AT_A_TIME):
        some = cells[start : start + ROWS_AT_A_TIME]
        block = data.rna.rows(some)
        totals.append(np.maximum(np.asarray(block.sum(axis=1)).ravel(), 1))
        some_genes.append(block[:, genes.positions])
        some_proteins.append(data.protein.rows(some)[:, columns])
    total, protein = np.concatenate(totals), np.concatenate(some_proteins)
    rna = sparse.vstack(some_genes, format="csc")
    measured = np.array(data.schema.panel_measured)[data.panel[cells]][:, columns]
    measured &= data.has_rna[cells][:, None]
    correlations = np.empty((2, len(columns)))
    for i in range(len(columns)):
        pair = [1000.0 * rna[:, [i]].toarray().ravel() / total, protein[:, i]]
        correlations[:, i] = _both_correlations(np.column_stack(pair)[measured[:, i]])
    return correlations


def _permuted_cells(question: Question) -> Callable[[Minibatch], Minibatch]:
    """Return what gives each cell's minibatch with other cells of the question in their place."""
    rng = np.random.default_rng((question.noise.seed, _PERMUTATION))
    other_cell = np.arange(question.data.n_cells)
    other_cell[question.cells] = rng.permutation(question.cells)
    return lambda batch: minibatch(question.data, question.network, other_cell[batch.cells])
