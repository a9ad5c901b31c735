"""Models of scvi-tools and 0.6.x become models of this package that give the recorded numbers."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import totalvi
from totalvi.errors import DataError, FormatError
from totalvi.fit.batches import minibatch
from totalvi.persistence import load_scvi

FIXTURES = {
    name: f"scvi_tools_1.4.2_{name}"
    for name in ("nb_normal", "zinb_ln_batch_missing", "latent_library_covariates")
}
# Of anndata and mudata, about names that come twice and defaults to come.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def folder_of(shared: Path, name: str) -> Path:
    return shared / "golden" / FIXTURES[name]


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a changed copy of a stored model, without its data."""
    content = torch.load(source / "model.pt", weights_only=False, map_location="cpu")
    change(content)
    target.mkdir()
    torch.save(content, target / "model.pt")
    return target


# --------------------------------------------------------------------------------- scvi-tools


@pytest.mark.parametrize("name", FIXTURES)
def test_stored_models_give_the_recorded_numbers(shared: Path, name: str) -> None:
    folder = folder_of(shared, name)
    model = load_scvi(folder)
    stored = np.load(folder / "expected_first64.npz")
    expected = {key: torch.as_tensor(stored[key]) for key in stored}

    latent = model.get_latent_representation()
    recorded = stored["latent_representation_all_cells"]
    assert latent.shape == recorded.shape == (500, 8)
    if model.module.latent_distribution == "normal":
        np.testing.assert_allclose(latent, recorded, atol=1e-5)
    else:
        np.testing.assert_allclose(latent, recorded, atol=0.015)  # both average random samples

    batch = minibatch(model._training_data(), model.module, np.arange(64))
    module = model.module
    with torch.no_grad():
        posterior = module.encode(batch.x, batch.y, batch.context)
        decoded = module.decode(expected["z"], batch.context)
        background = expected["log_pro_back_mean"]
        ours = {
            "qz_mean": posterior.qz_m,
            "qz_scale": posterior.qz_v.sqrt(),
            **{
                f"px_{key}": value
                for key, value in module.gene_parameters(
                    decoded, expected["library_gene"], batch.context
                ).items()
            },
            **{
                f"py_{key}": value
                for key, value in module.protein_parameters(
                    decoded, background, batch.context
                ).items()
            },
        }
    compared = {key for key in set(ours) & set(expected) if not key.startswith("py_norm")}
    assert len(compared) >= 13
    for key in compared:
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(
            ours[key].reshape(expected[key].shape), expected[key], rtol=1e-4, atol=1e-6 * scale
        )


def test_what_a_model_knows_comes_from_its_registry(shared: Path) -> None:
    model = load_scvi(folder_of(shared, "latent_library_covariates"))
    schema, data = (
        model.schema,
        anndata.read_h5ad(folder_of(shared, "latent_library_covariates") / "adata.h5ad"),
    )
    assert schema.gene_names == tuple(data.var_names)
    assert schema.protein_names == tuple(data.obsm["protein_expression"].columns)
    assert schema.batch_names == ("a", "b")
    assert schema.covariate_categories == (("x", "y", "z"),)
    assert schema.columns.continuous_covariate_keys == ("depth",)
    log_library = np.log(np.asarray(data.X.sum(axis=1)).ravel())
    in_a = (data.obs["batch"] == "a").to_numpy()
    assert schema.library_log_mean[0] == pytest.approx(log_library[in_a].mean(), rel=1e-4)
    assert model.split is not None
    assert sorted(np.concatenate(model.split)) == list(range(500))

    masked = load_scvi(folder_of(shared, "zinb_ln_batch_missing")).schema
    assert masked.panel_measured == ((True,) * 14, (True,) * 9 + (False,) * 5)


