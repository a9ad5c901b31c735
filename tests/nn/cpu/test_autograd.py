"""What torch may ask of compiled loops: odd inputs, second derivatives, autocast, threads, copies."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from totalvi.nn.cell import LinearProduct, SparseCounts, sparse_counts, sparse_product
from totalvi.nn.cpu.gene_loss import gene_head_loss
from totalvi.nn.cpu.gene_rows import add_proportions, input_product
from totalvi.nn.cpu.hidden import normalized_activation, scaled_relu
from totalvi.nn.cpu.protein_loss import background_divergence, protein_mixture_loss
from totalvi.nn.likelihoods import ElboTerms
from totalvi.nn.ops import gene_reconstruction_loss, suits_compiled_loops
from totalvi.nn.v06 import TOTALVI

N_CELLS, N_GENES, N_PROTEINS, N_HIDDEN = 6, 11, 4, 5
GROUP = torch.arange(N_CELLS) % 2
MEASURED = torch.rand(N_CELLS, N_PROTEINS, generator=torch.Generator().manual_seed(9)) < 0.7


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def rna() -> Tensor:
    x = torch.poisson(normal(N_CELLS, N_GENES, seed=8).exp(), torch.Generator().manual_seed(7))
    x[2], x[0, 0], x[1, 1] = 0, 40, 1.5  # a cell without RNA, a large count, a fraction
    return x


def proteins() -> Tensor:
    y = torch.poisson(normal(N_CELLS, N_PROTEINS).exp() * 9, torch.Generator().manual_seed(6))
    return y.masked_fill(~MEASURED, torch.nan)


def head_loss(
    x: Tensor, weight: Tensor, bias: Tensor, covariate_weight: Tensor, log_library: Tensor,
    log_r: Tensor,
) -> Tensor:  # fmt: skip
    covariates = nn.functional.one_hot(GROUP, 2).to(x)
    head = LinearProduct(x, weight, bias, covariates, covariate_weight)
    counts = sparse_counts(rna())
    return gene_head_loss(head, None, counts, log_library.exp(), log_r, GROUP, False)


def mixture_loss(
    log_background: Tensor, log_factor: Tensor, logit: Tensor, log_r: Tensor
) -> Tensor:
    factor = 1 + log_factor.exp()
    return protein_mixture_loss(proteins(), MEASURED, log_background, factor, logit, log_r, GROUP)


def divergence(mean: Tensor, log_scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
    return background_divergence(MEASURED, mean, log_scale.exp(), prior_mean, prior_scale, GROUP)


def hidden(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch_norm = nn.BatchNorm1d(N_HIDDEN, momentum=0.1).double()
    del batch_norm.weight, batch_norm.bias
    batch_norm.weight, batch_norm.bias = weight, bias  # type: ignore[assignment]
    return normalized_activation(x, batch_norm, 0.3, torch.Generator().manual_seed(1))


def first_layer(weight: Tensor) -> Tensor:
    counts = sparse_counts(rna())
    return input_product(counts.counts, counts, weight, False)


def plain_first_layer(weight: Tensor) -> Tensor:
    counts = sparse_counts(rna())
    return sparse_product(counts.counts, counts, weight)


def plain_gene_loss(log_mean: Tensor, log_r: Tensor) -> Tensor:
    return gene_reconstruction_loss(sparse_counts(rna()), log_mean, log_r)


WIDE, BY_PROTEIN, OF_GROUP = (N_CELLS, N_GENES), (N_CELLS, N_PROTEINS), (2, N_PROTEINS)
CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "genes": (
        head_loss,
        [(N_CELLS, N_HIDDEN), (N_HIDDEN, N_GENES), (N_GENES,), (2, N_GENES), (N_CELLS, 1),
         (2, N_GENES)],
    ),
    "proteins": (mixture_loss, [BY_PROTEIN, BY_PROTEIN, BY_PROTEIN, OF_GROUP]),
    "proteins, samples of the background": (
        mixture_loss, [(4, *BY_PROTEIN), BY_PROTEIN, BY_PROTEIN, OF_GROUP],
    ),
    "background": (divergence, [BY_PROTEIN, BY_PROTEIN, OF_GROUP, OF_GROUP]),
    "hidden": (hidden, [(N_CELLS, N_HIDDEN), (N_HIDDEN,), (N_HIDDEN,)]),
    "first layer": (first_layer, [(N_GENES, N_HIDDEN)]),
    "first layer in torch": (plain_first_layer, [(N_GENES, N_HIDDEN)]),
    "genes in torch": (plain_gene_loss, [WIDE, (1, N_GENES)]),
}  # fmt: skip


def leaves(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    function, shapes = CASES[case]
    assert torch.autograd.gradcheck(function, leaves(shapes), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_tensors_need_not_be_contiguous(case: str) -> None:
    function, shapes = CASES[case]
    inputs = leaves(shapes)
    strided = [
        torch.stack([leaf.detach(), torch.full_like(leaf, 7)], dim=-1)[..., 0].requires_grad_()
        for leaf in inputs
    ]
    results = [function(*arguments) for arguments in (inputs, strided)]
    torch.testing.assert_close(results[1], results[0])
    scale = torch.linspace(1, 2, results[0].numel(), dtype=torch.float64).view_as(results[0])
    for result in results:
        (result * scale).sum().backward()
    for leaf, other in zip(inputs, strided, strict=True):
        torch.testing.assert_close(other.grad, leaf.grad)


@pytest.mark.parametrize("case", CASES)
def test_second_derivatives_are_refused(case: str) -> None:
    function, shapes = CASES[case]
    inputs = leaves(shapes)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad((function(*inputs) * scale).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.stack([gradient.sum() for gradient in gradients]).sum().backward()


def test_weights_changed_between_the_passes_are_noticed() -> None:
    x = normal(N_CELLS, N_HIDDEN).requires_grad_()
    weight = normal(N_HIDDEN, N_GENES).requires_grad_()
    head = LinearProduct(x, weight, normal(N_GENES), None, None)
    library = torch.full((N_CELLS, 1), 9.0, dtype=torch.float64)
    log_r = normal(2, N_GENES)
    loss = gene_head_loss(head, None, sparse_counts(rna()), library, log_r, GROUP, False)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_zeros_that_are_stored_cost_what_other_zeros_do() -> None:
    x = rna().float()
    dense_gene = torch.arange(N_GENES, dtype=torch.int32).repeat(N_CELLS)
    pointer = torch.arange(N_CELLS + 1) * N_GENES
    stored = SparseCounts(x.flatten(), dense_gene, pointer, N_GENES)
    head = LinearProduct(
        normal(N_CELLS, N_HIDDEN).float(), normal(N_HIDDEN, N_GENES).float(),
        normal(N_GENES).float(), None, None,
    )  # fmt: skip
    log_r, library = normal(2, N_GENES).float(), torch.full((N_CELLS, 1), 9.0)
    ours, expected = (
        gene_head_loss(head, None, counts, library, log_r, GROUP, False)
        for counts in (stored, sparse_counts(x))
    )
    torch.testing.assert_close(ours, expected)


# ------------------------------------------------------------------- whole networks


def network(*, fused: bool = True, library: str = "observed") -> TOTALVI:
    options = {"n_hidden": 8, "n_latent": 3, "library": library, "fused": fused}
    options |= {"dropout_rate_encoder": 0, "dropout_rate_decoder": 0}
    generator = torch.Generator().manual_seed(1)
    return TOTALVI(N_GENES, N_PROTEINS, 2, **options, generator=generator)  # type: ignore[arg-type]


def terms(module: TOTALVI, n_cells: int = N_CELLS) -> ElboTerms:
    y = torch.poisson(torch.full((n_cells, N_PROTEINS), 9.0), torch.Generator().manual_seed(2))
    prior = torch.ones(n_cells, 1)
    return module(
        sparse_counts(rna()[:n_cells].float()), y, prior, prior, GROUP[:n_cells],
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


def gradients(module: TOTALVI, n_cells: int = N_CELLS) -> dict[str, Tensor]:
    torch.cat(list(terms(module, n_cells))).sum().backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def test_no_cells_have_terms_and_gradients_of_no_cells() -> None:
    for fused in (True, False):
        module = network(fused=fused).eval()
        assert all(term.shape == (0,) for term in terms(module, 0))
        found = gradients(module, 0)
        assert "gene_log_r" in found
        assert not any(gradient.any() for gradient in found.values())
        with torch.no_grad():
            assert all(term.shape == (0,) for term in terms(module, 0))


def test_a_library_size_that_underflows_leaves_gradients_finite() -> None:
    module = network(library="latent").train()
    with torch.no_grad():
        module.encoder.library_head.mean.bias.fill_(-200)
    assert all(gradient.isfinite().all() for gradient in gradients(module).values())


@pytest.mark.parametrize("training", [True, False])
def test_autocast_is_torch_s(training: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = (terms(network(fused=fused).train(training)) for fused in (True, False))
    for mine, reference in zip(ours, expected, strict=True):
        assert mine.isfinite().all()
        assert torch.equal(mine, reference)


def test_what_compiled_loops_take() -> None:
    assert suits_compiled_loops(torch.ones(2))
    assert suits_compiled_loops(torch.ones(2, dtype=torch.float64))
    assert not suits_compiled_loops(torch.ones(2, dtype=torch.bfloat16))
    assert not suits_compiled_loops(torch.ones(2, device="meta"))
    with torch.autocast("cpu"):
        assert not suits_compiled_loops(torch.ones(2))


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_not_a_number_stays_so(name: str, training: bool) -> None:
    module = network().train(training)
    x, y = rna().float() + 1, torch.ones(N_CELLS, N_PROTEINS)
    (x if name == "x" else y)[3, 2] = torch.nan
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            found = module(sparse_counts(x), y, None, None, GROUP)
        assert found.reconst_loss_gene[3].isnan()
        assert found.reconst_loss_protein[3].isnan()
        assert found.kl_div_z[3].isnan()
        if not training:
            assert found.reconst_loss_gene[:3].isfinite().all()


def test_scaled_relu_is_batch_norm_and_relu_at_rest() -> None:
    batch_norm = nn.BatchNorm1d(N_GENES).train()
    batch_norm(normal(50, N_GENES).float() * 3 + 2)
    batch_norm.eval()
    x = normal(N_GENES, 7).float().t()  # not contiguous
    with torch.no_grad():
        torch.testing.assert_close(scaled_relu(x, batch_norm), torch.relu(batch_norm(x)))


def test_proportions_are_added() -> None:
    covariates = nn.functional.one_hot(GROUP, 2).double()
    head = LinearProduct(
        normal(N_CELLS, N_HIDDEN), normal(N_HIDDEN, N_GENES), normal(N_GENES), covariates,
        normal(2, N_GENES),
    )  # fmt: skip
    total, scale = normal(N_CELLS, N_GENES), normal(1, 1).exp()
    expected = total + scale * head.value().softmax(dim=1)
    add_proportions(head, scale, total)
    torch.testing.assert_close(total, expected)


def test_networks_are_copied_and_pickled() -> None:
    module = network().train()
    expected = gradients(module)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other.zero_grad()
        found = gradients(other)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_number_of_threads_changes_nothing() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            found.append(gradients(network().train()))
    finally:
        torch.set_num_threads(before)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)
