"""What holds of the posterior whatever the weights, the kind of network and the question."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from counts import N_GENES, N_PROTEINS, SMALL, denoised, described, question
from totalvi.data.cells import CiteData
from totalvi.errors import BackgroundError
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import ProteinScale, draws, protein_mixture
from totalvi.posterior.evidence import elbo_terms
from totalvi.posterior.noise import CellNoise

N_CELLS, N_BATCHES = 60, 2
GENES, PROTEINS = np.arange(N_GENES), np.arange(N_PROTEINS)
CODES = st.one_of(
    st.just((None,)), st.lists(st.integers(0, N_BATCHES - 1), min_size=1, max_size=4).map(tuple)
)
OPTIONS = st.fixed_dictionaries(
    {
        "latent_distribution": st.sampled_from(["normal", "ln"]),
        "reconstruction_loss_gene": st.sampled_from(["nb", "zinb"]),
        "library": st.sampled_from(["observed", "latent"]),
        "gene_dispersion": st.sampled_from(["gene", "gene-batch"]),
        "background_scale": st.sampled_from(["exp", "softplus"]),
        "protein_efficiency": st.booleans(),
    }
)
SEEDS = st.integers(0, 2**16)
SOME = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described(N_CELLS)


def network(seed: int, options: dict[str, Any], spread: float = 1.0, **more: Any) -> TOTALVI:
    """A network with weights drawn again, larger ones for a larger ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    module = TOTALVI(
        N_GENES, N_PROTEINS, n_batch=N_BATCHES, generator=generator, **SMALL, **options, **more
    ).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1 + (spread - 1) * torch.rand(weight.shape, generator=generator))
    return module


def ask(
    data: CiteData,
    module: TOTALVI,
    cells: np.ndarray,
    seed: int,
    batch_size: int,
    n_samples: int = 1,
    transform_batch: tuple[int | None, ...] = (None,),
    **wanted: Any,
) -> tuple[np.ndarray, np.ndarray]:
    asked = question(
        data, module, cells, seed,
        batch_size=batch_size, n_samples=n_samples, transform_batch=transform_batch,
    )  # fmt: skip
    try:
        return denoised(asked, **wanted)
    except BackgroundError:  # some networks of random weights have a background beyond any count
        reject()


@given(OPTIONS, SEEDS, st.floats(1, 3), CODES)
@SOME
def test_rho_sums_to_one_and_foreground_is_above_background(
    data: CiteData, options: dict[str, Any], seed: int, spread: float, codes: tuple[int | None, ...]
) -> None:
    module = network(seed, options, spread)
    batch = minibatch(data, module, np.arange(N_CELLS))
    with torch.no_grad():
        for draw in draws(module, batch, 2, CellNoise(seed), codes):
            rho = module.proportions(draw.decoded)
            assert (rho >= 0).all()
            torch.testing.assert_close(rho.sum(dim=1), torch.ones(N_CELLS), rtol=1e-4, atol=1e-4)
            assert (draw.decoded.foreground_factor >= 1).all()
            total = draw.proteins.foreground_probability() + draw.proteins.background_probability()
            torch.testing.assert_close(total, torch.ones_like(total))


@given(
    OPTIONS, SEEDS, CODES, st.floats(0.1, 1e5), st.integers(1, 3), st.integers(2, N_CELLS),
)  # fmt: skip
@SOME
def test_the_library_size_is_applied_once_however_many_batches(
    data: CiteData,
    options: dict[str, Any],
    seed: int,
    codes: tuple[int | None, ...],
    library_size: float,
    n_samples: int,
    batch_size: int,
) -> None:
    module = network(seed, options)
    cells = np.arange(N_CELLS)
    given = {"transform_batch": codes, "n_samples": n_samples}
    rna, _ = ask(data, module, cells, seed, batch_size, library_size=library_size, **given)
    np.testing.assert_allclose(rna.sum(axis=1), library_size, rtol=1e-3)
    latent, _ = ask(data, module, cells, seed, batch_size, library_size="latent", **given)
    batch = minibatch(data, module, cells)
    with torch.no_grad():
        sizes = [
            draw.library_size[:, 0] for draw in draws(module, batch, n_samples, CellNoise(seed))
        ]
    np.testing.assert_allclose(latent.sum(axis=1), torch.stack(sizes).mean(dim=0), rtol=1e-3)


