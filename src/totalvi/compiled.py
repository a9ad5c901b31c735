"""How loops are compiled: by numba, which keeps what it compiled beside the source or in the home.

What is kept is made anew when the file of the loop itself changes, not when one that it calls does:
after a change of `module.kernels.arithmetic` or `module.kernels.rising` delete ``__pycache__``.

Loops with fast arithmetic that other loops call have ``forceinline=True``: else what is compiled and
what is read back later may differ in what was inlined, and so in their last digits.

numba ends a process that was forked from one which ran such loops (start others by "spawn"), and,
where it found neither OpenMP nor TBB, one whose Python threads run them at once.
"""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles a loop with numba's ``options`` and keeps the result.

    Where no folder can be written to, as in containers of other users, each process compiles anew;
    ``NUMBA_CACHE_DIR`` names one that can.

    Examples
    --------
    >>> @compiled()
    ... def double(x: float) -> float:
    ...     return 2 * x
    >>> double(1.5)
    3.0
    """

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return njit(**options)(function)

    return decorate
