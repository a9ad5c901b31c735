"""The model as plain torch: networks, distributions, likelihoods and the evidence lower bound."""

from totalvi.nn.v06 import TOTALVI

__all__ = ["TOTALVI"]
