"""Names that moved; other packages still import them from here."""

from totalvi.nn.coders import Decoded
from totalvi.nn.likelihoods import profile_penalty

__all__ = ["Decoded", "profile_penalty"]
