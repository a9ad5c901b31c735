"""Gates as Gating-ML 2.0, which FlowJo, Cytobank, FlowKit and others read and write.

The standard (Spidlen et al., Cytometry A 2015) refers to channels of FCS files by name. A channel
here is named for the values that it holds, such as ``protein_denoised:CD4``, as
`totalvi.explorer.fcs` writes it. Of a log axis, which Gating-ML lacks (its logarithm has no
offset), the channel ``log10:protein_raw:CD4`` holds log10(1 + count). An asinh axis, asinh(x / 5), is
the standard's ``fasinh`` with A = 0 and T = 5 sinh(M ln 10), whose values are asinh(x / 5) / (M ln 10).
"""

import math
import re
from urllib.parse import unquote
from xml.etree import ElementTree  # nosec B405: only writes

import numpy as np

from totalvi.errors import DataError, OutputError
from totalvi.explorer.axes import COFACTOR, FAR, Axis
from totalvi.explorer.gates import Gate, Gating

GATING = "http://www.isac-net.org/std/Gating-ML/v2.0/gating"
TRANSFORMS = "http://www.isac-net.org/std/Gating-ML/v2.0/transformations"
TYPES = "http://www.isac-net.org/std/Gating-ML/v2.0/datatypes"
PREFIXES = {"gating": GATING, "transforms": TRANSFORMS, "data-type": TYPES}
_ASINH = "asinh_5"  # id of the transformation
_DECADES = 4.5  # M
_TOP = COFACTOR * math.sinh(_DECADES * math.log(10))  # T
_UNIT = _DECADES * math.log(10)  # of our scale in one of fasinh
_LOG = "log10:"
_UNDERSCORED = ("parent_id", "divider_ref")  # the standard writes other names with hyphens


def channel_of(axis: Axis) -> str:
    """Return the name of the channel with the values of an axis; commas, which FCS forbids, as %2C.

    Examples
    --------
    >>> channel_of(Axis("protein_raw", "HLA-A,B", "log"))
    'log10:protein_raw:HLA-A%2CB'
    """
    name = axis.name.replace("%", "%25").replace(",", "%2C")
    return f"{_LOG if axis.scale == 'log' else ''}{axis.kind}:{name}"


def axis_of(channel: str) -> Axis:
    """Return the axis of a channel that `channel_of` named; linear but for a log channel."""
    kind, colon, name = channel.removeprefix(_LOG).partition(":")
    if not colon:
        raise DataError(
            f"The gates are on the channel {channel!r}, which is not one of totalvi; gate the FCS "
            "file that totalvi wrote."
        )
    return Axis(kind, unquote(name), "log" if channel.startswith(_LOG) else "linear")  # type: ignore[arg-type]


def to_gating_ml(gating: Gating, sample: tuple[str, str] | None = None) -> str:
    """Return gates as a Gating-ML 2.0 document.

    Parameters
    ----------
    sample
        Whose gates to write, where they differ by sample: a column of ``obs``, and its value.

    Raises
    ------
    OutputError
        When gates differ by sample and ``sample`` is None.
    """
    if sample is None and any(gate.by_sample for gate in gating.gates):
        raise OutputError(
            "Gating-ML holds no gates that differ by sample; write the gates of each sample."
        )
    for prefix, place in PREFIXES.items():
        ElementTree.register_namespace(prefix, place)
    root = ElementTree.Element(f"{{{GATING}}}Gating-ML")
    if any(axis.scale == "asinh" for gate in gating.gates for axis in gate.axes):
        transformation = _add(root, TRANSFORMS, "transformation", id=_ASINH)
        _add(transformation, TRANSFORMS, "fasinh", T=_number(_TOP), M=_number(_DECADES), A="0")
    written: set[str] = set()
    for gate in gating.gates:
        if gate.name not in written:
            crossed = gating.crossed_with(gate)
            written |= {some.name for some in crossed}
            _write(root, crossed, sample)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add(
    parent: ElementTree.Element, space: str, tag: str, **attributes: str
) -> ElementTree.Element:
    place = TYPES if tag == "fcs-dimension" else space
    qualified = {}
    for name, text in attributes.items():
        written = name if name in _UNDERSCORED else name.replace("_", "-")
        qualified[f"{{{space}}}{written}"] = text
    return ElementTree.SubElement(parent, f"{{{place}}}{tag}", qualified)


def _number(value: float) -> str:
    return repr(float(value))


