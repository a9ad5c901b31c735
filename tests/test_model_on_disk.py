"""A model of counts on disk is the model of the same counts in memory."""

from functools import partial

import anndata
import numpy as np
import pytest
from mudata import MuData
from pandas.testing import assert_frame_equal

import totalvi
from totalvi import feed
from totalvi.analysis.convert import convert_counts
from totalvi.data import order
from totalvi.data.cite import Keys, describe
from totalvi.data.open import open_on_disk
from totalvi.errors import DataError, ReadError

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
    keys = Keys(batch_key="batch")
    assert describe(data, keys, on_disk=True).on_disk
    loaded = describe(data, keys)
    assert not loaded.on_disk
    assert (loaded.rna != mdata["rna"].X).nnz == 0


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
