"""Read gates from Gating-ML 2.0, as `totalvi.explorer.gatingml` and other programs write it."""

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree  # nosec B405: see `_parsed`

import numpy as np

from totalvi.errors import DataError, FormatError
from totalvi.explorer.axes import FAR, Axis, Scale, to_scale
from totalvi.explorer.gate_shapes import box
from totalvi.explorer.gates import MOST_GATES, PARTS, Gate, Gating, Operand, Point, Shape, Vertices
from totalvi.explorer.gatingml import GATING, PREFIXES, TRANSFORMS, TYPES, axis_of, name_of

_MOST_SIDES = 4_000  # of a polygon whose sides are bent by another transformation
_BENT_PIECES = 16  # of each side


def from_gating_ml(text: str, where: str = "the document") -> Gating:
    """Return the gates of a Gating-ML 2.0 document on channels that `channel_of` named.

    A side of a polygon that another transformation bends is cut into 16 straight ones.

    Raises
    ------
    FormatError
        When the document is no Gating-ML 2.0, or holds what the explorer has not: other channels,
        gates of more than two dimensions, compensation.
    """
    try:
        return _Document(_parsed(text)).gating()
    except (ValueError, KeyError, DataError, OverflowError, ElementTree.ParseError) as error:
        raise FormatError(f"{where} cannot be used as Gating-ML 2.0: {error}") from error


def _parsed(text: str) -> ElementTree.Element:
    if "<!" in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL):  # entities could grow without end
        raise ValueError("it has a document type; leave that out.")
    root = ElementTree.fromstring(text)  # nosec B314: has no entities
    if root.tag != f"{{{GATING}}}Gating-ML":
        raise ValueError("it does not begin with Gating-ML of version 2.0.")
    return root


def _of(element: ElementTree.Element, name: str, space: str = GATING) -> str:
    found = element.get(f"{{{space}}}{name}")
    if found is None:
        raise ValueError(f"an element lacks its {name}.")
    return found


