"""What measures the markers of a hierarchy, and draws of their levels from the posterior."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.panels.antibody_names import gene_key, identify
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.antibody_separation import (
    DOES_NOT_SEPARATE,
    NO_BACKGROUND,
    NO_FOREGROUND,
    antibody_separation,
)
from totalvi.posterior.gates.hierarchy import Marker
from totalvi.posterior.gates.marker_levels import Boundary, MarkerLevels, find_levels
from totalvi.posterior.gates.memberships import FAILED, WITHOUT_POSITIVES, Draws, Levels
from totalvi.posterior.question import Question

_LEAST_COUNT_OF_ALL = 10  # of an antigen that all cells have
_LEAST_PERCENT_FOREGROUND = 1.0  # of an antibody that can be said not to separate
DRAWS_A_SAMPLE = 8  # of the levels of markers, given one sample of the latent state


class Markers(NamedTuple):
    """The markers that data tell the levels of.

    Parameters
    ----------
    proteins, genes
        Position of the protein or gene that measures each marker, by the marker's name.
    levels
        Of each marker, by its name.
    failed
        Antigens whose antibody separates no cells, so that nothing is told.
    without_positives
        Antigens that fewer than 5 cells are positive for: either no others have it, or the antibody
        failed, so that besides these cells only "low" is told.
    """

    proteins: dict[str, int]
    genes: dict[str, int]
    levels: dict[str, MarkerLevels]
    failed: frozenset[str] = frozenset()
    without_positives: frozenset[str] = frozenset()

    def known(self) -> set[str]:
        """Return the markers whose levels are told: antigens that separate, and genes that show two."""
        genes = (name for name in self.genes if self.levels[name].positive.found)
        return {*self.proteins, *genes} - self.failed

    def only(self, names: Collection[str]) -> "Markers":
        """Return these markers alone, genes in this order."""
        proteins = {name: i for name, i in self.proteins.items() if name in names}
        genes = {name: self.genes[name] for name in names if name in self.genes}
        return self._replace(proteins=proteins, genes=genes)

    def note(self, name: str) -> str:
        """Return why a marker does not tell all levels, or ""."""
        if name in self.failed:
            return FAILED
        return WITHOUT_POSITIVES if name in self.without_positives else ""


class _Sample(NamedTuple):
    """One posterior sample, decoded into one batch: of proteins (B, t) and genes (B, g).

    Parameters
    ----------
    foreground
        Probability that each protein is foreground.
    log_rate, log_background
        Log rate of its counts if it is, and if it is not.
    log_share
        Log share of each gene in the cell's RNA.
    weight
        Of this sample in a mean over all, for each protein; NaN where none is answered.
    rna_weight
        The same of genes, (B, 1), or of all.
    is_last
        Whether no other batch follows for this sample of the latent state.
    """

    foreground: Tensor
    log_rate: Tensor
    log_background: Tensor
    log_share: Tensor
    weight: Tensor
    rna_weight: Tensor | float
    is_last: bool


def _samples(
    question: Question, batch: Minibatch, proteins: np.ndarray, genes: np.ndarray
) -> Iterator[_Sample]:
    network, y = question.network, batch.y
    for number, draw in enumerate(question.draws(batch, genes=len(genes) > 0)):
        mixture = draw.expression()
        log_share = y.new_zeros(len(y), 0)
        if len(genes):
            share = network.proportions(draw.decoded)[:, genes]
            log_share = share.clamp(min=torch.finfo(share.dtype).tiny).log()
        of_rna: Tensor | float = 1 / question.n_decoded
        if question.rna_shares is not None:
            position = number % question.n_decoded
            of_rna = question.rna_shares[batch.context.panel, position][:, None].cpu()
        weight = torch.as_tensor(question.share(number, batch), dtype=y.dtype, device=y.device)
        foreground, rate, background = (
            value.expand_as(y)[:, proteins].cpu()
            for value in (
                mixture.foreground_probability(),
                mixture.log_foreground,
                mixture.log_background,
            )
        )
        yield _Sample(
            foreground,
            rate,
            background,
            log_share.cpu(),
            weight.expand_as(y)[:, proteins].cpu(),
            of_rna,
            (number + 1) % question.n_decoded == 0,
        )


def find_markers(
    names: Sequence[str],
    protein_names: Sequence[str],
    gene_names: Sequence[str],
    question: Question,
) -> Markers:
    """Return what measures markers, and their levels in the cells of a question.

    Names of antibodies are compared by their targets; see `totalvi.harmonise_antibodies`. Of several
    antibodies of a target, the one is taken whose level varies most over cells.
    """
    symbols = {name: Marker(name, "+").gene for name in names}
    wanted: dict[str, list[str]] = {}
    for name in names:
        if symbols[name] is None:
            wanted.setdefault(identify(name).key, []).append(name)
    genes_of = {gene_key(gene): i for i, gene in reversed(list(enumerate(gene_names)))}
    candidates = [
        (name, i)
        for i, protein in enumerate(protein_names)
        for name in wanted.get(identify(protein).key, ())
    ]
    genes = {
        name: genes_of[gene_key(symbol)]
        for name, symbol in symbols.items()
        if symbol is not None and gene_key(symbol) in genes_of
    }
    columns = np.array([i for _, i in candidates], dtype=int)
    log_level, foreground, counts, log_share = _levels_of_cells(
        question, columns, np.array(list(genes.values()), dtype=int)
    )
    separation = antibody_separation(counts, foreground, [str(i) for i in columns])
    found = Markers({}, genes, {})
    spread: dict[str, float] = {}
    warnings: dict[str, str] = {}
    for k, (name, position) in enumerate(candidates):
        answered = np.isfinite(log_level[:, k])
        level = log_level[answered, k]
        if len(level) and level.var() > spread.get(name, -1.0):
            spread[name] = level.var()
            found.proteins[name] = position
            found.levels[name] = find_levels(level, foreground[answered, k])
            warnings[name] = _warning(found.levels[name], separation.iloc[k])
    for k, name in enumerate(genes):
        found.levels[name] = find_levels(log_share[:, k])
    with_warning = {
        text: frozenset(name for name, warning in warnings.items() if warning == text)
        for text in (DOES_NOT_SEPARATE, NO_FOREGROUND)
    }
    return found._replace(
        failed=with_warning[DOES_NOT_SEPARATE], without_positives=with_warning[NO_FOREGROUND]
    )


def _warning(levels: MarkerLevels, separation: pd.Series) -> str:
    """Return why an antibody tells no levels, or "": where they have a boundary, or few are stained.

    One of which all cells are foreground does not separate if its counts are those of a background.
    """
    warning = str(separation["warning"])
    is_rare = separation["percent_foreground"] < _LEAST_PERCENT_FOREGROUND
    if warning == NO_BACKGROUND and levels.medians[-1] < math.log(_LEAST_COUNT_OF_ALL):
        return DOES_NOT_SEPARATE
    is_told = levels.positive.found or (warning == DOES_NOT_SEPARATE and is_rare)
    return "" if is_told else warning


def _levels_of_cells(
    question: Question, proteins: np.ndarray, genes: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the log level, foreground probability and count of proteins, and log share of genes.

    Counts are NaN where they were not measured.
    """

    def means(batch: Minibatch) -> Tensor:
        level, foreground = torch.zeros(2, len(batch.cells), len(proteins))
        log_share = torch.zeros(len(batch.cells), len(genes))
        for sample in _samples(question, batch, proteins, genes):
            p = sample.foreground
            rate = p * sample.log_rate.exp() + (1 - p) * sample.log_background.exp()
            level += sample.weight * rate / question.n_samples
            foreground += sample.weight * p / question.n_samples
            log_share += sample.log_share * sample.rna_weight / question.n_samples
        counts = batch.y[:, proteins].cpu()
        measured = question.network.measured(batch.context.panel)
        if measured is not None:
            counts = counts.where(measured[:, proteins].cpu() > 0, torch.nan)
        return torch.cat([level.log(), foreground, counts, log_share], dim=1)

    found = question.gather("levels of markers", means)
    return tuple(np.split(found, len(proteins) * np.arange(1, 4), axis=1))


