"""Align the genes of several data sets by Ensembl ids or symbols, whichever more of them share."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from totalvi.data.columns import names_of
from totalvi.data.panels.antibody_names import identify, spelling_key
from totalvi.errors import DataError

Join = Literal["inner", "outer"]
_Kind = Literal["symbol", "Ensembl id"]

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{6,})(?:\.\d+)?")
_GENOME = re.compile(r"((?:hg|mm|rn)\d+|GRC[hmz]\d+|mRatBN7|Rnor_6)(?:\.\w+)?_+", re.IGNORECASE)
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id")
_SYMBOL_COLUMNS = (
    "gene_symbols",
    "gene_symbol",
    "gene_names",
    "gene_name",
    "feature_name",
    "symbol",
)
_LEAST_SHARED = 0.5


class GeneAlignment(NamedTuple):
    """The genes of several data sets in one order.

    Attributes
    ----------
    names
        Names of the joined genes: symbols where the first data set that has the gene knows them.
    ids
        Their Ensembl ids, "" where unknown; None where no data set has any.
    positions
        Of each data set: the position of each of its genes among the joined ones, -1 for none.
    matched_by
        "symbol" or "Ensembl id".
    n_shared
        Number of genes that all data sets have.
    """

    names: pd.Index
    ids: pd.Index | None
    positions: dict[str, np.ndarray]
    matched_by: _Kind
    n_shared: int


def align_genes(var: Mapping[str, pd.DataFrame], join: Join) -> GeneAlignment:
    """Align genes by name or by id.

    A genome before all names (``hg19_CD3E``) and the version of an Ensembl id are left out.

    Parameters
    ----------
    var
        Annotation of each data set's genes, with their names as index.
    join
        "inner": the genes that all data sets have; "outer": those of any.

    Raises
    ------
    DataError
        When names are repeated, or data sets share less than half of the genes of the smaller one.

    Examples
    --------
    >>> a = pd.DataFrame(index=["CD4", "MS4A1", "NKG7"])
    >>> b = pd.DataFrame(index=["hg19_NKG7", "hg19_CD4"])
    >>> aligned = align_genes({"A": a, "B": b}, "inner")
    >>> aligned.names.tolist(), aligned.positions["B"].tolist()
    (['CD4', 'NKG7'], [1, 0])
    """
    labels = {data_set: _labels(frame, data_set) for data_set, frame in var.items()}
    kinds: list[_Kind] = ["symbol", "Ensembl id"]
    common = [kind for kind in kinds if all(kind in known for known in labels.values())]
    if not common:
        by_id, by_symbol = (next(d for d, known in labels.items() if k not in known) for k in kinds)
        raise DataError(
            f'the genes of "{by_symbol}" are known by symbol alone and those of "{by_id}" by Ensembl '
            f'id alone: add the ids of the former as var["gene_ids"] of its RNA'
        )
    shared = {kind: _intersection([known[kind] for known in labels.values()]) for kind in common}
    kind = max(common, key=lambda kind: len(shared[kind]))
    genes = {data_set: known[kind] for data_set, known in labels.items()}
    _require_overlap(genes, join)
    joined = shared[kind]
    if join == "outer":
        joined = pd.Index(pd.unique(np.concatenate([g.to_numpy(object) for g in genes.values()])))
    other = _first_known(labels, kind, "Ensembl id" if kind == "symbol" else "symbol", joined)
    if kind == "symbol":
        names, ids = joined, other
    else:
        ids = joined
        names = joined if other is None else other.where(other != "", joined)
        names = make_index_unique(names)
    return GeneAlignment(
        names, ids, {d: joined.get_indexer(g) for d, g in genes.items()}, kind, len(shared[kind])
    )


def _labels(var: pd.DataFrame, data_set: str) -> dict[_Kind, pd.Index]:
    """Return each gene's symbol and Ensembl id, as far as they are known and unique."""
    names = names_of(var.index)
    if not names.is_unique:
        repeated = names[names.duplicated()][0]
        raise DataError(
            f'data set "{data_set}" has several genes named "{repeated}": make the names unique with '
            "var_names_make_unique()"
        )
    names = _without_genome(names)
    ids = _ensembl(names)
    columns = [c for c in (_SYMBOL_COLUMNS if ids is not None else _ID_COLUMNS) if c in var]
    if ids is not None:
        labels: dict[_Kind, pd.Index] = {"Ensembl id": ids}
        if columns:
            symbols = pd.Index(var[columns[0]].astype(str).to_numpy(object))
            labels["symbol"] = make_index_unique(_without_genome(symbols))
        return labels
    labels = {"symbol": names}
    for column in columns:
        found = _ensembl(_without_genome(pd.Index(var[column].astype(str).to_numpy(object))))
        if found is not None:
            labels["Ensembl id"] = found
            break
    return labels


