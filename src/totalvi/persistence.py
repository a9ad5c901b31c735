"""Models of other implementations of totalVI: scvi-tools and the 0.6.x module."""

from totalvi.formats.scvi_read import load_scvi
from totalvi.formats.scvi_weights import load_scvi_state

__all__ = ["load_scvi", "load_scvi_state"]
