"""The evidence lower bound, term by term."""

from typing import NamedTuple

import torch
from torch import Tensor


class ElboTerms(NamedTuple):
    """The five terms of the negative evidence lower bound, each (B,).

    Parameters
    ----------
    reconst_loss_gene, reconst_loss_protein
        ``-log p(x | z, l)`` and ``-log p(y | z, b)``; unmeasured proteins count nothing.
    kl_div_z, kl_div_l_gene, kl_div_back_pro
        Divergences of q(u), q(log l) and q(b), the last summed over measured proteins.
    """

    reconst_loss_gene: Tensor
    reconst_loss_protein: Tensor
    kl_div_z: Tensor
    kl_div_l_gene: Tensor
    kl_div_back_pro: Tensor

    def reconstruction(self) -> Tensor:
        """Return the reconstruction loss of both modalities, (B,)."""
        return self.reconst_loss_gene + self.reconst_loss_protein

    def divergence(self) -> Tensor:
        """Return the sum of the three divergences, (B,)."""
        return self.kl_div_z + self.kl_div_l_gene + self.kl_div_back_pro


def objective(terms: ElboTerms, kl_weight: float | Tensor = 1.0) -> Tensor:
    """Return what training minimises: the mean over cells of reconstruction + weighted divergences.

    ``kl_weight`` scales the divergences of z and of the protein background, which grow from zero
    during the warm-up; that of the library size, whose posterior is data-driven from the start,
    counts in full. At ``kl_weight=1`` this is the negative ELBO of the totalVI paper.

    Examples
    --------
    >>> import torch
    >>> ones = torch.ones(4)
    >>> objective(ElboTerms(ones, ones, ones, ones, ones), kl_weight=0.5).item()
    4.0
    """
    weighted = terms.kl_div_z + terms.kl_div_back_pro
    return torch.mean(terms.reconstruction() + terms.kl_div_l_gene + kl_weight * weighted)
