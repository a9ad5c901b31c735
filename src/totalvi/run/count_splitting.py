"""Split the counts into two halves: clusters are found in one, and tested on the other.

Clusters that were found in counts differ in these counts, even where they cut one population of cells.
Counts that took no part in finding them have no such difference. Source: Neufeld, Popp, Gao, Battle
and Witten, "Negative binomial count splitting for single-cell RNA sequencing data", 2023.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.sparse.linalg import svds

from totalvi.data.background.ambient import AMBIENT
from totalvi.data.background.isotype_controls import ISOTYPE_MODALITY
from totalvi.data.checks import check_counts, raise_errors
from totalvi.data.columns import Columns
from totalvi.data.counts import evenly_spaced
from totalvi.data.find import CountSource, find_counts
from totalvi.data.io.modalities import mudata_of
from totalvi.errors import DataError, Finding
from totalvi.mapping.reference_neighbours import nearest_to_each
from totalvi.run.convert import feature_annotation
from totalvi.run.prepare import Prepared, keep_the_rest, prepare

HELD_OUT = "held_out"  # layer with the other half of the counts
SPLIT = (
    "the model was fitted and the clusters found in one half of the counts; markers and differential "
    "expression are tested on the other."
)
_ANY_MODEL_SAYS = {"cell_without_rna", "protein_partly_unmeasured"}  # and whole or half is the same
_CELLS_FOR_NOISE = 3000  # that the noise is estimated in
_GENES_FOR_COMPONENTS = 2000  # those of most counts; of all others as many at a time
_MOST_COMPONENTS = 50
_LARGE_SHARE = 0.05  # of all counts
_LEAST_OF_EXPECTED = 0.05  # what components leave of a mean, at least
_LEAST_NOISE = 1e-3  # of 1 / r


class Halves(NamedTuple):
    """Two objects with the same cells and features, and counts that add up to those of the data."""

    fitted: MuData
    held_out: MuData


def split_counts(
    data: MuData | AnnData,
    *,
    seed: int = 0,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
    rna_layer: str | None = None,
    protein_layer: str | None = None,
    protein_expression_obsm_key: str | None = None,
) -> Halves:
    """Split raw counts into two independent halves, to cluster by one and to test on the other.

    A negative binomial count x with inverse dispersion r is split into x' and x - x', where x' is
    binomial of x with a probability drawn from Beta(r / 2, r / 2). Given the cell's mean, the halves
    are independent, each NB with half the mean and r / 2. Binomial halves would share the noise of the
    cell that r stands for, and clusters found in one half would differ in the other by it.

    r is estimated for each feature from what the leading components of all features leave over: it is
    the variation that features do not share. The halves are as independent as r is right.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts, which are not changed.
    seed
        The same seed and counts give the same halves.
    rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
        Places of the counts; see :class:`totalvi.Model`.

    Returns
    -------
    ``fitted`` and ``held_out``: two MuData with the modalities ``rna`` and ``prot``, float32. NaN, for
    unmeasured proteins, stays in both.

    Raises
    ------
    DataError
        When the counts cannot be used, or have fractions.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=80, n_genes=30, n_proteins=5, n_cell_types=2, seed=1)
    >>> fitted, held_out = totalvi.split_counts(mdata, seed=1)
    >>> bool((fitted["prot"].X + held_out["prot"].X == mdata["prot"].X).all())
    True
    >>> model = totalvi.Model(fitted, n_hidden=16, n_latent=4)
    >>> model.train(max_epochs=2)
    >>> latent = model.get_latent_representation()[:, 0]
    >>> held_out.obs["cluster"] = (latent > np.median(latent)).astype(str)  # or leiden
    >>> table = model.differential_expression(held_out, groupby="cluster")
    """
    keys = Columns(
        rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
    )
    return halves(data, keys, seed)


def halves(data: MuData | AnnData, keys: Columns, seed: int) -> Halves:
    """Do what `split_counts` does, where the counts are in the places of ``keys``."""
    source = find_counts(data, keys)
    findings = check_counts(source, keys)
    raise_errors([finding for finding in findings if finding.code not in _ANY_MODEL_SAYS])
    rna, protein = source.rna.read(), source.protein.read()
    for counts, where in ((rna.data, source.rna_where), (protein, source.protein_where)):
        if (np.nan_to_num(counts) % 1 != 0).any():
            raise DataError(
                f"{where} has fractions, which cannot be split into halves; give whole counts."
            )
    noise = inverse_dispersions(rna, protein)
    rng = np.random.default_rng((seed, 1))
    first_rna = rna.astype(np.float32)
    first_rna.data = _thinned(rng, first_rna.data, noise.rna[first_rna.indices])
    first_protein = _thinned(rng, protein, noise.protein)
    controls = None
    if isinstance(data, MuData) and ISOTYPE_MODALITY in data.mod:
        whole = np.asarray(data[ISOTYPE_MODALITY].to_df(), dtype=np.float32)
        part = _thinned(rng, whole, np.median(noise.protein))
        controls = (part, whole - part)
    second_rna = (rna.astype(np.float32) - first_rna).tocsr()
    pairs = ((first_rna, first_protein), (second_rna, protein - first_protein))
    made = []
    for number, (of_rna, of_protein) in enumerate(pairs):
        of_rna.eliminate_zeros()
        own = None if controls is None else controls[number]
        made.append(_with_counts(data, source, keys, of_rna, of_protein, own))
    return Halves(*made)


def _thinned(rng: np.random.Generator, counts: np.ndarray, r: np.ndarray | float) -> np.ndarray:
    """Return half of each count, beta-binomial with inverse dispersion r; NaN stays."""
    known = ~np.isnan(counts)
    half = np.broadcast_to(r, counts.shape)[known] / 2
    thinned = np.full(counts.shape, np.nan, dtype=np.float32)
    thinned[known] = rng.binomial(counts[known].astype(np.int64), rng.beta(half, half))
    return thinned


def _with_counts(
    data: MuData | AnnData,
    source: CountSource,
    keys: Columns,
    rna: sparse.csr_matrix,
    protein: np.ndarray,
    controls: np.ndarray | None,
) -> MuData:
    """Return the data with other counts, in the usual places."""
    cells = pd.DataFrame(index=source.cell_names)
    rna_var, protein_var = feature_annotation(source, data, keys)
    others = {}
    if isinstance(data, MuData):
        used = (keys.rna_modality, keys.protein_modality)
        others = {name: part.copy() for name, part in data.mod.items() if name not in used}
    if controls is not None:
        others[ISOTYPE_MODALITY].X = controls
    modalities = {
        "rna": AnnData(rna, obs=cells, var=rna_var),
        "prot": AnnData(protein, obs=cells, var=protein_var),
    }
    made = mudata_of({**others, **modalities}, pd.DataFrame(source.obs, index=source.cell_names))
    keep_the_rest(made, data, keys, np.ones(len(cells), dtype=bool), None)
    if AMBIENT in data.uns:
        made.uns[AMBIENT] = data.uns[AMBIENT]
    return made


class InverseDispersions(NamedTuple):
    """r of each gene and of each protein."""

    rna: np.ndarray
    protein: np.ndarray


def inverse_dispersions(rna: sparse.csr_matrix, protein: np.ndarray) -> InverseDispersions:
    """Estimate r of each feature within a cell's state, from what leading components leave over.

    Components are of the genes' Pearson residuals and the log proteins, each scaled to variance 1;
    those count whose singular value is above the largest of noise (Marchenko and Pastur, 1967), shrunk
    by it. Of a gene, 1 / r is a moment of the squares left over, shrunk towards that of all genes. Of a
    protein, it is half the squared median distance of a cell's log count from that of the cell nearest
    in the components, less what Poisson noise adds: stained and unstained cells are seldom
    neighbours, and do not count where they are.

    Parameters
    ----------
    rna, protein
        Counts (cells, features); NaN in ``protein`` is unmeasured.
    """
    cells = evenly_spaced(np.arange(rna.shape[0]), _CELLS_FOR_NOISE)
    x = rna[cells].tocsc().astype(np.float32)
    total = np.asarray(x.sum(axis=0)).ravel()
    usual = total < _LARGE_SHARE * total.sum()
    if total[usual].sum() < total.sum() / 10:
        usual[:] = True
    # of a total with it, a gene of a large share would seem steady
    size = np.asarray(x[:, np.flatnonzero(usual)].sum(axis=1)).ravel()
    share = total / max(size.sum(), 1)
    logs = np.log1p(protein[cells])
    centre = np.nanmean(logs, axis=0)
    proteins = np.nan_to_num(logs - centre)
    leading = np.argsort(-total, kind="stable")[:_GENES_FOR_COMPONENTS]
    genes = _pearson(x[:, leading], np.outer(size, share[leading]))
    components = _components(np.hstack([genes, proteins]))
    moments = np.empty((3, len(total)))
    for block in np.array_split(np.arange(len(total)), -(-len(total) // _GENES_FOR_COMPONENTS)):
        moments[:, block] = _left_over(x[:, block], np.outer(size, share[block]), components)
    excess, square, variance = moments
    weight = np.divide(square, variance, out=np.zeros_like(square), where=variance > 0)
    common = float((weight * excess).sum() / max((weight * square).sum(), _LEAST_NOISE))
    common = max(common, _LEAST_NOISE)
    of_gene = (weight * excess + 1 / common) / (weight * square + 1 / common**2)
    other = logs[components.neighbours()]
    of_protein = (1.4826 * np.nanmedian(np.abs(logs - other), axis=0)) ** 2 / 2
    of_protein -= np.nanmedian(np.exp(-(logs + other) / 2), axis=0)  # of Poisson noise
    return InverseDispersions(
        1 / np.maximum(of_gene, _LEAST_NOISE), 1 / np.maximum(of_protein, _LEAST_NOISE)
    )


class _Components(NamedTuple):
    left: np.ndarray  # orthonormal, (cells, components)
    size: np.ndarray  # singular values
    kept: np.ndarray  # what shrinking leaves of each

    def neighbours(self) -> np.ndarray:
        """Return for each cell the one that is nearest to it, or any where no component tells."""
        if not len(self.size):
            return np.roll(np.arange(len(self.left)), 1)
        return nearest_to_each((self.left * self.size).astype(np.float32), 2).points[:, 1]

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return what the components say of values (cells, features)."""
        said: np.ndarray = (self.left * self.kept) @ (self.left.T @ values)
        return said


