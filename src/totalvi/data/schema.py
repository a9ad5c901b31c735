"""Schema: what a model must know of its training data."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Keys:
    """Where in a MuData or AnnData the counts and annotation are; see `totalvi.Model`."""

    batch_key: str | None = None
    panel_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    rna_modality: str = "rna"
    protein_modality: str = "prot"
    rna_layer: str | None = None
    protein_layer: str | None = None
    protein_expression_obsm_key: str | None = None
    protein_names_uns_key: str | None = None
    allow_fractional: bool = False
    isotype_controls: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Schema:
    """What a model must know of its training data to take new data.

    Parameters
    ----------
    keys
        Where counts and annotation are.
    gene_names, protein_names
        Features in the network's order.
    batch_names, panel_names, label_names
        Categories in the order of their codes; ``panel_names`` is empty where batches are the panels.
    covariate_categories
        Categories of each categorical covariate.
    continuous_mean, continuous_scale
        By which continuous covariates are standardised.
    panel_measured
        One row a panel: which proteins it measured.
    library_log_mean, library_log_variance
        Of the log RNA library size, by batch.
    control_names
        Isotype controls, which are not among the proteins.
    """

    keys: Keys
    gene_names: tuple[str, ...]
    protein_names: tuple[str, ...]
    batch_names: tuple[str, ...]
    panel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    covariate_categories: tuple[tuple[str, ...], ...]
    continuous_mean: tuple[float, ...]
    continuous_scale: tuple[float, ...]
    panel_measured: tuple[tuple[bool, ...], ...]
    library_log_mean: tuple[float, ...]
    library_log_variance: tuple[float, ...]
    control_names: tuple[str, ...] = ()

    def categories(self) -> dict[str, tuple[str, ...]]:
        """Return the known categories by obs key."""
        keys = self.keys
        known = dict(zip(keys.categorical_covariate_keys, self.covariate_categories, strict=True))
        by_key = {
            keys.batch_key: self.batch_names,
            keys.panel_key: self.panel_names,
            keys.labels_key: self.label_names,
        }
        known |= {key: names for key, names in by_key.items() if key is not None}
        return known

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Return the schema that `to_dict` wrote."""
        keys = Keys(**{name: _tuples(value) for name, value in given["keys"].items()})
        rest = {name: _tuples(value) for name, value in given.items() if name != "keys"}
        return cls(keys=keys, **rest)


def library_prior(
    library_size: np.ndarray, batch: np.ndarray, n_batches: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and variance of the log library size of each batch."""
    logs = [np.log(library_size[batch == code]) for code in range(n_batches)]
    return tuple(float(x.mean()) for x in logs), tuple(max(float(x.var()), 1e-4) for x in logs)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
