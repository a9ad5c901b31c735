"""What the arguments of `Model` may be, and what they mean as positions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from totalvi.data.finding import did_you_mean
from totalvi.posterior.expression import ScaledLibrary

Cells = Sequence[int] | Sequence[bool] | np.ndarray | None


def check_network_options(options: dict[str, Any]) -> None:
    """Raise ValueError for arguments of the network that the model sets from data or other names."""
    elsewhere = {
        "reconstruction_loss_gene": "gene_likelihood",
        "protein_batch_mask": "NaN in the proteins a batch or panel did not measure",
        "n_panels": "panel_key",
        "n_batch": "batch_key",
        "n_labels": "labels_key",
        "n_categories_per_covariate": "categorical_covariate_keys",
        "n_continuous_covariates": "continuous_covariate_keys",
        "generator": "seed",
        "use_cuda": "model.train(accelerator=...)",
        "n_input_genes": "the data",
        "n_input_proteins": "the data",
    }
    for name in options:
        if name in elsewhere:
            raise ValueError(
                f"{name} is not an argument of Model; it follows from {elsewhere[name]}."
            )


def key_tuple(argument: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Return several obs keys as a tuple; a single text is refused, as its letters would be keys."""
    if isinstance(keys, str):
        raise ValueError(f'{argument} is {keys!r}; allowed is a list of columns: give ["{keys}"].')
    return tuple(keys)


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise ValueError(f"{argument} is {value!r}; allowed are {allowed}.")


def cell_positions(indices: Cells, n_cells: int, argument: str = "indices") -> np.ndarray:
    """Return positions from positions or a mask, given as ``argument``.

    Raises ValueError when a position is out of range, or a mask has another length than the data.
    """
    if indices is None:
        return np.arange(n_cells)
    given = np.asarray(indices)
    if given.size == 0 or (given.dtype == bool and not given.any()):
        raise ValueError(f"{argument} selects no cell; give at least one.")
    if given.dtype == bool:
        if given.shape != (n_cells,):
            raise ValueError(
                f"{argument} is a mask of shape {given.shape}; allowed is ({n_cells},)."
            )
        return np.flatnonzero(given)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{argument} must be a list of positions or a mask of the cells.")
    if given.min() < -n_cells or given.max() >= n_cells:
        raise ValueError(
            f"{argument} holds positions from {given.min()} to {given.max()}; "
            f"allowed are 0 to {n_cells - 1}."
        )
    return given.astype(np.int64) % n_cells


def feature_positions(
    wanted: Sequence[str] | None, known: Sequence[str], argument: str
) -> np.ndarray:
    """Return the positions of the wanted names, in their order; None: all."""
    if wanted is None:
        return np.arange(len(known))
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    positions = pd.Index(known).get_indexer(pd.Index(wanted))
    for name, position in zip(wanted, positions, strict=True):
        if position < 0:
            raise ValueError(f"{argument} holds {name!r}; {did_you_mean(str(name), known)}.")
    return positions


def checked_library_size(library_size: ScaledLibrary) -> ScaledLibrary:
    """Return "latent" or a number above 0; else raise ValueError."""
    if isinstance(library_size, str) and library_size == "latent":
        return library_size
    is_number = isinstance(library_size, int | float | np.number)
    if is_number and 0 < library_size < np.inf:
        return float(library_size)
    raise ValueError(f"library_size is {library_size!r}; allowed are 'latent' or a number above 0.")


def checked_number(
    argument: str, value: float, *, zero: bool = False, below: float = np.inf
) -> float:
    """Return a number above 0, or 0 where that may be, and below a limit; else raise ValueError."""
    is_number = isinstance(value, int | float | np.number)
    if is_number and (0 < value < below or (zero and value == 0)):
        return float(value)
    least = "from" if zero else "above"
    most = "" if below == np.inf else f" and below {below:g}"
    raise ValueError(f"{argument} is {value!r}; allowed are finite numbers {least} 0{most}.")
