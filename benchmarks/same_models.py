"""The small fits whose numbers must not change, and the data for them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from mudata import MuData

import totalvi

N_CELLS, N_GENES, N_PROTEINS = 300, 80, 12
SMALL: dict[str, Any] = {"n_hidden": 32, "n_latent": 6}
TRAIN: dict[str, Any] = {"max_epochs": 3, "batch_size": 64, "accelerator": "cpu"}


@functools.cache
def plain() -> MuData:
    """Simulate two batches with every kind of annotation; some antibodies go with their genes."""
    return _annotated(totalvi.simulate(N_CELLS, N_GENES, N_PROTEINS, 2, 4, seed=1))


@functools.cache
def panels() -> MuData:
    """Simulate three batches, of which the last lacks three proteins."""
    return _annotated(totalvi.simulate(N_CELLS, N_GENES, N_PROTEINS, 3, 4, n_unmeasured=3, seed=2))


@functools.cache
def lanes() -> MuData:
    """Simulate panels that are not the batches."""
    mdata = plain().copy()
    lane = mdata.obs["lane"].to_numpy()
    mdata["prot"].X[lane == "1", 4] = np.nan
    mdata["prot"].X[lane == "2", 5:7] = np.nan
    return mdata


@functools.cache
def droplets() -> MuData:
    """Simulate the raw matrix of `plain`, with empty droplets."""
    return totalvi.simulate_raw(plain(), n_empty=400, seed=3)


@functools.cache
def anndata() -> AnnData:
    """Return `panels` as an AnnData with its proteins in ``obsm``."""
    mdata = panels()
    adata = AnnData(mdata["rna"].X.copy(), obs=mdata.obs.copy(), var=mdata["rna"].var[[]].copy())
    adata.obsm["adt"] = mdata["prot"].to_df()
    return adata


@functools.cache
def fractional() -> MuData:
    mdata = plain().copy()
    mdata["rna"].X = mdata["rna"].X * np.float32(0.75)
    mdata["prot"].X = mdata["prot"].X * np.float32(0.75)
    return mdata


@functools.cache
def rna_only() -> AnnData:
    """Simulate further cells, of RNA alone, with a gene that the others lack."""
    mdata = _annotated(totalvi.simulate(120, N_GENES, N_PROTEINS, 2, 4, seed=4))
    adata = mdata["rna"].copy()
    adata.obs = mdata.obs.copy()
    adata.var_names = [*adata.var_names[:-1], "another gene"]
    return adata


@functools.cache
def fewer_proteins() -> MuData:
    """Simulate further cells with half of the proteins."""
    mdata = _annotated(totalvi.simulate(120, N_GENES, N_PROTEINS, 2, 4, seed=5))
    fewer = MuData({"rna": mdata["rna"].copy(), "prot": mdata["prot"][:, ::2].copy()})
    fewer.obs = mdata.obs.copy()
    return fewer


def _annotated(mdata: MuData) -> MuData:
    rng = np.random.default_rng(0)
    mdata.obs["age"] = rng.normal(50, 10, mdata.n_obs)
    mdata.obs["sex"] = rng.choice(["f", "m"], mdata.n_obs)
    mdata.obs["lane"] = rng.choice(["1", "2", "3"], mdata.n_obs)
    mdata.obs["size_factor"] = rng.uniform(0.5, 2, mdata.n_obs)
    for modality, names in (
        ("rna", ["CD4", "CD8A", "MS4A1", "CD19"]),
        ("prot", ["CD4", "CD8a", "CD20", "CD19"]),
    ):
        mdata[modality].var_names = [*names, *mdata[modality].var_names[len(names) :]]
    mdata.update()
    return mdata


class Fit(NamedTuple):
    """What one model is made with and trained with."""

    data: Callable[[], MuData | AnnData]
    model: dict[str, Any] = {}  # noqa: RUF012
    train: dict[str, Any] = {}  # noqa: RUF012


BATCHES = {"batch_key": "batch"}
COVARIATES = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["sex"],
    "continuous_covariate_keys": ["age"],
}
BRANCHED = {
    "encoder_architecture": "branched",
    "background_scale": "exp",
    "scale_input": False,
    "n_layers_encoder": 2,
    "n_layers_decoder": 1,
}

FITS: dict[str, Fit] = {
    "all defaults": Fit(plain, {"n_hidden": 256, "n_latent": 20}, {"batch_size": None}),
    "nb": Fit(plain, BATCHES),
    "nb, float32": Fit(plain, BATCHES, {"precision": "32-true"}),
    "nb, half precision, plain": Fit(
        plain, BATCHES | {"fused": False}, {"precision": "bf16-mixed"}
    ),
    "nb, plain": Fit(plain, BATCHES | {"fused": False}),
    "zinb": Fit(plain, BATCHES | {"gene_likelihood": "zinb"}),
    "zinb, plain": Fit(plain, BATCHES | {"gene_likelihood": "zinb", "fused": False}),
    "zinb, ln, latent library": Fit(
        plain,
        BATCHES | {"gene_likelihood": "zinb", "latent_distribution": "ln", "library": "latent"},
    ),
    "nb, ln, latent library, plain": Fit(
        plain, BATCHES | {"latent_distribution": "ln", "library": "latent", "fused": False}
    ),
    "panels": Fit(panels, BATCHES),
    "panels, plain, zinb": Fit(panels, BATCHES | {"fused": False, "gene_likelihood": "zinb"}),
    "panels, adversary": Fit(panels, BATCHES, {"adversarial": True}),
    "panels, adversary, plain, float32": Fit(
        panels, BATCHES | {"fused": False}, {"adversarial": 0.5, "precision": "32-true"}
    ),
    "panels, none hidden, one sample": Fit(
        panels, BATCHES | {"hidden_protein_rate": 0.0, "background_samples": 1}
    ),
    "panels by lane, covariates, efficiencies, dispersions by batch": Fit(
        lanes,
        COVARIATES
        | {
            "panel_key": "lane",
            "protein_efficiency": True,
            "gene_dispersion": "gene-batch",
            "protein_dispersion": "protein-batch",
        },
    ),
    "size factors, dispersions by label": Fit(
        plain,
        {
            "size_factor_key": "size_factor",
            "labels_key": "cell_type",
            "gene_dispersion": "gene-label",
            "protein_dispersion": "protein-label",
        },
    ),
    "size factors, zinb, plain": Fit(
        plain,
        BATCHES | {"size_factor_key": "size_factor", "gene_likelihood": "zinb", "fused": False},
    ),
    "layer norm": Fit(plain, BATCHES | {"normalization": "layer"}),
    "no norm, ln": Fit(plain, {"normalization": "none", "latent_distribution": "ln"}),
    "branched": Fit(plain, COVARIATES | BRANCHED | {"encode_covariates": False}, {"lr": 1e-3}),
    "branched, plain, no log, batch not encoded": Fit(
        panels,
        COVARIATES
        | BRANCHED
        | {"fused": False, "log_variational": False, "encoder_batch": False, "library": "latent"}
        | {"background_scale": "softplus"},
        {"lr": 1e-3},
    ),
    "AnnData": Fit(
        anndata, BATCHES | {"protein_expression_obsm_key": "adt", "latent_distribution": "ln"}
    ),
    "empty droplets": Fit(plain, BATCHES | {"empty_droplets": droplets}),
    "isotype controls modelled": Fit(plain, BATCHES | {"isotype_controls": []}),
    "background as drawn": Fit(plain, {"empirical_protein_background_prior": False}),
    "background given": Fit(
        plain, {"isotype_controls": [], "background_prior": (np.arange(12) / 4, np.ones(12))}
    ),
    "fractions": Fit(fractional, {"allow_fractional": True}),
    "no dropout, another seed": Fit(
        plain, {"dropout_rate_encoder": 0.0, "dropout_rate_decoder": 0.0, "seed": 7}
    ),
    "constant rate, given split": Fit(
        plain,
        BATCHES,
        {
            "schedule": "constant",
            "lr": 1e-3,
            "weight_decay": 0.0,
            "gradient_clip_norm": 1.0,
            "split": [range(200), range(200, 250), range(250, 300)],
            "early_stopping": False,
            "n_epochs_kl_warmup": 1,
        },
    ),
    "stopped early": Fit(
        plain,
        BATCHES,
        {"max_epochs": 12, "early_stopping_patience": 1, "lr": 0.1, "train_size": 0.7},
    ),
}

# Cases that need every compiled loop.
COMPILING = (
    "fit: all defaults",
    "fit: nb, float32",
    "fit: zinb",
    "zarr on disk",
    "windows on disk",
)


def fitted(fit: Fit) -> totalvi.Model:
    """Return the model of a row, trained."""
    model = totalvi.Model(fit.data(), **(SMALL | {k: _made(v) for k, v in fit.model.items()}))
    model.train(**(TRAIN | fit.train))
    return model


def _made(value: Any) -> Any:
    return value() if callable(value) else value