@given(
    OPTIONS,
    SEEDS,
    CODES,
    st.lists(st.integers(0, N_CELLS - 1), min_size=1, max_size=20),
    st.integers(1, N_CELLS),
    st.permutations(range(N_PROTEINS)),
    st.booleans(),
)
@SOME
def test_cells_and_features_are_answered_as_among_all(
    data: CiteData,
    options: dict[str, Any],
    seed: int,
    codes: tuple[int | None, ...],
    cells: list[int],
    batch_size: int,
    proteins: list[int],
    mixing: bool,
) -> None:
    module = network(seed, options)
    given = {"transform_batch": codes, "scale": ProteinScale(sample_mixing=mixing), "n_samples": 2}
    everything = ask(data, module, np.arange(N_CELLS), seed, N_CELLS, **given)
    again = ask(data, module, np.arange(N_CELLS), seed, N_CELLS, **given)
    assert all(np.array_equal(*pair) for pair in zip(everything, again, strict=True))
    chosen = np.array(proteins[:3])
    rna, protein = ask(
        data,
        module,
        np.array(cells),
        seed,
        batch_size,
        genes=GENES[::-2].copy(),
        proteins=chosen,
        **given,
    )
    np.testing.assert_allclose(rna, everything[0][cells][:, ::-2], rtol=1e-3, atol=1e-6)
    mixed = (
        mixing * 0.02 * everything[1].max()
    )  # a mixing probability next to its draw may turn over
    np.testing.assert_allclose(
        protein, everything[1][cells][:, chosen], rtol=1e-3, atol=1e-4 + mixed
    )


@given(OPTIONS, SEEDS, st.integers(0, N_BATCHES - 1))
@SOME
def test_a_counterfactual_that_is_the_own_batch_changes_nothing(
    data: CiteData, options: dict[str, Any], seed: int, code: int
) -> None:
    module = network(seed, options)
    cells = np.flatnonzero(data.batch == code)
    own = ask(data, module, cells, seed, 16)
    same = ask(data, module, cells, seed, 16, transform_batch=(code,))
    assert all(np.array_equal(*pair) for pair in zip(own, same, strict=True))


@given(OPTIONS, SEEDS, st.sets(st.integers(0, N_PROTEINS - 1), min_size=1, max_size=N_PROTEINS - 1))
@SOME
def test_masks_leave_other_proteins_unchanged(
    data: CiteData, options: dict[str, Any], seed: int, masked: set[int]
) -> None:
    """A mask takes its proteins out of the loss of its panel, and nothing else."""
    measured = np.ones((N_BATCHES, N_PROTEINS), dtype=bool)
    measured[1, list(masked)] = False
    plain = network(seed, options)
    module = network(seed, options, protein_batch_mask=measured)
    module.load_state_dict(plain.state_dict(), strict=False)
    batch = minibatch(data, plain, np.arange(N_CELLS))
    with torch.no_grad():
        (before,), (after,) = (draws(m, batch, 1, CellNoise(seed)) for m in (plain, module))
        old, new = (protein_mixture(m, d, PROTEINS) for m, d in ((plain, before), (module, after)))
        for part in ("log_background", "log_foreground", "log_r", "background_logit"):
            assert torch.equal(getattr(old, part), getattr(new, part))
        losses = elbo_terms(module, batch, after)
        whole = elbo_terms(plain, batch, before)
        left_out = ~torch.from_numpy(measured[data.batch])
        missing = (old.log_prob(batch.y) * left_out).sum(dim=1)
    torch.testing.assert_close(
        losses.reconst_loss_protein, whole.reconst_loss_protein + missing, rtol=1e-3, atol=1e-2
    )
    assert torch.equal(losses.reconst_loss_gene, whole.reconst_loss_gene)
    assert torch.equal(losses.kl_div_z, whole.kl_div_z)
