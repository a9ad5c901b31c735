"""Denoised expression, and foreground and background of proteins: means by Monte Carlo."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack, overload

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import (
    Cells,
    FeatureOptions,
    Names,
    Sampling,
    ScaledLibrary,
    Stored,
    WhereUnmeasured,
    checked_library_size,
    documented,
)
from totalvi.posterior.draws import FOREGROUND, Draw, ProteinScale, drawn_background
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.rows import RowTarget, write_sparse
from totalvi.posterior.unmeasured import answering_for


def normalized_expression(
    question: Question,
    batch: Minibatch,
    genes: np.ndarray,
    proteins: np.ndarray,
    library_size: ScaledLibrary = 1.0,
    scale: ProteinScale = FOREGROUND,
    *,
    return_mean: bool = True,
    foreground_probability: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return denoised RNA (B, genes) and protein (B, proteins) of a minibatch.

    RNA is E[rho] times the library size; protein E[(1 - pi) beta alpha], plus E[pi beta] with the
    background included; the expectations are over q(z, l, b | cell), and for proteins given their
    counts where the question gives them. Where the result is linear in beta (means of proteins that
    are not scaled to sum to one), beta's expectation given z is taken in place of samples. What a panel
    lacks is answered as the question says, and a cell's other proteins are scaled to sum to one.

    Parameters
    ----------
    genes, proteins
        Positions of the wanted features.
    library_size
        What RNA proportions are multiplied by: a number, or "latent" for each cell's library size.
    return_mean
        Whether samples are averaged; otherwise results have a leading axis of samples, and only the
        batches are averaged.
    foreground_probability
        Zeros (B, proteins of the model), to which the mean foreground probability over the same draws
        is added, as `protein_means` returns it. None: it is not wanted.
    """
    network, n_batches = question.network, len(question.transform_batch)
    n_kept = 1 if return_mean else question.n_samples
    n_averaged = question.n_draws // n_kept
    factor_after = 1.0 if library_size == "latent" else library_size
    all_genes = np.array_equal(genes, np.arange(network.n_input_genes))
    rna = torch.zeros(n_kept, len(batch.cells), len(genes))
    protein = torch.zeros(n_kept, len(batch.cells), len(proteins))
    n_decoded_genes = network.n_input_genes if len(genes) else 0
    total = batch.zeros(n_decoded_genes)
    of_sample = batch.zeros(network.n_input_proteins)
    exact = return_mean and not scale.sum_to_one
    some_unanswered = question.shares is not None
    of_draw = replace(scale, sum_to_one=scale.sum_to_one and not some_unanswered)
    for i, draw in enumerate(question.draws(batch, genes=len(genes) > 0)):
        sample, position = divmod(i, question.n_decoded)
        slot = 0 if return_mean else sample
        of_rna = question.rna_share(i, batch) if len(genes) else None
        if of_rna is not None:
            sampled = draw.library_size
            factor = sampled if library_size == "latent" else torch.ones_like(sampled)
            if isinstance(of_rna, Tensor):
                factor = factor * of_rna * n_batches
            network.add_proportions(draw.decoded, factor, total)
        is_last = position == question.n_decoded - 1 and (sample + 1) * n_batches % n_averaged == 0
        if len(genes) and is_last:
            wanted = total if all_genes else total[:, genes]
            rna[slot] = (wanted * (factor_after / n_averaged)).cpu()
            total.zero_()
        share = question.share(i, batch)
        if len(proteins):
            foreground, background = of_draw.parts(
                draw.expecting_background() if exact else draw, question.noise, batch.keys
            )
            of_sample += (foreground + background) * share
            if position == question.n_decoded - 1:
                if scale.sum_to_one and some_unanswered:
                    of_sample /= of_sample.nansum(dim=1, keepdim=True)
                protein[slot] += of_sample[:, proteins].cpu()
                of_sample.zero_()
        if foreground_probability is not None:
            foreground_probability += draw.foreground_probability() * share
    protein *= n_kept / question.n_samples
    if foreground_probability is not None:
        foreground_probability *= 1 / question.n_samples
    return (rna[0], protein[0]) if return_mean else (rna, protein)


