"""Labels that are known of some cells only."""

import pandas as pd

from totalvi.errors import listed

LEAST_LABELLED = 10


def known_labels(values: pd.Series, unlabelled: str | None) -> pd.Series:
    """Return labels as texts, and NaN for cells without one: missing, or the unlabelled category.

    Examples
    --------
    >>> known_labels(pd.Series(["B", "Unknown", None]), "Unknown").tolist()
    ['B', nan, nan]
    """
    texts = values.astype(object).where(values.notna().to_numpy()).map(str, na_action="ignore")
    return texts.where(texts.notna() & (texts != unlabelled), float("nan"))


def too_few_labels(known: pd.Series, where: str) -> str | None:
    """Return what is wrong with labels from which nothing can be learned; None: there are enough.

    Examples
    --------
    >>> too_few_labels(pd.Series(["B", float("nan")]), 'obs["type"]')
    'obs["type"] labels 1 cell (with "B"); label at least 10 cells, with two or more labels.'
    """
    names = sorted(known.dropna().unique())
    n_known = int(known.notna().sum())
    if len(names) > 1 and n_known >= LEAST_LABELLED:
        return None
    held = f" (with {listed(names)})" if names else ""
    cells = f"{n_known:,} cell{'s' if n_known != 1 else ''}" if names else "no cell"
    wanted = f"at least {LEAST_LABELLED} cells, with two or more labels"
    return f"{where} labels {cells}{held}; label {wanted}."
