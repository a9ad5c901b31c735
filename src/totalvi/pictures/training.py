"""Training curves: the losses over the epochs."""

import numpy as np
import pandas as pd
from bokeh.plotting import figure

from totalvi.pictures.colors import FOREGROUND, QUIET, WARNING
from totalvi.pictures.frame import new_figure

CURVES = {
    "train_loss": ("training", QUIET, "dashed"),
    "validation_loss": ("held-out cells", FOREGROUND, "solid"),
}


def training_curves(history: pd.DataFrame, best_epoch: int) -> figure:
    """Draw training and held-out loss per cell over the epochs; the kept epoch is marked.

    Parameters
    ----------
    history
        Indexed by epoch, with the column ``train_loss`` and, where there is one,
        ``validation_loss``.
    best_epoch
        The epoch whose weights were kept.
    """
    drawn = new_figure(
        height=300, x_label="epoch", y_label="negative ELBO per cell (nats)", tools="save"
    )
    drawn_columns = [column for column in CURVES if column in history]
    for column in drawn_columns:
        label, color, dash = CURVES[column]
        known = history[column].dropna()
        drawn.line(
            known.index, known, color=color, line_width=2, line_dash=dash, legend_label=label
        )
    lowest = float(history[drawn_columns[-1]][best_epoch])
    drawn.scatter(
        [best_epoch], [lowest], size=9, color=WARNING, legend_label=f"kept: epoch {best_epoch}"
    )
    # The first epochs lie far above and would flatten the rest.
    settled = history[drawn_columns].iloc[len(history) // 10 :].to_numpy()
    low, high = np.nanmin(settled), np.nanmax(settled)
    margin = 0.06 * (high - low) or 1.0
    drawn.y_range.start, drawn.y_range.end = low - margin, high + margin
    drawn.legend.border_line_color = None
    drawn.legend.background_fill_alpha = 0.8
    return drawn
