"""All queries of a fitted model, so that no change of a result goes unnoticed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import totalvi
from same_digests import digests
from totalvi.errors import TotalviError

# Words in place of what depends on the model.
BATCH, BATCHES, GENES, PROTEINS, PAIRS = "<batch>", "<batches>", "<genes>", "<proteins>", "<pairs>"
SOME, NEW = "<some cells>", "<the data again>"

QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("get_latent_representation", {}),
    ("get_latent_representation", {"give_mean": False, "n_samples": 2, "seed": 5}),
    ("get_latent_representation", {"return_dist": True, "indices": SOME}),
    ("get_latent_representation", {"adata": NEW, "batch_size": 64}),
    ("get_latent_representation", {"mc_samples": 50, "indices": SOME}),
    ("get_latent_library_size", {}),
    ("get_latent_library_size", {"give_mean": False, "n_samples": 2}),
    ("get_cell_uncertainty", {"n_samples": 3}),
    ("get_cell_uncertainty", {"n_samples": 2, "protein_list": PROTEINS, "transform_batch": BATCH}),
    ("get_normalized_expression", {}),
    ("get_normalized_expression", {"n_samples": 3, "library_size": "latent", "seed": 2}),
    ("get_normalized_expression", {"transform_batch": BATCHES, "library_size": 10_000}),
    ("get_normalized_expression", {"sample_protein_mixing": True, "n_samples": 2}),
    ("get_normalized_expression", {"scale_protein": True, "include_protein_background": True}),
    (
        "get_normalized_expression",
        {"gene_list": GENES, "protein_list": PROTEINS, "n_samples": 2, "return_mean": False},
    ),
    ("get_normalized_expression", {"adata": NEW, "indices": SOME, "return_numpy": True}),
    ("get_protein_foreground_probability", {}),
    ("get_protein_foreground_probability", {"n_samples": 3, "transform_batch": BATCHES}),
    ("get_protein_foreground_probability", {"protein_list": PROTEINS, "return_mean": False}),
    ("get_protein_background_mean", {"n_samples": 2}),
    ("get_protein_background_mean", {"transform_batch": BATCH, "return_numpy": True}),
    ("get_likelihood_parameters", {}),
    ("get_likelihood_parameters", {"n_samples": 2, "return_numpy": True, "gene_list": GENES}),
    ("get_likelihood_parameters", {"transform_batch": BATCH, "indices": SOME}),
    ("posterior_predictive_sample", {}),
    ("posterior_predictive_sample", {"n_samples": 2, "transform_batch": BATCH, "indices": SOME}),
    ("posterior_predictive_check", {"n_samples": 4}),
    ("posterior_predictive_check", {"n_samples": 3, "indices": SOME, "gene_list": GENES}),
    ("get_feature_correlation_matrix", {"n_samples": 2}),
    (
        "get_feature_correlation_matrix",
        {"n_samples": 2, "correlation_type": "pearson", "log_transform": True, "gene_list": GENES},
    ),
    ("get_feature_correlation_matrix", {"n_samples": 1, "permute_genes": True}),
    ("get_feature_correlation_matrix", {"n_samples": 1, "transform_batch": BATCHES}),
    ("get_gene_protein_pairs", {"n_samples": 2, "pairs": PAIRS}),
    ("get_gene_protein_pairs", {"n_samples": 1}),
    ("get_elbo", {}),
    ("get_elbo", {"return_mean": False, "seed": 3}),
    ("get_reconstruction_error", {}),
    ("get_reconstruction_error", {"return_mean": False, "n_samples": 2, "indices": SOME}),
    ("get_marginal_ll", {"n_mc_samples": 4}),
    ("get_marginal_ll", {"n_mc_samples": 3, "return_mean": False, "adata": NEW}),
    ("impute_proteins", {"n_samples": 20}),
    ("impute_proteins", {"n_samples": 20, "calibrated": False, "transform_batch": BATCH}),
    ("impute_proteins", {"n_samples": 20, "interval": 0.5, "protein_list": PROTEINS}),
    ("get_imputation_reliability", {"n_samples": 20}),
    ("get_imputation_reliability", {"n_samples": 20, "indices": SOME, "interval": 0.5}),
    ("get_archetypes", {}),
    ("get_archetypes", {"standardize": True, "transform_batch": BATCH, "library_size": 10.0}),
    ("get_aggregated_posterior", {}),
    ("differential_abundance", {"sample_key": "batch"}),
    ("differential_abundance", {"sample_key": "cell_type"}),
    ("differential_expression", {"groupby": "cell_type"}),
    ("differential_expression", {"groupby": "batch", "mode": "vanilla"}),
    (
        "differential_expression",
        {"groupby": "batch", "group1": BATCH, "batch_correction": True, "n_samples": 3},
    ),
    ("differential_expression", {"idx1": SOME, "unit": "cells", "n_pairs": 300, "delta": None}),
    (
        "differential_expression",
        {"idx1": "cell_type == 'type_0'", "idx2": SOME, "pseudocounts": 0.1, "all_stats": False},
    ),
    (
        "differential_expression",
        {
            "idx1": SOME,
            "scale_protein": True,
            "sample_protein_mixing": True,
            "include_protein_background": True,
            "batch_correction": True,
            "batchid1": BATCHES,
        },
    ),
    ("check_isotype_controls", {}),
    ("check_isotype_controls", {"n_samples": 2, "indices": SOME}),
]

# Queries that write zarr stores.
STORED: list[tuple[str, dict[str, Any]]] = [
    ("get_latent_representation", {}),
    ("get_normalized_expression", {"n_samples": 2, "transform_batch": BATCHES}),
    ("get_protein_foreground_probability", {"n_samples": 2}),
    ("get_protein_background_mean", {"indices": SOME}),
    ("get_likelihood_parameters", {}),
    ("posterior_predictive_sample", {"n_samples": 2}),
    ("impute_proteins", {"n_samples": 20, "calibrated": False}),
    ("impute_proteins", {"n_samples": 20, "indices": SOME}),
]


def ask_all(model: totalvi.Model, data: Any) -> Iterator[tuple[str, str]]:
    """Yield the digests of a model's answers to all queries."""
    for method, arguments in QUERIES:
        answer = _answer(model, method, given(arguments, model, data))
        yield from digests(answer, _named(method, arguments))
    mixture = model.get_aggregated_posterior()
    yield from digests(mixture.log_prob(mixture.mean[:20]), "aggregated posterior, log_prob")
    yield from digests(mixture.sample(10, seed=1), "aggregated posterior, sample")


