"""Models on disk: this package's own format, and models of other implementations."""

from totalvi.persistence.scvi import load_scvi_state
from totalvi.persistence.scvi_read import load_scvi

__all__ = ["load_scvi", "load_scvi_state"]
