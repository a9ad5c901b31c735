"""The distributions of counts given a cell: their parameters, and counts drawn from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Unpack, overload

import numpy as np
import pandas as pd
from scipy import sparse
from torch import Tensor

from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import (
    Cells,
    FeatureOptions,
    Names,
    Sampling,
    Stored,
    WhereUnmeasured,
    documented,
)
from totalvi.posterior.calibration import predictive_proteins
from totalvi.posterior.draws import (
    Draw,
    gene_counts,
    gene_parameters,
    protein_counts,
    protein_mixture,
)
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.rows import write_counts
from totalvi.posterior.unmeasured import answering_for


class PredictiveSample(NamedTuple):
    """Counts drawn for each cell from the posterior predictive distribution.

    Parameters
    ----------
    rna
        CSR matrix (cells, genes), float32; of several samples, a list of them.
    protein
        Data frame (cells, proteins); of several samples, a list of them.
    cell_names, gene_names
        Of the rows and columns of ``rna``.
    """

    rna: sparse.csr_matrix | list[sparse.csr_matrix]
    protein: pd.DataFrame | list[pd.DataFrame]
    cell_names: pd.Index
    gene_names: pd.Index


def mean_parameters(
    question: Question, batch: Minibatch, genes: np.ndarray, proteins: np.ndarray
) -> dict[str, Tensor]:
    """Return the posterior mean of each parameter of the counts' distributions, (B, features).

    They are "mean" and, for "zinb", "dropout" of RNA; "protein_background_mean",
    "protein_foreground_mean" and "protein_mixing". What a panel lacks is answered as the question says.
    """
    totals: dict[str, Tensor] = {}
    for i, draw in enumerate(question.draws(batch)):
        rna_share = question.rna_share(i, batch)
        of_rna, rna_share = (genes[:0], 0.0) if rna_share is None else (genes, rna_share)
        share = question.share(i, batch)
        of_protein = share[:, proteins] if isinstance(share, Tensor) else share
        for name, value in _parameters(question, draw, of_rna, proteins).items():
            value *= of_protein if name.startswith("protein_") else rna_share
            totals[name] = totals[name].add_(value) if name in totals else value
    return {name: total / question.n_samples for name, total in totals.items()}


def _parameters(
    question: Question, draw: Draw, genes: np.ndarray, proteins: np.ndarray
) -> dict[str, Tensor]:
    protein = protein_mixture(question.network, draw, proteins)
    values = {
        "protein_background_mean": protein.background_mean(),
        "protein_foreground_mean": protein.log_foreground.exp(),
        "protein_mixing": protein.background_probability(),
    }
    if len(genes):
        gene = gene_parameters(question.network, draw, genes)
        values["mean"] = gene.log_mean.exp()
        if gene.dropout_logit is not None:
            values["dropout"] = gene.dropout_logit.sigmoid()
    return values


def predictive_counts(
    question: Question, batch: Minibatch, genes: np.ndarray, proteins: np.ndarray
) -> tuple[list[sparse.csr_matrix], np.ndarray]:
    """Draw counts for a minibatch: z, l, b and background or foreground, then the counts.

    Returns
    -------
    RNA, one CSR matrix (B, genes) for each sample, and protein (n_samples, B, proteins), float32; what
    a panel lacks is answered as the question says, each count by one of the batches decoded into.
    """
    network, noise = question.network, question.noise
    rna: list[sparse.csr_matrix] = []
    protein = np.full((question.n_samples, len(batch.cells), len(proteins)), np.nan, np.float32)
    for i, draw in enumerate(question.draws(batch)):
        position = i % question.n_decoded
        if position == 0:
            rna.append(sparse.csr_matrix(np.zeros((len(batch.cells), len(genes)), np.float32)))
        if len(genes) and question.rna_share(i, batch) is not None:
            parameters = gene_parameters(network, draw, genes)
            counts = gene_counts(parameters, noise, draw.sample, batch.keys, genes)
            rna[-1] = _of_answering_batch(question, batch, draw.sample, position, counts, rna[-1])
        of_draw = protein_counts(
            network, predictive_proteins(question, draw, proteins), noise, draw.sample,
            batch.keys, proteins,
        )  # fmt: skip
        answers = _answers(question, batch, draw.sample, position)[:, proteins]
        protein[draw.sample] = np.where(answers, of_draw, protein[draw.sample])
    return rna, protein


def _of_answering_batch(
    question: Question,
    batch: Minibatch,
    sample: int,
    position: int,
    counts: np.ndarray,
    before: sparse.csr_matrix,
) -> sparse.csr_matrix:
    """Return RNA counts of a sample, each cell's of one batch, as `_answers` says of proteins."""
    if question.rna_shares is None:
        return sparse.csr_matrix(counts)
    shares = question.rna_shares[batch.context.panel]
    ends = shares.cumsum(dim=1)
    at = question.noise.uniform("batch", sample, batch.keys, 1).to(ends.device)[:, 0] * ends[:, -1]
    answers = at < ends[:, position]
    if position:
        answers &= at >= ends[:, position - 1]
    unanswered = ends[:, -1].isnan()
    counts[unanswered.cpu().numpy()] = np.nan
    keep = (answers | unanswered).cpu().numpy()
    found: sparse.csr_matrix = before + sparse.csr_matrix(counts * keep[:, None])
    return found


