"""The class against its reference document and the closed forms of its model."""

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from counts import library_prior, minibatch
from totalvi.nn.cell import sparse_counts
from totalvi.nn.likelihoods import log_proportions
from totalvi.nn.v06 import TOTALVI

N_CELLS, N_GENES, N_PROTEINS = 7, 12, 5
BATCH = torch.tensor([0, 1, 0, 1, 1, 0, 1])
LABEL = torch.tensor([2, 1, 0, 1, 2, 0, 0])
REQUIRED = inspect.Parameter.empty

# the reference document, word for word
REFERENCE_ARGUMENTS = {
    "n_input_genes": REQUIRED,
    "n_input_proteins": REQUIRED,
    "n_batch": 0,
    "n_labels": 0,
    "n_hidden": 256,
    "n_latent": 20,
    "n_layers_encoder": 1,
    "n_layers_decoder": 1,
    "dropout_rate_decoder": 0.2,
    "dropout_rate_encoder": 0.2,
    "gene_dispersion": "gene",
    "protein_dispersion": "protein",
    "log_variational": True,
    "reconstruction_loss_gene": "nb",
    "latent_distribution": "ln",
    "protein_batch_mask": None,
    "encoder_batch": True,
}
XY = {"x": REQUIRED, "y": REQUIRED}
REFERENCE_METHODS: dict[str, dict[str, Any]] = {
    "forward": {
        **XY,
        "local_l_mean_gene": REQUIRED,
        "local_l_var_gene": REQUIRED,
        "batch_index": None,
        "label": None,
    },
    "get_reconstruction_loss": {
        **XY,
        "px_": REQUIRED,
        "py_": REQUIRED,
        "pro_batch_mask_minibatch": None,
    },
    "get_sample_dispersion": {**XY, "batch_index": None, "label": None, "n_samples": 1},
    "get_sample_rate": {**XY, "batch_index": None, "label": None, "n_samples": 1},
    "get_sample_scale": {
        **XY,
        "batch_index": None,
        "label": None,
        "n_samples": 1,
        "transform_batch": None,
        "eps": 0,
        "normalize_pro": False,
        "sample_bern": True,
        "include_bg": False,
    },
    "inference": {
        **XY,
        "batch_index": None,
        "label": None,
        "n_samples": 1,
        "transform_batch": None,
    },
    "sample_from_posterior_l": {**XY, "batch_index": None, "give_mean": True},
    "sample_from_posterior_z": {**XY, "batch_index": None, "give_mean": False, "n_samples": 5000},
}
# every way to configure the class, each with the inputs that it needs
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "zinb": ({"reconstruction_loss_gene": "zinb"}, {}),
    "normal": ({"latent_distribution": "normal"}, {}),
    "no log": ({"log_variational": False}, {}),
    "layers": ({"n_layers_encoder": 2, "n_layers_decoder": 3}, {}),
    "batches": ({"n_batch": 2}, {"batch_index": BATCH}),
    "batch unseen by the encoder": (
        {"n_batch": 2, "encoder_batch": False},
        {"batch_index": BATCH},
    ),
    "dispersion by batch": (
        {"n_batch": 2, "gene_dispersion": "gene-batch", "protein_dispersion": "protein-batch"},
        {"batch_index": BATCH},
    ),
    "dispersion by label": (
        {"n_labels": 3, "gene_dispersion": "gene-label", "protein_dispersion": "protein-label"},
        {"label": LABEL},
    ),
    "mask": (
        {"n_batch": 2, "protein_batch_mask": [[True] * 5, [True, True, False, True, False]]},
        {"batch_index": BATCH},
    ),
    "panels": (
        {"n_batch": 2, "n_panels": 3, "protein_batch_mask": ~torch.eye(3, 5).bool()},
        {"batch_index": BATCH, "panel_index": LABEL},
    ),
    "observed library": ({"library": "observed"}, {}),
    "size factor": ({"library": "size_factor"}, {"size_factor": torch.rand(7, 1) + 0.5}),
    "covariates": (
        {"n_batch": 2, "n_categories_per_covariate": [3, 1], "n_continuous_covariates": 2},
        {
            "batch_index": BATCH,
            "categorical_covariates": torch.stack([LABEL, 0 * LABEL], dim=1),
            "continuous_covariates": torch.linspace(-1, 1, 14).reshape(7, 2),
        },
    ),
    "covariates unseen by the encoder": (
        {
            "n_categories_per_covariate": [3],
            "n_continuous_covariates": 1,
            "encode_covariates": False,
        },
        {
            "categorical_covariates": LABEL[:, None],
            "continuous_covariates": torch.linspace(-1, 1, 7)[:, None],
        },
    ),
    "as scvi-tools": (
        {
            "n_batch": 2,
            "encoder_architecture": "direct",
            "scale_input": True,
            "background_scale": "softplus",
            "protein_efficiency": True,
        },
        {"batch_index": BATCH},
    ),
    "layer norm": ({"normalization": "layer", "n_layers_decoder": 2}, {}),
    "no norm": ({"normalization": "none"}, {}),
}
ALL = pytest.mark.parametrize("name", CONFIGURATIONS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(**options: Any) -> TOTALVI:
    sizes = {"n_hidden": 16, "n_latent": 4, "generator": generator(1)}
    return TOTALVI(N_GENES, N_PROTEINS, **{**sizes, **options})


def configured(name: str) -> tuple[TOTALVI, dict[str, Any]]:
    options, inputs = CONFIGURATIONS[name]
    x, y = minibatch(N_CELLS, N_GENES, N_PROTEINS)
    return build(**options).eval(), {"x": x, "y": y, **inputs}


def without_label(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "label"}


def prior() -> dict[str, Tensor]:
    return dict(zip(("local_l_mean_gene", "local_l_var_gene"), library_prior(N_CELLS), strict=True))


# -------------------------------------------------------------------------------- the reference


def positional(function: Any) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self"
    }


