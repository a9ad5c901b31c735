"""`Model.train`: start the background prior, plan, split and checkpoint of a fit, and run it."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from inspect import getattr_static
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd

from totalvi.data.background.ambient import AmbientProfile
from totalvi.data.background.prior import (
    PanelBatches,
    anchored_background_prior,
    empirical_background_prior,
)
from totalvi.data.cells import CiteData, fingerprint
from totalvi.errors import NotTrainedError, TrainingError, warn_of
from totalvi.fit.callbacks import Callback, Listeners, Logger
from totalvi.fit.checkpoint import (
    CHECKPOINT_EVERY,
    Checkpoint,
    kept_accelerator,
    open_checkpoint,
)
from totalvi.fit.device import resolved_plan
from totalvi.fit.loop import Fit
from totalvi.fit.model_state import (
    FitResult,
    fit_settings,
    seed_of_calibration,
    seed_of_fit,
    seed_of_split,
)
from totalvi.fit.plan import DEFAULT_SIZES, Precision, Split, TrainingPlan, choose_split, plan_fit
from totalvi.mapping.surgery import only_new_rows
from totalvi.posterior.calibration import calibrate_fit
from totalvi.posterior.question import Fitted
from totalvi.posterior.unmeasured import fill_query
from totalvi.processes import launch, require_equal, this_process
from totalvi.progress import epoch_progress, is_shown
from totalvi.scvi_names import KnowsScvi, of_scvi, saying_names

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class History(pd.DataFrame):
    """One row an epoch; columns that scvi-tools names otherwise are answered with our name."""

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def __getitem__(self, key: Any) -> Any:
        answer = of_scvi(key) if isinstance(key, str) and key not in self.columns else None
        if answer is not None:
            raise KeyError(answer)
        return super().__getitem__(key)


class KnowsScviProtocol(KnowsScvi, type(Protocol)):  # type: ignore[misc]  # its base is a function
    """Metaclass of `Model`, whose bases are protocols and whose methods say what they take by name."""

    def __init__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> None:
        super().__init__(name, bases, members)
        for called in dir(cls):
            found = getattr_static(cls, called)
            method = found.__func__ if isinstance(found, classmethod) else found
            is_called = called[0] != "_" or called == "__init__"
            if (
                isinstance(method, FunctionType)
                and is_called
                and not hasattr(method, "__wrapped__")
            ):
                checked = saying_names(method, name)
                setattr(cls, called, checked if found is method else classmethod(checked))


class Training(Fitted, Protocol):
    """The method `train` of a model."""

    _data: CiteData | None
    _options: dict[str, Any]
    _result: FitResult | None
    _n_fits: int
    _failure: str | None

    @property
    def calibration_cells(self) -> np.ndarray:
        """Positions of the validation cells that calibrated the intervals of counts, ascending.

        What is said of these intervals must come from other cells.
        """
        calibration = None if self._result is None else self._result.calibration
        return np.array([], dtype=np.int64) if calibration is None else calibration.cells

    @property
    def plan(self) -> TrainingPlan | None:
        """The numbers of the fit; None before it, and when another package fitted the model."""
        return None if self._result is None else self._result.plan

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """Names of the data and hashes of the counts, by which the data are recognised."""
        return None if self._result is None else self._result.fingerprint

    @property
    def fit_summary(self) -> dict[str, Any]:
        """The best epoch, why training stopped, steps skipped, and the precision of the products.

        Raises
        ------
        NotTrainedError
            Before the first fit.
        """
        if self._result is None:
            raise NotTrainedError("The model has no fit_summary yet; call model.train() first.")
        return self._result.summary

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(of_scvi(name) or f"'Model' object has no attribute {name!r}")

    def train(
        self,
        max_epochs: int | None = None,
        *,
        lr: float = TrainingPlan.learning_rate,
        batch_size: int | None = None,
        train_size: float = 0.9,
        validation_size: float | None = None,
        split: Sequence[Any] | None = None,
        early_stopping: bool = True,
        early_stopping_patience: int | None = None,
        n_epochs_kl_warmup: int = TrainingPlan.kl_warmup_epochs,
        schedule: Literal["one-cycle", "constant"] = TrainingPlan.schedule,
        weight_decay: float = TrainingPlan.weight_decay,
        gradient_clip_norm: float = TrainingPlan.gradient_clip_norm,
        adversarial: bool | float = False,
        calibrate: bool = True,
        accelerator: str = TrainingPlan.accelerator,
        precision: Precision = TrainingPlan.precision,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | timedelta = CHECKPOINT_EVERY,
        resume: bool | str | Path = False,
        logger: Logger | Sequence[Logger] | None = None,
        callbacks: Callback | Sequence[Callback] = (),
        progress: bool | None = None,
        devices: int | None = None,
        num_nodes: int = 1,
    ) -> None:
        """Fit the model, and keep the weights with the lowest held-out loss.

        That loss, ``history["validation_loss"]``, is minus the evidence lower bound with the log
        background integrated; ``history["validation_paper_loss"]`` is minus that of the paper. A
        second call starts from the weights of the first. In a model that `map_query` returned, only
        the weights of the query's batches change.

        Parameters
        ----------
        max_epochs
            Passes over the training cells. None: fewer for more cells; see `default_max_epochs`.
        lr
            Learning rate; the peak of the one-cycle schedule.
        batch_size
            Cells in a minibatch. None: see `default_batch_size`.
        train_size, validation_size
            Shares of cells for training and validation; the rest is held out for tests. None: all cells
            that ``train_size`` leaves, at most 50,000.
        split
            Positions of the cells for training, validation and tests, instead of a random split.
        early_stopping, early_stopping_patience
            Whether to stop after that many epochs without a lower held-out loss. None: see
            `default_patience`.
        n_epochs_kl_warmup
            Epochs over which the weight of the divergences rises from 0 to 1.
        schedule
            "one-cycle" or "constant" learning rate.
        weight_decay, gradient_clip_norm
            Weight decay of the optimiser, and the largest norm of the gradient.
        adversarial
            Whether the encoder also learns to deceive a classifier of antibody panels, or the weight
            of this loss (True: 1). Off by default, because measurements showed no gain.
        calibrate
            Whether half of the validation cells, at most 500, refit how far protein counts spread
            around their means, for intervals and counts that are drawn; see `PredictiveCheck`. The
            other held-out cells can then tell how good these are: ``fit_summary`` says how many cells
            calibrated, and `calibration_cells` which. A mapped query keeps the reference's calibration.
        accelerator
            As in Lightning Fabric: "auto", "cpu", "cuda", ...
        precision
            "32-true", "bf16-mixed" or "16-mixed" as in Lightning Fabric; "auto": bfloat16 products
            if the processor has them. ``fit_summary`` reports the choice.
        checkpoint
            File from which the fit can be resumed. It is written at intervals of
            ``checkpoint_every``, at the end, and after SIGINT (Ctrl-C) or SIGTERM, which then end
            the fit after its step.
        checkpoint_every
            A number of epochs, or a time: ``datetime.timedelta(minutes=10)``.
        resume
            A checkpoint from which the fit resumes; it is then also the ``checkpoint``. True:
            ``checkpoint``, if it exists. The fit ends with the numbers of an uninterrupted one.
            Arguments left at their defaults are those of the checkpoint, and others must agree.
        logger
            Receives each row of `history` under its names, with ``step`` the number of the epoch
            there, and the numbers of the fit as hyperparameters if it takes them: one or several of
            the loggers of Lightning Fabric (TensorBoard, CSV) and Lightning (MLflow, Weights &
            Biases), or any object with ``log_metrics(metrics, step)``.
        callbacks
            Functions ``callback(epoch, row)``, called after each epoch with its number and its row of
            `history`; the fit ends if one returns True. With several processes, the first alone calls
            the callbacks and loggers. A fit that resumes first tells them of its earlier epochs, so
            that a log is complete; what callbacks answer then does not count.
        progress
            Whether to show a progress bar; None: on a terminal, and elsewhere a line a minute.
        devices, num_nodes
            Number of processes on each machine (one for each GPU), and of machines. They share each
            minibatch. The script runs in each of them, from its start. None: as many as `torchrun`,
            `fabric run` or SLURM's `srun` started, else 1. See ``docs/scaling.md``.

        Raises
        ------
        TrainingError
            When the loss or its gradient is no longer finite.
        ProcessError
            When another process of the fit ended, or has other data or arguments.
        CheckpointError
            When the checkpoint is damaged, or belongs to a different fit.
        OutputError
            When the checkpoint cannot be written, or exists without ``resume``.
        KeyboardInterrupt
            When a signal ended the fit. The model is unchanged, and the checkpoint is written.
        """
        data = self._training_data()
        listeners = Listeners.of(logger, callbacks)
        given: dict[str, Any] = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "learning_rate": lr,
            "schedule": schedule,
            "weight_decay": weight_decay,
            "kl_warmup_epochs": n_epochs_kl_warmup,
            "gradient_clip_norm": gradient_clip_norm,
            "adversary_weight": self._adversary_weight(adversarial),
            "accelerator": accelerator,
            "precision": precision,
        }
        if early_stopping_patience is not None or not early_stopping:
            given["patience"] = early_stopping_patience if early_stopping else None
        sizes = (train_size, validation_size)
        fabric = launch(kept_accelerator(checkpoint, resume, accelerator), devices, num_nodes)
        with open_checkpoint(checkpoint, checkpoint_every, resume) as kept:
            before = {} if kept is None else kept.settings
            if split is None and sizes == DEFAULT_SIZES and before.get("split_sizes"):
                sizes = tuple(before["split_sizes"])
            rng = np.random.default_rng(seed_of_split(self.seed))
            cells = choose_split(split, data.n_cells, sizes, rng)
            plan = plan_fit(len(cells.train), given, before.get("plan"))
            plan = resolved_plan(plan, self.module, fabric.device)
            found = fingerprint(data)
            settings = fit_settings(
                seed=self.seed,
                number_of_fit=self._n_fits + 1,
                network={**self._options, "background_anchor": self._anchor_digest()},
                plan=plan,
                split=cells,
                split_sizes=sizes if split is None else None,
                data=found,
            )
            if kept is not None:
                kept.belong_to(settings)
            steps_done = kept.steps_done if kept is not None else 0
            require_equal(json.dumps([settings, steps_done]), "data, arguments or checkpoint")
            shown = progress if this_process().rank == 0 else False
            result = self._fit(data, cells, plan, fabric, kept, listeners, shown)
        if self._mapping is not None:  # unmeasured proteins are filled by the weights after the fit
            fill_query(self.module, data, self._mapping)
            assert self._result is not None
            result = replace(result, calibration=self._result.calibration)
        self._result = result.after(self._result, found)
        self._n_fits += 1
        self.is_trained, self._failure = True, None
        if calibrate and self._mapping is None:  # if this is interrupted, the fit is there
            seed = seed_of_calibration(self.seed, self._n_fits)
            self._result = calibrate_fit(self._result, self.module, data, seed)

    def _start_background(self, data: CiteData, ambient: AmbientProfile | None) -> None:
        """Set the start of the background prior, and its anchor if there are droplets."""
        measured = np.array(self.schema.panel_measured)
        start = empirical_background_prior(data.protein, data.panel, measured)
        mean, scale, _ = start
        if ambient is not None:
            names = PanelBatches.of_cells(self.schema, data.batch, data.panel)
            mean, scale, anchor, found = anchored_background_prior(start, ambient, names)
            self.module.anchor_background(anchor)
            self._data = replace(data, findings=(*data.findings, *found))
            warn_of(found, stacklevel=4)
        self.module.set_background_prior(mean, scale)

    def _fit(
        self,
        data: CiteData,
        split: Split,
        plan: TrainingPlan,
        fabric: "Fabric",
        checkpoint: Checkpoint | None,
        listeners: Listeners,
        progress: bool | None,
    ) -> FitResult:
        """Fit the module; if that fails or is interrupted, restore the model."""
        seed = seed_of_fit(self.seed, self._n_fits)
        before = {name: value.clone() for name, value in self.module.state_dict().items()}
        mapping = self._mapping
        frozen = nullcontext() if mapping is None else only_new_rows(self.module, mapping)
        sizes = {
            "n_genes": data.rna.shape[1],
            "n_proteins": data.protein.shape[1],
            "n_batches": len(self.schema.batch_names),
            "n_training_cells": len(split.train),
        }
        numbers = {"seed": self.seed, **sizes, **self._options, **asdict(plan)}
        try:
            with (
                frozen,
                epoch_progress(plan.max_epochs, progress) as bar,
                listeners.told(numbers, len(self.history), bar) as on_epoch,
            ):
                shown = bar is not None and is_shown(progress)
                fit = Fit(self.module, data, split, plan, fabric, seed, on_epoch, shown)
                return fit.run(checkpoint)
        except BaseException as error:
            self.module.load_state_dict(before)
            self.module.cpu().eval()
            if isinstance(error, TrainingError):
                self._failure, self.is_trained = str(error), False
            raise

    def _anchor_digest(self) -> str | None:
        """Return a hash of the anchor from empty droplets, on which a fit depends."""
        anchor = self.module.background_anchor
        return (
            None if anchor is None else hashlib.sha256(anchor.cpu().numpy().tobytes()).hexdigest()
        )

    def _adversary_weight(self, adversarial: bool | float) -> float:
        if adversarial and self._mapping is not None:
            raise ValueError(
                "adversarial moves the encoder, which a mapped query shares with its reference; "
                "leave it at False."
            )
        if adversarial and self.module.n_panels < 2:
            raise ValueError(
                f"adversarial is {adversarial!r}, but all cells are of one panel; leave it at False."
            )
        return float(adversarial)
