"""A background beyond any count is refused where a mean needs it, and nowhere else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import totalvi
from counts import SMALL, annotated
from totalvi.errors import NotTrainedError

WRONG = 2  # position of the protein
REFUSED: dict[str, Callable[[totalvi.Model], Any]] = {
    "denoised": lambda m: m.get_normalized_expression(n_samples=2),
    "denoised, each sample": lambda m: m.get_normalized_expression(n_samples=2, return_mean=False),
    "background": lambda m: m.get_protein_background_mean(n_samples=2),
    "parameters": lambda m: m.get_likelihood_parameters(n_samples=2),
    "counts": lambda m: m.posterior_predictive_sample(),
    "imputed": lambda m: m.impute_proteins(n_samples=2, calibrated=False),
    "correlations": lambda m: m.get_feature_correlation_matrix(n_samples=2),
    "comparison": lambda m: m.differential_expression(idx1=np.arange(40), n_samples=2),
    "archetypes": lambda m: m.get_archetypes(),
    "checks": lambda m: m.posterior_predictive_check(n_samples=2),
}


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    model = totalvi.Model(annotated(), batch_key="batch", latent_distribution="ln", **SMALL)
    model.train(max_epochs=2, accelerator="cpu", progress=False)
    model.module.decoder.background_mean_head.bias.data[WRONG] += 60
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_no_mean_of_it_is_answered(model: totalvi.Model, name: str) -> None:
    with pytest.raises(NotTrainedError, match='"protein_2" is beyond 1e13 counts'):
        REFUSED[name](model)


def test_a_spread_beyond_any_count_is_refused_as_well(model: totalvi.Model) -> None:
    """The log-normal's expectation overflows long before its median does."""
    name = model.schema.protein_names[0]
    bias = model.module.decoder.background_scale_head.bias.data
    bias[0] += 8
    with pytest.raises(NotTrainedError, match="beyond 1e13 counts"):
        model.get_protein_background_mean(n_samples=2)
    with pytest.raises(NotTrainedError, match="beyond 1e13 counts"):
        model.impute_proteins(protein_list=[name], n_samples=2, calibrated=False)
    bias[0] -= 8


def test_what_does_not_need_it_is_answered(model: totalvi.Model) -> None:
    others = [name for i, name in enumerate(model.schema.protein_names) if i != WRONG]
    imputed = model.impute_proteins(protein_list=others, n_samples=2, calibrated=False)
    rna, protein = model.get_normalized_expression(protein_list=[], n_samples=2)
    answers = [
        imputed.sd,
        rna,
        model.get_protein_foreground_probability(n_samples=2),
        model.get_latent_representation(),
        model.get_elbo(return_mean=False),
        model.get_reconstruction_error(return_mean=False),
    ]
    assert protein.shape[1] == 0
    assert all(np.isfinite(np.asarray(answer)).all() for answer in answers)
