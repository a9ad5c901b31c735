"""Names that moved; other packages still import them from here."""

from totalvi.processes import threads_of_torch

__all__ = ["threads_of_torch"]
