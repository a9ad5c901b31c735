"""How well each antibody tells background from foreground cells."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

MIN_FOREGROUND_CELLS = 5
MIN_AUROC = 0.85
MIN_LOG1P_DIFFERENCE = np.log(2.0)
MAX_CONTROL_FOREGROUND = 0.05


def antibody_separation(
    raw: np.ndarray,
    foreground_probability: np.ndarray,
    names: Sequence[str],
    is_control: Sequence[bool] | None = None,
) -> pd.DataFrame:
    """Compare each protein's counts between the cells called background and foreground.

    A cell is foreground when its foreground probability is above one half.

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
        with a probability between 0.1 and 0.9; ``auroc``, the chance that a foreground cell has
        more counts than a background cell; ``log1p_median_difference``; and ``warning``, a few
        words when the antibody failed to separate, else empty: fewer than 5 cells of one kind, an
        AUROC below 0.85, medians less than twofold apart, or an isotype control with more than
        5 % foreground. AUROC and difference are NaN when all cells are of one kind.
    """
    controls = np.zeros(len(names), dtype=bool) if is_control is None else np.asarray(is_control)
    rows = [
        _separation(raw[:, i], foreground_probability[:, i], bool(controls[i]))
        for i in range(len(names))
    ]
    return pd.DataFrame(rows, index=pd.Index(names, name="protein"))


def _separation(counts: np.ndarray, probability: np.ndarray, is_control: bool) -> dict:
    measured = ~np.isnan(counts)
    counts, probability = np.log1p(counts[measured]), probability[measured]
    foreground = probability > 0.5
    n_foreground, n_cells = int(foreground.sum()), len(foreground)
    ambiguous = float(((probability > 0.1) & (probability < 0.9)).mean()) if n_cells else np.nan
    auroc = difference = np.nan
    if 0 < n_foreground < n_cells:
        ranks = rankdata(counts)[foreground].sum() - n_foreground * (n_foreground + 1) / 2
        auroc = ranks / (n_foreground * (n_cells - n_foreground))
        difference = np.median(counts[foreground]) - np.median(counts[~foreground])
    warning = ""
    if n_cells == 0:
        warning = "not measured"
    elif is_control:
        if n_foreground > MAX_CONTROL_FOREGROUND * n_cells:
            warning = "control with foreground"
    elif n_foreground < MIN_FOREGROUND_CELLS:
        warning = "no foreground"
    elif n_cells - n_foreground < MIN_FOREGROUND_CELLS:
        warning = "no background"
    elif auroc < MIN_AUROC or difference < MIN_LOG1P_DIFFERENCE:
        warning = "does not separate"
    return {
        "percent_foreground": 100 * n_foreground / n_cells if n_cells else np.nan,
        "percent_ambiguous": 100 * ambiguous,
        "auroc": auroc,
        "log1p_median_difference": difference,
        "warning": warning,
    }
