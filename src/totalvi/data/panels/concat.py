"""Join data sets with different antibody panels into one MuData that marks unmeasured proteins."""

from collections.abc import Mapping
from typing import get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.background.ambient import AMBIENT, AmbientProfile
from totalvi.data.cells import BOTH, MODALITIES, PROTEIN, RNA, has_rna
from totalvi.data.columns import Columns
from totalvi.data.io.modalities import mudata_of
from totalvi.data.panels.antibodies import AntibodyNames, harmonise_antibodies
from totalvi.data.panels.data_sets import DataSet, GeneAlignment, Join, align_genes, find_data_set
from totalvi.errors import DataError, allowed, did_you_mean, listed


def concat(
    data: Mapping[str, MuData | AnnData],
    *,
    genes: Join = "inner",
    proteins: Join = "outer",
    antibody_names: AntibodyNames | None = None,
    batch_key: str = "batch",
    panel_key: str = "panel",
    sub_batch_key: str | None = None,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
    rna_layer: str | None = None,
    protein_layer: str | None = None,
    protein_expression_obsm_key: str | None = None,
) -> MuData:
    """Join data sets of different genes and antibody panels.

    A protein that a data set did not measure is NaN in its cells, so that `totalvi.Model`
    recognises the panels. In cells of data sets with RNA alone, all proteins are unmeasured and can
    be imputed; so can the RNA of data sets with proteins alone, which ``obs["measured_modalities"]``
    tells apart ("both", "rna" or "prot")::

        both = totalvi.concat({"cite": cite, "rna": rna})
        model = totalvi.Model(both, batch_key="batch")
        model.train()
        _, protein = model.get_normalized_expression(
            unmeasured="impute", include_protein_background=True
        )

    Parameters
    ----------
    data
        Data sets by name: MuData, or AnnData with proteins in ``obsm`` or as features of the type
        "Antibody Capture". A data set without proteins is a MuData with only RNA (and optionally
        "hto"), or an AnnData with only genes; one without RNA a MuData with only proteins, or an
        AnnData with only antibodies. The data sets are not changed.
    genes
        "inner": genes that all data sets have; "outer": genes of any. A gene that a data set lacks
        counts as zero there, so "outer" is correct only if the files leave out genes without counts.
        Genes are matched by symbol or, if more agree, by Ensembl id (``var["gene_ids"]``).
    proteins
        "outer": proteins of any data set; "inner": those that all data sets with proteins have.
        `harmonise_antibodies` describes how they are matched.
    antibody_names
        Names of antibodies that you choose; see `harmonise_antibodies`.
    batch_key
        Column of ``obs`` for the batch: the data set, or ``data set:sub-batch``.
    panel_key
        Column for the antibody panel: the data set, or the batch if the batches of a data set measured
        different proteins (NaN in its counts).
    sub_batch_key
        Column with the batches within each data set that has it. All columns are kept, so
        ``Model(batch_key="donor", panel_key="panel")`` works if the names of donors do not recur.
    rna_modality, protein_modality, rna_layer, protein_layer
        Places of the counts, as in `totalvi.Model`.
    protein_expression_obsm_key
        Entry of ``obsm`` with the proteins, in each AnnData that has it. None: one with a usual name,
        such as ``protein_expression``.

    Returns
    -------
    MuData with the modalities "rna" (CSR) and "prot" (dense float32, NaN where unmeasured). Cells are
    named ``cell-data set``. Hashtags and other modalities are left out. ``prot.var["measured_in"]``
    lists the panels that measured each protein. ``uns["concat"]`` holds two tables: "antibodies" has
    the original and the joined name of each antibody and the reason; "data_sets" has the numbers of
    cells, genes and proteins of each. If data sets have ``uns["ambient"]`` of empty droplets, the
    result has it too, by batch.

    Raises
    ------
    DataError
        If counts are not found, names are repeated, genes do not match, or a column would be
        overwritten.
    ValueError
        If an argument has a value that is not allowed.

    Warns
    -----
    UserWarning
        If antibodies of one data set have the same target; they stay separate.

    Examples
    --------
    >>> import totalvi
    >>> a = totalvi.simulate(n_cells=30, n_genes=40, n_proteins=3, store_truth=False, seed=1)
    >>> b = totalvi.simulate(n_cells=20, n_genes=40, n_proteins=3, store_truth=False, seed=2)
    >>> for mdata in (a, b):
    ...     mdata.obs = mdata.obs.drop(columns="batch")
    >>> a["prot"].var_names = ["CD3_TotalSeqB", "PD-1_TotalSeqB", "IgG1_control_TotalSeqB"]
    >>> b["prot"].var_names = ["CD279", "CD3 (UCHT1)", "CD62L"]
    >>> both = concat({"A": a, "B": b})
    >>> both["prot"].var["measured_in"].to_dict()
    {'CD3': 'A, B', 'CD279': 'A, B', 'IgG1 isotype control': 'A', 'CD62L': 'B'}
    >>> int(np.isnan(both["prot"].X[:, 3]).sum())
    30
    """
    data = {str(name): each for name, each in data.items()}
    _check_joins(genes, proteins)
    if len(data) < 2:
        raise ValueError("data holds fewer than two data sets; give at least two to join.")
    if batch_key == panel_key:
        raise ValueError(f'batch_key and panel_key are both "{batch_key}"; give two names.')
    if protein_expression_obsm_key is not None:
        _require_obsm(data, protein_expression_obsm_key)
    columns = Columns(
        rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
    )
    found = {name: find_data_set(name, each, columns) for name, each in data.items()}
    with_rna = {name: each.genes for name, each in found.items() if len(each.genes)}
    if not with_rna:
        raise DataError("no data set has RNA to join; give at least one that has.")
    aligned = align_genes(with_rna, genes)
    antibodies = harmonise_antibodies(
        {name: list(each.source.protein_names) for name, each in found.items()}, antibody_names
    )
    protein, var = _joined_proteins(found, antibodies, proteins)
    obs = _joined_obs(found, batch_key, panel_key, sub_batch_key)
    if MODALITIES in obs or len(with_rna) < len(found):
        _say_modalities(obs, found, protein)
    obs[panel_key] = _panels(protein, obs[batch_key], obs[panel_key])
    obs[panel_key] = _panels_of_modalities(obs, obs[panel_key])
    var["measured_in"] = _measured_in(protein, obs[panel_key])
    rna_var = pd.DataFrame(index=aligned.names)
    if aligned.ids is not None:
        rna_var["gene_ids"] = aligned.ids.to_numpy(object)
    cells = pd.DataFrame(index=obs.index)
    rna = AnnData(_joined_rna(found, aligned), obs=cells, var=rna_var)
    joined = mudata_of({"rna": rna, "prot": AnnData(protein, obs=cells.copy(), var=var)}, obs)
    ambient = _joined_ambient(data, found, antibodies, obs[batch_key])
    if ambient is not None:
        joined.uns[AMBIENT] = ambient.to_table()
    joined.uns["concat"] = {"antibodies": antibodies, "data_sets": _summary(found, aligned)}
    return joined


