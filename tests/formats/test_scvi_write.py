"""Models written for scvi-tools hold what ours hold, and scvi-tools itself gives the same numbers."""

import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import totalvi
from counts import SMALL, annotated
from totalvi.errors import FormatError, NotTrainedError, OutputError
from totalvi.formats.scvi_weights import scvi_state
from totalvi.persistence import load_scvi, load_scvi_state

# Of mudata, about defaults to come.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PEER = os.environ.get("TOTALVI_PEER_PYTHON")
BATCH = {"batch_key": "batch"}
COVARIATES = {
    "categorical_covariate_keys": ["sex", "lane"],
    "continuous_covariate_keys": ["age", "year"],
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batches": BATCH,
    "panels": {**BATCH, "panel_key": "lane"},
    "covariates": {**BATCH, **COVARIATES, "n_layers_encoder": 2, "n_layers_decoder": 3},
    "covariates not encoded": {
        **COVARIATES,
        "encode_covariates": False,
        "normalization": "layer",
    },
    "latent library": {
        **BATCH,
        "library": "latent",
        "gene_likelihood": "zinb",
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
    },
    "size factor": {**BATCH, "size_factor_key": "size_factor"},
    "efficiency": {**BATCH, "protein_efficiency": True},
    "in obsm": {**BATCH, "protein_expression_obsm_key": "proteins", "rna_layer": "counts"},
    "no normalisation": {"log_variational": False, "normalization": "none"},
    "unmeasured": BATCH,
}


def data_for(name: str) -> MuData | AnnData:
    mdata = annotated(n_unmeasured=2 if name == "unmeasured" else 0)
    mdata.obs["year"] = np.linspace(1990, 2020, mdata.n_obs)
    if name != "in obsm":
        return mdata
    rna, protein = mdata["rna"], mdata["prot"]
    cells = AnnData(obs=mdata.obs.copy(), var=rna.var[[]], layers={"counts": rna.X})
    cells.obsm["proteins"] = pd.DataFrame(
        np.asarray(protein.X), index=cells.obs_names, columns=protein.var_names
    )
    return cells


