"""Total variational inference for CITE-seq: a joint model of a cell's RNA and surface proteins.

Names are loaded when they are first used, so that ``import totalvi`` is quick.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from totalvi.data import datasets
    from totalvi.data.background.raw_matrices import ambient_profile
    from totalvi.data.io.read import read
    from totalvi.data.panels.antibodies import declare_unmeasured, harmonise_antibodies
    from totalvi.data.panels.concat import concat
    from totalvi.data.simulate import simulate, simulate_raw
    from totalvi.model import Model
    from totalvi.nn import TOTALVI

__version__ = version("totalvi")
__all__ = [
    "TOTALVI",
    "Model",
    "__version__",
    "ambient_profile",
    "concat",
    "datasets",
    "declare_unmeasured",
    "harmonise_antibodies",
    "persistence",
    "read",
    "simulate",
    "simulate_raw",
]

_HOMES = {
    "Model": "totalvi.model",
    "TOTALVI": "totalvi.nn",
    "ambient_profile": "totalvi.data.background.raw_matrices",
    "concat": "totalvi.data.panels.concat",
    "datasets": "totalvi.data",
    "declare_unmeasured": "totalvi.data.panels.antibodies",
    "harmonise_antibodies": "totalvi.data.panels.antibodies",
    "persistence": "totalvi",
    "read": "totalvi.data.io.read",
    "simulate": "totalvi.data.simulate",
    "simulate_raw": "totalvi.data.simulate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'totalvi' has no attribute {name!r}")
    home = _HOMES[name]
    if name in ("datasets", "persistence"):
        return import_module(f"{home}.{name}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
