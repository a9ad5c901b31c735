"""find_counts: every layout of the data gives the same counts, none is written to."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.columns import Columns
from totalvi.data.find import CountSource, find_counts
from totalvi.data.io.read import read
from totalvi.errors import DataError, did_you_mean

CELLS = [f"cell_{i}" for i in range(6)]
GENES = ["CD4", "MS4A1", "LYZ", "NKG7"]
PROTEINS = ["CD4", "CD19", "IgG1"]
RNG = np.random.default_rng(0)
RNA = RNG.poisson(0.8, (6, 4)).astype(np.float32)
PROTEIN = RNG.poisson(20, (6, 3)).astype(np.float32)


def adata_of(x, names, **obs):
    return AnnData(
        x, obs=pd.DataFrame(obs, index=pd.Index(CELLS)), var=pd.DataFrame(index=pd.Index(names))
    )


def mudata_of(rna, protein, **more) -> MuData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MuData({"rna": rna, "prot": protein, **more})


@pytest.fixture
def mdata() -> MuData:
    rna = adata_of(sparse.csr_matrix(RNA), GENES, donor=list("aabbcc"), depth=np.arange(6.0))
    prot = adata_of(
        sparse.csr_matrix(PROTEIN), PROTEINS, donor=list("zzzzzz"), panel=list("ababab")
    )
    made = mudata_of(rna, prot)
    made.obs["site"] = list("ssttuu")
    return made


@pytest.fixture
def adata() -> AnnData:
    made = adata_of(sparse.csr_matrix(RNA), GENES, donor=list("aabbcc"))
    made.obsm["protein_counts"] = pd.DataFrame(PROTEIN, index=CELLS, columns=PROTEINS)
    made.obsm["X_pca"] = RNG.normal(size=(6, 2))
    return made


def same(source: CountSource, proteins=PROTEINS) -> None:
    assert isinstance(source.rna.read(), sparse.csr_matrix)
    assert source.rna.read().has_canonical_format
    np.testing.assert_array_equal(source.rna.read().toarray(), RNA)
    assert source.protein.read().dtype == np.float32
    np.testing.assert_array_equal(source.protein.read(), PROTEIN)
    assert source.gene_names.tolist() == GENES
    assert source.protein_names.tolist() == list(proteins)
    assert source.cell_names.tolist() == CELLS
    assert source.obs.index.tolist() == CELLS


def duplicated(matrix: np.ndarray) -> sparse.csr_matrix:
    """The same matrix with each entry split in two and the columns in reverse order."""
    rows = [np.flatnonzero(row)[::-1].repeat(2) for row in matrix]
    data = np.concatenate([matrix[i, columns] / 2 for i, columns in enumerate(rows)])
    indptr = np.cumsum([0, *map(len, rows)])
    return sparse.csr_matrix((data, np.concatenate(rows), indptr), shape=matrix.shape)


@pytest.mark.parametrize(
    "store",
    [
        sparse.csr_matrix,
        sparse.csr_array,
        sparse.csc_matrix,
        sparse.csc_array,
        np.asarray,
        duplicated,
        lambda x: x.astype(np.int64),
        lambda x: sparse.csr_matrix(x.astype(np.uint16)),
        lambda x: x.astype(object),
    ],
)
def test_every_storage_gives_the_same_counts(store):
    same(
        find_counts(
            mudata_of(adata_of(store(RNA), GENES), adata_of(store(PROTEIN), PROTEINS)), Columns()
        )
    )


def test_layers(mdata):
    for adata in mdata.mod.values():
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()
    source = find_counts(mdata, Columns(rna_layer="counts", protein_layer="counts"))
    same(source)
    assert source.rna_where == 'modality "rna" layers["counts"]'
    assert source.rna_layers == ("counts",)


def test_modalities_by_name(mdata):
    renamed = mudata_of(mdata["rna"], mdata["prot"], hto=mdata["prot"][:, :1].copy())
    renamed.mod["GEX"] = renamed.mod.pop("rna")
    renamed.mod["ADT"] = renamed.mod.pop("prot")
    source = find_counts(renamed, Columns(rna_modality="GEX", protein_modality="ADT"))
    same(source)
    assert (source.rna_where, source.protein_where) == ('modality "GEX"', 'modality "ADT"')


def test_a_third_modality_with_other_cells_does_not_matter(mdata):
    other = AnnData(np.ones((2, 1)), obs=pd.DataFrame(index=["cell_9", "cell_0"]))
    bigger = mudata_of(mdata["rna"], mdata["prot"], hto=other)
    bigger.obs["site"] = [f"site of {cell}" for cell in bigger.obs_names]
    source = find_counts(bigger, Columns())
    same(source)
    assert source.obs["site"].tolist() == [f"site of {cell}" for cell in CELLS]


def test_obs_joins_own_columns_first_then_those_of_the_modalities(mdata):
    obs = find_counts(mdata, Columns()).obs
    assert obs["site"].tolist() == list("ssttuu")
    assert obs["donor"].tolist() == list("aabbcc")
    assert obs["depth"].tolist() == list(range(6))
    assert obs["panel"].tolist() == list("ababab")


def test_obs_is_a_copy(mdata, adata):
    for data, key in ((mdata, None), (adata, "protein_counts")):
        source = find_counts(data, Columns(protein_expression_obsm_key=key))
        source.obs["new"] = 1
        source.obs.loc["cell_0", "donor"] = "c"
        assert "new" not in data.obs
        assert (
            find_counts(data, Columns(protein_expression_obsm_key=key)).obs["donor"].iloc[0] == "a"
        )


@pytest.mark.parametrize(
    ("store", "names"),
    [
        (lambda x: pd.DataFrame(x, index=CELLS, columns=PROTEINS), PROTEINS),
        (lambda x: pd.DataFrame(x, index=CELLS, columns=PROTEINS).astype("Int64"), PROTEINS),
        (np.asarray, ["protein_0", "protein_1", "protein_2"]),
        (sparse.csr_matrix, ["protein_0", "protein_1", "protein_2"]),
    ],
)
def test_anndata_with_proteins_in_obsm(adata, store, names):
    adata.obsm["protein_counts"] = store(PROTEIN)
    source = find_counts(adata, Columns(protein_expression_obsm_key="protein_counts"))
    same(source, names)
    assert source.protein_where == 'obsm["protein_counts"]'


def test_anndata_by_feature_types():
    both = adata_of(
        sparse.csr_matrix(np.hstack([RNA, PROTEIN, RNA[:, :1]])), [*GENES, *PROTEINS, "x"]
    )
    both.var["feature_types"] = [*["Gene Expression"] * 4, *["Antibody Capture"] * 3, "Peaks"]
    same(find_counts(both, Columns()))
    both.obsm["p"] = pd.DataFrame(PROTEIN, index=CELLS, columns=PROTEINS)
    same(find_counts(both, Columns(protein_expression_obsm_key="p")))


def test_unmeasured_proteins_stay_nan(adata):
    frame = adata.obsm["protein_counts"].astype("Int64")
    frame.iloc[:3, 1] = pd.NA
    adata.obsm["protein_counts"] = frame
    protein = find_counts(
        adata, Columns(protein_expression_obsm_key="protein_counts")
    ).protein.read()
    assert np.isnan(protein[:3, 1]).all()
    assert np.isnan(protein).sum() == 3


def test_a_file_kept_on_disk_gives_the_same_counts(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    same(find_counts(backed, Columns(protein_expression_obsm_key="protein_counts")))
    assert backed.isbacked
    backed.file.close()


def test_csr_is_not_copied(mdata):
    assert np.shares_memory(find_counts(mdata, Columns()).rna.read().data, mdata["rna"].X.data)


def test_a_view_is_read_as_its_own_cells(mdata):
    source = find_counts(mdata[2:5], Columns())
    assert source.cell_names.tolist() == CELLS[2:5]
    np.testing.assert_array_equal(source.rna.read().toarray(), RNA[2:5])
    np.testing.assert_array_equal(source.protein.read(), PROTEIN[2:5])
    assert source.obs["site"].tolist() == list("ttu")


@pytest.mark.parametrize("store", [sparse.csr_matrix, duplicated, sparse.csc_matrix, np.asarray])
def test_nothing_is_written_into_the_object(mdata, store):
    mdata["rna"].X = store(RNA)
    mdata.uns["setting"] = {"a": [1, 2]}
    before = mdata.copy()
    find_counts(mdata, Columns())
    assert before.uns == mdata.uns
    pd.testing.assert_frame_equal(before.obs, mdata.obs)
    for name in ("rna", "prot"):
        old, new = before[name], mdata[name]
        pd.testing.assert_frame_equal(old.obs, new.obs)
        pd.testing.assert_frame_equal(old.var, new.var)
        assert list(old.layers) == list(new.layers)
        assert list(old.obsm) == list(new.obsm)
        assert dict(old.uns) == dict(new.uns)
        assert type(old.X) is type(new.X)
        for part in ("data", "indices", "indptr") if sparse.issparse(old.X) else ():
            np.testing.assert_array_equal(getattr(old.X, part), getattr(new.X, part))
        if not sparse.issparse(old.X):
            np.testing.assert_array_equal(old.X, new.X)


def without_x(mdata):
    mdata["rna"].X = None
    return mdata


def text_in_protein(mdata):
    values = PROTEIN.astype(object)
    values[4, 1] = "n/a"
    return mudata_of(mdata["rna"], adata_of(values, PROTEINS))


def text_in_rna(mdata):
    values = RNA.astype(object)
    values[1, 2] = "many"
    return mudata_of(adata_of(values, GENES), mdata["prot"])


def complex_rna(mdata):
    mdata["rna"].X = sparse.csr_matrix(RNA.astype(complex))
    return mdata


def repeated_cell(mdata):
    prot = mdata["prot"].copy()
    prot = prot[[0, 1, 2, 3, 4, 5, 5]].copy()
    rna = mdata["rna"].copy()
    return mudata_of(rna, prot)


# Each case: a name, how the data are spoiled, arguments, and words the message must hold.
BAD_MUDATA = [
    ("modality", lambda m: m, {"rna_modality": "RNA"}, ["rna_modality", 'did you mean "rna"']),
    ("protein", lambda m: m, {"protein_modality": "prto"}, ["protein_modality", '"prot"']),
    ("rna only", lambda m: MuData({"rna": m["rna"]}), {}, ["no proteins at all", "paired"]),
    ("layer", lambda m: m, {"rna_layer": "counts"}, ['"counts"', 'modality "rna"', "none"]),
    ("protein layer", lambda m: m, {"protein_layer": "raw"}, ['"raw"', 'modality "prot"']),
    ("no X", without_x, {}, ['no X in modality "rna"', "rna_layer"]),
    ("obsm key", lambda m: m, {"protein_expression_obsm_key": "p"}, ["protein_modality"]),
    (
        "lost cell",
        lambda m: mudata_of(m["rna"], m["prot"][[0, 1, 3, 4, 5]].copy()),
        {},
        ["6 cells", '"prot" 5', '"cell_2" in "rna"', "intersection"],
    ),
    (
        "other order",
        lambda m: mudata_of(m["rna"], m["prot"][[0, 1, 3, 2, 4, 5]].copy()),
        {},
        ["another order", "row 2", '"cell_2" and "cell_3"', ".copy()"],
    ),
    ("repeated", repeated_cell, {}, ["6 cells", '"prot" 7', "repeated", "obs_names_make_unique"]),
    ("no cells", lambda m: m[:0].copy(), {}, ["no cells at all", 'modality "rna"']),
    (
        "no genes",
        lambda m: mudata_of(m["rna"][:, :0].copy(), m["prot"]),
        {},
        ["no genes at all", 'modality "rna"'],
    ),
    (
        "no proteins",
        lambda m: mudata_of(m["rna"], m["prot"][:, :0].copy()),
        {},
        ["no proteins at all", 'modality "prot"', "protein_modality"],
    ),
    ("text", text_in_protein, {}, ['modality "prot"', '"n/a"', '"cell_4"', '"CD19"']),
    ("text in RNA", text_in_rna, {}, ['modality "rna"', '"many"', '"cell_1"', '"LYZ"']),
    ("complex", complex_rna, {}, ['modality "rna"', "complex"]),
]


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"), [c[1:] for c in BAD_MUDATA], ids=[c[0] for c in BAD_MUDATA]
)
@pytest.mark.filterwarnings("ignore")
def test_bad_mudata_is_refused_by_name(mdata, spoil, arguments, words):
    with pytest.raises(DataError) as caught:
        find_counts(spoil(mdata), Columns(**arguments))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def text_column(adata):
    adata.obsm["protein_counts"] = adata.obsm["protein_counts"].assign(CD19=list("123x56"))
    return adata


BAD_ANNDATA = [
    (
        "no key",
        lambda a: a,
        {},
        ["no proteins at all", "protein_expression_obsm_key", '"protein_counts"'],
    ),
    (
        "near miss",
        lambda a: a,
        {"protein_expression_obsm_key": "protein_count"},
        ['did you mean "protein_counts"'],
    ),
    (
        "text column",
        text_column,
        {"protein_expression_obsm_key": "protein_counts"},
        ['"CD19"', '"cell_0"'],
    ),
    (
        "two places",
        lambda a: a,
        {"protein_expression_obsm_key": "protein_counts", "protein_layer": "counts"},
        ["protein_layer", "protein_expression_obsm_key"],
    ),
    ("a path", lambda a: "cells.h5ad", {}, ["str", "totalvi.read"]),
]


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"), [c[1:] for c in BAD_ANNDATA], ids=[c[0] for c in BAD_ANNDATA]
)
def test_bad_anndata_is_refused_by_name(adata, spoil, arguments, words):
    with pytest.raises(DataError) as caught:
        find_counts(spoil(adata), Columns(**arguments))
    for word in words:
        assert word in str(caught.value)


def test_the_hint_names_only_obsm_entries_that_look_like_counts(adata):
    with pytest.raises(DataError, match="protein_counts") as caught:
        find_counts(adata, Columns())
    assert "X_pca" not in str(caught.value)


def test_did_you_mean_shows_at_most_twenty():
    assert did_you_mean("q", map(str, range(25))).endswith("and 5 more")


def test_real_data(shared):
    eccite = anndata.read_h5ad(shared / "data" / "eccite_pbmc_49proteins.h5ad")
    source = find_counts(eccite, Columns(protein_expression_obsm_key="protein_counts"))
    assert source.rna.shape == (500, 19521)
    assert source.protein.shape == (500, 49)
    assert "hto_argmax" in source.obs


def test_feature_types_are_those_that_read_knows(tmp_path):
    both = adata_of(np.hstack([RNA, PROTEIN, RNA[:, :1]]), [*GENES, "a", "b", "c", "tag"])
    both.var["feature_types"] = [*["gene expression"] * 4, *["Protein"] * 3, "HTO"]
    same(find_counts(both, Columns()), ["a", "b", "c"])
    both.write(tmp_path / "both.h5ad")
    same(find_counts(read(tmp_path / "both.h5ad"), Columns()), ["a", "b", "c"])
