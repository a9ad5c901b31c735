"""Compile loops with numba, and run them on the threads of torch.

numba ends a process that was forked from one that ran `compiled` loops, so start processes by "spawn".
If it finds neither OpenMP nor TBB, it also ends a process whose Python threads run them together.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


_NOT_MADE_PARALLEL = (
    "fusion", "numpy", "reduction", "comprehension", "setitem", "inplace_binop", "stencil",
)  # fmt: skip


@cache
def processor_has(instructions: str) -> bool:
    """Return whether torch finds instructions such as "amx_bf16"; False where it cannot tell."""
    import torch

    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get(instructions))


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator that compiles a loop with numba's ``options`` and caches the result.

    numba caches compiled loops beside the source, or in the home folder. It compiles a loop again when
    the file of the loop changes, but not when a file that the loop calls changes: after a change of
    `totalvi.nn.cpu.math` or `totalvi.nn.cpu.gene_rows`, delete ``__pycache__``. If no folder can be
    written to, as in containers of other users, each process compiles again. Set ``NUMBA_CACHE_DIR`` to
    a folder that can be written to.

    Loops with fast arithmetic that other loops call have ``forceinline=True``. Otherwise a compiled
    loop and a cached one may inline different calls, and so differ in their last digits.

    With ``parallel=True`` loops over ``prange`` run on as many threads as torch; nothing else is made
    parallel, since looking for it takes a quarter of the time of compiling. In such a loop, arithmetic
    of whole arrays belongs into a function of its own.

    Examples
    --------
    >>> @compiled()
    ... def double(x: float) -> float:
    ...     return 2 * x
    >>> double(1.5)
    3.0
    """
    import numba  # its import takes long, and many need no loops
    from numba.core.cpu_options import ParallelOptions

    is_parallel = options.get("parallel", False)
    if is_parallel:  # not a dictionary, from which numba takes the options when it first compiles
        options["parallel"] = ParallelOptions(dict.fromkeys(_NOT_MADE_PARALLEL, False))

    def decorate(function: Function) -> Function:
        try:
            dispatcher: Function = numba.njit(cache=True, **options)(function)
            _keep_if_possible(dispatcher)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            dispatcher = numba.njit(**options)(function)
        return _on_threads_of_torch(dispatcher) if is_parallel else dispatcher

    return decorate


def _keep_if_possible(dispatcher: Any) -> None:
    """Let a compiled loop run that cannot be kept, as where the quota of the home folder is spent."""
    if not hasattr(dispatcher, "_cache"):  # numba was told not to compile
        return
    save = dispatcher._cache.save_overload

    def save_if_possible(*compiled: Any) -> None:
        with suppress(OSError):  # the loop is there, and the next process compiles it again
            save(*compiled)

    dispatcher._cache.save_overload = save_if_possible


def _on_threads_of_torch(loop: Function) -> Function:
    """Return ``loop`` on as many threads as torch, which keeps its number."""
    import numba

    @wraps(loop)
    def run(*arguments: Any) -> Any:
        import torch

        wanted = torch.get_num_threads()
        before = numba.get_num_threads()
        if torch.get_num_threads() != wanted:  # numba just started its threads, and changed both
            torch.set_num_threads(wanted)
        numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))
        try:
            return loop(*arguments)
        finally:
            numba.set_num_threads(before)

    return cast(Function, run)
