"""Differential expression of genes and proteins between groups of cells."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from totalvi.data.describe import Data
from totalvi.errors import NotTrainedError
from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import (
    Cells,
    Names,
    check_choice,
    checked_number,
    documented,
)
from totalvi.posterior.differential import differential_tables as tables
from totalvi.posterior.differential.comparison import (
    Differences,
    Pseudocounts,
    Unit,
    compare_cells,
    compare_groups,
)
from totalvi.posterior.differential.groups import (
    Groups,
    by_group_size,
    cells_for_pairs,
    chosen_groups,
    conditions_within,
    describe_samples,
    warn_without_shared_batch,
)
from totalvi.posterior.differential.moments import (
    ScaleQuery,
    StratumMoments,
    add_moments,
    batch_weights,
    sampled_scales,
)
from totalvi.posterior.differential.sample_comparison import (
    SampleDifferences,
    compare_over_samples,
    sample_strata,
)
from totalvi.posterior.draws import ProteinScale
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.unmeasured import measured_by_batch, rna_in_batches, with_rna_of

_NOT_FINITE = "The model gives scales that are not finite, so its fit failed; train it again."


@documented
class DifferentialQueries(Fitted):
    """The method `differential_expression` of a model."""

    def differential_expression(
        self,
        adata: Data | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: Cells | str = None,
        idx2: Cells | str = None,
        mode: Literal["change", "vanilla"] = "change",
        delta: float | None = 0.25,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Names = None,
        batchid2: Names = None,
        fdr_target: float = 0.05,
        protein_prior_count: float | None = None,
        scale_protein: bool = False,
        sample_protein_mixing: bool = False,
        include_protein_background: bool = False,
        *,
        sample_key: str | None = None,
        condition_key: str | None = None,
        block_key: str | None = None,
        covariate_keys: Sequence[str] = (),
        min_cells: int = 10,
        unit: Unit = "groups",
        pseudocounts: float | None = None,
        n_samples: int = 1,
        n_pairs: int = 1000,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Compare genes and proteins between groups of cells.

        The effect of a feature is r = log2(h1 + c) - log2(h2 + c) with h the scale of each group (RNA
        proportions; foreground protein, E[(1 - pi) beta alpha]) and c a pseudocount. Mode "change"
        gives P(|r| >= delta), mode "vanilla" P(h1 > h2).

        With ``unit="groups"``, h is the mean expression of the group: the decoder's, corrected by
        the group's own counts, with the uncertainty from its counts and cells. Effects are shrunk
        towards the usual effect of their comparison, more strongly if they are uncertain. With
        ``unit="cells"``, h is that of single cells, and r is over random pairs of a cell of each
        group, as in the totalVI paper. It measures whether cells differ, not whether groups do. It
        calls no feature, since P(|r| >= delta) over pairs of cells is not the probability of a
        true discovery. `totalvi.posterior.differential.comparison` compares the two on simulated
        truth.

        Inference is about these cells: with enough of them, any two donors differ. Whether case and
        control differ needs samples of each. With ``sample_key``, each sample (donor) has one level of
        a group, the mean expression of its cells, and groups are compared over samples
        (`totalvi.posterior.differential.moderated` has the model): t tests of r = 0, with the variance
        between samples moderated over genes, and over proteins. Intervals and p-values are about the
        populations of donors. Samples that have cells of both groups are compared within themselves
        (a paired design), if most have. Batches of several samples are part of the design where they
        can be told from the groups; a warning says where not. r of genes is free of the shift that
        most genes share.

        The calls do not account for groups that were found in the same counts, such as clusters. If two
        clusters divide one population of cells, more calls than ``fdr_target`` are wrong;
        `totalvi.split_counts` gives counts for ``adata`` that took no part in finding them.

        Parameters
        ----------
        adata
            New data with the model's features, batches and annotation. None: the training data.
        groupby
            Column of ``obs`` with the groups. It may have been added after the model was built.
        group1, group2
            Category or categories of it, each compared with category ``group2``. None: every
            category; with all other cells.
        idx1, idx2
            The two groups instead of ``groupby``: masks, positions, or texts that
            `pandas.DataFrame.query` takes, such as "cell_type == 'B' & batch == '1'". No ``idx2``: all
            cells not in the first.
        mode
            "change" or "vanilla".
        delta
            Smallest effect of interest, in log2. None: three robust standard deviations of the
            effects of well-counted genes in a comparison, noise left out, at least 0.1.
        all_stats
            Whether to add raw means and expressing fractions.
        batch_correction
            Whether to decode both groups into the same batches. Otherwise cells keep their own batch
            and groups are compared within batches that have cells of both, with a warning where
            there is none.
        batchid1, batchid2
            Batches to decode into, averaged. None: all. Both must name the same.
        fdr_target
            Posterior expected false discovery rate of the calls, over genes and proteins together.
        protein_prior_count
            c of proteins. None: three standard errors of the mean background count of the smaller
            group (of the mean sample), below which no foreground is detected, but at least 0.1.
        {protein_scale}
        sample_key
            Column of ``obs`` with each cell's sample, which is what the experiment repeats: a donor, a
            mouse. Not used then: ``mode``, ``delta``, and ``unit``, which must keep their defaults.
        condition_key
            With ``sample_key``: column of ``obs`` with conditions, which are compared within each
            category of ``groupby``, or in all cells (or those of ``idx1``) without it. ``group1`` and
            ``group2`` are conditions then; no ``group2``: the first.
        block_key
            With ``sample_key``: column with the block of each sample, within which samples are
            compared, such as the donor of samples before and after.
        covariate_keys, min_cells
            With ``sample_key``: columns whose effects on samples are taken out, such as sex and age
            (the mean of a sample's cells); and the fewest cells with which a sample counts in a group.
        unit
            What is compared: "groups" or "cells".
        pseudocounts
            c of genes. None: 10 divided by the RNA counts of the smaller group, below which a
            proportion is more noise than signal.
        n_samples
            Posterior samples of each cell, for ``unit="groups"``; groups of fewer than 200 cells get
            ten times as many.
        n_pairs
            Pairs of cells in a comparison, for ``unit="cells"``.
        {batch_size} {seed} {progress}

        Returns
        -------
        One row for each comparison and feature, the likeliest difference first. The index is the
        feature's name; a gene and a protein may share it and are told apart by ``modality``, "rna" or
        "protein".

        - ``comparison``, ``group1``, ``group2``: which groups.
        - In mode "change": ``proba_de``, ``proba_not_de``, ``bayes_factor`` (log odds); ``lfc_mean``,
          ``lfc_median``, ``lfc_std``, ``lfc_ci_low`` and ``lfc_ci_high`` (95 % credible interval) of
          r; ``delta``; with ``unit="groups"``, ``lfc_unshrunk`` and ``lfc_unshrunk_se`` (estimate of r
          without the prior, and its standard error) and ``is_de_fdr_<fdr_target>``.
        - In mode "vanilla": ``proba_m1`` = P(h1 > h2), ``proba_m2``, ``bayes_factor``.
        - ``scale1``, ``scale2``: h of the groups; ``pseudocounts``: c.
        - With ``all_stats``: ``raw_mean1``, ``raw_mean2`` (counts per cell),
          ``non_zeros_proportion1``, ``non_zeros_proportion2``.

        - With ``sample_key`` instead: ``comparison``, ``group1``, ``group2`` and, with
          ``condition_key``, ``within``; ``lfc_mean``, ``lfc_se``, ``lfc_ci_low``, ``lfc_ci_high``
          (95 % confidence interval), ``df`` (``df_residual``: without the prior); ``p_value``,
          ``p_adjusted`` (Benjamini-Hochberg, over all rows), ``is_de_fdr_<fdr_target>``; ``sample_sd``,
          the standard deviation of the samples of a group in r; ``n_samples1``, ``n_samples2``;
          ``design``, such as "paired + batches"; and the columns of the last two items. c of genes
          is 2 counts in the sample of median size, unless ``pseudocounts`` is given. A feature with
          fewer than 10 counts in all samples, and a protein with fewer than 2 foreground cells in the
          mean sample, is not tested (NaN).

        ``attrs["inference"]`` of the table says what inference is about.

        A protein is compared in cells whose panel measured it; where a group has none, its row is NaN
        and not called. With ``batch_correction`` the other cells count with what they would have shown
        in the batches that measured it.

        Memory: five float64 values for each group, batch and gene; with ``unit="cells"`` four bytes
        for each feature and cell, of 10,000 cells at most.

        Raises
        ------
        ValueError
            When an argument has a value that is not allowed, or a column, category or batch is not
            known.
        DataError
            When a column of samples is missing, or too few samples are left to compare.
        NotTrainedError
            When the model was not trained, its fit failed, or its weights are not finite.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=80, n_genes=30, n_proteins=5, n_cell_types=2, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> table = model.differential_expression(groupby="cell_type", group1="type_0")
        >>> table.shape[0], table["comparison"].unique().tolist()
        (35, ['type_0 vs Rest'])
        """
        check_choice("mode", mode, ("change", "vanilla"))
        check_choice("unit", unit, ("groups", "cells"))
        if protein_prior_count is not None:
            checked_number("protein_prior_count", protein_prior_count)
        checked_number("fdr_target", fdr_target, below=1.0)
        if delta is not None:
            checked_number("delta", delta, zero=True)
        if pseudocounts is not None:
            checked_number("pseudocounts", pseudocounts)
        codes = self._common_batches(batch_correction, batchid1, batchid2)
        n_pairs = at_least_one("n_pairs", n_pairs)
        question = self._question(adata, None, batch_size, progress, seed, n_samples)
        data = question.data
        codes = with_rna_of(codes, rna_in_batches(self, data))
        question = replace(question, transform_batch=(None, *codes))  # its own made a cell's counts
        query = ScaleQuery(
            ProteinScale(sample_protein_mixing, scale_protein, include_protein_background),
            batch_weights(measured_by_batch(data), codes),
        )
        added = Pseudocounts(pseudocounts, protein_prior_count)
        names = self._genes(None).names, self._proteins(None).names
        if sample_key is not None:
            _check_with_samples(mode, delta, unit)
            found, groups, within = over_samples(
                question, query, added, sample_key, condition_key, block_key, covariate_keys,
                at_least_one("min_cells", min_cells), (groupby, group1, group2, idx1, idx2),
            )  # fmt: skip
            raw = tables.raw_counts(data, groups.part, groups.n_parts) if all_stats else None
            return tables.sample_table(found, groups, within, *names, raw, fdr_target)
        _check_without_samples(condition_key, block_key, covariate_keys)
        groups = chosen_groups(data, groupby, group1, group2, idx1, idx2).with_rna(data, drop=True)
        if not codes:
            warn_without_shared_batch(data, groups)
        if unit == "groups":
            differences = compare_groups(
                _group_moments(question, groups, query), groups.comparisons,
                len(self.schema.batch_names), added, delta,
                within_batches=not codes, scale_protein=scale_protein,
            )  # fmt: skip
        else:
            differences = _cell_differences(question, groups, query, added, delta, n_pairs)
        raw = tables.raw_counts(data, groups.part, groups.n_parts) if all_stats else None
        target = fdr_target if unit == "groups" else None
        return tables.differential_table(differences, groups, *names, raw, mode, target)

    def _common_batches(self, wanted: bool, first: Names, second: Names) -> tuple[int, ...]:
        """Return the codes of the batches both groups are decoded into; none: their own."""
        if not wanted:
            if first is not None or second is not None:
                raise ValueError(
                    "batchid1 and batchid2 are for batch_correction=True, which is False."
                )
            return ()
        everything = list(self.schema.batch_names)
        first = second if first is None else first
        codes = [
            self._batch_codes(everything if names is None else names)
            for names in (first, first if second is None else second)
        ]
        if set(codes[0]) != set(codes[1]):
            raise ValueError(
                f"batchid1 is {first!r} and batchid2 {second!r}; give both the same batches, or only "
                "one of them."
            )
        return tuple(code for code in codes[0] if code is not None)


