"""What was measured of each cell, what the encoder sees of it, and the loss of cells that have RNA."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from totalvi.nn.cell import SparseCounts, of_some_cells, take_cells
from totalvi.nn.coders import CellPosterior
from totalvi.nn.likelihoods import GeneLikelihood
from totalvi.nn.sync import of_all_cells, own_cells


class Seen(NamedTuple):
    """What the encoder sees of B cells.

    Parameters
    ----------
    x, y
        Counts (B, G) and (B, T), 0 where they are not seen.
    has_rna
        Whether RNA is seen, (B,); None where all panels measured it.
    proteins
        Which proteins are seen, (B, T); None where all panels measured all.
    """

    x: Tensor | SparseCounts
    y: Tensor
    has_rna: Tensor | None
    proteins: Tensor | None


class Masks(NamedTuple):
    """Which proteins, (panels, T), and whether RNA, (panels,), each panel measured; None: all did."""

    protein: Tensor | None
    rna: Tensor | None

    def seen(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        panel: Tensor,
        hidden_rate: float,
        generator: torch.Generator | None,
    ) -> Seen:
        """Return what the encoder sees of cells of a ``panel``, (B,).

        A share ``hidden_rate`` of the cells shows only what the panel of another cell of the minibatch
        measured, so that the encoder learns to work without the rest.
        """
        shown = panel
        if hidden_rate and not (self.protein is None and self.rna is None):
            shown = self._another(panel, hidden_rate, generator)
        proteins = None
        if self.protein is not None:
            proteins = self.protein[panel]
            y = torch.where(proteins, y, y.nan_to_num(nan=0.0))
            if shown is not panel:
                y = y * self.protein[shown]
                proteins = proteins & self.protein[shown]
        if self.rna is None:
            return Seen(x, y, None, proteins)
        has_rna = self.rna[panel] & self.rna[shown]
        return Seen(of_some_cells(x, has_rna), y, has_rna, proteins)

    def _another(self, panel: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
        """Return the panel of another cell for a share of them, where that leaves something to see."""
        whole = of_all_cells(panel, generator)
        other = whole[torch.randperm(len(whole), generator=generator, device=panel.device)]
        chance = torch.rand(len(whole), generator=generator, device=panel.device)
        seen = torch.where(chance < rate, other, whole)
        seen = own_cells(seen, len(panel), generator)
        if self.rna is None or self.protein is None:
            return seen
        rna = self.rna[panel] & self.rna[seen]
        protein = (self.protein[panel] & self.protein[seen]).any(dim=1)
        return torch.where(rna | protein, seen, panel)

    def partly_seen(self, seen: Seen, panel: Tensor) -> Tensor:
        """Return positions of the cells of a mosaic that measured more than is seen of them."""
        assert self.rna is not None
        assert seen.has_rna is not None
        hidden = self.rna[panel] & ~seen.has_rna
        if self.protein is not None and seen.proteins is not None:
            hidden = hidden | (self.protein[panel] & ~seen.proteins).any(dim=1)
        return hidden.nonzero()[:, 0]

    def known_library(
        self, posterior: CellPosterior, panel: Tensor, mean: Tensor | None, variance: Tensor | None
    ) -> CellPosterior:
        """Return the posterior with the prior of a latent library size where there is no RNA."""
        if self.rna is None or posterior.ql_m is None or mean is None or variance is None:
            return posterior
        assert posterior.ql_v is not None
        has_rna = self.rna[panel][:, None]
        return posterior._replace(
            ql_m=torch.where(has_rna, posterior.ql_m, mean.reshape(-1, 1)),
            ql_v=torch.where(has_rna, posterior.ql_v, variance.reshape(-1, 1)),
        )

    def gene_loss(
        self,
        loss: Callable[[Tensor | SparseCounts, GeneLikelihood], Tensor],
        x: Tensor | SparseCounts,
        genes: GeneLikelihood,
        panel: Tensor,
    ) -> Tensor:
        """Return ``loss`` of the cells that have RNA, (..., B); no gene is decoded of others."""
        if self.rna is None:
            return loss(x, genes)
        rows = self.rna[panel].nonzero()[:, 0]
        of_rows = loss(take_cells(x, rows), genes.take_cells(rows))
        zeros = of_rows.new_zeros(*of_rows.shape[:-1], len(panel))
        return zeros.index_copy(-1, rows, of_rows)
