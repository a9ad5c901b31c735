"""New cells on a fitted model: what moves, what does not, and what is said of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import totalvi
from counts import SMALL, annotated
from totalvi.cli.main import execute
from totalvi.errors import DataError
from totalvi.mapping.comparison import Neighbours
from totalvi.mapping.labels import Calibration, calibration_error, label_probabilities
from totalvi.mapping.surgery import reference_state
from totalvi.mapping.unlike import tail_probability

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

OPTIONS = {
    "one_batch": {},
    "everything": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
        "library": "latent",
        "protein_efficiency": True,
        "n_layers_encoder": 2,
        "n_layers_decoder": 2,
    },
}


@pytest.fixture(scope="module", params=list(OPTIONS))
def reference(request: pytest.FixtureRequest) -> totalvi.Model:
    model = totalvi.Model(annotated()[:80].copy(), **OPTIONS[request.param], **SMALL)
    model.train(max_epochs=2, accelerator="cpu")
    return model


def test_surgery_moves_only_the_new_batch(reference: totalvi.Model, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in reference.module.state_dict().items()}
    cells = annotated()[80:].copy()
    plain = reference.map_query(cells)
    query = reference.map_query(cells, train=True, max_epochs=2, accelerator="cpu")
    kept = reference_state(query.module, query._mapping)
    assert set(kept) == set(before) - {"protein_mask"}
    assert all(torch.equal(before[name], value) for name, value in kept.items())
    after = reference.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    moved = np.abs(query.get_latent_representation() - plain.get_latent_representation()).max()
    assert moved > 0
    still = [
        {name for name, parameter in model.module.named_parameters() if not parameter.requires_grad}
        for model in (query, reference)
    ]
    assert still[0] == still[1]
    query.save(tmp_path / "query.totalvi")
    loaded = totalvi.Model.load(tmp_path / "query.totalvi", cells)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), query.get_latent_representation()
    )
    assert loaded.schema == query.schema


def test_without_surgery_a_query_is_encoded_as_its_reference_batch(
    reference: totalvi.Model,
) -> None:
    cells = annotated()[80:].copy()
    name = reference.schema.batch_names[0]
    query = reference.map_query(cells, reference_batch=name)
    if reference.schema.keys.batch_key is not None:
        cells.obs["batch"] = name
    expected = reference.get_latent_representation(cells)
    np.testing.assert_allclose(query.get_latent_representation(), expected, atol=1e-6)


def test_rna_alone_and_missing_genes(reference: totalvi.Model) -> None:
    cells = annotated()[80:].copy()
    rna = cells["rna"][:, 3:].copy()
    rna.obs = cells.obs
    with pytest.warns(UserWarning, match="lacks 3 of the 30 genes"):
        query = reference.map_query(rna)
    _, protein = query.get_normalized_expression(transform_batch=reference.schema.batch_names[0])
    assert protein.shape == (40, 6)
    assert np.isfinite(protein.to_numpy()).all()
    counts = query.get_normalized_expression(n_samples=1)[1]
    assert np.isfinite(query.get_elbo())
    assert counts.shape == (40, 6)


def test_a_strange_protein_is_left_out_by_name(reference: totalvi.Model) -> None:
    cells = annotated()[80:].copy()
    cells["prot"].var_names = ["strange", *cells["prot"].var_names[1:]]
    with pytest.warns(UserWarning, match='"strange"'):
        query = reference.map_query(cells)
    assert not query.schema.panel_measured[-1][0]


def test_refusals(reference: totalvi.Model) -> None:
    cells = annotated()[80:].copy()
    with pytest.raises(DataError, match="genes"):
        reference.map_query(cells["rna"][:, :5].copy())
    with pytest.raises(ValueError, match="no batch of the reference"):
        reference.map_query(cells, reference_batch="nowhere")
    with pytest.raises(ValueError, match="train=True"):
        reference.map_query(cells, lr=0.1)
    with pytest.raises(ValueError, match="map_query returned"):
        reference.get_unlikeness(reference)
    if reference.schema.keys.categorical_covariate_keys:
        cells.obs["sex"] = "x"
        with pytest.raises(DataError, match="train=True"):
            reference.map_query(cells)
        query = reference.map_query(cells, train=True, max_epochs=1, accelerator="cpu")
        assert query.schema.covariate_categories[0][-1] == "x"


def test_labels_and_unlikeness_of_the_same_kind_of_cells(reference: totalvi.Model) -> None:
    query = reference.map_query(annotated()[80:].copy())
    transfer = reference.transfer_labels(query, "cell_type")
    np.testing.assert_allclose(transfer.probabilities.sum(axis=1), 1, atol=1e-6)
    assert transfer.labels.isin(["type_0", "type_1", "type_2"]).all()
    assert reference.get_unlikeness(query)["p_value"].between(0, 1).all()


def test_votes_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 9, (5, 4))
    overlap = rng.normal(size=(5, 4)).astype(np.float32)
    code = rng.integers(0, 3, 9)
    found = label_probabilities(
        Neighbours(cells, overlap, np.abs(overlap)), code, 3, Calibration(2.0, 0.1)
    )
    frequency = np.bincount(code, minlength=3) / 9
    for i in range(5):
        weight = np.exp(overlap[i] / 2.0)
        expected = [weight[code[cells[i]] == label].sum() / weight.sum() for label in range(3)]
        np.testing.assert_allclose(found[i], 0.9 * np.array(expected) + 0.1 * frequency, rtol=1e-5)


def test_p_values_are_uniform_and_calibration_is_measured() -> None:
    rng = np.random.default_rng(0)
    p = tail_probability(rng.exponential(size=4000), rng.exponential(size=4000))
    assert abs((p < 0.1).mean() - 0.1) < 0.02
    chance = rng.uniform(0.5, 1, 5000)
    truth = (rng.random(5000) > chance).astype(int)
    both = np.stack([chance, 1 - chance], axis=1)
    assert calibration_error(both, truth) < 0.04
    assert calibration_error(np.stack([chance**0.2, 1 - chance**0.2], axis=1), truth) > 0.1


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mdata = annotated()
    model = totalvi.Model(mdata[:80].copy(), **SMALL)
    model.train(max_epochs=1, accelerator="cpu")
    model.save(tmp_path / "model.totalvi")
    mdata[:80].copy().write(tmp_path / "results.h5mu")
    mdata["rna"][80:].copy().write(tmp_path / "query.h5ad")
    command = ["map", str(tmp_path), str(tmp_path / "query.h5ad"), "-o", str(tmp_path / "out")]
    assert execute([*command, "--labels", "cell_type"]) == 0, capsys.readouterr().err
    names = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert names == {"cells.csv.gz", "label_probabilities.csv.gz", "imputed_proteins.csv.gz"}
    assert (tmp_path / "out" / "run.json").is_file()
    assert "40 cells" in capsys.readouterr().out
    (tmp_path / "results.h5mu").unlink()
    command[-1] = str(tmp_path / "c")
    assert execute([*command, "--labels", "cell_type"]) == 2
    assert "--reference" in capsys.readouterr().err
    assert execute(["map", str(tmp_path / "none"), "x.h5ad", "-o", str(tmp_path / "b")]) == 2
