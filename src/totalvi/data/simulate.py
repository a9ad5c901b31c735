"""Simulate CITE-seq counts and the raw matrix that contains them, with the truth."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.io.write_zarr import CountStore, new_store
from totalvi.data.simulate_draws import (
    CELLS_AT_A_TIME,
    N_PROGRAMS,
    Arguments,
    Cells,
    Parameters,
    ambient_protein,
    ambient_rna,
    annotation,
    blank_protein,
    cell_names,
    debris_rna,
    draw_cells,
    draw_parameters,
    draw_protein,
    draw_rna,
    some_cells,
    spread_of_proteins,
)
from totalvi.errors import DataError, argument, setting

_MOST = 10**9  # numbers of cells, genes, ...


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
        Numbers of each; the proteins include the isotype controls.
    n_isotype_controls
        Number of proteins without foreground, ``prot.var["control"]``; by default one in ten, at
        most two.
    n_unmeasured
        Number of random proteins that the last batch did not measure: NaN there.
    n_ubiquitous
        Number of proteins that every cell type carries, like CD44 and CD45 on blood cells: only 0 to
        8 % of the cells show their background. They are the last before the isotype controls.
    median_foreground_factor
        Foreground mean divided by background mean of the median protein, 3 or more. The smallest of
        these factors is half of it, at most 5.
    median_library_size
        Median RNA count of a cell; by default 0.3 per gene, at least 100.
    batch_effect
        Standard deviation between batches of log gene expression; that of the log protein
        background is 1.5 times as large.
    store_truth
        Whether to keep the true RNA proportions, a dense layer as large as cells times genes.
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
    arguments = _arguments(
        n_cells, n_genes, n_proteins, n_batches, n_cell_types, n_isotype_controls, n_unmeasured,
        n_ubiquitous, median_foreground_factor, median_library_size, batch_effect, seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    parameters = draw_parameters(rng, arguments)
    cells = draw_cells(rng, parameters, n_cells)
    prot = draw_protein(rng, parameters, cells)
    if n_unmeasured:
        measured_by_all = np.flatnonzero(~parameters.is_control)
        unmeasured = rng.choice(measured_by_all, n_unmeasured, replace=False)
        prot.layers["complete"] = prot.X.copy()
        prot.X[np.ix_(cells.batch == n_batches - 1, unmeasured)] = np.nan
    rna = draw_rna(rng, parameters, cells, store_truth)
    return _assemble(rna, prot, cells, parameters, asdict(arguments))


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
    """Simulate counts as `simulate` does, directly to a new zarr store, for any number of cells.

    Some cells are simulated at a time, each part with its own random generator. The counts
    therefore differ from those of `simulate` with the same seed. Of the truth,
    ``obs["cell_type"]``, ``obs["batch"]`` and ``obs["library_size"]`` are stored.

    Parameters
    ----------
    path
        Folder of the store, which must not exist.
    n_cells, n_genes, n_proteins, n_batches, n_cell_types, n_isotype_controls, n_ubiquitous
        As in `simulate`.
    median_foreground_factor, median_library_size, batch_effect, seed
        As in `simulate`.
    overwrite
        Whether to replace an existing store.

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
    arguments = _arguments(
        n_cells, n_genes, n_proteins, n_batches, n_cell_types, n_isotype_controls, 0,
        n_ubiquitous, median_foreground_factor, median_library_size, batch_effect, seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    parameters = draw_parameters(rng, arguments)
    cells = draw_cells(rng, parameters, n_cells)._replace(programs=np.empty((0, N_PROGRAMS)))
    obs = annotation(cells, parameters).set_axis(cell_names(n_cells), axis=0)
    first = some_cells(cells, slice(0, 1), rng)  # simulated for its features
    rna_var = draw_rna(rng, parameters, first, store_truth=False).var
    protein_var = draw_protein(rng, parameters, first).var
    with (
        new_store(path, overwrite=overwrite) as staged,
        CountStore(staged, obs, rna_var, protein_var, np.int32) as store,
    ):
        for start in range(0, n_cells, CELLS_AT_A_TIME):
            part = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(start,)))
            some = some_cells(cells, slice(start, start + CELLS_AT_A_TIME), part)
            protein = draw_protein(part, parameters, some).X
            store.append(draw_rna(part, parameters, some, store_truth=False).X, protein)


