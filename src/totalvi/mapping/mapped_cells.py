"""Compare mapped cells with the cells of their reference: labels, novelty, imputed proteins."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from totalvi.data.cells import LAYOUT, QueryMapping
from totalvi.data.minified_cells import Grid, Places, Steps, require_calibrating
from totalvi.errors import DataError
from totalvi.mapping.reference_neighbours import (
    Reference,
    as_the_query,
    calibrate,
    calibration_error,
    cells_to_calibrate,
    encode,
    label_probabilities,
    nearest,
    tail_within_depth,
)
from totalvi.mapping.surgery import reference_state
from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import documented, label_codes
from totalvi.posterior.latent import LatentDistribution
from totalvi.posterior.question import Fitted

_HELD_OUT = 4  # distinguishes held-out cells from other uses of a model's seed; see `totalvi.model`


class LabelTransfer(NamedTuple):
    """Labels that a query received from a reference.

    Parameters
    ----------
    labels
        The most probable label of each cell.
    probabilities
        Probability of each label, data frame (cells, labels).
    temperature
        Temperature of the neighbours' weights; the mean if the query has several panels.
    held_out_accuracy, held_out_calibration_error
        Of held-out reference cells, encoded like the query: how often their most probable label is
        correct, and how much its probability differs from that, on average.
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
    cells, latent, depth
        Positions in the query, q(u | cell) and library sizes.
    held_out, held_out_latent, held_out_depth
        The same of the held-out cells, with positions in the reference.
    rest, reference
        The reference cells to compare with: positions, and a search for the nearest.
    """

    cells: np.ndarray
    latent: LatentDistribution
    depth: np.ndarray
    held_out: np.ndarray
    held_out_latent: LatentDistribution
    held_out_depth: np.ndarray
    rest: np.ndarray
    reference: Reference


@documented
class ComparisonQueries(Fitted):
    """Queries of a model about the cells of a query mapped on it."""

    def transfer_labels(
        self,
        query: Fitted,
        labels: str | Sequence[Any] | np.ndarray | pd.Series,
        *,
        n_neighbors: int = 30,
        seed: int = 0,
    ) -> LabelTransfer:
        """Label the cells of a query like the reference cells nearest to them.

        Neighbours in the latent space vote. The weight of a vote is the overlap of their posterior
        and the cell's: the integral of q(u | cell) q(u | neighbour) to the power 1 / temperature. A
        share of the probability goes to each label by its frequency. The temperature and this share
        are those under which the labels of held-out reference cells are most probable, encoded with
        the genes and panel of the query. Probabilities cover only the given labels: for cells of
        other types, see `get_unlikeness`.

        Parameters
        ----------
        query
            A model that `map_query` of this model returned, which itself has its data.
        labels
            Column of the reference's ``obs``, or a label for each reference cell. Cells without a label
            (NaN or None) do not vote.
        n_neighbors
            Number of reference cells that vote.
        seed
            Seed of the choice of held-out cells if fewer than 100 were left out of the fit.

        {value_error}

        {reference_model}
        >>> query = model.map_query(mdata[60:].copy())
        >>> model.transfer_labels(query, "cell_type").probabilities.shape[0]
        20
        """
        reference = self._training_data()
        code, names = label_codes(reference, labels)
        labelled = code >= 0
        result = np.zeros((query._training_data().n_cells, len(names)))
        errors, rights, temperatures = [], [], []
        for compared in self._compared(query, n_neighbors, seed, labelled):
            known, truth = code[compared.rest], code[compared.held_out]
            of_held_out = compared.reference.neighbours(compared.held_out_latent)
            calibration = calibrate(of_held_out, known, truth, len(names))
            expected = label_probabilities(of_held_out, known, len(names), calibration)
            errors.append(calibration_error(expected, truth))
            rights.append(float((expected.argmax(axis=1) == truth).mean()))
            temperatures.append(calibration.temperature)
            nearest = compared.reference.neighbours(compared.latent)
            result[compared.cells] = label_probabilities(nearest, known, len(names), calibration)
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
        self, query: Fitted, *, n_neighbors: int = 15, seed: int = 0
    ) -> pd.DataFrame:
        """Measure how unlike the reference each cell of a query is.

        The method compares a cell's mean distance to its nearest reference cells in the latent
        space with that of held-out reference cells of about the same depth (RNA counts), encoded with
        the genes and panel of the query, and thinned to its depth if they are deeper. Cells from the
        same distribution as the reference have a uniform ``p_value`` from 0 to 1, if 100 or more
        reference cells were held out; with fewer, p-values come out too large, and only the order of
        ``unlikeness`` tells. Cells of a state that the reference lacks have small values, as have
        queries whose batch effect is not corrected. A batch effect is a shift that all cells share;
        ``p_value_after_shift`` is the same after the median shift is taken out.

        Parameters
        ----------
        query
            A model that `map_query` of this model returned, which itself has its data.
        n_neighbors
            Number of reference cells whose distance is averaged.
        seed
            As in `transfer_labels`.

        Returns
        -------
        Data frame of the query's cells with the columns

        - ``distance``: mean distance to the nearest reference cells;
        - ``p_value``: share of held-out reference cells that are at least as far from the other cells;
        - ``p_value_after_shift``: the same, after the shift that all cells share;
        - ``unlikeness``: 1 - ``p_value_after_shift``, by which to rank cells.

        {value_error}

        {reference_model}
        >>> list(model.get_unlikeness(model.map_query(mdata[60:].copy())))
        ['distance', 'p_value', 'p_value_after_shift', 'unlikeness']
        """
        everyone = np.ones(self._training_data().n_cells, dtype=bool)
        data = query._training_data()
        distance, p_value, after = np.empty((3, data.n_cells))
        for compared in self._compared(query, n_neighbors, seed, everyone, as_deep=True):
            cells, mean, reference = compared.cells, compared.latent.mean, compared.reference
            held_out = reference.distance(compared.held_out_latent.mean)
            shift = reference.common_shift(mean, compared.held_out_latent.mean)
            distance[cells] = reference.distance(mean)
            for values, distances in (
                (p_value, distance[cells]),
                (after, reference.distance(mean - shift)),
            ):
                values[cells] = tail_within_depth(
                    distances, compared.depth, held_out, compared.held_out_depth
                )
        columns = {
            "distance": distance,
            "p_value": p_value,
            "p_value_after_shift": after,
            "unlikeness": 1 - after,
        }
        return pd.DataFrame(columns, index=data.cell_names)

    def get_map_coordinates(self, query: Fitted, *, n_neighbors: int = 15) -> pd.DataFrame | None:
        """Place the cells of a query on the map of the reference.

        Parameters
        ----------
        query
            A model that `map_query` of this model returned, which itself has its data.
        n_neighbors
            Number of nearest reference cells, at whose median a cell is.

        Returns
        -------
        Data frame of the query's cells with the columns ``umap_1`` and ``umap_2``; None where the
        reference's data have no ``obsm["X_umap"]``.

        {value_error}

        {reference_model}
        >>> mdata.obsm["X_umap"] = model.get_latent_representation(mdata)[:, :2]
        >>> model.get_map_coordinates(model.map_query(mdata[60:].copy())) is None
        True
        """
        mapping_of(self, query)
        reference, data = self._training_data(), query._training_data()
        layout = reference.annotation.layout()
        if layout is None:
            return None
        k = at_least_one("n_neighbors", n_neighbors)
        nearest_to = reference_posterior(self).mean
        mean = encode(query.module, data, np.arange(data.n_cells)).mean
        places = np.median(Places.of(layout).values()[nearest(mean, nearest_to, k).points], axis=1)
        return pd.DataFrame(places, index=data.cell_names, columns=list(LAYOUT))

    def _compared(
        self,
        query: Fitted,
        n_neighbors: int,
        seed: int,
        usable: np.ndarray,
        *,
        as_deep: bool = False,
    ) -> Iterator[Compared]:
        """Yield the query's cells of each panel with the usable reference cells.

        With ``as_deep``, the held-out cells are thinned to the query's depth if they are deeper.
        """
        mapping, data = mapping_of(self, query), query._training_data()
        k = at_least_one("n_neighbors", n_neighbors)
        positions = np.flatnonzero(usable)
        if len(positions) < 10:
            raise DataError("Fewer than 10 reference cells can be compared with; give more labels.")
        reference = self._training_data()
        held_out, rng = chosen_to_calibrate(self, usable, seed)
        if not reference.has_counts_of(held_out):  # of a minified reference, with another seed
            kept = reference.cells_with_counts()
            held_out = kept[usable[kept]]
            require_calibrating(len(held_out))
        rest = np.setdiff1d(positions, held_out)
        nearest_to = Reference(reference_posterior(self).of(rest), k)
        found = encode(query.module, data, np.arange(data.n_cells))
        for panel, kept, as_query in as_the_query(
            reference.in_memory(held_out),
            data,
            query.module,
            mapping.missing_genes,
            rng if as_deep else None,
        ):
            cells = np.flatnonzero(data.panel == panel)
            yield Compared(
                cells,
                found.of(cells),
                data.library_size[cells],
                held_out[kept],
                encode(query.module, as_query, np.arange(as_query.n_cells)),
                as_query.library_size,
                rest,
                nearest_to,
            )


def mapping_of(model: Fitted, query: Fitted) -> QueryMapping:
    """Return how a query was mapped on this model, after checking its weights."""
    model._require_trained()
    mapping = getattr(query, "_mapping", None)
    if not isinstance(mapping, QueryMapping):
        raise ValueError("query is not a model of new cells; give what map_query returned.")
    its_reference, own = reference_state(query.module, mapping), model.module.state_dict()
    same_weights = all(
        name in own and torch.equal(value.cpu(), own[name].cpu())
        for name, value in its_reference.items()
    )
    names = query.schema.batch_names[: mapping.n_reference_batches]
    if not same_weights or names != model.schema.batch_names:
        raise ValueError(
            "query was mapped on another model, or on this one before it was trained further; map "
            "it on this one."
        )
    return mapping


def reference_posterior(model: Fitted) -> LatentDistribution:
    """Return q(u | cell) of all cells of a reference, to the steps that a minified one keeps."""
    data = model._training_data()
    found = encode(model.module, data, np.arange(data.n_cells))
    if data.posterior is not None:
        return found
    return LatentDistribution(*Steps.of(*found, Grid.that_fits(*found)).values())


def chosen_to_calibrate(
    model: Fitted, usable: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.random.Generator]:
    """Return the usable reference cells on which results are calibrated, and the generator used."""
    rng = np.random.default_rng(np.random.SeedSequence(model.seed, spawn_key=(_HELD_OUT, seed)))
    return cells_to_calibrate(model.split, usable, rng), rng
