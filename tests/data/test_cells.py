"""The user's annotation is looked up late, and survives the object it came from."""

import copy
import gc
import pickle

import numpy as np
import pandas as pd
from anndata import AnnData

from counts import annotated
from totalvi.data.columns import Columns
from totalvi.data.describe import describe


def test_columns_added_later_are_seen() -> None:
    mdata = annotated(40)
    annotation = describe(mdata, Columns()).annotation
    mdata.obs["leiden"] = np.arange(40) % 2
    mdata["rna"].obs["only_rna"] = np.arange(40)
    obs = annotation.obs()
    assert obs["leiden"].tolist() == [0, 1] * 20
    assert obs["only_rna"].tolist() == list(range(40))
    assert obs["cell_type"].tolist() == mdata.obs["cell_type"].tolist()


def test_of_an_anndata() -> None:
    mdata = annotated(30)
    adata = AnnData(mdata["rna"].X.copy(), obs=mdata.obs.copy())
    adata.obsm["adt"] = pd.DataFrame(
        mdata["prot"].X, index=mdata.obs_names, columns=mdata["prot"].var_names
    )
    annotation = describe(adata, Columns(protein_expression_obsm_key="adt")).annotation
    adata.obs["leiden"] = "a"
    assert set(annotation.obs()["leiden"]) == {"a"}
    adata._inplace_subset_obs(np.arange(10))
    assert len(annotation.obs()) == 30


def test_the_object_is_not_kept_alive_but_its_annotation_is() -> None:
    mdata = annotated(30)
    types = mdata.obs["cell_type"].tolist()
    annotation = describe(mdata, Columns()).annotation
    assert annotation._data() is not None
    del mdata
    gc.collect()
    assert annotation._data() is None
    assert annotation.obs()["cell_type"].tolist() == types


def test_another_order_of_cells_falls_back_to_the_first() -> None:
    mdata = annotated(30)
    annotation = describe(mdata, Columns()).annotation
    types = mdata.obs["cell_type"].tolist()
    for name in ("rna", "prot"):
        mdata[name].obs_names = mdata[name].obs_names[::-1]
    assert annotation.obs()["cell_type"].tolist() == types


def test_copies_keep_the_annotation() -> None:
    mdata = annotated(30)
    annotation = describe(mdata, Columns()).annotation
    mdata.obs["leiden"] = "a"
    for copied in (pickle.loads(pickle.dumps(annotation)), copy.deepcopy(annotation)):
        pd.testing.assert_frame_equal(copied.obs(), annotation.obs())