def _arguments(
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
) -> Arguments:
    """Complete and check the arguments."""
    if n_isotype_controls is None:
        n_isotype_controls = min(2, n_proteins // 10)
    if median_library_size is None:
        median_library_size = max(0.3 * n_genes, 100.0)
    arguments = Arguments(
        n_cells, n_genes, n_proteins, n_batches, n_cell_types, n_isotype_controls, n_unmeasured,
        n_ubiquitous, median_foreground_factor, median_library_size, batch_effect, seed,
    )  # fmt: skip
    _require_valid(asdict(arguments))
    return arguments


def _require_valid(arguments: dict[str, float]) -> None:
    for name, value in arguments.items():
        is_size = name in {"n_cells", "n_genes", "n_proteins", "n_batches", "n_cell_types"}
        if is_size and not 1 <= value <= _MOST:
            raise DataError(f"{setting(name, value)} is out of range; give 1 to {_MOST}.")
        if not 0 <= value < np.inf:
            raise DataError(f"{setting(name, value)} is out of range; give 0 or more.")
    n_real = int(arguments["n_proteins"] - arguments["n_isotype_controls"])
    if n_real < 1:
        raise DataError(
            f"n_isotype_controls={arguments['n_isotype_controls']} leaves no other of the "
            f"{arguments['n_proteins']} proteins of {argument('n_proteins')}; give fewer."
        )
    n_unmeasured = arguments["n_unmeasured"]
    if n_unmeasured and arguments["n_batches"] < 2:
        raise DataError(
            f"{setting('n_unmeasured', n_unmeasured)} needs a second batch; give "
            f"{setting('n_batches', 2)} or more."
        )
    for name in ("n_unmeasured", "n_ubiquitous"):
        if arguments[name] > n_real:
            raise DataError(
                f"{setting(name, arguments[name])} is out of range; give at most {n_real}."
            )
    factor = arguments["median_foreground_factor"]
    if factor < 3:
        raise DataError(
            f"{setting('median_foreground_factor', factor)} is out of range; give 3 or more."
        )
    if arguments["median_library_size"] == 0:
        raise DataError("median_library_size=0 is out of range; give a positive number.")


def _assemble(
    rna: AnnData, prot: AnnData, cells: Cells, p: Parameters, arguments: dict[str, float]
) -> MuData:
    rna.obs_names = prot.obs_names = cell_names(len(cells.batch))
    with mudata.set_options(pull_on_update=False):
        mdata = MuData({"rna": rna, "prot": prot})
    for column, values in annotation(cells, p).items():
        mdata.obs[column] = values.array
    mdata.obsm["programs"] = cells.programs
    mdata.uns["simulation"] = arguments
    return mdata


def simulate_raw(
    mdata: MuData,
    n_empty: int = 2000,
    *,
    ambient_share: float = 0.4,
    profile_deviation: float = 0.1,
    protein_spread: Sequence[float] | None = None,
    share_debris: float = 0.05,
    n_blank: int | None = None,
    seed: int = 0,
) -> MuData:
    """Simulate the raw matrix that contains simulated cells: all barcodes before cells were called.

    An empty droplet of batch s holds ``y ~ NB(v a_ts, 10)`` of protein t, where ``log v`` is normal
    with standard deviation 0.4. The ambient mean ``a_ts`` is that of the cells' background in the
    batch times ``ambient_share``, and times a log-normal deviation of each protein, because the
    antibodies that stick to cells differ a little from those in solution.

    Parameters
    ----------
    mdata
        From `totalvi.simulate`; not changed.
    n_empty
        Number of empty droplets, divided between the batches.
    ambient_share
        Ambient counts of a droplet divided by background counts of a cell.
    profile_deviation
        Standard deviation between proteins of the log of that ratio.
    protein_spread
        Further standard deviation of each protein's log rate between droplets, whose mean stays the
        same. None: 0.
    share_debris
        Number of further droplets, as a share of ``n_empty``, that also hold a tenth of a cell's
        counts.
    n_blank
        Number of further barcodes with one to three counts; by default as many as empty droplets.
    seed
        The same seed and data give the same counts.

    Returns
    -------
    MuData
        ``rna`` (CSR) and ``prot`` (dense) of all barcodes, which include the cells of ``mdata`` under
        their names; ``obs["batch"]`` and ``obs["kind"]``: "cell", "empty", "debris" or "blank". The
        truth is in ``prot.varm["log_ambient_mean"]``, with a column for each batch.

    Raises
    ------
    DataError
        When ``mdata`` is not simulated, or an argument is out of range.

    Examples
    --------
    >>> raw = simulate_raw(simulate(n_cells=100, n_genes=50, n_proteins=5), n_empty=200)
    >>> dict(sorted(raw.obs["kind"].value_counts().items()))
    {'blank': 200, 'cell': 100, 'debris': 10, 'empty': 200}
    """
    prot, rna = mdata["prot"], mdata["rna"]
    if "log_background_mean" not in prot.varm:
        raise DataError("the data are not simulated; give what totalvi.simulate returned.")
    n_blank = n_empty if n_blank is None else n_blank
    _require_valid_droplets(n_empty, ambient_share, profile_deviation, share_debris, n_blank)
    spread = spread_of_proteins(protein_spread, prot.n_vars)
    rng = np.random.default_rng([seed, 1])
    log_background = np.asarray(prot.varm["log_background_mean"]).T  # (S, T)
    deviation = rng.normal(0.0, profile_deviation, log_background.shape)
    log_ambient = log_background + np.log(ambient_share) + deviation
    n_debris = round(share_debris * n_empty)
    n_filled = n_empty + n_debris
    batches = mdata.obs["batch"].cat.codes.to_numpy()
    batch = np.arange(n_filled + n_blank) % len(log_ambient)
    protein = ambient_protein(rng, log_ambient[batch[:n_filled]], spread)
    counts = ambient_rna(rng, rna.X, n_filled)
    source = rng.integers(mdata.n_obs, size=n_debris)  # the cells from which debris comes
    protein[n_empty:] += rng.poisson(0.1 * np.nan_to_num(prot.X[source]))
    counts = sparse.vstack([counts[:n_empty], counts[n_empty:] + debris_rna(rng, rna.X[source])])
    batch[n_empty:n_filled] = batches[source]
    blank = blank_protein(rng, log_ambient[batch[n_filled:]])
    kinds = np.repeat(
        ["cell", "empty", "debris", "blank"], [mdata.n_obs, n_empty, n_debris, n_blank]
    )
    numbers = np.concatenate([np.arange(n) for n in (n_empty, n_debris, n_blank)])
    others = [f"{k}_{i}" for k, i in zip(kinds[mdata.n_obs :], numbers, strict=True)]
    names = pd.Index([*mdata.obs_names, *others])
    obs = pd.DataFrame(index=names)
    no_rna = sparse.csr_matrix(np.zeros((n_blank, rna.n_vars), dtype=np.float32))
    all_rna = sparse.vstack([rna.X, counts, no_rna], format="csr").astype(np.float32)
    all_protein = np.concatenate([prot.X, protein, blank]).astype(np.float32)
    modalities = {
        "rna": AnnData(all_rna, obs=obs, var=rna.var[[]]),
        "prot": AnnData(
            all_protein,
            obs=obs,
            var=prot.var[["control"]],
            varm={"log_ambient_mean": log_ambient.T},
        ),
    }
    with mudata.set_options(pull_on_update=False):
        raw = MuData(modalities)
    categories = mdata.obs["batch"].cat.categories
    raw.obs["batch"] = pd.Categorical.from_codes(np.concatenate([batches, batch]), categories)
    raw.obs["kind"] = pd.Categorical(kinds)
    return raw


def _require_valid_droplets(
    n_empty: int, ambient_share: float, deviation: float, share_debris: float, n_blank: int
) -> None:
    limits = {
        "n_empty": (n_empty, 1),
        "ambient_share": (ambient_share, 1e-3),
        "profile_deviation": (deviation, 0),
        "share_debris": (share_debris, 0),
        "n_blank": (n_blank, 0),
    }
    for name, (value, lowest) in limits.items():
        if not lowest <= value < np.inf:
            raise DataError(f"{setting(name, value)} is out of range; give {lowest} or more.")
