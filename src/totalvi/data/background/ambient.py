"""Ambient distributions: the counts of each protein in empty droplets, by batch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.background.droplets import (
    ANY_BATCH,
    Barcodes,
    choose_empty_droplets,
    find_barcodes,
)
from totalvi.data.columns import Columns
from totalvi.errors import DataError, Finding, listed

AMBIENT = "ambient"  # entry of uns that holds a table
_NUMBERS = ["log_mean", "log_sd", "standard_error", "n_droplets"]
_COLUMNS = ["batch", "protein", *_NUMBERS]
_LEAST_DROPLETS = 20
_LOG_SCALE_RANGE = (0.1, 1.5)


class AmbientRates(NamedTuple):
    """The ambient distribution of each protein in empty droplets, (T,).

    Attributes
    ----------
    log_mean
        Log of the mean count.
    log_sd
        Standard deviation of the log of the Poisson rate of the counts.
    standard_error
        Standard error of ``log_mean``, from the number of droplets.
    """

    log_mean: np.ndarray
    log_sd: np.ndarray
    standard_error: np.ndarray


def estimate_ambient(protein: np.ndarray) -> AmbientRates:
    """Estimate the ambient distribution of each protein from counts in empty droplets, (N, T).

    A count is Poisson with a log-normal rate. Its mean is m and its variance
    ``m + m^2 (exp(sd^2) - 1)``. Half a count is added to each protein's sum, so that a protein
    without counts has a finite, uncertain level.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rate = np.exp(rng.normal(np.log([1.0, 8.0, 60.0]), 0.4, (4000, 3)))
    >>> ambient = estimate_ambient(rng.poisson(rate))
    >>> (ambient.log_mean - np.log([1.0, 8.0, 60.0]) - 0.08).round(1) + 0, ambient.log_sd.round(1)
    (array([0., 0., 0.]), array([0.4, 0.4, 0.4]))
    """
    n_droplets = len(protein)
    mean = (protein.sum(axis=0, dtype=np.float64) + 0.5) / n_droplets
    excess = (protein.var(axis=0, dtype=np.float64) - mean) / mean**2
    return rates_of_moments(mean, excess, n_droplets)


def pooled_ambient(
    log_mean: np.ndarray, log_sd: np.ndarray, n_droplets: np.ndarray
) -> AmbientRates:
    """Pool the droplets of several estimates into one distribution.

    Parameters
    ----------
    log_mean, log_sd, n_droplets
        Values of each estimate, (estimates, T); NaN if it lacks a protein.
    """
    mean = np.exp(log_mean)
    total = np.nansum(n_droplets, axis=0)
    pooled = np.nansum(n_droplets * mean, axis=0) / total
    square = np.nansum(n_droplets * mean**2 * np.exp(log_sd**2), axis=0) / total
    return rates_of_moments(pooled, square / pooled**2 - 1, total)


def rates_of_moments(
    mean: np.ndarray, excess: np.ndarray, n_droplets: float | np.ndarray
) -> AmbientRates:
    """Return the distribution with this mean and this squared coefficient of variation of the rate."""
    excess = np.clip(excess, *np.expm1(np.square(_LOG_SCALE_RANGE)))
    return AmbientRates(
        log_mean=np.log(mean),
        log_sd=np.sqrt(np.log1p(excess)),
        standard_error=np.sqrt((1 / mean + excess) / n_droplets),
    )


@dataclass(frozen=True, eq=False)
class AmbientProfile:
    """The ambient distribution of proteins in the empty droplets of batches.

    Each of R entries is one protein in one batch; each pair of protein and batch occurs once.

    Attributes
    ----------
    batch, protein
        Names, (R,); the batch is `ANY_BATCH` if droplets stand for all batches.
    log_mean, log_sd, standard_error
        As in `AmbientRates`, (R,).
    n_droplets
        Number of droplets of the estimate, (R,).
    """

    batch: np.ndarray
    protein: np.ndarray
    log_mean: np.ndarray
    log_sd: np.ndarray
    standard_error: np.ndarray
    n_droplets: np.ndarray

    @classmethod
    def from_table(cls, given: Any, where: str) -> Self:
        """Return the profile in a table of `totalvi.ambient_profile`.

        Parameters
        ----------
        given
            The table.
        where
            Its name, for messages.

        Raises
        ------
        DataError
            When it is not such a table, or a batch and protein have no or several rows, or numbers
            that are not finite.
        """
        fault = _fault(given)
        if fault is not None:
            raise DataError(
                f"{where} is not a table of totalvi.ambient_profile ({fault}); remove it, or give "
                "empty_droplets=False."
            )
        names = (given[column].astype(str).to_numpy(object) for column in ("batch", "protein"))
        numbers = (pd.to_numeric(given[column]).to_numpy() for column in _NUMBERS)
        return cls(*names, *numbers)

    @classmethod
    def in_uns(cls, uns: Mapping[str, Any]) -> Self | None:
        """Return the profile of `totalvi.read` or `totalvi.concat`; None if there is none of theirs.

        Raises
        ------
        DataError
            When a table has the columns of a profile but cannot be used.
        """
        found = uns.get(AMBIENT)
        if not isinstance(found, pd.DataFrame) or not set(_COLUMNS) <= set(found):
            return None
        return cls.from_table(found, f'uns["{AMBIENT}"]')

    @classmethod
    def of_rates(
        cls, rates: AmbientRates, protein: np.ndarray, n_droplets: np.ndarray, batch: str
    ) -> Self:
        """Return the profile of one batch."""
        return cls(np.full(len(protein), batch, dtype=object), protein, *rates, n_droplets)

    @classmethod
    def join(cls, profiles: Iterable[Self]) -> Self:
        """Join profiles of different batches."""
        parts = list(profiles)
        return cls(
            *(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls))
        )

    def to_table(self) -> pd.DataFrame:
        """Return a table with a row for each batch and protein, as it is stored in ``uns``."""
        return pd.DataFrame({column: getattr(self, column) for column in _COLUMNS})

    def of_batch(self, batch: str) -> Self:
        """Return the same profile with this name of the batch."""
        return replace(self, batch=np.full(len(self.protein), batch, dtype=object))

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return the proteins in ``names``, renamed by it."""
        known = self._rows(np.array([protein in names for protein in self.protein], dtype=bool))
        return replace(known, protein=np.array([names[p] for p in known.protein], dtype=object))

    def of_batches(self, batches: Sequence[str], prefix: str) -> Self:
        """Return the profile of each batch of a data set after joining.

        A batch with the same name after ``prefix`` keeps its entries. All other entries, of lanes that
        were joined or of all batches, are pooled, and stand for each batch without entries.
        """
        named = prefix + self.batch
        others = self._rows(~np.isin(named, batches))
        parts = []
        for batch in batches:
            own = self._rows(named == batch)
            rows = own if len(own.batch) else others
            if len(rows.batch):
                parts.append(rows._pooled().of_batch(batch))
        return self.join(parts)

    def at(self, batch: str, proteins: Sequence[str]) -> AmbientRates:
        """Return the values of proteins in a batch, (T,); NaN for proteins without droplets."""
        own = self._rows(self.batch == batch)
        position = pd.Index(own.protein).get_indexer(pd.Index(proteins))
        found = (own.log_mean, own.log_sd, own.standard_error)
        return AmbientRates(*(np.append(values, np.nan)[position] for values in found))

    def _rows(self, chosen: np.ndarray) -> Self:
        return type(self)(*(getattr(self, each.name)[chosen] for each in fields(self)))

    def _pooled(self) -> Self:
        """Return one entry for each protein, as if estimated from all of its droplets together."""
        if not pd.Index(self.protein).has_duplicates:
            return self
        table = self.to_table()
        pivoted = [
            table.pivot(index="batch", columns="protein", values=column)[pd.unique(self.protein)]
            for column in ("log_mean", "log_sd", "n_droplets")
        ]
        log_mean, log_sd, n_droplets = (each.to_numpy(float) for each in pivoted)
        rates = pooled_ambient(log_mean, log_sd, n_droplets)
        total = np.nansum(n_droplets, axis=0).astype(np.int64)
        return self.of_rates(rates, pivoted[0].columns.to_numpy(object), total, ANY_BATCH)


