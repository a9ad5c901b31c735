"""SIGINT and SIGTERM while a model is trained: noted, and obeyed once the step is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

OBEYED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Give a list that gets the numbers of signals in place of their being obeyed at once.

    A second SIGINT is not waited for: it raises KeyboardInterrupt. SIGTERM may come from several that
    watch over a job, and is waited for each time. Only the main thread can do this;
    in others, and for signals that the process ignores, nothing changes.
    """
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        if noted.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in OBEYED}
        before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
