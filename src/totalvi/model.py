"""`Model`, the class that users work with: it describes data, trains, saves and loads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from totalvi.data.background.prior import Raw, ambient_of
from totalvi.data.cells import CiteData, QueryMapping
from totalvi.data.columns import Columns
from totalvi.data.describe import Data, describe, opened
from totalvi.data.minified_cells import is_minified
from totalvi.errors import Finding, FormatError, NotTrainedError, allowed, counted, warn_of
from totalvi.fit.model_state import ModelState, network_of, warn_of_another_order
from totalvi.fit.plan import Split
from totalvi.formats.minified import read_minified, require_replaceable, write_minified
from totalvi.formats.model_folder import read_state, write_state
from totalvi.formats.scvi_write import write_scvi
from totalvi.mapping.label_prediction import LabelQueries
from totalvi.mapping.map_query import MappingQueries
from totalvi.mapping.query_imputation import QueryImputation
from totalvi.mapping.reference_card import minify
from totalvi.posterior.abundance import AbundanceQueries
from totalvi.posterior.aggregated_posterior import AggregatedPosteriorQueries
from totalvi.posterior.antibody_separation import SeparationQueries
from totalvi.posterior.arguments import (
    check_choice,
    check_network_options,
    check_partial_labels,
    key_tuple,
)
from totalvi.posterior.correlation import CorrelationQueries
from totalvi.posterior.differential.differential_query import DifferentialQueries
from totalvi.posterior.doublets import DoubletQueries
from totalvi.posterior.evidence import EvidenceQueries
from totalvi.posterior.expression import ExpressionQueries
from totalvi.posterior.gates.gate_cells import GateQueries
from totalvi.posterior.latent import LatentQueries
from totalvi.posterior.modality_information import ModalityQueries
from totalvi.posterior.predictive import PredictiveQueries
from totalvi.posterior.predictive_checks import CheckQueries
from totalvi.posterior.protein_background import ProteinBackgroundQueries
from totalvi.posterior.rna_imputation import RnaQueries
from totalvi.posterior.staining_levels import StainingQueries
from totalvi.processes import this_process
from totalvi.scvi_names import answering
from totalvi.training import History, KnowsScviProtocol, Training


class Model(
    Training,
    LatentQueries,
    ExpressionQueries,
    DifferentialQueries,
    PredictiveQueries,
    CheckQueries,
    CorrelationQueries,
    EvidenceQueries,
    AbundanceQueries,
    AggregatedPosteriorQueries,
    ProteinBackgroundQueries,
    SeparationQueries,
    RnaQueries,
    GateQueries,
    DoubletQueries,
    ModalityQueries,
    StainingQueries,
    MappingQueries,
    QueryImputation,
    LabelQueries,
    metaclass=KnowsScviProtocol,
):
    """A totalVI model of CITE-seq data: built from counts, trained, and queried.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts of paired RNA and proteins, which is never changed. Or the
        path of one, ``.h5ad``, ``.h5mu`` or ``.zarr``, whose counts stay on disk and are read as
        they are needed. The stores that `totalvi convert` writes are fastest.
    batch_key, panel_key, labels_key
        Columns of ``obs`` with each cell's batch, antibody panel (None: each batch is one), label.
    unlabeled_category
        The label of cells whose label is not known; those without a value are unlabelled too. The fit
        then uses no labels, and `predict` tells the others. None: all labels are known.
    size_factor_key
        Column with size factors. None: the library size is the cell's total RNA count.
    categorical_covariate_keys, continuous_covariate_keys
        Columns with further covariates to correct for; continuous ones are standardised.
    rna_modality, protein_modality
        Names of the modalities of a MuData.
    rna_layer, protein_layer
        Layers with the counts. None: ``X``; "raw": the ``raw`` of the RNA.
    protein_expression_obsm_key
        Entry of ``obsm`` in which an AnnData has the proteins.
    protein_names_uns_key
        Entry of ``uns`` with their names, if that of ``obsm`` is an array. None: ``<key>_names``, ...
    allow_fractional
        Whether counts may have fractions (corrected counts, for instance).
    on_disk
        Whether counts that are on disk (of a backed AnnData) stay there; those of a path always do.
    n_latent, n_hidden, n_layers_encoder, n_layers_decoder
        Sizes of the network; see `TOTALVI`.
    dropout_rate_encoder, dropout_rate_decoder
        Share of hidden nodes set to zero while training.
    gene_likelihood
        "nb" or "zinb".
    latent_distribution
        "normal" or "ln" (logistic normal; its corners are archetypes).
    gene_dispersion, protein_dispersion
        See `TOTALVI`.
    library
        "observed" or "latent"; not used with ``size_factor_key``.
    empirical_protein_background_prior
        Whether each protein's prior of the background, which is learned, starts at its lower mode.
    staining_level
        Whether each cell has a latent level of all its protein counts; see `get_staining_level`.
    isotype_controls
        Antibodies that are excluded from the model and serve to check its background. None: those
        marked in ``var["control"]``, or named like isotype controls. An empty list: none.
    empty_droplets
        The raw matrix of all barcodes, one for each batch (``{batch: raw}``), or the result of
        `totalvi.ambient_profile`. The prior of the background then starts at the profile of the empty
        droplets and is anchored there; see docs/background.md. None: ``uns["ambient"]`` of the data,
        if ``totalvi.read(raw=...)`` stored it. False: no empty droplets.
    seed
        Seed of all random numbers. The same seed gives the same numbers on the same machine.
    network_options
        Further keyword arguments of `TOTALVI`.

    Attributes
    ----------
    module
        The `TOTALVI` network.
    schema
        Names and categories that the model knows.
    history
        Losses in nats per cell, one row for each epoch, of all fits in order.
    split
        The cells of the last fit: ``train``, ``validation`` and ``test`` positions.
    findings
        What the checks of the data say; `totalvi.check` says it of data without a model.
    fingerprint
        Fingerprint of the data of the last fit: names, and hashes of the counts.
    is_trained
        Whether the model is ready for queries.

    Raises
    ------
    DataError
        When the counts or their annotation cannot be used; the message says what to do.
    ValueError
        When an argument has a value that is not allowed.

    Warns
    -----
    DataWarning
        Of what the checks of the data find: proteins that are zero throughout a batch, for instance.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, n_batches=2, seed=1)
    >>> model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
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
        unlabeled_category: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        rna_modality: str = "rna",
        protein_modality: str = "prot",
        rna_layer: str | None = None,
        protein_layer: str | None = None,
        protein_expression_obsm_key: str | None = None,
        protein_names_uns_key: str | None = None,
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
        staining_level: bool = False,
        isotype_controls: Sequence[str] | None = None,
        empty_droplets: Raw | Mapping[str, Raw] | pd.DataFrame | Literal[False] | None = None,
        seed: int = 0,
        **network_options: Any,
    ) -> None:
        keys = Columns(
            batch_key=batch_key,
            panel_key=panel_key,
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
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
            protein_names_uns_key=protein_names_uns_key,
            allow_fractional=allow_fractional,
            isotype_controls=None
            if isotype_controls is None
            else key_tuple("isotype_controls", isotype_controls),
        )
        check_network_options(network_options)
        check_partial_labels(keys, gene_dispersion, protein_dispersion)
        if not (isinstance(seed, int | np.integer) and seed >= 0):
            raise ValueError(allowed("seed", seed, "whole numbers from 0"))
        # The network has these two under other names, which its own check would give.
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
            "foreground_penalty": 0.05,
            "hidden_protein_rate": 0.8,
            **({} if staining_level is False else {"staining_level": staining_level}),
            **network_options,
        }
        self.seed = int(seed)
        data, on_disk = opened(data, on_disk=on_disk)
        self._data: CiteData | None = describe(data, keys, on_disk=on_disk)
        warn_of(self._data.findings, stacklevel=3)
        self.schema = self._data.schema
        if not self.schema.measured_rna.all():  # the batch would tell what its cells lack
            self._options = {"encoder_batch": False} | self._options
        self.module = network_of(self.schema, self._options, self.seed)
        ambient = ambient_of(data, keys, empty_droplets)
        if ambient is not None or (
            empirical_protein_background_prior and "background_prior" not in network_options
        ):
            self._start_background(self._data, ambient)
        self._result = self._failure = None
        self._n_fits, self.is_trained = 0, False
        self._mapping: QueryMapping | None = None

    @property
    def history(self) -> pd.DataFrame:
        """Losses in nats per cell, one row for each epoch, of all fits in order."""
        return History() if self._result is None else History(self._result.history)

    @property
    def split(self) -> Split | None:
        """Positions of the cells that trained, validated, and were held out for tests."""
        return None if self._result is None else self._result.split

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the checks of the data say, and what of the data is used and what is set apart."""
        return () if self._data is None else self._data.findings

    def save(self, path: str | Path, *, overwrite: bool = False, minified: bool = False) -> Path:
        """Write the model, without the data, to the folder ``path``, completely or not at all.

        With several processes, the first writes and the others return at once.

        Parameters
        ----------
        path, overwrite
            Where, and whether to replace a model that is there.
        minified
            Whether to write a reference in one file, with the posteriors and labels of its cells, the
            counts of those that calibrate answers about queries, and a card of its measured accuracy.
            `map_query`, `transfer_labels`, `get_unlikeness` and all queries that do not need counts
            then answer without the data.

        Raises
        ------
        OutputError
            When ``path`` exists and ``overwrite`` is False.
        DataError
            With ``minified``, when the model has no data, or was mapped on another.
        """
        state = self._state()
        if this_process().rank == 0 and minified:
            require_replaceable(Path(path), overwrite)
            write_minified(Path(path), state, self._training_data(), minify(self), overwrite)
        elif this_process().rank == 0:
            write_state(Path(path), state, overwrite)
        return Path(path)

    def save_scvi(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder that ``TOTALVI.load(path, data)`` of scvi-tools opens.

        The format is that of scvi-tools 1.4. The data given to scvi-tools must have the same layout
        as the data of this model: proteins in ``obsm`` of an AnnData, or as a modality of a MuData
        whose own ``obs`` has the batches and covariates. Texts must be categories, and unmeasured
        proteins 0.

        Raises
        ------
        FormatError
            When an option of the model has no equivalent in scvi-tools.
        OutputError
            When ``path`` exists and ``overwrite`` is False.
        """
        state = self._state()
        if self._mapping is not None:
            raise FormatError(
                "The model is of a query mapped on a reference, whose filled-in proteins scvi-tools "
                "does not know; save the reference, or this model with save()."
            )
        if this_process().rank == 0:
            write_scvi(Path(path), state, overwrite)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, data: Data | None = None) -> Self:
        """Return the model in folder ``path``, or in the file of a minified reference.

        Parameters
        ----------
        path
            What `save` wrote.
        data
            Cells that queries use by default; features are aligned by name. None: of a minified
            reference its own cells, without most counts.

        Raises
        ------
        FormatError
            When the folder is not a complete model.
        DataError
            When ``data`` lack features or columns that the model needs.
        """
        path = Path(path)
        model = cls._from_state(*(read_minified(path) if is_minified(path) else [read_state(path)]))
        if data is not None:
            model._data = model._describe(data)
            if model._mapping is None:
                warn_of_another_order(model.fingerprint, model._data)
        return model

    @classmethod
    def _from_state(cls, state: ModelState, data: CiteData | None = None) -> Self:
        """Return the model with this state; ``data`` must be in the order of its schema."""
        model = cls.__new__(cls)
        model.schema, model.module, model.seed = state.schema, state.network, state.seed
        model._options, model._result = state.options, state.result
        model._n_fits, model.is_trained = state.n_fits, state.is_trained
        model._mapping, model._data, model._failure = state.mapping, data, None
        return model

    def _state(self) -> ModelState:
        """Return the state of the trained model, without its data."""
        if not self.is_trained or self._result is None:
            raise NotTrainedError("The model has not been trained; call model.train() first.")
        return ModelState(
            self.schema, self._options, self.seed, self.module, self._result, self._n_fits,
            mapping=self._mapping,
        )  # fmt: skip

    def __repr__(self) -> str:
        s, state = self.schema, "trained" if self.is_trained else "not trained"
        lists = {"gene": s.gene_names, "protein": s.protein_names, "batch": s.batch_names}
        sizes = ", ".join(counted(len(names), noun) for noun, names in lists.items())
        return f"totalvi.Model: {sizes}, {self.module.n_latent} latent dimensions; {state}"


__getattr__ = answering("module 'totalvi.model'")