def _answers(question: Question, batch: Minibatch, sample: int, position: int) -> np.ndarray:
    """Return which protein counts of a sample are of the batch decoded into at a position, (B, T).

    Each is of one batch, drawn with the shares that the batches have in its mean; NaN of none.
    """
    if question.shares is None:
        return np.ones((len(batch.cells), question.network.n_input_proteins), dtype=bool)
    ends = question.shares[batch.context.panel].cumsum(dim=1)
    uniform = question.noise.uniform("batch", sample, batch.keys, 1).to(ends.device)
    at = uniform * ends[:, -1]
    answers = at < ends[:, position]
    if position:
        answers &= at >= ends[:, position - 1]
    found: np.ndarray = answers.cpu().numpy()
    return found


class _SampleOptions(Sampling, total=False):
    transform_batch: str | None
    gene_list: Sequence[str] | None
    protein_list: Sequence[str] | None
    unmeasured: WhereUnmeasured


class _ParameterOptions(FeatureOptions, total=False):
    unmeasured: WhereUnmeasured


class _StoredParameters(_ParameterOptions, Stored): ...


class _ParameterArrays(_ParameterOptions):
    return_numpy: Literal[True]


class _StoredSample(_SampleOptions, Stored): ...


@documented
class PredictiveQueries(Fitted):
    """What a model says of how counts are distributed, and counts that it would expect."""

    @property
    def calibration_cells(self) -> np.ndarray:
        """Positions of the validation cells that calibrated the intervals of counts, ascending.

        What is said of these intervals must come from other cells.
        """
        calibration = None if self._result is None else self._result.calibration
        return np.array([], dtype=np.int64) if calibration is None else calibration.cells

    @overload
    def get_likelihood_parameters(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_StoredParameters]
    ) -> Path: ...

    @overload
    def get_likelihood_parameters(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_ParameterArrays]
    ) -> dict[str, np.ndarray]: ...

    @overload
    def get_likelihood_parameters(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_ParameterOptions]
    ) -> dict[str, pd.DataFrame]: ...

    def get_likelihood_parameters(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        unmeasured: WhereUnmeasured = "nan",
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> dict[str, pd.DataFrame] | dict[str, np.ndarray] | Path:
        """Return the parameters of the distributions of the counts, as posterior means.

        RNA counts are ``NB(mean, r)``, set to zero with probability ``dropout`` in a "zinb" model;
        protein counts ``mixing NB(background mean, r) + (1 - mixing) NB(foreground mean, r)``;
        ``NB(m, r)`` has variance ``m + m^2 / r``. The protein means are those of the counts: the
        batch's protein efficiency, where the model has one, is in them.

        Parameters
        ----------
        {cells} {transform_batch} {features} {n_samples} {unmeasured} {return_numpy}
        out
            Folder of a new zarr store to write to, in place of memory: it gets one group a
            parameter, each of which `anndata.read_zarr` reads.
        {batch_size} {seed} {progress}

        Returns
        -------
        Data frames by name of the parameter: "mean" and, for "zinb", "dropout" (cells, genes);
        "protein_background_mean", "protein_foreground_mean" and "protein_mixing", the probability of
        background, (cells, proteins), NaN where the cell's panel lacks the protein; "dispersions" and
        "protein_dispersions", the inverse dispersions r, with one row, or one a batch or label where
        they differ by it. With ``out``, its path.

        {name_error} {output_error}

        {fitted_model}
        >>> parameters = model.get_likelihood_parameters()
        >>> parameters["mean"].shape, parameters["protein_mixing"].shape
        ((60, 30), (60, 5))
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch
        )
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        question = answering_for(self, question, proteins, unmeasured, genes=genes, warn=True)
        network = self.module
        rna, protein = question.table(genes.names), question.table(proteins.names)
        tables = {
            "mean": rna,
            "protein_background_mean": protein,
            "protein_foreground_mean": protein,
            "protein_mixing": protein,
            "dispersions": rna._replace(cells=self._groups(network.gene_dispersion)),
            "protein_dispersions": protein._replace(cells=self._groups(network.protein_dispersion)),
        }
        if network.decoder.dropout_head is not None:
            tables["dropout"] = rna
        gene_r = network.gene_log_r.detach().exp()[:, genes.positions]
        protein_r = network.protein_log_r.detach().exp()[:, proteins.positions]

        def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
            means = mean_parameters(question, batch, genes.positions, proteins.positions)
            return {name: mean.cpu().numpy() for name, mean in means.items()}

        found = question.rows(
            "likelihood parameters", tables, rows, out=out,
            without_cells={"dispersions": gene_r.numpy(), "protein_dispersions": protein_r.numpy()},
        )  # fmt: skip
        if isinstance(found, Path) or return_numpy:
            return found
        return {name: table.frame(found[name]) for name, table in tables.items()}

    def _groups(self, dispersion: str) -> pd.Index:
        """Return the names of the batches or labels by which inverse dispersions differ."""
        schema = self.schema
        names = {"batch": schema.batch_names, "label": schema.label_names}
        return pd.Index(names.get(dispersion.partition("-")[2]) or ("all cells",))

    @overload
    def posterior_predictive_sample(
        self,
        adata: Data | None = ...,
        indices: Cells = ...,
        n_samples: int = ...,
        **options: Unpack[_StoredSample],
    ) -> Path: ...

    @overload
    def posterior_predictive_sample(
        self,
        adata: Data | None = ...,
        indices: Cells = ...,
        n_samples: int = ...,
        **options: Unpack[_SampleOptions],
    ) -> PredictiveSample: ...

    def posterior_predictive_sample(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        n_samples: int = 1,
        *,
        transform_batch: str | None = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        unmeasured: WhereUnmeasured = "nan",
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> PredictiveSample | Path:
        """Return new counts for each cell, drawn given the cell's own counts.

        Drawn are z, l and b from their posterior; RNA from ``NB(l rho, r)``, set to zero with the
        dropout probability in a "zinb" model; whether each protein is background, with probability
        pi; and its count from ``NB(beta, r)`` or else ``NB(beta alpha, r)``, both means times the
        batch's protein efficiency, where the model has one. ``NB(m, r)`` has variance
        ``m + m^2 / r``.

        Parameters
        ----------
        {cells}
        n_samples
            Counts drawn for each cell and feature.
        transform_batch
            Batch to decode every cell into. None: each cell's own.
        {features}
        unmeasured
            What is returned of a protein that the cell's panel lacks: "nan", with a `DataWarning`; or
            "impute", a count drawn as in a batch that measured the protein, ``transform_batch`` or
            any of those that did, in equal shares.
        out
            Folder of a new zarr store to write to, in place of memory: it gets the groups "rna",
            sparse, and "protein", each of which `anndata.read_zarr` reads; with ``n_samples`` above
            1 they are in "sample_0" and so on.
        {batch_size}
        seed
            Of the samples. A cell's counts depend on it, on the cell's name and on the feature alone,
            not on which others the query is about.
        {progress}

        Returns
        -------
        `PredictiveSample`: RNA, sparse, and protein counts, whole numbers in float32 with NaN where
        the cell's panel lacks the protein; with ``n_samples`` above 1 lists of them. With ``out``, its
        path.

        {name_error} {output_error}

        {fitted_model}
        >>> sample = model.posterior_predictive_sample(protein_list=["protein_0"])
        >>> sample.rna.shape, sample.protein.shape
        ((60, 30), (60, 1))
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch
        )
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        if len(question.transform_batch) > 1:
            raise ValueError(
                f"transform_batch holds {len(question.transform_batch)} batches; allowed is one, as "
                "counts of several cannot be averaged."
            )
        question = answering_for(self, question, proteins, unmeasured, genes=genes, warn=True)
        rna_table, protein_table = question.table(genes.names), question.table(proteins.names)
        with question.minibatches("predictive counts") as batches:
            parts = (
                predictive_counts(question, batch, genes.positions, proteins.positions)
                for batch in batches
            )
            if out is not None:
                write_counts(parts, rna_table, protein_table, out, n_samples)
                return Path(out)
            rna_parts, protein_parts = zip(*parts, strict=True)
        rna = [sparse.vstack(some, format="csr") for some in zip(*rna_parts, strict=True)]
        protein = [protein_table.frame(counts) for counts in np.concatenate(protein_parts, axis=1)]
        single = n_samples == 1
        return PredictiveSample(
            rna=rna[0] if single else rna,
            protein=protein[0] if single else protein,
            cell_names=rna_table.cells,
            gene_names=pd.Index(rna_table.features),
        )
