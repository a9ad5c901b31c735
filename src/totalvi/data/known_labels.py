"""Labels that are known of some cells only."""

from collections.abc import Iterator

import pandas as pd

from totalvi.errors import Finding, did_you_mean, listed

LEAST_LABELLED = 10


def known_labels(values: pd.Series, unlabelled: str | None) -> pd.Series:
    """Return labels as texts, and NaN for cells without one: missing, blank, or the category.

    Examples
    --------
    >>> known_labels(pd.Series(["B", "Unknown", None]), "Unknown").tolist()
    ['B', nan, nan]
    """
    texts = values.astype(object).where(values.notna().to_numpy()).map(str, na_action="ignore")
    is_blank = texts.str.strip() == "" if len(texts.dropna()) else texts.isna()
    return texts.where(texts.notna() & ~is_blank & (texts != unlabelled), float("nan"))


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


def label_findings(values: pd.Series, where: str, unlabelled: str) -> Iterator[Finding]:
    """Check that enough cells have a label, and that the category of those without is there."""
    texts = known_labels(values, None).dropna()
    known = known_labels(values, unlabelled).dropna()
    if len(known) == len(texts):  # a misspelt category would be a label like the others
        similar = did_you_mean(unlabelled, sorted(texts.unique()))
        message = f'{where} has no cell with "{unlabelled}"; {similar}.'
        yield Finding("warning", "labels_category", message)
    too_few = too_few_labels(known, where)
    if too_few is not None:
        yield Finding("error", "labels_few", too_few)
