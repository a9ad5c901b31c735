"""Queries of counts drawn from the model, and of how they compare with those observed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import Cells
from totalvi.posterior.predictive_checks import LEVELS, FeatureChecks, predictive_checks
from totalvi.posterior.predictive_counts import predictive_counts
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asking, Data
from totalvi.posterior.rows import Table, write_counts

_CHECK_BATCH_SIZE = 256  # the checks hold some ten arrays of cells by genes


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


class PredictiveCheck(NamedTuple):
    """How counts drawn from the model compare with those observed.

    ``coverage_95`` is the share of counts inside the central 95 % predictive interval, ties broken at
    random: 0.95 if the model is true, however small the counts (Czado, Gneiting and Held, Biometrics
    2009). ``quantile_coverage_95`` takes quantiles of the samples as limits, both inside, as
    the paper of totalVI does; it is above 0.95 for small counts even if the model is true.

    Intervals of proteins come out wide, 95 % ones covering some 98 %: the posterior of the background,
    q(b | z), does not see the count, so the fit lowers the inverse dispersion until the negative
    binomial alone explains the spread of the background, which sampling b then adds once more.

    Parameters
    ----------
    table
        A row a feature, with ``modality`` ("rna" or "protein"), ``n_cells`` that measured it, observed
        and predicted ``mean``, ``cv`` (coefficient of variation: standard deviation / mean over cells;
        predicted: averaged over samples that have a count above zero) and ``zero_fraction``;
        ``coverage_*`` and ``quantile_coverage_*`` at 50, 80, 95 and 99 %; ``mae``, the mean over cells
        of ``|count - predictive mean|``; ``log_likelihood``, the mean over cells of
        ``log E[p(count)]``, the expectation over the posterior, in nats a count.
    summary
        A row a modality: the means over features of ``mae``, ``log_likelihood`` and, as ``cv_mae`` and
        ``zero_fraction_mae``, of the absolute difference of predicted and observed; and
        ``calibration_error``, the mean over features and levels of the squared difference of
        ``coverage_*`` and its level.
    calibration
        A row a modality and level: ``coverage``, the mean over features; ``calibration_error``, the
        mean over features of its squared difference from the level; and both by quantiles.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    calibration: pd.DataFrame


