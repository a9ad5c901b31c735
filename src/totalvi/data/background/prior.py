"""Start and anchor of the prior of each protein's background.

The prior starts at the lower mode of the counts. With empty droplets, it starts at what the lower modes
and the droplets' profile over proteins say together, and is anchored there.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, NamedTuple, Self, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.background.ambient import (
    AMBIENT,
    AmbientProfile,
    AmbientRates,
    ambient_findings,
    profile_of_droplets,
)
from totalvi.data.background.droplets import ANY_BATCH, batches_of_cells
from totalvi.data.background.lower_modes import (
    LowerModes,
    agreement_finding,
    combined,
    compare_with_modes,
    lower_modes,
)
from totalvi.data.cells import Schema
from totalvi.data.columns import Columns
from totalvi.data.counts import Counts, evenly_spaced
from totalvi.data.io.read import read
from totalvi.errors import DataError, Finding, did_you_mean, listed

Raw: TypeAlias = MuData | AnnData | str | PathLike[str]
_MOST_CELLS = 10_000  # cells of a panel that are enough to find a mode
_SCALE_RANGE = (0.2, 1.5)


class BackgroundStart(NamedTuple):
    """The start of the background prior without droplets.

    Attributes
    ----------
    mean, scale
        Mean and standard deviation of each protein's log background, (panels, T).
    modes
        The lower modes of each panel.
    """

    mean: np.ndarray
    scale: np.ndarray
    modes: list[LowerModes]


def empirical_background_prior(
    protein: Counts[np.ndarray], panel: np.ndarray, panel_measured: np.ndarray
) -> BackgroundStart:
    """Estimate mean and standard deviation of each protein's log background, by panel.

    They are those of the `lower_modes` of log(1 + counts). Of each panel, at most 10,000 evenly spaced
    cells are used.

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
    Means and standard deviations in log counts, and the modes. A protein that a panel did not measure
    gets the average over the panels that did.
    """
    modes = []
    for code in range(len(panel_measured)):
        rows = evenly_spaced(np.flatnonzero(panel == code), _MOST_CELLS, rounding="down")
        modes.append(lower_modes(protein.rows(rows)))
    mean = np.stack([of_panel.log_mean for of_panel in modes])
    scale = np.clip([of_panel.log_sd for of_panel in modes], *_SCALE_RANGE)
    weight = panel_measured / np.maximum(panel_measured.sum(axis=0), 1)
    return BackgroundStart(
        np.where(panel_measured, mean, (weight * mean).sum(axis=0)),
        np.where(panel_measured, scale, (weight * scale).sum(axis=0)),
        modes,
    )


class BackgroundAnchor(NamedTuple):
    """The anchor of the background prior; each field is (panels, T).

    Attributes
    ----------
    log_mean
        Log of each protein's mean background: the mean of a log-normal, ``exp(c + d^2 / 2)``.
    log_scale
        Profile of the log of d, the standard deviation of the log background; it is held up to a
        constant by panel, because the model shares out what varies between d and the dispersion.
    mean_precision, scale_precision
        Precision of each; 0 if there are no droplets for a protein.
    """

    log_mean: np.ndarray
    log_scale: np.ndarray
    mean_precision: np.ndarray
    scale_precision: np.ndarray


class Anchored(NamedTuple):
    """The start of the background prior with droplets, its anchor, and what is to be said of both."""

    mean: np.ndarray
    scale: np.ndarray
    anchor: BackgroundAnchor
    findings: list[Finding]


def anchored_background_prior(
    start: BackgroundStart, ambient: AmbientProfile, panels: "PanelBatches"
) -> Anchored:
    """Combine the lower modes of the cells with the profile of empty droplets; anchor the prior there.

    Cells and droplets share the proportions of proteins in the background, but not its level, and the
    proportions only so far. Both are estimated from the proteins with a clear lower mode: the level
    is the median ratio, and the deviation the robust spread about it. A protein's background
    is then the mean of its lower mode and the droplets' profile, weighted by precision. Where cells
    have no lower mode, or one so far above the droplets that it must be signal, droplets alone decide.

    Parameters
    ----------
    start
        From `empirical_background_prior`.
    ambient
        Profile of the empty droplets.
    panels
        Names of the proteins and of each panel's batches.

    Raises
    ------
    DataError
        When ``ambient`` has none of the batches or none of the proteins.
    """
    profiles = AmbientRates(*_by_panel(ambient, panels))
    known = np.isfinite(profiles.log_mean)
    mean, scale = start.mean.copy(), start.scale.copy()
    fields, findings = np.zeros((4, *mean.shape)), []
    for row, (has, modes) in enumerate(zip(known, start.modes, strict=True)):
        if has.any():
            of_droplets = AmbientRates(*(values[row] for values in profiles))
            agreement = compare_with_modes(of_droplets, modes)
            findings.append(agreement_finding(agreement, panels.words(row)))
            anchor = combined(of_droplets, modes, agreement)
            spread = np.clip(np.exp(anchor[1]), *_SCALE_RANGE)
            mean[row, has] = (anchor[0] - spread**2 / 2)[has]
            scale[row, has] = spread[has]
            fields[:, row, has] = anchor[:, has]
    return Anchored(mean, scale, BackgroundAnchor(*fields), findings)


class PanelBatches(NamedTuple):
    """Names of the proteins, of the batches, and the codes of the batches in each panel."""

    protein_names: Sequence[str]
    batch_names: Sequence[str]
    batches: Sequence[np.ndarray]

    @classmethod
    def of_cells(cls, schema: Schema, batch: np.ndarray, panel: np.ndarray) -> Self:
        """Return the names of a model's schema, and the batches of each panel in the cells, (N,)."""
        n_panels = len(schema.panel_measured)
        batches = [np.unique(batch[panel == code]) for code in range(n_panels)]
        return cls(schema.protein_names, schema.batch_names, batches)

    def words(self, panel: int) -> str:
        """Return the words that name a panel's batches; none if there are no others."""
        if len(self.batches) == 1:
            return ""
        return " of batch " + listed([self.batch_names[code] for code in self.batches[panel]])


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


def find_ambient(
    data: MuData | AnnData,
    keys: Columns,
    proteins: pd.Index,
    raw: Raw | Mapping[str, Raw] | None,
) -> tuple[AmbientProfile | None, list[Finding]]:
    """Return the ambient profile of the raw matrix or of the data, and its findings."""
    if raw is not None:
        ambient: AmbientProfile | None = profile_of_raw(raw, data, keys, proteins)
    else:
        ambient = ambient_of(data, keys, None)
    return ambient, [] if ambient is None else ambient_findings(ambient)


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
