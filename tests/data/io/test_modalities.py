import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.data.io.features import modalities_of
from totalvi.data.io.modalities import (
    Rows,
    assemble,
    join_proteins,
    pair_modalities,
    split_anndata,
)
from totalvi.errors import ReadError

TYPES = ["Gene Expression", "Antibody Capture", "Multiplexing Capture", "Custom"]


def anndata_of(types: list[str], n_cells: int = 3) -> AnnData:
    counts = np.arange(n_cells * len(types), dtype=np.float32).reshape(n_cells, len(types))
    var = pd.DataFrame({"feature_types": types}, index=[f"f{i}" for i in range(len(types))])
    obs = pd.DataFrame({"donor": "d"}, index=[f"c{i}" for i in range(n_cells)])
    return AnnData(counts, obs=obs, var=var)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(TYPES), min_size=1, max_size=8))
def test_every_feature_goes_to_one_modality_with_its_counts(types):
    adata = anndata_of(types)
    expected = adata.to_df()
    parts = split_anndata(adata, modalities_of(adata.var), Rows(), "x.h5")
    found = pd.concat([part.to_df() for part in parts.values()], axis=1)
    assert sorted(found.columns) == sorted(expected.columns)
    pd.testing.assert_frame_equal(found[expected.columns], expected)
    first = next(iter(parts.values()))
    assert list(first.obs.columns) == ["donor"]
    assert list(parts) == [m for m in ("rna", "prot", "hto", "custom") if m in parts]


def test_order_of_cells():
    adata = anndata_of(TYPES)
    rna = anndata_of(TYPES)[["c2", "c0", "c1"]].copy()
    first, turned = pair_modalities(rna, adata, ("a", "b"))
    assert first is rna
    assert turned.obs_names.tolist() == ["c2", "c0", "c1"]
    np.testing.assert_array_equal(turned.X, anndata_of(TYPES).X[[2, 0, 1]])
    first, turned = pair_modalities(rna[:2].copy(), anndata_of(TYPES), ("a", "b"))
    assert turned.obs_names.tolist() == first.obs_names.tolist() == ["c2", "c0"]
    np.testing.assert_array_equal(turned.X, anndata_of(TYPES).X[[2, 0]])


def test_a_protein_file_gives_its_antibodies_only():
    rna = anndata_of(["Gene Expression"] * 2)
    parts = join_proteins(rna, anndata_of(TYPES), Rows(), "a.h5", "b.h5")
    assert {name: part.var_names.tolist() for name, part in parts.items()} == {
        "rna": ["f0", "f1"],
        "prot": ["f1"],
        "hto": ["f2"],
    }
    untyped = AnnData(np.ones((3, 2)), var=pd.DataFrame(index=["CD3", "HTO_1"]))
    parts = join_proteins(rna, untyped, Rows(), "a.h5", "b.csv")
    assert parts["prot"].var_names.tolist() == ["CD3"]
    assert parts["hto"].var_names.tolist() == ["HTO_1"]


def test_cell_annotation_is_that_of_the_cells_when_sets_differ():
    rna, protein = anndata_of(["Gene Expression"]), anndata_of(["Antibody Capture"], n_cells=5)
    rna.var_names = ["gene"]
    rna.obs["donor"] = ["x", "y", "z"]
    mdata = assemble({"rna": rna, "prot": protein}, rna.obs, None, "a and b")
    assert mdata.obs["donor"].reindex(["c2", "c0"]).tolist() == ["z", "x"]
    assert mdata.obs["donor"].isna().sum() == 2


def test_missing_x_is_named():
    adata = AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"]))
    with pytest.raises(ReadError, match=r"x\.h5ad has no X"):
        split_anndata(adata, modalities_of(adata.var), Rows(), "x.h5ad")
