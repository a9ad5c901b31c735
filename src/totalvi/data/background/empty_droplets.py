"""The ambient distribution of each protein and batch, from raw matrices of all barcodes."""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.background.ambient import (
    AMBIENT,
    ANY_BATCH,
    COLUMNS,
    LEAST_DROPLETS,
    checked_table,
    choose_empty_droplets,
    estimate_ambient,
)
from totalvi.data.columns import joined_obs, names_of
from totalvi.data.find import genes_and_proteins
from totalvi.data.finding import Finding, did_you_mean, listed
from totalvi.errors import DataError

Raw: TypeAlias = MuData | AnnData | str | PathLike[str]
_BARCODE = re.compile("[ACGT]{12,}")


class _Barcodes(NamedTuple):
    """Totals and proteins of all barcodes of a raw matrix."""

    names: pd.Index
    obs: pd.DataFrame
    rna_total: np.ndarray
    protein: sparse.csr_matrix
    protein_names: pd.Index

    def at(self, rows: np.ndarray) -> "_Barcodes":
        return _Barcodes(
            self.names[rows],
            self.obs.iloc[rows],
            self.rna_total[rows],
            self.protein[rows],
            self.protein_names,
        )


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
        both modalities, which are not changed. Or one for each batch: ``{batch: raw}``. Only empty
        droplets, without the cells, do as well.
    data
        The cells, so that they are not taken for empty droplets.
    batch_key
        Column of ``obs`` with the batch, of ``data`` and, where one matrix holds the barcodes of
        several batches, of ``raw``. A matrix without it stands for all batches.
    rna_modality, protein_modality
        Of a MuData.

    Returns
    -------
    DataFrame with a row a batch and protein: ``batch`` ("": all), ``protein``, ``log_mean`` (log of
    the mean count of an empty droplet), ``log_sd`` (spread of the log rate), ``standard_error`` (of
    ``log_mean``) and ``n_droplets``. `totalvi.Model` takes it as ``empty_droplets``, or finds it in
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
    cells = _cells(data, batch_key, rna_modality, protein_modality)
    modalities = (rna_modality, protein_modality)
    return ambient_table(raw, cells, batch_key=batch_key, modalities=modalities)


def ambient_of(
    data: MuData | AnnData,
    batch_key: str | None,
    modalities: tuple[str, str],
    empty_droplets: Raw | Mapping[str, Raw] | pd.DataFrame | Literal[False] | None,
) -> pd.DataFrame | None:
    """Return the ambient table that a model is to use: given, made of droplets, or left by `read`.

    Raises
    ------
    DataError, ValueError
        When it is none of what is allowed.
    """
    if empty_droplets is False:
        return None
    given = data.uns.get(AMBIENT) if empty_droplets is None else empty_droplets
    if given is None:
        return None
    if empty_droplets is None:
        return checked_table(given, f'uns["{AMBIENT}"]')
    if isinstance(given, pd.DataFrame):
        return checked_table(given, "empty_droplets")
    if not isinstance(given, MuData | AnnData | Mapping | str | PathLike):
        raise ValueError(
            f"empty_droplets is a {type(given).__name__}; allowed are a raw matrix, or one by batch, a "
            "table of totalvi.ambient_profile, or False."
        )
    cells = _cells(data, batch_key, *modalities)
    return ambient_table(given, cells, batch_key=batch_key, modalities=modalities)


def require_same_run(
    raw: Raw | Mapping[str, Raw],
    data: MuData | AnnData,
    proteins: pd.Index,
    *,
    batch_key: str | None = None,
    modalities: tuple[str, str] = ("rna", "prot"),
) -> pd.DataFrame:
    """Return the ambient table of a raw matrix that must hold all cells and proteins of ``data``."""
    cells = _cells(data, batch_key, *modalities)
    return ambient_table(raw, cells, batch_key=batch_key, modalities=modalities, proteins=proteins)


