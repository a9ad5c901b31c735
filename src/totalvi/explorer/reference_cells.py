"""The cells of a minified reference, with the values that its model decodes of their states."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.data.cells import LAYOUT
from totalvi.data.counts import Counts, CountsInMemory
from totalvi.errors import ReadError
from totalvi.explorer.axes import Kind
from totalvi.explorer.run_cells import Cells

_SAMPLES = 10  # of each cell
_KINDS: tuple[Kind, ...] = ("protein_denoised", "protein_foreground", "gene_denoised")


class ReferenceCells(Cells):
    """The cells of a minified reference, with their labels, map and decoded values.

    Denoised values and foreground probabilities are given the cell's state alone, without its counts.

    Parameters
    ----------
    path
        Of the reference.

    Raises
    ------
    FormatError
        When it is damaged.
    """

    def __init__(self, path: Path) -> None:
        from totalvi.model import Model  # loads torch

        super().__init__()
        self.folder, self.prefix, self.title = path.absolute().parent, f"{path.stem}.", path.name
        self._model = Model.load(path)
        data = self._model._training_data()
        self.obs = data.annotation.obs()
        layout = data.annotation.layout()
        self.umap = None if layout is None else layout.astype(np.float32)
        self.obs = self.obs.drop(columns=list(LAYOUT), errors="ignore")
        schema = self._model.schema
        self.gene_names = pd.Index(schema.gene_names, dtype=object)
        self.protein_names = pd.Index(schema.protein_names, dtype=object)

    def __exit__(self, *_: object) -> None:
        """Close nothing: all is in memory."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of values of features that there are."""
        return _KINDS

    @property
    def note(self) -> str:
        """What the page says of what is not there."""
        return (
            " A reference keeps no counts of these cells: differences and probabilities need the "
            "results of totalvi run."
        )

    def _has(self, kind: Kind) -> bool:
        return kind in _KINDS

    def _values(self, kind: Kind, name: str) -> np.ndarray:
        if kind not in (*_KINDS, "umap", "obs"):
            raise ReadError(
                f"{self.title} is a reference, which keeps no counts of its cells, so it has no "
                f"{kind.replace('_', ' ')}; choose denoised values."
            )
        return super()._values(kind, name)

    def _stored(self, kind: Kind, position: int) -> np.ndarray:
        if kind == "protein_denoised":
            column: np.ndarray = self._denoised[:, position]
        elif kind == "protein_foreground":
            column = self._foreground[:, position]
        else:
            gene = [str(self.gene_names[position])]
            rna, _ = self._model.get_normalized_expression(
                gene_list=gene, protein_list=[], given_counts=False, n_samples=_SAMPLES,
                library_size=1e4, progress=False,
            )  # fmt: skip
            column = rna.to_numpy()[:, 0]
        return column

    @cached_property
    def _denoised(self) -> np.ndarray:
        return self._model.get_normalized_expression(
            gene_list=[], given_counts=False, n_samples=_SAMPLES, progress=False
        )[1].to_numpy()

    @cached_property
    def _foreground(self) -> np.ndarray:
        return np.asarray(
            self._model.get_protein_foreground_probability(
                given_counts=False, n_samples=_SAMPLES, progress=False
            )
        )

    @cached_property
    def protein(self) -> Counts[np.ndarray]:  # type: ignore[override]  # decoded when needed
        """Denoised values in place of counts, by which the first plots are chosen."""
        return CountsInMemory(self._denoised)

    @property
    def rna(self) -> Counts[sparse.csr_matrix]:  # type: ignore[override]  # there are none
        """Refuse to give counts of genes."""
        raise ReadError(f"{self.title} keeps no counts of its cells; choose denoised values.")