def ask_stored(model: totalvi.Model, data: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the digests of what the queries write into zarr stores of a folder."""
    for number, (method, arguments) in enumerate(STORED):
        out = folder / f"{number}.zarr"
        answer = _answer(model, method, given(arguments, model, data) | {"out": out})
        yield from digests(out if out.exists() else answer, f"{_named(method, arguments)} out")


def describe(model: totalvi.Model) -> Iterator[tuple[str, str]]:
    """Yield the digests of what a model holds."""
    state = model.module.state_dict()
    for name in sorted(state):
        yield from digests(state[name], f"weights {name}")
    yield from digests(model.history.drop(columns="seconds", errors="ignore"), "history")
    for name in ("split", "fit_summary", "fingerprint", "seed", "is_trained"):
        yield from digests(getattr(model, name), name)
    yield from digests(repr(model), "repr")


def given(arguments: dict[str, Any], model: totalvi.Model, data: Any) -> dict[str, Any]:
    """Return the arguments with what they mean for a model and its data."""
    batches, genes = list(model.schema.batch_names), list(model.schema.gene_names)
    proteins = list(model.schema.protein_names)
    meaning = {
        BATCH: batches[-1] if batches else "batch_0",
        BATCHES: batches[:2],
        GENES: [genes[7], *genes[1:4]],
        PROTEINS: [proteins[4], proteins[1]],
        PAIRS: [(proteins[0], genes[1]), (proteins[3], genes[5])],
        SOME: range(60, 10, -1),
        NEW: data,
    }
    return {
        name: meaning.get(value, value) if isinstance(value, str) else value
        for name, value in arguments.items()
    }


def _answer(model: totalvi.Model, method: str, arguments: dict[str, Any]) -> Any:
    """Return the answer, or which exception there is where the model has none."""
    try:
        return getattr(model, method)(**arguments)
    except (ValueError, TotalviError) as error:
        return f"raises {type(error).__name__}"


def _named(method: str, arguments: dict[str, Any]) -> str:
    return f"{method}({', '.join(f'{name}={value}' for name, value in arguments.items())})"
