"""Counts of all cells on the device that a fit runs on, so that minibatches are taken there."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.data.cite import CiteData
from totalvi.module.sparse import SparseCounts


class CountsOnDevice(NamedTuple):
    """RNA and protein counts of all cells as tensors of one device.

    Parameters
    ----------
    rna
        (N, G).
    protein
        (N, T).
    """

    rna: SparseCounts
    protein: Tensor

    def take(self, rows: np.ndarray) -> tuple[SparseCounts, Tensor]:
        """Return RNA and protein of the cells at ``rows``, in that order."""
        cells = torch.from_numpy(rows).to(self.protein.device)
        start = self.rna.cell_pointer[cells]
        length = self.rna.cell_pointer[cells + 1] - start
        pointer = torch.cat([length.new_zeros(1), length.cumsum(0)])
        shift = (start - pointer[:-1]).repeat_interleave(length)
        place = torch.arange(len(shift), device=shift.device) + shift
        rna = SparseCounts(self.rna.counts[place], self.rna.gene[place], pointer, self.rna.n_genes)
        return rna, self.protein[cells]


def counts_on_device(data: CiteData, device: torch.device | str) -> CountsOnDevice:
    """Return the counts of all cells on ``device``; they must be in memory."""
    counts, gene, pointer = (
        torch.from_numpy(part).to(device)
        for part in (data.rna.data, data.rna.indices, data.rna.indptr.astype(np.int64))
    )
    rna = SparseCounts(counts, gene, pointer, data.rna.shape[1])
    return CountsOnDevice(rna, torch.from_numpy(data.protein).to(device))