def test_the_signature_is_the_references() -> None:
    ours = positional(TOTALVI)
    assert list(ours.items()) == list(REFERENCE_ARGUMENTS.items())
    assert issubclass(TOTALVI, torch.nn.Module)


@pytest.mark.parametrize("method", REFERENCE_METHODS)
def test_the_methods_are_the_references(method: str) -> None:
    ours, expected = positional(getattr(TOTALVI, method)), REFERENCE_METHODS[method]
    assert list(ours) == list(expected)
    for name, default in expected.items():
        # the library prior may be left out where the library size is not latent
        assert ours[name] is default or ours[name] == default or name.startswith("local_l_")


def test_use_cuda_without_a_gpu_warns_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="no CUDA device: the model stays on the CPU") as caught:
        module = TOTALVI(N_GENES, N_PROTEINS, use_cuda=True)
    assert caught[0].filename == __file__
    assert next(module.parameters()).device.type == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOTALVI(N_GENES, N_PROTEINS, use_cuda=False)


# -------------------------------------------------------------------------------- shapes


@ALL
def test_forward_gives_five_finite_terms_with_gradients(name: str) -> None:
    module, inputs = configured(name)
    terms = module.train()(**inputs, **prior(), generator=generator())
    assert [tuple(term.shape) for term in terms] == [(N_CELLS,)] * 5
    assert all(term.isfinite().all() for term in terms)
    sum(term.sum() for term in terms).backward()
    for parameter_name, parameter in module.named_parameters():
        if not parameter.requires_grad:  # batch normalisation takes these biases away
            assert parameter_name.endswith("bias")
            continue
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@ALL
def test_sparse_counts_give_the_same_terms(name: str) -> None:
    module, inputs = configured(name)
    dense = module(**inputs, **prior(), generator=generator())
    sparse = module(
        **(inputs | {"x": sparse_counts(inputs["x"])}), **prior(), generator=generator()
    )
    for a, b in zip(dense, sparse, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@ALL
@pytest.mark.parametrize("n_samples", [1, 3])
def test_shapes(name: str, n_samples: int) -> None:
    module, inputs = configured(name)
    outputs = module.inference(**inputs, n_samples=n_samples)
    lead = (N_CELLS,) if n_samples == 1 else (n_samples, N_CELLS)
    px_, py_ = outputs["px_"], outputs["py_"]
    for values, entries, width in (
        (px_, ("scale", "rate"), N_GENES),
        (py_, ("back_alpha", "back_beta", "rate_back", "fore_scale"), N_PROTEINS),
        (py_, ("rate_fore", "mixing", "scale"), N_PROTEINS),
        (outputs, ("qz_m", "qz_v", "z", "untran_z"), 4),
        (outputs, ("library_gene",), 1),
        (outputs, ("log_pro_back_mean",), N_PROTEINS),
    ):
        for entry in entries:
            assert tuple(values[entry].shape) == (*lead, width), entry
    assert "dropout" in px_  # of an "nb" network, too, as 0.6.x returned it
    latent = module.library == "latent"
    for entry in ("ql_m", "ql_v", "untran_l"):
        assert (outputs[entry] is not None) is latent
        assert not latent or tuple(outputs[entry].shape) == (*lead, 1)

    by_cell = "dispersion" in name
    r = (N_CELLS,) if by_cell else ()
    assert tuple(px_["r"].shape) == (*r, N_GENES)
    assert tuple(py_["r"].shape) == (*r, N_PROTEINS)
    dispersions = module.get_sample_dispersion(**inputs, n_samples=n_samples)
    for dispersion, width in zip(dispersions, (N_GENES, N_PROTEINS), strict=True):
        assert tuple(dispersion.shape) == ((*lead, width) if by_cell else (width,))

    assert module.get_sample_rate(**inputs, n_samples=n_samples).shape == (*lead, N_GENES)
    scales = module.get_sample_scale(**inputs, n_samples=n_samples)
    assert [tuple(s.shape) for s in scales] == [(*lead, N_GENES), (*lead, N_PROTEINS)]
    for loss in module.get_reconstruction_loss(inputs["x"], inputs["y"], px_, py_):
        assert tuple(loss.shape) == lead
    cells = without_label(inputs)
    assert module.sample_from_posterior_z(**cells).shape == (N_CELLS, 4)
    assert module.sample_from_posterior_z(**cells, give_mean=True, n_samples=3).shape == (
        N_CELLS,
        4,
    )
    assert module.sample_from_posterior_l(**cells).shape == (N_CELLS, 1)
    assert module.sample_from_posterior_l(**cells, give_mean=False).shape == (N_CELLS, 1)


@pytest.mark.parametrize("name", ["dispersion by batch", "dispersion by label", "default"])
def test_one_cell_has_the_shapes_of_many(name: str) -> None:
    module, inputs = configured(name)
    one = {key: value[:1] for key, value in inputs.items()}
    assert module.get_sample_scale(**one)[1].shape == (1, N_PROTEINS)
    expected = (1, N_GENES) if name != "default" else (N_GENES,)
    assert module.inference(**one)["px_"]["r"].shape == expected
    if name != "default":
        assert module.get_sample_dispersion(**one, n_samples=2)[0].shape == (2, 1, N_GENES)


@pytest.mark.parametrize(
    "form",
    [
        lambda codes, _: codes,
        lambda codes, _: codes[:, None],
        lambda codes, _: codes[:, None].float(),
        lambda codes, n: F.one_hot(codes, n),
        lambda codes, n: F.one_hot(codes, n).float(),
        lambda codes, _: codes.int(),
    ],
    ids=["(B,)", "(B, 1)", "(B, 1) float", "one-hot", "one-hot float", "int32"],
)
def test_forms_of_batch_and_label(form: Any) -> None:
    x, y = minibatch(N_CELLS, N_GENES, N_PROTEINS)
    module = build(
        n_batch=2, n_labels=3, gene_dispersion="gene-label", protein_dispersion="protein-batch"
    ).eval()
    expected = module(x, y, *library_prior(N_CELLS), BATCH, LABEL, generator=generator())
    ours = module(
        x, y, *library_prior(N_CELLS), form(BATCH, 2), form(LABEL, 3), generator=generator()
    )
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@ALL
def test_only_what_a_configuration_uses_is_built(name: str) -> None:
    module, _ = configured(name)
    names = {parameter for parameter, _ in module.named_parameters()}
    assert any("dropout_head" in n for n in names) is (name == "zinb")
    assert any("library_" in n for n in names) is (module.library == "latent")
    assert ("log_efficiency" in names) is (name == "as scvi-tools")
    assert any("batch_norm" in n for n in names) is ("norm" not in name or name == "normal")
    assert any("decoder.first.linear.covariate_weight" in n for n in names) is (
        module.n_batch > 1 or "covariates" in name
    )


# -------------------------------------------------------------------------------- the model


@ALL
def test_parameters_are_those_of_the_model(name: str) -> None:
    module, inputs = configured(name)
    outputs = module.inference(**inputs, generator=generator())
    px_, py_ = outputs["px_"], outputs["py_"]
    torch.testing.assert_close(px_["rate"], outputs["library_gene"] * px_["scale"])
    if module.library == "size_factor":
        torch.testing.assert_close(outputs["library_gene"], inputs["size_factor"])
        assert (px_["scale"] > 0).all()
    else:
        torch.testing.assert_close(px_["scale"].sum(dim=1), torch.ones(N_CELLS))
    if module.library == "observed":
        torch.testing.assert_close(outputs["library_gene"][:, 0], inputs["x"].sum(dim=1))
    if module.library == "latent":
        torch.testing.assert_close(outputs["library_gene"], outputs["untran_l"].exp())
    if module.latent_distribution == "ln":
        torch.testing.assert_close(outputs["z"], outputs["untran_z"].softmax(dim=1))
    else:
        assert torch.equal(outputs["z"], outputs["untran_z"])
    torch.testing.assert_close(py_["rate_back"], outputs["log_pro_back_mean"].exp())
    assert (py_["fore_scale"] >= 1).all()
    torch.testing.assert_close(py_["rate_fore"], py_["rate_back"] * py_["fore_scale"])
    foreground = (1 - torch.sigmoid(py_["mixing"])) * py_["rate_fore"]
    torch.testing.assert_close(
        py_["scale"], foreground / foreground.sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-6
    )


@ALL
def test_reconstruction_loss_of_inference_is_that_of_forward(name: str) -> None:
    module, inputs = configured(name)
    terms = module(**inputs, **prior(), generator=generator())
    outputs = module.inference(**inputs, generator=generator())
    context = module.context(**inputs)
    losses = module.get_reconstruction_loss(
        inputs["x"],
        inputs["y"],
        outputs["px_"],
        outputs["py_"],
        module.measured(context.panel),
    )
    torch.testing.assert_close(losses[0], terms.reconst_loss_gene, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses[1], terms.reconst_loss_protein, rtol=1e-4, atol=1e-4)


def test_several_samples_differ_and_average_to_the_posterior_mean() -> None:
    module, inputs = configured("normal")
    outputs = module.inference(**inputs, n_samples=4000, generator=generator())
    assert not torch.equal(outputs["z"][0], outputs["z"][1])
    error = (outputs["z"].mean(dim=0) - outputs["qz_m"][0]).abs()
    assert (error < 5 * (outputs["qz_v"][0] / 4000).sqrt()).all()
    torch.testing.assert_close(outputs["z"].var(dim=0), outputs["qz_v"][0], rtol=0.15, atol=0)


def test_samples_are_decoded_in_their_own_cells_context() -> None:
    module, inputs = configured("covariates")
    outputs = module.inference(**inputs, n_samples=3, generator=generator())
    decoded = module.decode(outputs["z"][2], module.context(**inputs))
    torch.testing.assert_close(outputs["py_"]["mixing"][2], decoded.background_logit)


def test_transform_batch_decodes_and_disperses_as_that_batch_but_encodes_as_the_own() -> None:
    module, inputs = configured("dispersion by batch")
    with torch.no_grad():
        module.protein_log_r[1] += 1
    into_one = module.inference(**inputs, transform_batch=1, generator=generator())
    own = module.inference(**inputs, generator=generator())
    assert torch.equal(into_one["qz_m"], own["qz_m"])
    assert torch.equal(into_one["z"], own["z"])
    in_one = BATCH == 1
    for part in ("px_", "py_"):
        for entry in ("scale", "r"):
            same = (into_one[part][entry] == own[part][entry]).all(dim=1)
            assert same[in_one].all()
            assert not same[~in_one].any()
    torch.testing.assert_close(into_one["px_"]["r"][0], module.gene_log_r[1].exp())


def test_transform_batch_leaves_the_panel() -> None:
    module, inputs = configured("mask")
    context = module.context(**inputs)
    moved = context.in_batch(0)
    assert torch.equal(moved.panel, context.panel)
    assert (moved.batch == 0).all()


# -------------------------------------------------------------------------------- scales


def expected_scale(
    outputs: dict[str, Any], background: Tensor, normalize: bool, include: bool, eps: float
) -> Tensor:
    py_ = outputs["py_"]
    value = (1 - background) * py_["rate_fore"]
    if include:
        value = value + background * py_["rate_back"]
    if normalize:
        value = value / value.sum(dim=-1, keepdim=True)
    return value + eps


@pytest.mark.parametrize("include_bg", [False, True])
@pytest.mark.parametrize("normalize_pro", [False, True])
@pytest.mark.parametrize("n_samples", [1, 2])
def test_sample_scale_mixes_adds_background_normalises_then_adds_eps(
    n_samples: int, normalize_pro: bool, include_bg: bool
) -> None:
    module, inputs = configured("batches")
    outputs = module.inference(**inputs, n_samples=n_samples, generator=generator())
    genes, proteins = module.get_sample_scale(
        **inputs,
        n_samples=n_samples,
        eps=0.25,
        normalize_pro=normalize_pro,
        sample_bern=False,
        include_bg=include_bg,
        generator=generator(),
    )
    background = torch.sigmoid(outputs["py_"]["mixing"])
    torch.testing.assert_close(genes, outputs["px_"]["scale"])
    torch.testing.assert_close(
        proteins, expected_scale(outputs, background, normalize_pro, include_bg, 0.25)
    )


def test_sample_bern_draws_background_or_foreground_with_the_mixing_probability() -> None:
    module, inputs = configured("default")
    n_samples = 3000
    arguments = {**inputs, "n_samples": n_samples}
    outputs = module.inference(**arguments, generator=generator())
    _, drawn = module.get_sample_scale(**arguments, include_bg=True, generator=generator())
    py_ = outputs["py_"]
    is_foreground = torch.isclose(drawn, py_["rate_fore"])
    assert (is_foreground | torch.isclose(drawn, py_["rate_back"])).all()
    _, without = module.get_sample_scale(**arguments, generator=generator())
    assert ((without == 0) | torch.isclose(without, py_["rate_fore"])).all()
    share = (without > 0).double().mean(dim=0)
    expected = torch.sigmoid(-py_["mixing"]).double().mean(dim=0)
    assert ((share - expected).abs() < 5 * (0.25 / n_samples) ** 0.5).all()


def test_a_cell_whose_proteins_are_all_background_normalises_to_zero() -> None:
    module, inputs = configured("default")
    with torch.no_grad():
        module.decoder.background_logit_head.bias.fill_(200)
    _, proteins = module.get_sample_scale(**inputs, normalize_pro=True)
    assert torch.equal(proteins, torch.zeros_like(proteins))


# -------------------------------------------------------------------------------- posteriors


def test_posterior_mean_of_z() -> None:
    module, inputs = configured("normal")
    outputs = module.inference(**inputs)
    assert torch.equal(module.sample_from_posterior_z(**inputs, give_mean=True), outputs["qz_m"])
    module, inputs = configured("default")
    outputs = module.inference(**inputs)
    mean = module.sample_from_posterior_z(
        **inputs, give_mean=True, n_samples=20_000, generator=generator()
    )
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(N_CELLS))
    noise = torch.randn(40_000, N_CELLS, 4, generator=generator(9))
    expected = (outputs["qz_m"] + outputs["qz_v"].sqrt() * noise).softmax(dim=-1).mean(dim=0)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("n_samples", [1, 49, 50, 51, 130])
