"""Model: what people use."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from totalvi.arguments import check_choice, check_network_options, key_tuple
from totalvi.data.background import empirical_background_prior
from totalvi.data.cite import CiteData, Keys, Schema, describe
from totalvi.data.order import some_of_each
from totalvi.errors import FormatError, NotTrainedError, TrainingError
from totalvi.module.totalvi import TOTALVI
from totalvi.persistence.format import read_model, write_model
from totalvi.persistence.scvi_write import write_scvi
from totalvi.queries.abundance import AbundanceQueries
from totalvi.queries.archetypes import ArchetypeQueries
from totalvi.queries.asking import Data
from totalvi.queries.correlation import CorrelationQueries
from totalvi.queries.differential import DifferentialQueries
from totalvi.queries.evidence import EvidenceQueries
from totalvi.queries.expression import ExpressionQueries
from totalvi.queries.latent import LatentQueries
from totalvi.queries.parameters import ParameterQueries
from totalvi.queries.predictive import PredictiveQueries
from totalvi.training.plan import (
    TrainingPlan,
    default_batch_size,
    default_max_epochs,
    default_patience,
)
from totalvi.training.precision import Precision
from totalvi.training.progress import epoch_progress
from totalvi.training.split import Split, check_split, fewer_validate, random_split
from totalvi.training.trainer import fit, torch_generator

_INITIAL_WEIGHTS, _SPLIT, _FIT = range(3)  # what a seed is for; queries have a number of their own
_CELLS_FOR_BACKGROUND = 50_000  # of a panel: more do not move where the prior starts


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
        `totalvi.data.open.open_on_disk`) stay there; those of a path do.
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
        n_layers_decoder: int = 1,
        dropout_rate_encoder: float = 0.2,
        dropout_rate_decoder: float = 0.2,
        gene_likelihood: Literal["nb", "zinb"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        gene_dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch", "protein-label"] = "protein",
        library: Literal["observed", "latent"] = "observed",
        empirical_protein_background_prior: bool = True,
        seed: int = 0,
        **network_options: Any,
    ) -> None:
        keys = Keys(
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
            **network_options,
        }
        self.seed = int(seed)
        self._data: CiteData | None = describe(data, keys, on_disk=on_disk)
        self.schema = self._data.schema
        self.module = self._network()
        if empirical_protein_background_prior and "background_prior" not in network_options:
            measured = np.array(self.schema.panel_measured)
            cells = some_of_each(self._data.panel, _CELLS_FOR_BACKGROUND)
            protein, panel = self._data.protein[cells], self._data.panel[cells]
            prior = empirical_background_prior(protein, panel, measured)
            self.module.set_background_prior(*prior)
        self.history = pd.DataFrame()
        self.split: Split | None = None
        self.plan: TrainingPlan | None = None
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
            n_continuous_covariates=len(schema.keys.continuous_covariate_keys),
            protein_batch_mask=schema.panel_measured,
            generator=torch_generator(self._random(_INITIAL_WEIGHTS)),
            **self._options,
        ).eval()

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
        accelerator: str = TrainingPlan.accelerator,
        precision: Precision = TrainingPlan.precision,
        progress: bool | None = None,
    ) -> None:
        """Fit the model, and keep the weights of the lowest held-out loss.

        A second call goes on from the weights of the first.

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
        accelerator
            As in Lightning Fabric: "auto", "cpu", "cuda", ...
        precision
            "32-true", "bf16-mixed" or "16-mixed" as in Lightning Fabric; "auto": bfloat16 products
            where the processor has them. ``fit_summary`` says which it was.
        progress
            Whether to show a progress bar; None: on a terminal.

        Raises
        ------
        TrainingError
            When the loss or its gradient is no longer finite.
        """
        data = self._training_data()
        if split is None:
            rng = np.random.default_rng(self._random(_SPLIT))
            split = random_split(data.n_cells, train_size, validation_size, rng)
            if validation_size is None:
                split = fewer_validate(split, rng)
        split = check_split(split, data.n_cells)
        n_training_cells = len(split.train)
        if max_epochs is None:
            max_epochs = default_max_epochs(n_training_cells)
        if early_stopping and early_stopping_patience is None:
            early_stopping_patience = default_patience(max_epochs)
        plan = TrainingPlan(
            max_epochs=max_epochs,
            batch_size=default_batch_size(n_training_cells) if batch_size is None else batch_size,
            learning_rate=lr,
            schedule=schedule,
            weight_decay=weight_decay,
            kl_warmup_epochs=n_epochs_kl_warmup,
            gradient_clip_norm=gradient_clip_norm,
            patience=early_stopping_patience if early_stopping else None,
            accelerator=accelerator,
            precision=precision,
        )
        seed = self._random(_FIT, self._n_fits)
        before = {name: value.clone() for name, value in self.module.state_dict().items()}
        try:
            with epoch_progress(plan.max_epochs, progress) as on_epoch:
                result = fit(self.module, data, split, plan, seed, on_epoch)
        except BaseException as error:  # Ctrl-C as well: the model is then what it was before
            self.module.load_state_dict(before)
            self.module.cpu().eval()
            if isinstance(error, TrainingError):
                self._failure, self.is_trained = str(error), False
            raise
        n_earlier_epochs = len(self.history)
        self.split, self.plan, self._failure = split, plan, None
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

    # --------------------------------------------------------------------------------------- files

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model, without the data, to the folder ``path``, whole or not at all.

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
            "split": {name: part.tolist() for name, part in self.split._asdict().items()},
            "history": self.history.to_dict(orient="list"),
        }
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
        assert self.split is not None
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
            model._restore(description)
            model.module.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise FormatError(
                f"{path} does not hold a whole model ({type(error).__name__}: {error}); save the "
                "model again."
            ) from error
        model._data = None if data is None else describe(data, model.schema.keys, model.schema)
        return model

    def _restore(self, description: dict[str, Any]) -> None:
        """Set everything that `save` wrote but the weights."""
        self._options = description["options"]
        self.seed = description["seed"]
        self.schema = Schema.from_dict(description["schema"])
        self.module = self._network()
        self.history = pd.DataFrame(description["history"], dtype=float)
        self.history.index.name = "epoch"
        parts = {name: np.array(cells, np.int64) for name, cells in description["split"].items()}
        self.split = Split(**parts)
        plan = description["plan"]  # None: fitted by another package
        self.plan = None if plan is None else TrainingPlan(**plan)
        self.fit_summary = description["fit_summary"]
        self._n_fits = description["n_fits"]
        self.is_trained, self._failure = True, None

    def __repr__(self) -> str:
        schema = self.schema
        state = "trained" if self.is_trained else "not trained"
        return (
            f"totalvi.Model: {len(schema.gene_names)} genes, {len(schema.protein_names)} proteins, "
            f"{len(schema.batch_names)} batches, {self.module.n_latent} latent dimensions; {state}"
        )
