"""Compile loops with numba.

numba caches compiled loops beside the source, or in the home folder. It compiles a loop again when the
file of the loop changes, but not when a file that the loop calls changes. After a change of
`totalvi.nn.cpu.math` or `totalvi.nn.cpu.gene_rows`, delete ``__pycache__``.

Loops with fast arithmetic that other loops call have ``forceinline=True``. Otherwise a compiled
loop and a cached one may inline different calls, and so differ in their last digits.

numba ends a process that was forked from one that ran such loops, so start processes by "spawn". If it
finds neither OpenMP nor TBB, it also ends a process whose Python threads run them at the same time.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator that compiles a loop with numba's ``options`` and caches the result.

    If no folder can be written to, as in containers of other users, each process compiles again. Set
    ``NUMBA_CACHE_DIR`` to a folder that can be written to.

    Examples
    --------
    >>> @compiled()
    ... def double(x: float) -> float:
    ...     return 2 * x
    >>> double(1.5)
    3.0
    """

    def decorate(function: Function) -> Function:
        try:
            dispatcher: Function = njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            dispatcher = njit(**options)(function)
        return dispatcher

    return decorate
