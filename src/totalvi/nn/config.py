"""What the arguments of the network may be, checked once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHOICES: dict[str, tuple[str, ...]] = {
    "gene_dispersion": ("gene", "gene-batch", "gene-label"),
    "protein_dispersion": ("protein", "protein-batch", "protein-label"),
    "reconstruction_loss_gene": ("nb", "zinb"),
    "latent_distribution": ("normal", "ln"),
    "library": ("latent", "observed", "size_factor"),
    "encoder_architecture": ("branched", "direct"),
    "background_scale": ("exp", "softplus"),
    "normalization": ("batch", "layer", "none"),
}
SMALLEST: dict[str, int] = {
    "n_input_genes": 1,
    "n_input_proteins": 1,
    "n_batch": 0,
    "n_labels": 0,
    "n_hidden": 1,
    "n_latent": 1,
    "n_layers_encoder": 1,
    "n_layers_decoder": 1,
    "n_panels": 1,
    "background_samples": 1,
    "n_continuous_covariates": 0,
}
RATES = ("dropout_rate_decoder", "dropout_rate_encoder", "hidden_protein_rate")
FLAGS = (
    "log_variational",
    "encoder_batch",
    "use_cuda",
    "encode_covariates",
    "scale_input",
    "protein_efficiency",
    "fused",
)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for the first of the network's arguments that has a value not allowed."""
    for name, choices in CHOICES.items():
        if name in options and options[name] not in choices:
            allowed = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"{name} is {options[name]!r}; allowed are {allowed}.")
    for name, smallest in SMALLEST.items():
        value: Any = options.get(name, smallest)
        if value is None and name == "n_panels":
            continue
        if not (_is_integer(value) and value >= smallest):
            raise ValueError(f"{name} is {value!r}; allowed are whole numbers from {smallest}.")
    for name in RATES:
        rate = options.get(name, 0.0)
        if not (isinstance(rate, int | float | np.floating) and 0 <= rate < 1):
            raise ValueError(f"{name} is {rate!r}; allowed are numbers from 0 to below 1.")
    for name in FLAGS:
        if not isinstance(options.get(name, False), bool | np.bool_):
            raise ValueError(f"{name} is {options[name]!r}; allowed are True and False.")
    per_covariate = options.get("n_categories_per_covariate", ())
    if not isinstance(per_covariate, Sequence | np.ndarray) or isinstance(per_covariate, str):
        raise ValueError(
            f"n_categories_per_covariate is {per_covariate!r}; allowed is a list of whole numbers."
        )
    for categories in per_covariate:
        if not (_is_integer(categories) and categories >= 1):
            raise ValueError(
                f"n_categories_per_covariate holds {categories!r}; allowed are whole numbers from 1."
            )
    _check_needs(options)


def _check_needs(options: Mapping[str, Any]) -> None:
    for name in ("gene_dispersion", "protein_dispersion"):
        by_label = str(options.get(name, "")).endswith("label")
        if by_label and options.get("n_labels", 0) < 1:
            raise ValueError(f"{name} is {options[name]!r}, which needs n_labels of at least 1.")


def protein_mask(
    given: Sequence[Any] | Mapping[Any, Any] | np.ndarray | Tensor | None,
    n_panels: int,
    n_proteins: int,
) -> Tensor | None:
    """Return which protein each panel measured, (panels, proteins), or None when all did.

    Parameters
    ----------
    given
        One row of booleans a panel, as a sequence or array, or a dict from the panel's code (as
        integer or text) to its row.

    Raises
    ------
    ValueError
        When panels or proteins are too many or too few, or no panel measured a protein.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        if not all(str(code).isdigit() for code in given):
            raise ValueError(
                f"protein_batch_mask has the keys {list(given)}; allowed are 0 to {n_panels - 1}."
            )
        rows_by_code = {int(code): row for code, row in given.items()}
        if sorted(rows_by_code) != list(range(n_panels)):
            raise ValueError(
                f"protein_batch_mask has the keys {sorted(rows_by_code)}; "
                f"allowed are exactly 0 to {n_panels - 1}."
            )
        rows = [rows_by_code[code] for code in range(n_panels)]
    elif isinstance(given, Sequence | np.ndarray | Tensor) and not isinstance(given, str):
        rows = list(given)
    else:
        raise ValueError(
            f"protein_batch_mask is {given!r}; allowed are a list of rows, or a dict of rows by batch."
        )
    shapes = sorted({np.shape(row) for row in rows})
    if len(rows) != n_panels or shapes != [(n_proteins,)]:
        raise ValueError(
            f"protein_batch_mask has {len(rows)} rows of shape {shapes}; "
            f"allowed are {n_panels} rows of {n_proteins} booleans."
        )
    values = np.array([np.asarray(row) for row in rows])
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError("protein_batch_mask holds other values than True and False (or 1 and 0).")
    mask = torch.as_tensor(values).bool()
    unmeasured = ~mask.any(dim=0)
    if bool(unmeasured.any()):
        raise ValueError(
            f"protein_batch_mask says that protein {int(unmeasured.nonzero()[0])} was measured "
            "nowhere; leave it out."
        )
    return None if bool(mask.all()) else mask


def at_least_one(name: str, value: int) -> int:
    """Return ``value`` when it is a whole number from 1; else raise ValueError naming it."""
    if not (_is_integer(value) and value >= 1):
        raise ValueError(f"{name} is {value!r}; allowed are whole numbers from 1.")
    return int(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
