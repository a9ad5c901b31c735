"""What is known of each cell besides its counts: batch, panel, label, covariates, library size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class CellContext(NamedTuple):
    """Known facts of B cells.

    Parameters
    ----------
    batch, panel, label
        Integer codes, shape (B,); ``label`` is None where none were given.
    categorical
        Codes of further categorical covariates, shape (B, covariates), or None.
    continuous
        Continuous covariates, shape (B, covariates), or None.
    library_size
        The observed library size or size factor, shape (B, 1); None when it is latent.
    """

    batch: Tensor
    panel: Tensor
    label: Tensor | None = None
    categorical: Tensor | None = None
    continuous: Tensor | None = None
    library_size: Tensor | None = None

    def repeat(self, n_samples: int) -> "CellContext":
        """Return the context of ``n_samples`` copies of the cells, one copy after the other."""
        parts = (
            None if part is None else part.repeat(n_samples, *[1] * (part.dim() - 1))
            for part in self
        )
        return CellContext(*parts)  # type: ignore[arg-type]


def integer_codes(name: str, given: Tensor, n_cells: int, n_categories: int) -> Tensor:
    """Return codes of shape (B,) from codes (B,) or (B, 1), or a one-hot matrix (B, categories).

    Raises
    ------
    ValueError
        When the shape fits none of these, or a code is not below the number of categories.
    """
    n_allowed = max(n_categories, 1)
    if given.dim() == 2 and given.shape[1] == n_categories == 1 and bool((given == 1).all()):
        given = given - 1  # the one-hot of a single category
    elif given.dim() == 2 and given.shape[1] == n_categories and n_categories > 1:
        if not bool(((given == 1).sum(dim=1) == 1).all() & ((given != 0).sum(dim=1) == 1).all()):
            raise ValueError(f"{name} is not one-hot: each row may hold a single 1 and zeros.")
        given = given.argmax(dim=1)
    elif given.dim() == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.shape != (n_cells,):
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; allowed are ({n_cells},), ({n_cells}, 1) "
            f"or one-hot ({n_cells}, {n_allowed})."
        )
    codes = given.long()
    if bool((codes != given).any()):
        raise ValueError(f"{name} holds fractions; allowed are codes from 0 to {n_allowed - 1}.")
    if n_cells and not (int(codes.min()) >= 0 and int(codes.max()) < n_allowed):
        raise ValueError(
            f"{name} holds codes from {int(codes.min())} to {int(codes.max())}; allowed are 0 to "
            f"{n_allowed - 1}."
        )
    return codes


def one_hot_columns(
    codes: Sequence[Tensor], n_categories: Sequence[int], dtype: torch.dtype
) -> Tensor | None:
    """Return the one-hot columns of all covariates with more than one category side by side."""
    columns = [F.one_hot(code, n) for code, n in zip(codes, n_categories, strict=True) if n > 1]
    return torch.cat(columns, dim=1).to(dtype) if columns else None


def one_hot_width(n_categories: Sequence[int]) -> int:
    """Return the number of columns that ``one_hot_columns`` makes."""
    return sum(n for n in n_categories if n > 1)
