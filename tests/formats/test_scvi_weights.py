"""The network gives the numbers of the public implementations, from their weights and noise."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from torch import Tensor

from totalvi.errors import FormatError
from totalvi.nn.cell import sparse_counts
from totalvi.nn.coders import CellPosterior
from totalvi.nn.v06 import TOTALVI
from totalvi.persistence import load_scvi_state

RELATIVE_TOLERANCE = 1e-4

MODULE_06 = {
    "default_nb_ln": {},
    "batch_zinb_normal": {
        "n_batch": 2,
        "reconstruction_loss_gene": "zinb",
        "latent_distribution": "normal",
        "n_layers_encoder": 2,
        "n_layers_decoder": 2,
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
    },
    "batch_mask_nb_ln": {"n_batch": 2, "encoder_batch": False},
    "label_nb_normal_nolog": {
        "n_batch": 2,
        "n_labels": 3,
        "gene_dispersion": "gene-label",
        "protein_dispersion": "protein-label",
        "latent_distribution": "normal",
        "log_variational": False,
    },
}

SCVI_TOOLS: dict[str, Any] = {
    "n_layers_encoder": 2,
    "encoder_architecture": "direct",
    "scale_input": True,
    "background_scale": "softplus",
    "protein_efficiency": True,
}
MODULE_SCVI_TOOLS = {
    "nb_normal": {"n_batch": 1, "latent_distribution": "normal", "library": "observed"},
    "zinb_ln_batch_missing": {
        "n_batch": 2,
        "latent_distribution": "ln",
        "reconstruction_loss_gene": "zinb",
        "gene_dispersion": "gene-batch",
        "n_layers_decoder": 2,
        "library": "observed",
        "protein_batch_mask": {"0": [True] * 14, "1": [True] * 9 + [False] * 5},
    },
    "latent_library_covariates": {
        "n_batch": 2,
        "latent_distribution": "normal",
        "protein_dispersion": "protein-batch",
        "library": "latent",
        "n_categories_per_covariate": [3],
        "n_continuous_covariates": 1,
    },
}


def assert_close(ours: Any, expected: np.ndarray, name: str) -> None:
    ours = ours.detach().numpy()
    # entries that cancel to nearly nothing are compared on the scale of their array
    tolerance = RELATIVE_TOLERANCE * np.abs(expected).max() * 1e-2
    np.testing.assert_allclose(
        ours, expected, rtol=RELATIVE_TOLERANCE, atol=tolerance, err_msg=name
    )


def run_with_noise(
    module: TOTALVI,
    inputs: dict[str, Any],
    noise: dict[str, torch.Tensor],
    sparse: bool,
) -> dict[str, Any]:
    """Do what `inference` and `forward` do, with the recorded samples in place of new ones."""
    x, y = inputs["x"], inputs["y"]
    x = sparse_counts(x) if sparse else x
    context = module.context(x, y, inputs["batch_index"], inputs.get("label"), **inputs["extras"])
    posterior: CellPosterior = module.encode(x, y, context)
    z = module.transform_latent(noise["untran_z"])
    library_size = noise["untran_l"].exp() if context.library_size is None else context.library_size
    decoded = module.decode(z, context)
    terms = module.elbo_terms(
        x,
        y,
        context,
        posterior,
        decoded,
        library_size,
        noise["log_pro_back_mean"],
        inputs.get("local_l_mean_gene"),
        inputs.get("local_l_var_gene"),
    )
    px_ = module.gene_parameters(decoded, library_size, context)
    py_ = module.protein_parameters(decoded, noise["log_pro_back_mean"], context)
    losses = module.get_reconstruction_loss(x, y, px_, py_, module.measured(context.panel))
    return {
        "z": z,
        "library_gene": library_size,
        "px_": px_,
        "py_": py_,
        "losses": losses,
        **posterior._asdict(),
        **terms._asdict(),
    }


def tensors(arrays: Any, prefix: str) -> dict[str, torch.Tensor]:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): torch.as_tensor(arrays[name]) for name in names}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", MODULE_06)
def test_golden_06(shared: Path, name: str, sparse: bool) -> None:
    stored = np.load(shared / "golden" / f"seed_{name}.npz")
    inputs: dict[str, Any] = {**tensors(stored, "in/"), "extras": {}}
    state, expected = tensors(stored, "param/"), tensors(stored, "out/")
    config: dict[str, Any] = dict(MODULE_06[name])
    if "protein_mask" in inputs:
        config["protein_batch_mask"] = list(inputs["protein_mask"])
    module = TOTALVI(120, 14, n_hidden=32, n_latent=8, **config).eval()
    result = run_with_noise(load_scvi_state(module, state), inputs, expected, sparse)
    library_mean = module.sample_from_posterior_l(
        inputs["x"], inputs["y"], inputs["batch_index"], give_mean=True
    )
    result["library_posterior_mean"] = library_mean

    noise = {"untran_z", "untran_l", "log_pro_back_mean"}
    assert set(expected) - noise  # the file has something to compare
    for key in set(expected) - noise:
        part, _, entry = key.partition("_")
        ours = result[f"{part}_"][entry] if part in ("px", "py") else result[key]
        assert_close(ours, expected[key].numpy(), key)
    for loss, key in zip(
        result["losses"], ("reconst_loss_gene", "reconst_loss_protein"), strict=True
    ):
        assert_close(loss, expected[key].numpy(), f"get_reconstruction_loss: {key}")


def loaded_06(shared: Path, name: str) -> tuple[TOTALVI, dict[str, Any], dict[str, torch.Tensor]]:
    """Return a module with the weights of a file, the counts in it, and what it expects."""
    stored = np.load(shared / "golden" / f"seed_{name}.npz")
    inputs = tensors(stored, "in/")
    config: dict[str, Any] = dict(MODULE_06[name])
    if "protein_mask" in inputs:
        config["protein_batch_mask"] = list(inputs["protein_mask"])
    module = TOTALVI(120, 14, n_hidden=32, n_latent=8, **config).eval()
    load_scvi_state(module, tensors(stored, "param/"))
    return module, inputs, tensors(stored, "out/")


MASKS: dict[str, Any] = {
    "floats": lambda mask: mask.float(),
    "doubles": lambda mask: mask.double(),
    "integers": lambda mask: mask.long(),
    "bytes": lambda mask: mask.to(torch.uint8),
    "booleans": lambda mask: mask.bool(),
    "numpy": lambda mask: mask.numpy(),
    "numpy booleans": lambda mask: mask.bool().numpy(),
    "lists": lambda mask: mask.tolist(),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", MODULE_06)
def test_reconstruction_loss_of_dictionaries_of_06(shared: Path, name: str, kind: str) -> None:
    """The dictionaries always hold "dropout"; the network's likelihood says whether it counts."""
    module, inputs, expected = loaded_06(shared, name)
    px_, py_ = (
        {entry.removeprefix(part): value for entry, value in expected.items() if part in entry[:3]}
        for part in ("px_", "py_")
    )
    assert "dropout" in px_
    measured = module.measured(module.context(**groups(inputs)).panel)
    mask = torch.ones_like(inputs["y"]) if measured is None else measured
    losses = module.get_reconstruction_loss(inputs["x"], inputs["y"], px_, py_, MASKS[kind](mask))
    for loss, key in zip(losses, ("reconst_loss_gene", "reconst_loss_protein"), strict=True):
        assert_close(loss, expected[key].numpy(), key)


