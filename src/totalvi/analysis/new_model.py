"""A model of prepared counts, as a run and `totalvi train` fit it."""

from pathlib import Path

from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.model import Model


def new_model(counts: MuData | Path, keys: Columns, seed: int) -> Model:
    """Return a model of counts that hold their modalities under the usual names, not fitted yet."""
    return Model(
        counts,
        batch_key=keys.batch_key,
        panel_key=keys.panel_key,
        labels_key=keys.labels_key,
        size_factor_key=keys.size_factor_key,
        categorical_covariate_keys=keys.categorical_covariate_keys,
        continuous_covariate_keys=keys.continuous_covariate_keys,
        allow_fractional=keys.allow_fractional,
        isotype_controls=keys.isotype_controls,
        seed=seed,
    )
