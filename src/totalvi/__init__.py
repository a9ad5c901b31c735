"""Total variational inference for CITE-seq: a joint model of a cell's RNA and surface proteins.

Names are loaded when they are first used, so that ``import totalvi`` is quick.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from totalvi.data import datasets
    from totalvi.data.antibodies import harmonise_antibodies
    from totalvi.data.concat import concat
    from totalvi.data.empty_droplets import ambient_profile
    from totalvi.data.panels import declare_unmeasured
    from totalvi.data.read import read
    from totalvi.data.simulate import simulate
    from totalvi.data.simulate_droplets import simulate_raw
    from totalvi.model import Model
    from totalvi.module import TOTALVI

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
    "TOTALVI": "totalvi.module",
    "ambient_profile": "totalvi.data.empty_droplets",
    "concat": "totalvi.data.concat",
    "datasets": "totalvi.data",
    "declare_unmeasured": "totalvi.data.panels",
    "harmonise_antibodies": "totalvi.data.antibodies",
    "persistence": "totalvi",
    "read": "totalvi.data.read",
    "simulate": "totalvi.data.simulate",
    "simulate_raw": "totalvi.data.simulate_droplets",
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
