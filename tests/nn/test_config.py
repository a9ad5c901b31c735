"""Wrong arguments are refused with the argument, what came and what is allowed."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import library_prior, minibatch
from totalvi.nn.config import at_least_one, protein_mask
from totalvi.nn.v06 import TOTALVI

WRONG_ARGUMENTS: list[tuple[dict[str, Any], str, str]] = [
    ({"n_input_genes": 0}, "n_input_genes is 0", "from 1"),
    ({"n_input_proteins": 2.0}, "n_input_proteins is 2.0", "whole numbers"),
    ({"n_batch": -1}, "n_batch is -1", "from 0"),
    ({"n_batch": None}, "n_batch is None", "from 0"),
    ({"n_labels": "3"}, "n_labels is '3'", "from 0"),
    ({"n_hidden": 0}, "n_hidden is 0", "from 1"),
    ({"n_latent": True}, "n_latent is True", "from 1"),
    ({"n_layers_encoder": 0}, "n_layers_encoder is 0", "from 1"),
    ({"n_layers_decoder": 1.5}, "n_layers_decoder is 1.5", "from 1"),
    ({"dropout_rate_encoder": 1.0}, "dropout_rate_encoder is 1.0", "below 1"),
    ({"dropout_rate_decoder": -0.1}, "dropout_rate_decoder is -0.1", "from 0"),
    ({"dropout_rate_decoder": float("nan")}, "dropout_rate_decoder is nan", "from 0"),
    ({"gene_dispersion": "protein"}, "gene_dispersion is 'protein'", "'gene-label'"),
    ({"protein_dispersion": "gene"}, "protein_dispersion is 'gene'", "'protein-batch'"),
    ({"gene_dispersion": "gene-label"}, "gene_dispersion is 'gene-label'", "n_labels"),
    ({"protein_dispersion": "protein-label"}, "protein_dispersion is", "n_labels"),
    ({"reconstruction_loss_gene": "poisson"}, "reconstruction_loss_gene is 'poisson'", "'zinb'"),
    ({"latent_distribution": "lognormal"}, "latent_distribution is 'lognormal'", "'ln'"),
    ({"library": "none"}, "library is 'none'", "'observed'"),
    ({"encoder_architecture": "deep"}, "encoder_architecture is 'deep'", "'branched'"),
    ({"background_scale": "relu"}, "background_scale is 'relu'", "'softplus'"),
    ({"normalization": "group"}, "normalization is 'group'", "'layer'"),
    ({"n_panels": 0}, "n_panels is 0", "from 1"),
    ({"n_continuous_covariates": -2}, "n_continuous_covariates is -2", "from 0"),
    ({"n_categories_per_covariate": [2, 0]}, "n_categories_per_covariate holds 0", "from 1"),
    ({"protein_batch_mask": [[True] * 5]}, "protein_batch_mask has 1 rows", "2 rows of 5"),
    ({"protein_batch_mask": [[True] * 4] * 2}, "protein_batch_mask has 2 rows", "2 rows of 5"),
    ({"protein_batch_mask": {"0": [True] * 5}}, "protein_batch_mask has the keys", "0 to 1"),
    (
        {"protein_batch_mask": [[True] * 4 + [False]] * 2},
        "protein 4 was measured nowhere",
        "protein_batch_mask",
    ),
    ({"background_prior": (np.zeros(4), np.ones(5))}, "background_prior's mean", r"\(5,\)"),
    ({"background_prior": (np.zeros(5), np.zeros(5))}, "background_prior", "above 0"),
    ({"background_prior": ([np.nan] * 5, [1.0] * 5)}, "background_prior", "finite"),
]


@pytest.mark.parametrize(("wrong", "came", "allowed"), WRONG_ARGUMENTS, ids=str)
def test_wrong_argument_of_the_class(wrong: dict[str, Any], came: str, allowed: str) -> None:
    arguments = {"n_input_genes": 12, "n_input_proteins": 5, "n_batch": 2, "n_hidden": 8} | wrong
    with pytest.raises(ValueError, match=came) as raised:
        TOTALVI(**arguments)
    assert raised.match(allowed)


CODES = torch.tensor([0, 1, 0, 1, 0, 1, 0])
GOOD: dict[str, Any] = {
    "batch_index": CODES,
    "label": CODES,
    "panel_index": CODES,
    "size_factor": torch.ones(7, 1),
    "categorical_covariates": CODES[:, None],
    "continuous_covariates": torch.ones(7, 1),
}
WRONG_INPUTS: list[tuple[dict[str, Any], str, str]] = [
    ({"x": torch.ones(7, 11)}, r"x has shape \(7, 11\)", r"\(7, 12\)"),
    ({"y": torch.ones(6, 5)}, r"y has shape \(6, 5\)", r"\(7, 5\)"),
    ({"batch_index": None}, "batch_index is None", "0 to 1"),
    ({"batch_index": CODES[:5]}, r"batch_index has shape \(5,\)", r"\(7, 2\)"),
    ({"batch_index": CODES + 1}, "batch_index holds codes from 1 to 2", "0 to 1"),
    ({"batch_index": CODES - 1}, "batch_index holds codes from -1", "0 to 1"),
    ({"batch_index": CODES + 0.5}, "batch_index holds fractions", "0 to 1"),
    ({"batch_index": torch.ones(7, 3)}, r"batch_index has shape \(7, 3\)", r"\(7, 2\)"),
    ({"batch_index": torch.full((7, 2), 0.5)}, "batch_index is not one-hot", "single 1"),
    ({"label": None}, "label is None", "label"),
    ({"label": CODES * 2}, "label holds codes", "0 to 1"),
    ({"panel_index": None}, "panel_index is None", "0 to 2"),
    ({"panel_index": CODES * 3}, "panel_index holds codes", "0 to 2"),
    ({"size_factor": None}, "size_factor has shape None", r"\(7, 1\)"),
    ({"size_factor": torch.ones(3)}, r"size_factor has shape \(3,\)", r"\(7, 1\)"),
    ({"categorical_covariates": None}, "categorical_covariates has shape None", r"\(7, 1\)"),
    ({"categorical_covariates": CODES[:, None] * 3}, "categorical_covariates", "0 to 2"),
    ({"continuous_covariates": torch.ones(7, 2)}, r"continuous_covariates has shape", r"\(7, 1\)"),
    ({"transform_batch": 2}, "transform_batch is 2", "0 to 1"),
    ({"transform_batch": "b"}, "transform_batch is 'b'", "0 to 1"),
    ({"n_samples": 0}, "n_samples is 0", "from 1"),
    ({"n_samples": 1.5}, "n_samples is 1.5", "from 1"),
]


@pytest.mark.parametrize(("wrong", "came", "allowed"), WRONG_INPUTS, ids=lambda v: str(v)[:40])
def test_wrong_input_of_a_method(wrong: dict[str, Any], came: str, allowed: str) -> None:
    x, y = minibatch()
    module = TOTALVI(
        12,
        5,
        2,
        2,
        n_hidden=8,
        n_latent=3,
        n_panels=3,
        library="size_factor",
        gene_dispersion="gene-label",
        n_categories_per_covariate=[3],
        n_continuous_covariates=1,
    ).eval()
    module.inference(x, y, **GOOD)
    with pytest.raises(ValueError, match=came) as raised:
        module.inference(**({"x": x, "y": y} | GOOD | wrong))
    assert raised.match(allowed)


def test_wrong_library_prior() -> None:
    x, y = minibatch()
    mean, variance = library_prior()
    module = TOTALVI(12, 5, n_hidden=8).eval()
    with pytest.raises(ValueError, match="local_l_mean_gene and local_l_var_gene are needed"):
        module(x, y, mean)
    with pytest.raises(ValueError, match=r"local_l_var_gene has shape \(6, 1\); allowed is"):
        module(x, y, mean, variance[:6])


def test_wrong_number_of_samples_of_the_mean() -> None:
    x, y = minibatch()
    with pytest.raises(ValueError, match="n_samples is 0"):
        TOTALVI(12, 5, n_hidden=8).eval().sample_from_posterior_z(x, y, None, True, 0)


@pytest.mark.parametrize(
    "given",
    [
        [[True, False], [True, True]],
        {0: [True, False], 1: [True, True]},
        {"1": np.array([1, 1]), "0": np.array([1, 0])},
        np.array([[1, 0], [1, 1]]),
        torch.tensor([[True, False], [True, True]]),
    ],
    ids=["lists", "dict", "text keys", "array", "tensor"],
)
def test_forms_of_the_protein_mask(given: Any) -> None:
    mask = protein_mask(given, 2, 2)
    assert mask is not None
    assert mask.tolist() == [[True, False], [True, True]]


def test_a_mask_that_hides_nothing_is_none() -> None:
    assert protein_mask(None, 2, 3) is None
    assert protein_mask([[True] * 3] * 2, 2, 3) is None


def test_numpy_numbers_are_allowed() -> None:
    TOTALVI(np.int64(4), 2, n_hidden=np.int32(3), dropout_rate_encoder=np.float32(0.1))
    assert at_least_one("n", np.int64(3)) == 3
