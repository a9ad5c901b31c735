"""The probability that cells belong to populations, and the population that each is named by."""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import betaincinv

from totalvi.posterior.gates.hierarchy import (
    All,
    Any,
    Else,
    Gate,
    Hierarchy,
    Marker,
    Not,
)

UNDECIDED = "undecided"
FAILED, WITHOUT_POSITIVES = "does not separate", "no positive cells"  # notes on markers
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
    has_positives
        Whether 5 cells or more are above low; if not, it is not known which others ought to be.
    """

    positive: Draws
    high: Draws
    one: bool
    has_positives: bool = True


def usable(
    gate: Gate, known: Set[str], without_positives: Set[str] = frozenset(), *, negated: bool = False
) -> Gate | None:
    """Return a gate without what is left out where ``known`` markers alone are told.

    Optional markers go that are not known, and of the parts around ``else`` all but the first that is
    told, or the first of all. None: nothing is left.

    Parameters
    ----------
    gate, known
        As above.
    without_positives
        Those of the known markers that only tell which cells are low; another stands in for them where
        ``else`` names one.
    negated
        Whether the gate is a part of what must not hold.

    Examples
    --------
    >>> from totalvi.posterior.gates.hierarchy import parse_hierarchy
    >>> gate = parse_hierarchy("B: CD19+ else CD20+ CD3-?").populations[0].gate
    >>> usable(gate, {"CD20"})
    Marker(name='CD20', level='+', optional=False)
    """

    def of(part: Gate, *, negated: bool = negated) -> Gate | None:
        return usable(part, known, without_positives, negated=negated)

    match gate:
        case Marker():
            wanted = wanting(
                gate._replace(optional=False), known, without_positives, negated=negated
            )
            return None if gate.optional and wanted else gate
        case Not():
            part = of(gate.part, negated=not negated)
            return None if part is None else Not(part)
        case Else():
            told = [
                part
                for part in gate.parts
                if not wanting(part, known, without_positives, negated=negated)
            ]
            separate = [part for part in told if not wanting(part, known - without_positives)]
            return of([*separate, *told, *gate.parts][0])
    parts = tuple(part for part in map(of, gate.parts) if part is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    return All(parts) if isinstance(gate, All) else Any(parts)


def wanting(
    gate: Gate, known: Set[str], without_positives: Set[str] = frozenset(), *, negated: bool = False
) -> list[str]:
    """Return the markers for want of which a gate is not told from others, in order.

    Parameters
    ----------
    gate, known, without_positives, negated
        As of `usable`.

    Examples
    --------
    >>> from totalvi.posterior.gates.hierarchy import parse_hierarchy
    >>> gate = parse_hierarchy("B: (CD19+ else CD20+) IgD+ CD3-?").populations[0].gate
    >>> wanting(gate, {"IgD"}), wanting(gate, {"IgD", "CD20"})
    (['CD19', 'CD20'], [])
    """
    match gate:
        case Marker():
            is_told = gate.name in known and not (
                gate.name in without_positives and _is_above(gate, negated)
            )
            return [] if gate.optional or is_told else [gate.name]
        case Not():
            return wanting(gate.part, known, without_positives, negated=not negated)
    parts = [wanting(part, known, without_positives, negated=negated) for part in gate.parts]
    if isinstance(gate, Else) and not all(parts):
        return []
    return list(dict.fromkeys(name for part in parts for name in part))


def _is_above(marker: Marker, negated: bool) -> bool:
    """Return whether a level above low is asked for."""
    return (marker.level == "low") == negated


def fulfilled(gate: Gate, levels: Mapping[str, Levels], *, negated: bool = False) -> Draws | None:
    """Return in which draws a gate is fulfilled; None: in any, as nothing is known of it.

    A level that is not known may be any (the three-valued logic of Kleene). ``negated``: in which it is
    not fulfilled.
    """
    match gate:
        case Marker():
            return _at_level(gate, levels[gate.name], negated) if gate.name in levels else None
        case Not():
            return fulfilled(gate.part, levels, negated=not negated)
    parts = [fulfilled(part, levels, negated=negated) for part in gate.parts]
    draws = [part for part in parts if part is not None]
    if not draws:
        return None
    needs_all = isinstance(gate, All) != negated
    joined = _all(draws) if needs_all else _any(draws)
    if len(draws) == len(parts):
        return joined
    nowhere, everywhere = np.zeros_like(joined.sure), np.ones_like(joined.sure)
    return Draws(nowhere, joined.possible) if needs_all else Draws(joined.sure, everywhere)


def _at_level(marker: Marker, levels: Levels, negated: bool) -> Draws:
    """Return in which draws a marker is at a level, or is not."""
    positive, high, one, has_positives = levels
    if not has_positives:
        # the few that are positive are, of the others it is not known
        unknown = Draws(positive.sure, np.ones_like(positive.sure))
        return unknown if _is_above(marker, negated) else ~positive
    match marker.level:
        case "+":
            draws = positive
        case "low":
            draws = ~positive
        case "high":
            draws = high
        case "mid":
            draws = positive if one else _all([positive, ~high])
    return ~draws if negated else draws


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


def members(memberships: pd.DataFrame, hierarchy: Hierarchy) -> pd.DataFrame:
    """Return which cells are counted in each population, bool, cells x populations.

    They are those that belong to it, and to those above it, with at least 0.5. A doublet of a T and a B
    cell counts in both.

    Parameters
    ----------
    memberships
        Cells x populations, NaN where not known.

    Examples
    --------
    >>> from totalvi.posterior.gates.hierarchy import parse_hierarchy
    >>> table = pd.DataFrame({"T": [0.9, 0.8, 0.4], "CD4 T": [0.9, 0.3, 0.6]})
    >>> members(table, parse_hierarchy("T: CD3+\\nCD4 T: T > CD4+")).to_numpy().tolist()
    [[True, True], [True, False], [False, False]]
    """
    inside = memberships >= LEAST_MEMBERSHIP
    for population in hierarchy.populations:  # from the top down
        if population.parent is not None:
            inside[population.name] &= inside[population.parent]
    return inside


def name_cells(memberships: pd.DataFrame, hierarchy: Hierarchy) -> pd.Categorical:
    """Return the population that each cell is named by, or "undecided".

    From the top down, a cell goes to the population below that it is a member of, and stays where there
    is none or where there are several, such as T and B of a doublet. But of those of which one asks
    for no more than another does, it goes to the one that is written first.

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
    inside = members(memberships, hierarchy)
    code = np.full(len(memberships), -1)
    for above in (None, *names):
        children = hierarchy.children(above)
        if not children:
            continue
        here = code == (-1 if above is None else names.index(above))
        belongs = inside[[child.name for child in children]].to_numpy(bool) & here[:, None]
        exclude = np.array([[_exclude(a.gate, b.gate) for a in children] for b in children])
        clashes = np.asarray((belongs & (belongs @ exclude.astype(np.int64) > 0)).any(axis=1))
        first = np.array([names.index(child.name) for child in children])[belongs.argmax(axis=1)]
        code = np.where(belongs.any(axis=1) & ~clashes, first, code)
    labels = np.array([UNDECIDED, *names], dtype=object)
    return pd.Categorical(labels[code + 1], categories=labels)


def _exclude(one: Gate, other: Gate) -> bool:
    """Return whether each of two gates has a condition that the other has not."""
    first, second = (set(gate.parts) if isinstance(gate, All) else {gate} for gate in (one, other))
    return not (first <= second or second <= first)


def percent_limits(cells: pd.Series, n_cells: int | pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return 95 % limits of the percentages ``cells`` of ``n_cells``, by Jeffreys' interval.

    They hold the chance which cells were measured; NaN of no cells. Source: Brown, Cai and DasGupta,
    "Interval estimation for a binomial proportion", 2001.

    Examples
    --------
    >>> lower, upper = percent_limits(pd.Series([0, 50]), 100)
    >>> lower.round(1).tolist(), upper.round(1).tolist()
    ([0.0, 40.3], [2.5, 59.7])
    """
    lower, upper = (
        100 * pd.Series(betaincinv(cells + 0.5, n_cells - cells + 0.5, level), cells.index)
        for level in (0.025, 0.975)
    )
    some = pd.Series(n_cells, cells.index) > 0
    return lower.mask(cells == 0, 0).where(some), upper.mask(cells == n_cells, 100).where(some)
