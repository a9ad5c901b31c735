"""Extreme counts, and networks and fits of every kind, for the numerics grid and its tests."""

from collections.abc import Callable, Iterator
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scipy import sparse

import totalvi
from totalvi.errors import DataError, NotTrainedError, TrainingError

N_CELLS, N_GENES, N_PROTEINS = 60, 20, 5


def built(
    rna: np.ndarray | sparse.csr_matrix, protein: np.ndarray, batch: np.ndarray | None = None
) -> MuData:
    """Return counts with every kind of annotation."""
    n_cells = rna.shape[0]
    cells = pd.DataFrame(index=[f"cell_{i}" for i in range(n_cells)])
    parts = {}
    for name, values in (("rna", rna), ("prot", protein)):
        features = pd.DataFrame(index=[f"{name}_{i}" for i in range(values.shape[1])])
        parts[name] = anndata.AnnData(values.astype(np.float32), obs=cells.copy(), var=features)
    with mudata.set_options(pull_on_update=False):
        data = MuData(parts)
    rng = np.random.default_rng(0)
    codes = np.arange(n_cells) % 2 if batch is None else batch
    data.obs["batch"] = [f"batch_{code}" for code in codes]
    data.obs["label"] = [f"label_{code}" for code in np.arange(n_cells) % 3]
    data.obs["sex"] = [f"sex_{code}" for code in rng.integers(2, size=n_cells)]
    data.obs["age"] = rng.normal(size=n_cells) * 1e4 + 1e6
    data.obs["factor"] = np.exp(rng.normal(size=n_cells) * 4)
    return data


