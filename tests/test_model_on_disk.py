"""A model of counts on disk is the model of the same counts in memory."""

import shutil
from functools import partial

import anndata
import numpy as np
import pytest
from mudata import MuData
from pandas.testing import assert_frame_equal

import totalvi
from totalvi.data.columns import Columns
from totalvi.data.describe import describe
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.errors import DataError, ReadError
from totalvi.fit import batches as feed
from totalvi.fit import batches as order
from totalvi.run.convert import convert_counts

OPTIONS = {"batch_key": "batch", "n_hidden": 16, "n_latent": 4}


@pytest.fixture(scope="module")
def mdata():
    return totalvi.simulate(300, 40, 6, 2, n_unmeasured=1, seed=2)


@pytest.fixture(scope="module")
def files(mdata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    mdata.write(folder / "cells.h5mu")
    convert_counts(folder / "cells.h5mu", folder / "cells.zarr")
    adata = mdata["rna"].copy()
    adata.obs = mdata.obs
    adata.obsm["protein_expression"] = mdata["prot"].to_df()
    adata.write_h5ad(folder / "cells.h5ad")
    return folder


@pytest.fixture(scope="module")
def in_memory(mdata):
    model = totalvi.Model(mdata, **OPTIONS)
    model.train(3, batch_size=64, progress=False)
    return model


@pytest.mark.parametrize("name", ["cells.zarr", "cells.h5mu", "cells.h5ad"])
def test_fit_and_queries_are_those_in_memory(files, mdata, in_memory, name):
    key = "protein_expression" if name == "cells.h5ad" else None
    model = totalvi.Model(files / name, protein_expression_obsm_key=key, **OPTIONS)
    assert model._data.on_disk
    model.train(3, batch_size=64, progress=False)
    for column in ("train_loss", "validation_loss"):
        np.testing.assert_array_equal(model.history[column], in_memory.history[column])
    some = [250, 3, 3, 7]
    for ask in (
        lambda m: m.get_latent_representation(),
        lambda m: m.get_latent_representation(indices=some),
        lambda m: m.get_normalized_expression(n_samples=2, return_numpy=True)[1],
    ):
        np.testing.assert_array_equal(ask(model), ask(in_memory))
    table, expected = (
        m.differential_expression(groupby="cell_type", group1="type_0", all_stats=True)
        for m in (model, in_memory)
    )
    assert_frame_equal(table, expected)


@pytest.fixture(scope="module")
def with_controls(tmp_path_factory):
    """Cells with isotype controls and the profile of empty droplets, in memory and on disk."""
    folder = tmp_path_factory.mktemp("controls")
    mdata = totalvi.simulate(
        260, 40, 8, 2, n_isotype_controls=2, n_unmeasured=1, store_truth=False, seed=5
    )
    raw = totalvi.simulate_raw(mdata, n_empty=400, seed=5)
    mdata.uns["ambient"] = totalvi.ambient_profile(raw, mdata, batch_key="batch")
    mdata.write(folder / "source.h5mu")
    return mdata, raw, convert_counts(folder / "source.h5mu", folder / "cells.zarr")


@pytest.fixture(scope="module")
def pair(with_controls):
    """The model in memory and the one on disk."""
    mdata, _, store = with_controls
    models = [totalvi.Model(data, **OPTIONS) for data in (mdata, store)]
    for model in models:
        model.train(2, batch_size=64, train_size=0.6, progress=False)
    return models


def test_isotype_controls_and_empty_droplets_are_those_in_memory(with_controls, pair):
    memory, disk = pair
    assert disk._data.on_disk
    assert disk.schema == memory.schema
    assert len(disk.schema.control_names) == 2
    np.testing.assert_array_equal(disk._data.controls, memory._data.controls)
    assert disk.module.background_anchor is not None
    for name, value in memory.module.state_dict().items():
        np.testing.assert_array_equal(disk.module.state_dict()[name], value)
    assert disk.fingerprint == memory.fingerprint
    check, expected = (m.check_isotype_controls(n_samples=2) for m in (disk, memory))
    assert_frame_equal(check.controls, expected.controls)
    _, raw, store = with_controls
    profiles = [totalvi.Model(store, empty_droplets=given, **OPTIONS) for given in (None, raw)]
    means = [model.module.state_dict()["background_prior_mean"] for model in profiles]
    np.testing.assert_array_equal(*means)


def test_imputation_is_that_in_memory(pair):
    imputed, expected = (m.impute_proteins(n_samples=5, progress=False) for m in pair[::-1])
    for found, part in zip(imputed, expected, strict=True):
        assert_frame_equal(found, part)
    tables = [m.get_imputation_reliability(n_samples=5) for m in pair]
    assert_frame_equal(*tables)
    some = [m.get_imputation_reliability(indices=range(7, 90), n_samples=5) for m in pair]
    assert_frame_equal(*some)


def test_a_query_is_mapped_on_a_model_on_disk(with_controls, pair, tmp_path):
    cells = with_controls[0][:50].copy()
    cells.obs_names = [f"new_{i}" for i in range(50)]
    for adata in cells.mod.values():
        adata.obs_names = cells.obs_names
    cells.write(tmp_path / "new.h5mu")
    memory, disk = (
        model.map_query(data)
        for model, data in zip(pair, (cells, tmp_path / "new.h5mu"), strict=True)
    )
    latent = memory.get_latent_representation()
    np.testing.assert_array_equal(disk.get_latent_representation(), latent)
    np.testing.assert_array_equal(disk.get_latent_representation(tmp_path / "new.h5mu"), latent)
    labels = [
        model.transfer_labels(query, "cell_type").probabilities
        for model, query in zip(pair, (memory, disk), strict=True)
    ]
    assert_frame_equal(*labels)
    unlike = [m.get_unlikeness(q) for m, q in zip(pair, (memory, disk), strict=True)]
    assert_frame_equal(*unlike)


def test_rna_alone_is_mapped_from_its_file(with_controls, pair, tmp_path):
    rna = with_controls[0]["rna"][:40].copy()
    rna.write_h5ad(tmp_path / "rna.h5ad")
    query = pair[1].map_query(tmp_path / "rna.h5ad")
    expected = pair[0].map_query(rna).get_latent_representation()
    np.testing.assert_array_equal(query.get_latent_representation(), expected)


def test_a_damaged_store_is_refused_before_it_is_read(with_controls, tmp_path):
    store = shutil.copytree(with_controls[2], tmp_path / "cells.zarr")
    shard = store / "mod" / "rna" / "X" / "data" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[12] ^= 1  # of the length that the first chunk says it has
    shard.write_bytes(content)
    for open_store in (totalvi.read, totalvi.Model):
        with pytest.raises(ReadError, match="not of the length"):
            open_store(store)
    shard.write_bytes(content[:-9])
    with pytest.raises(ReadError, match="write it again"):
        totalvi.Model(store)
    shard.unlink()
    with pytest.raises(ReadError, match="is empty; copy"):
        totalvi.Model(store)


def test_queries_take_the_path_of_new_data(files, mdata, in_memory, tmp_path):
    expected = in_memory.get_latent_representation(mdata)
    found = in_memory.get_latent_representation(files / "cells.zarr")
    np.testing.assert_array_equal(found, expected)
    out = in_memory.get_latent_representation(files / "cells.zarr", out=tmp_path / "latent")
    np.testing.assert_array_equal(anndata.read_zarr(out / "latent").X, expected)
    with pytest.raises(ValueError, match="out takes means"):
        in_memory.get_latent_representation(give_mean=False, out=tmp_path / "other")


def test_genes_in_another_order_are_aligned(mdata, in_memory, tmp_path):
    turned = MuData({"rna": mdata["rna"][:, ::-1].copy(), "prot": mdata["prot"].copy()})
    turned.obs = mdata.obs
    turned.write(tmp_path / "turned.h5mu")
    np.testing.assert_allclose(
        in_memory.get_latent_representation(tmp_path / "turned.h5mu"),
        in_memory.get_latent_representation(),
        atol=1e-5,
    )


def test_windows_are_the_same_whatever_the_time_reading_takes(files, monkeypatch):
    small = partial(order.shuffled_windows, window=96, block=16)
    monkeypatch.setattr(feed, "shuffled_windows", small)
    monkeypatch.setattr("totalvi.fit.loop.WINDOW", 96)
    losses = []
    for slow in (False, True):
        if slow:
            monkeypatch.setattr(feed, "read_ahead", lambda read, items: map(read, items))
        model = totalvi.Model(files / "cells.zarr", **OPTIONS)
        model.train(2, batch_size=32, progress=False)
        losses.append(model.history["train_loss"].tolist())
    assert losses[0] == losses[1]


def test_a_backed_object_stays_on_disk_where_asked(files, mdata):
    data = open_on_disk(files / "cells.h5mu")
    keys = Columns(batch_key="batch")
    assert describe(data, keys, on_disk=True).on_disk
    loaded = describe(data, keys)
    assert not loaded.on_disk
    assert (loaded.rna.read() != mdata["rna"].X).nnz == 0


def test_checks_find_on_disk_what_they_find_in_memory(mdata, tmp_path):
    wrong = mdata.copy()
    wrong["rna"].X.data[5] = -1
    wrong.write(tmp_path / "wrong.h5mu")
    with pytest.raises(DataError) as in_memory:
        totalvi.Model(wrong, **OPTIONS)
    with pytest.raises(DataError) as on_disk:
        totalvi.Model(tmp_path / "wrong.h5mu", **OPTIONS)
    assert str(on_disk.value) == str(in_memory.value)
    assert "negative" in str(on_disk.value)


def test_files_that_cannot_stay_on_disk_are_refused(tmp_path):
    with pytest.raises(ReadError, match="does not exist"):
        totalvi.Model(tmp_path / "nowhere.zarr")
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(ReadError, match="totalvi convert"):
        totalvi.Model(tmp_path / "table.csv")