def fitted(name: str = "plain", **arguments: Any) -> totalvi.Model:
    model = totalvi.Model(data_for(name), **(SMALL | MODELS[name] | arguments))
    model.train(max_epochs=2, n_epochs_kl_warmup=1, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def plain() -> totalvi.Model:
    return fitted()


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_reads_back_as_the_same_model(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    assert model.save_scvi(tmp_path / "scvi") == tmp_path / "scvi"
    assert [path.name for path in (tmp_path / "scvi").iterdir()] == ["model.pt"]
    again = load_scvi(tmp_path / "scvi", data_for(name))
    np.testing.assert_allclose(
        again.get_latent_representation(), model.get_latent_representation(), atol=1e-5
    )
    ours, theirs = (
        one.get_normalized_expression(n_samples=3, return_numpy=True) for one in (model, again)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=1e-6)
    for part in ("gene_names", "protein_names", "batch_names", "panel_names", "panel_measured"):
        assert getattr(again.schema, part) == getattr(model.schema, part)
    assert again.split is not None
    assert all(map(np.array_equal, again.split, model.split))


@pytest.mark.parametrize("name", ["batches", "latent library", "efficiency", "covariates"])
def test_weights_go_out_and_come_back_unchanged(name: str) -> None:
    module = fitted(name).module
    n = module.n_continuous_covariates
    state = scvi_state(module, (0.0,) * n, (1.0,) * n)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    for value in module.parameters():
        value.data.zero_()
    if module.log_efficiency is None:
        assert not state.pop("log_per_batch_efficiency").any()
    load_scvi_state(module, state)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoder_architecture": "branched"}, "branched"),
        ({"scale_input": False}, "scale_input"),
        ({"background_scale": "exp"}, "exp"),
        ({"labels_key": "cell_type", "gene_dispersion": "gene-label"}, "gene_dispersion by label"),
        (
            {"labels_key": "cell_type", "protein_dispersion": "protein-label"},
            "protein_dispersion by label",
        ),
        (
            {**BATCH, "categorical_covariate_keys": ["sex"], "encode_covariates": False},
            "sees the batch",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_scvi_tools_cannot_have_is_refused(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=words):
        fitted(**arguments).save_scvi(tmp_path / "scvi")
    assert list(tmp_path.iterdir()) == []


def test_options_that_came_later_are_refused(plain: totalvi.Model, tmp_path: Path) -> None:
    model = load_from(plain, tmp_path)
    model._options = model._options | {"later_option": 1}
    with pytest.raises(FormatError, match="later_option"):
        model.save_scvi(tmp_path / "scvi")


def load_from(model: totalvi.Model, folder: Path) -> totalvi.Model:
    return totalvi.Model.load(model.save(folder / "ours"))


def test_nothing_is_replaced_by_accident(plain: totalvi.Model, tmp_path: Path) -> None:
    target = plain.save_scvi(tmp_path / "new" / "scvi")
    with pytest.raises(OutputError, match="overwrite=True"):
        plain.save_scvi(target)
    before = (target / "model.pt").read_bytes()
    plain.save_scvi(target, overwrite=True)
    assert (target / "model.pt").read_bytes() != before  # a name of its own each time
    (target / "adata.h5ad").write_text("mine")
    with pytest.raises(OutputError, match="not only"):
        plain.save_scvi(target, overwrite=True)
    assert [path.name for path in target.parent.iterdir()] == ["scvi"]


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(
    plain: totalvi.Model, tmp_path: Path
) -> None:
    target = plain.save_scvi(tmp_path / "scvi")
    before, limits = (target / "model.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(OutputError, match=r"scvi cannot be written \(File too large\)"):
            plain.save_scvi(target, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (target / "model.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["scvi"]


def test_an_untrained_model_is_not_written(tmp_path: Path) -> None:
    model = totalvi.Model(annotated(), **SMALL)
    with pytest.raises(NotTrainedError):
        model.save_scvi(tmp_path / "scvi")


READ_BY_SCVI_TOOLS = """
import logging, sys, warnings
warnings.filterwarnings("ignore")
import anndata, mudata, numpy, scvi
from pathlib import Path
scvi.settings.verbosity = logging.ERROR
for folder in sorted(Path(sys.argv[1]).iterdir()):
    in_mudata = (folder / "data.h5mu").exists()
    data = (mudata.read_h5mu(folder / "data.h5mu") if in_mudata
            else anndata.read_h5ad(folder / "data.h5ad"))
    model = scvi.model.TOTALVI.load(folder / "model", data, accelerator="cpu")
    numpy.savez(
        folder / "theirs.npz",
        latent=model.get_latent_representation(),
        foreground=model.get_protein_foreground_probability(n_samples=400).to_numpy(),
    )
    model.save(folder / "saved again")
"""


@pytest.mark.skipif(
    PEER is None, reason="set TOTALVI_PEER_PYTHON to a Python that has scvi-tools 1.4.2"
)
def test_scvi_tools_gives_the_same_numbers(tmp_path: Path) -> None:
    ours: dict[str, totalvi.Model] = {}
    for name in MODELS:
        model = ours[name] = fitted(name)
        model.save_scvi(tmp_path / name / "model")
        data = data_for(name)
        if isinstance(data, MuData):  # scvi-tools marks what was not measured with zeros
            data["prot"].X = np.nan_to_num(np.asarray(data["prot"].X))
        data.write(tmp_path / name / ("data.h5mu" if isinstance(data, MuData) else "data.h5ad"))
    assert PEER is not None
    done = subprocess.run(
        [PEER, "-c", READ_BY_SCVI_TOOLS, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, model in ours.items():
        theirs = np.load(tmp_path / name / "theirs.npz")
        difference = np.abs(theirs["latent"] - model.get_latent_representation()).max()
        print(f"{name}: latent states differ by at most {difference:.1e}")
        assert difference < 1e-4, name
        foreground = model.get_protein_foreground_probability(n_samples=400).to_numpy()
        # both average 400 samples, of a standard deviation of at most 0.5
        np.testing.assert_allclose(theirs["foreground"], foreground, atol=0.15, err_msg=name)
        again = load_scvi(tmp_path / name / "saved again", data_for(name))
        assert again.schema.panel_measured == model.schema.panel_measured, name
        np.testing.assert_allclose(
            again.get_latent_representation(), model.get_latent_representation(), atol=1e-5
        )