def _without_genome(names: pd.Index) -> pd.Index:
    """Leave out the genome before all names; where there are several genomes, nothing."""
    matches = [_GENOME.match(name) for name in names]
    genomes = {match[1] for match in matches if match is not None}
    if len(genomes) != 1 or None in matches:
        return names
    bare = pd.Index([name[m.end() :] for name, m in zip(names, matches, strict=True) if m])
    return bare if bare.is_unique or not names.is_unique else names


def _ensembl(names: pd.Index) -> pd.Index | None:
    """Return Ensembl ids without their versions; None where most names are none, or some repeat."""
    matches = [_ENSEMBL.fullmatch(name) for name in names]
    if sum(match is not None for match in matches) <= len(names) / 2:
        return None
    bare = pd.Index([m[1] if m else name for name, m in zip(names, matches, strict=True)])
    if bare.is_unique:
        return bare
    return names if names.is_unique else None


def _intersection(genes: list[pd.Index]) -> pd.Index:
    shared = genes[0]
    for more in genes[1:]:
        shared = shared[shared.isin(more)]
    return shared


def _require_overlap(genes: Mapping[str, pd.Index], join: Join) -> None:
    """Refuse data sets that share few genes: most likely the names are of different kinds."""
    (_, known), *others = genes.items()
    n_smaller = len(known)
    for data_set, more in others:
        n_smaller = min(n_smaller, len(more))
        n_shared = int(known.isin(more).sum())
        if n_shared < _LEAST_SHARED * n_smaller:
            raise DataError(
                f'"{data_set}" shares only {n_shared:,} of {n_smaller:,} genes with the data sets '
                f'before it (their first gene is "{known[0]}", its own "{more[0]}"): name genes alike '
                '(Ensembl ids in var["gene_ids"] will do), join before variable genes are selected, '
                "or, if the data sets do differ that much, keep only the shared genes beforehand"
            )
        if join == "inner":
            known = known[known.isin(more)]
        else:
            known = known.append(more[~more.isin(known)])
            n_smaller = len(known)


def _first_known(
    labels: Mapping[str, Mapping[_Kind, pd.Index]], kind: _Kind, other: _Kind, joined: pd.Index
) -> pd.Index | None:
    """Return what the genes are in the other kind, from the first data set that knows."""
    found: dict[str, str] = {}
    for known in labels.values():
        if other in known:
            for name, label in zip(known[kind], known[other], strict=True):
                found.setdefault(name, label)
    return pd.Index([found.get(name, "") for name in joined], dtype=object) if found else None