def test_new_data_are_aligned_by_name(shared: Path) -> None:
    folder = folder_of(shared, "latent_library_covariates")
    model = load_scvi(folder)
    cells = anndata.read_h5ad(folder / "adata.h5ad")[100:140]
    expected = model.get_latent_representation(indices=np.arange(100, 140))
    mixed = cells[:, ::-1].copy()
    mixed.obsm["protein_expression"] = mixed.obsm["protein_expression"].iloc[:, ::-1]
    np.testing.assert_allclose(model.get_latent_representation(mixed), expected, atol=1e-6)
    alone = load_scvi(folder / "model.pt", mixed)
    np.testing.assert_allclose(alone.get_latent_representation(), expected, atol=1e-6)
    foreign = cells.copy()
    foreign.obs["batch"] = "elsewhere"
    with pytest.raises(DataError, match="elsewhere"):
        model.get_latent_representation(foreign)
    with pytest.raises(DataError, match="of the model"):
        load_scvi(folder, cells[:, 5:].copy())


def test_a_model_alone_answers_about_given_data_only(shared: Path, tmp_path: Path) -> None:
    source = folder_of(shared, "nb_normal")
    folder = changed(source, tmp_path / "alone", lambda content: None)
    model = load_scvi(folder)
    with pytest.raises(DataError, match="loaded without data"):
        model.get_latent_representation()
    cells = anndata.read_h5ad(source / "adata.h5ad")[:20].copy()
    assert model.get_latent_representation(cells).shape == (20, 8)


def test_saved_data_that_cannot_be_used_are_named(shared: Path, tmp_path: Path) -> None:
    source = folder_of(shared, "nb_normal")
    folder = changed(source, tmp_path / "model", lambda content: None)
    cells = anndata.read_h5ad(source / "adata.h5ad")[:20].copy()
    cells.X = cells.X * 0.5
    cells.write_h5ad(folder / "adata.h5ad")
    with pytest.raises(DataError, match="saved beside"):
        load_scvi(folder)
    assert load_scvi(folder, allow_fractional=True).get_latent_representation().shape == (20, 8)


def test_files_with_a_prefix(shared: Path, tmp_path: Path) -> None:
    for name in ("model.pt", "adata.h5ad"):
        shutil.copy(folder_of(shared, "nb_normal") / name, tmp_path / f"my_{name}")
    latent = load_scvi(tmp_path / "my_model.pt").get_latent_representation()
    np.testing.assert_array_equal(
        latent, load_scvi(folder_of(shared, "nb_normal")).get_latent_representation()
    )


def test_a_loaded_model_can_be_saved_and_trained_further(shared: Path, tmp_path: Path) -> None:
    model = load_scvi(folder_of(shared, "zinb_ln_batch_missing"))
    model.save(tmp_path / "ours")
    again = totalvi.Model.load(tmp_path / "ours")
    for name, value in model.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name
    assert again.schema == model.schema
    before = model.module.background_prior_mean.clone()
    model.train(max_epochs=1, accelerator="cpu")
    assert not torch.equal(before, model.module.background_prior_mean)
    model.save(tmp_path / "further")


def test_models_before_1_1_have_an_exponential_background_scale(
    shared: Path, tmp_path: Path
) -> None:
    def older(content: dict[str, Any]) -> None:
        content["attr_dict"]["registry_"]["scvi_version"] = "1.0.4"
        del content["attr_dict"]["registry_"]["setup_args"]["panel_key"]
        del content["model_state_dict"]["log_per_batch_efficiency"]

    source = folder_of(shared, "nb_normal")
    old = load_scvi(changed(source, tmp_path / "old", older))
    new = load_scvi(source)
    assert old.module.log_efficiency is None
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    context = minibatch(new._training_data(), new.module, np.arange(5)).context
    with torch.no_grad():
        exponential = old.module.decode(z, context).background_scale
        softplus = new.module.decode(z, context).background_scale
    torch.testing.assert_close(torch.log1p(exponential) + 1e-8, softplus)


