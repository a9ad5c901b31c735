"""How well each antibody separates stained cells from background, and which failed to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.draws import Draw
from totalvi.posterior.expression import protein_means
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted

MIN_FOREGROUND_CELLS = 5
MIN_AUROC = 0.85
MIN_LOG1P_DIFFERENCE = np.log(2.0)
MAX_CONTROL_FOREGROUND = 0.05
NO_FOREGROUND, NO_BACKGROUND = "no foreground", "no background"  # warnings
DOES_NOT_SEPARATE = "does not separate"
LEAST_FAR_ABOVE, MOST_FAR_ABOVE = 0.001, 0.05  # of the cells


def antibody_separation(
    raw: np.ndarray,
    foreground_probability: np.ndarray,
    names: Sequence[str],
    is_control: Sequence[bool] | None = None,
) -> pd.DataFrame:
    """Compare each protein's counts between background and foreground.

    A cell is foreground when its foreground probability is above one half. Where the two are compared,
    each cell is in both, weighted by its probabilities: these follow the counts, so that cells on two
    sides of one half would have different counts whatever the antibody does.

    Parameters
    ----------
    raw
        Counts, shape (n_cells, n_proteins), NaN where unmeasured; such cells are left out.
    foreground_probability
        Of the same shape.
    names
        Names of the proteins.
    is_control
        Which antibodies are isotype controls, that should stain nothing.

    Returns
    -------
    pandas.DataFrame
        Indexed by protein, with columns ``percent_foreground``; ``percent_ambiguous``, of cells
        with a probability between 0.1 and 0.9; ``auroc``, the chance that a foreground count is
        above a background count; ``log1p_median_difference``; and ``warning``, a few
        words when the antibody failed to separate, else empty: fewer than 5 cells of one kind, an
        AUROC below 0.85, medians less than twofold apart, or an isotype control with more than
        5 % foreground. If few cells lie far above all others, which the model's foreground then does
        not tell from them, the words are others. AUROC and difference are NaN when all cells are of
        one kind.
    """
    controls = np.zeros(len(names), dtype=bool) if is_control is None else np.asarray(is_control)
    rows = [
        _separation(raw[:, i], foreground_probability[:, i], bool(controls[i]))
        for i in range(len(names))
    ]
    columns = list(rows[0]) if rows else ["warning"]
    return pd.DataFrame(rows, index=pd.Index(names, name="protein"), columns=columns)


def _separation(counts: np.ndarray, probability: np.ndarray, is_control: bool) -> dict[str, Any]:
    measured = ~np.isnan(counts)
    counts, probability = np.log1p(counts[measured]), probability[measured]
    foreground = probability > 0.5
    n_foreground, n_cells = int(foreground.sum()), len(foreground)
    ambiguous = float(((probability > 0.1) & (probability < 0.9)).mean()) if n_cells else np.nan
    auroc = difference = np.nan
    if 0 < n_foreground < n_cells:
        values, place = np.unique(counts, return_inverse=True)
        shares = [np.bincount(place, of) / of.sum() for of in (1 - probability, probability)]
        below = np.cumsum(shares[0]) - shares[0] / 2
        auroc = float(below @ shares[1])
        background, foreground_median = (_median(values, of) for of in shares)
        difference = foreground_median - background
    warning = ""
    if n_cells == 0:
        warning = "not measured"
    elif is_control:
        if n_foreground > MAX_CONTROL_FOREGROUND * n_cells:
            warning = "control with foreground"
    elif n_foreground < MIN_FOREGROUND_CELLS and 2 * n_foreground <= n_cells:
        warning = "few cells far above" if _few_are_far_above(counts) else NO_FOREGROUND
    elif n_cells - n_foreground < MIN_FOREGROUND_CELLS:
        warning = NO_BACKGROUND
    elif auroc < MIN_AUROC or difference < MIN_LOG1P_DIFFERENCE:
        warning = "few cells far above" if _few_are_far_above(counts) else DOES_NOT_SEPARATE
    return {
        "percent_foreground": 100 * n_foreground / n_cells if n_cells else np.nan,
        "percent_ambiguous": 100 * ambiguous,
        "auroc": auroc,
        "log1p_median_difference": difference,
        "warning": warning,
    }


def _few_are_far_above(log_counts: np.ndarray) -> bool:
    """Whether .1 % to 5 % of the cells, 5 or more, have counts far above those of nearly all others.

    All of them are twofold, and half of them fourfold, above the 99 % quantile of the others.
    """
    ordered = np.sort(log_counts)
    n_cells = len(ordered)
    fewest = max(MIN_FOREGROUND_CELLS, int(np.ceil(LEAST_FAR_ABOVE * n_cells)))
    for n_above in range(fewest, int(MOST_FAR_ABOVE * n_cells) + 1):
        beyond = ordered[int(0.99 * (n_cells - n_above))]
        lowest, median = ordered[n_cells - n_above], ordered[n_cells - (n_above + 1) // 2]
        if median - beyond > 2 * MIN_LOG1P_DIFFERENCE and lowest - beyond > MIN_LOG1P_DIFFERENCE:
            return True
    return False


def _median(values: np.ndarray, shares: np.ndarray) -> float:
    """Return the median of increasing values with these shares."""
    total = np.cumsum(shares)
    middle = [np.searchsorted(total, half) for half in (0.5 - 1e-9, 0.5 + 1e-9)]
    return float(values[np.minimum(middle, len(values) - 1)].mean())


@documented
class SeparationQueries(Fitted):
    """Which antibodies a model finds to separate stained cells from background."""

    def get_antibody_separation(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 25,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return how well each antibody separates stained cells from background, and which failed.

        An antibody that failed, or a protein that no cell of these carries, has counts that tell little
        of the cell. `totalvi run` warns of these antibodies (``tables/proteins.csv``). Isotype controls
        that were kept among the proteins (``isotype_controls=[]``) are judged like other antibodies.

        Parameters
        ----------
        {cells} {protein_list} {n_samples} {batch_size} {seed} {progress}

        Returns
        -------
        DataFrame indexed by protein, over the cells that measured it:

        - ``percent_foreground``: cells whose count is foreground with a probability above .5, in %;
        - ``percent_ambiguous``: cells with a probability between .1 and .9, in %;
        - ``auroc``: the chance that a foreground count is above a background count, each cell weighted
          by its probability;
        - ``log1p_median_difference``: of the two medians of log(1 + count);
        - ``warning``: why the antibody failed, or "": "no foreground" or "no background", with fewer
          than 5 cells of a kind; "does not separate", with an AUROC below .85 or medians less than
          twofold apart; "few cells far above", if the model's foreground does not tell these from the
          others; "not measured".

        AUROC and difference are NaN when all cells are of one kind.

        {name_error}

        {fitted_model}
        >>> antibodies = model.get_antibody_separation(n_samples=5)
        >>> antibodies.shape, antibodies.index.name
        ((5, 5), 'protein')
        >>> failed = antibodies.index[antibodies["warning"] != ""]
        """
        proteins = self._proteins(protein_list)
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, given_counts=True
        )
        table = question.table(proteins.names)

        def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
            probability = protein_means(
                question, batch, Draw.foreground_probability, proteins.positions
            )
            counts = batch.y[:, proteins.positions].cpu().numpy()
            measured = question.network.measured(batch.context.panel)
            if measured is not None:
                is_measured = measured[:, proteins.positions].cpu().numpy()
                counts = np.where(is_measured > 0, counts, np.nan)
            return {"counts": counts, "foreground": probability.numpy()}

        tables = {"counts": table, "foreground": table}
        found = question.rows("separation of antibodies", tables, rows)
        assert isinstance(found, dict)
        return antibody_separation(found["counts"], found["foreground"], list(proteins.names))
