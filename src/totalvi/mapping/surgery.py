"""Give a network new batches, and train only their weights.

All weights of a batch, panel or category are separate rows: in the covariate weights of each layer, in
dispersions by batch, in the background prior, and in the protein efficiency. New batches are new rows.
The reference's rows and everything else are copied and then frozen.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from totalvi.data.cells import QueryMapping
from totalvi.errors import TrainingError
from totalvi.nn.network import Network

_PROTEIN_HEADS = (
    "background_mean_head",
    "background_scale_head",
    "foreground_head",
    "background_logit_head",
)
_BACKGROUND_PRIOR = ("background_prior_mean", "background_prior_log_scale")


class Rows(NamedTuple):
    """The origin of the rows of an extended tensor.

    Parameters
    ----------
    kept
        Rows of the reference.
    source
        For each of them, its row in the reference's tensor; -1 if the reference has no such tensor,
        because it has a single batch, and the row is 0.
    new
        Rows of new batches, panels and categories.
    by_batch
        Whether the tensor starts with a row for each batch.
    """

    kept: np.ndarray
    source: np.ndarray
    new: np.ndarray
    by_batch: bool


def extended_rows(module: Network, mapping: QueryMapping) -> dict[str, Rows]:
    """Return the rows of each tensor of an extended network with rows by batch, panel or category."""
    n_new, n_old = max(module.n_batch, 1), mapping.n_reference_batches
    categories = (n_new, *module.n_categories_per_covariate)
    old_categories = (n_old, *mapping.n_reference_categories)
    rows: dict[str, Rows] = {}
    for name, parameter in module.state_dict().items():
        if name.endswith("covariate_weight"):
            n_now, n_before = list(categories), list(old_categories)
            if name.startswith("encoder"):
                if not module.encoder_batch:
                    n_now[0] = n_before[0] = 0
                if not module.encode_covariates:
                    n_now, n_before = n_now[:1], n_before[:1]
            found = _one_hot_rows(n_before, n_now)
            rows[name] = found
            assert len(found.kept) + len(found.new) == len(parameter)
    if module.gene_dispersion.endswith("batch"):
        rows["gene_log_r"] = _appended(n_old, n_new)
    if module.protein_dispersion.endswith("batch"):
        rows["protein_log_r"] = _appended(n_old, n_new)
    if module.log_efficiency is not None:
        rows["log_efficiency"] = _appended(n_old, n_new)
    for name in _BACKGROUND_PRIOR:
        rows[name] = _appended(mapping.n_reference_panels, module.n_panels)._replace(by_batch=False)
    return rows


def _appended(n_before: int, n_now: int) -> Rows:
    kept = np.arange(n_before)
    return Rows(kept, kept, np.arange(n_before, n_now), by_batch=True)


def _one_hot_rows(n_before: Sequence[int], n_now: Sequence[int]) -> Rows:
    """Return the rows of one-hot columns; a covariate of a single category has none."""
    kept: list[int] = []
    source: list[int] = []
    new: list[int] = []
    start = start_before = 0
    for before, now in zip(n_before, n_now, strict=True):
        if now <= 1:
            continue
        kept += range(start, start + before)
        source += range(start_before, start_before + before) if before > 1 else [-1] * before
        new += range(start + before, start + now)
        start += now
        start_before += before if before > 1 else 0
    return Rows(np.array(kept, int), np.array(source, int), np.array(new, int), n_now[0] > 1)


def extend(reference: Network, module: Network, mapping: QueryMapping) -> None:
    """Fill ``module``, which has more batches, panels or categories, with the reference's weights.

    New categories of covariates start at the mean of the known ones; `start_batch` starts new batches.
    """
    rows = extended_rows(module, mapping)
    state, old = module.state_dict(), reference.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if name in ("protein_mask", "rna_mask"):
                continue
            if name not in rows:
                value.copy_(old[name])
                continue
            value.zero_()
            has_source = rows[name].source >= 0
            if has_source.any():
                value[rows[name].kept[has_source]] = old[name][rows[name].source[has_source]]
            if name.endswith("covariate_weight"):
                _start_categories(value, module, mapping, name)


def _start_categories(value: Tensor, module: Network, mapping: QueryMapping, name: str) -> None:
    """Start rows of new categories at the mean of the covariate's known ones."""
    in_encoder = name.startswith("encoder")
    if in_encoder and not module.encode_covariates:
        return
    start = 0 if in_encoder and not module.encoder_batch else module.n_batch
    start = start if start > 1 else 0
    both = zip(mapping.n_reference_categories, module.n_categories_per_covariate, strict=True)
    for before, now in both:
        if now <= 1:
            continue
        value[start + before : start + now] = value[start : start + before].mean(dim=0)
        start += now