class _Document:
    """The gates of a parsed document."""

    def __init__(self, root: ElementTree.Element) -> None:
        self._inverse: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        self._gates = [child for child in root if child.tag.startswith(f"{{{GATING}}}")]
        for element in root.iter(f"{{{TRANSFORMS}}}transformation"):
            self._inverse[_of(element, "id", TRANSFORMS)] = _inverse_of(element[0])

    def gating(self) -> Gating:
        found = [gate for element in self._gates for gate in self._read(element)]
        if len(found) > MOST_GATES:
            raise ValueError(f"it holds {len(found):,} gates; give at most {MOST_GATES:,}.")
        ordered, names = list[Gate](), set[str | None]({None})
        while found:  # gates may stand before their parents
            ready = [
                g for g in found if {g.parent, *(operand.gate for operand in g.operands)} <= names
            ]
            if not ready:
                raise ValueError(
                    f"the gate {found[0].name!r} refers to one that is not in the file."
                )
            ordered += ready
            names |= {gate.name for gate in ready}
            found = [gate for gate in found if gate not in ready]
        return Gating(tuple(ordered))

    def _read(self, element: ElementTree.Element) -> list[Gate]:
        kind = element.tag.removeprefix(f"{{{GATING}}}")
        name = name_of(_of(element, "id"))
        above = element.get(f"{{{GATING}}}parent_id")
        parent = None if above is None else name_of(above)
        if kind == "BooleanGate":
            return [self._boolean(element, name, parent)]
        if kind not in ("RectangleGate", "PolygonGate", "EllipsoidGate", "QuadrantGate"):
            raise ValueError(f"it holds a {kind}, which the explorer does not know.")
        tag = "divider" if kind == "QuadrantGate" else "dimension"
        dimensions = element.findall(f"gating:{tag}", PREFIXES)
        if not 1 <= len(dimensions) <= 2:
            raise ValueError(f"gate {name!r} has {len(dimensions)} dimensions, not one or two.")
        axes, to_place = zip(*map(self._dimension, dimensions), strict=True)
        if kind == "QuadrantGate":
            return self._quadrants(element, dimensions, axes, to_place, parent)
        shape, vertices = _region(kind, element, dimensions, axes, to_place)
        return [Gate(name, axes, vertices, parent, shape)]

    def _dimension(
        self, element: ElementTree.Element
    ) -> tuple[Axis, Callable[[np.ndarray], np.ndarray]]:
        if _of(element, "compensation-ref") not in ("uncompensated", "FCS"):
            raise ValueError("it asks for compensation, which counts do not need; leave that out.")
        channel = element.find("data-type:fcs-dimension", PREFIXES)
        if channel is None:
            raise ValueError("a dimension is not a channel.")
        axis = axis_of(_of(channel, "name", TYPES))
        reference = element.get(f"{{{GATING}}}transformation-ref")
        if reference is None:
            return axis, lambda values: values
        inverse = self._inverse[reference]
        scale: Scale = "asinh"  # any transformation of counts comes to lie on this scale
        return Axis(axis.kind, axis.name, scale), lambda values: to_scale(inverse(values), scale)

    def _quadrants(
        self,
        element: ElementTree.Element,
        dividers: list[ElementTree.Element],
        axes: tuple[Axis, ...],
        to_place: tuple[Callable[[np.ndarray], np.ndarray], ...],
        parent: str | None,
    ) -> list[Gate]:
        at = {}
        for divider in dividers:
            values = [float(v.text or "nan") for v in divider.findall("gating:value", PREFIXES)]
            if len(values) != 1:
                raise ValueError("a divider does not have exactly one value.")
            at[_of(divider, "id")] = values[0]
        centre = tuple(
            float(to(np.array(value))) for to, value in zip(to_place, at.values(), strict=True)
        )
        gates = []
        for quadrant in element.findall("gating:Quadrant", PREFIXES):
            sides = {
                _of(p, "divider_ref"): float(_of(p, "location"))
                for p in quadrant.findall("gating:position", PREFIXES)
            }
            part = "".join("+" if sides[name] >= value else "-" for name, value in at.items())
            if part not in PARTS:
                raise ValueError("a quadrant does not have two dividers.")
            name = name_of(_of(quadrant, "id"))
            gates.append(Gate(name, axes, (centre,), parent, "quadrant", part))
        return gates

    def _boolean(self, element: ElementTree.Element, name: str, parent: str | None) -> Gate:
        tags = {"and", "or", "not"}
        combined = next((c for c in element if c.tag.removeprefix(f"{{{GATING}}}") in tags), None)
        if combined is None:
            raise ValueError(f"the Boolean gate {name!r} has no and, or or not.")
        how = combined.tag.removeprefix(f"{{{GATING}}}")
        operands: dict[Operand, None] = {}
        for reference in combined.findall("gating:gateReference", PREFIXES):
            turned = reference.get(f"{{{GATING}}}use-as-complement", "false") in ("true", "1")
            operands[Operand(name_of(_of(reference, "ref")), turned != (how == "not"))] = None
        return Gate(
            name, (), (), parent, "boolean",
            operator="or" if how == "or" else "and", operands=tuple(operands),
        )  # fmt: skip


def _inverse_of(element: ElementTree.Element) -> Callable[[np.ndarray], np.ndarray]:
    """Return what takes transformed values back to counts."""
    kind = element.tag.removeprefix(f"{{{TRANSFORMS}}}")
    if kind not in ("fasinh", "flin", "flog"):
        raise ValueError(f"it transforms by {kind}; give gates on fasinh, flin or flog.")
    top = float(_of(element, "T", TRANSFORMS))
    if kind == "flin":
        below = float(_of(element, "A", TRANSFORMS))
        return lambda values: values * (top + below) - below
    decades = float(_of(element, "M", TRANSFORMS))
    if kind == "flog":
        return lambda values: top * 10.0 ** ((values - 1) * decades)
    above, ln = float(_of(element, "A", TRANSFORMS)), math.log(10)
    unit = top / math.sinh(decades * ln)
    return lambda values: unit * np.sinh((decades + above) * ln * values - above * ln)


