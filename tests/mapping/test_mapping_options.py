"""New cells on models with isotype controls, empty droplets, several panels, and checkpoints."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import totalvi
from counts import SMALL, annotated
from totalvi.mapping.surgery import reference_state
from totalvi.posterior.unmeasured import filled_proteins

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture(scope="module")
def cells():
    return totalvi.simulate(n_cells=120, n_genes=30, n_proteins=10, store_truth=False, seed=1)


def test_controls_and_an_anchor(cells, tmp_path: Path) -> None:
    raw = totalvi.simulate_raw(
        totalvi.simulate(n_cells=120, n_genes=30, n_proteins=10, seed=1), n_empty=200, seed=1
    )
    reference = totalvi.Model(cells[:80].copy(), empty_droplets=raw, **SMALL)
    reference.train(max_epochs=2, accelerator="cpu")
    anchor = reference.module.background_anchor
    assert anchor is not None
    assert reference.schema.control_names == ("isotype_0",)
    before = {name: value.clone() for name, value in reference.module.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The reference model does not know")
        query = reference.map_query(cells[80:].copy(), train=True, max_epochs=2, accelerator="cpu")
    kept = reference_state(query.module, query._mapping)
    assert all(torch.equal(before[name], value) for name, value in kept.items())
    assert query.module.background_anchor is None  # no droplets are known of the query's panel
    assert reference.module.background_anchor is anchor
    query.save(tmp_path / "query.totalvi")
    loaded = totalvi.Model.load(tmp_path / "query.totalvi", cells[80:].copy())
    assert list(loaded.check_isotype_controls(n_samples=1).controls.index) == ["isotype_0"]


def test_rna_alone_is_encoded_alike_however_it_comes(cells, tmp_path: Path) -> None:
    reference = totalvi.Model(cells[:80].copy(), **SMALL)
    reference.train(max_epochs=2, accelerator="cpu")
    rna = cells["rna"][80:].copy()
    query = reference.map_query(rna, train=True, max_epochs=2, accelerator="cpu")
    latent = query.get_latent_representation()
    np.testing.assert_array_equal(query.get_latent_representation(rna), latent)
    query.save(tmp_path / "query.totalvi")
    loaded = totalvi.Model.load(tmp_path / "query.totalvi", rna)
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)


def test_a_fit_of_a_query_goes_on_from_its_checkpoint(cells, tmp_path: Path) -> None:
    reference = totalvi.Model(cells[:80].copy(), **SMALL)
    reference.train(max_epochs=1, accelerator="cpu")
    rna = cells["rna"][80:].copy()
    training = {"train": True, "max_epochs": 2, "accelerator": "cpu"}
    whole = reference.map_query(rna, **training)
    checkpoint = tmp_path / "fit.checkpoint"
    reference.map_query(rna, checkpoint=checkpoint, checkpoint_every=1, **training)
    resumed = reference.map_query(rna, checkpoint=checkpoint, resume=True, **training)
    np.testing.assert_array_equal(
        resumed.get_latent_representation(), whole.get_latent_representation()
    )


@pytest.mark.parametrize("hidden_protein_rate", [0.0, 0.8])
def test_only_proteins_that_the_encoder_always_saw_are_filled_in(
    hidden_protein_rate: float,
) -> None:
    mdata = annotated(n_unmeasured=2)
    model = totalvi.Model(
        mdata[:80].copy(), batch_key="batch", hidden_protein_rate=hidden_protein_rate, **SMALL
    )
    model.train(max_epochs=1, accelerator="cpu")
    panels = np.array(model.schema.panel_measured)
    whole = int(panels.all(axis=1).argmax())
    assert panels.sum() < panels.size
    rna = mdata["rna"][80:].copy()
    query = model.map_query(rna, reference_batch=model.schema.batch_names[whole])
    filled = filled_proteins(query.module, query._data, query._mapping)
    expected = panels.all(axis=0) if hidden_protein_rate else panels[whole]
    assert (filled == expected).all()
    assert (query._data.protein.read()[filled] > 0).all()
    assert (query._data.protein.read()[~filled] == 0).all()
