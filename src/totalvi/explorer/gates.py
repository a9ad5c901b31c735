"""Gates, nested into a hierarchy, and which cells are inside.

Everything here is immutable: an edit returns a new hierarchy, so that undo keeps the old one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from totalvi.errors import DataError
from totalvi.explorer.axes import Axis

Shape = Literal["rectangle", "polygon", "lasso", "ellipse", "range", "quadrant", "boolean"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
Point = tuple[float, ...]
Vertices = tuple[Point, ...]
PARTS = ("--", "+-", "-+", "++")  # of quadrants: below or above the centre, first on the x axis
_CONDITION = (": ", ", ")  # between the name of a gate and what its conditions add
MOST_VERTICES = 10_000
MOST_GATES = 1_000
LONGEST_NAME = 200


class Operand(NamedTuple):
    """A gate that a Boolean gate is made of, or with ``complement`` the cells outside of it."""

    gate: str
    complement: bool = False


class Adjusted(NamedTuple):
    """Other vertices of a gate for the cells of one sample: those with a value in a column of obs."""

    column: str
    sample: str
    vertices: Vertices


@dataclass(frozen=True)
class Gate:
    """A region of two axes or one, or a combination of other gates.

    The lower and left borders belong to a gate, the upper and right ones do not, so gates that share a
    side share no cell. Polygons hold cells by the even-odd rule.

    Parameters
    ----------
    name
        Unlike that of any other gate of the hierarchy.
    axes
        Horizontal and vertical axis; one of a range, none of a Boolean gate.
    vertices
        Points on the scales of the axes. Of a rectangle, polygon or lasso the corners, the last joined
        with the first; of an ellipse its centre and the ends of two conjugate half-diameters; of
        a range its ends; of a quadrant the centre, which it shares with the other quadrants.
    parent
        Name of the gate that it lies in; None: all cells.
    shape
        How it was drawn.
    part
        Which quadrant, of `PARTS`; else "".
    operator, operands
        Of a Boolean gate: "and" or "or" of other gates or their complements.
    by_sample
        Where the gate lies differently in some samples.

    Raises
    ------
    DataError
        When the name is empty or too long, or the points do not make the shape.
    """

    name: str
    axes: tuple[Axis, ...]
    vertices: Vertices
    parent: str | None = None
    shape: Shape = "polygon"
    part: str = ""
    operator: str = ""
    operands: tuple[Operand, ...] = ()
    by_sample: tuple[Adjusted, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise DataError("A gate has no name; give one.")
        if len(self.name) > LONGEST_NAME or not self.name.isprintable() or "/" in self.name:
            raise DataError(
                f"The name {self.name[:40]!r} cannot be given to a gate; give one of at most "
                f"{LONGEST_NAME} printable characters, without a slash."
            )
        if self.shape not in SHAPES:
            raise DataError(
                f"Gate {self.name!r} is a {self.shape!r}; give one of {', '.join(SHAPES)}."
            )
        is_boolean = self.shape == "boolean"
        if is_boolean != (self.operator in ("and", "or")) or is_boolean != bool(self.operands):
            raise DataError(
                f'Gate {self.name!r} must combine gates ("and", "or") if it is Boolean, and only then.'
            )
        if (self.shape == "quadrant") != (self.part in PARTS):
            raise DataError(
                f"Gate {self.name!r} is not one quadrant; give one of {', '.join(PARTS)}."
            )
        n_axes = {"boolean": 0, "range": 1}.get(self.shape, 2)
        if len(self.axes) != n_axes:
            raise DataError(f"Gate {self.name!r} has {len(self.axes)} axes; give it {n_axes}.")
        self._check(self.vertices)
        for adjusted in self.by_sample:
            self._check(adjusted.vertices)

    def _check(self, vertices: Vertices) -> None:
        fixed = {"boolean": 0, "range": 2, "quadrant": 1, "ellipse": 3}.get(self.shape)
        low, high = (3, MOST_VERTICES) if fixed is None else (fixed, fixed)
        if not low <= len(vertices) <= high:
            wanted = f"{low} to {high:,}" if fixed is None else str(fixed)
            raise DataError(f"Gate {self.name!r} has {len(vertices)} corners; give {wanted}.")
        if not vertices:
            return
        n_axes = len(self.axes)
        corners = np.array(vertices, dtype=float)
        if corners.shape != (len(vertices), n_axes) or not np.isfinite(corners).all():
            wanted = "two finite numbers" if n_axes == 2 else "a finite number"
            raise DataError(f"Gate {self.name!r} has a corner that is not {wanted}.")
        is_flat = self.shape != "quadrant" and bool((np.ptp(corners, axis=0) == 0).any())
        if self.shape == "ellipse":
            is_flat = not abs(np.linalg.det(corners[1:] - corners[0])) > 0
        if is_flat:
            raise DataError(f"Gate {self.name!r} has no area; draw it again.")

    @property
    def place(self) -> object:
        """The axes, shape and vertices: equal for gates that look the same on every plot."""
        return self.shape, self.part, self.axes, self.vertices, self.by_sample

    def vertices_of(self, sample: tuple[str, str] | None) -> Vertices:
        """Return the vertices for a sample, a column of ``obs`` and its value; None: for all others."""
        for adjusted in self.by_sample:
            if sample == (adjusted.column, adjusted.sample):
                return adjusted.vertices
        return self.vertices

    def placed(self, vertices: Vertices, sample: tuple[str, str] | None = None) -> "Gate":
        """Return the gate with other vertices, for all samples or for one."""
        if sample is None:
            return replace(self, vertices=vertices)
        others = tuple(a for a in self.by_sample if (a.column, a.sample) != sample)
        return replace(self, by_sample=(*others, Adjusted(*sample, vertices)))


class Count(NamedTuple):
    """The number of cells in a gate, and in percent; NaN if the parent is empty."""

    cells: int
    percent_of_parent: float
    percent_of_all: float


@dataclass(frozen=True)
class Gating:
    """A hierarchy of gates, each after its parent and the gates that it combines.

    A Boolean gate may have conditions: gates that it combines, that share its parent, and whose names
    begin with its own, as "T: CD3" and "T, 1 of 2" begin with "T". It stands for them in lists.

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
            raise DataError(f"There are {len(self.gates):,} gates; give at most {MOST_GATES:,}.")
        seen: set[str | None] = {None}
        for gate in self.gates:
            if gate.name in seen:
                raise DataError(f"Two gates are named {gate.name!r}; give each a name of its own.")
            if gate.parent not in seen:
                raise DataError(
                    f"Gate {gate.name!r} lies in {gate.parent!r}, which must be an earlier gate."
                )
            for operand in gate.operands:
                if operand.gate not in seen:
                    raise DataError(
                        f"Gate {gate.name!r} combines {operand.gate!r}, which must be an earlier gate."
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

    @cached_property
    def wholes(self) -> dict[str, str]:
        """The outermost gate that each condition belongs to, by the name of the condition."""
        found: dict[str, str] = {}
        parents = {gate.parent for gate in self.gates}
        parent_of = {gate.name: gate.parent for gate in self.gates}
        for gate in reversed(self.gates):  # a condition of a condition belongs to the outermost
            for name, _ in gate.operands:
                is_named_so = name.startswith(tuple(gate.name + mark for mark in _CONDITION))
                if is_named_so and parent_of[name] == gate.parent and name not in parents:
                    found[name] = found.get(gate.name, gate.name)
        return found

    @property
    def populations(self) -> tuple[str, ...]:
        """Names of the gates that are no conditions of others."""
        return tuple(name for name in self.names if name not in self.wholes)

    def conditions(self, name: str | None) -> tuple[Gate, ...]:
        """Return the conditions of a gate."""
        return tuple(gate for gate in self.gates if self.wholes.get(gate.name) == name)

    def differs(self, name: str) -> str:
        """Return in words in which samples a gate or its conditions lie elsewhere; "" if in none."""
        samples = [
            f"{adjusted.column} {adjusted.sample}"
            for gate in (self[name], *self.conditions(name))
            for adjusted in gate.by_sample
        ]
        return f"Differs by sample: elsewhere in {', '.join(dict.fromkeys(samples))}" * bool(
            samples
        )

    def walk(self, parent: str | None = None, depth: int = 0) -> Iterator[tuple[int, Gate]]:
        """Yield every gate but conditions with its depth, each followed by those inside of it."""
        for gate in self.gates:
            if gate.parent == parent and gate.name not in self.wholes:
                yield depth, gate
                yield from self.walk(gate.name, depth + 1)

    def path(self, name: str) -> tuple[str, ...]:
        """Return the names of the gates around a gate and its own, the outermost first."""
        gate = self[name]
        return (*(() if gate.parent is None else self.path(gate.parent)), name)

    def needed(self, name: str) -> "Gating":
        """Return a gate with all those around it and those that they combine, and no others."""
        wanted, waiting = set[str](), [name]
        while waiting:
            gate = self[waiting.pop()]
            wanted.add(gate.name)
            around = () if gate.parent is None else (gate.parent,)
            waiting += [*around, *(operand.gate for operand in gate.operands)]
        return Gating(tuple(gate for gate in self.gates if gate.name in wanted))

    def free_name(self, start: str = "Gate") -> str:
        """Return "Gate 1", or the next that is not taken; for a name that is taken, "NAME 2"."""
        number = 2 if start in self.names else 1
        while f"{start} {number}" in self.names:
            number += 1
        return f"{start} {number}"

    def add(self, *gates: Gate) -> "Gating":
        """Return the hierarchy with more gates."""
        return Gating((*self.gates, *gates))

    def with_others(self, others: "Gating") -> "Gating":
        """Return the hierarchy with the gates of another; "T" becomes "T 2" where the name is taken."""
        for name in others.populations:
            number, new = 2, name
            while new in self.names or (new != name and new in others.names):
                number, new = number + 1, f"{name} {number}"
            others = others if new == name else others.rename(name, new)
        return self.add(*others.gates)

    def rename(self, old: str, new: str) -> "Gating":
        """Return the hierarchy with a gate renamed, and its conditions with it."""
        new_names = {self[old].name: new}
        new_names |= {g.name: new + g.name.removeprefix(old) for g in self.conditions(old)}

        def renamed(gate: Gate) -> Gate:
            return replace(
                gate,
                name=new_names.get(gate.name, gate.name),
                parent=new if gate.parent == old else gate.parent,
                operands=tuple(
                    operand._replace(gate=new_names.get(operand.gate, operand.gate))
                    for operand in gate.operands
                ),
            )

        return Gating(tuple(map(renamed, self.gates)))

    def remove(self, name: str) -> "Gating":
        """Return the hierarchy without a gate, its conditions, all that lie in it or combine it."""
        gone = {self[name].name}
        for gate in self.gates:
            if gate.parent in gone or any(operand.gate in gone for operand in gate.operands):
                gone.add(gate.name)
        gone |= {part for part, whole in self.wholes.items() if whole in gone}
        return Gating(tuple(gate for gate in self.gates if gate.name not in gone))

    def crossed_with(self, gate: Gate) -> tuple[Gate, ...]:
        """Return the quadrants that share the centre of a quadrant; of other shapes the gate alone."""
        if gate.shape != "quadrant":
            return (gate,)

        def cross(some: Gate) -> object:
            return some.shape, some.parent, some.axes, some.vertices, some.by_sample

        return tuple(some for some in self.gates if cross(some) == cross(gate))

    def place(
        self, name: str, vertices: Vertices, sample: tuple[str, str] | None = None
    ) -> "Gating":
        """Return the hierarchy with a gate moved or reshaped.

        Quadrants move together, and so do equal conditions of a gate.
        """
        gate = self[name]
        placed = {crossed.name for crossed in self.crossed_with(gate)}
        if name in self.wholes:
            others = self.conditions(self.wholes[name])
            placed |= {other.name for other in others if other.place == gate.place}
        return Gating(
            tuple(
                gate.placed(vertices, sample) if gate.name in placed else gate
                for gate in self.gates
            )
        )


def members(
    gating: Gating, own: Callable[[Gate], np.ndarray], n_cells: int
) -> dict[str | None, np.ndarray]:
    """Return which cells are in each gate and in all gates around it, by name; None: all cells.

    Parameters
    ----------
    own
        Gives the cells (n_cells,) inside the region of a gate, which is not Boolean.
    """
    found: dict[str | None, np.ndarray] = {None: np.ones(n_cells, dtype=bool)}
    for gate in gating.gates:
        if gate.shape == "boolean":
            combine = np.logical_and if gate.operator == "and" else np.logical_or
            inside = combine.reduce([found[o.gate] ^ o.complement for o in gate.operands])
        else:
            inside = own(gate)
        found[gate.name] = found[gate.parent] & inside
    return found


def counts(gating: Gating, inside: Mapping[str | None, np.ndarray]) -> dict[str, Count]:
    """Count the cells of each gate, from what `members` gave."""
    numbers = {name: int(mask.sum()) for name, mask in inside.items()}
    return {
        gate.name: Count(
            numbers[gate.name],
            percent(numbers[gate.name], numbers[gate.parent]),
            percent(numbers[gate.name], numbers[None]),
        )
        for gate in gating.gates
    }


def percent(cells: int, of: int) -> float:
    """Return a share in percent; NaN of nothing."""
    return 100 * cells / of if of else float("nan")


def deepest(gating: Gating, inside: Mapping[str | None, np.ndarray]) -> np.ndarray:
    """Return the path of the innermost gate of each cell, as "T cells/CD4 T"; "" in none.

    Where gates side by side overlap, the one drawn first counts.
    """
    code = np.full(len(inside[None]), len(gating.gates))
    for number, gate in enumerate(gating.gates):
        if gate.name in gating.wholes:
            continue
        around = len(gating.gates) if gate.parent is None else gating.names.index(gate.parent)
        code[inside[gate.name] & (code == around)] = number
    paths = ["/".join(gating.path(name)) for name in gating.names]
    path_of: np.ndarray = np.array([*paths, ""], dtype=object)[code]
    return path_of