class PredictiveQueries(Asking):
    """What counts a model would expect, and whether those observed are like them."""

    def posterior_predictive_sample(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        n_samples: int = 1,
        *,
        transform_batch: str | None = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Any:
        """Return new counts for each cell, drawn given the cell's own counts.

        Drawn are z, l and b from their posterior; RNA from ``NB(l rho, r)``, set to zero with the
        dropout probability in a "zinb" model; whether each protein is background, with probability
        pi; and its count from ``NB(beta, r)`` or else ``NB(beta alpha, r)``, both means times the
        batch's protein efficiency, where the model has one. ``NB(m, r)`` has variance
        ``m + m^2 / r``. Unmeasured proteins are drawn as well.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`. A cell's counts depend on ``seed``, its name and the
            feature alone, not on which others are asked about.
        n_samples
            Counts drawn for each cell and feature.
        transform_batch
            Batch to decode every cell into. None: each cell's own.
        gene_list, protein_list
            Wanted features. None: all; an empty list: none.
        out
            Folder of a new zarr store to write to, in place of memory: it gets the groups "rna",
            sparse, and "protein", each of which `anndata.read_zarr` reads; with ``n_samples`` above
            1 they are in "sample_0" and so on.

        Returns
        -------
        `PredictiveSample`: RNA, sparse, and protein counts; with ``n_samples`` above 1 lists of them.
        With ``out``, its path.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a feature or batch is not known.
        OutputError
            When ``out`` exists or cannot be written.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> sample = model.posterior_predictive_sample(protein_list=["protein_0"])
        >>> sample.rna.shape, sample.protein.shape
        ((60, 30), (60, 1))
        """
        asked = self._asked(adata, indices)
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        codes = self._batch_codes(transform_batch)
        if len(codes) > 1:
            raise ValueError(
                f"transform_batch holds {len(codes)} batches; allowed is one, as counts of several "
                "cannot be averaged."
            )
        n_samples, noise = at_least_one("n_samples", n_samples), self._noise(seed)
        of_rna = Table(asked.cell_names, self._gene_names(genes))
        of_protein = Table(asked.cell_names, self._protein_names(proteins))
        with asked.stream(batch_size, "predictive counts", progress) as batches:
            parts = predictive_counts(
                self.module, batches, noise, genes, proteins,
                n_samples=n_samples, transform_batch=codes[0],
            )  # fmt: skip
            if out is not None:
                write_counts(parts, of_rna, of_protein, out, n_samples)
                return Path(out)
            by_cells, protein = zip(*parts, strict=True)
        rna = [sparse.vstack(some, format="csr") for some in zip(*by_cells, strict=True)]
        frames = [of_protein.frame(counts) for counts in np.concatenate(protein, axis=1)]
        single = n_samples == 1
        return PredictiveSample(
            rna=rna[0] if single else rna,
            protein=frames[0] if single else frames,
            cell_names=of_rna.cells,
            gene_names=pd.Index(of_rna.features),
        )

    def posterior_predictive_check(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        n_samples: int = 150,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        batch_size: int = _CHECK_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> PredictiveCheck:
        """Compare observed counts with counts drawn as by `posterior_predictive_sample`.

        The posterior of a cell is that given its own counts, so of cells held out from the fit
        (``indices=model.split.test``) it says how well unseen cells are reconstructed, not predicted
        blind. No sample is kept; memory goes with ``batch_size`` times the features.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        n_samples
            Counts drawn for each cell and feature. The paper of totalVI has 150.
        gene_list, protein_list
            Features to check. None: all; an empty list: none.

        Returns
        -------
        `PredictiveCheck`: a table by feature, a summary and the calibration of the intervals. A
        protein counts in the cells whose panel measured it.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a feature is not known.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> check = model.posterior_predictive_check(n_samples=20)
        >>> len(check.table), list(check.summary.index)
        (35, ['rna', 'protein'])
        """
        asked = self._asked(adata, indices)
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        n_samples, noise = at_least_one("n_samples", n_samples), self._noise(seed)
        with asked.stream(batch_size, "predictive checks", progress) as batches:
            checks = predictive_checks(
                self.module, batches, noise, genes, proteins, n_samples=n_samples
            )
        names = (self._gene_names(genes), self._protein_names(proteins))
        tables = {
            modality: _table(modality, features, check)
            for modality, features, check in zip(("rna", "protein"), names, checks, strict=True)
            if len(features)
        }
        if not tables:
            raise ValueError(
                "gene_list and protein_list are both empty; give at least one feature."
            )
        return PredictiveCheck(
            table=pd.concat(tables.values()),
            summary=pd.DataFrame({name: _summary(table) for name, table in tables.items()}).T,
            calibration=pd.concat(
                {name: _calibration(table) for name, table in tables.items()}, names=["modality"]
            ),
        )


def _table(modality: str, features: np.ndarray, checks: FeatureChecks) -> pd.DataFrame:
    columns: dict[str, object] = {"modality": modality}
    for name, values in checks._asdict().items():
        if values.ndim == 1:
            columns[name] = values
        else:
            columns |= {_at(name, level): row for level, row in zip(LEVELS, values, strict=True)}
    return pd.DataFrame(columns, index=pd.Index(features, name="feature"))


def _summary(table: pd.DataFrame) -> pd.Series:
    """Return means over the features that at least one cell measured."""
    return pd.Series(
        {
            "mae": table["mae"].mean(),
            "log_likelihood": table["log_likelihood"].mean(),
            "cv_mae": (table["predicted_cv"] - table["observed_cv"]).abs().mean(),
            "zero_fraction_mae": (
                (table["predicted_zero_fraction"] - table["observed_zero_fraction"]).abs().mean()
            ),
            "calibration_error": _calibration(table)["calibration_error"].mean(),
        }
    )


def _calibration(table: pd.DataFrame) -> pd.DataFrame:
    levels = pd.Index(LEVELS, name="level")
    columns = {}
    for prefix in ("", "quantile_"):
        by_level = [table[_at(f"{prefix}coverage", level)] for level in LEVELS]
        columns[f"{prefix}coverage"] = [coverage.mean() for coverage in by_level]
        columns[f"{prefix}calibration_error"] = [
            ((coverage - level) ** 2).mean()
            for level, coverage in zip(LEVELS, by_level, strict=True)
        ]
    return pd.DataFrame(columns, index=levels)


def _at(name: str, level: float) -> str:
    return f"{name}_{100 * level:.0f}"
