"""Effects between single cells of two groups, by random pairs of cells."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numba import prange

from totalvi.compiled import compiled
from totalvi.fit.batches import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.differential.effects import Effects
from totalvi.posterior.draws import CellNoise
from totalvi.posterior.scales import ScaleQuery, scales


class PairEffects(NamedTuple):
    """Effects of one comparison, each (features,), and the mean scales of the paired cells."""

    effects: Effects
    first_mean: np.ndarray
    second_mean: np.ndarray


@torch.no_grad()
def sampled_scales(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    n_cells: int,
    query: ScaleQuery,
    noise: CellNoise,
) -> np.ndarray:
    """Return one sample of the scales of each cell, (genes + proteins, cells), float32.

    NaN where a cell's panel did not measure the protein and it is not decoded into another batch.
    """
    n_genes = module.n_input_genes
    values = np.empty((n_genes + module.n_input_proteins, n_cells), dtype=np.float32)
    start = 0
    for batch in batches:
        cells = slice(start, start + len(batch.cells))
        start = cells.stop
        (sample,) = scales(module, batch, query, 1, noise)
        protein = sample.foreground + sample.background
        measured = module.measured(batch.context.panel)
        if measured is not None and not query.transform_batches:
            protein = torch.where(measured, protein, torch.nan)
        values[:n_genes, cells] = sample.rna.T.cpu().numpy()
        values[n_genes:, cells] = protein.T.cpu().numpy()
    return values


def draw_pairs(
    first: list[np.ndarray], second: list[np.ndarray], n_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of a cell of each group, within the same batch where any batch has cells of both.

    Parameters
    ----------
    first, second
        Cells of the groups, one array a batch.
    n_pairs
        How many; batches get shares as n m / (n + m) for n and m cells.
    """
    sizes = np.array([[len(a), len(b)] for a, b in zip(first, second, strict=True)], dtype=float)
    share = sizes.prod(axis=1) / np.maximum(sizes.sum(axis=1), 1)
    if not share.any():
        return rng.choice(np.concatenate(first), n_pairs), rng.choice(
            np.concatenate(second), n_pairs
        )
    drawn = rng.multinomial(n_pairs, share / share.sum())
    chosen = [
        (rng.choice(a, n), rng.choice(b, n))
        for a, b, n in zip(first, second, drawn, strict=True)
        if n
    ]
    a, b = zip(*chosen, strict=True)
    return np.concatenate(a), np.concatenate(b)


def pair_effects(
    values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    pseudocount: np.ndarray,
    delta: float,
) -> PairEffects:
    """Return summaries of r = log2(h_a + c) - log2(h_b + c) over pairs of cells.

    Parameters
    ----------
    values
        Scales, (features, cells).
    first, second
        The cells of each pair.
    pseudocount
        c, (features,).
    delta
        Smallest effect of interest.
    """
    n_features = len(values)
    effects = Effects(*(np.full(n_features, np.nan) for _ in Effects._fields))
    means = np.full((2, n_features), np.nan)
    _pair_effects(values, first, second, pseudocount, delta, means, *effects)
    return PairEffects(effects, *means)


@compiled(parallel=True)
def _pair_effects(
    values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    pseudocount: np.ndarray,
    delta: float,
    means: np.ndarray,
    mean: np.ndarray,
    sd: np.ndarray,
    median: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    beyond: np.ndarray,
    above: np.ndarray,
) -> None:
    for f in prange(len(values)):
        ratios = np.empty(len(first))
        n, total_a, total_b = 0, 0.0, 0.0
        for i in range(len(first)):
            a, b = values[f, first[i]], values[f, second[i]]
            if np.isnan(a) or np.isnan(b):
                continue
            total_a += a
            total_b += b
            ratios[n] = np.log2((a + pseudocount[f]) / (b + pseudocount[f]))
            n += 1
        if n == 0:
            continue
        r = np.sort(ratios[:n])
        means[0, f], means[1, f] = total_a / n, total_b / n
        mean[f], sd[f] = r.mean(), r.std()
        median[f] = 0.5 * (r[(n - 1) // 2] + r[n // 2])
        low[f], high[f] = r[int(0.025 * (n - 1))], r[int(np.ceil(0.975 * (n - 1)))]
        beyond[f] = (np.abs(r) >= delta).sum() / n
        above[f] = (r > 0).sum() / n
