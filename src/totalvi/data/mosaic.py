"""Cells that lack a modality: which cells have RNA, proteins or both, and data that hold such cells."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.cell_pairs import WHITELIST, pair_cells
from totalvi.data.cells import BOTH, MODALITIES, PROTEIN, RNA, has_rna
from totalvi.data.check_counts import CountTally
from totalvi.data.columns import Columns, feature_names, joined_obs, names_of
from totalvi.data.counts import CountsInMemory, in_memory, to_csr, to_dense
from totalvi.data.find import CountSource
from totalvi.data.io.features import modalities_of
from totalvi.data.io.modalities import mudata_of
from totalvi.data.io.readable_parts import say_of_reading
from totalvi.errors import DataError, Finding, argument, counted, did_you_mean

_MOST_SHARED = 0.5  # with a larger share of cells in both, the two lists nearly agree
_FILTERED = 10  # a list that is so many times longer has not been filtered
_FEWEST_SHARED = 10


class Union(NamedTuple):
    """The cells of two modalities.

    Parameters
    ----------
    names
        Of all cells.
    rna, protein
        Position of each cell in the modality, (N,); -1 where it is not there.
    """

    names: pd.Index
    rna: np.ndarray
    protein: np.ndarray


def union_of_cells(rna: pd.Index, protein: pd.Index, mosaic: bool | None = None) -> Union | None:
    """Return the cells of two modalities as a mosaic; None if they are lists of the same cells.

    Where fewer than half of all cells are in both, cells in one modality lack the other. With more,
    these are lists that nearly agree, as two filters leave them; so are they where one is more than ten
    times as long, as that of all barcodes is. ``mosaic`` decides in place of these rules.

    Raises
    ------
    DataError
        If a mosaic is asked for whose modalities have no more cells in common than by chance.

    Examples
    --------
    >>> one, two = (pd.Index([f"c{i}" for i in range(*ends)]) for ends in ((0, 60), (40, 100)))
    >>> union = union_of_cells(one, two)
    >>> len(union.names), int((union.rna < 0).sum()), int((union.protein < 0).sum())
    (100, 40, 40)
    """
    rna, protein = names_of(rna), names_of(protein)
    if mosaic is False or rna.equals(protein) or not (rna.is_unique and protein.is_unique):
        return None
    pairs = pair_cells(rna, protein)
    first, second = pairs.first, pairs.second
    if not pairs.is_enough:
        second = protein.get_indexer(rna)
        first = np.flatnonzero(second >= 0)
        second = second[first]
    n_both, n_all = len(first), len(rna) + len(protein) - len(first)
    lengths = sorted((len(rna), len(protein)))
    if mosaic is None and (
        n_both >= _MOST_SHARED * n_all or lengths[1] > _FILTERED * max(lengths[0], 1)
    ):
        return None
    if n_both < _FEWEST_SHARED + 3 * len(rna) * len(protein) / WHITELIST:
        if mosaic is None:
            return None
        raise DataError(
            f"only {counted(n_both, 'cell')} of {n_all:,} have both RNA and proteins, which is no more "
            "than by chance; give cells that have both, from which a model learns how they belong "
            "together, with the same name in both modalities."
        )
    of_rna = np.full(len(rna), -1)
    of_rna[first] = second
    alone = np.setdiff1d(np.arange(len(protein)), second)
    return Union(
        rna.append(protein[alone]),
        np.concatenate([np.arange(len(rna)), np.full(len(alone), -1)]),
        np.concatenate([of_rna, alone]),
    )


def mosaic(data: MuData, *, rna_modality: str = "rna", protein_modality: str = "prot") -> MuData:
    """Return a MuData of all cells of two modalities, each of which lacks some of them.

    `totalvi.Model` and `totalvi.read` do so themselves where fewer than half of the cells are in both
    modalities; lists that nearly agree are paired by `totalvi.read`, which leaves out what one lacks.

    Parameters
    ----------
    data
        A MuData whose cells have RNA and proteins, RNA alone, or proteins alone; not changed.
    rna_modality, protein_modality
        Names of the two modalities, which stay.

    Returns
    -------
    MuData with all cells in both modalities: RNA (CSR) without any count and proteins (dense) NaN where
    they were not measured. ``obs["measured_modalities"]`` is "both", "rna" or "prot"; other modalities
    stay as they are.

    Raises
    ------
    DataError
        If a modality is missing, or no cells have both.

    Examples
    --------
    >>> import totalvi
    >>> both = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
    >>> parts = {"rna": both["rna"][:40].copy(), "prot": both["prot"][20:].copy()}
    >>> cells = mosaic(MuData(parts))
    >>> cells.obs["measured_modalities"].value_counts().sort_index().to_dict()
    {'both': 20, 'prot': 20, 'rna': 20}
    """
    for name in (rna_modality, protein_modality):
        if name not in data.mod:
            raise DataError(f'no modality "{name}" in the MuData, whose cells are to be joined.')
    cells = union_of_cells(data[rna_modality].obs_names, data[protein_modality].obs_names, True)
    if cells is None:
        return data
    return _joined(data, cells, rna_modality, protein_modality)


def as_mosaic(data: Any, columns: Columns, wanted: bool | None = None) -> Any:
    """Return a MuData whose modalities hold different cells with all cells in both; others as given.

    ``wanted`` decides in place of the rules of `union_of_cells`.
    """
    if not isinstance(data, MuData):
        return data
    rna, protein = columns.rna_modality, columns.protein_modality
    if not {rna, protein} <= set(data.mod):
        return data
    cells = union_of_cells(data[rna].obs_names, data[protein].obs_names, wanted)
    if cells is None:
        return data
    found = _joined(data, cells, rna, protein)
    n_both = int(((cells.rna >= 0) & (cells.protein >= 0)).sum())
    say_of_reading(
        found,
        "mosaic",
        f'Modality "{rna}" holds {data[rna].n_obs:,} cells and modality "{protein}" '
        f"{data[protein].n_obs:,}, of which {n_both:,} are in both; all were taken, and cells of one "
        f"alone lack the other ({argument('totalvi.read(mosaic=False)')} takes those of both).",
    )
    return found


def _joined(data: MuData, cells: Union, rna_modality: str, protein_modality: str) -> MuData:
    rna, protein = data[rna_modality], data[protein_modality]
    obs = joined_obs(data, rna, protein, cells.names)
    obs[MODALITIES] = np.where(cells.rna < 0, PROTEIN, np.where(cells.protein < 0, RNA, BOTH))
    parts = dict(data.mod)
    parts[rna_modality] = _all_cells(rna, cells.names, cells.rna, _csr)
    parts[protein_modality] = _all_cells(protein, cells.names, cells.protein, _with_nan)
    found = mudata_of(parts, obs)
    found.uns.update(data.uns)
    return found


def _all_cells(adata: AnnData, names: pd.Index, rows: np.ndarray, taken: Any) -> AnnData:
    """Return an AnnData with a row for each of all cells, empty where ``rows`` is -1."""

    def expanded(values: Any, features: pd.Index) -> Any:
        return taken(values, rows, adata.obs_names, features)

    found = AnnData(
        None if adata.X is None else expanded(adata.X, adata.var_names),
        obs=pd.DataFrame(index=names),
        var=adata.var.copy(),
        layers={name: expanded(values, adata.var_names) for name, values in adata.layers.items()},
        uns=dict(adata.uns),
    )
    if adata.raw is not None:
        raw_var = pd.DataFrame(adata.raw.var)
        cells = pd.DataFrame(index=names)
        found.raw = AnnData(expanded(adata.raw.X, raw_var.index), obs=cells, var=raw_var)
    return found


def _csr(values: Any, rows: np.ndarray, cells: pd.Index, features: pd.Index) -> sparse.csr_matrix:
    counts = to_csr(in_memory(values), "the RNA", cells, features)
    length = np.where(rows < 0, 0, np.diff(counts.indptr)[rows])
    known = counts[rows[rows >= 0]]
    pointer = np.concatenate([[0], np.cumsum(length)])
    shape = (len(rows), counts.shape[1])
    return sparse.csr_matrix((known.data, known.indices, pointer), shape=shape)


def _with_nan(values: Any, rows: np.ndarray, cells: pd.Index, features: pd.Index) -> np.ndarray:
    counts = to_dense(values, "the proteins", cells, features)
    found: np.ndarray = counts[rows]
    found[rows < 0] = np.nan
    return found


def holds_proteins_alone(data: MuData | AnnData, columns: Columns) -> bool:
    """Whether data hold antibodies and no genes, as a modality alone or as features."""
    if isinstance(data, MuData):
        return set(data.mod) - {"hto"} == {columns.protein_modality}  # another may hold the genes
    return (
        bool(data.n_vars)
        and bool((modalities_of(data.var) != "rna").all())
        and ("prot" in modalities_of(data.var))
    )


def find_protein_counts(data: MuData | AnnData, columns: Columns) -> CountSource:
    """Find the counts of data that `holds_proteins_alone`: the result has no genes.

    Examples
    --------
    >>> var = pd.DataFrame({"feature_types": "Antibody Capture"}, index=["CD3", "CD4"])
    >>> find_protein_counts(AnnData(np.ones((3, 2)), var=var), Columns()).rna.shape
    (3, 0)
    """
    name, layer = columns.protein_modality, columns.protein_layer
    if isinstance(data, MuData):
        adata, where = data.mod[name], f'modality "{name}"'
        obs = joined_obs(data, adata, adata)
    else:
        adata, where = data[:, modalities_of(data.var) == "prot"], "X"
        obs = pd.DataFrame(data.obs).copy()
    if layer is not None and layer not in adata.layers:
        raise DataError(
            f'no layer "{layer}" in {where}; {did_you_mean(layer, adata.layers)}, as '
            f"{argument('protein_layer')}."
        )
    values = adata.X if layer is None else adata.layers[layer]
    obs[MODALITIES] = PROTEIN
    return CountSource(
        rna=CountsInMemory(sparse.csr_matrix(np.empty((adata.n_obs, 0), dtype=np.float32))),
        protein=CountsInMemory(to_dense(values, where, adata.obs_names, adata.var_names)),
        gene_names=pd.Index([], dtype=object),
        protein_names=feature_names(adata.var_names, name),
        cell_names=names_of(adata.obs_names),
        obs=obs,
        rna_where="nowhere",
        protein_where=where,
        protein_layers=tuple(map(str, adata.layers)),
    )


def rna_by_group(
    obs: pd.DataFrame, group: np.ndarray, names: tuple[str, ...], word: str = "panel (or batch)"
) -> tuple[bool, ...]:
    """Return which groups of cells (panels) measured RNA; empty if all did.

    Raises
    ------
    DataError
        If some cells of a group have RNA and others lack it.
    """
    measured = has_rna(obs)
    if measured.all():
        return ()
    n_cells = np.bincount(group, minlength=len(names))
    n_measured = np.bincount(group[measured], minlength=len(names))
    mixed = np.flatnonzero((n_measured > 0) & (n_measured < n_cells))
    if len(mixed):
        raise DataError(
            f'{word} "{names[mixed[0]]}" holds cells with RNA and cells with proteins alone; tell them '
            f'apart with {argument("panel_key")}, for example "{MODALITIES}".'
        )
    return tuple(map(bool, n_measured > 0))


def modality_findings(has: np.ndarray, tally: CountTally, names: pd.Index) -> list[Finding]:
    """Say how many cells have RNA, proteins or both, where some lack one.

    Parameters
    ----------
    has
        Whether each cell has RNA, (N,).
    tally
        Of the counts, from which it follows which cells have proteins.
    names
        Of the cells.
    """
    protein_measured, rna_total = tally.protein_measured, tally.rna_total
    findings = []
    if not has.all():
        counts, nothing = ~has & (rna_total > 0), ~has & ~protein_measured
        if counts.any():
            findings.append(
                Finding(
                    "error",
                    "rna_of_cell_without",
                    f'obs["{MODALITIES}"] says that cell "{names[counts][0]}" and '
                    f"{counts.sum() - 1:,} more have no RNA, but they have RNA counts; correct the "
                    "column.",
                )
            )
        if nothing.any():
            findings.append(
                Finding(
                    "error",
                    "cell_without_counts",
                    f"{counted(int(nothing.sum()), 'cell')} have neither RNA nor proteins, first "
                    f'"{names[nothing][0]}"; drop them.',
                )
            )
    n_both = int((has & protein_measured).sum())
    if n_both < len(has):
        n_rna, n_protein = int((has & ~protein_measured).sum()), int((~has).sum())
        findings.append(
            Finding(
                "note",
                "modalities",
                f"{n_both:,} cells have RNA and proteins, {n_rna:,} RNA alone and {n_protein:,} "
                "proteins alone.",
            )
        )
    return findings


def summary(source: CountSource, tally: CountTally, *, are_counts: bool) -> Finding:
    """Return a summary: cells, genes, proteins, share of non-zeros, median counts."""
    n_cells, n_genes = source.rna.shape
    message = f"{counted(n_cells, 'cell')}, {counted(n_genes, 'gene')} and "
    message += counted(source.protein.shape[1], "protein")
    if are_counts:
        has = has_rna(source.obs)
        rna_median = np.median(tally.rna_total[has]) if has.any() else 0
        protein_totals = tally.protein_total[tally.protein_measured]
        protein_median = np.median(protein_totals) if len(protein_totals) else 0
        non_zero = tally.n_rna.sum() / max(has.sum() * n_genes, 1)
        message += (
            f"; {100 * non_zero:.1f} % of the RNA counts are not zero; a median cell has "
            f"{rna_median:,.0f} RNA counts and {protein_median:,.0f} protein counts"
        )
    return Finding("note", "summary", message + ".")