def _check_with_samples(mode: str, delta: float | None, unit: str) -> None:
    given = {"mode": (mode, "change"), "delta": (delta, 0.25), "unit": (unit, "groups")}
    for name, (value, default) in given.items():
        if value != default:
            raise ValueError(
                f"{name} is {value!r}, which sample_key does not use: it tests whether an effect is 0; "
                "leave it out."
            )


def _check_without_samples(
    condition_key: str | None, block_key: str | None, covariate_keys: Sequence[str]
) -> None:
    keys = ("condition_key", "block_key", "covariate_keys")
    for name, value in zip(keys, (condition_key, block_key, covariate_keys), strict=True):
        if value:
            raise ValueError(f"{name} is for a comparison over samples; give sample_key too.")


def over_samples(
    question: Question,
    query: ScaleQuery,
    pseudocounts: Pseudocounts,
    sample_key: str,
    condition_key: str | None,
    block_key: str | None,
    covariate_keys: Sequence[str],
    min_cells: int,
    chosen: tuple[str | None, str | Sequence[str] | None, str | None, Cells | str, Cells | str],
) -> tuple[list[SampleDifferences], Groups, list[str] | None]:
    """Compare groups over samples, in one pass over the cells.

    Parameters
    ----------
    chosen
        ``groupby``, ``group1``, ``group2``, ``idx1`` and ``idx2``.
    """
    data, within = question.data, None
    groupby, group1, group2, idx1, idx2 = chosen
    if condition_key is None:
        groups = chosen_groups(data, *chosen)
    elif idx2 is not None:
        raise ValueError("idx2 does not go with condition_key; give group1 and group2 conditions.")
    else:
        obs = data.annotation.obs()
        groups, within = conditions_within(obs, condition_key, group1, group2, groupby, idx1)
    groups = groups.with_rna(data)
    if any(set(first) & set(second) for first, second in groups.comparisons):
        raise ValueError("idx1 and idx2 share cells, which sample_key cannot compare; part them.")
    samples = describe_samples(data, groups, sample_key, block_key, covariate_keys)
    place, stratum, n_strata = sample_strata(groups, samples)
    part = np.where(stratum >= 0, groups.part, -1)
    sums = _moments(question, part, stratum, n_strata, query)
    found = compare_over_samples(
        sums, place, groups, samples, pseudocounts, min_cells,
        scale_protein=query.protein.sum_to_one,
    )  # fmt: skip
    return found, groups, within