def ambient_findings(ambient: pd.DataFrame) -> list[Finding]:
    """Note how many empty droplets there are, and what most of their antibody is."""
    notes = []
    for batch, rows in ambient.groupby(ambient["batch"].astype(str)):
        share = np.exp(rows["log_mean"]) / np.exp(rows["log_mean"]).sum()
        most = rows.assign(share=share).nlargest(3, "share")
        names = ", ".join(
            f'"{n}" {100 * s:.0f} %' for n, s in zip(most["protein"], most["share"], strict=True)
        )
        of_batch = f' of batch "{batch}"' if batch else ""
        message = (
            f"background anchored to {rows['n_droplets'].iloc[0]:,} empty droplets{of_batch}, with "
            f"{np.exp(rows['log_mean']).sum():,.1f} protein counts each, most of {names}"
        )
        notes.append(Finding("note", "empty_droplets", message))
    return notes


def ambient_table(
    raw: Raw | Mapping[str, Raw],
    cells: pd.Series,
    *,
    batch_key: str | None = None,
    modalities: tuple[str, str] = ("rna", "prot"),
    proteins: pd.Index | None = None,
) -> pd.DataFrame:
    """Estimate as `ambient_profile`, given the batch of each cell by name.

    With the names of the cells' ``proteins``, a raw matrix that lacks some of the cells or proteins is
    an error: it is not the one that the cells come from.
    """
    if not isinstance(raw, Mapping):
        return _table(raw, cells, batch_key, modalities, proteins)
    known = pd.unique(cells)
    parts = []
    for name, each in raw.items():
        if len(cells) and str(name) not in known:
            raise DataError(
                f'the empty droplets are of batch "{name}", which no cell is of: '
                f"{did_you_mean(str(name), known)}"
            )
        own = cells[cells == str(name)]
        parts.append(_table(each, own, None, modalities, proteins).assign(batch=str(name)))
    if not parts:
        raise DataError(
            "the empty droplets are of no batch at all: give a raw matrix for each batch"
        )
    return pd.concat(parts, ignore_index=True)


def _cells(
    data: MuData | AnnData | None, batch_key: str | None, rna_modality: str, protein_modality: str
) -> pd.Series:
    """Return the batch of each cell, by cell name."""
    if data is None:
        return pd.Series([], index=pd.Index([], dtype=object), dtype=object)
    if isinstance(data, MuData):
        obs = joined_obs(data, data[rna_modality], data[protein_modality])
    else:
        obs = pd.DataFrame(data.obs)
    if batch_key is not None and batch_key not in obs:
        raise DataError(
            f'no column "{batch_key}" in obs of the cells: {did_you_mean(batch_key, map(str, obs))}'
        )
    values = ANY_BATCH if batch_key is None else obs[batch_key].astype(str).to_numpy(object)
    return pd.Series(values, index=names_of(obs.index), dtype=object)


def _table(
    raw: Raw,
    cells: pd.Series,
    batch_key: str | None,
    modalities: tuple[str, str],
    proteins: pd.Index | None,
) -> pd.DataFrame:
    """Estimate from one raw matrix, by batch where its barcodes have one."""
    where = "the raw matrix" if isinstance(raw, MuData | AnnData) else str(raw)
    barcodes = _find_barcodes(raw, modalities, where)
    if proteins is not None:
        _require_proteins(barcodes, proteins, where)
    is_cell = _are_cells(barcodes.names, cells.index)
    if proteins is not None:
        _require_cells(barcodes, is_cell, cells.index, where)
    if batch_key is None or batch_key not in barcodes.obs:
        return _estimate(barcodes, is_cell, ANY_BATCH, where)
    batch = barcodes.obs[batch_key].astype(str).to_numpy()
    return pd.concat(
        [
            _estimate(barcodes.at(rows), is_cell[rows], str(name), where)
            for name in pd.unique(batch)
            for rows in [np.flatnonzero(batch == name)]
        ],
        ignore_index=True,
    )


