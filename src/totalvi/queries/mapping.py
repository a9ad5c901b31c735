"""Laying new cells on a fitted model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch

from totalvi.data.cite import CiteData, Data, Keys, opened
from totalvi.data.finding import did_you_mean
from totalvi.feed import minibatches
from totalvi.mapping.comparison import (
    Neighbours,
    Reference,
    as_the_query,
    encode,
    held_out_cells,
)
from totalvi.mapping.labels import calibrate, calibration_error, label_probabilities
from totalvi.mapping.nearest import start_batches
from totalvi.mapping.query_data import (
    align_query,
    check_query,
    dispersion_by_label,
    extended_schema,
    query_cite_data,
    warn_of_alignment,
)
from totalvi.mapping.surgery import extend
from totalvi.mapping.unlike import distance_to, tail_probability
from totalvi.module.fused.arrays import threads_of_torch
from totalvi.module.options import at_least_one
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.latent import LatentDistribution
from totalvi.queries.asking import Asking
from totalvi.training.split import Split

SURGERY_EPOCHS = 20
_CELLS_FOR_SHARE = 256
_HELD_OUT = 4  # beside what else a model's seed is for: see `totalvi.model`


class LabelTransfer(NamedTuple):
    """Labels that a query got from a reference.

    Parameters
    ----------
    labels
        The most probable label of each cell.
    probabilities
        Of each label, data frame (cells, labels).
    temperature
        Of the neighbours' weights; the mean, where the query has several panels.
    held_out_accuracy, held_out_calibration_error
        Of held-out reference cells, encoded as the query: how often their most probable label is their
        own, and how far its probability is from that, on average.
    """

    labels: pd.Series
    probabilities: pd.DataFrame
    temperature: float
    held_out_accuracy: float
    held_out_calibration_error: float


class Compared(NamedTuple):
    """The query's cells of one panel, and held-out reference cells encoded with that panel.

    Parameters
    ----------
    cells
        Positions in the query.
    nearest, held_out_nearest
        Neighbours of these cells, and of the held-out cells.
    held_out, rest
        Positions in the reference of the held-out cells, and of those compared with.
    """

    cells: np.ndarray
    nearest: Neighbours
    held_out_nearest: Neighbours
    held_out: np.ndarray
    rest: np.ndarray


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
        keys = replace(
            self.schema.keys,
            **{name: value for name, value in changed.items() if value is not None},
        )
        data = opened(data)[0]
        aligned = align_query(data, keys, self.schema, antibody_names)
        keys = _keys_of(aligned.source.obs, keys, batch_key)
        needs_labels = dispersion_by_label(self.module)
        check_query(aligned.source, keys, needs_labels)
        schema, mapping = extended_schema(
            aligned, keys, self.schema, antibody_names, new_categories=train
        )
        query = copy.copy(self)
        query.schema, query._mapping = schema, mapping
        query.module = query._network()
        extend(self.module, query.module, mapping)
        query._data = query_cite_data(data, aligned, schema, mapping, needs_labels)
        started = start_batches(query.module, query._data, mapping, reference_batch, self._noise(0))
        query._mapping = replace(mapping, reference_batches=started)
        query._fill_unmeasured(query._data, query._mapping)
        share = _expected_share(query.module, query._data, ~aligned.found_genes)
        warn_of_alignment(aligned, self.schema, share)
        query.history, query.plan = pd.DataFrame(), None
        nobody = np.array([], dtype=np.int64)
        query.split = Split(nobody, nobody, np.arange(query._data.n_cells))
        query.fit_summary = {"stopped": "mapped without a fit"}
        if train:
            query.train(max_epochs, **({"n_epochs_kl_warmup": 0} | training))
        return query

    def transfer_labels(
        self,
        query: "MappingQueries",
        labels: str | Sequence[Any] | np.ndarray | pd.Series,
        *,
        n_neighbors: int = 30,
        seed: int = 0,
    ) -> LabelTransfer:
        """Give the cells of a query the labels of the reference cells nearest to them.

        Neighbours in the latent space vote by how much their posterior and the cell's overlap: by the
        integral of q(u | cell) q(u | neighbour) to the power 1 / temperature. The temperature, and a
        share that goes to each label by its frequency, are those under which the labels of held-out
        reference cells are most probable, when these are encoded with the genes and panel of the query.
        Probabilities are of the labels given: for cells of none of them, see `get_unlikeness`.

        Parameters
        ----------
        query
            A model that `map_query` of this model returned, which itself has its data.
        labels
            Column of the reference's ``obs``, or a label for each reference cell. Cells without a label
            (NaN or None) have no say.
        n_neighbors
            Reference cells that vote.
        seed
            Of the choice of held-out cells where fewer than 100 were left out of the fit, and of the
            approximate search for neighbours among more than 20,000 reference cells.

        Raises
        ------
        ValueError
            When an argument has a value not allowed.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=80, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata[:60].copy(), n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> query = model.map_query(mdata[60:].copy())
        >>> model.transfer_labels(query, "cell_type").probabilities.shape[0]
        20
        """
        reference = self._training_data()
        code, names = _label_codes(reference, labels)
        labelled = code >= 0
        result = np.zeros((query._training_data().n_cells, len(names)))
        errors, rights, temperatures = [], [], []
        for cells, nearest, alike, held_out, rest in self._compared(
            query, n_neighbors, seed, labelled
        ):
            calibration = calibrate(alike, code[rest], code[held_out], len(names))
            expected = label_probabilities(alike, code[rest], len(names), calibration)
            errors.append(calibration_error(expected, code[held_out]))
            rights.append(float((expected.argmax(axis=1) == code[held_out]).mean()))
            temperatures.append(calibration.temperature)
            result[cells] = label_probabilities(nearest, code[rest], len(names), calibration)
        index = query._training_data().cell_names
        given = pd.Categorical.from_codes(
            result.argmax(axis=1).astype(np.int64), categories=pd.Index(names)
        )
        return LabelTransfer(
            labels=pd.Series(given, index=index, name="label"),
            probabilities=pd.DataFrame(result, index=index, columns=names),
            temperature=float(np.mean(temperatures)),
            held_out_accuracy=float(np.mean(rights)),
            held_out_calibration_error=float(np.mean(errors)),
        )

    def get_unlikeness(
        self, query: "MappingQueries", *, n_neighbors: int = 15, seed: int = 0
    ) -> pd.DataFrame:
        """Return how unlike the reference each cell of a query is.

        A cell's mean distance to its nearest reference cells in the latent space is compared with that
        of held-out reference cells, encoded with the genes and panel of the query. Cells that are drawn
        like the reference have a ``p_value`` spread evenly from 0 to 1; cells of a state that the
        reference lacks have small ones. A query whose batch effect is not corrected is unlike as well.

        Parameters
        ----------
        query, n_neighbors, seed
            As in `transfer_labels`.

        Returns
        -------
        Data frame of the query's cells with the columns

        - ``distance``: mean distance to the nearest reference cells;
        - ``p_value``: share of held-out reference cells that are at least as far from the others;
        - ``unlikeness``: 1 - ``p_value``.

        Raises
        ------
        ValueError
            When an argument has a value not allowed.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=80, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata[:60].copy(), n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> list(model.get_unlikeness(model.map_query(mdata[60:].copy())))
        ['distance', 'p_value', 'unlikeness']
        """
        everyone = np.ones(self._training_data().n_cells, dtype=bool)
        data = query._training_data()
        distance, p_value = np.empty(data.n_cells), np.empty(data.n_cells)
        for cells, nearest, alike, _, _ in self._compared(query, n_neighbors, seed, everyone):
            distance[cells] = distance_to(nearest)
            p_value[cells] = tail_probability(distance[cells], distance_to(alike))
        columns = {"distance": distance, "p_value": p_value, "unlikeness": 1 - p_value}
        return pd.DataFrame(columns, index=data.cell_names)

    def _compared(
        self, query: "MappingQueries", n_neighbors: int, seed: int, usable: np.ndarray
    ) -> Iterator[Compared]:
        """Yield the query's cells panel by panel beside the usable reference cells."""
        self._require_trained()
        if not isinstance(query, MappingQueries) or query._mapping is None:
            raise ValueError("query is not a model of new cells; give what map_query returned.")
        mapping, data = query._mapping, query._training_data()
        if self.schema.batch_names != data.schema.batch_names[: mapping.n_reference_batches]:
            raise ValueError("query was mapped on another model; map it on this one.")
        k = at_least_one("n_neighbors", n_neighbors)
        reference = self._training_data()
        positions = np.flatnonzero(usable)
        if len(positions) < 10:
            raise ValueError(
                "fewer than 10 reference cells can be compared with; give more labels."
            )
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_HELD_OUT, seed)))
        held_out = held_out_cells(self.split, usable, rng)
        rest = np.setdiff1d(positions, held_out)
        nearest_to = Reference(encode(self.module, reference, rest), k, seed)
        found = encode(query.module, data, np.arange(data.n_cells))
        for panel, kept, alike in as_the_query(
            reference.in_memory(held_out), data, query.module, mapping.missing_genes
        ):
            cells = np.flatnonzero(data.panel == panel)
            of_cells = LatentDistribution(found.mean[cells], found.variance[cells])
            yield Compared(
                cells,
                nearest_to.neighbours(of_cells),
                nearest_to.neighbours(encode(query.module, alike, np.arange(alike.n_cells))),
                held_out[kept],
                rest,
            )


