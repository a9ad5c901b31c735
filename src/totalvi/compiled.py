"""How loops are compiled.

numba compiles them and keeps the result beside the source, or in the home folder. It compiles a loop
again when the file of the loop changes, but not when a file that the loop calls changes: after a change
of `totalvi.nn.cpu.math` or `totalvi.nn.cpu.gene_rows` delete ``__pycache__``.

Loops with fast arithmetic that other loops call have ``forceinline=True``: else what is compiled and
what is read back later may differ in what was inlined, and so in their last digits.

numba ends a process that was forked from one which ran such loops (start others by "spawn"), and,
where it found neither OpenMP nor TBB, one whose Python threads run them at once.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator that compiles a loop with numba's ``options`` and keeps the result.

    Where no folder can be written to, as in containers of other users, each process compiles again;
    ``NUMBA_CACHE_DIR`` names a folder that can be written to.

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
