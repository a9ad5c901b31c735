"""The probability that a cell lies in a gate, from the posterior given its counts.

Of cell n with RNA counts x and protein counts y,

    P(n in G | x, y) = E over z ~ q(z | x, y), and v ~ p(v | z, y), of the product over the gates g on
    the way down to G of 1[v in g],

where v are the cell's values on the axes. Whether a protein is foreground is drawn given z and y. On
the axis of its foreground probability P, v is the larger of P and 1 - P if it is, and else the smaller,
so that a gate that reaches from 0.5 up to P holds the cell with probability P. On that of its
denoised counts v is 0 if not, and else a draw of the rate of its counts given y, of which
`feature_draws` has the formulas. A denoised gene is its share of the RNA given z. Raw counts, CLR,
places on the map and annotation are known, so that they put a cell inside with probability 0 or 1. The
expectation is the mean over draws; all gates see the same draws, so that a cell is never likelier in a
gate than in the one around it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from totalvi.explorer.axes import Axis, to_scale
from totalvi.explorer.gate_shapes import contains
from totalvi.explorer.gates import Gate, Gating, members
from totalvi.explorer.run_cells import Cells
from totalvi.run.folder import DENOISED_LIBRARY_SIZE

if TYPE_CHECKING:
    from totalvi.model import Model

N_SAMPLES = 25
_SAMPLES_OF_GENES = 40  # where no protein, of which each has several draws, is on an axis
_CELLS_AT_ONCE = 8_192
_SAMPLED = ("protein_denoised", "protein_foreground", "gene_denoised")


def gate_probability(
    cells: Cells, model: "Model", gating: Gating, name: str, n_samples: int | None = None
) -> np.ndarray:
    """Return the probability that each cell lies in a gate, float32 (N,).

    Parameters
    ----------
    gating
        That holds the gate, those around it and those that it combines.
    n_samples
        Of the latent state, for each of which proteins are drawn 8 times; the standard error of a
        probability p is at most sqrt(p (1 - p) / n_samples). None: 25, or 40 for genes alone.
    """
    gating = gating.needed(name)
    axes = list(dict.fromkeys(axis for gate in gating.gates for axis in gate.axes))
    sampled = [axis for axis in axes if axis.kind in _SAMPLED]
    if n_samples is None:
        of_genes = all(axis.kind == "gene_denoised" for axis in sampled)
        n_samples = _SAMPLES_OF_GENES if of_genes else N_SAMPLES
    found = np.empty(cells.n_cells, dtype=np.float32)
    for start in range(0, cells.n_cells, _CELLS_AT_ONCE):
        some = np.arange(start, min(start + _CELLS_AT_ONCE, cells.n_cells))
        known = {
            axis: cells.places(axis.kind, axis.name, axis.scale)[some]
            for axis in axes
            if axis not in sampled
        }
        samples = _samples(cells, model, sampled, some, n_samples) if sampled else {}
        n_draws = min((len(values) for values in samples.values()), default=1)
        total = np.zeros(len(some))
        for number in range(n_draws):
            places = known | {axis: values[number] for axis, values in samples.items()}
            total += _inside(gating, name, places, cells, some)
        found[some] = total / n_draws
    return found


def _samples(
    cells: Cells, model: "Model", axes: list[Axis], some: np.ndarray, n_samples: int
) -> dict[Axis, np.ndarray]:
    """Return the places of some cells along each axis in posterior draws, (draws, cells)."""
    from totalvi.posterior.gates.feature_draws import draw_features  # it loads torch

    genes = list(dict.fromkeys(axis.name for axis in axes if axis.kind == "gene_denoised"))
    proteins = list(dict.fromkeys(axis.name for axis in axes if axis.kind != "gene_denoised"))
    drawn = draw_features(model, cells.counts_of(some), genes, proteins, n_samples)

    def values(axis: Axis) -> np.ndarray:
        number: np.ndarray
        if axis.kind == "gene_denoised":
            number = drawn.share[:, :, genes.index(axis.name)] * DENOISED_LIBRARY_SIZE
        elif axis.kind == "protein_denoised":
            number = drawn.rate[:, :, proteins.index(axis.name)]
        else:
            p = drawn.probability[:, :, proteins.index(axis.name)]
            is_foreground = drawn.foreground[:, :, proteins.index(axis.name)]
            number = np.where(is_foreground == 1, np.maximum(p, 1 - p), np.minimum(p, 1 - p))
            number = np.where(np.isnan(is_foreground), np.nan, number)
        return number

    return {axis: to_scale(values(axis), axis.scale) for axis in axes}


def _inside(
    gating: Gating, name: str, places: Mapping[Axis, np.ndarray], cells: Cells, some: np.ndarray
) -> np.ndarray:
    def own(gate: Gate) -> np.ndarray:
        along = [places[axis] for axis in gate.axes]
        inside = contains(gate, gate.vertices, along)
        for adjusted in gate.by_sample:
            of_sample = cells.of_sample(adjusted.column, adjusted.sample)[some]
            inside[of_sample] = contains(
                gate, adjusted.vertices, [place[of_sample] for place in along]
            )
        return inside

    return members(gating, own, len(some))[name]
