"""Gates and cells as Gating-ML 2.0 and FCS, read by FlowKit and FlowIO, and by the explorer itself."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.errors import FormatError, OutputError
from totalvi.explorer.axes import Axis
from totalvi.explorer.fcs import channels_of, fcs_bytes, write_exchange
from totalvi.explorer.gate_files import gates_from_text
from totalvi.explorer.gate_shapes import box, contains
from totalvi.explorer.gates import PARTS, Adjusted, Gate, Gating, Operand, members
from totalvi.explorer.gatingml import axis_of, channel_of, name_of, to_gating_ml
from totalvi.explorer.gatingml_reader import from_gating_ml
from totalvi.explorer.run_cells import RunCells

DENOISED = (Axis("protein_denoised", "CD3", "asinh"), Axis("protein_raw", "CD3", "log"))
UMAP = (Axis("umap", "1"), Axis("umap", "2"))
CLR = Axis("protein_clr", "CD3")


def every_shape() -> Gating:
    lasso = tuple((2 + 1.5 * np.cos(a), 1 + np.sin(a)) for a in np.linspace(0, 6, 40))
    cross = [Gate(f"q {part}", UMAP, ((0.1, -0.2),), "wide", "quadrant", part) for part in PARTS]
    return Gating(
        (
            Gate("wide", DENOISED, box(0.3, 0.2, 3.0, 2.0), shape="rectangle"),
            *cross,
            Gate("Lasso + 1", DENOISED, lasso, shape="lasso"),
            Gate("ellipse", DENOISED, ((1.6, 1.0), (2.9, 1.3), (1.5, 1.2)), "wide", "ellipse"),
            Gate("range", (CLR,), ((-0.2,), (0.4,)), "q ++", "range"),
            Gate("either", (), (), None, "boolean", "", "or",
                 (Operand("ellipse"), Operand("q --", complement=True))),
            Gate("both", (), (), "wide", "boolean", "", "and",
                 (Operand("ellipse", complement=True), Operand("q +-"))),
            Gate("outside", (), (), None, "boolean", "", "and",
                 (Operand("wide", complement=True),)),
            Gate("inside of both", UMAP, box(-1, -1, 1, 1), "both", "rectangle"),
        )
    )  # fmt: skip


def inside(cells: RunCells, gating: Gating) -> dict[str | None, np.ndarray]:
    return members(gating, cells.inside, cells.n_cells)


def test_gating_ml_comes_back_as_gates_of_the_same_cells(folder: Path) -> None:
    gating = every_shape()
    with RunCells(folder) as cells:
        before, after = inside(cells, gating), inside(cells, from_gating_ml(to_gating_ml(gating)))
    assert before.keys() == after.keys()
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected, err_msg=str(name))
    sizes = [int(mask.sum()) for name, mask in before.items() if name is not None]
    assert min(sizes) > 0
    assert max(sizes) < 60


def test_flowkit_and_flowio_find_the_same_cells(folder: Path, tmp_path: Path) -> None:
    flowio = pytest.importorskip("flowio", reason="needs FlowIO")
    flowkit = pytest.importorskip("flowkit", reason="needs FlowKit")
    gating = every_shape()
    with RunCells(folder) as cells:
        expected = inside(cells, gating)
        written = write_exchange(cells, gating, tmp_path / "fcs", "leiden_totalvi")
        assert [path.name for path in written] == ["a.fcs", "b.fcs", "gates.xml"]
        found = {name: np.zeros(60, dtype=bool) for name in gating.names}
        strategy = flowkit.parse_gating_xml(str(written[-1]))
        seen = []
        for path in written[:2]:
            file = flowio.FlowData(str(path))
            values = np.reshape(file.events, (file.event_count, file.channel_count))
            names = [file.channels[number]["pnn"] for number in sorted(file.channels)]
            number = values[:, names.index("Cell")].astype(int) - 1
            seen += number.tolist()
            assert file.text["sample"] == path.stem
            for axis in channels_of(cells, gating):
                there = cells.places(axis.kind, axis.name, axis.scale)[number]
                np.testing.assert_array_equal(
                    values[:, names.index(channel_of(axis))],
                    np.nan_to_num(there).astype(np.float32),
                )
            for place, gate in enumerate(gating.populations, start=1):
                channel = values[:, names.index(f"Gate {place}")]
                np.testing.assert_array_equal(channel, expected[gate][number], err_msg=gate)
                assert file.channels[names.index(f"Gate {place}") + 1]["pns"] == f"in {gate}"
            sample = flowkit.Sample(str(path), sample_id=path.stem)
            gated = strategy.gate_sample(sample)
            for identifier, way in strategy.get_gate_ids():
                name = name_of(identifier)
                if name in found:
                    found[name][number] = gated.get_gate_membership(identifier, way)
    assert sorted(seen) == list(range(60))
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)


def test_gating_ml_keeps_to_its_schema() -> None:
    flowkit = pytest.importorskip("flowkit", reason="needs FlowKit, which has the schema")
    etree = pytest.importorskip("lxml.etree")
    place = Path(flowkit.__file__).parent / "_resources" / "Gating-ML.v2.0.xsd"
    schema = etree.XMLSchema(etree.parse(str(place)))
    schema.assertValid(etree.fromstring(to_gating_ml(every_shape()).encode()))


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_names_come_back(name: str) -> None:
    axis = Axis("protein_raw", name, "log")
    assert axis_of(channel_of(axis)) == axis
    assert "," not in channel_of(axis)
    gate = Gate(name.replace("/", "|"), UMAP, box(0, 0, 1, 1), shape="rectangle")
    assert from_gating_ml(to_gating_ml(Gating((gate,)))) == Gating((gate,))


def test_other_transformations_are_bent_to_ours() -> None:
    text = to_gating_ml(Gating((Gate("a", DENOISED[:1] * 2, ((0.5, 0.5), (3, 1), (2, 3))),)))
    linear = text.replace(' gating:transformation-ref="asinh_5"', "")
    # a triangle of counts (T = 1, M = 1, A = 0: other numbers of the same transformation)
    for changed in (linear, text.replace('transforms:M="4.5"', 'transforms:M="5"')):
        (gate,) = from_gating_ml(changed).gates
        assert gate.shape == "polygon"
    counts = np.random.default_rng(0).gamma(0.5, 0.1, (2, 3000))
    (original,) = from_gating_ml(linear).gates
    bent = from_gating_ml(text.replace("fasinh", "flin").replace('transforms:M="4.5" ', "")).gates[
        0
    ]
    assert len(original.vertices) == 3
    assert len(bent.vertices) > 3
    top = 5 * np.sinh(4.5 * np.log(10))
    corners = np.array(original.vertices) * top
    points = counts * top
    expected = contains(original, tuple(map(tuple, corners)), points)
    found = contains(bent, bent.vertices, np.arcsinh(points / 5))
    assert 100 < expected.sum() < 2900
    assert (expected != found).mean() < 0.002


def test_gates_that_differ_by_sample_have_a_file_each(folder: Path, tmp_path: Path) -> None:
    moved = Adjusted("leiden_totalvi", "b", box(0, -9, 9, 9))
    gate = Gate("a", UMAP, box(-1, -1, 1, 1), None, "rectangle", by_sample=(moved,))
    gating = Gating((gate,))
    with pytest.raises(OutputError, match="differ by sample"):
        to_gating_ml(gating)
    with RunCells(folder) as cells:
        with pytest.raises(OutputError, match="choose it as Samples"):
            write_exchange(cells, gating, tmp_path)
        expected = inside(cells, gating)["a"]
        written = write_exchange(cells, gating, tmp_path, "leiden_totalvi")
        assert [path.name for path in written] == ["a.fcs", "a.xml", "b.fcs", "b.xml"]
        for sample, path in (("a", written[1]), ("b", written[3])):
            of_sample = cells.of_sample("leiden_totalvi", sample)
            found = inside(cells, gates_from_text(path.read_text()))["a"]
            np.testing.assert_array_equal(found[of_sample], expected[of_sample])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Gating-ML/v2.0/gating", "Gating-ML/v1.5/gating"),
        ("umap:1", "FL1-A"),
        ("uncompensated", "spill"),
        ("<gating:Gating-ML", "<!DOCTYPE x [<!ENTITY a 'b'>]><gating:Gating-ML"),
        ('gating:parent_id="wide"', 'gating:parent_id="nothing"'),
        ("QuadrantGate", "NightGate"),
        ("fasinh", "logicle"),
        ('data-type:value="1.0"', 'data-type:value="one"'),
        ('transforms:id="asinh_5"', 'transforms:id="other"'),
        ("</gating:Gating-ML>", ""),
    ],
)
def test_what_the_explorer_has_not_is_refused(old: str, new: str) -> None:
    text = to_gating_ml(every_shape())
    assert old in text
    gates_from_text(text)
    with pytest.raises(FormatError, match="cannot be used as Gating-ML"):
        gates_from_text(text.replace(old, new))


def test_fcs_with_odd_names_is_read(tmp_path: Path) -> None:
    flowio = pytest.importorskip("flowio", reason="needs FlowIO")
    values = np.array([[1.0, np.nan], [2.5, 1e6], [0, 3]])
    path = tmp_path / "odd.fcs"
    path.write_bytes(fcs_bytes(values, ["B220/CD45R", "é"], ["CD45R/B220", "//"], SAMPLE="a/b"))
    file = flowio.FlowData(str(path))
    assert file.text["sample"] == "a/b"
    assert [file.channels[n]["pnn"] for n in (1, 2)] == ["B220/CD45R", "é"]
    np.testing.assert_array_equal(
        np.reshape(file.events, (3, 2)), np.nan_to_num(values).astype(np.float32)
    )
