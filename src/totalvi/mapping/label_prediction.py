"""Predict the labels of cells from those that are known, and say which cells are unlike all of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.cells import fingerprint
from totalvi.data.describe import Data
from totalvi.data.known_labels import too_few_labels
from totalvi.errors import DataError, argument
from totalvi.fit.minibatch import Minibatch
from totalvi.mapping.deciding_features import deciding_features
from totalvi.mapping.label_graph import PartlyLabelled, spread_labels
from totalvi.mapping.mapped_cells import ComparisonQueries, mapping_of
from totalvi.mapping.reference_neighbours import calibration_error
from totalvi.posterior.arguments import Cells, cell_positions, documented, label_codes
from totalvi.posterior.expression import normalized_expression
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.unmeasured import answering_for

UNLIKE_ALL = "unlike all"
"""The answer for a cell that is probably of none of the known labels."""
_SAMPLES = 3  # of each cell's state, for its proteins
_HIDDEN = 5  # distinguishes hidden labels from other uses of a model's seed; see `totalvi.model`


class LabelPrediction(NamedTuple):
    """Labels predicted from those that are known.

    Parameters
    ----------
    labels
        The answer for each cell: its most probable label, or "unlike all" where that is more probable
        than not.
    probabilities
        Probability of each label, if the cell has one of them: data frame (cells, labels).
    unlike
        Whether each cell is unlike all labels: data frame of the cells with ``probability``;
        ``p_value``, the share of labelled cells that are as far from other labelled ones; and
        ``unlikeness`` from 0 to 1, by which to rank cells.
    known
        Which cells have a known label, (cells,). They are predicted with their own label hidden, so
        that a label that does not agree with its prediction may be wrong.
    held_out_accuracy, held_out_calibration_error
        Of the known labels: how often the most probable label is right, and how much its probability
        differs from that, on average.
    """

    labels: pd.Series
    probabilities: pd.DataFrame
    unlike: pd.DataFrame
    known: np.ndarray
    held_out_accuracy: float
    held_out_calibration_error: float


class _Known(NamedTuple):
    """Labels of the training cells: the code of each, -1 where it is not known, and the names."""

    code: np.ndarray
    names: list[str]


@documented
class LabelQueries(ComparisonQueries):
    """Queries about labels that are known of some cells."""

    def predict(
        self,
        adata: "Data | LabelQueries | None" = None,
        indices: Cells = None,
        *,
        labels: str | Sequence[Any] | np.ndarray | pd.Series | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> LabelPrediction:
        """Predict the label of each cell from the labels that are known of some training cells.

        The fit does not use labels, so that they may change without another fit. A cell is placed by
        its latent state and its denoised proteins, given their counts and decoded into all batches of
        the training data. A logistic regression on the labelled cells, and random walks
        between neighbours that end at labelled cells, each give the probability of every label; their
        geometric mean, with a temperature from hidden labels, is returned. Walks that come to no
        labelled cell tell cells that are unlike all labels. This says nothing of cells that are
        never labelled though others of their type are, such as the unclear ones. docs/model.md has the
        formulas.

        Parameters
        ----------
        adata
            New data with the model's features, batches and annotation; or what `map_query` of this
            model returned. They are placed together with the training data. None: the training data.
        indices
            Positions of cells, or a mask. None: all.
        labels
            Column of the training data's ``obs``, or a label for each of its cells. Cells without a
            label (NaN or None), or with the model's ``unlabeled_category``, are unlabelled. None: the
            model's ``labels_key``.
        {batch_size}
        seed
            Of the samples, and of which labels are hidden together.
        {progress}

        Returns
        -------
        LabelPrediction
            ``labels``, ``probabilities``, ``unlike`` and the accuracy on known labels.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or there is no column of labels.
        DataError
            When there are fewer than two labels, or fewer than 10 labelled cells.

        {fitted_model}
        >>> mdata.obs["known"] = mdata.obs["cell_type"].astype(object)
        >>> mdata.obs.iloc[20:, mdata.obs.columns.get_loc("known")] = None
        >>> found = model.predict(labels="known")
        >>> found.probabilities.shape[0], int(found.known.sum())
        (60, 20)
        """
        known = self._known_labels(labels)
        own = asked = self._question(None, None, batch_size, progress, seed)
        places, code = _places(self, own, self.schema.batch_names), known.code
        scale = _scale(places, self.module.n_latent)
        model: LabelQueries = self
        if isinstance(adata, LabelQueries):
            mapping_of(self, adata)
            model, adata = adata, None
        if model is not self or adata is not None:
            asked = replace(model._question(adata, None, batch_size, progress), noise=own.noise)
        if asked is not own and fingerprint(asked.data) != fingerprint(own.data):
            places = np.concatenate([places, _places(model, asked, self.schema.batch_names)])
            code = np.concatenate([code, np.full(asked.data.n_cells, -1)])
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_HIDDEN, seed)))
        found = spread_labels(places / scale, code, rng)
        wanted = cell_positions(indices, asked.data.n_cells)
        rows = wanted + len(places) - asked.data.n_cells
        return _prediction(found, code, known.names, rows, asked.data.cell_names[wanted])

    def get_deciding_features(
        self,
        *,
        labels: str | Sequence[Any] | np.ndarray | pd.Series | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return how much the counts of each gene and protein speak for each label.

        For a label it is the mean over its cells of

            log p(count | the label) - log p(count | the other labels)

        by the fitted model, in nats: with 2.3 nats, the counts of this feature alone make the label ten
        times as likely as before. Cells of a label are those that `predict` answers it for; a
        label is described by the states of six of them, and judged on at most 32 others, or where it
        has no others, on these.
        Features that tell the same tell it several times, so that they do not add up.

        Parameters
        ----------
        labels, seed
            As in `predict`.

        Returns
        -------
        A row for each label and feature, the most telling first, with the columns

        - ``label``, ``feature``, and ``modality``: "rna" or "protein";
        - ``nats``: about 0 where a feature tells nothing;
        - ``mean``, ``mean_of_others``: of counts, those of RNA scaled to 10,000 a cell.

        Raises
        ------
        ValueError
            When there is no column of labels.
        DataError
            As in `predict`; or when all cells are predicted to be of one label.

        {fitted_model}
        >>> features = model.get_deciding_features(labels="cell_type")
        >>> list(features)
        ['label', 'feature', 'modality', 'nats', 'mean', 'mean_of_others']
        """
        answers = self.predict(labels=labels, seed=seed, progress=False).labels.cat
        names = [str(name) for name in answers.categories if name != UNLIKE_ALL]
        code = np.where(answers.codes < len(names), answers.codes, -1).astype(np.int64)
        if len(np.unique(code[code >= 0])) < 2:
            raise DataError("All cells are predicted to be of one label; label more of the others.")
        question = self._question(None, None, QUERY_BATCH_SIZE, False)
        return deciding_features(question, code, names)

    def _known_labels(self, labels: Any) -> _Known:
        """Return the labels of the training cells, after checking that something can be learned."""
        if self._mapping is not None:
            raise ValueError(
                "This is a model of mapped cells, which knows no labels; ask the reference: "
                "reference.predict(query)."
            )
        data, columns = self._training_data(), self.schema.columns
        given = columns.labels_key if labels is None else labels
        if given is None:
            raise ValueError(
                f"No labels are known; give {argument('labels_key')} to Model, or {argument('labels')} "
                "to predict."
            )
        code, names = label_codes(data, given)
        if UNLIKE_ALL in names:
            raise ValueError(
                f'A label is "{UNLIKE_ALL}", which is an answer of predict; rename it.'
            )
        known = pd.Series(np.array([*names, None], dtype=object)[code])
        where = f'obs["{given}"]' if isinstance(given, str) else argument("labels")
        too_few = too_few_labels(known, where)
        if too_few is not None:
            raise DataError(too_few)
        return _Known(code, names)