def test_arrays_of_older_numpy_and_frames_of_other_pandas(shared: Path, tmp_path: Path) -> None:
    source = folder_of(shared, "latent_library_covariates")
    others = {
        b"numpy._core.multiarray": b"numpy.core.multiarray",
        b"pandas.core.indexes.base\n_new_Index": b"pandas.core.indexes.other\n_new_OtherIndex",
        b"pandas._libs.internals\n_unpickle_block": b"pandas._libs.elsewhere\n_block",
    }
    with (
        zipfile.ZipFile(source / "model.pt") as stored,
        zipfile.ZipFile(tmp_path / "model.pt", "w") as changed_names,
    ):
        for name in stored.namelist():
            content = stored.read(name)
            if name.endswith("data.pkl"):
                for here, there in others.items():
                    assert here in content
                    content = content.replace(here, there)
            changed_names.writestr(name, content)
    assert load_scvi(tmp_path).schema == load_scvi(source).schema


def test_mudata_models(shared: Path, tmp_path: Path) -> None:
    """The registry of a MuData names modalities in place of an obsm entry."""
    source = folder_of(shared, "nb_normal")

    def in_mudata(content: dict[str, Any]) -> None:
        registry = content["attr_dict"]["registry_"]
        registry["setup_method_name"] = "setup_mudata"
        registry["setup_args"] = {
            "rna_layer": "counts",
            "protein_layer": None,
            "batch_key": None,
            "modalities": {"rna_layer": "gex", "protein_layer": "adt"},
        }
        fields = registry["field_registries"]
        fields["X"]["data_registry"] = {
            "attr_name": "layers",
            "attr_key": "counts",
            "mod_key": "gex",
        }
        fields["proteins"]["data_registry"] = {
            "attr_name": "X",
            "attr_key": None,
            "mod_key": "adt",
        }

    folder = changed(source, tmp_path / "model", in_mudata)
    cells = anndata.read_h5ad(source / "adata.h5ad")[:30].copy()
    gex = AnnData(obs=cells.obs[[]], var=cells.var, layers={"counts": cells.X})
    adt = AnnData(cells.obsm["protein_expression"])
    MuData({"gex": gex, "adt": adt}).write(folder / "mdata.h5mu")
    np.testing.assert_allclose(
        load_scvi(folder).get_latent_representation(),
        load_scvi(source).get_latent_representation(indices=np.arange(30)),
        atol=1e-6,
    )


@pytest.mark.parametrize("names_key", [None, "names"])
def test_proteins_in_an_array(shared: Path, tmp_path: Path, names_key: str | None) -> None:
    source = folder_of(shared, "nb_normal")
    cells = anndata.read_h5ad(source / "adata.h5ad")[:30].copy()
    names = list(cells.obsm["protein_expression"].columns)

    def in_array(content: dict[str, Any]) -> None:
        registry = content["attr_dict"]["registry_"]
        registry["setup_args"]["protein_names_uns_key"] = names_key
        state = registry["field_registries"]["proteins"]["state_registry"]
        state["column_names"] = names if names_key else np.arange(14)

    folder = changed(source, tmp_path / "model", in_array)
    cells.obsm["protein_expression"] = cells.obsm["protein_expression"].to_numpy()
    cells.uns["names"] = names
    model = load_scvi(folder, cells)
    assert model.schema.protein_names[:2] == (
        ("protein_0", "protein_1") if names_key is None else tuple(names[:2])
    )
    np.testing.assert_allclose(
        model.get_latent_representation(),
        load_scvi(source).get_latent_representation(indices=np.arange(30)),
        atol=1e-6,
    )
    del cells.uns["names"]
    if names_key:
        with pytest.raises(DataError, match=r'uns\["names"\]'):
            model.get_latent_representation(cells)


def test_a_model_that_was_not_trained_answers_nothing(shared: Path, tmp_path: Path) -> None:
    def untrained(content: dict[str, Any]) -> None:
        content["attr_dict"]["is_trained_"] = False

    source = folder_of(shared, "nb_normal")
    model = load_scvi(changed(source, tmp_path / "model", untrained))
    with pytest.raises(totalvi.errors.NotTrainedError):
        model.get_latent_representation()


