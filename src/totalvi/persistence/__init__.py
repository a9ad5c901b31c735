"""Models on disk: this package's own format, and weights of other implementations."""

from totalvi.persistence.scvi import load_scvi_state

__all__ = ["load_scvi_state"]