def _group_moments(question: Question, groups: Groups, query: ScaleQuery) -> StratumMoments:
    """Return the sums over each part of the cells in each batch."""
    n_batches = len(question.data.schema.batch_names)
    stratum = groups.part * n_batches + question.data.batch
    return _moments(question, groups.part, stratum, groups.n_parts * n_batches, query)


def _moments(
    question: Question, part: np.ndarray, stratum: np.ndarray, n_strata: int, query: ScaleQuery
) -> StratumMoments:
    """Return the sums over strata of the cells that are in a part."""
    network = question.network
    sums = StratumMoments.zeros(n_strata, network.n_input_genes, network.n_input_proteins)
    for times, cells in by_group_size(part):
        some = replace(question, cells=cells, n_samples=question.n_samples * times)
        add_moments(sums, some, stratum, query)
    if not (np.isfinite(sums.rna.total).all() and np.isfinite(sums.foreground.total).all()):
        raise NotTrainedError(_NOT_FINITE)
    return sums


def _cell_differences(
    question: Question,
    groups: Groups,
    query: ScaleQuery,
    pseudocounts: Pseudocounts,
    delta: float | None,
    n_pairs: int,
) -> Differences:
    """Compare cells in pairs, by one sample of each."""
    data, seed, n_genes = question.data, question.noise.seed, question.network.n_input_genes
    cells = cells_for_pairs(groups.part, np.random.default_rng(seed))
    values = sampled_scales(replace(question, cells=cells, n_samples=1), query)
    if not np.isfinite(values[:n_genes]).all():
        raise NotTrainedError(_NOT_FINITE)
    batch = np.zeros(len(cells)) if len(query.batch_weights) else data.batch[cells]
    return compare_cells(
        values, groups.part[cells], batch, groups.comparisons, data.library_size[cells],
        pseudocounts, delta, n_pairs, n_genes, seed,
    )  # fmt: skip