def protein_means(
    question: Question,
    batch: Minibatch,
    quantity: Callable[[Draw], Tensor],
    proteins: np.ndarray,
    *,
    return_mean: bool = True,
) -> Tensor:
    """Return the posterior mean of a quantity of each protein of a minibatch, (B, proteins).

    ``quantity`` gives it (B, T) at one sample, as do `Draw.foreground_probability` and
    `Draw.background_mean`; linear in beta, since means take beta's expectation given z.
    """
    n_kept = 1 if return_mean else question.n_samples
    kept = batch.zeros(question.network.n_input_proteins).repeat(n_kept, 1, 1)
    for i, draw in enumerate(question.draws(batch, genes=False)):
        slot = 0 if return_mean else i // question.n_decoded
        value = quantity(draw.expecting_background() if return_mean else draw)
        kept[slot] += value * question.share(i, batch)
    kept *= n_kept / question.n_samples
    wanted = kept[:, :, proteins].cpu()
    return wanted[0] if return_mean else wanted


def foreground_counts(
    question: Question, batch: Minibatch, proteins: np.ndarray
) -> sparse.csr_matrix:
    """Draw which counts of a minibatch are foreground; return these, (B, proteins), float32.

    z is drawn from q(z | cell), and then the component of each protein given z and its count: by the
    model, a count is of one component as a whole. What a panel lacks is NaN.
    """
    (draw,) = question.draws(batch, genes=False)
    pi = draw.expression().background_probability()
    is_foreground = 1 - drawn_background(pi, question.noise, draw.sample, batch.keys)
    counts = batch.y * is_foreground * question.share(0, batch)
    return sparse.csr_matrix(counts[:, proteins].cpu().numpy())


class _ExpressionOptions(FeatureOptions, total=False):
    library_size: ScaledLibrary
    sample_protein_mixing: bool
    scale_protein: bool
    include_protein_background: bool
    given_counts: bool
    unmeasured: WhereUnmeasured


class _StoredExpression(_ExpressionOptions, Stored): ...


class _ExpressionArrays(_ExpressionOptions):
    return_numpy: Literal[True]


class _ExpressionSamples(_ExpressionOptions):
    return_mean: Literal[False]


class _CountOptions(Sampling, total=False):
    protein_list: Sequence[str] | None


class _StoredCounts(_CountOptions, Stored): ...


