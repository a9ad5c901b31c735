"""The model that people use: built, trained, asked, saved and loaded."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import totalvi
from counts import N_GENES, N_PROTEINS, SMALL, annotated
from totalvi import processes
from totalvi.errors import DataError, FormatError, NotTrainedError, OutputError, TrainingError
from totalvi.fit.plan import Split
from totalvi.formats.model_folder import _checksum

FAST: dict[str, Any] = {"max_epochs": 2, "n_epochs_kl_warmup": 1, "accelerator": "cpu"}


def build(mdata: MuData | AnnData | None = None, **arguments: Any) -> totalvi.Model:
    return totalvi.Model(annotated() if mdata is None else mdata, **(SMALL | arguments))


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated()


@pytest.fixture(scope="module")
def trained(mdata: MuData) -> totalvi.Model:
    """Read only: tests that change a model make their own."""
    model = build(mdata, batch_key="batch")
    model.train(**FAST)
    return model


def same_weights(a: totalvi.Model, b: totalvi.Model) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# -------------------------------------------------------------------------------- building

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "zinb, logistic normal": {"gene_likelihood": "zinb", "latent_distribution": "ln"},
    "latent library": {"library": "latent", "batch_key": "batch"},
    "size factor": {"size_factor_key": "size_factor"},
    "labels": {
        "labels_key": "cell_type",
        "gene_dispersion": "gene-label",
        "protein_dispersion": "protein-label",
    },
    "panels": {"batch_key": "batch", "panel_key": "lane"},
    "covariates": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["sex", "lane"],
        "continuous_covariate_keys": ["age"],
    },
    "layer norm": {"normalization": "layer", "n_layers_decoder": 2},
    "efficiency": {"batch_key": "batch", "protein_efficiency": True},
    "as 0.6.x": {
        "encoder_architecture": "branched",
        "scale_input": False,
        "background_scale": "exp",
        "empirical_protein_background_prior": False,
    },
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_trains_answers_and_comes_back(
    name: str, mdata: MuData, tmp_path: Path
) -> None:
    model = build(mdata, **CONFIGURATIONS[name])
    model.train(**FAST)
    answers = model.get_normalized_expression(n_samples=2, library_size="latent")
    answers += (model.get_protein_foreground_probability(), model.get_elbo(return_mean=False))
    answers += (model.get_latent_representation(mc_samples=20),)
    assert all(np.isfinite(np.asarray(answer)).all() for answer in answers)
    loaded = totalvi.Model.load(model.save(tmp_path / "m.totalvi"), mdata)
    assert same_weights(loaded, model)
    np.testing.assert_array_equal(loaded.get_latent_representation(mc_samples=20), answers[-1])
    assert loaded.get_elbo() == model.get_elbo()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_latent": 0}, "n_latent is 0; allowed are"),
        ({"latent_distribution": "gamma"}, "latent_distribution is 'gamma'"),
        ({"gene_dispersion": "gene-label"}, "n_labels"),
        ({"dropout_rate_encoder": 2}, "dropout_rate_encoder is 2"),
        ({"library": "size_factor"}, "library is 'size_factor'; allowed are 'observed', 'latent'"),
        ({"gene_likelihood": "poisson"}, "gene_likelihood is 'poisson'; allowed are 'nb', 'zinb'"),
        ({"categorical_covariate_keys": "sex"}, r'categorical_covariate_keys is .*\["sex"\]'),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], message: str, mdata: MuData) -> None:
    with pytest.raises(ValueError, match=message):
        build(mdata, **wrong)


def test_wrong_keys_are_data_errors(mdata: MuData) -> None:
    with pytest.raises(DataError, match=r'batch_key: no column "bacth".*did you mean "batch"'):
        build(mdata, batch_key="bacth")


def test_the_input_is_never_written_to() -> None:
    mdata = annotated()
    rna, protein, obs = mdata["rna"].X.copy(), mdata["prot"].X.copy(), mdata.obs.copy()
    model = build(mdata, batch_key="batch", continuous_covariate_keys=["age"])
    model.train(**FAST)
    model.get_normalized_expression(library_size="latent")
    assert (rna != mdata["rna"].X).nnz == 0
    assert np.array_equal(mdata["prot"].X, protein)
    pd.testing.assert_frame_equal(mdata.obs, obs)
    assert not mdata.obsm.keys() - {"rna", "prot", "programs"}
    assert "totalvi" not in str(mdata.uns)


def test_an_anndata_gives_the_same_numbers(mdata: MuData, trained: totalvi.Model) -> None:
    adata = AnnData(mdata["rna"].X.copy(), obs=mdata.obs.copy())
    adata.var_names = mdata["rna"].var_names
    adata.obsm["adt"] = pd.DataFrame(
        mdata["prot"].X, index=mdata.obs_names, columns=mdata["prot"].var_names
    )
    model = build(adata, batch_key="batch", protein_expression_obsm_key="adt")
    model.train(**FAST)
    assert same_weights(model, trained)


def test_the_background_prior_starts_at_the_lower_mode(mdata: MuData) -> None:
    counts = mdata["prot"].X
    prior = build(mdata).module.background_prior_mean.detach().numpy()[0]
    assert (prior < np.log(counts.mean(axis=0))).all()
    flat = build(mdata, empirical_protein_background_prior=False).module
    assert not np.allclose(flat.background_prior_mean.detach().numpy()[0], prior)


# -------------------------------------------------------------------------------- training


def test_a_fit_is_repeatable_and_follows_the_seed(mdata: MuData, trained: totalvi.Model) -> None:
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    again, other = build(mdata, batch_key="batch"), build(mdata, batch_key="batch", seed=1)
    for model in (again, other):
        model.train(**FAST)
    assert same_weights(again, trained)
    assert not same_weights(other, trained)
    np.testing.assert_array_equal(
        again.get_normalized_expression(return_numpy=True, n_samples=2)[1],
        trained.get_normalized_expression(return_numpy=True, n_samples=2)[1],
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_max_epochs(mdata: MuData) -> None:
    model = build(mdata)
    model.train(3, accelerator="cpu", n_epochs_kl_warmup=1)
    assert len(model.history) == 3
    assert model.fit_summary["stopped"] == "all 3 epochs done"
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"max_epochs is {wrong}"):
            model.train(wrong)  # type: ignore[arg-type]


def test_a_second_fit_goes_on_from_the_first(mdata: MuData) -> None:
    model = build(mdata)
    model.train(**FAST)
    first, split = model.history.copy(), model.split
    model.train(**FAST)
    assert list(model.history.index) == [0, 1, 2, 3]
    assert model.history.index.name == "epoch"
    pd.testing.assert_frame_equal(model.history.iloc[:2], first)
    assert split is not None
    assert model.split is not None
    assert np.array_equal(model.split.validation, split.validation)  # no validation cell leaks


def test_a_given_split_is_kept(mdata: MuData) -> None:
    model = build(mdata)
    split = Split(np.arange(60), np.arange(60, 80), np.arange(80, 120))
    model.train(**FAST, split=split)
    assert model.split is not None
    assert all(np.array_equal(a, b) for a, b in zip(model.split, split, strict=True))
    with pytest.raises(ValueError, match="split holds positions"):
        model.train(**FAST, split=Split(np.arange(60), np.arange(60, 121), np.arange(0)))


def test_a_failed_fit_refuses_every_query_until_another_succeeds(
    mdata: MuData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = build(mdata)
    model.train(**FAST)
    original = type(model.module).elbo

    def not_finite(self: Any, *args: Any) -> Any:
        terms = original(self, *args)
        return terms._replace(kl_div_z=terms.kl_div_z * torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(type(model.module), "elbo", not_finite)
        with pytest.raises(TrainingError, match="learning rate"):
            model.train(**FAST)
    assert not model.is_trained
    for query in queries(model):
        with pytest.raises(NotTrainedError, match="The fit failed"):
            query()
    with pytest.raises(NotTrainedError):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    model.train(**FAST)
    assert np.isfinite(model.get_elbo())


def queries(model: totalvi.Model) -> list[Any]:
    return [
        model.get_latent_representation,
        model.get_normalized_expression,
        model.get_protein_foreground_probability,
        model.get_elbo,
    ]


def test_an_untrained_model_refuses_every_query(mdata: MuData, tmp_path: Path) -> None:
    model = build(mdata)
    for query in (*queries(model), lambda: model.save(tmp_path / "m")):
        with pytest.raises(NotTrainedError, match=r"call model.train\(\) first"):
            query()
    assert "not trained" in repr(model)


def test_before_a_fit_there_is_nothing_that_it_leaves(mdata: MuData) -> None:
    model = build(mdata)
    assert model.history.empty
    assert (model.split, model.plan, model.fingerprint) == (None, None, None)
    with pytest.raises(NotTrainedError, match=r"no fit_summary yet; call model.train\(\) first"):
        _ = model.fit_summary


def test_a_fit_makes_one_fabric(mdata: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = processes.make_fabric
    monkeypatch.setattr(processes, "make_fabric", lambda *a: made.append(a) or original(*a))
    build(mdata).train(**FAST)
    assert len(made) == 1


def test_progress_is_silent_unless_asked(mdata: MuData, capfd: pytest.CaptureFixture[str]) -> None:
    model = build(mdata)
    model.train(**FAST)
    assert capfd.readouterr().err == ""
    model.train(**FAST, progress=True)
    assert "2/2" in capfd.readouterr().err


# -------------------------------------------------------------------------------- queries


def test_frames_are_labelled_by_cell_and_feature(mdata: MuData, trained: totalvi.Model) -> None:
    genes, proteins = list(mdata["rna"].var_names[[5, 2]]), [mdata["prot"].var_names[3]]
    rna, protein = trained.get_normalized_expression(
        indices=[4, 1], gene_list=genes, protein_list=proteins
    )
    foreground = trained.get_protein_foreground_probability(indices=[4, 1], protein_list=proteins)
    for frame, columns in ((rna, genes), (protein, proteins), (foreground, proteins)):
        assert list(frame.columns) == columns
        assert list(frame.index) == list(mdata.obs_names[[4, 1]])
    arrays = trained.get_normalized_expression(
        indices=[4, 1], gene_list=genes, protein_list=proteins, return_numpy=True
    )
    assert np.array_equal(arrays[0], rna)
    samples = trained.get_normalized_expression(n_samples=3, return_mean=False)
    assert [s.shape for s in samples] == [(3, 120, N_GENES), (3, 120, N_PROTEINS)]


def test_indices_as_positions_or_mask(trained: totalvi.Model) -> None:
    everything = trained.get_latent_representation()
    mask = np.arange(120) % 3 == 0
    for indices in (mask, np.flatnonzero(mask), list(np.flatnonzero(mask)), mask.tolist()):
        np.testing.assert_allclose(
            trained.get_latent_representation(indices=indices),
            everything[mask],
            rtol=1e-4,
            atol=1e-6,
        )
    np.testing.assert_allclose(
        trained.get_latent_representation(indices=[-1]), everything[-1:], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": [120]}, "indices holds positions from 120 to 120; allowed are 0 to 119"),
        ({"indices": [True, False]}, r"indices is a mask of shape \(2,\); allowed is \(120,\)"),
        ({"indices": [0.5]}, "indices must be a list of positions or a mask"),
        ({"indices": []}, "indices selects no cell"),
        ({"indices": np.zeros(120, dtype=bool)}, "indices selects no cell"),
        ({"gene_list": ["CD3"]}, "gene_list holds 'CD3'"),
        ({"protein_list": ["protein_0", "protien_1"]}, "protein_list holds 'protien_1'; did you"),
        ({"transform_batch": "batch_x"}, "transform_batch holds 'batch_x'"),
        ({"transform_batch": []}, "transform_batch is empty"),
        ({"library_size": 0}, "library_size is 0; allowed are 'latent' or a number above 0"),
        ({"library_size": "observed"}, "library_size is 'observed'"),
        ({"library_size": np.inf}, "library_size is inf"),
        ({"n_samples": 0}, "n_samples is 0; allowed are whole numbers from 1"),
        ({"batch_size": 0}, "batch_size is 0; allowed are whole numbers from 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_queries(trained: totalvi.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained.get_normalized_expression(**arguments)


def test_wrong_number_of_samples_of_the_latent_mean(trained: totalvi.Model) -> None:
    with pytest.raises(ValueError, match="mc_samples is 0"):
        trained.get_latent_representation(mc_samples=0)


@pytest.mark.parametrize("library_size", [1e4, np.float32(1e4), np.int64(10_000), 10_000])
def test_library_size_once_for_several_batches(trained: totalvi.Model, library_size: Any) -> None:
    names = list(trained.schema.batch_names)
    rna, _ = trained.get_normalized_expression(transform_batch=names, library_size=library_size)
    np.testing.assert_allclose(rna.sum(axis=1), 1e4, rtol=1e-4)


def test_batches_by_number_when_their_names_are_numbers() -> None:
    mdata = annotated()
    mdata.obs["batch"] = np.arange(120) % 2
    model = build(mdata, batch_key="batch")
    model.train(**FAST)
    by_name = model.get_normalized_expression(transform_batch="1")[0]
    for same in (1, [1], np.int64(1), ["1"]):
        pd.testing.assert_frame_equal(
            model.get_normalized_expression(transform_batch=same)[0],
            by_name,  # type: ignore[arg-type]
        )
    assert not by_name.equals(model.get_normalized_expression(transform_batch=0)[0])  # type: ignore[arg-type]


def test_queries_follow_their_seed(trained: totalvi.Model) -> None:
    one, same, other = (
        trained.get_normalized_expression(seed=seed, return_numpy=True)[1] for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    draws = [trained.get_latent_representation(give_mean=False, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(*draws)


def test_new_data_equal_to_the_training_data_give_the_same(
    mdata: MuData, trained: totalvi.Model
) -> None:
    pairs = zip(
        (
            *trained.get_normalized_expression(n_samples=2),
            trained.get_protein_foreground_probability(),
            trained.get_latent_representation(),
            trained.get_elbo(return_mean=False),
        ),
        (
            *trained.get_normalized_expression(mdata, n_samples=2),
            trained.get_protein_foreground_probability(mdata),
            trained.get_latent_representation(mdata),
            trained.get_elbo(mdata, return_mean=False),
        ),
        strict=True,
    )
    for ours, theirs in pairs:
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_new_data_are_what_is_asked_about(mdata: MuData, trained: totalvi.Model) -> None:
    some = mdata[[3, 50]].copy()  # fewer cells than a fit needs
    np.testing.assert_allclose(
        trained.get_latent_representation(some),
        trained.get_latent_representation(indices=[3, 50]),
        rtol=1e-4,
        atol=1e-6,
    )
    assert trained.get_protein_foreground_probability(some).shape == (2, N_PROTEINS)


def test_elbo_is_a_mean_over_cells(trained: totalvi.Model) -> None:
    by_cell = trained.get_elbo(return_mean=False)
    assert isinstance(by_cell, np.ndarray)
    assert by_cell.shape == (120,)
    assert trained.get_elbo() == pytest.approx(by_cell.mean(), rel=1e-5)


def test_unmeasured_proteins_reach_nothing_but_are_imputed() -> None:
    mdata = annotated(n_unmeasured=2)
    model = build(mdata, batch_key="batch")
    model.train(**FAST)
    filled = mdata.copy()
    filled["prot"].X = np.nan_to_num(mdata["prot"].X, nan=5000.0)
    for query in (model.get_latent_representation, model.get_elbo):
        np.testing.assert_array_equal(query(filled), query())
    _, protein = model.get_normalized_expression(unmeasured="impute")
    assert np.isfinite(protein).all(axis=None)
    assert (protein > 0).all(axis=None)


# -------------------------------------------------------------------------------- files


def test_saved_and_loaded(mdata: MuData, trained: totalvi.Model, tmp_path: Path) -> None:
    path = trained.save(tmp_path / "m.totalvi")
    loaded = totalvi.Model.load(path, mdata)
    assert loaded.schema == trained.schema
    assert loaded.seed == trained.seed
    assert loaded.plan == trained.plan
    assert loaded.fit_summary == trained.fit_summary
    pd.testing.assert_frame_equal(loaded.history, trained.history)
    assert trained.split is not None
    assert loaded.split is not None
    assert all(np.array_equal(a, b) for a, b in zip(loaded.split, trained.split, strict=True))
    assert repr(loaded) == repr(trained)
    for a, b in zip(
        loaded.get_normalized_expression(), trained.get_normalized_expression(), strict=True
    ):
        pd.testing.assert_frame_equal(a, b)


def test_training_goes_on_after_loading_as_it_would_have_before(
    mdata: MuData, tmp_path: Path
) -> None:
    model = build(mdata, batch_key="batch")
    model.train(**FAST)
    loaded = totalvi.Model.load(model.save(tmp_path / "m"), mdata)
    model.train(**FAST)
    loaded.train(**FAST)
    assert same_weights(loaded, model)
    assert len(loaded.history) == 4


def test_loading_cells_in_another_order_is_a_warning(
    mdata: MuData, trained: totalvi.Model, tmp_path: Path
) -> None:
    path = trained.save(tmp_path / "model")
    with warnings.catch_warnings(action="error", category=totalvi.DataWarning):
        totalvi.Model.load(path, mdata)
        totalvi.Model.load(path, mdata[:20].copy())  # other data, of which nothing is expected
    with pytest.warns(totalvi.DataWarning, match="not those of the fit in their order"):
        model = totalvi.Model.load(path, mdata[::-1].copy())
    np.testing.assert_allclose(
        model.get_latent_representation()[::-1], trained.get_latent_representation(), atol=1e-5
    )


def test_loaded_without_data(mdata: MuData, trained: totalvi.Model, tmp_path: Path) -> None:
    loaded = totalvi.Model.load(trained.save(tmp_path / "m"))
    with pytest.raises(DataError, match="loaded without data"):
        loaded.get_elbo()
    with pytest.raises(DataError, match="loaded without data"):
        loaded.train(**FAST)
    assert loaded.get_elbo(mdata) == trained.get_elbo()


def test_loading_needs_the_models_features(trained: totalvi.Model, tmp_path: Path) -> None:
    path = trained.save(tmp_path / "m")
    other = annotated()
    other["prot"].var_names = [f"other_{i}" for i in range(N_PROTEINS)]
    with pytest.raises(DataError, match="lacks 6 of the 6 proteins"):
        totalvi.Model.load(path, other)


def test_saving_does_not_overwrite_unasked(trained: totalvi.Model, tmp_path: Path) -> None:
    path = trained.save(tmp_path / "m")
    with pytest.raises(OutputError, match="overwrite=True"):
        trained.save(path)
    trained.save(path, overwrite=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("schema"),
        lambda d: d["options"].update(n_hidden=17),
        lambda d: d["options"].update(latent_distribution="gamma"),
        lambda d: d["options"].update(unknown=1),
        lambda d: d["schema"].pop("gene_names"),
        lambda d: d["plan"].update(max_epochs="many"),
        lambda d: d.update(split=None),
        lambda d: d["options"].update(n_hidden=10**9),
        lambda d: d["options"].update(n_layers_encoder=10**12),
    ],
    ids=[
        "no schema",
        "other size",
        "unknown choice",
        "unknown option",
        "no genes",
        "plan",
        "split",
        "a huge layer",
        "a great many layers",
    ],
)
def test_a_description_that_does_not_fit_is_a_format_error(
    trained: totalvi.Model, tmp_path: Path, change: Any
) -> None:
    path = trained.save(tmp_path / "m")
    description = json.loads((path / "model.json").read_text())
    change(description)
    del description["sha256"]
    description["sha256"] = _checksum(description)
    (path / "model.json").write_text(json.dumps(description))
    with pytest.raises(FormatError, match="does not hold a whole model"):
        totalvi.Model.load(path)


def test_options_of_any_number_type_can_be_saved(mdata: MuData, tmp_path: Path) -> None:
    prior = (np.zeros(N_PROTEINS), np.ones(N_PROTEINS))
    model = build(
        mdata,
        n_latent=np.int64(3),
        dropout_rate_encoder=np.float32(0.1),
        background_prior=prior,
        empirical_protein_background_prior=False,
    )
    model.train(**FAST)
    assert same_weights(totalvi.Model.load(model.save(tmp_path / "m")), model)


def test_an_interrupted_or_refused_fit_leaves_the_model_as_it_was() -> None:
    model = build()
    model.train(**FAST)
    latent = model.get_latent_representation()
    with pytest.raises(ValueError, match="tpuu"):
        model.train(**(FAST | {"accelerator": "tpuu"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("totalvi.training.Fit.run", _interrupted_fit)
        with pytest.raises(KeyboardInterrupt):
            model.train(**FAST)
    np.testing.assert_array_equal(model.get_latent_representation(), latent)


def _interrupted_fit(self: Any, *_: Any) -> None:
    self.network.train()
    for parameter in self.network.parameters():
        parameter.data.add_(1)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"reconstruction_loss_gene": "zinb"}, "gene_likelihood"),
        ({"n_batch": 2}, "batch_key"),
        ({"protein_batch_mask": [[True] * 6]}, "NaN"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_network_arguments_that_follow_from_others_are_refused(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build(**options)


def test_features_in_another_order_are_matched_by_name_and_said(
    mdata: MuData, trained: totalvi.Model, tmp_path: Path
) -> None:
    path = trained.save(tmp_path / "m")
    other = mdata.copy()
    other.mod["prot"] = mdata["prot"][:, ::-1].copy()
    with pytest.warns(UserWarning, match="proteins of the data are in another order"):
        model = totalvi.Model.load(path, other)
    np.testing.assert_allclose(
        model.get_latent_representation(), trained.get_latent_representation(), atol=1e-5
    )


@pytest.mark.parametrize("wrong", ["type", "finite"])
def test_weights_that_no_network_has_are_refused(
    trained: totalvi.Model, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = dict(trained.module.state_dict())
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = state[name].double() if wrong == "type" else state[name] * torch.nan
    monkeypatch.setattr(trained.module, "state_dict", lambda: state)
    path = trained.save(tmp_path / "m")
    with pytest.raises(FormatError, match=f"{name} is"):
        totalvi.Model.load(path)