def usual(
    n_cells: int = N_CELLS, n_proteins: int = N_PROTEINS, n_genes: int = N_GENES
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    rna = rng.poisson(rng.gamma(0.5, 2, (n_cells, n_genes)))
    rna[np.arange(n_cells), np.arange(n_cells) % n_genes] += 1  # no cell without RNA
    return rna, rng.poisson(rng.gamma(1, 30, (n_cells, n_proteins)))


def changed(change: Callable[[np.ndarray, np.ndarray], object]) -> Callable[[], MuData]:
    def make() -> MuData:
        rna, protein = usual()
        change(rna, protein)
        return built(rna, protein)

    return make


def one_million(rna: np.ndarray, protein: np.ndarray) -> None:
    rna[3, 2] = protein[5, 1] = protein[7, 0] = 1_000_000


def millions(rna: np.ndarray, protein: np.ndarray) -> None:
    rna[:, 0], protein[:, 0] = 1_000_000, 1_000_000


def all_large(rna: np.ndarray, protein: np.ndarray) -> None:
    rna *= 50_000
    protein *= 10_000


def single_count(rna: np.ndarray, protein: np.ndarray) -> None:
    rna[:, :], protein[:, :] = 0, 0
    rna[np.arange(N_CELLS), np.arange(N_CELLS) % N_GENES] = 1
    protein[np.arange(N_CELLS), np.arange(N_CELLS) % N_PROTEINS] = 1


def mixed_depth(rna: np.ndarray, protein: np.ndarray) -> None:
    rna[:30] = 0
    rna[:30, 0] = 1
    rna[30:] *= 20_000


def constant(rna: np.ndarray, protein: np.ndarray) -> None:
    protein[:, 0], protein[:, 1], protein[:, 2] = 0, 7, 100_000


def nearly_all_zero(rna: np.ndarray, protein: np.ndarray) -> None:
    protein[:, :] = 0
    protein[11, :] = 1


def constant_genes(rna: np.ndarray, protein: np.ndarray) -> None:
    rna[:, :10] = 0
    rna[:, 10:] = 3


def without_protein_counts(rna: np.ndarray, protein: np.ndarray) -> None:
    protein[:20] = 0


def identical_cells(rna: np.ndarray, protein: np.ndarray) -> None:
    rna[:], protein[:] = rna[0], protein[0]


def rare_protein() -> MuData:
    rna, protein = usual(1000)
    protein[:, 0] = 0
    protein[17, 0] = 4
    return built(rna, protein)


def of_proteins(n: int) -> Callable[[], MuData]:
    return lambda: built(*usual(n_proteins=n))


def batches(sizes: list[int]) -> Callable[[], MuData]:
    return lambda: built(*usual(sum(sizes)), np.repeat(np.arange(len(sizes)), sizes))


def scaled_batches() -> MuData:
    rna, protein = usual()
    rna[::2] *= 1000
    protein[::2] *= 1000
    return built(rna, protein)


def panels() -> MuData:
    rna, protein = usual()
    values = protein.astype(np.float32)
    values[::2, 0], values[1::2, 1] = np.nan, np.nan
    values[3, 2] = 1_000_000
    return built(rna, values)


def large_batch() -> MuData:
    rng = np.random.default_rng(2)
    n = 100_000
    entries = (np.ones(2 * n), (np.repeat(np.arange(n), 2), rng.integers(N_GENES, size=2 * n)))
    rna = sparse.csr_matrix(entries, shape=(n, N_GENES))
    protein = rng.poisson(20, (n, 3))
    return built(rna, protein, np.r_[np.zeros(n - 2, int), 1, 1])


COUNTS: dict[str, Callable[[], MuData]] = {
    "usual": changed(lambda rna, protein: None),
    "a count of 1e6": changed(one_million),
    "a feature at 1e6 in all cells": changed(millions),
    "all counts around 1e5": changed(all_large),
    "one count a cell": changed(single_count),
    "cells of one count beside cells of 1e6": changed(mixed_depth),
    "constant proteins": changed(constant),
    "proteins with one count": changed(nearly_all_zero),
    "a protein with 99.9 % zeros": rare_protein,
    "constant genes": changed(constant_genes),
    "cells without protein counts": changed(without_protein_counts),
    "identical cells": changed(identical_cells),
    "3 proteins": of_proteins(3),
    "300 proteins": of_proteins(300),
    "1 batch": batches([60]),
    "50 batches": batches([4] * 50),
    "batches of 1 to 100 cells": batches([1, 1, 2, 5, 100]),
    "batches of 2 to 100 cells": batches([2, 2, 3, 5, 100]),
    "a batch of 1e5 cells": large_batch,
    "a batch 1000 times as deep": scaled_batches,
    "panels": panels,
}

NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "32 bits": ({}, {"precision": "32-true"}),
    "bfloat16": ({}, {"precision": "bf16-mixed"}),
    "10 x learning rate": ({}, {"lr": 8e-2}),
    "10 x learning rate, constant, no warm-up": (
        {}, {"lr": 8e-2, "schedule": "constant", "n_epochs_kl_warmup": 0, "gradient_clip_norm": 1e9},
    ),
    "learning rate 10": ({}, {"lr": 10.0, "schedule": "constant", "gradient_clip_norm": 1e9}),
    "zinb": ({"gene_likelihood": "zinb"}, {"lr": 8e-2}),
    "ln, 10 x learning rate": ({"latent_distribution": "ln"}, {"lr": 8e-2}),
    "zinb, ln, latent library": (
        {"gene_likelihood": "zinb", "latent_distribution": "ln", "library": "latent"}, {"lr": 8e-2},
    ),
    "latent library": ({"library": "latent"}, {}),
    "covariates": (
        {"categorical_covariate_keys": ["sex"], "continuous_covariate_keys": ["age"]}, {"lr": 8e-2},
    ),
    "size factors": ({"size_factor_key": "factor"}, {}),
    "panels, efficiency": ({"panel_key": "batch", "protein_efficiency": True}, {"lr": 8e-2}),
    "dispersions by label": (
        {"labels_key": "label", "gene_dispersion": "gene-label", "protein_dispersion": "protein-label"},
        {"lr": 8e-2},
    ),
    "dispersions by batch, plain torch": (
        {"gene_dispersion": "gene-batch", "protein_dispersion": "protein-batch", "fused": False},
        {"lr": 8e-2},
    ),
    "as 0.6.x": (
        {"encoder_architecture": "branched", "scale_input": False, "background_scale": "exp",
         "library": "latent", "empirical_protein_background_prior": False},
        {"lr": 8e-2},
    ),
}  # fmt: skip


