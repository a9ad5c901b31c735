"""What the encoder sees of cells that lack a modality, and what their loss leaves out."""

from copy import deepcopy

import pytest
import torch

from totalvi.nn import TOTALVI
from totalvi.nn.cell import CellContext, of_some_cells, sparse_counts, take_cells
from totalvi.nn.measured import Masks

G, T, B = 12, 4, 40
PANEL = torch.arange(B) % 3
PROTEIN = torch.tensor([[True] * T, [False] * T, [True] * T])
RNA = torch.tensor([True, True, False])


def network(**options: object) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    return TOTALVI(
        G, T, n_batch=3, n_hidden=8, n_latent=3, generator=generator, library="observed",
        scale_input=True, **options,
    )  # fmt: skip


def counts() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((B, G), 2.0), generator=generator) + 1
    y = torch.poisson(torch.full((B, T), 5.0), generator=generator) + 1
    return x, y * PROTEIN[PANEL]


def test_all_true_adds_no_parameter_and_no_draw() -> None:
    plain, same = network(), network(panel_measured_rna=[True] * 3)
    assert plain.state_dict().keys() == same.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    x, y = counts()
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    terms = [
        module.train()(sparse_counts(x), y, batch_index=PANEL, generator=g)
        for module, g in zip((plain, same), generators, strict=True)
    ]
    for a, b in zip(*terms, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb"])
def test_cells_without_rna_have_no_gene_loss_and_give_genes_no_gradient(
    sparse: bool, gene_likelihood: str
) -> None:
    module = network(panel_measured_rna=RNA.tolist(), reconstruction_loss_gene=gene_likelihood)
    module.eval()
    x, y = counts()
    has = RNA[PANEL]

    def loss(counted: torch.Tensor) -> torch.Tensor:
        given = sparse_counts(counted) if sparse else counted
        terms = module(
            given, y, batch_index=PANEL,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        return terms.reconst_loss_gene

    of_genes = loss(x * has[:, None])
    assert (of_genes[~has] == 0).all()
    assert (of_genes[has] > 0).all()
    assert torch.equal(loss(x), of_genes)  # what lacks RNA is not seen, whatever stands there
    of_genes[~has].sum().backward()
    gradient = module.decoder.gene_head.weight.grad
    assert gradient is None or (gradient == 0).all()


def test_a_minibatch_without_any_rna_has_finite_gradients() -> None:
    module = network(panel_measured_rna=RNA.tolist()).train()
    x, y = counts()
    panel = torch.full((B,), 2)
    terms = module(
        sparse_counts(torch.zeros_like(x)), y, batch_index=panel,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    terms.reconstruction().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert module.decoder.gene_head.weight.grad is not None  # processes must agree on what has one


def test_training_hides_either_modality_and_never_both() -> None:
    x, y = counts()
    x = x * RNA[PANEL][:, None]
    generator = torch.Generator().manual_seed(0)
    seen_kinds = set()
    for _ in range(20):
        seen = Masks(PROTEIN, RNA).seen(sparse_counts(x), y, PANEL, 0.9, generator)
        rna = seen.x.to_dense().sum(dim=1) > 0
        protein = seen.y.sum(dim=1) > 0
        assert (rna | protein).all()
        assert seen.has_rna is not None
        assert torch.equal(rna, seen.has_rna)
        both = PANEL == 0
        seen_kinds |= set(zip(rna[both].tolist(), protein[both].tolist(), strict=True))
    assert seen_kinds == {(True, True), (True, False), (False, True)}


def test_rows_are_taken_alike_from_sparse_and_dense() -> None:
    x, _ = counts()
    kept = torch.arange(B) % 4 != 1
    rows = kept.nonzero()[:, 0]
    dense, sparse = of_some_cells(x, kept), of_some_cells(sparse_counts(x), kept)
    assert torch.equal(dense, sparse.to_dense())
    assert torch.equal(take_cells(x, rows), take_cells(sparse_counts(x), rows).to_dense())


def test_a_panel_must_have_rna() -> None:
    with pytest.raises(ValueError, match="at least one of them true"):
        network(panel_measured_rna=[False] * 3)
    with pytest.raises(ValueError, match="one truth value for each of 3 panels"):
        network(panel_measured_rna=[True, False])


def test_training_in_a_mosaic_adds_the_disagreement_of_cells_that_hide_something() -> None:
    options = {"panel_measured_rna": RNA.tolist(), "protein_batch_mask": PROTEIN.tolist()}
    x, y = counts()
    x = x * RNA[PANEL][:, None]
    module = network(**options, hidden_protein_rate=0.9, dropout_rate_encoder=0.0).train()
    again = deepcopy(module)
    context = CellContext(PANEL, PANEL, library_size=torch.full((B, 1), 20.0))
    seen = module.seen(x, y, context, torch.Generator().manual_seed(4))
    rows = module.masks.partly_seen(seen, PANEL)
    assert len(rows)
    assert (PANEL[rows] == 0).all()  # the other panels measured one modality, which is never hidden
    posterior = module.posterior_of(seen, context)
    before = {name: value.clone() for name, value in module.named_buffers()}
    found = module._disagreement(x, y, context, seen, posterior)
    assert module.encoder.training
    for name, value in module.named_buffers():
        assert torch.equal(value, before[name])
    full = module.eval().encode(x, y, context)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(full.qz_m, full.qz_v.sqrt()),
        torch.distributions.Normal(posterior.qz_m, posterior.qz_v.sqrt()),
    ).sum(dim=1)
    torch.testing.assert_close(found[rows], expected[rows])
    others = torch.ones(B, dtype=torch.bool).index_fill(0, rows, False)
    assert (found[others] == 0).all()
    assert (found[rows] > 0).all()
    terms = again.elbo(x, y, context, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(terms.kl_div_z, posterior.latent_kl() + 3 * found)
    terms = module.elbo(x, y, context, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(terms.kl_div_z, full.latent_kl())  # not in evaluation


def test_a_mosaic_that_hides_nothing_has_no_disagreement() -> None:
    options = {"panel_measured_rna": RNA.tolist(), "protein_batch_mask": PROTEIN.tolist()}
    x, y = counts()
    x = x * RNA[PANEL][:, None]
    module = network(**options).train()
    context = CellContext(PANEL, PANEL)
    seen = module.seen(x, y, context)
    found = module._disagreement(x, y, context, seen, module.posterior_of(seen, context))
    assert (found == 0).all()