def _keys_of(obs: pd.DataFrame, keys: Keys, batch_key: str | None) -> Keys:
    """Return the keys of the query: the reference's where its ``obs`` has them."""
    if batch_key is None and keys.batch_key in obs:
        batch_key = keys.batch_key
    panel_key = keys.panel_key
    if panel_key is not None and panel_key not in obs:
        panel_key = batch_key
    return replace(keys, batch_key=batch_key, panel_key=panel_key)


def _label_codes(reference: CiteData, labels: Any) -> tuple[np.ndarray, list[str]]:
    """Return the code of each reference cell's label, -1 without one, and the labels."""
    if isinstance(labels, str):
        obs = reference.annotation.obs()
        if labels not in obs:
            raise ValueError(
                f"labels is {labels!r}, which is no column of the reference's obs; "
                f"{did_you_mean(labels, obs.columns)}."
            )
        labels = obs[labels]
    given = pd.Series(np.asarray(labels, dtype=object))
    if len(given) != reference.n_cells:
        raise ValueError(
            f"labels has {len(given)} values; allowed are {reference.n_cells}, one a reference cell."
        )
    known = given.notna()
    texts = given[known].astype(str)
    names = sorted(texts.unique())
    code = np.full(len(given), -1)
    code[known.to_numpy()] = pd.Index(names).get_indexer(pd.Index(texts))
    return code, names


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
