"""Model: what people use."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from totalvi.data.background.ambient import AmbientProfile
from totalvi.data.background.prior import (
    PanelBatches,
    anchored_background_prior,
    empirical_background_prior,
)
from totalvi.data.background.raw_matrices import Raw, ambient_of
from totalvi.data.cells import CiteData, QueryMapping, Schema, fingerprint
from totalvi.data.columns import Columns
from totalvi.data.describe import Data, describe, opened
from totalvi.errors import FormatError, NotTrainedError, TrainingError
from totalvi.fit.checkpoint import Checkpoints, State
from totalvi.fit.loop import Fit, epoch_progress, fit, resolved_plan
from totalvi.fit.plan import Precision, TrainingPlan, plan_fit
from totalvi.fit.resume import CHECKPOINT_EVERY, fit_settings, kept
from totalvi.fit.split import DEFAULT_SIZES, Split, choose_split
from totalvi.fit.step import torch_generator
from totalvi.formats.model_folder import (
    read_model,
    require_possible_sizes,
    require_same_types,
    write_model,
)
from totalvi.formats.scvi_write import write_scvi
from totalvi.mapping.map_query import MappingQueries
from totalvi.mapping.mapped_cells import ComparisonQueries
from totalvi.mapping.surgery import only_new_rows
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.abundance import AbundanceQueries
from totalvi.posterior.archetypes import ArchetypeQueries
from totalvi.posterior.arguments import check_choice, check_network_options, key_tuple
from totalvi.posterior.correlation_queries import CorrelationQueries
from totalvi.posterior.differential.query import DifferentialQueries
from totalvi.posterior.evidence import EvidenceQueries
from totalvi.posterior.expression_queries import ExpressionQueries
from totalvi.posterior.imputation_queries import ImputationQueries
from totalvi.posterior.isotypes import IsotypeQueries
from totalvi.posterior.latent_queries import LatentQueries
from totalvi.posterior.parameters import ParameterQueries
from totalvi.posterior.predictive import PredictiveQueries
from totalvi.processes import launch, process_of, require_equal, this_process

_INITIAL_WEIGHTS, _SPLIT, _FIT = range(3)  # what a seed is for; queries have a number of their own


class Model(
    LatentQueries,
    ExpressionQueries,
    DifferentialQueries,
    ParameterQueries,
    PredictiveQueries,
    CorrelationQueries,
    EvidenceQueries,
    ArchetypeQueries,
    AbundanceQueries,
    IsotypeQueries,
    ImputationQueries,
    MappingQueries,
    ComparisonQueries,
):
    """A totalVI model of CITE-seq data: built from counts, trained, and asked.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts of paired RNA and proteins. It is never written to. Or the
        path of one, ``.h5ad``, ``.h5mu`` or ``.zarr``, whose counts stay on disk and are read as
        they are needed; fast is what `totalvi convert` writes.
    batch_key, panel_key, labels_key
        Columns of ``obs`` with each cell's batch, antibody panel (None: each batch is one), label.
    size_factor_key
        Column with size factors. None: the library size is the cell's total RNA count.
    categorical_covariate_keys, continuous_covariate_keys
        Columns with further covariates to correct for; continuous ones are standardised.
    rna_modality, protein_modality
        Names of the modalities of a MuData.
    rna_layer, protein_layer
        Layers with the counts. None: ``X``.
    protein_expression_obsm_key
        Where an AnnData keeps proteins in ``obsm``.
    allow_fractional
        Whether counts may have fractions (corrected counts, for instance).
    on_disk
        Whether counts that lie on disk (of a backed AnnData, or one opened by
        `totalvi.data.io.h5_zarr.open_on_disk`) stay there; those of a path do.
    n_latent, n_hidden, n_layers_encoder, n_layers_decoder
        Sizes of the network; see `TOTALVI`.
    dropout_rate_encoder, dropout_rate_decoder
        Share of hidden nodes set to zero while training.
    gene_likelihood
        "nb" or "zinb".
    latent_distribution
        "normal" or "ln" (logistic normal, whose corners are archetypes).
    gene_dispersion, protein_dispersion
        See `TOTALVI`.
    library
        "observed" or "latent"; not used with ``size_factor_key``.
    empirical_protein_background_prior
        Whether the prior of each protein's background starts at the lower mode of its counts. It is
        learned either way.
    isotype_controls
        Antibodies that are kept out of the model, to check its background with them
        (`check_isotype_controls`). None: those marked in ``var["control"]``, or named as isotype
        controls are; an empty list: none.
    empty_droplets
        The raw matrix of all barcodes, one by batch (``{batch: raw}``), or what
        `totalvi.ambient_profile` returned: the prior of the background then starts at the profile of
        the empty droplets and is anchored there; see docs/background.md. None:
        ``uns["ambient"]`` of the data, as ``totalvi.read(raw=...)`` leaves it, if any; False: none.
    seed
        Source of all that is random. The same seed gives the same numbers on the same machine.
    network_options
        Further keyword arguments of `TOTALVI`.

    Attributes
    ----------
    module
        The `TOTALVI` network.
    schema
        Names and categories that the model knows.
    history
        One row an epoch, all fits one after the other: losses in nats by cell.
    split
        The cells of the last fit: ``train``, ``validation`` and ``test`` positions.
    fingerprint
        By what the data of the last fit are known again: names, and hashes of the counts.
    is_trained
        Whether queries can be answered.

    Raises
    ------
    DataError
        When the counts or their annotation cannot be used; the message says what to do.
    ValueError
        When an argument has a value that is not allowed.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
    >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
    >>> model.train(max_epochs=2)
    >>> model.get_latent_representation().shape
    (60, 4)
    """

    def __init__(
        self,
        data: Data,
        *,
        batch_key: str | None = None,
        panel_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        rna_modality: str = "rna",
        protein_modality: str = "prot",
        rna_layer: str | None = None,
        protein_layer: str | None = None,
        protein_expression_obsm_key: str | None = None,
        allow_fractional: bool = False,
        on_disk: bool = False,
        n_latent: int = 20,
        n_hidden: int = 256,
        n_layers_encoder: int = 1,
        n_layers_decoder: int = 2,
        dropout_rate_encoder: float = 0.1,
        dropout_rate_decoder: float = 0.2,
        gene_likelihood: Literal["nb", "zinb"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        gene_dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch", "protein-label"] = "protein",
        library: Literal["observed", "latent"] = "observed",
        empirical_protein_background_prior: bool = True,
        isotype_controls: Sequence[str] | None = None,
        empty_droplets: Raw | Mapping[str, Raw] | pd.DataFrame | Literal[False] | None = None,
        seed: int = 0,
        **network_options: Any,
    ) -> None:
        keys = Columns(
            batch_key=batch_key,
            panel_key=panel_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=key_tuple(
                "categorical_covariate_keys", categorical_covariate_keys
            ),
            continuous_covariate_keys=key_tuple(
                "continuous_covariate_keys", continuous_covariate_keys
            ),
            rna_modality=rna_modality,
            protein_modality=protein_modality,
            rna_layer=rna_layer,
            protein_layer=protein_layer,
            protein_expression_obsm_key=protein_expression_obsm_key,
            allow_fractional=allow_fractional,
            isotype_controls=None
            if isotype_controls is None
            else key_tuple("isotype_controls", isotype_controls),
        )
        check_network_options(network_options)
        if not (isinstance(seed, int | np.integer) and seed >= 0):
            raise ValueError(f"seed is {seed!r}; allowed are whole numbers from 0.")
        # these two are other than the network's, whose own check would name another argument
        check_choice("library", library, ("observed", "latent"))
        check_choice("gene_likelihood", gene_likelihood, ("nb", "zinb"))
        self._options: dict[str, Any] = {
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers_encoder": n_layers_encoder,
            "n_layers_decoder": n_layers_decoder,
            "dropout_rate_encoder": dropout_rate_encoder,
            "dropout_rate_decoder": dropout_rate_decoder,
            "reconstruction_loss_gene": gene_likelihood,
            "latent_distribution": latent_distribution,
            "gene_dispersion": gene_dispersion,
            "protein_dispersion": protein_dispersion,
            "library": library if size_factor_key is None else "size_factor",
            "encoder_architecture": "direct",
            "scale_input": True,
            "background_scale": "softplus",
            "background_samples": 8,
            "hidden_protein_rate": 0.8,
            **network_options,
        }
        self.seed = int(seed)
        data, on_disk = opened(data, on_disk=on_disk)
        self._data: CiteData | None = describe(data, keys, on_disk=on_disk)
        self.schema = self._data.schema
        self.module = self._network()
        ambient = ambient_of(data, keys, empty_droplets)
        if ambient is not None or (
            empirical_protein_background_prior and "background_prior" not in network_options
        ):
            self._start_background(self._data, ambient)
        self.history = pd.DataFrame()
        self.split: Split | None = None
        self.plan: TrainingPlan | None = None
        self.fingerprint: dict[str, Any] | None = None
        self.is_trained = False
        self._n_fits = 0
        self._failure: str | None = None

    def _network(self) -> TOTALVI:
        schema = self.schema
        return TOTALVI(
            n_input_genes=len(schema.gene_names),
            n_input_proteins=len(schema.protein_names),
            n_batch=len(schema.batch_names),
            n_labels=len(schema.label_names),
            n_panels=len(schema.panel_names) or None,
            n_categories_per_covariate=[len(names) for names in schema.covariate_categories],
            n_continuous_covariates=len(schema.columns.continuous_covariate_keys),
            protein_batch_mask=schema.panel_measured,
            generator=torch_generator(self._random(_INITIAL_WEIGHTS)),
            **self._options,
        ).eval()

    def _start_background(self, data: CiteData, ambient: AmbientProfile | None) -> None:
        """Set where the prior of the background starts, and its anchor where there are droplets."""
        measured = np.array(self.schema.panel_measured)
        mean, scale = empirical_background_prior(data.protein, data.panel, measured)
        if ambient is not None:
            batches = [np.unique(data.batch[data.panel == code]) for code in range(len(measured))]
            names = PanelBatches(self.schema.protein_names, self.schema.batch_names, batches)
            mean, scale, anchor = anchored_background_prior(mean, scale, ambient, names)
            self.module.anchor_background(anchor)
        self.module.set_background_prior(mean, scale)

    def _random(self, purpose: int, repetition: int = 0) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(purpose, repetition))

    # ------------------------------------------------------------------------------------ train

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
        accelerator: str = TrainingPlan.accelerator,
        precision: Precision = TrainingPlan.precision,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | timedelta = CHECKPOINT_EVERY,
        resume: bool | str | Path = False,
        progress: bool | None = None,
        devices: int | None = None,
        num_nodes: int = 1,
    ) -> None:
        """Fit the model, and keep the weights of the lowest held-out loss.

        A second call goes on from the weights of the first. Of a model that `map_query` returned, only
        the weights of the query's batches move.

        Parameters
        ----------
        max_epochs
            Passes over the training cells. None: fewer for more cells; see `default_max_epochs`.
        lr
            Learning rate; the peak of the one-cycle schedule.
        batch_size
            Cells in a minibatch. None: see `default_batch_size`.
        train_size, validation_size
            Shares of cells to train on and to validate on; the rest is held out for tests. None: all
            that ``train_size`` leaves, but 50,000 cells at most.
        split
            Positions of the cells to train on, to validate on and to hold out, in place of a random
            split.
        early_stopping, early_stopping_patience
            Whether to stop after that many epochs without a lower held-out loss. None: see
            `default_patience`.
        n_epochs_kl_warmup
            Epochs over which the weight of the divergences rises from 0 to 1.
        schedule
            "one-cycle" or "constant" learning rate.
        weight_decay, gradient_clip_norm
            Of the optimiser, and the largest norm of the gradient.
        adversarial
            Whether the encoder also learns to deceive a classifier of antibody panels, or the weight
            of doing so (True: 1). Off by default, as it measured no better; see ``docs/decisions.md``.
        accelerator
            As in Lightning Fabric: "auto", "cpu", "cuda", ...
        precision
            "32-true", "bf16-mixed" or "16-mixed" as in Lightning Fabric; "auto": bfloat16 products
            where the processor has them. ``fit_summary`` says which it was.
        checkpoint
            File from which the fit can go on: written as often as ``checkpoint_every`` says, after
            SIGINT (Ctrl-C) or SIGTERM, which then end the fit after its step, and at the end.
        checkpoint_every
            A number of epochs, or a time: ``datetime.timedelta(minutes=10)``.
        resume
            A checkpoint, from which the fit goes on to the numbers it would have had without the
            interruption, and which is then the ``checkpoint``; True: ``checkpoint``, if it is there.
            Arguments left at their defaults are those of the checkpoint, and others must agree.
        progress
            Whether to show a progress bar; None: on a terminal.
        devices, num_nodes
            Processes on each machine, one for each GPU, and machines; they share each minibatch. The
            script runs in each of them, from its start. None: as many as `torchrun`, `fabric run` or
            SLURM's `srun` started, else 1. See ``docs/scaling.md``.

        Raises
        ------
        TrainingError
            When the loss or its gradient is no longer finite.
        ProcessError
            When another process of the fit ended, or has other data or arguments.
        CheckpointError
            When the checkpoint is damaged, or of another fit: the message names what differs.
        OutputError
            When the checkpoint cannot be written, or is there and not to be resumed.
        KeyboardInterrupt
            When a signal ended the fit. The model is what it was before, and the checkpoint is there.
        """
        data = self._training_data()
        process = process_of(launch(accelerator, devices, num_nodes))
        asked: dict[str, Any] = {
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
            asked["patience"] = early_stopping_patience if early_stopping else None
        sizes = (train_size, validation_size)
        rng = np.random.default_rng(self._random(_SPLIT))
        with kept(checkpoint, checkpoint_every, resume) as kept_fit:
            if split is None and sizes == DEFAULT_SIZES and kept_fit.settings.get("split_sizes"):
                sizes = tuple(kept_fit.settings["split_sizes"])
            cells = choose_split(split, data.n_cells, sizes, rng)
            plan = plan_fit(len(cells.train), asked, kept_fit.settings.get("plan"))
            plan = resolved_plan(plan, self.module, devices, num_nodes)
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
            checkpoints = kept_fit.checkpoints(settings)
            require_equal(
                json.dumps([settings, kept_fit.steps_done]), "data, arguments or checkpoint"
            )
            shown = False if process.rank else progress
            result = self._fit(
                data, cells, plan, shown, checkpoints, kept_fit.state, devices, num_nodes
            )
        if self._mapping is not None:  # by the weights that the fit has left
            self._fill_unmeasured(data, self._mapping)
        n_earlier_epochs = len(self.history)
        self.split, self.plan, self.fingerprint, self._failure = cells, plan, found, None
        self.history = pd.concat([self.history, result.history], ignore_index=True)
        self.history.index.name = "epoch"
        self.fit_summary = {
            "best_epoch": n_earlier_epochs + result.best_epoch,
            "stopped": result.stopped,
            "n_skipped_steps": result.n_skipped_steps,
            "precision": result.precision,
        }
        self._n_fits += 1
        self.is_trained = True

    def _fit(
        self,
        data: CiteData,
        split: Split,
        plan: TrainingPlan,
        progress: bool | None,
        checkpoints: Checkpoints | None,
        start: State | None,
        devices: int | None,
        num_nodes: int,
    ) -> Fit:
        """Fit the module; when that fails or is interrupted, the model is what it was before."""
        seed = self._random(_FIT, self._n_fits)
        before = {name: value.clone() for name, value in self.module.state_dict().items()}
        try:
            new_rows = (
                nullcontext()
                if self._mapping is None
                else only_new_rows(self.module, self._mapping)
            )
            with new_rows, epoch_progress(plan.max_epochs, progress) as on_epoch:
                return fit(
                    self.module, data, split, plan, seed, on_epoch, checkpoints, start, devices,
                    num_nodes,
                )  # fmt: skip
        except BaseException as error:
            self.module.load_state_dict(before)
            self.module.cpu().eval()
            if isinstance(error, TrainingError):
                self._failure, self.is_trained = str(error), False
            raise

    def _anchor_digest(self) -> str | None:
        """Return a hash of what empty droplets say, which a fit depends on."""
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

    # --------------------------------------------------------------------------------------- files

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model, without the data, to the folder ``path``, whole or not at all.

        Of several processes the first writes; the others go on at once.

        Raises
        ------
        OutputError
            When ``path`` exists and ``overwrite`` is False.
        """
        if not self.is_trained:
            raise NotTrainedError("The model has not been trained; call model.train() first.")
        assert self.split is not None
        description = {
            "options": self._options,
            "schema": self.schema.to_dict(),
            "seed": self.seed,
            "n_fits": self._n_fits,
            "plan": None if self.plan is None else asdict(self.plan),
            "fit_summary": self.fit_summary,
            "fingerprint": self.fingerprint,
            "split": {name: part.tolist() for name, part in self.split._asdict().items()},
            "history": self.history.to_dict(orient="list"),
            "background_anchor": self.module.background_anchor,  # None without empty droplets
            "mapping": None if self._mapping is None else self._mapping.to_dict(),
        }
        if this_process().rank == 0:
            write_model(Path(path), self.module.state_dict(), description, overwrite)
        return Path(path)

    def save_scvi(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder that ``scvi.model.TOTALVI.load(path, data)`` opens.

        Written for scvi-tools 1.4. The data given to it must have what this model was made with: the
        proteins in ``obsm`` of an AnnData, else as a modality of a MuData, whose own ``obs`` then has
        the batches and covariates; texts as categories; and 0 where a protein was not measured.

        Raises
        ------
        FormatError
            When scvi-tools has nothing that corresponds to an option of the model.
        OutputError
            When ``path`` exists and ``overwrite`` is False.
        """
        if not self.is_trained:
            raise NotTrainedError("The model has not been trained; call model.train() first.")
        if self._mapping is not None:
            raise FormatError(
                "The model is of a query mapped on a reference, whose filled-in proteins scvi-tools "
                "does not know; save the reference, or this model with save()."
            )
        assert self.split is not None
        if this_process().rank == 0:
            write_scvi(Path(path), self.module, self.schema, self._options, self.split, overwrite)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, data: Data | None = None) -> Self:
        """Return the model in folder ``path``.

        Parameters
        ----------
        path
            Where `save` wrote it.
        data
            The cells that queries are about when none are given; features are aligned by name.

        Raises
        ------
        FormatError
            When the folder is not a whole model.
        DataError
            When ``data`` lack what the model needs.
        """
        weights, description = read_model(Path(path))
        model = cls.__new__(cls)
        try:
            require_possible_sizes(description, weights)
            model._restore(description)
            require_same_types(model.module.state_dict(), weights)
            model.module.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise FormatError(
                f"{path} does not hold a whole model ({type(error).__name__}: {error}); save the "
                "model again."
            ) from error
        model._data = None if data is None else model._describe(data)
        return model

    def _restore(self, description: dict[str, Any]) -> None:
        """Set everything that `save` wrote but the weights."""
        self._options = description["options"]
        self.seed = description["seed"]
        self.schema = Schema.from_dict(description["schema"])
        mapping = description.get("mapping")  # absent before models could be mapped
        self._mapping = None if mapping is None else QueryMapping.from_dict(mapping)
        self.module = self._network()
        if description.get("background_anchor") is not None:
            self.module.anchor_background(description["background_anchor"])
        self.history = pd.DataFrame(description["history"], dtype=float)
        self.history.index.name = "epoch"
        parts = {name: np.array(cells, np.int64) for name, cells in description["split"].items()}
        self.split = Split(**parts)
        plan = description["plan"]  # None: fitted by another package
        self.plan = None if plan is None else TrainingPlan(**plan)
        self.fit_summary = description["fit_summary"]
        self.fingerprint = description.get("fingerprint")
        self._n_fits = description["n_fits"]
        self.is_trained, self._failure = True, None

    def __repr__(self) -> str:
        schema = self.schema
        state = "trained" if self.is_trained else "not trained"
        return (
            f"totalvi.Model: {len(schema.gene_names)} genes, {len(schema.protein_names)} proteins, "
            f"{len(schema.batch_names)} batches, {self.module.n_latent} latent dimensions; {state}"
        )
