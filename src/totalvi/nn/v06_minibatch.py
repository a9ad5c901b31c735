"""Minibatches with the arguments and names of totalVI 0.6.x: checks, samples, and results."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from totalvi.errors import allowed
from totalvi.nn.cell import CellContext, SparseCounts
from totalvi.nn.coders import CellPosterior, Decoded
from totalvi.nn.config import LibraryKind, NetworkConfig, at_least_one
from totalvi.nn.likelihoods import (
    SMALLEST_NORMAL,
    Dispersion,
    negative_binomial_mixture_log_prob,
    sum_measured,
    without_unmeasured,
)
from totalvi.nn.network import Network
from totalvi.nn.ops import gene_reconstruction_loss
from totalvi.nn.sync import standard_normal

_SAMPLES_AT_ONCE = 50


BatchCode: TypeAlias = int | float | np.number | np.ndarray | Tensor


class CellExtras(TypedDict, total=False):
    """Keyword arguments of the methods of `TOTALVI` that the reference does not have.

    ``panel_index`` (B,), ``size_factor`` (B, 1), ``categorical_covariates`` (B, covariates) of codes,
    ``continuous_covariates`` (B, covariates).
    """

    panel_index: Tensor | None
    size_factor: Tensor | None
    categorical_covariates: Tensor | None
    continuous_covariates: Tensor | None


def checked_context(
    config: NetworkConfig,
    x: Tensor | SparseCounts,
    y: Tensor,
    batch_index: Tensor | None = None,
    label: Tensor | None = None,
    *,
    extras: CellExtras,
) -> CellContext:
    """Return the context of the cells with counts ``x`` (B, G) and ``y`` (B, T).

    Raises
    ------
    ValueError
        When an argument has a shape or value that is not allowed.
    """
    unknown = sorted(set(extras) - set(CellExtras.__annotations__))
    if unknown:
        known = ", ".join(CellExtras.__annotations__)
        raise ValueError(f"{unknown[0]} is not an argument; allowed besides are {known}.")
    n_cells = len(y)
    batch = group_codes("batch_index", batch_index, y, config.n_batch)
    has_labels = label is not None and config.n_labels > 0
    panel = batch
    if config.n_panels is not None:
        panel = group_codes("panel_index", extras.get("panel_index"), y, config.n_panels)
    continuous = covariate_matrix(
        "continuous_covariates", extras.get("continuous_covariates"), n_cells,
        config.n_continuous_covariates,
    )  # fmt: skip
    return CellContext(
        batch=batch,
        panel=panel,
        label=group_codes("label", label, y, config.n_labels) if has_labels else None,
        categorical=covariate_codes(
            extras.get("categorical_covariates"), n_cells, config.n_categories_per_covariate
        ),
        continuous=None if continuous is None else continuous.to(y.dtype),
        library_size=known_library(config.library, x, extras.get("size_factor")),
    )


def checked_counts(
    network: Network, x: Tensor | SparseCounts, y: Tensor
) -> tuple[Tensor | SparseCounts, Tensor]:
    """Return RNA counts (B, G) and protein counts (B, T); whole numbers in the network's data type.

    Raises ValueError where they have another shape, or another data type of fractions.
    """
    dtype = network.gene_log_r.dtype
    widths = network.n_input_genes, network.n_input_proteins
    for name, given, width in zip(("x", "y"), (x, y), widths, strict=True):
        if not isinstance(given, Tensor | SparseCounts):
            raise ValueError(f"{name} is a {type(given).__name__}; allowed is a torch tensor.")
        if tuple(given.shape) != (x.shape[0], width):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}; allowed is ({x.shape[0]}, {width})."
            )
        values = given.counts if isinstance(given, SparseCounts) else given
        if values.dtype != dtype and (values.is_floating_point() or values.is_complex()):
            raise ValueError(f"{name} holds {values.dtype}; allowed are {dtype} and whole numbers.")
    if isinstance(x, SparseCounts):
        x.check()
        return SparseCounts(x.counts.to(dtype), x.gene, x.cell_pointer, x.n_genes), y.to(dtype)
    return x.to(dtype), y.to(dtype)


def group_codes(name: str, given: Tensor | None, like: Tensor, n_categories: int) -> Tensor:
    """Return the code of each cell's group, (B,); all cells are one group if the model has none.

    ``like`` has a row for each of the B cells.
    """
    if given is None and n_categories > 1:
        raise ValueError(allowed(name, None, f"codes from 0 to {n_categories - 1}"))
    if given is not None and n_categories == 0 and len(given) != len(like):
        raise ValueError(f"{name} has {len(given)} rows; allowed are {len(like)}, one a cell.")
    if given is None or n_categories == 0:
        return torch.zeros(len(like), dtype=torch.long, device=like.device)
    return integer_codes(name, torch.as_tensor(given), len(like), n_categories)


def integer_codes(name: str, given: Tensor, n_cells: int, n_categories: int) -> Tensor:
    """Return codes of shape (B,) from codes (B,) or (B, 1), or a one-hot matrix (B, categories).

    Raises
    ------
    ValueError
        When it has another shape, or a code is not below the number of categories.
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


