"""Unmeasured proteins declared by a mapping."""

import numpy as np
import pytest

from counts import SMALL, annotated
from totalvi.data.panels.antibodies import declare_unmeasured
from totalvi.errors import DataError
from totalvi.model import Model


def test_only_what_is_named_becomes_nan_and_the_input_stays():
    mdata = annotated()
    mdata.obsm["X_umap"] = np.zeros((mdata.n_obs, 2))
    before = mdata["prot"].X.copy()
    first, second = mdata["prot"].var_names[[0, 3]]
    declared = declare_unmeasured(mdata, {"batch_1": [first, second]}, batch_key="batch")
    expected = before.copy()
    expected[np.ix_(mdata.obs["batch"] == "batch_1", [0, 3])] = np.nan
    np.testing.assert_array_equal(declared["prot"].X, expected)
    np.testing.assert_array_equal(mdata["prot"].X, before)
    assert declared["rna"] is mdata["rna"]
    assert declared.obs.equals(mdata.obs)
    assert declared.obsm["X_umap"] is not None
    assert declared["prot"].var.equals(mdata["prot"].var)


def test_the_model_knows_the_panels():
    mdata = annotated()
    declared = declare_unmeasured(
        mdata, {"batch_0": [mdata["prot"].var_names[2]]}, batch_key="batch"
    )
    schema = Model(declared, batch_key="batch", **SMALL).schema
    measured = dict(zip(schema.batch_names, schema.panel_measured, strict=True))
    assert measured["batch_0"] == (True, True, False, True, True, True)
    assert all(measured["batch_1"])


@pytest.mark.parametrize(
    ("unmeasured", "message"),
    [
        ({"batch_7": ["protein_0"]}, "unmeasured holds 'batch_7'; did you mean \"batch_"),
        ({"batch_0": ["CD4"]}, "unmeasured holds 'CD4'"),
        ({"batch_0": "CD4"}, r'allowed are lists, as \["CD4"\]'),
    ],
)
def test_what_is_not_there_is_named(unmeasured, message):
    with pytest.raises(ValueError, match=message):
        declare_unmeasured(annotated(), unmeasured, batch_key="batch")


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match='no column "bacth" in obs; did you mean "batch"'):
        declare_unmeasured(annotated(), {}, batch_key="bacth")
