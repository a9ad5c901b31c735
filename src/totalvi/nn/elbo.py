"""Names that moved; other packages still import them from here."""

from totalvi.nn.likelihoods import ElboTerms, objective, sum_measured

__all__ = ["ElboTerms", "objective", "sum_measured"]
