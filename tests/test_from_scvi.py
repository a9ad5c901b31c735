"""People who come from scvi-tools: names that are answered, and the steps of its totalVI tutorials."""

import inspect
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest

import totalvi
from totalvi.errors import DataWarning
from totalvi.scvi_names import SCVI_NAMES, of_scvi

pytestmark = pytest.mark.filterwarnings("ignore")
DOCUMENT = Path(__file__).parents[1] / "docs" / "from_scvi_tools.md"
SMALL = {"n_hidden": 16, "n_latent": 4}


@pytest.fixture(scope="module")
def fitted() -> totalvi.Model:
    mdata = totalvi.simulate(n_cells=160, n_genes=40, n_proteins=6, n_batches=2, seed=1)
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(max_epochs=2)
    model.data_of_test = mdata  # kept alive: the model itself does not
    return model


@pytest.mark.parametrize("owner", [totalvi.Model, totalvi.TOTALVI])
@pytest.mark.parametrize(
    "name", ["setup_anndata", "setup_mudata", "load_query_data", "prepare_query_anndata"]
)
def test_steps_of_setting_up_are_answered(owner: type, name: str) -> None:
    with pytest.raises(AttributeError, match=r"scvi-tools' name.*from_scvi_tools\.md"):
        getattr(owner, name)
    assert not hasattr(owner, name)


def test_the_bare_network_says_where_data_go() -> None:
    mdata = totalvi.simulate(n_cells=20, n_genes=30, n_proteins=3, seed=1)
    for data in (mdata, mdata["rna"]):
        with pytest.raises(TypeError, match=r"totalvi\.Model\(data"):
            totalvi.TOTALVI(data)


@pytest.mark.parametrize(
    "argument",
    [
        "plan_kwargs",
        "use_gpu",
        "check_val_every_n_epoch",
        "n_steps_kl_warmup",
        "datasplitter_kwargs",
    ],
)
def test_arguments_of_training_are_answered(fitted: totalvi.Model, argument: str) -> None:
    with pytest.raises(TypeError, match=f"{argument} is scvi-tools' name"):
        fitted.train(max_epochs=1, **{argument: {}})
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        fitted.train(epochs=1)


@pytest.mark.parametrize(
    "column", ["elbo_train", "elbo_validation", "reconstruction_loss_train", "kl_local_train"]
)
def test_columns_of_the_history_are_answered(fitted: totalvi.Model, column: str) -> None:
    with pytest.raises(KeyError, match="name; "):
        fitted.history[column]
    with pytest.raises(KeyError):
        fitted.history["loss"]
    assert len(fitted.history["train_loss"]) == 2


def overfull_calls() -> list[str]:
    """Return the methods that take arguments by name only, beside those that take all by position."""
    methods = {name: getattr(totalvi.Model, name) for name in dir(totalvi.Model) if name[0] != "_"}
    kinds = {
        name: {each.kind for each in inspect.signature(method).parameters.values()}
        for name, method in methods.items()
        if inspect.isfunction(method)
    }
    return [name for name, of in kinds.items() if inspect.Parameter.KEYWORD_ONLY in of]


@pytest.mark.parametrize("name", overfull_calls())
def test_too_many_arguments_by_position_are_answered(fitted: totalvi.Model, name: str) -> None:
    """The tutorials of older versions give transform_batch third, newer ones n_samples_overall."""
    with pytest.raises(
        TypeError, match=rf"^{name} takes .* by position; give the others by name, as"
    ):
        getattr(fitted, name)(*[None] * 20)


def test_tutorials_by_position_are_answered(fitted: totalvi.Model) -> None:
    assert len(overfull_calls()) > 30
    with pytest.raises(TypeError, match=r"only adata, indices by position.*transform_batch=\.\.\."):
        fitted.get_normalized_expression(None, None, ["batch_0"])  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"^Model takes only data by position.*batch_key=\.\.\."):
        totalvi.Model(fitted.data_of_test, 20)  # type: ignore[misc]
    by_position = fitted.get_feature_correlation_matrix(None, [0, 1, 2, 3, 4], 2)
    by_name = fitted.get_feature_correlation_matrix(indices=[0, 1, 2, 3, 4], n_samples=2)
    pd.testing.assert_frame_equal(by_position, by_name)


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("get_normalized_expression", "n_samples_overall"),
        ("get_normalized_expression", "silent"),
        ("differential_expression", "weights"),
        ("get_likelihood_parameters", "give_mean"),
        ("save", "prefix"),
        ("save", "save_anndata"),
        ("train", "lr_patience"),
    ],
)
def test_arguments_of_methods_are_answered(
    fitted: totalvi.Model, method: str, argument: str
) -> None:
    with pytest.raises(TypeError, match=f"^{argument} is scvi-tools' name; "):
        getattr(fitted, method)(**{argument: 1})


@pytest.mark.parametrize("name", ["adata", "mdata"])
def test_data_under_another_name_are_answered(fitted: totalvi.Model, name: str) -> None:
    data = {name: fitted.data_of_test}
    with pytest.raises(TypeError, match=f"^Model takes the data as data, not {name}"):
        totalvi.Model(**data)
    with pytest.raises(TypeError, match=f"^load takes the data as data, not {name}"):
        totalvi.Model.load("nowhere", **data)
    if name == "mdata":
        with pytest.raises(TypeError, match="takes the data as adata, not mdata"):
            fitted.get_elbo(**data)


def test_the_module_of_the_class_is_answered() -> None:
    """People change the import alone: ``import totalvi as scvi``."""
    with pytest.raises(AttributeError, match=r"totalvi\.Model is the class"):
        _ = totalvi.model.TOTALVI
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = totalvi.model.nothing


