"""What the page does when a gate is drawn, chosen, named, taken back and saved; without a browser."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bokeh.document import Document

from totalvi.errors import DataError, FormatError
from totalvi.explorer.app import Explorer
from totalvi.explorer.compare import PARENT_REST
from totalvi.explorer.comparer import Compared
from totalvi.explorer.gate_files import gates_to_json, read_gates
from totalvi.explorer.panels import DENSITY
from totalvi.explorer.server import open_in_browser
from totalvi.explorer.workspace import Workspace, open_workspace

BOX = ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0))


class Asked:
    """Stands for the model: keeps what it was asked."""

    def __init__(self) -> None:
        self.groups: list[tuple[np.ndarray, np.ndarray]] = []

    def compare(self, first: np.ndarray, second: np.ndarray) -> Compared:
        self.groups.append((first, second))
        table = pd.DataFrame(
            {
                "modality": ["rna"], "is_de_fdr_0.05": [True], "bayes_factor": [3.0],
                "lfc_median": [1.0], "proba_de": [0.9], "raw_mean1": [1.0], "raw_mean2": [2.0],
            },
            index=["2"],
        )  # fmt: skip
        return Compared(table, int(first.sum()), int(second.sum()), 1, 1, True)


@pytest.fixture
def workspace(folder: Path) -> Iterator[Workspace]:
    opened = open_workspace(folder)
    opened.comparer = Asked()  # type: ignore[assignment]
    with opened.cells:
        yield opened
        opened.executor.shutdown()


@pytest.fixture
def page(workspace: Workspace) -> Explorer:
    return Explorer(Document(), workspace)


def answer(page: Explorer) -> None:
    """Wait for what runs in the background, and do what the server would do next."""
    page.workspace.executor.submit(lambda: None).result()
    for callback in page.document.session_callbacks:
        callback.callback()


def rows(page: Explorer) -> list[str]:
    return [name.strip("\u2003\u2514 ") for name in page.panel.table.source.data["gate"]]


def test_a_gate_is_counted_and_compared_with_all_others(page: Explorer) -> None:
    x, y = page.plots[0].places
    inside = (x >= 0) & (y >= 0) & (x < 9) & (y < 9)
    page.add_gate(page.plots[0], "rectangle", BOX)
    answer(page)
    assert rows(page) == ["All cells", "Gate 1"]
    assert page.panel.table.source.data["cells"] == [str(len(x)), str(inside.sum())]
    assert page.panel.table.source.data["of_all"][1] == f"{100 * inside.mean():.1f}"
    first, second = page.workspace.comparer.groups[-1]
    np.testing.assert_array_equal(first, inside)
    np.testing.assert_array_equal(second, ~inside)
    assert f"Compared {inside.sum()} cells" in page.differences.said.text or (
        f"1 of {inside.sum()}" in page.differences.said.text
    )
    assert page.differences.table.visible


def test_a_gate_inside_of_a_gate_is_compared_with_the_rest_of_its_parent(page: Explorer) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    page.show_inside()
    right = tuple((x / 9 + 0.3, y) for x, y in BOX)
    page.add_gate(page.plots[0], "lasso", right)
    page.differences.other.value = PARENT_REST
    answer(page)
    x, y = page.plots[0].places
    parent = (x >= 0) & (y >= 0) & (x < 9) & (y < 9)
    child = parent & (x >= 0.3) & (x < 1.3)
    assert page.history.now["Gate 2"].parent == "Gate 1"
    first, second = page.workspace.comparer.groups[-1]
    np.testing.assert_array_equal(first, child)
    np.testing.assert_array_equal(second, parent & ~child)


def test_only_the_last_comparison_is_shown(page: Explorer) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    page.select(None)
    answer(page)
    assert page.differences.said.text == "Draw or choose a gate."
    assert not page.differences.table.visible


def test_a_closed_page_is_left_alone(page: Explorer) -> None:
    page.workspace.executor.submit(lambda: None).result()
    page.add_gate(page.plots[0], "rectangle", BOX)
    answer(page)
    n_asked = len(page.workspace.comparer.groups)
    page._closed(None)
    page._in_background(lambda: 1, pytest.fail)
    page.workspace.executor.submit(lambda: None).result()
    assert page.document.session_callbacks == []
    assert len(page.workspace.comparer.groups) == n_asked


def test_names_edits_and_the_way_back(page: Explorer) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    page.rename("T <b>cells")
    assert rows(page)[1] == "T <b>cells"
    page.rename("T/cells")
    assert "without a slash" in page.panel.status.text
    assert page.history.now.names == ("T <b>cells",)
    page.delete()
    assert rows(page) == ["All cells"]
    page.undo()
    page.undo()
    assert rows(page)[1] == "Gate 1"
    page.redo()
    assert rows(page)[1] == "T <b>cells"
    answer(page)
    page.select("T <b>cells")
    answer(page)
    assert "T &lt;b&gt;cells" in page.differences.said.text


def test_gates_that_overlap_are_compared_without_the_cells_of_both(page: Explorer) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    right = tuple((x / 9 + 0.3, y) for x, y in BOX)
    page.add_gate(page.plots[0], "lasso", right)
    page.differences.other.value = "Gate 1"
    answer(page)
    x, y = page.plots[0].places
    box, lasso = (
        (x >= low) & (x < high) & (y >= 0) & (y < 9) for low, high in ((0, 9), (0.3, 1.3))
    )
    assert (box & lasso).any()
    first, second = page.workspace.comparer.groups[-1]
    np.testing.assert_array_equal(first, lasso)
    np.testing.assert_array_equal(second, box & ~lasso)
    assert "Gate 1 (without the cells of both)" in page.differences.said.text
    page.select("Gate 1")
    page.differences.other.value = "Gate 2"  # all of whose cells are in both
    answer(page)
    assert not page.workspace.comparer.groups[-1][1].any()


def test_what_goes_wrong_is_said(page: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("No such thing.")

    monkeypatch.setattr(page.differences, "clear", fail)
    page.compare()
    assert "No such thing." in page.panel.status.text


def test_gates_are_saved_reloaded_and_kept(page: Explorer, folder: Path) -> None:
    assert page.workspace.keep_unsaved() == []
    page.add_gate(page.plots[0], "rectangle", BOX)
    saved = page.history.now
    page.save()
    assert page.workspace.keep_unsaved() == []
    page.delete()
    (kept,) = page.workspace.keep_unsaved()
    assert kept.name == "gates_unsaved.json"
    page.reload()
    assert page.history.now == saved
    assert page.workspace.keep_unsaved() == []
    assert not kept.exists()
    with open_workspace(folder).cells:
        assert open_workspace(folder).saved == saved
    page.select("Gate 1")
    page.delete()
    page.load(base64.b64encode(gates_to_json(saved).encode()).decode())
    assert page.history.now == saved
    for content, problem in ((b"no gates", "cannot be used"), (b"\xff\x00", "is no text")):
        page.load(base64.b64encode(content).decode())
        assert problem in page.panel.status.text
        assert page.history.now == saved
    (folder / "gates.json").write_text("{}")
    with pytest.raises(FormatError):
        open_workspace(folder)


def test_each_page_has_its_own_gates(page: Explorer, workspace: Workspace) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    other = Explorer(Document(), workspace)
    assert rows(other) == ["All cells"]
    assert "Restore unsaved" in other.panel.status.text
    other.add_gate(other.plots[0], "rectangle", BOX)
    other.rename("mine")
    page.undo()
    assert (rows(page), rows(other)[1]) == (["All cells"], "mine")
    page.redo()
    other.save()
    page.save()
    assert "Another page has saved" in page.panel.status.text
    assert read_gates(workspace.gates_path).names == ("mine",)
    page.save()
    assert read_gates(workspace.gates_path).names == ("Gate 1",)
    other.reload()
    assert rows(other)[1] == "Gate 1"


def test_what_was_not_saved_is_offered_again(page: Explorer, folder: Path) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    lost = page.history.now
    second = Explorer(Document(), page.workspace)
    assert second.panel.buttons["restore"].visible
    second.add_gate(second.plots[0], "lasso", BOX)
    assert [path.name for path in page.workspace.keep_unsaved()] == [
        "gates_unsaved.json", "gates_unsaved_2.json",
    ]  # fmt: skip
    again = open_workspace(folder)
    again.comparer = page.workspace.comparer
    with again.cells:
        visit = Explorer(Document(), again)
        assert rows(visit) == ["All cells"]
        assert visit.panel.buttons["restore"].visible
        visit.restore()  # the last one
        assert visit.history.now == second.history.now
        visit.restore()
        assert visit.history.now == lost
        assert not visit.panel.buttons["restore"].visible
        visit.save()
        assert again.keep_unsaved() == []
        assert not list(folder.glob("gates_unsaved*"))
        assert read_gates(folder / "gates.json") == lost
    again.executor.shutdown()


def test_a_name_is_no_formula(page: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(page.panel, "download", lambda *given: kept.append(given[-1]))
    page.add_gate(page.plots[0], "rectangle", BOX)
    for name in ("=1+1", "+1", "-1", "@x"):
        page.rename(name)
        page.download_csv()
    for text, name in zip(kept, ("=1+1", "+1", "-1", "@x"), strict=True):
        table = pd.read_csv(io.StringIO(text), index_col=0, dtype=str).fillna("")
        assert set(table["gate"]) == {"", f"'{name}"}
        assert (table["gate"] != "").sum() == (table[f"in_gate {name}"] == "True").sum() > 0


def test_who_lists_processes_does_not_see_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", asked.append)
    url = "http://127.0.0.1:5006/secret/"
    with open_in_browser(url, tmp_path):
        (file,) = tmp_path.iterdir()
        assert asked == [file.as_uri()]
        assert "secret" not in asked[0]
        assert file.stat().st_mode & 0o777 == 0o600
        assert f"url={url}" in file.read_text()
    assert not list(tmp_path.iterdir())


def test_axes_and_colors_are_those_chosen(page: Explorer) -> None:
    proteins = page.cells.protein_names
    first, second = page.plots.cards[:2]
    first.x.value, first.y.value = proteins[0], "2 (gene)"
    first.values.value, first.scale.value = "raw counts", "log"
    raw = page.cells.values("protein_raw", proteins[0])
    np.testing.assert_allclose(page.plots[0].places[0], np.log10(1 + raw), rtol=1e-6)
    genes = page.cells.values("gene_raw", "2")
    np.testing.assert_allclose(page.plots[0].places[1], np.log10(1 + genes), rtol=1e-6)
    assert second.values.value == "raw counts"  # as they were measured
    measured = page.cells.values("protein_raw", page.plots[1].axes[0].name)
    np.testing.assert_allclose(page.plots[1].places[0], np.arcsinh(measured / 5), rtol=1e-6)
    second.y.value, second.values.value = proteins[1], "denoised"
    denoised = page.cells.values("protein_denoised", proteins[1])
    np.testing.assert_allclose(page.plots[1].places[1], np.arcsinh(denoised / 5), rtol=1e-6)
    for name in (DENSITY, "2 (gene, denoised)", "leiden_totalvi (annotation)"):
        page.plots.view.color.value = name
        assert page.plots.color_bar.visible == ("gene" in name)
    page._feature_chosen("protein", proteins[1])
    assert page.plots.view.color.value == f"{proteins[1]} (protein, denoised)"


def test_a_window_at_rest_is_drawn_once(page: Explorer) -> None:
    before = page.plots[0]._image.data["x"]
    page.plots[0].figure.x_range.start -= 1
    page.plots[0].figure.x_range.end += 1
    assert len(page.document.session_callbacks) == 1
    answer(page)
    assert page.plots[0]._image.data["x"] == [before[0] - 1]


def test_unsaved_gates_that_cannot_be_shown_are_left_with_a_note(
    page: Explorer, folder: Path
) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    lost = page.history.now
    text = gates_to_json(lost)
    axis = lost.gates[0].axes[0].name
    (folder / "gates_unsaved.json").write_text(text.replace(f'"{axis}"', '"No such feature"'))
    (folder / "gates_unsaved_2.json").write_text(text)
    (folder / "gates_unsaved_4.json").write_text("{")
    (folder / "gates_unsaved_mine.json").write_text("mine")
    before = {path: path.read_bytes() for path in folder.glob("gates_unsaved*")}
    again = open_workspace(folder)
    with again.cells:
        assert again.unsaved() == [lost]
        assert [note.split(" is left")[0] for note in again.notes] == [
            str(folder / "gates_unsaved_4.json"), str(folder / "gates_unsaved.json"),
        ]  # fmt: skip
        assert "No such feature" in again.notes[1]
        again.visit().change(lost)
        again.save(again.histories[-1])
        assert again.keep_unsaved() == []
        del before[folder / "gates_unsaved_2.json"]
        assert {path: path.read_bytes() for path in folder.glob("gates_unsaved*")} == before
    again.executor.shutdown()


def test_servers_keep_the_unsaved_gates_of_each_other(page: Explorer, folder: Path) -> None:
    other = open_workspace(folder)
    with other.cells:
        page.add_gate(page.plots[0], "rectangle", BOX)
        (first,) = page.workspace.keep_unsaved()
        visit = Explorer(Document(), other)
        visit.add_gate(visit.plots[0], "lasso", BOX)
        (second,) = other.keep_unsaved()
        assert [read_gates(path) for path in (first, second)] == [
            page.history.now,
            visit.history.now,
        ]
        first.write_text(gates_to_json(visit.history.now))  # yet another server
        page.save()
        assert page.workspace.keep_unsaved() == []
        visit.save()
        assert other.keep_unsaved() == []
        assert list(folder.glob("gates_unsaved*")) == [first]
    other.executor.shutdown()


def test_proposed_gates_are_edited_like_others(workspace: Workspace) -> None:
    assert not Explorer(Document(), workspace).panel.buttons["propose"].visible
    workspace.proposed_path.write_text(
        "gate,parent,kind,feature,low,high\nT,,protein_raw,CD3,9,\nsure,T,protein_denoised,CD3,5,\n"
    )
    page = Explorer(Document(), workspace)
    assert page.panel.buttons["propose"].visible
    page.propose()
    assert rows(page) == ["All cells", "T", "sure"]
    page.select("T")
    page.delete()
    assert rows(page) == ["All cells"]
    workspace.proposed_path.write_text("gate,parent\n")
    page.propose()
    assert "lacks the columns kind" in page.panel.status.text


def test_proposed_gates_come_beside_those_that_are_there(workspace: Workspace) -> None:
    workspace.proposed_path.write_text(
        "gate,parent,kind,feature,low,high\nT,,protein_raw,CD3,9,\nsure,T,protein_denoised,CD3,5,\n"
    )
    page = Explorer(Document(), workspace)
    page.propose()
    page.propose()
    assert rows(page) == ["All cells", "T", "sure", "T 2", "sure 2"]
    assert page.history.now["sure 2"].parent == "T 2"
    page.undo()
    assert rows(page) == ["All cells", "T", "sure"]


def test_conditions_are_outlined_with_their_population_alone(workspace: Workspace) -> None:
    evil = workspace.cells.protein_names[1]
    workspace.proposed_path.write_text(
        "gate,parent,kind,feature,low,high\n"
        '"T, 1 of 2",,protein_denoised,CD3,5,\n"T, 1 of 2",,protein_foreground,CD3,0.5,\n'
        f'"T, 1 of 2",,protein_denoised,{evil},,20\n"T, 2 of 2",,protein_denoised,CD3,5,\n'
        'T,,or,"T, 1 of 2",,\nT,,or,"T, 2 of 2",,\nB,,protein_denoised,CD3,,5\n'
    )
    page = Explorer(Document(), workspace)
    page.propose()
    assert rows(page) == ["All cells", "T", "B"]
    card = page.plots.cards[0]
    card.x.value, card.y.value, card.values.value = "CD3", evil, "denoised"
    assert list(card.plot.gates) == ["B"]
    page.select("T")
    (other,) = card.plot.gates.keys() - {"B", "T, 2 of 2"}
    assert other == f"T, 1 of 2: {evil} denoised".replace("/", "|")
    labels = card.plot._labels.data
    assert [text.split("  ")[0] for text in labels["text"]] == ["B", "CD3+", f"{evil}-"]
    across, up = card.plot.units_of_pixel
    places = [np.array(labels[side]) / unit for side, unit in (("x", across), ("y", up))]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        apart = [abs(along[i] - along[j]) for along in places]
        letters = (len(labels["text"][i]) + len(labels["text"][j])) / 2
        assert apart[0] > 6 * letters or apart[1] > 15
    page.backgate()
    assert (page.plots.cards[0].x.value, len(page.plots.open_cards)) == ("CD3", 1)
    page.backgate()
    page.plots.view.shapes.active = 1
    low, _ = page.history.now["T, 2 of 2"].vertices
    start, end = (low[0], 0.0), (low[0] + 0.5, 0.0)
    middle = float(np.mean(card.plot.window[2:]))
    for stage, x in (("start", start[0]), ("on", end[0]), ("end", end[0])):
        page.dragged(card.plot, stage, (x, middle))
    moved = page.history.now
    for name in ("T, 2 of 2", "T, 1 of 2: CD3 denoised"):
        assert moved[name].vertices[0][0] == pytest.approx(low[0] + 0.5)
    assert page.selected == "T"
    columns = page.panel.table.source.data
    assert columns["path"] == ["All cells", "T", "B"]


def test_backgating_outlines_the_conditions_on_the_way_down(workspace: Workspace) -> None:
    evil = workspace.cells.protein_names[1]
    workspace.proposed_path.write_text(
        "gate,parent,kind,feature,low,high\n"
        f"T,,protein_denoised,CD3,3,\nT,,protein_denoised,{evil},,40\nT,,gene_denoised,2,,9\n"
        "naive,T,gene_denoised,2,0.1,\nnaive,T,protein_denoised,CD3,4,\n"
    )
    page = Explorer(Document(), workspace)
    page.propose()
    page.select("naive")
    page.backgate()
    above, below = page.plots.open_cards
    assert [text.split("  ")[0] for text in above.plot._labels.data["text"]] == ["CD3+", f"{evil}-"]
    assert above.plot.highlighted == []  # another gate is selected
    assert (list(below.plot.gates), below.plot.highlighted) == (["naive"], ["naive"])
    page.backgate()
    assert "T: CD3" not in " ".join(page.plots.cards[0].plot.gates)


def test_a_label_lies_on_no_handle(page: Explorer) -> None:
    plot = page.plots[0]
    left, right, bottom, top = plot.window
    middle, height = (left + right) / 2, top - bottom
    for low in (0.3, 0.75):  # with room above, and at the top
        high = bottom + (low + 0.245) * height
        centre = (middle, bottom + (low + 0.1) * height)
        ends = ((middle + (right - left) / 5, centre[1]), (middle, high))
        page.add_gate(plot, "ellipse", (centre, *ends))
    page.plots.view.shapes.active = 1  # Edit
    across, up = plot.units_of_pixel
    for name in ("Gate 1", "Gate 2"):
        page.select(name)
        labels = plot._labels.data
        (handle_x, handle_y) = (np.array(plot._handles.data[side]) for side in "xy")
        assert len(handle_x) == 3
        for x, y, text in zip(labels["x"], labels["y"], labels["text"], strict=True):
            assert bottom < y < top
            far = (np.abs(handle_x - x) / across > 3 * len(text)) | (np.abs(handle_y - y) / up > 14)
            assert far.all()


def test_no_probability_is_offered_without_a_model(page: Explorer) -> None:
    page.add_gate(page.plots[0], "rectangle", BOX)
    button = page.panel.buttons["probability"]
    assert button.disabled
    assert "no model" in button.label
    assert "open the results" in button.html_attributes["title"]
    assert not page.panel.buttons["delete"].disabled
