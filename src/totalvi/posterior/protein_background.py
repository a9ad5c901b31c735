"""The foreground and background of proteins, cell by cell, and what isotype controls say of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack, overload

import numpy as np
import pandas as pd
from torch import Tensor

from totalvi.data.background.isotype_controls import controls_like
from totalvi.data.counts import evenly_spaced
from totalvi.data.describe import Data
from totalvi.errors import DataError
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import (
    Cells,
    GivenOptions,
    Names,
    StoredGiven,
    WhereUnmeasured,
    documented,
)
from totalvi.posterior.draws import Draw
from totalvi.posterior.expression import protein_means
from totalvi.posterior.question import QUERY_BATCH_SIZE, Features, Fitted, Question
from totalvi.posterior.unmeasured import answering_for


class IsotypeCheck(NamedTuple):
    """What isotype controls say of the background.

    Attributes
    ----------
    controls
        A row for each control: ``mean_count``; ``correlation``, over cells, of its log(1 + count) with
        the cell's log background, averaged over proteins; ``n_cells``.
    proteins
        A row for each protein: ``background_mean`` over cells; ``control_mean``, of the highest control
        in the same cells, among those of the protein's species and class where names say them;
        ``log2_over_controls``; ``correlation`` with the cell's mean log(1 + count) of the controls; and
        ``warning``: what does not agree, or "".
    """

    controls: pd.DataFrame
    proteins: pd.DataFrame


MOST_FOLD = 10.0
_LEAST_COUNT = 0.05


def isotype_check(
    background: pd.DataFrame, controls: pd.DataFrame, group: np.ndarray
) -> IsotypeCheck:
    """Compare the background means of proteins with the counts of isotype controls.

    What clings to a cell, or floats around it, has antibodies of all kinds: where a cell has more
    counts of the controls, its background should be higher. Correlations are within groups of cells,
    since levels differ between batches. The level of a protein's background depends on how much of
    its antibody was used, so only a large excess over the controls is remarkable: tenfold, which a
    signal that most cells have may be. Antibodies of one species and class stick to the same receptors
    of cells, so a protein whose name says them is compared with the controls that are like it.

    Parameters
    ----------
    background
        Background means, cells x proteins, NaN where unmeasured.
    controls
        Counts, cells x controls, NaN where unmeasured.
    group
        Code of each cell's batch and panel.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> level = np.exp(rng.normal(size=(500, 1)))
    >>> background = pd.DataFrame(level * [[3.0, 200.0]], columns=["CD3", "CD45"])
    >>> controls = pd.DataFrame(rng.poisson(4 * level), columns=["IgG1"])
    >>> check = isotype_check(background, controls, np.zeros(500, dtype=int))
    >>> check.proteins["warning"].to_dict()
    {'CD3': '', 'CD45': 'background 51 times the isotype controls'}
    >>> bool(check.controls.loc["IgG1", "correlation"] > 0.8)
    True
    """
    log_background = np.log(background.to_numpy(np.float64))
    log_controls = np.log1p(controls.to_numpy(np.float64))
    centred = _centred(log_background, group)
    centred_controls = _centred(log_controls, group)
    of_cell, controls_of_cell = _row_mean(centred), _row_mean(centred_controls)
    by_control = pd.DataFrame(
        {
            "mean_count": controls.mean(),
            "correlation": [_correlation(column, of_cell) for column in centred_controls.T],
            "n_cells": controls.notna().sum(),
        }
    ).rename_axis("control")
    rows = {}
    for name, logs, column in zip(background, log_background.T, centred.T, strict=True):
        measured = np.isfinite(logs)
        level = float(np.exp(logs[measured]).mean()) if measured.any() else np.nan
        like = controls_like(str(name), list(map(str, controls)))
        highest = float(controls.loc[measured, like].mean().max())
        fold = level / max(highest, _LEAST_COUNT)
        rows[name] = {
            "background_mean": level,
            "control_mean": highest,
            "log2_over_controls": np.log2(fold),
            "correlation": _correlation(column, controls_of_cell),
            "warning": f"background {fold:.0f} times the isotype controls"
            if fold > MOST_FOLD
            else "",
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("protein")
    return IsotypeCheck(by_control, table)


def _centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the values less the mean of their column within the group."""
    centred = values.copy()
    for code in np.unique(group):
        centred[group == code] -= _row_mean(values[group == code].T)
    return centred


