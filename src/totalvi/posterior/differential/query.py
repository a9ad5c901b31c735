"""Differential expression of genes and proteins between groups of cells."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch

from totalvi.data.cells import CiteData
from totalvi.errors import NotTrainedError
from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import Cells, check_choice, checked_number
from totalvi.posterior.differential.cell_pairs import sampled_scales
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
    warn_without_shared_batch,
)
from totalvi.posterior.differential.moments import StratumMoments, add_moments
from totalvi.posterior.differential.raw_counts import raw_counts
from totalvi.posterior.differential.table import differential_table
from totalvi.posterior.draws import CellNoise
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asked, Asking, Data, Names
from totalvi.posterior.scales import ScaleQuery


class DifferentialQueries(Asking):
    """What a model says of differences between groups of cells."""

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
        protein_prior_count: float = 0.1,
        scale_protein: bool = False,
        sample_protein_mixing: bool = False,
        include_protein_background: bool = False,
        *,
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
        gives P(\\|r\\| >= delta), mode "vanilla" P(h1 > h2).

        With ``unit="groups"``, h is the mean expression of the group: what the decoder says, corrected
        by what the group's own counts say, and as uncertain as counts and cells leave it. Effects
        are drawn towards what is usual in their comparison, the more the less is known of them. With
        ``unit="cells"``, h is that of single cells, and r is over random pairs of a cell of each
        group, as in the totalVI paper: it asks whether cells differ, not whether groups do.
        `totalvi.posterior.differential.comparison` says how the two fare on simulated truth.

        Parameters
        ----------
        adata, batch_size, seed, progress
            As in `get_latent_representation`.
        groupby
            Column of ``obs`` with the groups. It may have been added after the model was built.
        group1, group2
            Category or categories of it, each compared with category ``group2``. None: every
            category; with all other cells.
        idx1, idx2
            The two groups in place of ``groupby``: masks, positions, or texts that
            `pandas.DataFrame.query` takes, such as "cell_type == 'B' & batch == '1'". No ``idx2``: all
            cells not in the first.
        mode
            "change" or "vanilla".
        delta
            Smallest effect of interest, in log2. None: three robust standard deviations of the
            effects of genes in a comparison, noise left out, at least 0.1.
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
            c of proteins.
        sample_protein_mixing, scale_protein, include_protein_background
            As in `get_normalized_expression`.
        unit
            What is compared: "groups" or "cells".
        pseudocounts
            c of genes. None: 10 divided by the RNA counts of the smaller group, below which a
            proportion is more noise than signal.
        n_samples
            Posterior samples a cell, for ``unit="groups"``; groups of less than 200 cells get ten
            times as many.
        n_pairs
            Pairs of cells a comparison, for ``unit="cells"``.

        Returns
        -------
        One row a comparison and feature, the likeliest difference first. The index is the feature's
        name; a gene and a protein may share it and are told apart by ``modality``, "rna" or "protein".

        - ``comparison``, ``group1``, ``group2``: which groups.
        - In mode "change": ``proba_de``, ``proba_not_de``, ``bayes_factor`` (log odds); ``lfc_mean``,
          ``lfc_median``, ``lfc_std``, ``lfc_ci_low`` and ``lfc_ci_high`` (95 % credible interval) of
          r; ``delta``; ``is_de_fdr_<fdr_target>``.
        - In mode "vanilla": ``proba_m1`` = P(h1 > h2), ``proba_m2``, ``bayes_factor``.
        - ``scale1``, ``scale2``: h of the groups; ``pseudocounts``: c.
        - With ``all_stats``: ``raw_mean1``, ``raw_mean2`` (counts a cell),
          ``non_zeros_proportion1``, ``non_zeros_proportion2``.

        A protein is compared in cells whose panel measured it; where a group has none, its row is NaN
        and not called. With ``batch_correction`` the other cells count with what they would have shown
        in the batches that measured it.

        Memory: seven float64 values a group, batch and feature; with ``unit="cells"`` four bytes a
        feature and cell, of 10,000 cells at most.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a column, category or batch is not known.
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
        checked_number("protein_prior_count", protein_prior_count)
        checked_number("fdr_target", fdr_target, below=1.0)
        if delta is not None:
            checked_number("delta", delta, zero=True)
        if pseudocounts is not None:
            checked_number("pseudocounts", pseudocounts)
        codes = self._common_batches(batch_correction, batchid1, batchid2)
        n_samples = at_least_one("n_samples", n_samples)
        n_pairs = at_least_one("n_pairs", n_pairs)
        asked = self._asked(adata, None)
        groups = chosen_groups(asked.data, groupby, group1, group2, idx1, idx2)
        if not codes:
            warn_without_shared_batch(asked.data, groups)
        query = ScaleQuery(
            measured_by_batch=torch.from_numpy(_measured_by_batch(asked.data)),
            transform_batches=codes,
            sample_protein_mixing=sample_protein_mixing,
            scale_protein=scale_protein,
            include_protein_background=include_protein_background,
        )
        added = Pseudocounts(pseudocounts, protein_prior_count)
        noise = self._noise(seed)
        if unit == "groups":
            sums = self._moments(asked.data, groups, query, n_samples, noise, batch_size, progress)
            found = compare_groups(
                sums, groups.comparisons, len(self.schema.batch_names), added, delta,
                within_batches=not codes, scale_protein=scale_protein,
            )  # fmt: skip
        else:
            found = self._cells(
                asked.data, groups, query, added, delta, n_pairs, noise, batch_size, progress
            )
        genes, proteins = self._genes(None), self._proteins(None)
        return differential_table(
            found,
            groups,
            self._gene_names(genes),
            self._protein_names(proteins),
            raw_counts(asked.data, groups.part, groups.n_parts) if all_stats else None,
            mode,
            fdr_target,
        )

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

    def _moments(
        self,
        data: CiteData,
        groups: Groups,
        query: ScaleQuery,
        n_samples: int,
        noise: CellNoise,
        batch_size: int,
        progress: bool | None,
    ) -> StratumMoments:
        n_batches = len(self.schema.batch_names)
        stratum = groups.part * n_batches + data.batch
        sums = StratumMoments.zeros(
            groups.n_parts * n_batches, self.module.n_input_genes, self.module.n_input_proteins
        )
        for times, cells in by_group_size(groups.part):
            asked = Asked(self.module, data, cells)
            with asked.stream(batch_size, "differential expression", progress) as batches:
                add_moments(sums, self.module, batches, stratum, query, n_samples * times, noise)
        if not (np.isfinite(sums.rna.total).all() and np.isfinite(sums.foreground.total).all()):
            raise NotTrainedError(_NOT_FINITE)
        return sums

    def _cells(
        self,
        data: CiteData,
        groups: Groups,
        query: ScaleQuery,
        pseudocounts: Pseudocounts,
        delta: float | None,
        n_pairs: int,
        noise: CellNoise,
        batch_size: int,
        progress: bool | None,
    ) -> Differences:
        cells = cells_for_pairs(groups.part, np.random.default_rng(noise.seed))
        with Asked(self.module, data, cells).stream(
            batch_size, "differential expression", progress
        ) as batches:
            values = sampled_scales(self.module, batches, len(cells), query, noise)
        if not np.isfinite(values[: self.module.n_input_genes]).all():
            raise NotTrainedError(_NOT_FINITE)
        batch = data.batch[cells] if not query.transform_batches else np.zeros(len(cells))
        return compare_cells(
            values, groups.part[cells], batch, groups.comparisons, data.library_size[cells],
            pseudocounts, delta, n_pairs, self.module.n_input_genes, noise.seed,
        )  # fmt: skip


_NOT_FINITE = "The model gives scales that are not finite, so its fit failed; train it again."


def _measured_by_batch(data: CiteData) -> np.ndarray:
    """Return which proteins any cell of each batch measured, (batches, T)."""
    by_panel = np.array(data.schema.panel_measured)
    measured = np.zeros((len(data.schema.batch_names), by_panel.shape[1]), dtype=bool)
    for batch, panel in {*zip(data.batch.tolist(), data.panel.tolist(), strict=True)}:
        measured[batch] |= by_panel[panel]
    return measured
