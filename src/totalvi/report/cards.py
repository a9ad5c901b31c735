"""A card for each protein: its histogram as SVG, which prints sharply, and what it says in words."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from totalvi.pictures.histograms import HistogramParts, histogram_parts
from totalvi.pictures.scale import PROTEIN_SCALE
from totalvi.report.results import Results

WIDTH, HEIGHT = 260.0, 84.0

ADVICE = {
    "not measured": "It was not measured in any cell.",
    "control with foreground": (
        "An isotype control should stain nothing, yet more than 5 % of the cells seem stained. "
        "Unspecific binding is likely: be careful with dim antibodies of the same isotype."
    ),
    "no foreground": (
        "Hardly any cell rises above the background. Either the antibody failed or no cell here has "
        "the protein; do not read its denoised values as expression."
    ),
    "no background": (
        "Nearly every cell counts as stained. Either all cells have the protein or the background "
        "cannot be told from it; its denoised values are about its raw ones."
    ),
    "does not separate": (
        "Stained and unstained cells have nearly the same counts. Do not gate on it, and treat its "
        "denoised values with care."
    ),
}


class Card(NamedTuple):
    """What the page says of one protein.

    Attributes
    ----------
    numbers
        Its row of ``tables/proteins.csv``.
    background, foreground, denoised
        SVG paths of the histogram's parts.
    ticks
        Places in the picture and labels of the axis.
    isotype
        Place in the picture of the level that 1 % of the isotype controls' counts are above.
    alternative
        The picture in words.
    """

    name: str
    is_control: bool
    numbers: dict[Hashable, Any]
    warning: str
    advice: str
    background: str
    foreground: str
    denoised: str
    ticks: list[tuple[float, str]]
    isotype: float | None
    alternative: str


def protein_cards(results: Results) -> list[Card]:
    """Return a card for each protein, in the order of the data."""
    table = results.tables["proteins"]
    return [_card(results, i, name, table.iloc[i]) for i, name in enumerate(results.protein_names)]


def _card(results: Results, i: int, name: str, numbers: pd.Series) -> Card:
    parts = histogram_parts(
        results.raw[:, i],
        results.denoised[:, i],
        results.foreground[:, i],
        weights=results.drawn.weights,
    )
    total = parts.background + parts.foreground
    top = max(total.max(), parts.denoised.max(), 1e-9)
    low, high = float(parts.edges[0]), float(parts.edges[-1])
    across = WIDTH / (high - low)
    level = numbers.get("isotype_99th_percentile")
    isotype = None if level is None or np.isnan(level) else PROTEIN_SCALE.forward(level)
    ticks = [
        ((place - low) * across, label)
        for place, label in PROTEIN_SCALE.ticks(0, float(PROTEIN_SCALE.inverse(high))).items()
    ]
    return Card(
        name,
        bool(results.is_control[i]),
        numbers.to_dict(),
        numbers["warning"],
        ADVICE.get(numbers["warning"], ""),
        _stairs(parts.edges, np.zeros(len(total)), parts.background, top),
        _stairs(parts.edges, parts.background, total, top),
        _stairs(parts.smooth_edges, np.zeros(len(parts.denoised)), parts.denoised, top),
        ticks,
        None if isotype is None or isotype > high else (float(isotype) - low) * across,
        _in_words(parts, numbers),
    )


def _stairs(edges: np.ndarray, bottom: np.ndarray, top: np.ndarray, highest: float) -> str:
    """Return the outline between two stairs as an SVG path."""
    x = (edges - edges[0]) / (edges[-1] - edges[0]) * WIDTH
    x = np.repeat(x, 2)[1:-1]
    down = HEIGHT * (1 - np.repeat(top, 2) / highest)
    back = HEIGHT * (1 - np.repeat(bottom, 2) / highest)
    corners = [*zip(x, down, strict=True), *zip(x[::-1], back[::-1], strict=True)]
    return "M" + "L".join(f"{across:.1f} {y:.1f}" for across, y in corners) + "Z"


def _in_words(parts: HistogramParts, numbers: pd.Series) -> str:
    peak = parts.edges[:-1][parts.background.argmax()] if parts.background.any() else None
    said = [f"{numbers['percent_foreground']:.1f} % of the cells are foreground"]
    if peak is not None:
        said.append(f"background is most frequent near {PROTEIN_SCALE.inverse(peak) + 0.5:,.0f}")
    if not np.isnan(numbers["denoised_foreground_mean"]):
        said.append(f"denoised foreground is {numbers['denoised_foreground_mean']:,.0f} on average")
    return "Histogram of counts: " + ", ".join(said) + "."