def _region(
    kind: str,
    element: ElementTree.Element,
    dimensions: list[ElementTree.Element],
    axes: tuple[Axis, ...],
    to_place: tuple[Callable[[np.ndarray], np.ndarray], ...],
) -> tuple[Shape, Vertices]:
    if kind == "RectangleGate":
        ends = []
        for dimension, axis, to in zip(dimensions, axes, to_place, strict=True):
            bounds = (dimension.get(f"{{{GATING}}}{name}") for name in ("min", "max"))
            far = FAR[axis.scale]
            ends.append(
                [
                    side * far if text is None else float(to(np.array(float(text))))
                    for text, side in zip(bounds, (-1, 1), strict=True)
                ]
            )
        if len(ends) == 1:
            return "range", ((ends[0][0],), (ends[0][1],))
        return "rectangle", box(ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    if len(axes) != 2:
        raise ValueError(f"a {kind} has one dimension, not two.")
    if kind == "PolygonGate":
        corners = [_values(v, "coordinate") for v in element.findall("gating:vertex", PREFIXES)]
        return "polygon", _placed(np.array(corners), to_place)
    mean = element.find("gating:mean", PREFIXES)
    covariance = element.findall("gating:covarianceMatrix/gating:row", PREFIXES)
    distance = element.find("gating:distanceSquare", PREFIXES)
    if mean is None or distance is None:
        raise ValueError("an ellipsoid gate lacks its mean or its distance.")
    centre = np.array(_values(mean, "coordinate"))
    matrix = np.array([_values(row, "entry") for row in covariance])
    half = np.linalg.cholesky(matrix * float(_of(distance, "value", TYPES))).T
    vertices = tuple(tuple(map(float, p)) for p in (centre, centre + half[0], centre + half[1]))
    places = [_place(np.array(point), to_place) for point in vertices]
    middle = _place((np.array(vertices[1]) + np.array(vertices[2])) / 2, to_place)
    if np.allclose(middle, (places[1] + places[2]) / 2, rtol=1e-9, atol=1e-9):
        return "ellipse", tuple(tuple(map(float, point)) for point in places)
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)  # bent: no ellipse on our scale
    around = centre + np.c_[np.cos(angle), np.sin(angle)] @ half
    return "polygon", tuple(tuple(map(float, _place(point, to_place))) for point in around)


def _values(element: ElementTree.Element, tag: str) -> list[float]:
    found = element.findall(f"gating:{tag}", PREFIXES)
    return [float(_of(child, "value", TYPES)) for child in found]


def _place(
    point: np.ndarray, to_place: tuple[Callable[[np.ndarray], np.ndarray], ...]
) -> np.ndarray:
    return np.array([float(to(value)) for to, value in zip(to_place, point, strict=True)])


def _placed(
    corners: np.ndarray, to_place: tuple[Callable[[np.ndarray], np.ndarray], ...]
) -> tuple[Point, ...]:
    """Return corners on our scales, with more on each side that is not straight there."""
    placed = [_place(corner, to_place) for corner in corners]
    points = []
    share = np.arange(1, _BENT_PIECES) / _BENT_PIECES
    for number, start in enumerate(corners):
        after = (number + 1) % len(corners)
        points.append(placed[number])
        between = start + share[:, None] * (corners[after] - start)
        there = np.array([_place(point, to_place) for point in between])
        straight = placed[number] + share[:, None] * (placed[after] - placed[number])
        if not np.allclose(there, straight, rtol=1e-9, atol=1e-9) and len(corners) < _MOST_SIDES:
            points += list(there)
    return tuple(tuple(map(float, point)) for point in points)