def start_batch(
    module: Network, mapping: QueryMapping, batch: int, panel: int, weight: np.ndarray
) -> None:
    """Set the rows of a new batch and its panel to a weighted mean of the reference batches' rows.

    Parameters
    ----------
    batch, panel
        Codes of the new batch, and of its panel.
    weight
        Weight of each reference batch; they add up to 1. Either the nearest batch has weight 1, or
        all are equal. Weights of a protein are averaged over the batches that measured it.
    """
    n_batches, n_panels = mapping.n_reference_batches, mapping.n_reference_panels
    by_batch = torch.as_tensor(
        weight, dtype=module.gene_log_r.dtype, device=module.gene_log_r.device
    )
    on_panels = _protein_weights(module, None if mapping.panels else by_batch, n_panels)
    on_batches = by_batch[:, None] if mapping.panels else on_panels
    state = module.state_dict()
    with torch.no_grad():
        for name, rows in extended_rows(module, mapping).items():
            value = state[name]
            if name in _BACKGROUND_PRIOR:
                value[panel] = (on_panels * value[:n_panels]).sum(dim=0)
            elif rows.by_batch:
                of_proteins = name in ("protein_log_r", "log_efficiency") or any(
                    head in name for head in _PROTEIN_HEADS
                )
                weights = on_batches if of_proteins else by_batch[:, None]
                value[batch] = (weights * value[:n_batches]).sum(dim=0)


def _protein_weights(module: Network, weight: Tensor | None, n_panels: int) -> Tensor:
    """Return the weight of each reference panel for each protein, (panels, T), adding up to 1."""
    prior = module.background_prior_mean
    measured = torch.ones(n_panels, prior.shape[1], dtype=prior.dtype, device=prior.device)
    if module.protein_mask is not None:
        measured = module.protein_mask[:n_panels].to(prior.dtype)
    weighted = measured if weight is None else measured * weight[:, None]
    weighted = torch.where(weighted.sum(dim=0) > 0, weighted, measured)
    return weighted / weighted.sum(dim=0)


def reference_state(module: Network, mapping: QueryMapping) -> dict[str, Tensor]:
    """Return the reference's part of an extended network: its tensors without the new rows.

    Tensors that the reference lacks and the mask of measured proteins are left out.
    """
    rows = extended_rows(module, mapping)
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if name not in rows:
            state[name] = value
        elif (rows[name].source >= 0).any():
            state[name] = value[rows[name].kept[rows[name].source >= 0]]
    for mask in ("protein_mask", "rna_mask"):
        state.pop(mask, None)
    return state


class _NewRows(nn.Module):
    """A parameter of which only some rows are trained; the other rows are not parameters."""

    def __init__(self, whole: Tensor, new: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("frozen", whole.detach().clone())
        self.register_buffer("new", torch.as_tensor(new))
        self.frozen: Tensor
        self.new: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Return the complete parameter, including ``rows``."""
        return self.frozen.index_copy(0, self.new, rows)

    def right_inverse(self, whole: Tensor) -> Tensor:
        """Return the rows to train."""
        return whole[self.new].clone()


@contextmanager
def only_new_rows(module: Network, mapping: QueryMapping) -> Iterator[None]:
    """Let a fit change only the rows of new batches, panels and categories while the block runs.

    Everything else is frozen. Other parameters have no gradient, and the reference's rows are not
    parameters. The network stays in evaluation mode, so batch normalisation keeps its statistics.

    Raises
    ------
    TrainingError
        When a tensor of the reference has changed nevertheless.
    """
    before = {name: value.clone() for name, value in reference_state(module, mapping).items()}
    needed_gradient = {name: p.requires_grad for name, p in module.named_parameters()}
    parametrized = []
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for name, rows in extended_rows(module, mapping).items():
        if len(rows.new) == 0:
            continue
        path, _, own_name = name.rpartition(".")
        owner = module.get_submodule(path)
        whole = getattr(owner, own_name)
        parametrize.register_parametrization(owner, own_name, _NewRows(whole, rows.new))
        owner.parametrizations[own_name].original.requires_grad_(True)  # type: ignore[union-attr,index]
        parametrized.append((owner, own_name))
    module.reference_frozen = True
    module.eval()
    try:
        yield
    finally:
        for owner, own_name in parametrized:
            parametrize.remove_parametrizations(owner, own_name, leave_parametrized=True)
        module.reference_frozen = False
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(needed_gradient[name])
    after = reference_state(module, mapping)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name].cpu())]
    if changed:
        raise TrainingError(
            f"The reference's {changed[0]} changed while a query was fitted, which must not happen; "
            "report it with the versions of totalvi and torch."
        )
