"""Map new cells on a fitted model: start each batch, fill in missing proteins, and fit."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.cells import CiteData, QueryMapping
from totalvi.data.counts import evenly_spaced
from totalvi.data.describe import Data, describe, opened
from totalvi.data.mapped_query import describe_query, map_cells, warn_of_alignment
from totalvi.errors import argument, did_you_mean, setting, warn_of
from totalvi.fit.batches import minibatches
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.model_state import FitResult, ModelState, network_of
from totalvi.fit.plan import Split
from totalvi.mapping.surgery import extend, start_batch
from totalvi.nn.network import Network
from totalvi.posterior.arguments import documented
from totalvi.posterior.evidence import elbo
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.question import Fitted, Question, dispersion_by_label
from totalvi.posterior.unmeasured import fill_query, filled_proteins, with_expected

SURGERY_EPOCHS = 20
AVERAGE = "average"
_CELLS_FOR_SHARE, _CELLS_TO_COMPARE = 256, 500
_COMPARISON_BATCH_SIZE = 512


class _Mappable(Fitted, Protocol):
    """A model with the further methods that `map_query` needs."""

    train: Callable[..., None]
    _state: Callable[[], ModelState]
    _from_state: Callable[[ModelState, CiteData], Any]


_Model = TypeVar("_Model", bound=_Mappable)


@documented
class MappingQueries(_Mappable):
    """The method `map_query` of a model, for cells that it was not fitted to."""

    def _describe(self, data: Data) -> CiteData:
        mapping = self._mapping
        if mapping is None:
            return describe(data, self.schema.columns, self.schema)
        query = describe_query(data, self.schema, mapping, dispersion_by_label(self.module))
        fill_query(self.module, query, mapping)
        return query

    def map_query(
        self,
        data: Data,
        *,
        train: bool = False,
        batch_key: str | None = None,
        reference_batch: str | Mapping[str, str] | None = None,
        antibody_names: Mapping[str, str] | None = None,
        rna_modality: str | None = None,
        protein_modality: str | None = None,
        rna_layer: str | None = None,
        protein_layer: str | None = None,
        protein_expression_obsm_key: str | None = None,
        allow_fractional: bool | None = None,
        max_epochs: int = SURGERY_EPOCHS,
        **training: Any,
    ) -> Self:
        """Return a model of new cells, without changing this model, the reference.

        Each batch of the query becomes a new batch of a copy of the model. It starts as a copy of the
        reference batch that explains its cells best. Without ``train``, nothing is fitted. With
        ``train``, the weights of the new batches are fitted to the query (surgery, as in scArches):
        covariate weights, dispersions by batch, the background prior of the panel, the protein
        efficiency. All other weights, and the statistics of batch normalisation, remain those of the
        reference to the last bit.

        The returned model has all queries. ``transform_batch=<a batch of the reference>`` decodes its
        cells as if they came from this batch, which imputes the proteins that they lack.
        `transfer_labels` and `get_unlikeness` of the reference compare the query with it.

        Parameters
        ----------
        data
            MuData or AnnData with raw counts of RNA and proteins, or of RNA alone. Genes are matched by
            name or Ensembl id, proteins as in `totalvi.harmonise_antibodies`. Genes that the query
            lacks count as 0, with a warning. Proteins that it lacks are unmeasured. Proteins that the
            model lacks are left out, with a warning.
        train
            Whether to fit the weights of the query's batches.
        batch_key
            Column of ``obs`` with the query's batches. None: that of the reference, if the query
            has it; else all cells are one batch, named "query". A batch is new even if a reference
            batch has the same name.
        reference_batch
            The reference batch to start from, by name; "average": the mean of all; or one of these for
            each batch of the query, as a dict. None: the nearest by evidence.
        antibody_names
            The model's names of antibodies of the query whose automatic match is wrong.
        rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
            Places of the query's counts, if they differ from those of the reference.
        max_epochs
            Number of epochs with ``train``.
        allow_fractional
            Whether the query's counts may have fractions. None: if the reference's might.
        training
            Further arguments of `Model.train`; there is no KL warm-up unless one is given.

        Raises
        ------
        DataError
            When too few genes match; when a protein is partly measured in a batch; or when a covariate
            has a category that the reference lacks, which ``train=True`` can learn.
        ValueError
            When an argument has a value that is not allowed.

        Warns
        -----
        UserWarning
            About missing genes, with the share of the RNA that is expected in them, and about proteins
            that are left out.
        DataWarning
            About what the checks find, such as proteins that are zero throughout a batch; if these were
            not measured, say so with `totalvi.declare_unmeasured`.

        {reference_model}
        >>> query = model.map_query(mdata[60:].copy())
        >>> query.get_latent_representation().shape
        (20, 4)
        >>> adapted = model.map_query(mdata[60:].copy(), train=True, max_epochs=2)
        """
        if training and not train:
            raise ValueError(
                f"{next(iter(training))} is given, but nothing is trained; give "
                f"{setting('train', True)} as well."
            )
        self._require_trained()
        changed: dict[str, Any] = {
            "rna_modality": rna_modality,
            "protein_modality": protein_modality,
            "rna_layer": rna_layer,
            "protein_layer": protein_layer,
            "protein_expression_obsm_key": protein_expression_obsm_key,
            "allow_fractional": allow_fractional,
        }
        changed = {name: value for name, value in changed.items() if value is not None}
        mapped = map_cells(
            opened(data)[0],
            replace(self.schema.columns, **changed),
            self.schema,
            batch_key=batch_key,
            antibody_names=antibody_names,
            new_categories=train,
            needs_labels=dispersion_by_label(self.module),
        )
        cells, mapping = mapped.cells, mapped.mapping
        warn_of(cells.findings, stacklevel=3)
        query = _with_cells(self, cells, mapping)
        started = start_batches(query.module, cells, mapping, reference_batch, self._noise(0))
        query._mapping = replace(mapping, reference_batches=started)
        fill_query(query.module, cells, query._mapping)
        share = _expected_share(query.module, cells, ~mapped.aligned.found_genes)
        warn_of_alignment(mapped.aligned, self.schema, share)
        if train:
            query.train(max_epochs, **({"n_epochs_kl_warmup": 0} | training))
        return query


def _with_cells(reference: _Model, cells: CiteData, mapping: QueryMapping) -> _Model:
    """Return a model with a query's cells instead of the reference's, and without a fit."""
    state, schema = reference._state(), cells.schema
    network = network_of(schema, state.options, state.seed)
    extend(reference.module, network, mapping)
    nobody = np.array([], dtype=np.int64)
    split = Split(nobody, nobody, np.arange(cells.n_cells))
    summary = {"stopped": "mapped without a fit"}
    calibration = state.result.calibration
    if calibration is not None:  # none of the query's cells calibrated it
        calibration = calibration._replace(cells=nobody)
    result = FitResult(pd.DataFrame(), split, None, summary, state.result.fingerprint, calibration)
    state = replace(state, schema=schema, network=network, result=result, mapping=mapping)
    query: _Model = reference._from_state(state, cells)
    return query


def _expected_share(module: Network, data: CiteData, genes: np.ndarray) -> float:
    """Return the share of RNA that the model expects in ``genes``, over some of the cells."""
    if not genes.any():
        return 0.0
    some = evenly_spaced(np.arange(data.n_cells), _CELLS_FOR_SHARE)
    (batch,) = minibatches(data, module, some, _CELLS_FOR_SHARE)
    with torch.no_grad():
        posterior = module.encode(batch.x, batch.y, batch.context)
        decoded = module.decode(module.transform_latent(posterior.qz_m), batch.context)
        return float(module.proportions(decoded).mean(dim=0)[torch.as_tensor(genes)].sum())


def start_batches(
    module: Network,
    data: CiteData,
    mapping: QueryMapping,
    reference_batch: str | Mapping[str, str] | None,
    noise: CellNoise,
) -> tuple[str, ...]:
    """Start each query batch with the weights of a reference batch, and return their names.

    Parameters
    ----------
    reference_batch
        A reference batch, "average", or one of these for each batch of the query. None: the batch
        under which the evidence of (up to 500 of) the query batch's cells is highest.

    Raises
    ------
    ValueError
        When a name is not known.
    """
    known = data.schema.batch_names[: mapping.n_reference_batches]
    chosen = []
    for i, (own_name, _) in enumerate(mapping.batches):
        batch = mapping.n_reference_batches + i
        cells = np.flatnonzero(data.batch == batch)
        panels = np.unique(data.panel[cells])
        wanted = _wanted(reference_batch, own_name, mapping, known)
        if wanted is None:
            wanted = _closest(module, data, mapping, batch, cells, known, noise)
        for panel in panels:
            start_batch(module, mapping, batch, int(panel), weights_of(wanted, known))
        chosen.append(wanted)
    return tuple(chosen)


def _wanted(
    wanted: str | Mapping[str, str] | None,
    own_name: str,
    mapping: QueryMapping,
    known: tuple[str, ...],
) -> str | None:
    """Return the reference batch that the user gave for one batch of the query, after a check."""
    if isinstance(wanted, Mapping):
        names = [own for own, _ in mapping.batches]
        for name in wanted:
            if name not in names:
                raise ValueError(
                    f"{argument('reference_batch')} holds the query batch {name!r}; "
                    f"{did_you_mean(str(name), names)}."
                )
        wanted = wanted.get(own_name)
    if wanted is None or wanted == AVERAGE or wanted in known:
        return wanted
    raise ValueError(
        f"{argument('reference_batch')} is {wanted!r}, which is no batch of the reference; "
        f"{did_you_mean(str(wanted), (*known, AVERAGE))}."
    )


def _closest(
    module: Network,
    data: CiteData,
    mapping: QueryMapping,
    batch: int,
    cells: np.ndarray,
    known: tuple[str, ...],
    noise: CellNoise,
) -> str:
    """Return the reference batch under which the evidence of a query batch's cells is highest."""
    if len(known) == 1:
        return known[0]
    some = evenly_spaced(cells, _CELLS_TO_COMPARE)
    question = Question(
        module, data, some, noise, batch_size=_COMPARISON_BATCH_SIZE, progress=False
    )
    evidence = []
    for name in known:
        for panel in np.unique(data.panel[cells]):
            start_batch(module, mapping, batch, int(panel), weights_of(name, known))
        filled = filled_proteins(module, data, mapping, name)

        def elbo_when_filled(minibatch: Minibatch, filled: np.ndarray = filled) -> Tensor:
            y = with_expected(module, minibatch, filled[minibatch.cells])
            return elbo(question, minibatch._replace(y=y))

        evidence.append(float(question.gather("evidence", elbo_when_filled).mean()))
    return known[int(np.argmax(evidence))]


def weights_of(name: str, known: tuple[str, ...]) -> np.ndarray:
    """Return the weight of each reference batch: 1 for the named one, or equal weights."""
    if name not in known:
        return np.full(len(known), 1 / len(known))
    one: np.ndarray = (np.array(known) == name).astype(float)
    return one