def _estimate(barcodes: _Barcodes, is_cell: np.ndarray, batch: str, where: str) -> pd.DataFrame:
    chosen = choose_empty_droplets(barcodes.rna_total, barcodes.protein, is_cell)
    if len(chosen) < LEAST_DROPLETS:
        of_batch = f' of batch "{batch}"' if batch else ""
        raise DataError(
            f"{where} holds {len(chosen)} empty droplets{of_batch} besides {is_cell.sum():,} cells, "
            f"and an estimate needs {LEAST_DROPLETS}: give the matrix of all barcodes, such as "
            "raw_feature_bc_matrix.h5, or leave it out"
        )
    protein = barcodes.protein[chosen].toarray()
    measured = ~np.isnan(protein).any(axis=0)
    ambient = estimate_ambient(protein[:, measured])
    table = pd.DataFrame({"protein": barcodes.protein_names[measured], **ambient._asdict()})
    return table.assign(batch=batch, n_droplets=len(chosen))[COLUMNS]


def _find_barcodes(raw: Raw, modalities: tuple[str, str], where: str) -> _Barcodes:
    if not isinstance(raw, MuData | AnnData):
        from totalvi.data.io.read import read

        raw = read(raw, rna_modality=modalities[0], protein_modality=modalities[1])
    if isinstance(raw, AnnData):
        is_gene, is_protein = genes_and_proteins(raw.var)
        if is_protein.any():
            raw = MuData({modalities[0]: raw[:, is_gene], modalities[1]: raw[:, is_protein]})
        else:
            raise _no_proteins(where)
    if modalities[1] not in raw.mod:
        raise _no_proteins(where)
    if modalities[0] not in raw.mod:
        raise DataError(f"{where} holds no RNA: give the matrix with both RNA and proteins")
    rna, protein = (raw[name] for name in modalities)
    if not rna.obs_names.equals(protein.obs_names):
        raise DataError(
            f"{where} holds other barcodes for RNA than for proteins: give both of the same"
        )
    found = _Barcodes(
        names_of(protein.obs_names),
        joined_obs(raw, rna, protein),
        np.asarray(rna.X.sum(axis=1), dtype=np.float64).ravel(),
        sparse.csr_matrix(protein.X),
        names_of(protein.var_names),
    )
    values = found.protein.data
    if (values < 0).any() or np.isinf(values).any():
        raise DataError(f"{where} holds negative or infinite values: give raw counts")
    return found


def _no_proteins(where: str) -> DataError:
    return DataError(
        f"{where} holds no antibodies, whose ambient counts are asked for: give the raw matrix with "
        "RNA and proteins"
    )


def _are_cells(barcodes: pd.Index, cells: pd.Index) -> np.ndarray:
    """Mark the barcodes that are cells: by name, or by nucleotides where no name is the same."""
    by_name = np.asarray(barcodes.isin(cells))
    if by_name.any() or not len(cells):
        return by_name
    found = {match.group() for match in map(_BARCODE.search, cells) if match}
    if not found:
        return by_name
    matches = map(_BARCODE.search, barcodes)
    return np.array([match is not None and match.group() in found for match in matches], dtype=bool)


def _require_proteins(barcodes: _Barcodes, proteins: pd.Index, where: str) -> None:
    missing = proteins[~proteins.isin(barcodes.protein_names)]
    if len(missing):
        raise DataError(
            f"{where} lacks {len(missing)} of the {len(proteins)} proteins of the cells, "
            f"{listed(missing, at_most=3)}: give the raw matrix of the same run"
        )


def _require_cells(barcodes: _Barcodes, is_cell: np.ndarray, cells: pd.Index, where: str) -> None:
    n_missing = len(cells) - int(is_cell.sum())
    if len(barcodes.names) < len(cells):
        raise DataError(
            f"{where} holds {len(barcodes.names):,} barcodes and there are {len(cells):,} cells: the "
            "raw matrix holds them all, so the two may be swapped"
        )
    if n_missing > 0:
        raise DataError(
            f"{where} lacks {n_missing:,} of the {len(cells):,} cells: give the raw matrix of the same "
            "run"
        )
