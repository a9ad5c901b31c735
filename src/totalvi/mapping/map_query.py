"""Laying new cells on a fitted model."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from totalvi.data.cells import CiteData
from totalvi.data.describe import Data, opened
from totalvi.data.mapped_query import map_cells, warn_of_alignment
from totalvi.fit.batches import minibatches
from totalvi.fit.split import Split
from totalvi.mapping.closest_batch import start_batches
from totalvi.mapping.surgery import extend
from totalvi.nn.cpu.dispatch import threads_of_torch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.question import Asking, dispersion_by_label

SURGERY_EPOCHS = 20
_CELLS_FOR_SHARE = 256


class MappingQueries(Asking):
    """What a model does with cells that it was not fitted to."""

    history: pd.DataFrame
    split: Split | None
    plan: Any
    fit_summary: dict[str, Any]
    train: Any
    _network: Any

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
        max_epochs: int = SURGERY_EPOCHS,
        **training: Any,
    ) -> Self:
        """Return a model of new cells, which this one, the reference, is not changed by.

        Each batch of the query becomes a new batch of a copy of the model, and starts as a copy of the
        reference batch that explains its cells best. Without ``train`` that is all: nothing is fitted.
        With it, the weights of the new batches are fitted to the query (surgery, as in scArches):
        covariate weights, dispersions by batch, the background prior of the panel, the protein
        efficiency. All other weights, and the statistics of batch normalisation, are the reference's to
        the last bit.

        The model returned answers every question about the query, and
        ``transform_batch=<a batch of the reference>`` decodes its cells as if they came from there,
        which imputes the proteins that they lack. `transfer_labels` and `get_unlikeness` of the
        reference compare both.

        Parameters
        ----------
        data
            MuData or AnnData with raw counts, of RNA and proteins or of RNA alone. Genes are matched
            by name or Ensembl id, proteins as `totalvi.harmonise_antibodies` says. Genes that the query
            lacks count as 0, with a warning; proteins that it lacks are unmeasured; proteins that the
            model does not know are left out, with a warning.
        train
            Whether to fit the weights of the query's batches.
        batch_key
            Column of ``obs`` with the query's batches. None: that of the reference, where the query has
            it; else all cells are one batch, named "query". A batch is a new one even if a reference
            batch has its name.
        reference_batch
            The reference batch to start from, by name; "average": the mean of all; or one of these for
            each batch of the query, as a dict. None: the nearest by evidence.
        antibody_names
            The model's name of antibodies of the query that are not matched as they should be.
        rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
            Where the query's counts are, if not where the reference's were.
        max_epochs
            Of ``train``.
        training
            Further arguments of `Model.train`; without a KL warm-up unless one is given.

        Raises
        ------
        DataError
            When too few genes match; when a protein is partly measured in a batch; or when a covariate
            has a category that the reference does not know, which ``train=True`` learns.
        ValueError
            When an argument has a value not allowed.

        Warns
        -----
        UserWarning
            Of genes that are missing, with the share of the RNA that is expected in them, and of
            proteins that are left out.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=80, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata[:60].copy(), n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> query = model.map_query(mdata[60:].copy())
        >>> query.get_latent_representation().shape
        (20, 4)
        >>> adapted = model.map_query(mdata[60:].copy(), train=True, max_epochs=2)
        """
        if training and not train:
            raise ValueError(
                f"{next(iter(training))} is given, but nothing is trained; give train=True as well."
            )
        self._require_trained()
        changed: dict[str, Any] = {
            "rna_modality": rna_modality,
            "protein_modality": protein_modality,
            "rna_layer": rna_layer,
            "protein_layer": protein_layer,
            "protein_expression_obsm_key": protein_expression_obsm_key,
        }
        columns = replace(
            self.schema.columns,
            **{name: value for name, value in changed.items() if value is not None},
        )
        mapped = map_cells(
            opened(data)[0],
            columns,
            self.schema,
            batch_key=batch_key,
            antibody_names=antibody_names,
            new_categories=train,
            needs_labels=dispersion_by_label(self.module),
        )
        cells, mapping = mapped.cells, mapped.mapping
        query = copy.copy(self)
        query.schema, query._mapping = cells.schema, mapping
        query.module = query._network()
        extend(self.module, query.module, mapping)
        query._data = cells
        started = start_batches(query.module, cells, mapping, reference_batch, self._noise(0))
        query._mapping = replace(mapping, reference_batches=started)
        query._fill_unmeasured(cells, query._mapping)
        share = _expected_share(query.module, cells, ~mapped.aligned.found_genes)
        warn_of_alignment(mapped.aligned, self.schema, share)
        query.history, query.plan = pd.DataFrame(), None
        nobody = np.array([], dtype=np.int64)
        query.split = Split(nobody, nobody, np.arange(cells.n_cells))
        query.fit_summary = {"stopped": "mapped without a fit"}
        if train:
            query.train(max_epochs, **({"n_epochs_kl_warmup": 0} | training))
        return query


def _expected_share(module: TOTALVI, data: CiteData, genes: np.ndarray) -> float:
    """Return the share of RNA that the model expects in ``genes``, over some of the cells."""
    if not genes.any():
        return 0.0
    n_cells = min(data.n_cells, _CELLS_FOR_SHARE)
    some = np.linspace(0, data.n_cells - 1, n_cells).round().astype(int)
    (batch,) = minibatches(data, module, some, _CELLS_FOR_SHARE)
    with torch.no_grad(), threads_of_torch():
        posterior = module.encode(batch.x, batch.y, batch.context)
        decoded = module.decode(module.transform_latent(posterior.qz_m), batch.context)
        return float(module.proportions(decoded).mean(dim=0)[torch.as_tensor(genes)].sum())