def _fault(given: Any) -> str | None:
    if not isinstance(given, pd.DataFrame):
        return f"but a {type(given).__name__}"
    missing = [column for column in _COLUMNS if column not in given]
    if missing:
        return f"without {listed(missing)}"
    if given.empty:
        return "without rows"
    numbers = given[_NUMBERS].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    least = [-np.inf, 0, 0, 1]
    for column, values, at_least in zip(_NUMBERS, numbers.T, least, strict=True):
        if not (np.isfinite(values) & (values >= at_least)).all():
            return f'"{column}" has values that cannot be'
    names = given[["batch", "protein"]].astype(str)
    if names.duplicated().any():
        batch, protein = names[names.duplicated()].iloc[0]
        of_batch = f' in batch "{batch}"' if batch else ""
        return f'"{protein}" has several rows{of_batch}'
    return None


def profile_of_droplets(
    raw: MuData | AnnData,
    cells: pd.Series,
    columns: Columns,
    where: str,
    proteins: pd.Index | None = None,
) -> AmbientProfile:
    """Estimate the profile of a raw matrix, by batch if its barcodes have a column of batches.

    Parameters
    ----------
    raw
        All barcodes.
    cells
        Batch of each cell, from `totalvi.data.background.droplets.batches_of_cells`.
    columns
        Names the modalities and the column of batches.
    where
        Name of the matrix, for messages.
    proteins
        Names of the cells' proteins. If given, a raw matrix that lacks some of the cells or proteins is
        an error, because the cells do not come from it.

    Raises
    ------
    DataError
        When there are no proteins, or fewer than 20 empty droplets.
    """
    barcodes = find_barcodes(raw, columns, where)
    if proteins is not None:
        barcodes.require_proteins(proteins)
        barcodes.require_cells(cells.index)
    is_cell = barcodes.are_cells(cells.index)
    key = columns.batch_key
    if key is None or key not in barcodes.obs:
        return _estimate(barcodes, np.arange(len(is_cell)), is_cell, ANY_BATCH)
    batch = barcodes.obs[key].astype(str).to_numpy()
    return AmbientProfile.join(
        _estimate(barcodes, np.flatnonzero(batch == name), is_cell, str(name))
        for name in pd.unique(batch)
    )


