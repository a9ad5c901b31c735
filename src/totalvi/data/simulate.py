"""Simulate CITE-seq counts from the model's own generative process, the truth stored beside."""

from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.simulate_parameters import N_PROGRAMS, Parameters, draw_parameters
from totalvi.errors import DataError

_CELLS_AT_A_TIME = 1000
_MOST = 10**9  # of cells, genes, ...


class _Cells(NamedTuple):
    """What is true of each cell."""

    cell_type: np.ndarray  # (N,)
    batch: np.ndarray  # (N,)
    programs: np.ndarray  # (N, P)
    library_size: np.ndarray  # (N,)


def simulate(
    n_cells: int = 2000,
    n_genes: int = 500,
    n_proteins: int = 20,
    n_batches: int = 1,
    n_cell_types: int = 6,
    *,
    n_isotype_controls: int | None = None,
    n_unmeasured: int = 0,
    n_ubiquitous: int = 0,
    median_foreground_factor: float = 30.0,
    median_library_size: float | None = None,
    batch_effect: float = 0.2,
    store_truth: bool = True,
    seed: int = 0,
) -> MuData:
    """Simulate paired RNA and protein counts with known truth.

    RNA: ``x ~ NB(l rho, r)`` with proportions ``rho`` the softmax of a heavy-tailed baseline,
    marker genes of the cell type, three programs that vary within cell types, and the batch;
    ``log l`` is normal by batch. Proteins: ``y ~ NB(beta, r)`` or, from the foreground,
    ``NB(beta alpha, r)``, with ``log beta`` normal by protein and batch. ``NB(m, r)`` has variance
    ``m + m^2 / r``. Every third cell type is a close relative of the one before it: it shares most
    of its markers. Background and foreground levels, and the share of zeros among the RNA counts
    (86 to 89 % at 500 to 4000 genes), are near those of 10x Genomics' 10k PBMC data.

    Parameters
    ----------
    n_cells, n_genes, n_proteins, n_batches, n_cell_types
        Sizes; the proteins include the isotype controls.
    n_isotype_controls
        Proteins without foreground, ``prot.var["control"]``; by default one in ten, at most two.
    n_unmeasured
        Proteins, drawn at random, that the last batch did not measure: NaN there.
    n_ubiquitous
        Proteins that every cell type carries, as CD44 and CD45 are on blood cells: only 0 to 8 % of
        the cells show their background. They are the last before the isotype controls.
    median_foreground_factor
        Foreground over background mean of the median protein, 3 or more; the least of all is half of
        it, at most 5.
    median_library_size
        Of the RNA counts of a cell; by default 0.3 per gene, at least 100.
    batch_effect
        Standard deviation between batches of log gene expression; that of the log protein
        background is 1.5 times as large.
    store_truth
        Keep the true RNA proportions, a dense layer as large as cells times genes.
    seed
        The same seed and arguments give the same counts.

    Returns
    -------
    MuData
        ``rna`` (CSR) and ``prot`` (dense), both float32. Truth: ``obs["cell_type"]``,
        ``obs["batch"]``, ``obs["library_size"]``, ``obsm["programs"]``;
        ``rna.layers["denoised"]`` (proportions ``rho``), ``rna.var["marker_of"]``,
        ``rna.var["inverse_dispersion"]``; ``prot.layers["foreground"]`` (1 where the count is from
        the foreground), ``prot.layers["background_mean"]``, ``prot.layers["denoised"]``
        (foreground mean, or 0), ``prot.layers["complete"]`` (counts before some became NaN; only
        with ``n_unmeasured``), ``prot.var["inverse_dispersion"]``, and in ``prot.varm`` per cell
        type ``foreground_factor`` and ``foreground_probability`` and per batch
        ``log_background_mean``. ``uns["simulation"]`` holds the arguments.

    Raises
    ------
    DataError
        If an argument is out of range.

    Examples
    --------
    >>> mdata = simulate(n_cells=300, n_genes=200, n_proteins=10, n_batches=2, seed=1)
    >>> mdata["rna"].shape, mdata["prot"].shape, mdata.obs["batch"].cat.categories.tolist()
    ((300, 200), (300, 10), ['batch_0', 'batch_1'])
    >>> truth = mdata["prot"].layers["foreground"].astype(bool)
    >>> counts = mdata["prot"].X
    >>> bool(counts[truth].mean() > 10 * counts[~truth].mean())
    True
    """
    arguments, rng, parameters = _begin(
        n_cells, n_genes, n_proteins, n_batches, n_cell_types, n_isotype_controls, n_unmeasured,
        n_ubiquitous, median_foreground_factor, median_library_size, batch_effect, seed,
    )  # fmt: skip
    cells = _draw_cells(rng, parameters, n_cells)
    prot = _draw_protein(rng, parameters, cells)
    if n_unmeasured:
        measured_by_all = np.flatnonzero(~parameters.is_control)
        unmeasured = rng.choice(measured_by_all, n_unmeasured, replace=False)
        prot.layers["complete"] = prot.X.copy()
        prot.X[np.ix_(cells.batch == n_batches - 1, unmeasured)] = np.nan
    rna = _draw_rna(rng, parameters, cells, store_truth)
    return _assemble(rna, prot, cells, parameters, arguments)


