"""The axis that counts are drawn on: asinh, as in flow cytometry."""

from typing import NamedTuple

import numpy as np
from bokeh.models import FixedTicker


class CountScale(NamedTuple):
    """Linear near zero and logarithmic far above ``cofactor``: ``asinh(count / cofactor)``.

    Parameters
    ----------
    cofactor
        Count at which linear turns to logarithmic.

    Examples
    --------
    >>> PROTEIN_SCALE.ticks(0, 2000)
    {0.0: '0', 1.4436354751788103: '10', 3.6895038689889055: '100', 5.991470797049389: '1k'}
    """

    cofactor: float

    def forward(self, counts: np.ndarray | float) -> np.ndarray:
        """Return places on the axis; NaN stays NaN."""
        return np.arcsinh(np.asarray(counts) / self.cofactor)

    def inverse(self, places: np.ndarray | float) -> np.ndarray:
        """Return the counts at these places on the axis."""
        return np.sinh(np.asarray(places)) * self.cofactor

    def ticks(self, low: float = 0.0, high: float = 1e7, fine: bool = False) -> dict[float, str]:
        """Return the places of 0 and of powers of ten between two counts, with their labels.

        Powers below ``cofactor`` are left out, as they crowd around zero; with ``fine`` the cofactor
        and two fifths of it stand in for them, for axes that hold nothing else.
        """
        marks = [10.0**power for power in range(-2, 8) if 10.0**power > self.cofactor]
        if fine:
            marks = [0.4 * self.cofactor, self.cofactor, *marks]
        shown = [mark for mark in (0.0, *marks) if low <= mark <= high]
        return {float(self.forward(mark)): _label(mark) for mark in shown}

    def close_ticks(self, low: float, high: float) -> dict[float, str]:
        """Return ticks between two counts, with 2 and 5 times powers of ten when these are few.

        Examples
        --------
        >>> list(PROTEIN_SCALE.close_ticks(90, 3000).values())
        ['100', '200', '500', '1k', '2k']
        """
        ticks = self.ticks(low, high)
        if len(ticks) > 3:
            return ticks
        marks = [digit * 10.0**power for power in range(-2, 8) for digit in (1, 2, 5)]
        return {
            float(self.forward(mark)): _label(mark)
            for mark in (0.0, *marks)
            if low <= mark <= high and (mark == 0 or mark >= self.cofactor)
        }

    def ticker(self) -> FixedTicker:
        """Return a ticker at the fine ticks, minor ticks between them."""
        minor = [d * 10.0**power for power in range(-2, 7) for d in range(1, 10)]
        shown = [float(self.forward(mark)) for mark in minor if mark >= self.cofactor / 5]
        return FixedTicker(ticks=list(self.ticks(fine=True)), minor_ticks=shown)


PROTEIN_SCALE = CountScale(5.0)
RNA_SCALE = CountScale(0.5)  # denoised counts in 10,000, few of them above ten


def _label(count: float) -> str:
    if count >= 1e6:
        return f"{count / 1e6:g}M"
    return f"{count / 1e3:g}k" if count >= 1e3 else f"{count:g}"