def _estimate(
    barcodes: Barcodes, rows: np.ndarray, is_cell: np.ndarray, batch: str
) -> AmbientProfile:
    """Estimate the profile of the droplets among some of the barcodes."""
    counts = barcodes.protein[rows]
    chosen = choose_empty_droplets(barcodes.rna_total[rows], counts, is_cell[rows])
    if len(chosen) < _LEAST_DROPLETS:
        of_batch = f' of batch "{batch}"' if batch else ""
        raise DataError(
            f"{barcodes.where} holds {len(chosen)} empty droplets{of_batch} besides "
            f"{is_cell[rows].sum():,} cells, and an estimate needs {_LEAST_DROPLETS}; give the matrix "
            "of all barcodes, such as raw_feature_bc_matrix.h5, or leave it out."
        )
    protein = counts[chosen].toarray()
    measured = ~np.isnan(protein).any(axis=0)
    names = barcodes.protein_names[measured].to_numpy(object)
    n_droplets = np.full(len(names), len(chosen))
    return AmbientProfile.of_rates(estimate_ambient(protein[:, measured]), names, n_droplets, batch)


def ambient_findings(ambient: AmbientProfile) -> list[Finding]:
    """Note the number of empty droplets, and their most frequent antibodies."""
    notes = []
    table = ambient.to_table()
    for batch in np.unique(ambient.batch):
        rows = table[table["batch"] == batch]
        share = np.exp(rows["log_mean"]) / np.exp(rows["log_mean"]).sum()
        most = rows.assign(share=share).nlargest(3, "share")
        names = ", ".join(
            f'"{n}" {100 * s:.0f} %' for n, s in zip(most["protein"], most["share"], strict=True)
        )
        of_batch = f' of batch "{batch}"' if batch else ""
        message = (
            f"background anchored to {rows['n_droplets'].iloc[0]:,} empty droplets{of_batch}, with "
            f"{np.exp(rows['log_mean']).sum():,.1f} protein counts each, most of {names}."
        )
        notes.append(Finding("note", "empty_droplets", message))
    return notes
