"""Which cell types, and which parts of the latent space, hold more cells of one condition."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from totalvi.data.columns import column_of
from totalvi.data.describe import Data
from totalvi.errors import DataError, argument, did_you_mean
from totalvi.nn.config import at_least_one
from totalvi.posterior.aggregated_posterior import log_density_by_group
from totalvi.posterior.arguments import Cells, checked_number, documented
from totalvi.posterior.differential.differential_tables import adjusted
from totalvi.posterior.differential.groups import (
    Groups,
    Samples,
    conditions_within,
    describe_samples,
)
from totalvi.posterior.differential.moderated import Moderated, compare_samples
from totalvi.posterior.differential.sample_comparison import sample_design
from totalvi.posterior.latent import latent_distribution
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question

_PRIOR_COUNT = 0.5  # added to the cells of a type in the mean sample before a ratio is taken
_FEWEST_CELLS = 10  # of a type, in all samples of a comparison


@documented
class AbundanceQueries(Fitted):
    """The method `differential_abundance` of a model."""

    def differential_abundance(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        sample_key: str,
        condition_key: str | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        block_key: str | None = None,
        covariate_keys: Sequence[str] = (),
        min_cells: int = 10,
        fdr_target: float = 0.05,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Compare samples by how many cells they have of each type, or around each cell.

        Without ``condition_key``, it returns how dense each sample is, in the latent space, where each
        cell lies: the log density of the mean of q(u | cell) under each sample's aggregated posterior.
        The difference of two columns is the log ratio of abundances around the cell, each relative to
        its sample's size. It has no uncertainty. A cell is left out of the mixture of its own sample,
        which it would otherwise make look dense: the smaller the sample, the more.

        With ``condition_key``, conditions are compared over samples, the replicates, by the moderated t
        tests of `differential_expression` with ``sample_key``. With ``groupby``, the level of a sample
        is the log odds of a type, log2((n + a) / (N - n + a)) for n of its N cells, with a = 1/2 in the
        sample of mean size and in proportion to N (so that a rare type has the same odds in samples of
        all sizes), the sampling variance of a binomial count, and the variance between samples
        moderated over types. A type with fewer than 10 cells in all samples is not tested (NaN).
        Without it, the level is the log2 density at each cell. Shares of types add up to one: where one
        rises, others fall.

        Densities compare every cell with every other, in blocks: time grows with the square of the
        cells.

        Parameters
        ----------
        {cells} {batch_size}
        sample_key
            Column of ``obs`` with each cell's sample; cells without a value belong to none. The samples
            should not also be the model's batches, whose differences the model takes out of the
            latent space (counts of cells by ``groupby`` keep them).
        condition_key
            Column with the conditions to compare.
        groupby
            Column with cell types or clusters. None: around each cell.
        group1, group2
            Conditions, each compared with condition ``group2``. None: every other; the first.
        block_key, covariate_keys
            As of `differential_expression`.
        min_cells
            A sample with fewer cells does not count.
        fdr_target
            False discovery rate of the calls, over all rows (Benjamini-Hochberg).
        {progress}

        Returns
        -------
        Without ``condition_key``: data frame (cells, samples) of log densities in nats.

        With it, a row for each comparison and type or cell: ``comparison``, ``group1``, ``group2``;
        ``log2_ratio`` of odds or densities, ``log2_ratio_se``, ``ci_low``, ``ci_high`` (95 % confidence
        interval), ``df``, ``p_value``, ``p_adjusted``, ``is_da_fdr_<fdr_target>``; ``n_samples1``,
        ``n_samples2``, ``design`` (such as "paired"); and with ``groupby`` ``share1``, ``share2``, the
        mean shares of the samples.

        Raises
        ------
        DataError
            When a column is missing, holds no sample, a sample has fewer than two of the cells, or too
            few samples are left to compare.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, n_cell_types=3, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> model.differential_abundance(sample_key="cell_type").shape
        (60, 3)
        >>> mdata.obs["donor"] = [f"donor_{i % 4}" for i in range(60)]
        >>> mdata.obs["treatment"] = ["drug" if i % 2 else "none" for i in range(60)]
        >>> table = model.differential_abundance(
        ...     sample_key="donor", condition_key="treatment", groupby="cell_type", group2="none"
        ... )
        >>> table.index.tolist(), bool(table["is_da_fdr_0.05"].any())
        (['type_0', 'type_1', 'type_2'], False)
        """
        question = self._question(adata, indices, batch_size, progress)
        checked_number("fdr_target", fdr_target, below=1.0)
        if condition_key is None:
            if groupby is not None or block_key is not None or covariate_keys:
                raise ValueError(
                    "groupby, block_key and covariate_keys are for a comparison of conditions; give "
                    "condition_key too."
                )
            group, samples = _samples_of(question, sample_key)
            density = log_density_by_group(*latent_distribution(question), group, len(samples))
            return pd.DataFrame(density, index=question.cell_names, columns=samples)
        data = question.data
        if groupby == condition_key:
            raise ValueError(
                f"{argument('groupby')} and {argument('condition_key')} are both {groupby!r}; give "
                "groupby a column of cell types, or none."
            )
        groups, _ = conditions_within(
            data.annotation.obs(), condition_key, group1, group2, None, question.cells
        )
        described = describe_samples(data, groups, sample_key, block_key, covariate_keys)
        return _compared(
            question, groups, described, groupby, at_least_one("min_cells", min_cells), fdr_target
        )


