"""The probability that a cell lies in a gate, from the posterior given its counts.

Of cell n with RNA counts x and protein counts y,

    P(n in G | x, y) = E over z ~ q(z | x, y), and v ~ p(v | z, y), of the product over the gates g on
    the way down to G of 1[v in g],

where v are the cell's values on the axes: of a denoised protein its foreground rate, which is 0 where
the count is drawn to be background, by P(background | z, y); of a foreground probability
P(foreground | z, y); of a denoised gene its share of the RNA. Raw counts, CLR, places on the map and
annotation are known, so that they put a cell inside with probability 0 or 1. The expectation is the
mean over samples; all gates see the same samples, so that a cell is never likelier in a gate than in
the one around it.
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

N_SAMPLES = 40
_CELLS_AT_ONCE = 8_192
_SAMPLED = ("protein_denoised", "protein_foreground", "gene_denoised")


def gate_probability(
    cells: Cells, model: "Model", gating: Gating, name: str, n_samples: int = N_SAMPLES
) -> np.ndarray:
    """Return the probability that each cell lies in a gate, float32 (N,).

    Parameters
    ----------
    gating
        That holds the gate, those around it and those that it combines.
    n_samples
        Posterior samples; the standard error of a probability p is sqrt(p (1 - p) / n_samples).
    """
    gating = gating.needed(name)
    axes = list(dict.fromkeys(axis for gate in gating.gates for axis in gate.axes))
    sampled = [axis for axis in axes if axis.kind in _SAMPLED]
    found = np.empty(cells.n_cells, dtype=np.float32)
    for start in range(0, cells.n_cells, _CELLS_AT_ONCE):
        some = np.arange(start, min(start + _CELLS_AT_ONCE, cells.n_cells))
        known = {
            axis: cells.places(axis.kind, axis.name, axis.scale)[some]
            for axis in axes
            if axis not in sampled
        }
        samples = _samples(cells, model, sampled, some, n_samples) if sampled else {}
        total = np.zeros(len(some))
        for number in range(n_samples if sampled else 1):
            places = known | {axis: values[number] for axis, values in samples.items()}
            total += _inside(gating, name, places, cells, some)
        found[some] = total / (n_samples if sampled else 1)
    return found


def _samples(
    cells: Cells, model: "Model", axes: list[Axis], some: np.ndarray, n_samples: int
) -> dict[Axis, np.ndarray]:
    """Return the places of some cells along each axis in posterior samples, (n_samples, cells)."""
    counts = cells.counts_of(some)
    names = {
        kind: list(dict.fromkeys(axis.name for axis in axes if axis.kind == kind))
        for kind in _SAMPLED
    }
    values: dict[str, np.ndarray] = {}
    if names["gene_denoised"] or names["protein_denoised"]:
        values["gene_denoised"], values["protein_denoised"] = model.get_normalized_expression(
            counts, gene_list=names["gene_denoised"], protein_list=names["protein_denoised"],
            library_size=DENOISED_LIBRARY_SIZE, n_samples=n_samples, sample_protein_mixing=True,
            return_mean=False, progress=False,
        )  # fmt: skip
    if names["protein_foreground"]:
        values["protein_foreground"] = np.asarray(
            model.get_protein_foreground_probability(
                counts, protein_list=names["protein_foreground"], n_samples=n_samples,
                return_mean=False, progress=False,
            )
        )  # fmt: skip
    return {
        axis: to_scale(values[axis.kind][:, :, names[axis.kind].index(axis.name)], axis.scale)
        for axis in axes
    }


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