def covariate_codes(
    given: Tensor | None, n_cells: int, n_categories: Sequence[int]
) -> Tensor | None:
    """Return the codes of the categorical covariates, (B, covariates)."""
    given = covariate_matrix("categorical_covariates", given, n_cells, len(n_categories))
    if given is None:
        return None
    columns = [
        integer_codes(f"categorical_covariates[:, {i}]", given[:, i], n_cells, n)
        for i, n in enumerate(n_categories)
    ]
    return torch.stack(columns, dim=1) if columns else given.long()


def covariate_matrix(name: str, given: Tensor | None, n_cells: int, width: int) -> Tensor | None:
    """Return covariates (B, width); None if the model has none and none are given."""
    if width == 0 and given is None:
        return None
    shape = None if given is None else tuple(given.shape)
    if shape != (n_cells, width):
        raise ValueError(f"{name} has shape {shape}; allowed is ({n_cells}, {width}).")
    return given


def known_library(
    kind: LibraryKind, x: Tensor | SparseCounts, size_factor: Tensor | None
) -> Tensor | None:
    """Return the cells' RNA totals or the given size factors, (B, 1); None if they are latent."""
    if kind == "latent":
        return None
    if kind == "observed":
        total = x.sum_by_cell(x.counts) if isinstance(x, SparseCounts) else x.sum(dim=1)
        return total[:, None]
    if size_factor is None or size_factor.numel() != x.shape[0]:
        shape = None if size_factor is None else tuple(size_factor.shape)
        raise ValueError(f"size_factor has shape {shape}; allowed is ({x.shape[0]}, 1).")
    if not bool((size_factor > 0).all()):
        raise ValueError("size_factor holds a value that is not above 0; give positive ones.")
    return size_factor.reshape(-1, 1)


