"""The model as plain torch: networks, distributions, likelihoods and the evidence lower bound."""

from totalvi.module.totalvi import TOTALVI

__all__ = ["TOTALVI"]