LARGE = "a batch of 1e5 cells"
OF_LARGE = ("default", "zinb")  # others would take minutes


def pairs() -> Iterator[tuple[str, str]]:
    """Give all configurations: a kind of counts and a kind of network and fit."""
    for counts in COUNTS:
        for network in OF_LARGE if counts == LARGE else NETWORKS:
            yield counts, network


def outcome_of(counts: str, network: str) -> tuple[str, str]:
    """Fit and ask: "finite", "refused", "stopped", or "not finite" with where.

    A fit that ended well may be refused means of proteins whose background went wrong, and no more.
    """
    torch.set_num_threads(1)
    options, plan = NETWORKS[network]
    try:
        model = totalvi.Model(
            COUNTS[counts](), batch_key="batch", n_hidden=8, n_latent=3, **options
        )
    except DataError as error:
        return "refused", str(error)
    plan = {"max_epochs": 8, "n_epochs_kl_warmup": 2, "batch_size": 32, "progress": False} | plan
    if counts == LARGE:
        plan |= {"max_epochs": 1, "batch_size": 512}
    try:
        model.train(accelerator="cpu", **plan)
    except TrainingError as error:
        try:
            model.get_latent_representation()
        except NotTrainedError:
            return "stopped", str(error)
        return "not finite", "a query was answered after a failed fit"
    refused = ""
    try:
        found = answers_without_background(model)
        found |= answers_of_background(model)
    except NotTrainedError as error:
        refused = str(error)
        if "beyond 1e13 counts" not in refused:
            return "not finite", f"a query refused a fit that had ended well: {refused}"
    bad = [name for name, value in found.items() if not np.isfinite(value).all()]
    if bad:
        return "not finite", ", ".join(bad)
    return ("refused", refused) if refused else ("finite", "")


def answers_without_background(model: totalvi.Model) -> dict[str, np.ndarray]:
    """Return the history, the weights, and what is asked of no mean of a protein, as numbers."""
    history = model.history.to_numpy(float)
    first = np.arange(4)
    asked: dict[str, Any] = {"n_samples": 2, "unmeasured": "impute"}
    rna = model.get_normalized_expression(n_samples=2, protein_list=[])[0]
    return {
        **{f"weight {k}": v.numpy() for k, v in model.module.state_dict().items()},
        "history": history[~np.isnan(history).all(axis=1)] if history.size else history,
        "latent": model.get_latent_representation(),
        "library size": np.asarray(model.get_latent_library_size()),
        "denoised RNA": rna.to_numpy(),
        "foreground probability": model.get_protein_foreground_probability(**asked).to_numpy(),
        "elbo": np.asarray(model.get_elbo(return_mean=False)),
        "marginal": np.asarray(model.get_marginal_ll(n_mc_samples=4, indices=first)),
        "reconstruction": np.array(list(model.get_reconstruction_error()), float),
    }


def answers_of_background(model: totalvi.Model) -> dict[str, np.ndarray]:
    """Return what every kind of query answers of the means of proteins, where it is a number.

    Proteins are asked about in a panel that measured them.
    """
    asked: dict[str, Any] = {"n_samples": 2, "unmeasured": "impute"}
    _, protein = model.get_normalized_expression(**asked)
    _, background = model.get_normalized_expression(include_protein_background=True, **asked)
    effects = model.differential_expression(
        idx1=np.arange(10), idx2=np.arange(10, 30), n_samples=20
    ).select_dtypes("number")
    columns = [c for c in effects if "raw" not in c and not c.startswith("non_zeros")]
    first = np.arange(4)
    rates = model.get_likelihood_parameters(indices=first, **asked)
    predicted = model.posterior_predictive_sample(indices=first, unmeasured="impute")
    return {
        "denoised protein": protein.to_numpy(),
        "with background": background.to_numpy(),
        "background mean": np.asarray(model.get_protein_background_mean(**asked)),
        "effects": effects[columns].to_numpy(float),
        "predicted counts": np.concatenate(
            [predicted.rna.toarray().ravel(), predicted.protein.to_numpy(float).ravel()]
        ),
        **{f"parameter {name}": np.asarray(value, float) for name, value in rates.items()},
    }