def draw_levels(
    question: Question, batch: Minibatch, markers: Markers
) -> Iterator[dict[str, Levels]]:
    """Yield, for each sample of the latent state, draws of the level of each marker, (B, draws).

    Given the sample, the levels of markers are independent: a marker is above low with probability
    P(foreground | z, y) times that of its rate to be above the boundary, and high likewise.
    """
    names = [*markers.proteins, *markers.genes]
    proteins = np.array([*markers.proteins.values()], dtype=int)
    genes = np.array([*markers.genes.values()], dtype=int)
    bounds = [markers.levels[name] for name in names]
    above = torch.zeros(2, len(batch.cells), len(names))
    n_sample = 0
    for sample in _samples(question, batch, proteins, genes):
        value = torch.cat([sample.log_rate, sample.log_share], dim=1)
        share = torch.ones_like(sample.log_share) * sample.rna_weight
        weight = torch.cat([sample.foreground * sample.weight, share], dim=1)
        positive, high = ([getattr(b, level) for b in bounds] for level in ("positive", "high"))
        above += weight * torch.stack([_above(positive, value), _above(high, value)])
        if not sample.is_last:
            continue
        yield _drawn(
            question, batch, n_sample, dict(zip(names, above.unbind(2), strict=True)), markers
        )
        n_sample += 1
        above.zero_()


def _above(boundaries: Sequence[Boundary], value: Tensor) -> Tensor:
    """Return the probability of each marker to be above its boundary, 1 where there is none."""
    columns = [
        boundary.above(value[:, k]) if boundary.found else torch.ones(len(value))
        for k, boundary in enumerate(boundaries)
    ]
    return torch.stack(columns, dim=1) if columns else value


def _drawn(
    question: Question, batch: Minibatch, sample: int, above: dict[str, Tensor], markers: Markers
) -> dict[str, Levels]:
    """Draw levels by the probabilities (2, B) to be above low, and high."""
    first = sample * DRAWS_A_SAMPLE
    uniform = [
        question.noise.uniform("level", first + i, batch.keys, len(above)).numpy()
        for i in range(DRAWS_A_SAMPLE)
    ]
    drawn = {}
    for k, (name, probability) in enumerate(above.items()):
        u = np.stack([values[:, k] for values in uniform], axis=1)
        # NaN, where the marker is not answered, is neither reached nor missed
        positive, high = (Draws(u < p, ~(u >= p)) for p in probability.numpy()[:, :, None])
        one_level = markers.levels[name].high == markers.levels[name].positive
        one_level |= not markers.levels[name].high.found
        has_positives = name not in markers.without_positives
        drawn[name] = Levels(positive, high, one_level, has_positives)
    return drawn
