"""The state of a fitted model: the result of a fit, and everything in a model besides its data."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from totalvi.data.cells import NAMES, CiteData, QueryMapping, Schema, hash_of_names
from totalvi.errors import DataWarning
from totalvi.fit.plan import Split, TrainingPlan
from totalvi.fit.state import torch_generator
from totalvi.nn.v06 import TOTALVI

_INITIAL_WEIGHTS, _SPLIT, _FIT = range(3)  # purposes of a model's seed in fits; queries have others
_CALIBRATION = 5


def seed_of_split(seed: int) -> np.random.SeedSequence:
    """Return the generator of a model's random splits, the same for each of its fits."""
    return np.random.SeedSequence(seed, spawn_key=(_SPLIT, 0))


def seed_of_fit(seed: int, n_earlier_fits: int) -> np.random.SeedSequence:
    """Return the seed of all random numbers in a fit of a model."""
    return np.random.SeedSequence(seed, spawn_key=(_FIT, n_earlier_fits))


def seed_of_calibration(seed: int, n_earlier_fits: int) -> np.random.SeedSequence:
    """Return the seed of the cells that calibrate a fit, and of their samples."""
    return np.random.SeedSequence(seed, spawn_key=(_CALIBRATION, n_earlier_fits))


def network_of(schema: Schema, options: dict[str, Any], seed: int) -> TOTALVI:
    """Return the network of a model before its first fit, ready for queries.

    Parameters
    ----------
    schema
        Schema of the model's data, which gives the sizes.
    options
        The other arguments of `TOTALVI`.
    seed
        Seed of the model, for the initial weights.
    """
    initial_weights = np.random.SeedSequence(seed, spawn_key=(_INITIAL_WEIGHTS, 0))
    return TOTALVI(
        n_input_genes=len(schema.gene_names),
        n_input_proteins=len(schema.protein_names),
        n_batch=len(schema.batch_names),
        n_labels=len(schema.label_names),
        n_panels=len(schema.panel_names) or None,
        n_categories_per_covariate=[len(names) for names in schema.covariate_categories],
        n_continuous_covariates=len(schema.columns.continuous_covariate_keys),
        protein_batch_mask=schema.panel_measured,
        panel_measured_rna=schema.panel_measured_rna or None,
        generator=torch_generator(initial_weights),
        **options,
    ).eval()


class CountCalibration(NamedTuple):
    """What intervals of counts add to the fitted parameters; see `totalvi.posterior.calibration`.

    Parameters
    ----------
    protein_log_r
        To the log inverse dispersions of proteins, (T,).
    protein_log_scale
        To the log standard deviation of each protein's log background, (T,).
    cells
        Positions in the training data of the cells that it was fitted to, ascending.
    """

    protein_log_r: np.ndarray
    protein_log_scale: np.ndarray
    cells: np.ndarray

    def to_dict(self) -> dict[str, list[float]]:
        """Return lists of numbers."""
        return {name: values.tolist() for name, values in self._asdict().items()}

    @classmethod
    def from_dict(cls, given: dict[str, list[float]]) -> Self:
        """Return the calibration that `to_dict` wrote."""
        log_r, log_scale, cells = (given[name] for name in cls._fields)
        return cls(
            np.array(log_r, np.float32),
            np.array(log_scale, np.float32),
            np.array(cells, np.int64),
        )