def setting(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets one entry of a stored model; None removes it."""

    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        if value is None:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


REGISTRY = ("attr_dict", "registry_")
FIELDS = (*REGISTRY, "field_registries")
ARGUMENTS = ("attr_dict", "init_params_", "kwargs", "model_kwargs")
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "version": (setting(*REGISTRY, "scvi_version", value="0.20.3"), "1.0 on"),
    "no version": (setting(*REGISTRY, "scvi_version", value=None), "scvi_version"),
    "odd version": (setting(*REGISTRY, "scvi_version", value="new"), "scvi_version"),
    "model": (setting(*REGISTRY, "model_name", value="SCVI"), "only TOTALVI"),
    "no registry": (setting(*REGISTRY, value=None), "only TOTALVI"),
    "registry": (setting(*REGISTRY, value=[1]), "only TOTALVI"),
    "option": (setting(*ARGUMENTS, "depth_scale", value=3), "depth_scale"),
    "encoder": (setting(*ARGUMENTS, "extra_encoder_kwargs", value={"bias": 0}), "extra_encoder"),
    "norms": (setting(*ARGUMENTS, "use_layer_norm", value="both"), "use_layer_norm='both'"),
    "norm": (setting(*ARGUMENTS, "use_batch_norm", value="encoder"), "one normalisation"),
    "no norm": (setting(*ARGUMENTS, "use_batch_norm", value="none"), "batch_norm"),
    "rate": (setting(*ARGUMENTS, "dropout_rate_encoder", value=2.0), "dropout_rate_encoder"),
    "rates": (setting(*ARGUMENTS, "dropout_rate_encoder", value=[[]]), "dropout_rate_encoder"),
    "arguments": (setting("attr_dict", "init_params_", value="none"), "arguments"),
    "kwargs": (setting(*ARGUMENTS, value=[1]), "model.pt"),
    "genes": (setting(*FIELDS, "X", "state_registry", "column_names", value=["a", "a"]), "unique"),
    "few genes": (setting(*FIELDS, "X", "state_registry", "column_names", value=["a"]), "none there"),
    "no genes": (setting(*FIELDS, "X", value=None), "column_names"),
    "setup": (setting(*REGISTRY, "setup_args", value=None), "set up"),
    "key": (setting(*REGISTRY, "setup_args", "batch_key", value=3), "batch_key"),
    "modality": (setting(*REGISTRY, "setup_method_name", value="setup_mudata"), "modality"),
    "no weights": (setting("model_state_dict", value=None), "state dict"),
    "no tensor": (setting("model_state_dict", "py_r", value=None), "py_r"),
    "tensor": (setting("model_state_dict", "py_r", value=torch.ones(3)), "shape"),
    "nan": (setting("model_state_dict", "py_r", value=torch.full((14,), torch.nan)), "finite"),
    "further": (setting("model_state_dict", "more", value=torch.ones(3)), "more"),
    "wide": (
        setting(
            "model_state_dict",
            "encoder.encoder.fc_layers.Layer 0.0.weight",
            value=torch.ones(10**9, 0),
        ),
        "do not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_said_in_one_sentence(
    shared: Path, tmp_path: Path, what: str
) -> None:
    change, words = REFUSED[what]
    folder = changed(folder_of(shared, "nb_normal"), tmp_path / "model", change)
    with pytest.raises(FormatError, match=words) as caught:
        load_scvi(folder)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- 0.6.x


def stored_06(shared: Path, name: str, tmp_path: Path) -> tuple[Path, AnnData, dict[str, Any]]:
    """A state dict as 0.6.x users kept it, the cells it was asked about, and what it answered."""
    stored = np.load(shared / "golden" / f"seed_{name}.npz")
    state = {
        key.removeprefix("param/"): torch.as_tensor(stored[key])
        for key in stored
        if key.startswith("param/")
    }
    torch.save(state, tmp_path / "totalvi.pkl", _use_new_zipfile_serialization=False)
    x, y = stored["in/x"], stored["in/y"]
    cells = AnnData(x.astype(np.float32), var=pd.DataFrame(index=[f"g{i}" for i in range(120)]))
    cells.obsm["proteins"] = pd.DataFrame(
        y, index=cells.obs_names, columns=[f"p{i}" for i in range(14)]
    )
    for key in ("batch_index", "label"):
        if f"in/{key}" in stored:
            cells.obs[key] = pd.Categorical(stored[f"in/{key}"].ravel().astype(int))
    return tmp_path / "totalvi.pkl", cells, {key: stored[key] for key in stored}


KEYS_06 = {"protein_expression_obsm_key": "proteins", "batch_key": "batch_index"}
CONFIG_06: dict[str, dict[str, Any]] = {
    "batch_zinb_normal": {
        **KEYS_06,
        "reconstruction_loss_gene": "zinb",
        "latent_distribution": "normal",
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
    },
    "label_nb_normal_nolog": {
        **KEYS_06,
        "labels_key": "label",
        "n_labels": 3,
        "gene_dispersion": "gene-label",
        "protein_dispersion": "protein-label",
        "latent_distribution": "normal",
        "log_variational": False,
    },
}


@pytest.mark.parametrize("name", CONFIG_06)
def test_a_state_dict_of_06_with_a_config(shared: Path, tmp_path: Path, name: str) -> None:
    file, cells, stored = stored_06(shared, name, tmp_path)
    model = load_scvi(file, cells, config=CONFIG_06[name])
    np.testing.assert_allclose(
        model.get_latent_representation(), stored["out/qz_m"], rtol=1e-4, atol=1e-5
    )
    assert model.schema.gene_names[:2] == ("g0", "g1")
    assert model.schema.batch_names == ("0", "1")
    totals = np.log(stored["in/x"].sum(axis=1))
    first = stored["in/batch_index"].ravel() == 0
    assert model.schema.library_log_mean[0] == pytest.approx(totals[first].mean(), rel=1e-5)

    named = {
        **CONFIG_06[name],
        "gene_names": list(cells.var_names),
        "protein_names": list(cells.obsm["proteins"].columns),
        "batch_names": ["0", "1"],
        "library_log_mean": [5.0, 5.0],
        "library_log_variance": [0.1, 0.1],
    }
    alone = load_scvi(file, config=named)
    np.testing.assert_array_equal(
        alone.get_latent_representation(cells), model.get_latent_representation()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_hidden": 64}, "n_hidden=64, and the weights have 32"),
        ({"n_batches": 2}, "config has n_batches"),
        ({"batch_key": None}, "batch_key"),
        ({"batch_names": ["a"]}, "batch_names"),
        ({"gene_names": "g0"}, "gene_names"),
        ({"gene_names": ["g0"] * 120}, "1 different gene_names"),
        ({"latent_distribution": "beta"}, "latent_distribution"),
        ({"gene_dispersion": "gene"}, "gene_log_r"),
        ({"protein_batch_mask": [[True] * 3] * 2}, "protein_batch_mask"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit(
    shared: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file, cells, _ = stored_06(shared, "batch_zinb_normal", tmp_path)
    with pytest.raises(FormatError, match=words):
        load_scvi(file, cells, config=CONFIG_06["batch_zinb_normal"] | change)


def test_a_state_dict_of_06_needs_config_and_names(shared: Path, tmp_path: Path) -> None:
    file, cells, _ = stored_06(shared, "batch_zinb_normal", tmp_path)
    with pytest.raises(FormatError, match="config"):
        load_scvi(file, cells)
    with pytest.raises(FormatError, match="gene_names"):
        load_scvi(file, config=CONFIG_06["batch_zinb_normal"])
    of_one_batch = cells[(cells.obs["batch_index"] == 0).to_numpy()].copy()
    with pytest.raises(FormatError, match='no cell of batch "1"'):
        load_scvi(file, of_one_batch, config=CONFIG_06["batch_zinb_normal"])
