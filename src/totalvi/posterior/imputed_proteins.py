"""Predicted counts of proteins, with intervals, in memory or written to a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.batch_levels import Levels
from totalvi.posterior.protein_predictions import ImputedBatches, predicted_proteins
from totalvi.posterior.question import Question
from totalvi.posterior.rna_predictors import RnaPredictors
from totalvi.posterior.rows import Table
from totalvi.posterior.stacking import Stack, moved_to_stacks

_PARTS = ("mean", "sd", "log1p", "lower", "upper", "foreground_probability")


class ImputedProteins(NamedTuple):
    """What the counts of proteins would be, each a data frame (cells, proteins).

    Parameters
    ----------
    mean, sd
        Mean and standard deviation of the predicted count at the middle of its level, background and
        noise of counting included.
    log1p
        Mean of log(1 + count), the closest guess of a count's logarithm.
    lower, upper
        Limits of the predictive interval, whole numbers.
    foreground_probability
        Probability that the count is foreground, given the cell's state: by the model alone, and
        the same at any level.
    lacking
        Whether the cell's panel lacks the protein. What it measured is predicted as well, from the
        cell's own count among others.
    levels
        A row for each batch of the cells that lacks a protein and each batch it is predicted from:
        ``level``, how many times as high it counts a protein; the limits of its 90 % interval for a
        single protein, ``lower`` and ``upper``; and ``n_proteins``, how many tell, with fewer than 3 of
        which a level may follow from another batch. NaN where it is not known: there counts are as the
        batch that they are predicted from would measure them. No rows with ``own_level=False``.
    """

    mean: pd.DataFrame
    sd: pd.DataFrame
    log1p: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    foreground_probability: pd.DataFrame
    lacking: pd.DataFrame
    levels: pd.DataFrame


class Stacked(NamedTuple):
    """Regression and neighbours, and how each panel's proteins are predicted together with them."""

    rna: RnaPredictors
    of_panel: Mapping[int, Stack]


def imputed_counts(
    question: Question,
    wanted: ImputedBatches,
    levels: Levels,
    probabilities: np.ndarray,
    stacked: Stacked | None,
    out: str | Path | None,
) -> ImputedProteins | Path:
    """Return the predicted counts of the question's cells, or the path to which they are written.

    Parameters
    ----------
    probabilities
        Those of `Predicted.summary`, by panel, (panels, 3, t).
    stacked
        What is stacked with the model. None: nothing.
    """
    data, cells = question.data, question.cells
    lacking = ~np.array(data.schema.panel_measured, dtype=bool)[:, wanted.proteins.positions]
    table = question.table(wanted.proteins.names)

    def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
        batch = levels.as_reference(batch)
        predicted = predicted_proteins(question, wanted, batch)
        if stacked is not None:
            predicted = moved_to_stacks(question, wanted, batch, predicted, *stacked)
        assert predicted.foreground is not None
        parts = predicted.summary(probabilities[batch.context.panel.cpu().numpy()])
        return parts | {"foreground_probability": predicted.foreground}

    tables = dict.fromkeys(_PARTS, table)
    if len(levels.table):
        names = pd.Index([f"{own} over {other}" for own, other in levels.table.index])
        tables["levels"] = Table(names, levels.table.columns.to_numpy())
    of_levels = {"levels": levels.table.to_numpy()} if len(levels.table) else None
    written = question.rows("imputed proteins", tables, rows, out=out, without_cells=of_levels)
    if isinstance(written, Path):
        return written
    return ImputedProteins(
        **{part: table.frame(written[part]) for part in _PARTS},
        lacking=table.frame(lacking[data.panel[cells]]),
        levels=levels.table,
    )