def groups(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: inputs[key] for key in ("x", "y", "batch_index", "label") if key in inputs}


def test_a_mask_of_other_numbers_is_refused(shared: Path) -> None:
    module, inputs, _ = loaded_06(shared, "default_nb_ln")
    found = module.inference(inputs["x"], inputs["y"])
    for mask in (torch.full_like(inputs["y"], 0.5), torch.full_like(inputs["y"], np.nan)):
        with pytest.raises(ValueError, match="other numbers than 0 and 1"):
            module.get_reconstruction_loss(
                inputs["x"], inputs["y"], found["px_"], found["py_"], mask
            )


@pytest.mark.parametrize("name", MODULE_06)
def test_whole_numbers_count_as_floats_do(shared: Path, name: str) -> None:
    module, inputs, _ = loaded_06(shared, name)
    given = groups(inputs)
    prior = {key: inputs[key] for key in ("local_l_mean_gene", "local_l_var_gene")}
    for dtype in (torch.int64, torch.int32, torch.uint8):
        whole = given | {key: given[key].to(dtype) for key in ("x", "y")}
        floats = given | {key: whole[key].float() for key in ("x", "y")}
        outputs = [
            module(**cells, **prior, generator=torch.Generator().manual_seed(0))
            for cells in (whole, floats)
        ]
        for a, b in zip(*outputs, strict=True):
            assert torch.equal(a, b)
        scales = [
            module.get_sample_scale(**cells, generator=torch.Generator().manual_seed(0))
            for cells in (whole, floats)
        ]
        for a, b in zip(*scales, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "one", [1, 1.0, np.int64(1), np.float32(1), np.array(1), torch.tensor(1), torch.tensor([1.0])],
    ids=repr,
)  # fmt: skip
def test_transform_batch_is_any_whole_number(shared: Path, one: Any) -> None:
    module, inputs, _ = loaded_06(shared, "batch_zinb_normal")
    cells = groups(inputs)
    a, b = (
        module.inference(**cells, transform_batch=code, generator=torch.Generator().manual_seed(0))
        for code in (1, one)
    )
    assert torch.equal(a["px_"]["rate"], b["px_"]["rate"])
    for wrong in (2, -1, 0.5, torch.tensor([0, 1]), "1", np.nan):
        with pytest.raises(ValueError, match="transform_batch"):
            module.inference(**cells, transform_batch=wrong)


