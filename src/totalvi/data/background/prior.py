"""Start and anchor of the prior of each protein's background.

The prior starts at the lower mode of the counts. With empty droplets, it starts at their profile over
proteins and is anchored there.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.background.ambient import AMBIENT, AmbientProfile, profile_of_droplets
from totalvi.data.background.droplets import ANY_BATCH, batches_of_cells
from totalvi.data.columns import Columns
from totalvi.data.counts import Counts, evenly_spaced
from totalvi.data.finding import did_you_mean
from totalvi.data.io.read import read
from totalvi.errors import DataError

Raw: TypeAlias = MuData | AnnData | str | PathLike[str]
_MOST_CELLS = 10_000  # cells of a panel that are enough to find a mode
_EM_ITERATIONS = 50
_LEAST_CELLS = 20
_LEAST_BACKGROUND = 0.05  # counts per cell
_SCALE_RANGE = (0.2, 1.5)
# Standard deviations between the profiles of droplets and cells: of log counts, and of the log spread.
_MEAN_TOLERANCE = 0.1
_SCALE_TOLERANCE = 0.3


def empirical_background_prior(
    protein: Counts[np.ndarray], panel: np.ndarray, panel_measured: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate mean and standard deviation of each protein's log background, by panel.

    Two normal components are fitted to log(1 + counts) of each protein; the lower one is the
    background. With too few cells for two components, the lower quartile is used instead. Of each
    panel, at most 10,000 evenly spaced cells are used.

    Parameters
    ----------
    protein
        Counts (N, T).
    panel
        Panel code of each cell, (N,).
    panel_measured
        Which protein each panel measured, (panels, T).

    Returns
    -------
    Means and standard deviations, each (panels, T), in log counts. A protein that a panel did not
    measure gets the average over the panels that did.
    """
    n_panels, n_proteins = panel_measured.shape
    mean = np.zeros((n_panels, n_proteins))
    scale = np.ones((n_panels, n_proteins))
    for code in range(n_panels):
        mean[code], scale[code] = _lower_component(_log_counts(protein, panel == code))
    mean = np.log(np.maximum(np.expm1(mean), _LEAST_BACKGROUND))
    scale = np.clip(scale, *_SCALE_RANGE)
    weight = panel_measured / np.maximum(panel_measured.sum(axis=0), 1)
    return (
        np.where(panel_measured, mean, (weight * mean).sum(axis=0)),
        np.where(panel_measured, scale, (weight * scale).sum(axis=0)),
    )


class BackgroundAnchor(NamedTuple):
    """The anchor of the background prior; each field is (panels, T).

    Attributes
    ----------
    log_mean, log_scale
        Profiles over proteins of the log background's mean and log standard deviation. Each is known up
        to a constant by panel, because droplets and cells differ in the level of the background.
    mean_precision, scale_precision
        Precision of each profile; 0 if there are no droplets for a protein.
    """

    log_mean: np.ndarray
    log_scale: np.ndarray
    mean_precision: np.ndarray
    scale_precision: np.ndarray


def anchored_background_prior(
    mean: np.ndarray, scale: np.ndarray, ambient: AmbientProfile, panels: "PanelBatches"
) -> tuple[np.ndarray, np.ndarray, BackgroundAnchor]:
    """Shift an empirical prior to the profile of empty droplets, and anchor it there.

    Cells and droplets share the proportions of proteins in the background, but not its level. The level
    of a panel is where the lower modes of most of its proteins agree. A few proteins without a lower
    mode, which every cell carries, do not influence it.

    Parameters
    ----------
    mean, scale
        From `empirical_background_prior`, (panels, T).
    ambient
        Profile of the empty droplets.
    panels
        Names of the proteins and of each panel's batches.

    Returns
    -------
    The initial means and standard deviations of the prior, (panels, T), and the anchor.

    Raises
    ------
    DataError
        When ``ambient`` has none of the batches or none of the proteins.
    """
    log_mean, log_sd, error = _by_panel(ambient, panels)
    known = np.isfinite(log_mean)
    mean, scale = mean.copy(), scale.copy()
    for row, has in enumerate(known):
        if has.any():
            level = _densest_half(mean[row, has] - log_mean[row, has])
            mean[row, has] = log_mean[row, has] + level
            scale[row, has] = np.clip(log_sd[row, has], *_SCALE_RANGE)
    anchor = BackgroundAnchor(
        log_mean=np.where(known, log_mean, 0.0),
        log_scale=np.where(known, np.log(np.where(known, log_sd, 1.0)), 0.0),
        mean_precision=np.where(known, 1 / (_MEAN_TOLERANCE**2 + np.square(error)), 0.0),
        scale_precision=np.where(known, 1 / _SCALE_TOLERANCE**2, 0.0),
    )
    return mean, scale, anchor


