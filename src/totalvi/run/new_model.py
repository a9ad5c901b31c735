"""The model of a command: made of its counts and columns, and fitted as it was asked."""

import warnings
from pathlib import Path

from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.errors import DataWarning
from totalvi.model import Model
from totalvi.run.folder import WriteOptions


def new_model(
    counts: MuData | Path, keys: Columns, seed: int, staining_level: bool = False
) -> Model:
    """Return an unfitted model of counts with the usual names of modalities."""
    with warnings.catch_warnings(
        action="ignore", category=DataWarning
    ):  # said of the input already
        return _model(counts, keys, seed, staining_level)


def _model(counts: MuData | Path, keys: Columns, seed: int, staining_level: bool) -> Model:
    return Model(
        counts,
        batch_key=keys.batch_key,
        panel_key=keys.panel_key,
        labels_key=keys.labels_key,
        unlabeled_category=keys.unlabeled_category,
        size_factor_key=keys.size_factor_key,
        categorical_covariate_keys=keys.categorical_covariate_keys,
        continuous_covariate_keys=keys.continuous_covariate_keys,
        allow_fractional=keys.allow_fractional,
        isotype_controls=keys.isotype_controls,
        staining_level=staining_level,
        seed=seed,
    )


def fit_model(
    model: Model, max_epochs: int | None, writing: WriteOptions, show: bool | None
) -> None:
    """Fit a model to prepared counts, in memory or on disk; resume if ``checkpoint`` exists."""
    model.train(
        max_epochs=max_epochs,
        checkpoint=writing.checkpoint,
        checkpoint_every=writing.checkpoint_every,
        resume=True,
        progress=show,
        devices=1,  # one process does everything else in a run
    )