@documented
class ExpressionQueries(Fitted):
    """What a model says of RNA and proteins, cell by cell."""

    @overload
    def get_normalized_expression(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_StoredExpression]
    ) -> Path: ...

    @overload
    def get_normalized_expression(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_ExpressionArrays]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def get_normalized_expression(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_ExpressionSamples]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def get_normalized_expression(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_ExpressionOptions]
    ) -> tuple[pd.DataFrame, pd.DataFrame]: ...

    def get_normalized_expression(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        library_size: ScaledLibrary = 1.0,
        n_samples: int = 1,
        sample_protein_mixing: bool = False,
        scale_protein: bool = False,
        include_protein_background: bool = False,
        given_counts: bool = True,
        unmeasured: WhereUnmeasured = "nan",
        return_mean: bool = True,
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> tuple[pd.DataFrame, pd.DataFrame] | tuple[np.ndarray, np.ndarray] | Path:
        """Return denoised RNA and protein.

        RNA is E[rho] times ``library_size``. Protein is the expected rate of foreground counts, given
        the cell's own count: P(foreground | z, y) E[rate | z, y, foreground], in counts, free of
        background and of the batch's protein efficiency, where the model has one; given z alone it
        is E[(1 - pi) beta alpha]. The expectation is over the posterior, by ``n_samples`` Monte Carlo
        samples of z, of which no more than one minibatch is held at a time. Decoded into another
        batch, a protein differs from its decoded mean by the same factor as in the cell's own batch.

        Parameters
        ----------
        {cells} {transform_batch} {features}
        library_size
            Number that RNA proportions are multiplied by, or "latent" for each cell's library size.
        {n_samples} {protein_scale} {given_counts} {unmeasured} {sample_means} {return_numpy}
        out
            Folder of a new zarr store to write to, in place of memory: it gets the groups "rna" and
            "protein", each of which `anndata.read_zarr` reads.
        {batch_size} {seed} {progress}

        Returns
        -------
        RNA (cells, genes) and protein (cells, proteins), NaN where the cell's panel lacks the protein,
        or RNA; with ``out``, its path.

        {name_error} {output_error}

        {fitted_model}
        >>> rna, protein = model.get_normalized_expression(n_samples=5, library_size=10_000)
        >>> rna.shape, protein.shape
        ((60, 30), (60, 5))
        """
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch,
            given_counts and len(proteins) > 0,
        )  # fmt: skip
        question = answering_for(self, question, proteins, unmeasured, genes=genes, warn=True)
        library_size = checked_library_size(library_size)
        scale = ProteinScale(sample_protein_mixing, scale_protein, include_protein_background)
        tables = {"rna": question.table(genes.names), "protein": question.table(proteins.names)}

        def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
            rna, protein = normalized_expression(
                question, batch, genes.positions, proteins.positions, library_size, scale,
                return_mean=return_mean,
            )  # fmt: skip
            return {"rna": rna.numpy(), "protein": protein.numpy()}

        found = question.rows(
            "denoised expression", tables, rows, out=out, each_sample=not return_mean
        )
        if isinstance(found, Path):
            return found
        rna, protein = found["rna"], found["protein"]
        if return_numpy or not return_mean:
            return rna, protein
        return tables["rna"].frame(rna), tables["protein"].frame(protein)

    @overload
    def get_denoised_counts(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_StoredCounts]
    ) -> Path: ...

    @overload
    def get_denoised_counts(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_CountOptions]
    ) -> sparse.csr_matrix: ...

    def get_denoised_counts(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        protein_list: Sequence[str] | None = None,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> sparse.csr_matrix | Path:
        """Return protein counts without background: each observed count, or 0 where it is background.

        Which counts are background is one draw given the counts, so that a count y is kept with the
        probability of `get_protein_foreground_probability`, P, and has mean P y over seeds. Use
        them for tools that need counts; other seeds show what the draw contributes to their results.
        RNA counts have no background in the model.

        Parameters
        ----------
        {cells} {protein_list}
        out
            Folder of a new zarr store to write to, in place of memory: it gets the group "protein",
            sparse, which `anndata.read_zarr` reads.
        {batch_size} {seed} {progress}

        Returns
        -------
        CSR matrix (cells, proteins) of whole numbers, float32, with NaN where a protein was not
        measured; with ``out``, its path.

        {name_error} {output_error}

        {fitted_model}
        >>> counts = model.get_denoised_counts(seed=1)
        >>> counts.shape, bool((counts.toarray() <= mdata["prot"].X).all())
        ((60, 5), True)
        """
        question = self._question(adata, indices, batch_size, progress, seed, given_counts=True)
        proteins = self._proteins(protein_list)
        question = answering_for(self, question, proteins, warn=True)
        with question.minibatches("denoised counts") as batches:
            parts = (foreground_counts(question, batch, proteins.positions) for batch in batches)
            if out is not None:
                return write_sparse(parts, "protein", question.table(proteins.names), out)
            counts: sparse.csr_matrix = sparse.vstack(list(parts), format="csr")
        return counts

    def _write_denoised(
        self,
        rna: RowTarget | None,
        protein: RowTarget,
        foreground_probability: RowTarget,
        *,
        library_size: float = 1.0,
        n_samples: int = 1,
        transform_batch: Names = None,
        unmeasured: WhereUnmeasured = "nan",
        warn: bool = False,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        """Write denoised RNA and proteins, and foreground probabilities, in one pass over the samples.

        The numbers are those of `get_normalized_expression` and `get_protein_foreground_probability`.

        Parameters
        ----------
        rna, protein, foreground_probability
            What takes the rows, one slice of all cells after the other: arrays of NumPy, HDF5 or zarr
            of shape (cells, genes) and (cells, proteins). RNA None: it is not wanted.
        library_size, n_samples, transform_batch, unmeasured, batch_size, seed, progress
            As in `get_normalized_expression`, which warns of what is NaN; ``warn``: whether to.
        """
        question = self._question(
            None, None, batch_size, progress, seed, n_samples, transform_batch, given_counts=True
        )
        wanted = self._genes([] if rna is None else None)
        proteins, scaled = self._proteins(None), checked_library_size(library_size)
        question = answering_for(self, question, proteins, unmeasured, genes=wanted, warn=warn)
        genes = wanted.positions
        with question.minibatches("denoised expression") as batches:
            start = 0
            for batch in batches:
                rows = slice(start, start + len(batch.cells))
                start = rows.stop
                probability = batch.zeros(question.network.n_input_proteins)
                of_rna, of_protein = normalized_expression(
                    question, batch, genes, proteins.positions, scaled,
                    foreground_probability=probability,
                )  # fmt: skip
                protein[rows] = of_protein.numpy()
                foreground_probability[rows] = probability.cpu().numpy()
                if rna is not None:
                    rna[rows] = of_rna.numpy()