def _places(model: Fitted, question: Question, batches: Sequence[str]) -> np.ndarray:
    """Return the state of each cell and the logs of its denoised proteins, (N, d + T)."""
    codes = tuple(range(len(batches)))
    question = replace(question, n_samples=_SAMPLES, transform_batch=codes, given_counts=True)
    proteins = model._proteins(None)
    question = answering_for(model, question, proteins, "impute")
    no_genes = np.array([], dtype=np.int64)

    def of_batch(batch: Minibatch) -> Tensor:
        _, denoised = normalized_expression(question, batch, no_genes, proteins.positions)
        state = batch.encode(question.network).qz_m.cpu()
        return torch.cat([state, denoised.log1p()], dim=1)

    return question.gather("labels", of_batch).astype(np.float64)


def _scale(places: np.ndarray, n_latent: int) -> np.ndarray:
    """Return what each column is divided by, so that states and proteins spread as much, (d + T,)."""
    parts = (places[:, :n_latent], places[:, n_latent:])
    spread = [np.sqrt(max(part.var(axis=0).sum(), 1e-12)) for part in parts]
    return np.repeat(spread, [part.shape[1] for part in parts])


def _prediction(
    found: PartlyLabelled, code: np.ndarray, names: list[str], cells: np.ndarray, index: pd.Index
) -> LabelPrediction:
    """Return what was found of some cells, by their names, and of all hidden labels."""
    labelled = np.flatnonzero(code >= 0)
    hidden, truth = found.probabilities[labelled], code[labelled]
    probabilities, unlike = found.probabilities[cells], found.unlike[cells]
    answer = np.where(unlike > 0.5, len(names), probabilities.argmax(axis=1))
    given = pd.Categorical.from_codes(
        answer.astype(np.int64), categories=pd.Index([*names, UNLIKE_ALL])
    )
    columns = {
        "probability": unlike,
        "p_value": found.p_value[cells],
        "unlikeness": 1 - found.reach[cells],
    }
    return LabelPrediction(
        labels=pd.Series(given, index=index, name="label"),
        probabilities=pd.DataFrame(probabilities, index=index, columns=names),
        unlike=pd.DataFrame(columns, index=index),
        known=code[cells] >= 0,
        held_out_accuracy=float((hidden.argmax(axis=1) == truth).mean()),
        held_out_calibration_error=calibration_error(hidden, truth),
    )
