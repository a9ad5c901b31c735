"""Names that moved; other packages still import them from here."""

from totalvi.nn.cell import SparseCounts, sparse_counts

__all__ = ["SparseCounts", "sparse_counts"]
