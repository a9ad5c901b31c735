"""Gates: polygons on two axes, nested into a hierarchy, and which cells are inside.

Everything here is immutable: an edit returns a new hierarchy, so that undo keeps the old one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from totalvi.errors import DataError

Scale = Literal["linear", "asinh", "log"]
SCALES: tuple[Scale, ...] = get_args(Scale)
COFACTOR = 5.0  # of asinh: linear well below this many counts, logarithmic above


def to_scale(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Return where values lie on an axis: x, asinh(x / 5), or log10(1 + x).

    Examples
    --------
    >>> to_scale(np.array([0.0, 9.0]), "log")
    array([0., 1.])
    """
    if scale == "asinh":
        return np.arcsinh(values / COFACTOR)
    return np.log10(1 + values) if scale == "log" else values


def from_scale(places: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the values that lie at ``places`` on an axis.

    Examples
    --------
    >>> from_scale(np.array([0.0, 1.0]), "log")
    array([0., 9.])
    """
    values: np.ndarray = np.sinh(places) * COFACTOR if scale == "asinh" else places
    return 10.0**places - 1 if scale == "log" else values


def scale_ticks(high: float, scale: Scale) -> list[float] | None:
    """Return the counts to mark on an axis that reaches the value ``high``; None: evenly spaced.

    Examples
    --------
    >>> scale_ticks(2500.0, "asinh")
    [0.0, 10.0, 100.0, 1000.0]
    """
    if scale == "linear":
        return None
    powers = [10.0**power for power in range(-3, 9) if 10.0**power <= high]
    least = 10.0 if scale == "asinh" else 1.0
    return [0.0, *(power for power in powers if power >= min(least, high / 5))]


Kind = Literal[
    "umap",
    "protein_denoised",
    "protein_raw",
    "protein_foreground",
    "gene_denoised",
    "gene_raw",
    "obs",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Shape = Literal["rectangle", "polygon", "lasso"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
MOST_VERTICES = 10_000
MOST_GATES = 1_000
LONGEST_NAME = 200


@dataclass(frozen=True)
class Axis:
    """The values along one axis of a plot.

    Parameters
    ----------
    kind
        Which number of a cell: a coordinate of the map, a denoised or raw count, the foreground
        probability of a protein, or a column of ``obs``.
    name
        Of the feature or column; "1" or "2" of the map.
    scale
        On which it is drawn.
    """

    kind: Kind
    name: str
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"{self.kind!r} is no kind of axis; there are {', '.join(KINDS)}.")
        if self.scale not in SCALES:
            raise DataError(
                f"{self.scale!r} is no scale of an axis; there are {', '.join(SCALES)}."
            )
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"An axis is named {self.name!r}; give the name of a feature.")


@dataclass(frozen=True)
class Gate:
    """A polygon on two axes.

    A cell is inside by the even-odd rule. The lower and left borders belong to the polygon, the
    upper and right ones do not, so polygons that share a side share no cell.

    Parameters
    ----------
    name
        Unlike that of any other gate of the hierarchy.
    axes
        Horizontal and vertical axis.
    vertices
        Corners (x, y) on the scales of the axes; the last is joined with the first.
    parent
        Name of the gate that it lies in; None: all cells.
    shape
        How it was drawn: "rectangle", "polygon" or "lasso".

    Raises
    ------
    DataError
        When the name is empty or too long, or the corners are no polygon of finite numbers.
    """

    name: str
    axes: tuple[Axis, Axis]
    vertices: tuple[tuple[float, float], ...]
    parent: str | None = None
    shape: Shape = "polygon"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise DataError("A gate has no name; give one.")
        if len(self.name) > LONGEST_NAME or not self.name.isprintable() or "/" in self.name:
            raise DataError(
                f"The name {self.name[:40]!r} cannot be given to a gate; give one of at most "
                f"{LONGEST_NAME} printable characters, without a slash."
            )
        if self.shape not in SHAPES:
            raise DataError(f"Gate {self.name!r} is a {self.shape!r}; give {', '.join(SHAPES)}.")
        if not 3 <= len(self.vertices) <= MOST_VERTICES:
            raise DataError(
                f"Gate {self.name!r} has {len(self.vertices)} corners; give 3 to {MOST_VERTICES:,}."
            )
        corners = np.array(self.vertices, dtype=float)
        if corners.shape != (len(self.vertices), 2) or not np.isfinite(corners).all():
            raise DataError(f"Gate {self.name!r} has a corner that is not two finite numbers.")
        if (np.ptp(corners, axis=0) == 0).any():
            raise DataError(f"Gate {self.name!r} has no area; draw it again.")


class Count(NamedTuple):
    """The number of cells in a gate, and in percent; NaN if the parent is empty."""

    cells: int
    percent_of_parent: float
    percent_of_all: float


@dataclass(frozen=True)
class Gating:
    """A hierarchy of gates, each after its parent.

    Examples
    --------
    >>> axes = (Axis("protein_denoised", "CD3", "asinh"), Axis("protein_denoised", "CD19", "asinh"))
    >>> t_cells = Gate("T cells", axes, ((1, 0), (9, 0), (9, 1), (1, 1)))
    >>> gating = Gating().add(t_cells).rename("T cells", "T")
    >>> [(depth, gate.name) for depth, gate in gating.walk()]
    [(0, 'T')]
    """

    gates: tuple[Gate, ...] = ()

    def __post_init__(self) -> None:
        if len(self.gates) > MOST_GATES:
            raise DataError(
                f"There are {len(self.gates):,} gates; at most {MOST_GATES:,} are kept."
            )
        seen: set[str | None] = {None}
        for gate in self.gates:
            if gate.name in seen:
                raise DataError(f"Two gates are named {gate.name!r}; give each a name of its own.")
            if gate.parent not in seen:
                raise DataError(
                    f"Gate {gate.name!r} lies in {gate.parent!r}, which is no gate before it."
                )
            seen.add(gate.name)

    def __getitem__(self, name: str) -> Gate:
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise DataError(f"There is no gate {name!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all gates."""
        return tuple(gate.name for gate in self.gates)

    def walk(self, parent: str | None = None, depth: int = 0) -> Iterator[tuple[int, Gate]]:
        """Yield every gate with its depth, each followed by those inside of it."""
        for gate in self.gates:
            if gate.parent == parent:
                yield depth, gate
                yield from self.walk(gate.name, depth + 1)

    def path(self, name: str) -> tuple[str, ...]:
        """Return the names of the gates around a gate and its own, the outermost first."""
        gate = self[name]
        return (*(() if gate.parent is None else self.path(gate.parent)), name)

    def free_name(self) -> str:
        """Return "Gate 1", or the next that is not taken."""
        number = len(self.gates) + 1
        while f"Gate {number}" in self.names:
            number += 1
        return f"Gate {number}"

    def add(self, gate: Gate) -> "Gating":
        """Return the hierarchy with one gate more."""
        return Gating((*self.gates, gate))

    def rename(self, old: str, new: str) -> "Gating":
        """Return the hierarchy with a gate renamed."""
        self[old]
        return Gating(
            tuple(
                replace(
                    gate,
                    name=new if gate.name == old else gate.name,
                    parent=new if gate.parent == old else gate.parent,
                )
                for gate in self.gates
            )
        )

    def remove(self, name: str) -> "Gating":
        """Return the hierarchy without a gate and all that lie in it."""
        gone = {self[name].name, *(gate.name for _, gate in self.walk(name))}
        return Gating(tuple(gate for gate in self.gates if gate.name not in gone))


def inside_polygon(
    x: np.ndarray, y: np.ndarray, vertices: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Return which points lie in a polygon, by the even-odd rule; NaN lies outside.

    Points are sorted by height once, and each side is then compared only with the points at its
    height, so a lasso of hundreds of corners takes little longer than a rectangle.

    Parameters
    ----------
    x, y
        Of the points, each (N,).
    vertices
        Corners; see :class:`Gate` for what the border belongs to.

    Examples
    --------
    >>> square = [(0, 0), (2, 0), (2, 2), (0, 2)]
    >>> inside_polygon(np.array([1.0, 0.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0, 1.0]), square)
    array([ True,  True, False, False])
    """
    corners = np.asarray(vertices, dtype=np.float64)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    near = np.flatnonzero((x >= left) & (x < right) & (y >= bottom) & (y < top))
    near = near[np.argsort(y[near], kind="stable")]
    along, height = x[near], y[near]
    odd = np.zeros(len(near), dtype=bool)
    for one, other in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = (one, other) if one[1] < other[1] else (other, one)  # as seen from both sides
        first, last = np.searchsorted(height, (low[1], high[1]))
        if first == last:
            continue
        share = (height[first:last] - low[1]) / (high[1] - low[1])
        odd[first:last] ^= along[first:last] < low[0] + share * (high[0] - low[0])
    inside = np.zeros(len(x), dtype=bool)
    inside[near] = odd
    return inside


def members(
    gating: Gating, own: Callable[[Gate], np.ndarray], n_cells: int
) -> dict[str | None, np.ndarray]:
    """Return which cells are in each gate and in all gates around it, by name; None: all cells.

    Parameters
    ----------
    own
        Gives the cells (n_cells,) inside the polygon of a gate.
    """
    found: dict[str | None, np.ndarray] = {None: np.ones(n_cells, dtype=bool)}
    for gate in gating.gates:
        found[gate.name] = found[gate.parent] & own(gate)
    return found


def counts(gating: Gating, inside: Mapping[str | None, np.ndarray]) -> dict[str, Count]:
    """Count the cells of each gate, from what `members` gave."""
    numbers = {name: int(mask.sum()) for name, mask in inside.items()}

    def percent(cells: int, of: int) -> float:
        return 100 * cells / of if of else float("nan")

    return {
        gate.name: Count(
            numbers[gate.name],
            percent(numbers[gate.name], numbers[gate.parent]),
            percent(numbers[gate.name], numbers[None]),
        )
        for gate in gating.gates
    }


def deepest(gating: Gating, inside: Mapping[str | None, np.ndarray]) -> np.ndarray:
    """Return the path of the innermost gate of each cell, as "T cells/CD4 T"; "" in none.

    Where gates side by side overlap, the one drawn first counts.
    """
    code = np.full(len(inside[None]), len(gating.gates))
    for number, gate in enumerate(gating.gates):
        around = len(gating.gates) if gate.parent is None else gating.names.index(gate.parent)
        code[inside[gate.name] & (code == around)] = number
    paths = ["/".join(gating.path(name)) for name in gating.names]
    path_of: np.ndarray = np.array([*paths, ""], dtype=object)[code]
    return path_of