class PanelBatches(NamedTuple):
    """Names of the proteins, of the batches, and the codes of the batches in each panel."""

    protein_names: Sequence[str]
    batch_names: Sequence[str]
    batches: Sequence[np.ndarray]


def _by_panel(ambient: AmbientProfile, panels: PanelBatches) -> tuple[np.ndarray, ...]:
    """Return log mean, spread and standard error by panel, (panels, T); NaN if not known."""
    batches = pd.unique(ambient.batch)
    unknown = [name for name in batches if name not in (*panels.batch_names, ANY_BATCH)]
    if unknown and len(unknown) == len(batches):
        raise DataError(
            f'the empty droplets are of batch "{unknown[0]}", and the cells of none of that name; '
            f"{did_you_mean(unknown[0], panels.batch_names)}."
        )
    if not np.isin(ambient.protein, panels.protein_names).any():
        raise DataError(
            "the empty droplets have none of the proteins of the cells, but "
            f'"{ambient.protein[0]}"; {did_you_mean(ambient.protein[0], panels.protein_names)}.'
        )
    rates = {name: ambient.at(name, panels.protein_names) for name in batches}
    of_panels = [
        [
            rates[name]
            for code in codes
            for name in (panels.batch_names[code], ANY_BATCH)
            if name in rates
        ]
        for codes in panels.batches
    ]
    n_proteins = len(panels.protein_names)
    return tuple(
        np.stack(
            [_mean_of_known([rate[i] for rate in of_panel], n_proteins) for of_panel in of_panels]
        )
        for i in range(3)
    )


def _mean_of_known(rows: list[np.ndarray], n_proteins: int) -> np.ndarray:
    values = np.array([np.full(n_proteins, np.nan), *rows])
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _densest_half(values: np.ndarray) -> float:
    """Return the mean of the half of the values that lie closest together."""
    ordered = np.sort(values)
    n_half = len(ordered) // 2 + 1
    widths = ordered[n_half - 1 :] - ordered[: len(ordered) - n_half + 1]
    first = int(widths.argmin())
    return float(ordered[first : first + n_half].mean())