def _components(values: np.ndarray) -> _Components:
    scale = values.std(axis=0)
    scaled = values / np.where(scale > 0, scale, 1)
    n_most = min(_MOST_COMPONENTS, min(values.shape) - 1)
    start = np.random.default_rng(0).normal(size=min(values.shape))
    left, size, _ = svds(scaled, k=n_most, v0=start)
    edge = np.sqrt(values.shape).sum()
    signal = size > 1.02 * edge
    return _Components(left[:, signal], size[signal], 1 - (edge / size[signal]) ** 2)


def _pearson(x: sparse.csc_matrix, expected: np.ndarray) -> np.ndarray:
    """Return Pearson residuals of Poisson counts, which no outlier rules."""
    largest = np.sqrt(len(expected))
    residuals = (x.toarray() - expected) / np.sqrt(np.maximum(expected, 1e-9))
    clipped: np.ndarray = np.clip(residuals, -largest, largest)
    return clipped


def _left_over(
    x: sparse.csc_matrix, expected: np.ndarray, components: _Components
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sums over cells: (x - mean)^2 - mean; mean^2; and about the variance of the first."""
    mean = expected + components.of(_pearson(x, expected)) * np.sqrt(expected)
    mean = np.maximum(mean, _LEAST_OF_EXPECTED * expected)
    n_cells, n_components = components.left.shape
    left = ((x.toarray() - mean) ** 2).sum(axis=0) * n_cells / max(n_cells - n_components, 1)
    square = (mean**2).sum(axis=0)
    total = mean.sum(axis=0)
    return left - total, square, total + 2 * square


def prepare_halves(data: MuData | AnnData, keys: Columns, seed: int, **choice: Any) -> Prepared:
    """Prepare one half of the counts as `prepare` does, and add the other in layers "held_out".

    ``choice`` has the further arguments of `prepare`, which sees nothing of the other half.
    """
    first, second = halves(data, keys, seed)
    where = replace(
        keys,
        rna_modality="rna",
        protein_modality="prot",
        rna_layer=None,
        protein_layer=None,
        protein_expression_obsm_key=None,
        protein_names_uns_key=None,
    )
    prepared, findings = prepare(first, where, **choice)
    for name in ("rna", "prot"):
        part, other = prepared[name], second[name]
        rows = other.obs_names.get_indexer(part.obs_names)
        columns = other.var_names.get_indexer(part.var_names)
        part.layers[HELD_OUT] = other.X[rows][:, columns]
    return Prepared(prepared, [*findings, Finding("note", "counts_split", SPLIT)])


def held_out_counts(data: MuData, cells: np.ndarray) -> MuData:
    """Return some cells with the half of their counts that is held out."""
    parts = {
        name: AnnData(
            data[name].layers[HELD_OUT][cells], obs=data[name].obs.iloc[cells], var=data[name].var
        )
        for name in ("rna", "prot")
    }
    return mudata_of(parts, data.obs.iloc[cells].copy())


def with_rna(data: MuData) -> MuData:
    """Return the cells that have RNA counts; a model takes no others."""
    some = np.asarray(data["rna"].X.sum(axis=1)).ravel() > 0
    if some.all():
        return data
    parts = {name: part[some].copy() for name, part in data.mod.items()}
    return mudata_of(parts, data.obs[some].copy())