def test_warnings_point_at_the_line_of_the_user() -> None:
    mdata = totalvi.simulate(
        n_cells=80, n_genes=30, n_proteins=5, n_batches=2, n_unmeasured=2, seed=1
    )
    mdata["prot"].X[:, 0] = 0
    with pytest.warns(DataWarning) as of_model:
        model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(max_epochs=1, train_size=0.7)
    with pytest.warns(DataWarning, match="NaN") as of_query:
        model.get_normalized_expression()
    assert {warning.filename for warning in (*of_model, *of_query)} == {__file__}


@pytest.mark.parametrize("name", ["history_", "is_trained_", "adata", "train_indices", "trainer"])
def test_attributes_are_answered(fitted: totalvi.Model, name: str) -> None:
    with pytest.raises(AttributeError, match="scvi-tools' name"):
        getattr(fitted, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fitted.nothing


@pytest.mark.parametrize(
    "argument", ["layer", "use_observed_lib_size", "override_missing_proteins"]
)
def test_arguments_of_the_model_are_answered(argument: str) -> None:
    mdata = totalvi.simulate(n_cells=20, n_genes=30, n_proteins=3, seed=1)
    with pytest.raises(ValueError, match=f"{argument} is scvi-tools' name"):
        totalvi.Model(mdata, **{argument: True})
    with pytest.raises(AttributeError, match="scvi-tools' name"):
        _ = totalvi.settings


def test_the_guide_has_every_name() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in SCVI_NAMES if f"`{name}" not in text and f"{name}`" not in text] == []
    assert of_scvi("foo") is None


# ------------------------------------------------------------------ the tutorials, step by step


def test_the_totalvi_tutorial(tmp_path: Path) -> None:
    """RNA of chosen genes in a modality of their own, with the counts in a layer."""
    mdata = totalvi.simulate(n_cells=160, n_genes=40, n_proteins=6, n_batches=2, seed=1)
    subset = mdata["rna"].copy()
    subset.layers["counts"] = subset.X.copy()
    subset.X = np.log1p(subset.X)
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna_subset": subset, "prot": mdata["prot"].copy()})
    both.obs["batch"] = mdata.obs["batch"].to_numpy()
    model = totalvi.Model(
        both,
        rna_modality="rna_subset",
        protein_modality="prot",
        rna_layer="counts",
        batch_key="batch",
        **SMALL,
    )
    model.train(max_epochs=2)
    assert {"train_loss", "validation_loss"} <= set(model.history)
    rna, protein = both["rna_subset"], both["prot"]
    rna.obsm["X_totalVI"] = model.get_latent_representation()
    batches = list(model.schema.batch_names)
    rna.layers["denoised_rna"], protein.layers["denoised_protein"] = (
        model.get_normalized_expression(n_samples=3, return_mean=True, transform_batch=batches)
    )
    foreground = model.get_protein_foreground_probability(
        n_samples=3, return_mean=True, transform_batch=batches
    )
    protein.layers["protein_foreground_prob"] = 100 * foreground
    rna.obs["leiden_totalVI"] = pd.Categorical(np.where(np.arange(160) % 2, "a", "b"))
    both.update()
    de = model.differential_expression(groupby="rna_subset:leiden_totalVI", delta=0.5)
    assert {"lfc_median", "bayes_factor", "non_zeros_proportion1", "group1"} <= set(de)
    model.save(tmp_path / "model")
    again = totalvi.Model.load(tmp_path / "model", both)
    np.testing.assert_allclose(again.get_latent_representation(), rna.obsm["X_totalVI"], atol=1e-5)


def test_the_tutorial_on_integration_of_cite_and_rna() -> None:
    """Zeros mean that nothing was bound, until they are declared unmeasured."""
    mdata = totalvi.simulate(n_cells=160, n_genes=40, n_proteins=6, n_batches=2, seed=1)
    adata = mdata["rna"].copy()
    adata.obs["batch"] = mdata.obs["batch"].to_numpy()
    table = mdata["prot"].to_df()
    held_out = str(adata.obs["batch"].iloc[0])
    table.loc[(adata.obs["batch"] == held_out).to_numpy()] = 0
    adata.obsm["protein_expression"] = table
    where = {"batch_key": "batch", "protein_expression_obsm_key": "protein_expression"}
    with pytest.warns(DataWarning, match="zero in all cells of batch"):
        totalvi.Model(adata, **where, **SMALL)
    declared = totalvi.declare_unmeasured(adata, "zeros", **where)
    model = totalvi.Model(declared, **where, **SMALL)
    model.train(max_epochs=2)
    other = next(name for name in model.schema.batch_names if name != held_out)
    _, protein = model.get_normalized_expression(
        transform_batch=other,
        unmeasured="impute",
        include_protein_background=True,
        sample_protein_mixing=False,
        return_mean=True,
        n_samples=3,
    )
    assert (protein[(adata.obs["batch"] == held_out).to_numpy()].mean() > 0).all()


def test_the_tutorial_on_mapping_a_query() -> None:
    mdata = totalvi.simulate(n_cells=200, n_genes=40, n_proteins=6, n_batches=2, seed=1)
    reference, query = mdata[:140].copy(), mdata[140:].copy()
    model = totalvi.Model(reference, batch_key="batch", **SMALL)
    model.train(max_epochs=2)
    adapted = model.map_query(query, train=True, max_epochs=2)
    assert adapted.get_latent_representation().shape == (60, 4)
    labels = model.transfer_labels(adapted, "cell_type").labels
    assert set(labels) <= set(reference.obs["cell_type"])
