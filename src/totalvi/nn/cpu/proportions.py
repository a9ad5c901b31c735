"""RNA proportions from logits, added to running totals row by row."""

import numpy as np
from numba import prange

from totalvi.compiled import compiled
from totalvi.nn.cpu.gene_rows import softmax_terms

_CHUNKS = 64  # of cells


@compiled(parallel=True, fastmath=True, error_model="numpy")
def add_proportions(
    logits: np.ndarray, bias: np.ndarray, scale: np.ndarray, total: np.ndarray
) -> None:
    """Add ``scale * softmax(logits + bias)`` of each cell to ``total``.

    Parameters
    ----------
    logits, bias, total
        (B, G), (G,) and (B, G).
    scale
        (B,).
    """
    n_cells, n_genes = logits.shape
    size = -(-n_cells // _CHUNKS)
    for chunk in prange(_CHUNKS):
        e = np.empty(n_genes, bias.dtype)
        for b in range(min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)):
            factor = scale[b] / softmax_terms(logits, bias, b, e)
            for g in range(n_genes):
                total[b, g] += factor * e[g]