def _compared(
    question: Question,
    groups: Groups,
    samples: Samples,
    groupby: str | None,
    min_cells: int,
    fdr_target: float,
) -> pd.DataFrame:
    """Return the table of conditions that `AbundanceQueries.differential_abundance` documents."""
    n_samples = len(samples.names)
    of_cell = np.where(
        (groups.part >= 0) & (samples.code >= 0), groups.part * n_samples + samples.code, -1
    )[question.cells]
    sizes = np.bincount(of_cell[of_cell >= 0], minlength=groups.n_parts * n_samples)
    used = np.flatnonzero(sizes >= max(min_cells, 2))
    number = np.full(groups.n_parts * n_samples + 1, -1)  # the last is that of code -1
    number[used] = np.arange(len(used))
    unit_of_cell = number[of_cell]
    if groupby is None:
        density = log_density_by_group(*latent_distribution(question), unit_of_cell, len(used))
        index, shares = question.cell_names, None
        levels = density.T / np.log(2)
        sampling = np.zeros_like(levels)
    else:
        column = column_of(question.data.annotation.obs(), "groupby", groupby)
        types = column.iloc[question.cells].astype("category").cat.remove_unused_categories()
        index = pd.Index(types.cat.categories.astype(str), name=groupby)
        counts = np.zeros((len(used), len(index)))
        known = (unit_of_cell >= 0) & (types.cat.codes.to_numpy() >= 0)
        np.add.at(counts, (unit_of_cell[known], types.cat.codes.to_numpy()[known]), 1)
        levels, sampling = log_odds_of_counts(counts)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    tables, notes = [], dict[str, None]()
    for comparison, names in zip(groups.comparisons, groups.names, strict=True):
        group = np.full(len(used), -1)
        for place, parts in enumerate(comparison):
            group[np.isin(used // n_samples, parts)] = place
        some = np.flatnonzero(group >= 0)
        units = pd.DataFrame({"sample": used[some] % n_samples, "group": group[some]})
        design, words, found = sample_design(units, samples, comparison, names)
        notes |= dict.fromkeys(found)
        if design is not None:
            of_some = levels[some]
            if shares is not None:
                of_some[:, counts[some].sum(axis=0) < _FEWEST_CELLS] = np.nan
            result = compare_samples(of_some, sampling[some], design)
            of_units = None if shares is None else shares[some]
            tables.append(_table(result, units, of_units, (*names, words), index))
    for note in notes:
        warnings.warn(note, stacklevel=4)
    if not tables or all(table["p_value"].isna().all() for table in tables):
        raise DataError(
            f"the conditions have too few samples with {min_cells} cells or more, or blocks and "
            "covariates that tell them apart by themselves; how much samples of a condition differ "
            "shows only with two or more in each. Without condition_key, it returns densities alone."
        )
    table = pd.concat(tables)
    table["p_adjusted"] = adjusted(table["p_value"].to_numpy())
    table[f"is_da_fdr_{fdr_target:g}"] = table["p_adjusted"] <= fdr_target
    return table


def log_odds_of_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log2 odds of each type in each sample, and their sampling variances.

    Parameters
    ----------
    counts
        Cells, (samples, types).

    Examples
    --------
    >>> odds, variance = log_odds_of_counts(np.array([[8.0, 8.0, 0.0]]))
    >>> odds.round(2).tolist(), bool(variance[0, 2] > variance[0, 0])
    ([[0.0, 0.0, -5.04]], True)
    """
    sizes = counts.sum(axis=1, keepdims=True)
    # in proportion to the sample, or a type without cells would be rarer in larger ones
    prior = _PRIOR_COUNT * np.maximum(sizes, 1) / max(float(sizes.mean()), 1)
    inside, outside = counts + prior, sizes - counts + prior
    return np.log2(inside / outside), (1 / inside + 1 / outside) / np.log(2) ** 2


def _table(
    result: Moderated,
    units: pd.DataFrame,
    shares: np.ndarray | None,
    names: tuple[str, str, str],
    index: pd.Index,
) -> pd.DataFrame:
    low, high = result.interval()
    inside = [(units["group"] == place).to_numpy() for place in (0, 1)]
    columns: dict[str, object] = {
        "comparison": " vs ".join(names[:2]),
        "group1": names[0],
        "group2": names[1],
        "log2_ratio": result.effect,
        "log2_ratio_se": result.error,
        "ci_low": low,
        "ci_high": high,
        "df": result.df,
        "p_value": result.p_value,
        "n_samples1": inside[0].sum(),
        "n_samples2": inside[1].sum(),
        "design": names[2],
    }
    if shares is not None:
        columns |= {
            f"share{place + 1}": shares[some].mean(axis=0) for place, some in enumerate(inside)
        }
    return pd.DataFrame(columns, index=index)


def _samples_of(question: Question, sample_key: str) -> tuple[np.ndarray, pd.Index]:
    """Return the code of each cell's sample, -1 for none, and the samples' names."""
    obs = question.data.annotation.obs()
    if sample_key not in obs:
        raise DataError(
            f"obs has no column {sample_key!r}; {did_you_mean(sample_key, obs.columns)}."
        )
    samples = pd.Categorical(obs[sample_key].iloc[question.cells]).remove_unused_categories()
    if not len(samples.categories):
        raise DataError(f"obs[{sample_key!r}] holds no sample; fill the column.")
    counts = np.bincount(samples.codes[samples.codes >= 0], minlength=len(samples.categories))
    if counts.min() < 2:
        alone = samples.categories[int(counts.argmin())]
        raise DataError(
            f"obs[{sample_key!r}]: sample {str(alone)!r} has one cell; a sample needs two or more, or "
            "leave its cell out by indices."
        )
    return np.asarray(samples.codes, dtype=np.int64), pd.Index(samples.categories, name=sample_key)