def library_prior(
    kind: LibraryKind, mean: Tensor | None, variance: Tensor | None, n_cells: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return mean and variance of the prior of the log library size; None if it is not latent.

    Raises ValueError unless they hold one value, or one for each of the B cells.
    """
    if kind != "latent":
        return None, None
    if mean is None or variance is None:
        raise ValueError(
            "local_l_mean_gene and local_l_var_gene are needed for a latent library size; give both."
        )
    for name, given in (("local_l_mean_gene", mean), ("local_l_var_gene", variance)):
        if given.numel() not in (1, n_cells):
            raise ValueError(f"{name} has shape {tuple(given.shape)}; allowed is ({n_cells}, 1).")
    return mean, variance


def batch_code(given: BatchCode | None, n_batch: int) -> int | None:
    """Return the code of a batch from a whole number, or a tensor or array that holds a single one.

    Examples
    --------
    >>> batch_code(torch.tensor(1), 2), batch_code(1.0, 2), batch_code(None, 2)
    (1, 1, None)
    """
    if given is None:
        return None
    largest = max(n_batch, 1) - 1
    values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    is_number = values.size == 1 and np.issubdtype(values.dtype, np.number)
    code = values.reshape(-1)[0] if is_number else -1
    if not (0 <= code <= largest and code == int(code)):
        raise ValueError(allowed("transform_batch", given, f"0 to {largest}"))
    return int(code)


class Sample(NamedTuple):
    """Samples of the latent variables of a minibatch, with the context and result of decoding."""

    posterior: CellPosterior
    context: CellContext
    untran_z: Tensor
    z: Tensor
    library_size: Tensor
    untran_l: Tensor | None
    decoded: Decoded
    log_background: Tensor


def posterior_sample(
    network: Network,
    x: Tensor | SparseCounts,
    y: Tensor,
    context: CellContext,
    n_samples: int,
    transform_batch: BatchCode | None,
    generator: torch.Generator | None,
) -> Sample:
    """Encode the cells, sample their latent variables, and decode them into ``transform_batch``.

    With ``n_samples`` above 1, all parts gain a leading axis.
    """
    at_least_one("n_samples", n_samples)
    decoded_in = batch_code(transform_batch, network.n_batch)
    posterior = network.encode(x, y, context, generator)
    if n_samples > 1:
        parts = (None if part is None else part.expand(n_samples, -1, -1) for part in posterior)
        posterior = CellPosterior(*parts)  # type: ignore[arg-type]
    noise = standard_normal(posterior.qz_m, generator)
    untran_z = network.latent_at(posterior, noise)
    library_size, untran_l = network.sample_library(posterior, context, generator)
    z = network.transform_latent(untran_z)
    context = context.in_batch(decoded_in)
    flat = network.decode(z.flatten(0, -2), context.repeat(n_samples), generator)
    decoded = flat.unflatten(z.shape[:-1])
    context = network.at_level(context, network.sample_level(posterior, generator))
    log_background = network.sample_log_background(decoded, generator)
    return Sample(posterior, context, untran_z, z, library_size, untran_l, decoded, log_background)


def latent_mean(
    network: Network,
    posterior: CellPosterior,
    n_samples: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return E[z], (B, n_latent): exact, or from ``n_samples`` for the logistic normal."""
    if network.latent_distribution == "normal":
        return posterior.qz_m
    at_least_one("n_samples", n_samples)
    total = torch.zeros_like(posterior.qz_m)
    for start in range(0, n_samples, _SAMPLES_AT_ONCE):
        like = total.expand(min(_SAMPLES_AT_ONCE, n_samples - start), -1, -1)
        samples = network.latent_at(posterior, standard_normal(like, generator))
        total += network.transform_latent(samples).sum(dim=0)
    return total / n_samples


def inverse_dispersion(dispersion: Dispersion, n_samples: int = 1) -> Tensor:
    """Return r, (features,), or per cell if it differs by group.

    It is a parameter and not sampled. For several samples, r per cell is repeated along a leading axis.
    """
    r = dispersion.log_r.exp()
    if len(dispersion.by_group) == 1:
        return r[0]
    return r if n_samples == 1 else r.expand(n_samples, -1, -1)


def measured_proteins(
    given: Tensor | np.ndarray | Sequence[Sequence[float]] | None, y: Tensor
) -> Tensor | None:
    """Return which proteins were measured, bool (B, T), from true and false or 1 and 0; None: all.

    Raises ValueError where the mask has another shape than ``y``, or other numbers.
    """
    if given is None:
        return None
    mask = torch.as_tensor(given, device=y.device)
    if mask.shape != y.shape:
        raise ValueError(
            f"pro_batch_mask_minibatch has shape {tuple(mask.shape)}; allowed is {tuple(y.shape)}."
        )
    measured = mask.bool()
    if bool((measured != mask).any()):
        raise ValueError(
            "pro_batch_mask_minibatch holds other numbers than 0 and 1; give 1 where a protein was "
            "measured."
        )
    return measured


def gene_loss_of(network: Network, x: Tensor | SparseCounts, px_: dict[str, Tensor]) -> Tensor:
    """Return ``-log p(x)`` summed over genes, (B,), from the entries of ``px_``.

    The network's likelihood decides whether ``px_["dropout"]`` counts, whoever made ``px_``.
    """
    dropout = None
    if network.config.reconstruction_loss_gene == "zinb":
        if "dropout" not in px_:
            raise ValueError(
                'px_ has no "dropout", which a "zinb" network needs; give what inference returned.'
            )
        dropout = px_["dropout"]
    log_r = px_["r"].log()
    return gene_reconstruction_loss(
        x,
        px_["rate"].clamp(min=SMALLEST_NORMAL).log(),
        log_r[None] if log_r.dim() == 1 else log_r,
        dropout,
    )


def protein_reconstruction_loss(
    y: Tensor, py_: dict[str, Tensor], measured: Tensor | None
) -> Tensor:
    """Return ``-log p(y)`` summed over measured proteins, (B,), from the entries of ``py_``."""
    efficiency = py_.get("efficiency", torch.ones_like(py_["rate_back"]))
    log_prob = negative_binomial_mixture_log_prob(
        without_unmeasured(y, measured),
        (py_["rate_back"] * efficiency).clamp(min=SMALLEST_NORMAL).log(),
        (py_["rate_fore"] * efficiency).clamp(min=SMALLEST_NORMAL).log(),
        py_["r"].log(),
        py_["mixing"],
    )
    return -sum_measured(log_prob, measured)
