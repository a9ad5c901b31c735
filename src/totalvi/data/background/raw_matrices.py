"""Ambient profiles of raw matrices: files or objects, one for all cells or one for each batch."""

from collections.abc import Mapping
from os import PathLike
from typing import Literal, TypeAlias

import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.background.ambient import AMBIENT, AmbientProfile, profile_of_droplets
from totalvi.data.background.droplets import batches_of_cells
from totalvi.data.columns import Columns
from totalvi.data.finding import did_you_mean
from totalvi.data.io.read import read
from totalvi.errors import DataError

Raw: TypeAlias = MuData | AnnData | str | PathLike[str]


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
