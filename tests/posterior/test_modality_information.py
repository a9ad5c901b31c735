"""What each modality tells of a cell: Fisher information, its nats, and shares of features."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData
from scipy import stats
from scipy.integrate import quad

import totalvi
from totalvi.nn.likelihoods import (
    Dispersion,
    GeneLikelihood,
    negative_binomial_log_prob,
    negative_binomial_mixture_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from totalvi.posterior.modality_information import (
    _derivatives,
    _Moved,
    _moved,
    gene_information,
    information,
    nats,
    protein_information,
    protein_scores,
    share_weights,
)

COUNTS = torch.arange(12000, dtype=torch.float64)
MEANS, R = [0.01, 0.7, 5.0, 90.0], [0.3, 2.0, 40.0]


class _Given:
    """Stands for a linear layer whose product is known."""

    def __init__(self, value: torch.Tensor) -> None:
        self._value = value

    def value(self) -> torch.Tensor:
        return self._value


def genes_with(mean: float, r: float, dropout: float | None) -> GeneLikelihood:
    """Return the likelihood of one gene in one cell; its proportion is 1."""
    one = torch.zeros(1, 1, dtype=torch.float64)
    log_r = torch.full((1, 1), np.log(r), dtype=torch.float64)
    return GeneLikelihood(
        logit=_Given(one),  # type: ignore[arg-type]
        dropout=None if dropout is None else _Given(one + dropout),  # type: ignore[arg-type]
        library_size=one + mean,
        dispersion=Dispersion(log_r, torch.zeros(1, dtype=torch.long)),
        softplus=False,
    )


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("r", R)
@pytest.mark.parametrize("dropout", [None, -1.5, 1.0])
def test_information_of_a_gene_is_the_expected_square_of_its_scores(
    mean: float, r: float, dropout: float | None
) -> None:
    log_mean = torch.tensor(np.log(mean), dtype=torch.float64)
    log_r = torch.tensor(np.log(r), dtype=torch.float64)
    logit = torch.tensor(0.0 if dropout is None else dropout, dtype=torch.float64)

    def log_prob(log_mean: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
        if dropout is None:
            return negative_binomial_log_prob(COUNTS, log_mean, log_r)
        return zero_inflated_negative_binomial_log_prob(COUNTS, log_mean, log_r, logit)

    by_mean, by_logit = torch.func.jacfwd(log_prob, argnums=(0, 1))(log_mean, logit)
    p = log_prob(log_mean, logit).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    expected = [
        (p * a * b).sum()
        for a, b in ((by_mean, by_mean), (by_mean, by_logit), (by_logit, by_logit))
    ]
    genes = genes_with(mean, r, dropout)
    moved = _Moved(genes.log_mean(), genes.dropout_logit(), torch.empty(0))
    found = gene_information(genes, moved)
    assert len(found) == (1 if dropout is None else 3)
    for entry, value in zip(found, expected, strict=False):
        assert entry.item() == pytest.approx(value.item(), rel=1e-5, abs=1e-12)


PROTEINS = [(1.5, 0.4, 3.0, 0.5, 6.0), (2.5, 0.8, 20.0, -2.0, 2.0), (0.0, 0.3, 1.2, 3.0, 30.0)]
FURTHER = [(4.0, 0.25, 5.0, 0.0, 40.0), (-4.0, 0.5, 1.0, 0.0, 1.0)]


@pytest.mark.parametrize(("mean", "scale", "factor", "logit", "r"), PROTEINS)
def test_scores_of_a_protein_are_derivatives_of_the_integral(
    mean: float, scale: float, factor: float, logit: float, r: float
) -> None:
    def log_prob(count: int, at: np.ndarray) -> float:
        def density(e: float) -> float:
            b = torch.tensor(at[0] + np.exp(at[1]) * e)
            terms = (
                torch.tensor(float(count)),
                b,
                b + at[2],
                torch.tensor(np.log(r)),
                torch.tensor(at[3]),
            )
            return float(negative_binomial_mixture_log_prob(*terms).exp()) * stats.norm.pdf(e)

        return float(np.log(quad(density, -9, 9, epsabs=0, epsrel=1e-10, limit=200)[0]))

    at = np.array([mean, np.log(scale), np.log(factor), logit])
    dispersion = Dispersion(torch.full((1, 1), np.log(r)), torch.zeros(1, dtype=torch.long))
    for count in (0, 4, 12):
        y = torch.tensor([[float(count)]], dtype=torch.float64)
        log_p, scores = protein_scores(y, torch.tensor(at)[None, None], dispersion)
        assert log_p.item() == pytest.approx(log_prob(count, at), abs=2e-4)
        found = scores[0, 0].numpy()
        steps = np.eye(4) * 1e-4
        expected = [(log_prob(count, at + e) - log_prob(count, at - e)) / 2e-4 for e in steps]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("protein", [*PROTEINS, *FURTHER])
def test_information_of_a_protein_is_the_expected_square_of_its_scores(
    protein: tuple[float, ...],
) -> None:
    mean, scale, factor, logit, r = protein
    parameters = torch.tensor([mean, np.log(scale), np.log(factor), logit])[None, None].double()
    dispersion = Dispersion(torch.full((1, 1), np.log(r)), torch.zeros(1, dtype=torch.long))
    log_p, scores = protein_scores(COUNTS[:, None], parameters, dispersion)
    p = log_p.exp()[..., None, None]
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    expected = (p * scores[..., None] * scores[..., None, :]).sum(dim=0)[0]
    found = protein_information(parameters, dispersion)[0, 0]
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-3 * expected.max().item())


def test_nats_and_shares_of_matrices() -> None:
    rng = np.random.default_rng(0)
    parts = [a @ a.mT for a in torch.tensor(rng.normal(size=(3, 7, 5, 2)))]
    whole = sum(parts)
    expected = np.linalg.slogdet(np.eye(5) + whole.numpy())[1] / 2
    np.testing.assert_allclose(nats(whole), expected, rtol=1e-12)
    weights = share_weights(whole)
    shares = [torch.einsum("bij,bji->b", weights, part) for part in parts]
    np.testing.assert_allclose(sum(shares), expected, rtol=1e-9)
    at = (np.arange(2000) + 0.5) / 2000
    for part, share in zip(parts, shares, strict=True):
        integrand = [
            np.trace(np.linalg.inv(np.eye(5) + t * whole[0].numpy()) @ part[0].numpy()) / 2
            for t in at
        ]
        assert share[0].item() == pytest.approx(np.mean(integrand), rel=1e-3)
    assert nats(torch.zeros(1, 4, 4)).item() == 0


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return totalvi.simulate(
        n_cells=120, n_genes=40, n_proteins=6, n_batches=2, n_unmeasured=2, seed=1
    )


def fitted(mdata: MuData, **options: Any) -> totalvi.Model:
    model = totalvi.Model(mdata, n_latent=3, n_hidden=16, batch_key="batch", seed=0, **options)
    model.train(3, progress=False)
    return model


@pytest.fixture(scope="module")
def model(mdata: MuData) -> totalvi.Model:
    return fitted(mdata)


@pytest.mark.parametrize(
    "options",
    [{}, {"gene_likelihood": "zinb"}, {"latent_distribution": "ln"}, {"library": "latent"}],
)
def test_tables_agree_with_each_other(mdata: MuData, options: dict[str, Any]) -> None:
    told = fitted(mdata, **options).get_modality_information()
    cells, features = told.cells, told.features
    assert list(cells.index) == list(mdata.obs_names)
    assert (cells.to_numpy() >= 0).all()
    np.testing.assert_allclose(cells["rna_added"], cells["total"] - cells["protein"])
    np.testing.assert_allclose(cells["protein_added"], cells["total"] - cells["rna"])
    assert (cells["total"] <= cells["rna"] + cells["protein"] + 1e-9).all()
    assert features["all"].sum() == pytest.approx(cells["total"].mean(), rel=1e-4)
    by_modality = features.groupby("modality")["all"].sum()
    np.testing.assert_allclose(
        told.dimensions.sum()[["protein", "rna"]], by_modality[["protein", "rna"]], rtol=1e-4
    )


def test_derivatives_are_those_of_the_network(model: totalvi.Model) -> None:
    question = model._question(None, range(5), 5, False)
    with question.minibatches("cells") as batches:
        batch = next(batches)
    u = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    library = torch.full((5, 1), 900.0)
    network = model.module

    def moved(u: torch.Tensor) -> torch.Tensor:
        parts = _moved(
            network, network.decode(network.transform_latent(u), batch.context), library, batch
        )
        return torch.cat([parts.log_mean, parts.protein.flatten(1)], dim=1)

    exact = torch.autograd.functional.jacobian(lambda u: moved(u).sum(dim=0), u)
    with torch.no_grad():
        found = _derivatives(network, batch, u, library)
    near = torch.cat([found.log_mean, found.protein.flatten(2)], dim=2)
    # a step that passes the kink of a rectifier differs from the derivative at its middle
    difference = (near - exact.permute(1, 2, 0)).abs()
    assert difference.median() < 1e-3
    assert (difference > 0.05).float().mean() < 0.02


def test_a_cell_is_told_the_same_alone(model: totalvi.Model) -> None:
    everyone = model.get_modality_information().cells
    some = model.get_modality_information(indices=[7, 50, 3], batch_size=2).cells
    pd.testing.assert_frame_equal(everyone.iloc[[7, 50, 3]], some, rtol=1e-3)


def test_unmeasured_proteins_tell_nothing(mdata: MuData, model: totalvi.Model) -> None:
    told = model.get_modality_information(groupby="batch").features
    lacking = np.isnan(mdata["prot"].X).any(axis=0)
    assert lacking.sum() == 2
    names = mdata["prot"].var_names[lacking]
    without, with_all = sorted(mdata.obs["batch"].unique(), reverse=True)
    assert (told.loc[names, without] == 0).all()
    assert (told.loc[names, with_all] >= 0).all()
    assert told.loc[names, with_all].sum() > 0


def test_groups_average_to_all_and_cells_without_one_are_left_out(
    mdata: MuData, model: totalvi.Model
) -> None:
    groups = np.array(["a"] * 30 + [None] * 30 + ["b"] * 60, dtype=object)
    told = model.get_modality_information(groupby=groups)
    assert list(told.features.columns) == ["modality", "a", "b"]
    assert told.features["b"].sum() == pytest.approx(told.cells["total"][60:].mean(), rel=1e-4)
    with pytest.raises(ValueError, match="groupby is 'cluster', which is no column of obs"):
        model.get_modality_information(groupby="cluster")
    with pytest.raises(ValueError, match="groupby has 3 values; allowed are 120"):
        model.get_modality_information(groupby=["a", "b", "c"])


def test_a_modality_that_a_cell_lacks_tells_nothing() -> None:
    whole = totalvi.simulate(n_cells=120, n_genes=40, n_proteins=6, seed=2)
    parts = {"rna": whole["rna"][:90].copy(), "prot": whole["prot"][40:].copy()}
    for part in parts.values():
        part.obs = pd.DataFrame(index=part.obs_names)
    cells = totalvi.mosaic(MuData(parts))
    mosaic = totalvi.Model(cells, n_latent=3, n_hidden=16, seed=0)
    mosaic.train(2, progress=False)
    told = mosaic.get_modality_information().cells
    measured = cells.obs["measured_modalities"]
    assert (told["protein"][measured == "rna"] == 0).all()
    assert (told["rna"][measured == "prot"] == 0).all()
    assert (told["protein"][measured == "both"] > 0).all()


def test_information_grows_with_the_number_of_counts(model: totalvi.Model) -> None:
    """Ten times the library size tells more: the information of RNA is larger in every direction."""
    question = model._question(None, range(20), 20, False)
    with question.minibatches("cells") as batches:
        batch = next(batches)
        fewer = nats(information(model.module, batch).rna)
        deeper = batch.context._replace(library_size=10 * batch.context.library_size)
        more = nats(information(model.module, batch._replace(context=deeper)).rna)
    assert (more > fewer).all()
