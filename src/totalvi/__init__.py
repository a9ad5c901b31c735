"""Total variational inference for CITE-seq: a joint model of a cell's RNA and surface proteins.

Names are loaded when they are first used, so that ``import totalvi`` is quick.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from totalvi.scvi_names import answering

if TYPE_CHECKING:  # type checkers and editors do not run `__getattr__`
    from totalvi import persistence as persistence
    from totalvi.data import datasets as datasets
    from totalvi.data.background.prior import ambient_profile as ambient_profile
    from totalvi.data.io.read import read as read
    from totalvi.data.mosaic import mosaic as mosaic
    from totalvi.data.panels.antibodies import declare_unmeasured as declare_unmeasured
    from totalvi.data.panels.antibodies import harmonise_antibodies as harmonise_antibodies
    from totalvi.data.panels.concat import concat as concat
    from totalvi.data.simulate import simulate as simulate
    from totalvi.data.simulate import simulate_raw as simulate_raw
    from totalvi.data.simulate_blood import simulate_blood as simulate_blood
    from totalvi.errors import DataWarning as DataWarning
    from totalvi.model import Model as Model
    from totalvi.nn import TOTALVI as TOTALVI
    from totalvi.posterior.differential.moderated import expected_power as expected_power
    from totalvi.posterior.gates.hierarchy import parse_hierarchy as parse_hierarchy
    from totalvi.posterior.gates.hierarchy import read_hierarchy as read_hierarchy
    from totalvi.run.count_splitting import split_counts as split_counts
    from totalvi.run.prepare import check as check

_HOMES = {  # the module of each public name, and the name there unless it is the module
    "TOTALVI": "totalvi.nn:TOTALVI",
    "DataWarning": "totalvi.errors:DataWarning",
    "Model": "totalvi.model:Model",
    "ambient_profile": "totalvi.data.background.prior:ambient_profile",
    "check": "totalvi.run.prepare:check",
    "concat": "totalvi.data.panels.concat:concat",
    "datasets": "totalvi.data.datasets",
    "declare_unmeasured": "totalvi.data.panels.antibodies:declare_unmeasured",
    "expected_power": "totalvi.posterior.differential.moderated:expected_power",
    "harmonise_antibodies": "totalvi.data.panels.antibodies:harmonise_antibodies",
    "mosaic": "totalvi.data.mosaic:mosaic",
    "parse_hierarchy": "totalvi.posterior.gates.hierarchy:parse_hierarchy",
    "persistence": "totalvi.persistence",
    "read_hierarchy": "totalvi.posterior.gates.hierarchy:read_hierarchy",
    "read": "totalvi.data.io.read:read",
    "simulate": "totalvi.data.simulate:simulate",
    "simulate_blood": "totalvi.data.simulate_blood:simulate_blood",
    "simulate_raw": "totalvi.data.simulate:simulate_raw",
    "split_counts": "totalvi.run.count_splitting:split_counts",
}
__version__ = version("totalvi")
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        answering("module 'totalvi'")(name)
    module, _, attribute = _HOMES[name].partition(":")
    home = import_module(module)
    return getattr(home, attribute) if attribute else home


def __dir__() -> list[str]:
    return sorted(__all__)