def _check_joins(genes: str, proteins: str) -> None:
    for name, join in (("genes", genes), ("proteins", proteins)):
        if join not in get_args(Join):
            raise ValueError(allowed(name, join, get_args(Join)))


def _require_obsm(data: Mapping[str, MuData | AnnData], key: str) -> None:
    entries = [each.obsm for each in data.values() if isinstance(each, AnnData)]
    if not any(key in obsm for obsm in entries):
        known = dict.fromkeys(entry for obsm in entries for entry in obsm)
        raise ValueError(
            f"protein_expression_obsm_key: no data set has {key!r} in obsm; "
            f"{did_you_mean(key, known)}."
        )


def _joined_rna(found: Mapping[str, DataSet], aligned: GeneAlignment) -> sparse.csr_matrix:
    """Stack the cells of all data sets, with genes in the joined order."""
    blocks = []
    for name, each in found.items():
        rna = each.source.rna.read()
        columns = aligned.positions.get(name, np.empty(0, dtype=np.int64))
        rows = np.flatnonzero(columns >= 0)
        ones = np.ones(len(rows), dtype=rna.dtype)
        shape = (rna.shape[1], len(aligned.names))
        blocks.append(rna @ sparse.csr_matrix((ones, (rows, columns[rows])), shape=shape))
    joined = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    joined.sort_indices()
    return joined


