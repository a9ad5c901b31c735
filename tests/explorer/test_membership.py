"""The probability of a gate: against posterior samples looked at one by one, and its laws."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from totalvi.explorer.axes import Axis
from totalvi.explorer.gate_shapes import box
from totalvi.explorer.gates import Adjusted, Gate, Gating, Operand, members
from totalvi.explorer.membership import N_SAMPLES, gate_probability
from totalvi.explorer.run_cells import RunCells
from totalvi.posterior.gates.feature_draws import draw_features

if TYPE_CHECKING:
    from totalvi.model import Model


@pytest.fixture(scope="module")
def cells(run_folder: Path) -> Iterator[RunCells]:
    with RunCells(run_folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(cells: RunCells) -> "Model":
    from totalvi.model import Model

    return Model.load(cells.model_path)


def gating_of(cells: RunCells) -> Gating:
    first, second = (str(name) for name in cells.protein_names[1:3])
    middle = float(np.median(cells.places("protein_denoised", first, "asinh")))
    outer = Gate(
        "outer", (Axis("protein_denoised", first, "asinh"),), ((middle,), (50.0,)), None, "range"
    )
    gene = Axis("gene_denoised", str(cells.gene_names[0]), "log")
    half = float(np.median(cells.places("gene_denoised", gene.name, "linear") * 1e4))
    on = (Axis("protein_foreground", second), gene)
    inner = Gate("inner", on, box(0.5, 0, 1.1, np.log10(1 + half)), "outer", "rectangle")
    raw = Gate("raw", (Axis("protein_raw", first, "log"),), ((1.0,), (9.0,)), None, "range")
    outside = Gate("outside", (), (), None, "boolean", "", "and", (Operand("inner", True),))
    return Gating((outer, inner, raw, outside))


def test_it_is_the_share_of_posterior_draws_inside(cells: RunCells, model: "Model") -> None:
    gating = gating_of(cells)
    found = gate_probability(cells, model, gating, "inner")
    mdata = cells.counts_of(np.arange(cells.n_cells))
    outer, inner = gating["outer"], gating["inner"]
    share, rate, foreground, _ = draw_features(
        model, mdata, [inner.axes[1].name], [outer.axes[0].name, inner.axes[0].name], N_SAMPLES
    )
    inside = np.arcsinh(rate[:, :, 0] / 5) >= outer.vertices[0][0]
    inside &= foreground[:, :, 1] == 1
    inside &= np.log10(1 + 10_000 * share[:, :, 0]) < inner.vertices[2][1]
    np.testing.assert_allclose(found, inside.mean(axis=0), atol=1e-6)
    assert ((found > 0.05) & (found < 0.95)).any()


@pytest.mark.parametrize("high", [1.0, 1.1])
def test_a_gate_of_foreground_has_the_probability_of_foreground(
    cells: RunCells, model: "Model", high: float
) -> None:
    axis = Axis("protein_foreground", str(cells.protein_names[1]))
    gating = Gating((Gate("positive", (axis,), ((0.5,), (high,)), None, "range"),))
    found = gate_probability(cells, model, gating, "positive")
    expected = model.get_protein_foreground_probability(
        cells.counts_of(np.arange(cells.n_cells)), protein_list=[axis.name], n_samples=N_SAMPLES,
        progress=False,
    )  # fmt: skip
    assert np.abs(found - np.asarray(expected)[:, 0]).max() < 0.2
    assert abs((found - np.asarray(expected)[:, 0]).mean()) < 0.01


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.999), (0.3, 0.9), (0.05, 0.95)])
def test_a_gate_of_foreground_that_does_not_reach_an_end_has_cells(
    cells: RunCells, model: "Model", low: float, high: float
) -> None:
    """Its probability is that of the draws that put the cell at P or 1 - P, whichever lies inside."""
    axis = Axis("protein_foreground", str(cells.protein_names[1]))
    gating = Gating((Gate("some", (axis,), ((low,), (high,)), None, "range"),))
    found = gate_probability(cells, model, gating, "some")
    mdata = cells.counts_of(np.arange(cells.n_cells))
    p = draw_features(model, mdata, [], [axis.name], N_SAMPLES).probability[0, :, 0]
    at, opposite = (low <= p) & (p < high), (low <= 1 - p) & (1 - p < high)
    expected = at * np.maximum(p, 1 - p) * (p >= 0.5) + at * (1 - p) * (p < 0.5)
    expected += opposite * (p * (p < 0.5) + (1 - p) * (p >= 0.5))
    assert np.abs(found - expected).max() < 0.15
    assert abs((found - expected).mean()) < 0.02
    assert found[at].sum() > 0


def test_probabilities_obey_their_laws(cells: RunCells, model: "Model") -> None:
    gating = gating_of(cells)
    outer, inner, outside = (
        gate_probability(cells, model, gating, name) for name in ("outer", "inner", "outside")
    )
    assert (inner <= outer).all()
    np.testing.assert_allclose(inner + outside, 1, atol=1e-6)


def test_what_is_counted_is_known(cells: RunCells, model: "Model") -> None:
    gating = gating_of(cells)
    moved = Adjusted("donor", "donor 1", ((2.0,), (9.0,)))
    raw = gating["raw"]
    differing = Gating((Gate("raw", raw.axes, raw.vertices, None, "range", by_sample=(moved,)),))
    for some in (gating.needed("raw"), differing):
        found = gate_probability(cells, model, some, "raw")
        expected = members(some, cells.inside, cells.n_cells)["raw"]
        np.testing.assert_array_equal(found, expected.astype(np.float32))
