"""Queries of proteins that were not measured, and of how far they can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData
from totalvi.errors import DataError
from totalvi.posterior.arguments import Cells, checked_number
from totalvi.posterior.imputation import predicted_proteins, write_imputed
from totalvi.posterior.question import QUERY_BATCH_SIZE, Data, Names
from totalvi.posterior.reliability import (
    HidingProteins,
    calibrated_probabilities,
    reliability_table,
)
from totalvi.posterior.rows import Table, row_targets

_PARTS = ("mean", "sd", "log1p", "lower", "upper")


class ImputedProteins(NamedTuple):
    """What the counts of proteins would be, each a data frame (cells, proteins).

    Parameters
    ----------
    mean, sd
        Mean and standard deviation of the predicted count, background and noise of counting included.
    log1p
        Mean of log(1 + count), the closest guess of a count's logarithm.
    lower, upper
        Limits of the predictive interval, whole numbers.
    lacking
        Whether the cell's panel lacks the protein. What it measured is predicted as well, from the
        cell's own count among others.
    """

    mean: pd.DataFrame
    sd: pd.DataFrame
    log1p: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    lacking: pd.DataFrame


class ImputationQueries(HidingProteins):
    """What a model says of proteins that a cell's panel lacks."""

    def impute_proteins(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        interval: float = 0.9,
        calibrated: bool = True,
        n_samples: int = 100,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Any:
        """Return what the counts of proteins would be, and how sure that is.

        The counts are those expected of the posterior predictive distribution: z and b from the cell's
        posterior, then NB(beta, r) with probability pi and else NB(beta alpha, r). Mean and standard
        deviation are exact given ``n_samples`` of z and b; the mean is
        ``get_normalized_expression(include_protein_background=True)``. ``log1p`` and the interval come
        from a count drawn at each sample.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        transform_batch
            Batch or batches to decode into, averaged. None: for each protein those that measured it,
            whatever else is asked about. Those of a mapped query's reference count where all of its
            panels have the protein, or each batch is a panel. A protein that a query then knows no
            batch of is decoded in each cell's own, which started from the reference's.
        protein_list
            Wanted proteins. None: all.
        interval
            Probability of the interval from ``lower`` to ``upper``, below 1.
        calibrated
            Whether the interval is corrected, protein by protein, to hold that share of the counts of
            cells that the fit held out, with their proteins hidden as in the cell's panel. Needs the
            training data where a cell lacks a protein. Of a mapped query, whose own cells tell nothing
            of what all of them lack, those intervals stay as the model gives them. No limit lies beyond
            the counts drawn, so a poor fit needs more ``n_samples``, or to be trained longer.
        n_samples
            Posterior samples a cell, and counts drawn for each value; those of a minibatch are held.
        out
            Folder of a new zarr store to write to, in place of memory: it gets the groups "mean",
            "sd", "log1p", "lower" and "upper", each of which `anndata.read_zarr` reads.

        Returns
        -------
        `ImputedProteins`; with ``out``, its path.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a protein or batch is not known.
        DataError
            When the interval is to be calibrated without training data or held-out cells.
        OutputError
            When ``out`` exists or cannot be written.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(
        ...     n_cells=80, n_genes=30, n_proteins=5, n_batches=2, n_unmeasured=2, seed=1
        ... )
        >>> model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> imputed = model.impute_proteins(n_samples=20)
        >>> imputed.mean.shape, bool((imputed.lower <= imputed.upper).all(axis=None))
        ((80, 5), True)
        """
        asked = self._asked(adata, indices)
        query = self._imputation_query(asked.data, transform_batch, protein_list, n_samples)
        interval = checked_number("interval", interval, below=1)
        noise = self._noise(seed)
        lacking = self._lacking()[:, query.proteins]
        limits = np.array([(1 - interval) / 2, (1 + interval) / 2])[:, None]
        probabilities = np.tile(limits, (len(lacking), 1, len(query.proteins)))
        if calibrated:
            for panel, batches in _panels(asked.data, asked.cells, np.any(lacking, axis=1)):
                hidden = self._hidden(self._held_out(), panel, batches, query, batch_size, noise)
                probabilities[panel] = calibrated_probabilities(hidden, interval)
        table = Table(asked.cell_names, self._protein_names(query.proteins))
        with (
            row_targets(dict.fromkeys(_PARTS, table), out) as targets,
            asked.stream(batch_size, "imputed proteins", progress, out=out) as stream,
        ):
            predictions = predicted_proteins(self.module, stream, query, noise)
            write_imputed(predictions, probabilities, targets)
        if out is not None:
            return Path(out)
        lacks = lacking[asked.data.panel[asked.cells]]
        return ImputedProteins(
            **{part: table.frame(targets[part]) for part in _PARTS}, lacking=table.frame(lacks)
        )

    def get_imputation_reliability(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        interval: float = 0.9,
        n_samples: int = 100,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return how well each protein is imputed, by hiding counts that were measured.

        Cells are encoded as if they came from a panel that lacks some proteins, and these are predicted
        as `impute_proteins` does. Cells that the model was trained on would look better than new ones:
        the encoder has seen their proteins.

        Parameters
        ----------
        adata, indices
            Cells whose proteins are hidden. None: those that the fit held out, 5,000 at most.
        transform_batch, protein_list, interval, n_samples, batch_size, seed, progress
            As in `impute_proteins`.

        Returns
        -------
        A row a panel and protein that it lacks (all proteins, where no panel lacks any), with
        ``n_cells`` whose counts were hidden; ``pearson`` and ``rmse`` of log(1 + count) and its
        predicted mean; ``coverage``, the share of counts in the interval before it is calibrated; and
        ``reliable``, whether ``pearson`` is 0.7 or more.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a protein or batch is not known.
        DataError
            When there are no training data or no held-out cells, or none that measured the proteins, as
            in a query of RNA alone: see `get_query_reliability`.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(
        ...     n_cells=80, n_genes=30, n_proteins=5, n_batches=2, n_unmeasured=2, seed=1
        ... )
        >>> model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2, train_size=0.7)
        >>> list(model.get_imputation_reliability(n_samples=20).loc["batch_1"].index)
        ['protein_0', 'protein_2']
        """
        asked = self._asked(adata, indices)
        if adata is None and indices is None:
            asked = self._held_out()
        query = self._imputation_query(asked.data, transform_batch, protein_list, n_samples)
        interval = checked_number("interval", interval, below=1)
        noise = self._noise(seed)
        lacking = self._lacking()
        if not lacking.any():  # then all are hidden
            lacking = ~lacking
        lacking = lacking[:, query.proteins]
        everything = self._data or asked.data
        panels = _panels(everything, np.arange(everything.n_cells), np.any(lacking, axis=1))
        names = self.schema.panel_names or self.schema.batch_names
        names_of_proteins = self._protein_names(query.proteins)
        tables = {}
        for panel, batches in panels:
            hidden = self._hidden(asked, panel, batches, query, batch_size, noise, progress)
            table = reliability_table(hidden, interval, names_of_proteins)
            tables[names[panel]] = table[lacking[panel]]
        if not tables:
            raise ValueError(
                "protein_list holds only proteins that every panel measured; name others, or None."
            )
        found = pd.concat(tables, names=["panel", "protein"])
        if not found["n_cells"].any():
            raise DataError(
                "None of the cells measured the proteins that are imputed, so there is nothing to "
                "compare with; name cells that did with indices, or of a query that was mapped ask the "
                "reference: reference.get_query_reliability(query)."
            )
        return found


def _panels(data: CiteData, cells: np.ndarray, wanted: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return each wanted panel that the cells have, with the codes of its batches."""
    panel, batch = data.panel[cells], data.batch[cells]
    return [
        (int(code), np.unique(batch[panel == code])) for code in np.unique(panel[wanted[panel]])
    ]