def _log_counts(protein: Counts[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Return log(1 + counts) of the chosen cells, or of evenly spaced ones if there are many."""
    rows = evenly_spaced(np.flatnonzero(chosen), _MOST_CELLS, rounding="down")
    return np.log1p(protein.rows(rows).astype(np.float64))


def _lower_component(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit two normals to each column by expectation maximisation; return the moments of the lower."""
    low, high = np.quantile(values, [0.25, 0.9], axis=0)
    if len(values) < _LEAST_CELLS:
        return low, np.full_like(low, 0.5)
    means = np.stack([low, high])  # (2, T)
    variances = np.tile(np.maximum(values.var(axis=0) / 4, 1e-2), (2, 1))
    shares = np.full_like(means, 0.5)
    for _ in range(_EM_ITERATIONS):
        log_density = (
            np.log(shares)
            - 0.5 * np.log(variances)
            - 0.5 * (values[:, None, :] - means) ** 2 / variances
        )  # (N, 2, T)
        log_density -= log_density.max(axis=1, keepdims=True)
        weight = np.exp(log_density)
        weight /= weight.sum(axis=1, keepdims=True)
        total = weight.sum(axis=0) + 1e-6
        shares = total / total.sum(axis=0)
        means = (weight * values[:, None, :]).sum(axis=0) / total
        spread = (weight * (values[:, None, :] - means) ** 2).sum(axis=0) / total
        variances = np.maximum(spread, 1e-2)
    lower = means.argmin(axis=0)
    columns = np.arange(values.shape[1])
    return means[lower, columns], np.sqrt(variances[lower, columns])


def ambient_profile(
    raw: Raw | Mapping[str, Raw],
    data: MuData | AnnData | None = None,
    *,
    batch_key: str | None = None,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
) -> pd.DataFrame:
    """Estimate the distribution of each protein's counts in empty droplets, by batch.

    Parameters
    ----------
    raw
        All barcodes, such as Cell Ranger's ``raw_feature_bc_matrix``: a path, or data in memory with
        both modalities, which are not changed. Or one for each batch: ``{batch: raw}``. A matrix with
        only empty droplets, without the cells, is also allowed.
    data
        The cells, which are excluded from the empty droplets.
    batch_key
        Column of ``obs`` with the batch, in ``data`` and, if one matrix holds the barcodes of several
        batches, in ``raw``. A matrix without it stands for all batches.
    rna_modality, protein_modality
        Names of the modalities of a MuData.

    Returns
    -------
    DataFrame with a row for each batch and protein: ``batch`` ("": all), ``protein``, ``log_mean`` (log
    of the mean count of an empty droplet), ``log_sd`` (spread of the log rate), ``standard_error`` (of
    ``log_mean``) and ``n_droplets``. Give it to `totalvi.Model` as ``empty_droplets``, or store it in
    ``data.uns["ambient"]``.

    Raises
    ------
    DataError
        When there are no proteins, or fewer than 20 empty droplets.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=100, n_genes=50, n_proteins=4, seed=1)
    >>> raw = totalvi.simulate_raw(mdata, n_empty=500)
    >>> table = ambient_profile(raw, mdata)
    >>> truth = raw["prot"].varm["log_ambient_mean"][:, 0]
    >>> bool(abs(table["log_mean"] - truth - 0.08).max() < 0.15)
    True
    """
    columns = Columns(
        batch_key=batch_key, rna_modality=rna_modality, protein_modality=protein_modality
    )
    return profile_of_raw(raw, data, columns).to_table()


def profile_of_raw(
    raw: Raw | Mapping[str, Raw],
    data: MuData | AnnData | None,
    columns: Columns,
    proteins: pd.Index | None = None,
) -> AmbientProfile:
    """Estimate the profile as `ambient_profile` does.

    If the names of the cells' ``proteins`` are given, a raw matrix that lacks some of the cells or
    proteins is an error, because the cells do not come from it.
    """
    if data is None:
        cells = pd.Series([], index=pd.Index([], dtype=object), dtype=object)
    else:
        cells = batches_of_cells(data, columns)
    if not isinstance(raw, Mapping):
        return _profile(raw, cells, columns, proteins)
    known = pd.unique(cells)
    modalities = Columns(
        rna_modality=columns.rna_modality, protein_modality=columns.protein_modality
    )
    parts = []
    for name, each in raw.items():
        if len(cells) and str(name) not in known:
            raise DataError(
                f'the empty droplets are of batch "{name}", which no cell is of; '
                f"{did_you_mean(str(name), known)}."
            )
        own = cells[cells == str(name)]
        parts.append(_profile(each, own, modalities, proteins).of_batch(str(name)))
    if not parts:
        raise DataError(
            "the empty droplets are of no batch at all; give a raw matrix for each batch."
        )
    return AmbientProfile.join(parts)


def ambient_of(
    data: MuData | AnnData,
    columns: Columns,
    empty_droplets: Raw | Mapping[str, Raw] | pd.DataFrame | Literal[False] | None,
) -> AmbientProfile | None:
    """Return the profile for a model: given, estimated from droplets, or stored by `totalvi.read`.

    Raises
    ------
    DataError, ValueError
        When the argument is none of these.
    """
    if empty_droplets is False:
        return None
    if empty_droplets is None:
        left = data.uns.get(AMBIENT)
        return None if left is None else AmbientProfile.from_table(left, f'uns["{AMBIENT}"]')
    if isinstance(empty_droplets, pd.DataFrame):
        return AmbientProfile.from_table(empty_droplets, "empty_droplets")
    if not isinstance(empty_droplets, MuData | AnnData | Mapping | str | PathLike):
        raise ValueError(
            f"empty_droplets is a {type(empty_droplets).__name__}; allowed are a raw matrix, or one by "
            "batch, a table of totalvi.ambient_profile, or False."
        )
    return profile_of_raw(empty_droplets, data, columns)


def _profile(
    raw: Raw, cells: pd.Series, columns: Columns, proteins: pd.Index | None
) -> AmbientProfile:
    where = "the raw matrix"
    if not isinstance(raw, MuData | AnnData):
        where = str(raw)
        raw = read(
            raw, rna_modality=columns.rna_modality, protein_modality=columns.protein_modality
        )
    return profile_of_droplets(raw, cells, columns, where, proteins)