def test_the_streamed_mean_counts_every_sample_once(n_samples: int) -> None:
    module, inputs = configured("default")
    mean = module.sample_from_posterior_z(**inputs, give_mean=True, n_samples=n_samples)
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(N_CELLS))


def test_sample_of_z_is_one_draw() -> None:
    module, inputs = configured("default")
    sample = module.sample_from_posterior_z(**inputs, generator=generator(3))
    assert torch.equal(sample, module.inference(**inputs, generator=generator(3))["z"])
    assert not torch.equal(sample, module.sample_from_posterior_z(**inputs, generator=generator(4)))


def test_library_size_of_the_posterior() -> None:
    module, inputs = configured("default")
    outputs = module.inference(**inputs)
    mean = module.sample_from_posterior_l(**inputs)
    torch.testing.assert_close(mean, (outputs["ql_m"] + outputs["ql_v"] / 2).exp())
    draws = torch.stack(
        [
            module.sample_from_posterior_l(**inputs, give_mean=False, generator=generator(seed))
            for seed in range(400)
        ]
    ).log()
    error = (draws.mean(dim=0) - outputs["ql_m"]).abs()
    assert (error < 5 * (outputs["ql_v"] / 400).sqrt()).all()


def test_a_huge_latent_library_size_is_bounded() -> None:
    module, inputs = configured("default")
    with torch.no_grad():
        module.encoder.library_head.mean.bias.fill_(500)
    outputs = module.inference(**inputs)
    torch.testing.assert_close(
        outputs["library_gene"], torch.full((N_CELLS, 1), np.exp(15.0)).float()
    )
    assert all(t.isfinite().all() for t in module(**inputs, **prior()))