def simulate_to_zarr(
    path: str | Path,
    n_cells: int,
    n_genes: int = 500,
    n_proteins: int = 20,
    n_batches: int = 1,
    n_cell_types: int = 6,
    *,
    n_isotype_controls: int | None = None,
    n_ubiquitous: int = 0,
    median_foreground_factor: float = 30.0,
    median_library_size: float | None = None,
    batch_effect: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Simulate counts as `simulate` does, straight to a new zarr store: any number of cells.

    The cells come some at a time, each part with a generator of its own, so that counts are not those
    that `simulate` gives with the same seed. Of the truth, ``obs["cell_type"]``, ``obs["batch"]`` and
    ``obs["library_size"]`` are stored.

    Parameters
    ----------
    path
        Folder of the store, which must not exist.
    n_cells, n_genes, n_proteins, n_batches, n_cell_types, n_isotype_controls, n_ubiquitous
        As in `simulate`.
    median_foreground_factor, median_library_size, batch_effect, seed
        As in `simulate`.
    overwrite
        Whether to replace a store that is there.

    Raises
    ------
    DataError
        If an argument is out of range.
    OutputError
        If ``path`` exists.

    Examples
    --------
    >>> import tempfile, totalvi
    >>> path = Path(tempfile.mkdtemp()) / "cells.zarr"
    >>> simulate_to_zarr(path, n_cells=300, n_genes=50, n_proteins=5)
    >>> totalvi.read(path)["rna"].shape
    (300, 50)
    """
    from totalvi.data.io.write_zarr import CountStore, new_store

    _, rng, parameters = _begin(
        n_cells, n_genes, n_proteins, n_batches, n_cell_types, n_isotype_controls, 0,
        n_ubiquitous, median_foreground_factor, median_library_size, batch_effect, seed,
    )  # fmt: skip
    cells = _draw_cells(rng, parameters, n_cells)._replace(programs=np.empty((0, N_PROGRAMS)))
    obs = _annotation(cells, parameters).set_axis(_cell_names(n_cells), axis=0)
    first = _some_cells(cells, slice(0, 1), rng)  # for the features
    rna_var = _draw_rna(rng, parameters, first, store_truth=False).var
    protein_var = _draw_protein(rng, parameters, first).var
    with (
        new_store(path, overwrite=overwrite) as staged,
        CountStore(staged, obs, rna_var, protein_var, np.int32) as store,
    ):
        for start in range(0, n_cells, _CELLS_AT_A_TIME):
            part = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(start,)))
            some = _some_cells(cells, slice(start, start + _CELLS_AT_A_TIME), part)
            protein = _draw_protein(part, parameters, some).X
            store.append(_draw_rna(part, parameters, some, store_truth=False).X, protein)


def _some_cells(cells: _Cells, rows: slice, rng: np.random.Generator) -> _Cells:
    """Return some of the cells, with programs drawn for them."""
    batch = cells.batch[rows]
    programs = rng.normal(size=(len(batch), N_PROGRAMS)).astype(np.float32)
    return _Cells(cells.cell_type[rows], batch, programs, cells.library_size[rows])


def _begin(
    n_cells: int,
    n_genes: int,
    n_proteins: int,
    n_batches: int,
    n_cell_types: int,
    n_isotype_controls: int | None,
    n_unmeasured: int,
    n_ubiquitous: int,
    median_foreground_factor: float,
    median_library_size: float | None,
    batch_effect: float,
    seed: int,
) -> tuple[dict[str, float], np.random.Generator, Parameters]:
    """Fill in and check the arguments; draw what is true of all cells."""
    if n_isotype_controls is None:
        n_isotype_controls = min(2, n_proteins // 10)
    if median_library_size is None:
        median_library_size = max(0.3 * n_genes, 100.0)
    arguments = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_proteins": n_proteins,
        "n_batches": n_batches,
        "n_cell_types": n_cell_types,
        "n_isotype_controls": n_isotype_controls,
        "n_unmeasured": n_unmeasured,
        "n_ubiquitous": n_ubiquitous,
        "median_foreground_factor": median_foreground_factor,
        "median_library_size": median_library_size,
        "batch_effect": batch_effect,
        "seed": seed,
    }
    _require_valid(arguments)
    rng = np.random.default_rng(seed)
    parameters = draw_parameters(
        rng,
        n_genes=n_genes,
        n_proteins=n_proteins,
        n_batches=n_batches,
        n_cell_types=n_cell_types,
        n_isotype_controls=n_isotype_controls,
        median_library_size=median_library_size,
        batch_effect=batch_effect,
        n_ubiquitous=n_ubiquitous,
        median_foreground_factor=median_foreground_factor,
    )
    return arguments, rng, parameters


def _require_valid(arguments: dict[str, float]) -> None:
    for name, value in arguments.items():
        is_size = name in {"n_cells", "n_genes", "n_proteins", "n_batches", "n_cell_types"}
        if is_size and not 1 <= value <= _MOST:
            raise DataError(f"{name}={value} is out of range: give 1 to {_MOST}")
        if not 0 <= value < np.inf:
            raise DataError(f"{name}={value} is out of range: give 0 or more")
    n_real = int(arguments["n_proteins"] - arguments["n_isotype_controls"])
    if n_real < 1:
        raise DataError(
            f"n_isotype_controls={arguments['n_isotype_controls']} leaves no other of the "
            f"n_proteins={arguments['n_proteins']} proteins: give fewer"
        )
    n_unmeasured = arguments["n_unmeasured"]
    if n_unmeasured and arguments["n_batches"] < 2:
        raise DataError(
            f"n_unmeasured={n_unmeasured} needs a second batch: give n_batches=2 or more"
        )
    for name in ("n_unmeasured", "n_ubiquitous"):
        if arguments[name] > n_real:
            raise DataError(f"{name}={arguments[name]} is out of range: give at most {n_real}")
    factor = arguments["median_foreground_factor"]
    if factor < 3:
        raise DataError(f"median_foreground_factor={factor} is out of range: give 3 or more")
    if arguments["median_library_size"] == 0:
        raise DataError("median_library_size=0 is out of range: give a positive number")


def _draw_cells(rng: np.random.Generator, parameters: Parameters, n_cells: int) -> _Cells:
    n_batches, n_types = len(parameters.log_library_mean), len(parameters.type_proportions)
    batch = rng.permutation(np.arange(n_cells) % n_batches)
    log_size = rng.normal(parameters.log_library_mean[batch], parameters.log_library_sd[batch])
    return _Cells(
        cell_type=rng.choice(n_types, n_cells, p=parameters.type_proportions),
        batch=batch,
        programs=rng.normal(size=(n_cells, N_PROGRAMS)).astype(np.float32),
        library_size=np.exp(log_size),
    )


def negative_binomial(
    rng: np.random.Generator, mean: np.ndarray, inverse_dispersion: np.ndarray
) -> np.ndarray:
    """Draw counts of variance ``mean + mean^2 / inverse_dispersion``, as a gamma-Poisson mixture.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts = negative_binomial(rng, np.full(100_000, 6.0), np.array(2.0))
    >>> round(float(counts.mean()), 1), round(float(counts.var()))
    (6.0, 24)
    """
    rate = rng.standard_gamma(np.broadcast_to(inverse_dispersion, mean.shape))
    return rng.poisson(rate * (mean / inverse_dispersion))


def _draw_protein(rng: np.random.Generator, p: Parameters, cells: _Cells) -> AnnData:
    background_log_mean = p.log_background_mean[cells.batch]
    background = np.exp(rng.normal(background_log_mean, p.log_background_sd))
    factor = p.foreground_factor[cells.cell_type] - 1
    factor = 1 + factor * np.exp(cells.programs @ p.protein_programs)  # alpha > 1 in every cell
    foreground = rng.random(background.shape) < p.foreground_probability[cells.cell_type]
    mean = np.where(foreground, background * factor, background)
    counts = negative_binomial(rng, mean, p.protein_inverse_dispersion)
    n_controls = int(p.is_control.sum())
    names = [f"protein_{t}" for t in range(len(p.is_control) - n_controls)]
    names += [f"isotype_{t}" for t in range(n_controls)]
    var = pd.DataFrame(
        {"control": p.is_control, "inverse_dispersion": p.protein_inverse_dispersion}, index=names
    )
    var["log_background_sd"] = p.log_background_sd
    return AnnData(
        counts.astype(np.float32),
        var=var,
        varm={
            "foreground_factor": p.foreground_factor.T,
            "foreground_probability": p.foreground_probability.T,
            "log_background_mean": p.log_background_mean.T,
        },
        layers={
            "foreground": foreground.astype(np.uint8),
            "background_mean": background.astype(np.float32),
            "denoised": np.where(foreground, mean, 0.0).astype(np.float32),
        },
    )


def _draw_rna(rng: np.random.Generator, p: Parameters, cells: _Cells, store_truth: bool) -> AnnData:
    """Draw the RNA counts, some cells at a time so that only sparse counts add up in memory."""
    log_expression = p.log_expression.astype(np.float32)
    gene_programs = p.gene_programs.astype(np.float32)
    log_batch_effect = p.log_batch_effect.astype(np.float32)
    n_cells = len(cells.batch)
    blocks, proportions = [], []
    for start in range(0, n_cells, _CELLS_AT_A_TIME):
        some = slice(start, start + _CELLS_AT_A_TIME)
        logits = log_expression[cells.cell_type[some]] + log_batch_effect[cells.batch[some]]
        logits += cells.programs[some] @ gene_programs
        rho = np.exp(logits - logits.max(axis=1, keepdims=True))
        rho /= rho.sum(axis=1, keepdims=True)
        mean = cells.library_size[some, None] * rho
        counts = negative_binomial(rng, mean, p.gene_inverse_dispersion)
        blocks.append(sparse.csr_matrix(counts.astype(np.float32)))
        if store_truth:
            proportions.append(rho)
    types = np.array([f"type_{k}" for k in range(len(p.type_proportions))])
    var = pd.DataFrame(
        {
            "marker_of": [", ".join(types[of]) for of in p.marker_of.T],
            "inverse_dispersion": p.gene_inverse_dispersion,
        },
        index=[f"gene_{g}" for g in range(len(p.gene_inverse_dispersion))],
    )
    layers = {"denoised": np.concatenate(proportions)} if store_truth else {}
    return AnnData(sparse.vstack(blocks, format="csr"), var=var, layers=layers)


def _assemble(
    rna: AnnData, prot: AnnData, cells: _Cells, p: Parameters, arguments: dict[str, float]
) -> MuData:
    rna.obs_names = prot.obs_names = _cell_names(len(cells.batch))
    with mudata.set_options(pull_on_update=False):
        mdata = MuData({"rna": rna, "prot": prot})
    for column, values in _annotation(cells, p).items():
        mdata.obs[column] = values.array
    mdata.obsm["programs"] = cells.programs
    mdata.uns["simulation"] = arguments
    return mdata


def _cell_names(n_cells: int) -> list[str]:
    return [f"cell_{i}" for i in range(n_cells)]


def _annotation(cells: _Cells, p: Parameters) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for column, codes, n in (
        ("cell_type", cells.cell_type, len(p.type_proportions)),
        ("batch", cells.batch, len(p.log_library_mean)),
    ):
        word = column.removeprefix("cell_")
        columns[column] = pd.Categorical.from_codes(
            codes.astype(np.intp), pd.Index([f"{word}_{i}" for i in range(n)])
        )
    return pd.DataFrame(columns | {"library_size": cells.library_size})
