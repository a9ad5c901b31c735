"""Files with the genes of several genomes: pick one, or join all under unique names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from totalvi.data.features import modalities_of
from totalvi.data.finding import did_you_mean
from totalvi.errors import ReadError

Part = TypeVar("Part")


def pick_genomes(parts: Mapping[str, Part], genome: str | None, path: Path) -> Mapping[str, Part]:
    """Return the one part named, or all of them."""
    if not parts:
        raise ReadError(f"{path} holds no count matrix: give a file that Cell Ranger wrote")
    if genome is None:
        return parts
    if genome not in parts:
        raise _no_such_genome(genome, list(parts), path)
    return {genome: parts[genome]}


def _no_such_genome(genome: str, known: list[str], path: Path) -> ReadError:
    hint = did_you_mean(genome, known)
    return ReadError(f'no genome "{genome}" in {path}: give another as genome ({hint})')


def join_genomes(parts: Mapping[str, AnnData], path: Path) -> AnnData:
    """Put the genes of all genomes side by side.

    Cell Ranger 2 lists for each genome only the cells called in it. The result has every cell
    of any genome, in order of first appearance, with no counts where a genome does not list it.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    for name, part in parts.items():
        if not part.obs_names.is_unique:
            repeated = part.obs_names[part.obs_names.duplicated()][0]
            raise ReadError(
                f'{path} lists the barcode "{repeated}" twice for the genome "{name}", so that its '
                "genomes cannot be joined: read one of them by genome="
            )
    cells = pd.Index(
        pd.unique(np.concatenate([part.obs_names.to_numpy(object) for part in parts.values()])),
        dtype=object,
    )
    blocks = []
    for part in parts.values():
        rows = cells.get_indexer(part.obs_names)
        entries = (np.ones(len(rows), np.float32), (rows, np.arange(len(rows))))
        blocks.append(sparse.csr_matrix(entries, shape=(len(cells), len(rows))) @ part.X)
    counts = sparse.csr_matrix(sparse.hstack(blocks, format="csr", dtype=np.float32))
    var = pd.concat([part.var for part in parts.values()])
    return AnnData(counts, obs=pd.DataFrame(index=cells), var=var)


def prefix_shared_names(adata: AnnData) -> AnnData:
    """Prefix gene names found in more than one genome by their genome, as in ``mm10_ACTB``."""
    if "genome" not in adata.var or adata.var["genome"].nunique() < 2:
        return adata
    var = adata.var
    is_gene = modalities_of(var) == "rna"
    names, genomes = var.index.to_series().astype(object), var["genome"]
    n_genomes = genomes[is_gene].groupby(names.index[is_gene]).nunique()
    shared = is_gene & names.isin(n_genomes.index[n_genomes > 1]).to_numpy()
    prefixed = genomes.astype(str).to_numpy(object) + "_" + names.to_numpy(object)
    adata.var_names = pd.Index(np.where(shared, prefixed, names.to_numpy(object)), dtype=object)
    return adata


def keep_genome(adata: AnnData, genome: str | None, path: Path) -> AnnData:
    """Keep the genes of one genome and all features that are not genes.

    The genome of a gene is its ``var["genome"]``; in a file without this column it is the
    prefix of its name, as in ``hg19_CD3E``.
    """
    if genome is None:
        return adata
    is_gene = modalities_of(adata.var) == "rna"
    if "genome" in adata.var:
        genomes = adata.var["genome"].astype(str)
        chosen = is_gene & (genomes == genome).to_numpy()
        if not chosen.any():
            raise _no_such_genome(genome, sorted(set(genomes[is_gene])), path)
    else:
        chosen = is_gene & adata.var_names.str.startswith(f"{genome}_")
        if not chosen.any():
            raise ReadError(
                f"{path} names no genome, and no gene name in it begins with "
                f'"{genome}_": leave out genome'
            )
    return adata if (chosen | ~is_gene).all() else adata[:, chosen | ~is_gene].copy()