@dataclass(frozen=True)
class FitResult:
    """The result of a fit besides the weights.

    Parameters
    ----------
    history
        One row for each epoch: losses per cell, their parts, KL weight, learning rate, seconds.
        "validation_loss", which chooses the weights, is minus the evidence lower bound with the log
        background integrated; "validation_paper_loss", the sum of its parts, minus that of the paper.
    split
        The cells that trained, validated, and were held out for tests.
    plan
        The plan of the fit; None if another package fitted the model, or it was not fitted.
    summary
        The epoch whose weights the network has, the reason why training stopped, the number of
        refused steps that were not finite, and the precision of the products.
    fingerprint
        Fingerprint of the data; None if not known.
    calibration
        What intervals of counts add to the fitted parameters; None: nothing.
    """

    history: pd.DataFrame
    split: Split
    plan: TrainingPlan | None
    summary: dict[str, Any]
    fingerprint: dict[str, Any] | None = None
    calibration: CountCalibration | None = None

    def after(self, earlier: "FitResult | None", fingerprint: dict[str, Any]) -> "FitResult":
        """Return the result with the epochs of an ``earlier`` fit first, and the data's fingerprint."""
        before = pd.DataFrame() if earlier is None else earlier.history
        history = pd.concat([before, self.history], ignore_index=True)
        history.index.name = "epoch"
        summary = self.summary | {"best_epoch": len(before) + self.summary["best_epoch"]}
        return replace(self, history=history, summary=summary, fingerprint=fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers."""
        return {
            "plan": None if self.plan is None else asdict(self.plan),
            "fit_summary": self.summary,
            "fingerprint": self.fingerprint,
            "split": {name: part.tolist() for name, part in self.split._asdict().items()},
            "history": self.history.to_dict(orient="list"),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
        }

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Return the result that `to_dict` wrote."""
        history = pd.DataFrame(given["history"], dtype=float)
        history.index.name = "epoch"
        parts = {name: np.array(cells, np.int64) for name, cells in given["split"].items()}
        plan = given["plan"]
        calibration = given.get("calibration")  # models saved by versions without it lack it
        return cls(
            history,
            Split(**parts),
            None if plan is None else TrainingPlan(**plan),
            given["fit_summary"],
            given.get("fingerprint"),
            None if calibration is None else CountCalibration.from_dict(calibration),
        )


@dataclass(frozen=True)
class ModelState:
    """Everything in a fitted model besides its data.

    Parameters
    ----------
    schema
        Schema of the model's data.
    options
        Arguments of `TOTALVI` that do not follow from the schema.
    seed
        Seed of all random numbers.
    network
        The network with its weights.
    result
        Result of the latest fit.
    n_fits
        Number of fits so far.
    is_trained
        Whether the model is ready for queries.
    mapping
        How a query was mapped on a reference; None if the model was fitted to its own data.
    """

    schema: Schema
    options: dict[str, Any]
    seed: int
    network: TOTALVI
    result: FitResult
    n_fits: int = 1
    is_trained: bool = True
    mapping: QueryMapping | None = None


def fit_settings(
    *,
    seed: int,
    number_of_fit: int,
    network: dict[str, Any],
    plan: TrainingPlan,
    split: Split,
    split_sizes: tuple[float, float | None] | None,
    data: dict[str, Any],
) -> dict[str, Any]:
    """Return the settings on which a fit depends, as JSON values.

    Parameters
    ----------
    seed, number_of_fit, network
        Seed of the model, number of its fits including this one, and options of its network.
    plan, split, split_sizes
        Plan and cells of the fit; the sizes are None if positions were given.
    data
        Fingerprint of the data, from `totalvi.data.cells.fingerprint`.
    """
    settings = {
        "seed": seed,
        "number of the fit": number_of_fit,
        "network": network,
        "plan": asdict(plan),
        "split": {
            f"{name} cells": hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()
            for name, part in split._asdict().items()
        },
        "split_sizes": split_sizes,
        "data": data,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=lambda value: value.tolist()))
    return plain


def are_cells_of_fit(of_fit: dict[str, Any] | None, data: CiteData) -> bool:
    """Return whether data hold the cells of a fit in its order, as far as its fingerprint tells."""
    return of_fit is None or of_fit[NAMES] == hash_of_names(data)


def warn_of_another_order(of_fit: dict[str, Any] | None, data: CiteData) -> None:
    """Warn where as many cells as in a fit are others, or in another order."""
    if of_fit is None or of_fit["cells"] != data.n_cells or are_cells_of_fit(of_fit, data):
        return
    warnings.warn(
        "The cells are not those of the fit in their order. Queries answer for the cells given, but "
        "split and calibration_cells are positions in the data of the fit, so they do not tell which "
        "of these cells were held out; load the model with the data of its fit for that.",
        DataWarning,
        stacklevel=3,
    )