def _joined_proteins(
    found: Mapping[str, DataSet], antibodies: pd.DataFrame, join: Join
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the counts, NaN for missing proteins, and which proteins are controls."""
    names = list(pd.unique(antibodies["harmonised"]))
    n_with_proteins = sum(len(each.source.protein_names) > 0 for each in found.values())
    if join == "inner":
        n_data_sets = antibodies.groupby("harmonised", observed=True)["data_set"].nunique()
        names = [name for name in names if n_data_sets[name] == n_with_proteins]
    if not names:
        reason = "no data set has any" if n_with_proteins == 0 else "none is in all data sets"
        raise DataError(f'no proteins to join: {reason}; proteins="outer" takes those of any.')
    n_cells = [len(each.source.cell_names) for each in found.values()]
    joined = np.full((sum(n_cells), len(names)), np.nan, dtype=np.float32)
    control = np.zeros(len(names), dtype=bool)
    position = pd.Index(names)
    for (name, each), end in zip(found.items(), np.cumsum(n_cells), strict=True):
        own = antibodies["harmonised"][antibodies["data_set"] == name]
        columns = position.get_indexer(own)
        kept = columns >= 0
        cells = slice(end - len(each.source.cell_names), end)
        joined[cells, columns[kept]] = each.source.protein.read()[:, kept]
        control[columns[kept]] |= each.controls[kept]
    return joined, pd.DataFrame({"control": control}, index=pd.Index(names, dtype=object))


def _joined_ambient(
    data: Mapping[str, MuData | AnnData],
    found: Mapping[str, DataSet],
    antibodies: pd.DataFrame,
    batch: pd.Series,
) -> AmbientProfile | None:
    """Join the ambient profiles: by batch of the result, under harmonised names."""
    parts = []
    start = 0
    for name, each in found.items():
        stop = start + len(each.source.cell_names)
        batches, start = pd.unique(batch.iloc[start:stop]), stop
        profile = AmbientProfile.in_uns(data[name].uns)
        if profile is None:
            continue
        own = antibodies[antibodies["data_set"] == name]
        profile = profile.renamed(dict(zip(own["original"], own["harmonised"], strict=True)))
        if len(profile.protein):
            parts.append(profile.of_batches(list(map(str, batches)), prefix=f"{name}:"))
    return AmbientProfile.join(parts) if parts else None


def _joined_obs(
    found: Mapping[str, DataSet], batch_key: str, panel_key: str, sub_batch_key: str | None
) -> pd.DataFrame:
    """Join the annotation of the cells, with the batch and the data set of each."""
    known = dict.fromkeys(str(column) for each in found.values() for column in each.source.obs)
    if sub_batch_key is not None and sub_batch_key not in known:
        raise ValueError(
            f"sub_batch_key: no data set has {sub_batch_key!r}; "
            f"{did_you_mean(sub_batch_key, known)}."
        )
    frames = []
    for name, each in found.items():
        obs = each.source.obs.copy()
        for argument, key in (("batch_key", batch_key), ("panel_key", panel_key)):
            if key in obs and key != sub_batch_key:
                raise DataError(
                    f'data set "{name}" has a column "{key}" in obs already; give another name as '
                    f'{argument}, or, where it holds batches to keep, sub_batch_key="{key}".'
                )
        batch = pd.Series(name, index=obs.index, dtype=object)
        if sub_batch_key is not None and sub_batch_key in obs:
            values = obs[sub_batch_key]
            if values.isna().any():
                raise DataError(
                    f'sub_batch_key: obs["{sub_batch_key}"] of data set "{name}" has no value for '
                    f'cell "{obs.index[values.isna()][0]}"; fill it, or drop the cells.'
                )
            batch = name + ":" + values.astype(str)
        obs[batch_key], obs[panel_key] = batch.to_numpy(object), name
        obs.index = pd.Index([f"{cell}-{name}" for cell in obs.index], dtype=object)
        frames.append(obs)
    joined = pd.concat(frames)
    if not joined.index.is_unique:
        repeated = joined.index[joined.index.duplicated()][0]
        raise DataError(
            f'two data sets have a cell that is "{repeated}" with the data set behind it; rename one '
            "of the data sets."
        )
    for column in joined:
        values = joined[column]
        if isinstance(values.dtype, pd.CategoricalDtype) or not pd.api.types.is_object_dtype(
            values
        ):
            continue
        texts = values.astype(str).where(values.notna(), None)
        joined[column] = texts.astype("category")  # files can hold it, even if types were mixed
    return joined


def _panels(protein: np.ndarray, batch: pd.Series, data_set: pd.Series) -> pd.Series:
    """Return each cell's panel: the data set, or the batch if the batches of a data set differ."""
    panels = data_set.astype(object).copy()
    unmeasured = np.isnan(protein)
    for name in data_set.unique():
        own = (data_set == name).to_numpy()
        nan = unmeasured[own]
        if (nan.any(axis=0) & ~nan.all(axis=0)).any():
            panels[own] = batch[own]
    return panels.astype("category")


def _say_modalities(obs: pd.DataFrame, found: Mapping[str, DataSet], protein: np.ndarray) -> None:
    """Write what was measured in each cell to its column of ``obs``."""
    known = np.concatenate([has_rna(each.source.obs) for each in found.values()])
    kind = np.where(known, np.where(np.isnan(protein).all(axis=1), RNA, BOTH), PROTEIN)
    obs[MODALITIES] = pd.Categorical(kind, [BOTH, RNA, PROTEIN])


def _panels_of_modalities(obs: pd.DataFrame, panel: pd.Series) -> pd.Series:
    """Return panels, each told apart by what was measured where that differs among its cells."""
    if MODALITIES not in obs:
        return panel
    kinds = obs[MODALITIES].astype(str)
    mixed = kinds.groupby(panel, observed=True).transform("nunique") > 1
    names = panel.astype(object).where(~mixed, panel.astype(str) + ": " + kinds)
    return names.astype("category")


def _measured_in(protein: np.ndarray, panel: pd.Series) -> list[str]:
    """List the panels that measured each protein."""
    measured = {
        name: ~np.isnan(protein[(panel == name).to_numpy()]).any(axis=0) for name in panel.unique()
    }
    return [
        ", ".join(name for name, row in measured.items() if row[column])
        for column in range(protein.shape[1])
    ]


def _summary(found: Mapping[str, DataSet], aligned: GeneAlignment) -> pd.DataFrame:
    """Return the numbers of cells, genes and proteins of each data set."""
    rows = {
        name: {
            "n_cells": len(each.source.cell_names),
            "n_genes": len(each.source.gene_names),
            "n_genes_kept": int((aligned.positions[name] >= 0).sum())
            if name in aligned.positions
            else 0,
            "n_proteins": len(each.source.protein_names),
            "genes_matched_by": aligned.matched_by,
            "hashtags_left_out": listed(each.hashtags, at_most=len(each.hashtags)),
            "others_left_out": listed(each.unused, at_most=len(each.unused)),
        }
        for name, each in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