def _row_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row, NaN left out; NaN where there is nothing else."""
    known = np.isfinite(values)
    n = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    mean: np.ndarray = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
    return mean


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation where both are known; NaN where one is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return np.nan
    return float(np.corrcoef(a[both], b[both])[0, 1])


_MOST_CELLS = 20_000


class _MeanOptions(GivenOptions, total=False):
    return_mean: bool
    return_numpy: bool


@documented
class ProteinBackgroundQueries(Fitted):
    """What a model says of the background of proteins.

    Which counts are foreground, how high the background is, and whether isotype controls agree with it.
    """

    @overload
    def get_protein_foreground_probability(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[StoredGiven]
    ) -> Path: ...

    @overload
    def get_protein_foreground_probability(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_MeanOptions]
    ) -> pd.DataFrame | np.ndarray: ...

    def get_protein_foreground_probability(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        given_counts: bool = True,
        unmeasured: WhereUnmeasured = "nan",
        return_mean: bool = True,
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame | np.ndarray | Path:
        """Return the probability that each protein count is foreground.

        It uses the count y itself: P(foreground | z, y), with the background integrated out, averaged
        over q(z | cell). Given z alone it is E[1 - pi], what the cell's state says before its count of
        the protein is looked at. When a cell is decoded into another batch, pi is that of the other
        batch, and what the count says is taken from the cell's own.

        Parameters
        ----------
        {cells} {transform_batch} {protein_list} {n_samples} {given_counts} {unmeasured}
        {sample_means} {return_numpy} {protein_out} {batch_size} {seed} {progress}

        Returns
        -------
        (cells, proteins), between 0 and 1, or NaN; with ``out``, its path.

        {name_error} {output_error}

        {fitted_model}
        >>> foreground = model.get_protein_foreground_probability(n_samples=5)
        >>> foreground.shape, bool(foreground.min(axis=None) > 0)
        ((60, 5), True)
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch, given_counts
        )
        proteins = self._proteins(protein_list)
        question = answering_for(self, question, proteins, unmeasured, warn=True)
        return _protein_answer(
            question, "foreground probability", Draw.foreground_probability, proteins,
            return_mean, return_numpy, out,
        )  # fmt: skip

    @overload
    def get_protein_background_mean(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[StoredGiven]
    ) -> Path: ...

    @overload
    def get_protein_background_mean(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_MeanOptions]
    ) -> pd.DataFrame | np.ndarray: ...

    def get_protein_background_mean(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        given_counts: bool = True,
        unmeasured: WhereUnmeasured = "nan",
        return_mean: bool = True,
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame | np.ndarray | Path:
        """Return the mean count of each protein's background, E[beta], given the protein's count.

        The expectation is over q(z | cell), and over b given z and the count. Like
        `get_normalized_expression` it is free of the batch's protein efficiency, where the model has
        one. In another batch it differs from the decoded mean by the same factor as in its own.

        Parameters
        ----------
        {cells} {transform_batch} {protein_list} {n_samples} {given_counts} {unmeasured}
        {sample_means} {return_numpy} {protein_out} {batch_size} {seed} {progress}

        Returns
        -------
        (cells, proteins), above 0, or NaN; with ``out``, its path.

        {name_error} {output_error}

        {fitted_model}
        >>> model.get_protein_background_mean(protein_list=["protein_0"]).shape
        (60, 1)
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch, given_counts
        )
        proteins = self._proteins(protein_list)
        question = answering_for(self, question, proteins, unmeasured, warn=True)
        return _protein_answer(
            question, "protein background", Draw.background_mean, proteins, return_mean,
            return_numpy, out,
        )  # fmt: skip

    def check_isotype_controls(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        n_samples: int = 5,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> IsotypeCheck:
        """Compare the estimated background with the isotype controls, which the model never saw.

        Of more than 20,000 cells, 20,000 evenly spaced ones are used.

        Parameters
        ----------
        adata
            New data with the model's features, batches and annotation, and with the controls, among the
            proteins or in a modality "isotype". None: the training data.
        indices
            Positions of cells, or a mask. None: all.
        {n_samples} {batch_size} {seed} {progress}

        Returns
        -------
        IsotypeCheck
            ``controls``, a row for each control: its mean count and its correlation with the cells'
            background; ``proteins``, a row for each protein: its background against the controls, and a
            warning where it is more than tenfold above.

        Raises
        ------
        DataError
            When the model has no isotype controls, or none of them are in the data.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=10, seed=1)
        >>> mdata["prot"].var_names[-1]
        'isotype_0'
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> check = model.check_isotype_controls()
        >>> check.controls.index.tolist(), len(check.proteins)
        (['isotype_0'], 9)
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, given_counts=True
        )
        data, schema = question.data, self.schema
        if not schema.control_names:
            raise DataError("The model has no isotype controls: its panel names and marks none.")
        if data.controls.shape[1] == 0:
            raise DataError(
                f'The data lack the isotype controls, such as "{schema.control_names[0]}"; '
                "give data with them."
            )
        cells = evenly_spaced(question.cells, _MOST_CELLS, rounding="down")
        proteins = self._proteins(None)
        question = answering_for(self, question.about(cells), proteins)
        background = question.gather(
            "protein background",
            lambda batch: protein_means(question, batch, Draw.background_mean, proteins.positions),
        )
        panel, batch = data.panel[cells], data.batch[cells]
        return isotype_check(
            pd.DataFrame(background, columns=list(schema.protein_names)),
            data.controls.iloc[cells].reset_index(drop=True),
            panel * len(schema.batch_names) + batch,
        )


def _protein_answer(
    question: Question,
    what: str,
    quantity: Callable[[Draw], Tensor],
    proteins: Features,
    return_mean: bool,
    return_numpy: bool,
    out: str | Path | None,
) -> pd.DataFrame | np.ndarray | Path:
    """Return a quantity of each protein as a data frame, an array or a store."""
    table = question.table(proteins.names)

    def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
        means = protein_means(
            question, batch, quantity, proteins.positions, return_mean=return_mean
        )
        return {"protein": means.numpy()}

    found = question.rows(what, {"protein": table}, rows, out=out, each_sample=not return_mean)
    if isinstance(found, Path):
        return found
    values = found["protein"]
    return values if return_numpy or not return_mean else table.frame(values)
