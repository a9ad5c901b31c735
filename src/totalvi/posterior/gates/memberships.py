"""The probability that cells belong to populations, and the population that each is named by."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.posterior.gates.hierarchy import (
    All,
    Any,
    Else,
    Gate,
    Hierarchy,
    Marker,
    Not,
    markers_of,
)

UNDECIDED = "undecided"
LEAST_MEMBERSHIP = 0.5  # of the population by which a cell is named
_KNOWN_WITHIN = 0.05


class Draws(NamedTuple):
    """Whether a marker is at least at a level, in draws of the levels of cells.

    Parameters
    ----------
    sure, possible
        Bool, of one shape; they differ where the level is not known.
    """

    sure: np.ndarray
    possible: np.ndarray

    def __invert__(self) -> "Draws":
        return Draws(~self.possible, ~self.sure)


class Levels(NamedTuple):
    """Draws of a marker's level.

    Parameters
    ----------
    positive, high
        Whether it is above low, and whether it is high.
    one
        Whether there is only one level above low, which is mid as well as high.
    """

    positive: Draws
    high: Draws
    one: bool


def usable(gate: Gate, known: set[str]) -> Gate | None:
    """Return a gate without what is left out where ``known`` markers alone were measured.

    Optional markers go that were not measured, and of the parts around ``else`` all but the first that
    is known, or the last. None: nothing is left.

    Examples
    --------
    >>> from totalvi.posterior.gates.hierarchy import parse_hierarchy
    >>> gate = parse_hierarchy("B: CD19+ else CD20+ CD3-?").populations[0].gate
    >>> usable(gate, {"CD20"})
    Marker(name='CD20', level='+', optional=False)
    """
    match gate:
        case Marker():
            return None if gate.optional and gate.name not in known else gate
        case Not():
            part = usable(gate.part, known)
            return None if part is None else Not(part)
        case Else():
            wanted = next((p for p in gate.parts if _names(p) <= known), gate.parts[0])
            return usable(wanted, known)
    parts = tuple(part for part in (usable(p, known) for p in gate.parts) if part is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    return All(parts) if isinstance(gate, All) else Any(parts)


def _names(gate: Gate) -> set[str]:
    return {marker.name for marker in markers_of(gate) if not marker.optional}


def wanting(gate: Gate, known: set[str]) -> list[str]:
    """Return the markers for want of which a gate is not told from others, in order.

    Examples
    --------
    >>> from totalvi.posterior.gates.hierarchy import parse_hierarchy
    >>> gate = parse_hierarchy("B: (CD19+ else CD20+) IgD+ CD3-?").populations[0].gate
    >>> wanting(gate, {"IgD"}), wanting(gate, {"IgD", "CD20"})
    (['CD19', 'CD20'], [])
    """
    match gate:
        case Marker():
            return [] if gate.optional or gate.name in known else [gate.name]
        case Not():
            return wanting(gate.part, known)
    parts = [wanting(part, known) for part in gate.parts]
    if isinstance(gate, Else) and not all(parts):
        return []
    return list(dict.fromkeys(name for part in parts for name in part))


def fulfilled(gate: Gate, levels: Mapping[str, Levels]) -> Draws | None:
    """Return in which draws a gate is fulfilled; None: in any, as nothing is known of it.

    A level that is not known may be any (the three-valued logic of Kleene).
    """
    match gate:
        case Marker():
            if gate.name not in levels:
                return None
            positive, high, one = levels[gate.name]
            match gate.level:
                case "+":
                    return positive
                case "low":
                    return ~positive
                case "high":
                    return high
                case "mid":
                    return positive if one else _all([positive, ~high])
        case Not():
            part = fulfilled(gate.part, levels)
            return None if part is None else ~part
    parts = [fulfilled(part, levels) for part in gate.parts]
    draws = [part for part in parts if part is not None]
    if not draws:
        return None
    joined = _all(draws) if isinstance(gate, All) else _any(draws)
    if len(draws) == len(parts):
        return joined
    nowhere, everywhere = np.zeros_like(joined.sure), np.ones_like(joined.sure)
    if isinstance(gate, All):
        return Draws(nowhere, joined.possible)
    return Draws(joined.sure, everywhere)


def _all(draws: Sequence[Draws]) -> Draws:
    return Draws(*(np.logical_and.reduce(part) for part in zip(*draws, strict=True)))


def _any(draws: Sequence[Draws]) -> Draws:
    return Draws(*(np.logical_or.reduce(part) for part in zip(*draws, strict=True)))


def count_members(
    hierarchy: Hierarchy,
    gates: Mapping[str, Gate | None],
    levels: Mapping[str, Levels],
    n_cells: int,
) -> np.ndarray:
    """Return in how many draws cells belong to populations surely, and possibly: (2, B, populations).

    A cell belongs to one if it fulfils its gate and those of all populations above it.

    Parameters
    ----------
    gates
        What is usable of each population's gate.
    levels
        Draws of shape (B, draws) for each marker that is known.
    """
    n_draws = next((of.high.sure.shape[1] for of in levels.values()), 1)
    nothing = np.zeros((n_cells, n_draws), dtype=bool)
    members: dict[str | None, Draws] = {}
    for population in hierarchy.populations:
        gate = gates[population.name]
        draws = None if gate is None else fulfilled(gate, levels)
        draws = Draws(nothing, ~nothing) if draws is None else draws
        if population.parent is not None:
            draws = _all([members[population.parent], draws])
        members[population.name] = draws
    counts = [[part.sum(axis=1) for part in draws] for draws in members.values()]
    return np.array(counts).transpose(1, 2, 0)


def known_memberships(sure: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Return memberships; NaN where what is not known could change them by more than 0.05."""
    return np.where(possible - sure > _KNOWN_WITHIN, np.nan, sure)


def name_cells(memberships: pd.DataFrame, hierarchy: Hierarchy) -> pd.Categorical:
    """Return the population that each cell is named by, or "undecided".

    From the top down, a cell goes to the only population of those below that it belongs to with at
    least 0.5, and stays where there is none, or where there are several.

    Parameters
    ----------
    memberships
        Cells x populations, NaN where not known.

    Examples
    --------
    >>> from totalvi.posterior.gates.hierarchy import parse_hierarchy
    >>> hierarchy = parse_hierarchy("T: CD3+\\nCD4 T: T > CD4+\\nB: CD19+")
    >>> table = pd.DataFrame({"T": [0.9, 0.8, 0.1], "CD4 T": [0.9, 0.3, 0.1], "B": [0.0, 0.1, 0.2]})
    >>> list(name_cells(table, hierarchy))
    ['CD4 T', 'T', 'undecided']
    """
    names = [population.name for population in hierarchy.populations]
    code = np.full(len(memberships), -1)
    pending: list[str | None] = [None]
    while pending:
        above = pending.pop()
        children = [population.name for population in hierarchy.children(above)]
        if not children:
            continue
        here = code == (-1 if above is None else names.index(above))
        belongs = memberships[children].to_numpy()[here] >= LEAST_MEMBERSHIP
        chosen = np.array([names.index(child) for child in children])[belongs.argmax(axis=1)]
        code[here] = np.where(belongs.sum(axis=1) == 1, chosen, code[here])
        pending += children
    labels = np.array([UNDECIDED, *names], dtype=object)
    return pd.Categorical(labels[code + 1], categories=labels)