def test_a_head_that_nothing_reads_is_in_no_state(shared: Path) -> None:
    module, inputs, expected = loaded_06(shared, "default_nb_ln")
    fresh = TOTALVI(120, 14, n_hidden=32, n_latent=8).eval()
    assert set(module.state_dict()) == set(fresh.state_dict())
    fresh.load_state_dict(module.state_dict())
    kept = copy.deepcopy(module).double()
    cells = {key: value.double() for key, value in inputs.items() if key in ("x", "y")}
    dropout = kept.inference(**cells, generator=torch.Generator().manual_seed(0))["px_"]["dropout"]
    assert dropout.shape == expected["px_dropout"].shape
    assert dropout.std() > 0
    without = fresh.inference(inputs["x"], inputs["y"])["px_"]
    assert torch.equal(without["dropout"].sigmoid(), torch.zeros_like(without["rate"]))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", MODULE_SCVI_TOOLS)
def test_golden_scvi_tools(shared: Path, name: str, sparse: bool) -> None:
    folder = shared / "golden" / f"scvi_tools_1.4.2_{name}"
    saved = torch.load(folder / "model.pt", weights_only=False, map_location="cpu")
    state = saved["model_state_dict"]
    cells = anndata.read_h5ad(folder / "adata.h5ad")
    stored = np.load(folder / "expected_first64.npz")
    expected = {key: torch.as_tensor(stored[key]) for key in stored}
    config: dict[str, Any] = {**SCVI_TOOLS, **MODULE_SCVI_TOOLS[name]}
    module = TOTALVI(250, 14, n_hidden=32, n_latent=8, **config).eval()
    load_scvi_state(module, state)

    x = cells.X.toarray() if hasattr(cells.X, "toarray") else cells.X
    every: dict[str, Any] = {
        "x": torch.as_tensor(x),
        "y": torch.as_tensor(cells.obsm["protein_expression"].to_numpy(dtype=np.float32)),
        "batch_index": torch.as_tensor(cells.obs["_scvi_batch"].to_numpy().copy()).long(),
    }
    extras = {}
    if config.get("n_continuous_covariates"):
        extras = {
            "categorical_covariates": torch.as_tensor(
                cells.obsm["_scvi_extra_categorical_covs"].to_numpy().copy()
            ),
            "continuous_covariates": torch.as_tensor(
                cells.obsm["_scvi_extra_continuous_covs"].to_numpy(dtype=np.float32)
            ),
        }
        every["local_l_mean_gene"] = state["library_log_means"][0][every["batch_index"]]
        every["local_l_var_gene"] = state["library_log_vars"][0][every["batch_index"]]
    first = {key: value[:64] for key, value in every.items()}
    first["extras"] = {key: value[:64] for key, value in extras.items()}

    result = run_with_noise(module, first, expected, sparse)
    assert_close(result["qz_m"], expected["qz_mean"].numpy(), "qz_mean")
    assert_close(result["qz_v"].sqrt(), expected["qz_scale"].numpy(), "qz_scale")
    assert_close(result["z"], expected["z"].numpy(), "z")
    assert_close(result["library_gene"], expected["library_gene"].numpy(), "library_gene")
    if "ql_mean" in expected:
        assert_close(result["ql_m"], expected["ql_mean"].numpy(), "ql_mean")
        assert_close(result["ql_v"].sqrt(), expected["ql_scale"].numpy(), "ql_scale")

    px_, py_ = result["px_"], result["py_"]
    # theirs: py_ without, py_norm_ with the efficiency of each protein and batch
    with_efficiency = py_ | {
        entry: py_[entry] * py_["efficiency"] for entry in ("rate_back", "rate_fore")
    }
    for key in expected:
        if key.startswith("py_norm_"):
            assert_close(with_efficiency[key.removeprefix("py_norm_")], expected[key].numpy(), key)
        elif key.startswith("py_"):
            assert_close(py_[key.removeprefix("py_")], expected[key].numpy(), key)
        elif key.startswith("loss_"):
            assert_close(result[key.removeprefix("loss_")], expected[key].numpy(), key)
    for entry in ("scale", "rate", "r", "dropout"):
        assert_close(px_[entry], expected[f"px_{entry}"].numpy(), f"px_{entry}")

    if config["latent_distribution"] == "normal":
        latent = module.sample_from_posterior_z(
            every["x"], every["y"], every["batch_index"], give_mean=True, **extras
        )
        assert_close(latent, expected["latent_representation_all_cells"].numpy(), "latent")
    else:
        generator = torch.Generator().manual_seed(0)
        latent = module.sample_from_posterior_z(
            every["x"], every["y"], every["batch_index"], give_mean=True, generator=generator
        )
        # theirs is an average over random samples too
        np.testing.assert_allclose(
            latent.detach(), expected["latent_representation_all_cells"], atol=0.01
        )