def _write(
    root: ElementTree.Element, gates: tuple[Gate, ...], sample: tuple[str, str] | None
) -> None:
    gate = gates[0]
    tags = {"ellipse": "Ellipsoid", "quadrant": "Quadrant", "boolean": "Boolean"}
    is_box = gate.shape == "range" or (gate.shape == "rectangle" and _is_box(gate))
    tag = "Rectangle" if is_box else tags.get(gate.shape, "Polygon")
    names = {"id": _id_of(gate.name)}
    if gate.shape == "quadrant":
        names["id"] = f"cross_{names['id']}"
    if gate.parent is not None:
        names["parent_id"] = _id_of(gate.parent)
    element = _add(root, GATING, f"{tag}Gate", **names)
    points = np.array(gate.vertices_of(sample), dtype=float)
    units = np.array([_UNIT if axis.scale == "asinh" else 1.0 for axis in gate.axes])
    if gate.shape == "quadrant":
        _write_quadrants(element, gates, points[0] / units)
        return
    for place, axis in enumerate(gate.axes):
        bounds = {}
        if is_box:
            low, high = points[:, place].min(), points[:, place].max()
            if low > -FAR[axis.scale]:
                bounds["min"] = _number(low / units[place])
            if high < FAR[axis.scale]:
                bounds["max"] = _number(high / units[place])
        _write_dimension(element, axis, "dimension", **bounds)
    if tag == "Polygon":
        for point in points / units:
            vertex = _add(element, GATING, "vertex")
            for value in point:
                _add_value(vertex, "coordinate", value)
    elif tag == "Ellipsoid":
        half = ((points[1:] - points[0]) / units).T
        mean = _add(element, GATING, "mean")
        for value in points[0] / units:
            _add_value(mean, "coordinate", value)
        covariance = _add(element, GATING, "covarianceMatrix")
        for row in half @ half.T:
            line = _add(covariance, GATING, "row")
            for value in row:
                _add_value(line, "entry", value)
        _add_value(element, "distanceSquare", 1.0)
    elif tag == "Boolean":
        _write_boolean(element, gate)


def _add_value(parent: ElementTree.Element, tag: str, value: float) -> None:
    element = _add(parent, GATING, tag)
    element.set(f"{{{TYPES}}}value", _number(value))


def _write_dimension(
    parent: ElementTree.Element, axis: Axis, tag: str, **attributes: str
) -> ElementTree.Element:
    if axis.scale == "asinh":
        attributes["transformation_ref"] = _ASINH
    dimension = _add(parent, GATING, tag, compensation_ref="uncompensated", **attributes)
    channel = _add(dimension, GATING, "fcs-dimension")
    channel.set(f"{{{TYPES}}}name", channel_of(axis))
    return dimension


def _write_quadrants(
    element: ElementTree.Element, gates: tuple[Gate, ...], centre: np.ndarray
) -> None:
    for axis, name, at in zip(gates[0].axes, "xy", centre, strict=True):
        divider = _write_dimension(element, axis, "divider", id=f"{name}_{_id_of(gates[0].name)}")
        _add(divider, GATING, "value").text = _number(at)
    for gate in gates:
        quadrant = _add(element, GATING, "Quadrant", id=_id_of(gate.name))
        for name, at, side in zip("xy", centre, gate.part, strict=True):
            beside = at + (1.0 if side == "+" else -1.0)
            _add(
                quadrant, GATING, "position",
                divider_ref=f"{name}_{_id_of(gates[0].name)}", location=_number(beside),
            )  # fmt: skip


def _write_boolean(element: ElementTree.Element, gate: Gate) -> None:
    alone = len(gate.operands) == 1
    is_not = alone and gate.operands[0].complement
    operands = gate.operands * 2 if alone and not is_not else gate.operands
    combined = _add(element, GATING, "not" if is_not else gate.operator)
    for operand in operands:
        marks = {"use_as_complement": "true"} if operand.complement and not is_not else {}
        _add(combined, GATING, "gateReference", ref=_id_of(operand.gate), **marks)


def _is_box(gate: Gate) -> bool:
    points = np.array(gate.vertices)
    sides = [np.unique(points[:, place]) for place in (0, 1)]
    return (
        len(points) == 4 and len(np.unique(points, axis=0)) == 4 and all(len(s) == 2 for s in sides)
    )


def _id_of(name: str) -> str:
    """Return a name as an XML id; characters that ids cannot hold are ``_x0020_`` and so on.

    Examples
    --------
    >>> _id_of("CD4+ T"), name_of(_id_of("CD4+ T"))
    ('CD4_x002B__x0020_T', 'CD4+ T')
    """
    name = name.replace("_x", "_x005F_x")
    return re.sub(r"[^A-Za-z0-9_.-]|^[^A-Za-z_]", lambda found: f"_x{ord(found[0]):04X}_", name)


def name_of(identifier: str) -> str:
    """Return the name of which an XML id was made."""
    return re.sub(r"_x([0-9A-F]{4,6})_", lambda found: chr(int(found[1], 16)), identifier)