# Antigen -> genes. The first encodes it (or is the first of its chains); where that is seldom seen in
# 3' counts, a gene of the same lineage follows: CD79A for CD19, LYZ for CD14, and CD79A, MS4A1 for B
# cells. Antigens that are isoforms of CD45 or carbohydrates have no gene whose count tells them.
GENES_OF_ANTIGEN: dict[str, tuple[str, ...]] = {
    "CD1c": ("CD1C",),
    "CD2": ("CD2",),
    "CD3": ("CD3E", "CD3D", "CD3G"),
    "CD4": ("CD4",),
    "CD5": ("CD5",),
    "CD7": ("CD7",),
    "CD8a": ("CD8A",),
    "CD8b": ("CD8B",),
    "CD9": ("CD9",),
    "CD11b": ("ITGAM",),
    "CD11c": ("ITGAX",),
    "CD13": ("ANPEP",),
    "CD14": ("CD14", "LYZ"),
    "CD16": ("FCGR3A",),
    "CD19": ("CD19", "CD79A"),
    "CD20": ("MS4A1",),
    "CD21": ("CR2",),
    "CD22": ("CD22",),
    "CD23": ("FCER2",),
    "CD24": ("CD24",),
    "CD25": ("IL2RA",),
    "CD27": ("CD27",),
    "CD28": ("CD28",),
    "CD32": ("FCGR2A", "FCGR2B"),
    "CD33": ("CD33",),
    "CD34": ("CD34",),
    "CD36": ("CD36",),
    "CD38": ("CD38",),
    "CD39": ("ENTPD1",),
    "CD40": ("CD40",),
    "CD41": ("ITGA2B",),
    "CD42b": ("GP1BA",),
    "CD44": ("CD44",),
    "CD49d": ("ITGA4",),
    "CD49f": ("ITGA6",),
    "CD54": ("ICAM1",),
    "CD56": ("NCAM1",),
    "CD57": ("B3GAT1",),
    "CD61": ("ITGB3",),
    "CD62L": ("SELL",),
    "CD64": ("FCGR1A",),
    "CD69": ("CD69",),
    "CD71": ("TFRC",),
    "CD72": ("CD72",),
    "CD73": ("NT5E",),
    "CD79b": ("CD79B",),
    "CD81": ("CD81",),
    "CD83": ("CD83",),
    "CD86": ("CD86",),
    "CD93": ("CD93",),
    "CD94": ("KLRD1",),
    "CD95": ("FAS",),
    "CD101": ("CD101",),
    "CD103": ("ITGAE",),
    "CD115": ("CSF1R",),
    "CD117": ("KIT",),
    "CD122": ("IL2RB",),
    "CD123": ("IL3RA",),
    "CD127": ("IL7R",),
    "CD134": ("TNFRSF4",),
    "CD137": ("TNFRSF9",),
    "CD138": ("SDC1",),
    "CD141": ("THBD",),
    "CD152": ("CTLA4",),
    "CD161": ("KLRB1",),
    "CD163": ("CD163",),
    "CD172a": ("SIRPA",),
    "CD183": ("CXCR3",),
    "CD184": ("CXCR4",),
    "CD185": ("CXCR5",),
    "CD194": ("CCR4",),
    "CD195": ("CCR5",),
    "CD196": ("CCR6",),
    "CD197": ("CCR7",),
    "CD223": ("LAG3",),
    "CD226": ("CD226",),
    "CD235a": ("GYPA",),
    "CD244": ("CD244",),
    "CD268": ("TNFRSF13C",),
    "CD272": ("BTLA",),
    "CD274": ("CD274",),
    "CD278": ("ICOS",),
    "CD279": ("PDCD1",),
    "CD303": ("CLEC4C",),
    "CD304": ("NRP1",),
    "CD314": ("KLRK1",),
    "CD319": ("SLAMF7",),
    "CD335": ("NCR1",),
    "CD366": ("HAVCR2",),
    "CX3CR1": ("CX3CR1",),
    "FceRIa": ("FCER1A",),
    "HLA-DR": ("HLA-DRA",),
    "IgD": ("IGHD",),
    "IgM": ("IGHM",),
    "KLRG1": ("KLRG1",),
    "TCRb": ("TRBC1", "TRBC2"),
    "TIGIT": ("TIGIT",),
}
_GENOME_PREFIX = re.compile(r"^(?:hg|mm|GRC[hm])\d+_+")


def matched_pairs(protein_names: Sequence[str], gene_names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (protein, gene) for each protein whose target a gene is known to go with.

    Parameters
    ----------
    protein_names
        Names of antibodies, under any of their names; see `totalvi.harmonise_antibodies`.
    gene_names
        Gene symbols, with or without a genome (``hg19_CD4``).

    Returns
    -------
    In the order of the proteins, all genes of each that are among ``gene_names``, from
    `GENES_OF_ANTIGEN`.

    Examples
    --------
    >>> matched_pairs(["CD8a_TotalSeqB", "CD14 (M5E2)", "IgG1"], ["LYZ", "CD14", "CD8A"])
    [('CD8a_TotalSeqB', 'CD8A'), ('CD14 (M5E2)', 'CD14'), ('CD14 (M5E2)', 'LYZ')]
    """
    genes: dict[str, str] = {}
    for name in gene_names:
        genes.setdefault(_GENOME_PREFIX.sub("", name).upper(), name)
    return [
        (protein, genes[gene])
        for protein in protein_names
        for gene in _GENES_OF_TARGET.get(identify(protein).key, ())
        if gene in genes
    ]


_GENES_OF_TARGET = {spelling_key(antigen): genes for antigen, genes in GENES_OF_ANTIGEN.items()}
