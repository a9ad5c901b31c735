"""A minibatch's counts and annotation, checked before the network sees them."""

from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from totalvi.nn.cell import CellContext, integer_codes
from totalvi.nn.elbo import LossTerms
from totalvi.nn.sparse import SparseCounts


class CellExtras(TypedDict, total=False):
    """Keyword arguments that the methods of `TOTALVI` take besides the reference's.

    ``panel_index`` (B,), ``size_factor`` (B, 1), ``categorical_covariates`` (B, covariates) of codes,
    ``continuous_covariates`` (B, covariates).
    """

    panel_index: Tensor | None
    size_factor: Tensor | None
    categorical_covariates: Tensor | None
    continuous_covariates: Tensor | None


class CheckedInputs(LossTerms):
    """The network with checks of what it is given."""

    def context(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        **extras: Unpack[CellExtras],
    ) -> CellContext:
        """Check the shapes of a minibatch and return what is known of its cells.

        Raises
        ------
        ValueError
            Naming the argument, what came and what is allowed.
        """
        unknown = sorted(set(extras) - set(CellExtras.__annotations__))
        if unknown:
            known = ", ".join(CellExtras.__annotations__)
            raise ValueError(f"{unknown[0]} is not an argument; allowed besides are {known}.")
        self.check_counts(x, y)
        batch = self._codes("batch_index", batch_index, y, self.n_batch)
        has_labels = label is not None and self.n_labels > 0
        labels = self._codes("label", label, y, self.n_labels) if has_labels else None
        panel_index = extras.get("panel_index")
        panel = (
            batch
            if self.panel_is_batch
            else self._codes("panel_index", panel_index, y, self.n_panels)
        )
        categorical = self._matrix(
            "categorical_covariates", extras, y, len(self.n_categories_per_covariate)
        )
        continuous = self._matrix("continuous_covariates", extras, y, self.n_continuous_covariates)
        return CellContext(
            batch=batch,
            panel=panel,
            label=labels,
            categorical=None if categorical is None else self._covariate_codes(categorical),
            continuous=None if continuous is None else continuous.to(y.dtype),
            library_size=self._known_library(x, extras),
        )

    def check_counts(self, x: Tensor | SparseCounts, y: Tensor) -> None:
        """Raise ValueError unless ``x`` is (B, G) and ``y`` (B, T), of the module's data type."""
        dtype = self.gene_log_r.dtype
        for name, given, width in (("x", x, self.n_input_genes), ("y", y, self.n_input_proteins)):
            if not isinstance(given, Tensor | SparseCounts):
                raise ValueError(f"{name} is a {type(given).__name__}; allowed is a torch tensor.")
            if tuple(given.shape) != (x.shape[0], width):
                raise ValueError(
                    f"{name} has shape {tuple(given.shape)}; allowed is ({x.shape[0]}, {width})."
                )
            values = given.counts if isinstance(given, SparseCounts) else given
            if values.dtype != dtype:
                raise ValueError(f"{name} holds {values.dtype}; allowed is {dtype}.")
        if isinstance(x, SparseCounts):
            x.check()

    def _codes(self, name: str, given: Tensor | None, y: Tensor, n_categories: int) -> Tensor:
        if given is None and n_categories > 1:
            raise ValueError(f"{name} is None; allowed are codes from 0 to {n_categories - 1}.")
        if given is not None and n_categories == 0 and len(given) != len(y):
            raise ValueError(f"{name} has {len(given)} rows; allowed are {len(y)}, one a cell.")
        if given is None or n_categories == 0:  # the model knows no groups: all cells are one
            return torch.zeros(len(y), dtype=torch.long, device=y.device)
        return integer_codes(name, torch.as_tensor(given), len(y), n_categories)

    def _covariate_codes(self, given: Tensor) -> Tensor:
        columns = [
            integer_codes(f"categorical_covariates[:, {i}]", given[:, i], len(given), n)
            for i, n in enumerate(self.n_categories_per_covariate)
        ]
        return torch.stack(columns, dim=1) if columns else given.long()

    def _matrix(
        self,
        name: Literal["categorical_covariates", "continuous_covariates"],
        extras: CellExtras,
        y: Tensor,
        width: int,
    ) -> Tensor | None:
        given = extras.get(name)
        if width == 0 and given is None:
            return None
        shape = None if given is None else tuple(given.shape)
        if shape != (len(y), width):
            raise ValueError(f"{name} has shape {shape}; allowed is ({len(y)}, {width}).")
        return given

    def _known_library(self, x: Tensor | SparseCounts, extras: CellExtras) -> Tensor | None:
        if self.library == "latent":
            return None
        if self.library == "observed":
            total = x.sum_by_cell(x.counts) if isinstance(x, SparseCounts) else x.sum(dim=1)
            return total[:, None]
        size_factor = extras.get("size_factor")
        if size_factor is None or size_factor.numel() != x.shape[0]:
            shape = None if size_factor is None else tuple(size_factor.shape)
            raise ValueError(f"size_factor has shape {shape}; allowed is ({x.shape[0]}, 1).")
        if not bool((size_factor > 0).all()):
            raise ValueError("size_factor holds a value that is not above 0.")
        return size_factor.reshape(-1, 1)
