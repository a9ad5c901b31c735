"""Numbers as people read them."""

from typing import Any

import pandas as pd


def number(value: Any, decimals: int = 1) -> str:
    """Return a number with thousands apart, or a dash where there is none.

    Examples
    --------
    >>> number(1234.56), number(float("nan"))
    ('1,234.6', '-')
    """
    return "-" if pd.isna(value) else f"{value:,.{decimals}f}"


def mean_count(value: float) -> str:
    """Return a mean count with as many decimals as matter at its size.

    Examples
    --------
    >>> mean_count(1234.56), mean_count(12.345), mean_count(0.0432)
    ('1,235', '12.3', '0.04')
    """
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)