@pytest.mark.parametrize("sparse", [True, False])
def test_a_cell_without_rna_stays_finite(sparse: bool) -> None:
    module, inputs = configured("observed library")
    inputs["x"][2] = 0
    x = sparse_counts(inputs["x"]) if sparse else inputs["x"]
    terms = module(**(inputs | {"x": x}))
    sum(term.sum() for term in terms).backward()
    assert all(term.isfinite().all() for term in terms)
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


# -------------------------------------------------------------------------------- masked proteins

MASKED_CONFIGURATIONS = {
    "by batch": ({"n_batch": 2}, {}),
    "by panel": ({"n_batch": 2, "n_panels": 2}, {"panel_index": 1 - BATCH}),
    "all by batch": (
        {
            "n_batch": 2,
            "protein_dispersion": "protein-batch",
            "encoder_architecture": "direct",
            "background_scale": "softplus",
        },
        {},
    ),
}
MASK = torch.tensor([[True] * 5, [True, True, False, True, False]])


@pytest.mark.parametrize("name", MASKED_CONFIGURATIONS)
def test_unmeasured_values_change_no_term_at_given_latent_variables(name: str) -> None:
    options, extras = MASKED_CONFIGURATIONS[name]
    module = build(**options, protein_batch_mask=MASK).eval()
    x, y = minibatch(N_CELLS, N_GENES, N_PROTEINS)
    context = module.context(x, y, BATCH, **extras)
    measured = module.measured(context.panel)
    assert measured is not None
    posterior = module.encode(x, y, context)
    decoded = module.decode(posterior.qz_m, context)
    given = (context, posterior, decoded, torch.ones(N_CELLS, 1), decoded.background_mean)
    expected = module.elbo_terms(x, y, *given, *library_prior(N_CELLS))
    for value in (777.0, torch.nan, torch.inf):
        changed = torch.where(measured, y, value)
        for a, b in zip(
            module.elbo_terms(x, changed, *given, *library_prior(N_CELLS)), expected, strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", MASKED_CONFIGURATIONS)
def test_nan_is_encoded_as_zero_where_unmeasured(name: str) -> None:
    options, extras = MASKED_CONFIGURATIONS[name]
    module = build(**options, protein_batch_mask=MASK)
    x, y = minibatch(N_CELLS, N_GENES, N_PROTEINS)
    measured = module.measured(module.context(x, y, BATCH, **extras).panel)
    terms = [
        module(
            x,
            torch.where(measured, y, value),
            *library_prior(N_CELLS),
            BATCH,
            generator=generator(),
            **extras,
        )
        for value in (0.0, torch.nan)
    ]
    for zero, nan in zip(*terms, strict=True):
        assert torch.equal(zero, nan)
        assert nan.isfinite().all()


@pytest.mark.parametrize("name", MASKED_CONFIGURATIONS)
def test_parameters_of_unmeasured_proteins_get_no_gradient(name: str) -> None:
    """All cells are of the panel that lacks two proteins."""
    options, extras = MASKED_CONFIGURATIONS[name]
    module = build(**options, protein_batch_mask=MASK)
    x, y = minibatch(N_CELLS, N_GENES, N_PROTEINS)
    batch = torch.ones_like(BATCH)
    extras = dict.fromkeys(extras, batch)
    unmeasured = ~MASK[1]
    y[:, unmeasured] = torch.nan
    terms = module(x, y, *library_prior(N_CELLS), batch, **extras)
    sum(term.sum() for term in terms).backward()
    decoder = module.decoder
    gradients = {
        "prior mean": module.background_prior_mean.grad,
        "prior scale": module.background_prior_log_scale.grad,
        "dispersion": module.protein_log_r.grad,
        "background": decoder.background_mean_head.weight.grad,
        "background bias": decoder.background_mean_head.bias.grad[None],
        "background scale": decoder.background_scale_head.weight.grad,
        "foreground": decoder.foreground_head.weight.grad,
        "mixing": decoder.background_logit_head.weight.grad,
        "mixing by batch": decoder.background_logit_head.covariate_weight.grad,
        "encoder": module.encoder.trunk.first.others.weight.grad.T,
    }
    for key, gradient in gradients.items():
        assert gradient.isfinite().all(), key
        assert (gradient[:, unmeasured] == 0).all(), key
        assert (gradient[:, ~unmeasured] != 0).any(), key
    assert (module.background_prior_mean.grad[0] == 0).all()  # of the panel without cells


def test_masked_loss_is_the_sum_over_measured_proteins() -> None:
    module, inputs = configured("batches")
    outputs = module.inference(**inputs, generator=generator())
    x, y, px_, py_ = inputs["x"], inputs["y"], outputs["px_"], outputs["py_"]
    mask = torch.rand(N_CELLS, N_PROTEINS, generator=generator()) < 0.5
    full = torch.stack(
        [
            module.get_reconstruction_loss(
                x, y, px_, py_, F.one_hot(torch.tensor(t), 5).bool().expand(7, 5)
            )[1]
            for t in range(N_PROTEINS)
        ],
        dim=1,
    )
    masked = module.get_reconstruction_loss(x, torch.where(mask, y, torch.nan), px_, py_, mask)[1]
    torch.testing.assert_close(masked, (full * mask).sum(dim=1))


# -------------------------------------------------------------------------------- extensions


def test_panels_apart_from_batches_have_their_own_background_prior() -> None:
    module, inputs = configured("panels")
    assert module.background_prior_mean.shape == (3, N_PROTEINS)
    expected = module(**inputs, **prior(), generator=generator())
    with torch.no_grad():
        module.background_prior_mean[2] += 3
    ours = module(**inputs, **prior(), generator=generator())
    changed = ours.kl_div_back_pro != expected.kl_div_back_pro
    assert torch.equal(changed, LABEL == 2)


def test_background_prior_starts_where_it_is_told() -> None:
    mean, scale = np.arange(5.0), np.full(5, 0.3)
    module = build(n_batch=2, background_prior=(mean, scale))
    for row in range(2):
        np.testing.assert_allclose(module.background_prior_mean[row].detach(), mean)
        np.testing.assert_allclose(
            module.background_prior_log_scale[row].detach().exp(), scale, rtol=1e-6
        )


def test_size_factor_scales_the_rna_mean_alone() -> None:
    module, inputs = configured("size factor")
    one = module.inference(**inputs, generator=generator())
    two = module.inference(
        **(inputs | {"size_factor": 2 * inputs["size_factor"]}), generator=generator()
    )
    torch.testing.assert_close(two["px_"]["rate"], 2 * one["px_"]["rate"])
    assert torch.equal(two["px_"]["scale"], one["px_"]["scale"])
    context = module.context(**inputs)
    logits = module.decode(one["z"], context).gene_logit
    torch.testing.assert_close(one["px_"]["scale"], F.softplus(logits))
    extreme = log_proportions(torch.tensor([-200.0, -50.0, -20.0, 0.0, 60.0]), softplus=True)
    expected = torch.tensor([-200.0, -50.0, -20.0, np.log(np.log(2)), np.log(60)]).float()
    torch.testing.assert_close(extreme, expected)


def test_covariates_reach_encoder_and_decoder() -> None:
    module, inputs = configured("covariates")
    expected = module.inference(**inputs, generator=generator())
    for name in ("categorical_covariates", "continuous_covariates"):
        flipped = inputs | {name: inputs[name].flip(0)}
        assert not torch.equal(module.inference(**flipped)["qz_m"], expected["qz_m"])
        decoded = module.decode(expected["z"], module.context(**flipped))
        assert not torch.equal(decoded.background_logit, expected["py_"]["mixing"])
    module, inputs = configured("covariates unseen by the encoder")
    expected = module.inference(**inputs)
    flipped = {k: v.flip(0) if "covariates" in k else v for k, v in inputs.items()}
    ours = module.inference(**flipped)
    assert torch.equal(ours["qz_m"], expected["qz_m"])
    assert not torch.equal(ours["px_"]["scale"], expected["px_"]["scale"])


def test_the_encoder_sees_the_batch_only_when_asked() -> None:
    for name, sees in (("batches", True), ("batch unseen by the encoder", False)):
        module, inputs = configured(name)
        flipped = module.inference(**(inputs | {"batch_index": 1 - BATCH}))
        same = torch.equal(flipped["qz_m"], module.inference(**inputs)["qz_m"])
        assert same is not sees


def test_efficiency_multiplies_both_protein_means() -> None:
    module, inputs = configured("as scvi-tools")
    with torch.no_grad():
        module.log_efficiency[1] = torch.arange(5.0) / 5
    py_ = module.inference(**inputs)["py_"]
    torch.testing.assert_close(py_["efficiency"], module.log_efficiency[BATCH].exp())


# -------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("name", ["default", "zinb", "as scvi-tools", "observed library"])
def test_randomness_comes_from_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    options, inputs = CONFIGURATIONS[name]
    x, y = minibatch(N_CELLS, N_GENES, N_PROTEINS)

    def numbers(seed: int) -> list[Tensor]:
        module = build(**options, dropout_rate_encoder=0.5).train()
        g = generator(seed)
        results = [
            *module(x, y, **inputs, **prior(), generator=g),
            *module.get_sample_scale(x, y, **inputs, generator=g),
            module.get_sample_rate(x, y, **inputs, generator=g),
            module.sample_from_posterior_z(x, y, **inputs, generator=g),
            module.sample_from_posterior_z(
                x, y, **inputs, give_mean=True, n_samples=3, generator=g
            ),
            module.sample_from_posterior_l(x, y, **inputs, give_mean=False, generator=g),
        ]
        return [*results, *module.state_dict().values()]

    first, again, other = numbers(0), numbers(0), numbers(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_initial_weights_follow_the_generator() -> None:
    one, same, other = (build(generator=generator(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["gene_log_r"], other["gene_log_r"])
    assert torch.equal(one["protein_log_r"], torch.ones(1, N_PROTEINS))
