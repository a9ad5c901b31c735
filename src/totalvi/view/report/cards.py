"""A card for each antibody: its histogram as SVG, which prints sharply, and what it says in words."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from totalvi.figures.charts import HistogramParts, histogram_parts
from totalvi.figures.style import PROTEIN_SCALE
from totalvi.view.report.report_data import Results, mean_count, number

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


class Fact(NamedTuple):
    """A number of a card, of a column of a table on disk."""

    label: str
    text: str
    table: str
    column: str


class Mark(NamedTuple):
    """An upright line of a histogram: a mean count, and where it is in the picture."""

    kind: str
    place: float


class Card(NamedTuple):
    """What the page says of one antibody.

    Attributes
    ----------
    warning, advice
        Why it is called failed and what that means; empty: it is not.
    flags
        Everything that is wrong with it.
    background, foreground, denoised
        SVG paths of the histogram's parts.
    ticks
        Places in the picture and labels of the axis.
    marks
        ``isotype``, the mean count of the highest control, and ``droplet``, of empty droplets.
    alternative
        The picture in words.
    """

    name: str
    is_control: bool
    facts: list[Fact]
    warning: str
    advice: str
    flags: list[str]
    background: str
    foreground: str
    denoised: str
    ticks: list[tuple[float, str]]
    marks: list[Mark]
    alternative: str


def protein_cards(results: Results) -> list[Card]:
    """Return a card for each protein, in the order of the data."""
    return [
        _card(
            results,
            name,
            histogram_parts(
                results.raw[:, i],
                results.denoised[:, i],
                results.foreground[:, i],
                weights=results.drawn.weights,
            ),
            bool(results.is_control[i]),
            [*_separation(results, name), *_background(results, name)],
            _row(results, "proteins", name)["warning"],
        )
        for i, name in enumerate(results.protein_names)
    ]


def control_cards(results: Results) -> list[Card]:
    """Return a card for each isotype control that was kept out of the model."""
    if "isotype_controls" not in results.tables:  # the run could not make it
        return []
    cards = []
    for name in map(str, results.controls):
        numbers = _row(results, "isotype_controls", name)
        counts = results.controls[name].to_numpy(dtype=float)
        nothing = np.zeros(len(counts))
        parts = histogram_parts(counts, nothing, nothing, weights=results.drawn.weights)
        table = "isotype_controls"
        facts = [
            Fact("mean count", mean_count(numbers["mean_count"]), table, "mean_count"),
            Fact("correlation", number(numbers["correlation"], 2), table, "correlation"),
            *_droplet_facts(results, name),
        ]
        cards.append(_card(results, name, parts, True, facts, ""))
    return cards


def _droplet_means(results: Results, name: str) -> np.ndarray:
    """Return the mean count of one antibody in an empty droplet, by batch; none: no droplets."""
    ambient = results.tables.get("ambient")
    if ambient is None or name not in ambient.index:
        return np.empty(0)
    return np.exp(ambient.loc[[name], "log_mean"].to_numpy(dtype=float))


def _row(results: Results, table: str, name: str) -> dict[Hashable, Any]:
    return results.tables[table].loc[name].to_dict()


def _separation(results: Results, name: str) -> list[Fact]:
    numbers = _row(results, "proteins", name)
    shown = (
        ("foreground cells", "percent_foreground", 1, " %"),
        ("separation", "auroc", 3, ""),
        ("unsure cells", "percent_ambiguous", 1, " %"),
    )
    return [
        Fact(label, number(numbers[column], decimals) + unit, "proteins", column)
        for label, column, decimals, unit in shown
    ]


def _background(results: Results, name: str) -> list[Fact]:
    """Return what the background is, and what controls and droplets say it should be near."""
    facts = []
    if "background" in results.tables:
        numbers = _row(results, "background", name)
        for label, column in (
            ("mean background", "background_mean"),
            ("isotype control", "control_mean"),
        ):
            facts.append(Fact(label, mean_count(numbers[column]), "background", column))
    return facts + _droplet_facts(results, name)


def _droplet_facts(results: Results, name: str) -> list[Fact]:
    means = _droplet_means(results, name)
    if not len(means):
        return []
    ends = dict.fromkeys(mean_count(end) for end in (means.min(), means.max()))
    return [Fact("empty droplet", " to ".join(ends), "ambient", "log_mean")]


def _card(
    results: Results,
    name: str,
    parts: HistogramParts,
    is_control: bool,
    facts: list[Fact],
    warning: str,
) -> Card:
    total = parts.background + parts.foreground
    top = max(total.max(), parts.denoised.max(), 1e-9)
    low, high = float(parts.edges[0]), float(parts.edges[-1])
    across = WIDTH / (high - low)
    levels = {"droplet": float(means.mean())} if len(means := _droplet_means(results, name)) else {}
    flags = [warning]
    if not is_control and "background" in results.tables:
        compared = _row(results, "background", name)
        levels["isotype"] = float(compared["control_mean"])
        flags.append(compared["warning"])
    places = {kind: float(PROTEIN_SCALE.forward(level)) for kind, level in levels.items()}
    ticks = PROTEIN_SCALE.ticks(0, float(PROTEIN_SCALE.inverse(high)))
    return Card(
        name,
        is_control,
        facts,
        warning,
        ADVICE.get(warning, ""),
        [flag for flag in flags if flag],
        _stairs(parts.edges, np.zeros(len(total)), parts.background, top),
        _stairs(parts.edges, parts.background, total, top),
        _stairs(parts.smooth_edges, np.zeros(len(parts.denoised)), parts.denoised, top),
        [((place - low) * across, label) for place, label in ticks.items()],
        [Mark(kind, (place - low) * across) for kind, place in places.items() if place <= high],
        _in_words(parts, facts),
    )


def _stairs(edges: np.ndarray, bottom: np.ndarray, top: np.ndarray, highest: float) -> str:
    """Return the outline between two stairs as an SVG path; nothing where they are the same."""
    if np.array_equal(bottom, top):
        return ""
    x = (edges - edges[0]) / (edges[-1] - edges[0]) * WIDTH
    x = np.repeat(x, 2)[1:-1]
    down = HEIGHT * (1 - np.repeat(top, 2) / highest)
    back = HEIGHT * (1 - np.repeat(bottom, 2) / highest)
    corners = [*zip(x, down, strict=True), *zip(x[::-1], back[::-1], strict=True)]
    return "M" + "L".join(f"{across:.1f} {y:.1f}" for across, y in corners) + "Z"


def _in_words(parts: HistogramParts, facts: list[Fact]) -> str:
    said = [f"{fact.label} {fact.text}" for fact in facts]
    if parts.background.any():
        peak = PROTEIN_SCALE.inverse(parts.edges[:-1][parts.background.argmax()]) + 0.5
        said.insert(0, f"background is most frequent near {peak:,.0f}")
    return "Histogram of counts: " + ", ".join(said) + "."
