"""Names that moved; other packages still import them from here."""

from totalvi.nn.coders import CellPosterior, Trunk

__all__ = ["CellPosterior", "Trunk"]
