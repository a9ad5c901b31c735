"""The gates of an explorer with the way back: undo and redo."""

from totalvi.explore.gates import Gating


class History:
    """The hierarchy of gates as it is, was, and would be again.

    Parameters
    ----------
    gating
        To start from.

    Attributes
    ----------
    now
        The hierarchy as it is.
    saved
        As it was saved last.

    Examples
    --------
    >>> history = History(Gating())
    >>> history.undo()
    False
    """

    def __init__(self, gating: Gating) -> None:
        self.now = gating
        self.saved = gating
        self._past: list[Gating] = []
        self._future: list[Gating] = []

    def change(self, gating: Gating) -> None:
        """Go on to another hierarchy."""
        if gating != self.now:
            self._past.append(self.now)
            self._future.clear()
            self.now = gating

    def undo(self) -> bool:
        """Go back one change, if there is one."""
        return self._step(self._past, self._future)

    def redo(self) -> bool:
        """Take one undo back, if there is one."""
        return self._step(self._future, self._past)

    def _step(self, source: list[Gating], target: list[Gating]) -> bool:
        if not source:
            return False
        target.append(self.now)
        self.now = source.pop()
        return True

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to go back."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is an undo to take back."""
        return bool(self._future)

    @property
    def is_saved(self) -> bool:
        """Whether what is now is what was saved last."""
        return self.now == self.saved

    def mark_saved(self) -> None:
        """Remember that what is now was saved."""
        self.saved = self.now

    def has_been(self, gating: Gating) -> bool:
        """Say whether a hierarchy is what is now, or one step or more away."""
        return gating in (self.now, *self._past, *self._future)
