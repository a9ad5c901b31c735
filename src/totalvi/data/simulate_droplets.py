"""Simulate the raw matrix that simulated cells come from: empty droplets, debris, blank barcodes."""

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.simulate import negative_binomial
from totalvi.errors import DataError

_DROPLET_DISPERSION = 10.0  # inverse dispersion of ambient counts


def simulate_raw(
    mdata: MuData,
    n_empty: int = 2000,
    *,
    ambient_share: float = 0.4,
    profile_deviation: float = 0.1,
    share_debris: float = 0.05,
    n_blank: int | None = None,
    seed: int = 0,
) -> MuData:
    """Simulate the raw matrix around simulated cells: what a sequencer saw before cells were called.

    An empty droplet of batch s holds ``y ~ NB(v a_ts, 10)`` of protein t, where ``log v`` is normal
    with standard deviation 0.4. The ambient mean ``a_ts`` is that of the cells' background in the
    batch times ``ambient_share``, and times a log-normal deviation by protein, since what clings to
    cells is not quite what floats around them.

    Parameters
    ----------
    mdata
        From `totalvi.simulate`; not changed.
    n_empty
        Empty droplets, divided between the batches.
    ambient_share
        Ambient counts of a droplet over background counts of a cell.
    profile_deviation
        Standard deviation by protein of the log of that ratio.
    share_debris
        Further droplets, as a share of ``n_empty``, that hold a tenth of a cell's counts besides.
    n_blank
        Further barcodes with one to three counts; by default as many as there are empty droplets.
    seed
        The same seed and data give the same counts.

    Returns
    -------
    MuData
        ``rna`` (CSR) and ``prot`` (dense) of all barcodes, the cells of ``mdata`` among them under
        their names; ``obs["batch"]`` and ``obs["kind"]``: "cell", "empty", "debris" or "blank". The
        truth is in ``prot.varm["log_ambient_mean"]``, a column a batch.

    Raises
    ------
    DataError
        When ``mdata`` is not simulated, or an argument is out of range.

    Examples
    --------
    >>> from totalvi.data.simulate import simulate
    >>> raw = simulate_raw(simulate(n_cells=100, n_genes=50, n_proteins=5), n_empty=200)
    >>> dict(sorted(raw.obs["kind"].value_counts().items()))
    {'blank': 200, 'cell': 100, 'debris': 10, 'empty': 200}
    """
    prot, rna = mdata["prot"], mdata["rna"]
    if "log_background_mean" not in prot.varm:
        raise DataError("the data are not simulated: give what totalvi.simulate returned")
    n_blank = n_empty if n_blank is None else n_blank
    _require_valid(n_empty, ambient_share, profile_deviation, share_debris, n_blank)
    rng = np.random.default_rng([seed, 1])
    log_background = np.asarray(prot.varm["log_background_mean"]).T  # (S, T)
    deviation = rng.normal(0.0, profile_deviation, log_background.shape)
    log_ambient = log_background + np.log(ambient_share) + deviation
    n_debris = round(share_debris * n_empty)
    n_filled = n_empty + n_debris
    batches = mdata.obs["batch"].cat.codes.to_numpy()
    batch = np.arange(n_filled + n_blank) % len(log_ambient)
    protein = _ambient_protein(rng, log_ambient[batch[:n_filled]])
    counts = _ambient_rna(rng, rna.X, n_filled)
    source = rng.integers(mdata.n_obs, size=n_debris)  # the cells that debris is of
    protein[n_empty:] += rng.poisson(0.1 * np.nan_to_num(prot.X[source]))
    counts = sparse.vstack([counts[:n_empty], counts[n_empty:] + _thinned(rng, rna.X[source])])
    batch[n_empty:n_filled] = batches[source]
    blank = _blank_protein(rng, log_ambient[batch[n_filled:]])
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


def _require_valid(
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
            raise DataError(f"{name}={value} is out of range: give {lowest} or more")


def _ambient_protein(rng: np.random.Generator, log_mean: np.ndarray) -> np.ndarray:
    volume = rng.normal(0.0, 0.4, (len(log_mean), 1))
    return negative_binomial(rng, np.exp(log_mean + volume), np.array(_DROPLET_DISPERSION))


def _ambient_rna(
    rng: np.random.Generator, cells: sparse.csr_matrix, n_droplets: int
) -> sparse.csr_matrix:
    """Draw a hundredth of a cell's counts for each droplet, of the mean cell's profile."""
    mean = 0.01 * np.asarray(cells.mean(axis=0)).ravel()
    genes = rng.choice(len(mean), int(rng.poisson(mean.sum() * n_droplets)), p=mean / mean.sum())
    droplets = rng.integers(n_droplets, size=len(genes))
    ones = np.ones(len(genes), dtype=np.float32)
    return sparse.csr_matrix((ones, (droplets, genes)), shape=(n_droplets, len(mean)))


def _thinned(rng: np.random.Generator, cells: sparse.csr_matrix) -> sparse.csr_matrix:
    thinned = cells.copy()
    thinned.data = rng.poisson(0.1 * thinned.data).astype(np.float32)
    thinned.eliminate_zeros()
    return thinned


def _blank_protein(rng: np.random.Generator, log_mean: np.ndarray) -> np.ndarray:
    """Draw one to three counts a barcode, of the ambient profile."""
    share = np.exp(log_mean)
    share /= share.sum(axis=1, keepdims=True)
    return rng.multinomial(rng.integers(1, 4, len(share)), share)