def test_state_of_another_configuration_is_refused(shared: Path) -> None:
    stored = np.load(shared / "golden" / "seed_default_nb_ln.npz")
    state = tensors(stored, "param/")
    with pytest.raises(FormatError, match="gene_log_r the shape"):
        load_scvi_state(TOTALVI(121, 14, n_hidden=32, n_latent=8), state)
    del state["decoder.px_decoder.fc_layers.Layer 0.0.bias"]
    with pytest.raises(FormatError, match=r"no tensor .*px_decoder"):
        load_scvi_state(TOTALVI(120, 14, n_hidden=32, n_latent=8), state)


@pytest.mark.parametrize(
    "other",
    [
        {"n_layers_encoder": 1},
        {"encoder_architecture": "direct", "library": "observed"},
        {"encoder_batch": False},
        {"library": "observed", "n_layers_decoder": 1},
    ],
    ids=str,
)
def test_nothing_that_changes_the_numbers_is_dropped_silently(
    shared: Path, other: dict[str, Any]
) -> None:
    state = tensors(np.load(shared / "golden" / "seed_batch_zinb_normal.npz"), "param/")
    config = {**MODULE_06["batch_zinb_normal"], **other}
    with pytest.raises(FormatError, match="check TOTALVI's arguments"):
        load_scvi_state(TOTALVI(120, 14, n_hidden=32, n_latent=8, **config), state)


@pytest.mark.parametrize(
    "reshaped",
    [lambda t: t.reshape(-1), lambda t: t[None], lambda t: t[:-1], lambda t: t.reshape(-1)[0]],
    ids=["flat", "one dimension more", "shorter", "a single number"],
)
def test_a_tensor_of_another_shape_is_refused(reshaped: Callable[[Tensor], Tensor]) -> None:
    module = TOTALVI(9, 3, n_hidden=4, n_latent=2, n_layers_encoder=2, n_layers_decoder=2)
    state = dict(module.state_dict())
    for name, tensor in state.items():
        other = reshaped(tensor) if tensor.dim() else tensor[None].expand(2)
        if other.shape == tensor.shape or name.endswith("num_batches_tracked"):
            continue
        with pytest.raises(FormatError):
            load_scvi_state(module, {**state, name: other})


def test_an_efficiency_is_not_dropped_silently(shared: Path) -> None:
    folder = shared / "golden" / "scvi_tools_1.4.2_nb_normal"
    saved = torch.load(folder / "model.pt", weights_only=False, map_location="cpu")
    config: dict[str, Any] = {
        **SCVI_TOOLS,
        **MODULE_SCVI_TOOLS["nb_normal"],
        "protein_efficiency": False,
    }
    with pytest.raises(FormatError, match="log_per_batch_efficiency"):
        load_scvi_state(
            TOTALVI(250, 14, n_hidden=32, n_latent=8, **config), saved["model_state_dict"]
        )
