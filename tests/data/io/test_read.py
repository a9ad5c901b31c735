import shutil
import warnings
from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.data.io.read import read
from totalvi.errors import ReadError

CELLS = [f"ACGTACGTACGT-{i}" for i in range(9)]
GENES = ["CD3E", "CD4", "CD4", "TBCE", "mm10_Cd4"]
PROTEINS = ["CD3", "CD4", "IgG2a", "HTO_1"]
RNA = np.random.default_rng(3).poisson(1.5, (9, 5))
PROTEIN = np.random.default_rng(4).poisson(20.0, (9, 4))


@pytest.fixture(autouse=True)
def no_warnings():
    """Reading must not warn about what the user did not do."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rna_anndata(storage=sparse.csr_matrix) -> AnnData:
    adata = AnnData(
        storage(RNA.astype(np.int64)), obs=pd.DataFrame({"donor": list("xxxyyyzzz")}, CELLS)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.var_names = GENES
    adata.var["highly_variable"] = True
    adata.obsm["X_pca"] = np.ones((9, 2))
    adata.layers["counts"] = sparse.csc_matrix(RNA)
    adata.uns["title"] = "nine cells"
    return adata


def protein_anndata() -> AnnData:
    return AnnData(
        PROTEIN.astype(np.float64), obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=PROTEINS)
    )


def joint_anndata() -> AnnData:
    rna, protein = rna_anndata(), protein_anndata()
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * 5 + ["Antibody Capture"] * 4})
    var.index = pd.Index(GENES[:2] + ["CD4-1", *GENES[3:]] + [f"{name}_ab" for name in PROTEINS])
    order = [5, 0, 6, 1, 2, 7, 3, 4, 8]
    joint = AnnData(
        sparse.csr_matrix(np.hstack([rna.X.toarray(), protein.X])), obs=rna.obs, var=var
    )
    joint.layers["raw"] = joint.X * 2
    return joint[:, order].copy()


def mudata_of(modalities: dict[str, AnnData]) -> MuData:
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MuData(modalities)


def write(data: AnnData | MuData, path: Path) -> Path:
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = {".h5ad": "write_h5ad", ".h5mu": "write", ".zarr": "write_zarr"}[path.suffix]
        getattr(data, kind)(path)
    return path


def check_rna(mdata: MuData) -> None:
    rna = mdata["rna"]
    assert rna.X.format == "csr"
    assert rna.X.dtype == np.float32
    np.testing.assert_array_equal(rna.X.toarray(), RNA)
    assert rna.var_names.tolist() == ["CD3E", "CD4", "CD4-1", "TBCE", "mm10_Cd4"]
    assert rna.obs_names.tolist() == mdata.obs_names.tolist() == CELLS
    assert rna.obs["donor"].tolist() == list("xxxyyyzzz")


def check_proteins(mdata: MuData, names: list[str] = PROTEINS) -> None:
    for name, columns in (("prot", [0, 1, 2]), ("hto", [3])):
        assert mdata[name].X.format == "csr"
        assert mdata[name].X.dtype == np.float32
        np.testing.assert_array_equal(mdata[name].X.toarray(), PROTEIN[:, columns])
        assert mdata[name].var_names.tolist() == [names[i] for i in columns]
        assert mdata[name].obs_names.tolist() == CELLS
    assert mdata["prot"].var["control"].tolist() == [False, False, True]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("storage", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_anndata_of_rna_alone(tmp_path, suffix, storage):
    mdata = read(write(rna_anndata(storage), tmp_path / f"rna{suffix}"))
    check_rna(mdata)
    assert list(mdata.mod) == ["rna"]
    assert mdata.obs["donor"].tolist() == list("xxxyyyzzz")
    rna = mdata["rna"]
    assert rna.var["highly_variable"].all()
    assert rna.uns["title"] == "nine cells"
    np.testing.assert_array_equal(rna.obsm["X_pca"], 1)
    np.testing.assert_array_equal(rna.layers["counts"].toarray(), RNA)


@pytest.mark.parametrize(
    ("suffix", "key", "kind"),
    [
        (".h5ad", "protein_expression", "frame"),
        (".h5ad", "protein_counts", "array"),
        (".h5ad", "adt", "sparse"),
        (".h5ad", "protein", "unnamed"),
        (".h5ad", "clinic", "frame"),
        (".zarr", "protein_expression", "frame"),
        (".zarr", "protein_counts", "array"),
        (".zarr", "clinic", "sparse"),
    ],
)
def test_proteins_in_obsm(tmp_path, suffix, key, kind):
    adata = rna_anndata()
    values = {
        "frame": pd.DataFrame(PROTEIN, index=CELLS, columns=PROTEINS),
        "array": PROTEIN,
        "sparse": sparse.csc_matrix(PROTEIN),
        "unnamed": PROTEIN,
    }
    adata.obsm[key] = values[kind]
    if kind in ("array", "sparse"):
        adata.uns[f"{key}_names" if kind == "array" else "protein_names"] = np.array(PROTEINS)
    path = write(adata, tmp_path / f"cite{suffix}")
    mdata = read(path, protein_expression_obsm_key="clinic" if key == "clinic" else None)
    check_rna(mdata)
    assert list(mdata["rna"].obsm) == ["X_pca"]
    if kind == "unnamed":
        assert mdata["prot"].var_names.tolist() == [f"protein_{i}" for i in range(4)]
        np.testing.assert_array_equal(mdata["prot"].X.toarray(), PROTEIN)
    else:
        check_proteins(mdata)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_proteins_by_feature_type(tmp_path, suffix):
    mdata = read(write(joint_anndata(), tmp_path / f"joint{suffix}"))
    check_rna(mdata)
    check_proteins(mdata, [f"{name}_ab" for name in PROTEINS])
    np.testing.assert_array_equal(mdata["rna"].layers["raw"].toarray(), RNA * 2)
    np.testing.assert_array_equal(mdata["prot"].layers["raw"].toarray(), PROTEIN[:, :3] * 2)


def test_feature_types_come_before_a_well_known_obsm_key(tmp_path):
    adata = joint_anndata()
    adata.obsm["protein"] = np.ones((9, 3))
    path = write(adata, tmp_path / "both.h5ad")
    check_proteins(read(path), [f"{name}_ab" for name in PROTEINS])
    with pytest.raises(ReadError, match="give the antibodies once"):
        read(path, protein_expression_obsm_key="protein")


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
def test_mudata(tmp_path, suffix):
    mdata = mudata_of({"rna": rna_anndata(), "prot": protein_anndata()})
    mdata.obs["sample"] = list("aaabbbccc")
    mdata.obsm["X_umap"] = np.arange(18.0).reshape(9, 2)
    mdata.uns["run"] = "7"
    found = read(write(mdata, tmp_path / f"cite{suffix}"))
    check_rna(found)
    check_proteins(found)
    assert list(found.mod) == ["rna", "prot", "hto"]
    assert found.obs["sample"].tolist() == list("aaabbbccc")
    assert found.uns["run"] == "7"
    np.testing.assert_array_equal(found.obsm["X_umap"], np.arange(18.0).reshape(9, 2))


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
def test_equal_names_of_cells_are_kept_once_on_disk(tmp_path, suffix):
    names = {"rna": CELLS, "prot": CELLS, "atac": CELLS[3:7]}
    parts = {
        name: AnnData(
            np.ones((len(cells), 1)),
            obs=pd.DataFrame(index=pd.Index(cells, name=f"cell of {name}")),
            var=pd.DataFrame(index=[f"feature of {name}"]),
        )
        for name, cells in names.items()
    }
    path = write(mudata_of(parts), tmp_path / f"cite{suffix}")
    mdata = open_on_disk(path)
    assert {name: part.obs_names.tolist() for name, part in mdata.mod.items()} == names
    assert all(a is b for a, b in zip(mdata["rna"].obs_names, mdata["prot"].obs_names, strict=True))
    assert [part.obs_names.name for part in mdata.mod.values()] == [
        f"cell of {name}" for name in names
    ]


def test_a_mudata_that_lost_its_modalities_is_opened_without_any(tmp_path):
    parts = {"rna": AnnData(np.ones((9, 2)), obs=pd.DataFrame(index=CELLS))}
    path = write(mudata_of(parts), tmp_path / "empty.h5mu")
    with h5py.File(path, "a") as file:
        del file["mod/rna"]
        file["mod"].attrs["mod-order"] = []
    assert list(open_on_disk(path).mod) == []


def test_mudata_with_other_modalities_and_hashtags_of_its_own(tmp_path):
    tags = AnnData(np.ones((9, 1)), obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=["tag"]))
    parts = {"rna": rna_anndata(), "hto": tags, "prot": protein_anndata(), "atac": tags.copy()}
    path = write(mudata_of(parts), tmp_path / "four.h5mu")
    mdata = read(path)
    assert list(mdata.mod) == ["rna", "hto", "prot", "atac"]
    assert mdata["hto"].var_names.tolist() == ["tag"]
    assert mdata["prot"].n_vars == 4
    with pytest.raises(ReadError, match='has a modality "hto" for these already'):
        read(path, hashtags="HTO")


def test_rows_of_no_antibody_are_not_named_where_they_are_apart(tmp_path):
    apart = AnnData(np.ones((9, 1)), obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=["x"]))
    parts = {"rna": rna_anndata(), "prot": protein_anndata(), "no_antibody": apart}
    path = write(mudata_of(parts), tmp_path / "three.h5mu")
    assert "no_antibody" in read(path).mod
    with pytest.raises(ReadError, match='has a modality "no_antibody" for these already'):
        read(path, leave_out=protein_anndata().var_names[0])


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_versions(tmp_path, version):
    parts = {"rna": rna_anndata(), "prot": protein_anndata()}
    with anndata.settings.override(zarr_write_format=version):
        path = write(joint_anndata(), tmp_path / "one.zarr")
        paired = write(mudata_of(parts), tmp_path / "two.zarr")
    for folder in (path, paired):
        assert (folder / (".zgroup" if version == 2 else "zarr.json")).exists()
    check_rna(read(path))
    check_proteins(read(paired))


def test_hashtags_and_controls_by_option(tmp_path):
    path = write(mudata_of({"rna": rna_anndata(), "prot": protein_anndata()}), tmp_path / "x.h5mu")
    mdata = read(path, hashtags=[], controls=["CD3"])
    assert "hto" not in mdata.mod
    assert mdata["prot"].var["control"].tolist() == [True, False, False, False]
    mdata = read(path, hashtags="^CD", controls="HTO")
    assert mdata["hto"].var_names.tolist() == ["CD3", "CD4"]
    assert mdata["prot"].var["control"].tolist() == [False, True]
    rna = write(rna_anndata(), tmp_path / "rna.h5ad")
    with pytest.raises(ReadError, match='hashtags names "HTO_1", which is no antibody'):
        read(rna, hashtags=["HTO_1"])
    with pytest.raises(ReadError, match="no antibodies that could be controls"):
        read(rna, controls=["IgG1"])


@pytest.mark.parametrize("suffix", [".h5ad", ".h5mu"])
def test_genome_by_prefix(tmp_path, suffix):
    rna = rna_anndata()
    path = write(rna if suffix == ".h5ad" else mudata_of({"rna": rna}), tmp_path / f"x{suffix}")
    mdata = read(path, genome="mm10")
    assert mdata["rna"].var_names.tolist() == ["mm10_Cd4"]
    np.testing.assert_array_equal(mdata["rna"].X.toarray(), RNA[:, 4:])
    with pytest.raises(ReadError, match='begins with "hg19_"; leave out genome'):
        read(path, genome="hg19")


def test_repeated_cell_names_are_left_for_the_checks(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rna, protein = rna_anndata(), protein_anndata()
        rna.obs_names = protein.obs_names = ["x", "x", *CELLS[2:]]
        path = write(mudata_of({"rna": rna, "prot": protein}), tmp_path / "twice.h5mu")
        alone = write(rna, tmp_path / "twice.h5ad")
        other = write(
            mudata_of({"rna": rna, "prot": protein[::-1].copy()}), tmp_path / "other.h5mu"
        )
    assert read(path)["prot"].obs_names.tolist()[:2] == ["x", "x"]
    assert read(alone).obs["donor"].tolist() == list("xxxyyyzzz")
    with pytest.raises(ReadError, match=r'"x" occurs more than once in "rna".*give every cell'):
        read(other)


def test_no_file_is_written(tmp_path):
    paths = [
        write(joint_anndata(), tmp_path / "joint.h5ad"),
        write(mudata_of({"rna": rna_anndata(), "prot": protein_anndata()}), tmp_path / "x.h5mu"),
        write(joint_anndata(), tmp_path / "joint.zarr"),
    ]
    before = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}
    for path in paths:
        read(path)
    assert {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()} == before


def test_hdf5_is_known_by_what_it_holds(tmp_path):
    path = write(joint_anndata(), tmp_path / "joint.h5ad")
    check_rna(read(path.rename(tmp_path / "joint.h5")))


@pytest.mark.parametrize(
    ("name", "cells", "genes", "proteins"),
    [
        ("pbmc10k.h5mu", 6855, 4000, 14),
        ("pbmc5k_rna.h5ad", 3994, 4000, None),
        ("bmmc_134proteins.h5mu", 600, 1000, 134),
        ("eccite_pbmc_49proteins.h5ad", 500, 19521, 49),
        ("10x_pbmc_10k_protein_v3_subset", 1024, 100, 17),
    ],
)
def test_real_data(shared, name, cells, genes, proteins):
    mdata = read(shared / "data" / name)
    assert list(mdata.mod) == (["rna"] if proteins is None else ["rna", "prot"])
    assert mdata["rna"].shape == (cells, genes)
    if proteins is not None:
        assert mdata["prot"].shape == (cells, proteins)
        assert mdata["prot"].var["control"].dtype == bool
    for adata in mdata.mod.values():
        assert adata.X.format == "csr"
        assert adata.X.dtype == np.float32
        np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))


def test_real_obsm_counts(shared):
    path = shared / "data" / "eccite_pbmc_49proteins.h5ad"
    mdata, adata = read(path), anndata.read_h5ad(path)
    prot = mdata["prot"]
    np.testing.assert_array_equal(prot.X.toarray(), adata.obsm["protein_counts"])
    assert prot.var_names[prot.var["control"]].tolist() == ["IgG1", "IgG2a"]
    assert mdata.obs["hto_argmax"].tolist() == adata.obs["hto_argmax"].tolist()
    assert (mdata["rna"].X != adata.X).nnz == 0


# Broken inputs ----------------------------------------------------------------------------------


def h5ad_with(name: str, change):
    def breaks(folder: Path) -> Path:
        path = write(joint_anndata(), folder / "joint.h5ad")
        with h5py.File(path, "a") as file:
            if change is None:
                del file[name]
            else:
                file[name][...] = change(file[name][:])
        return path

    return breaks


def h5mu_with(name: str, value: int):
    def breaks(folder: Path) -> Path:
        parts = {"rna": rna_anndata(), "prot": protein_anndata()}
        path = write(mudata_of(parts), folder / "cite.h5mu")
        with h5py.File(path, "a") as file:
            file[name][3] = value
        return path

    return breaks


def cut(suffix: str):
    def breaks(folder: Path) -> Path:
        data = joint_anndata() if suffix == ".h5ad" else mudata_of({"rna": rna_anndata()})
        path = write(data, folder / f"cut{suffix}")
        path.write_bytes(path.read_bytes()[:3000])
        return path

    return breaks


def file_of(name: str, content: bytes):
    def breaks(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return breaks


def nothing(folder: Path, name: str) -> Path:
    write(rna_anndata(), folder / "counts.h5ad")
    return folder / name


def empty_folder(name: str):
    def breaks(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return breaks


def h5_of(name: str, *groups: str):
    def breaks(folder: Path) -> Path:
        with h5py.File(folder / name, "w") as file:
            for group in groups:
                file.create_group(group)
        return folder / name

    return breaks


def zarr_without(name: str):
    def breaks(folder: Path) -> Path:
        path = write(joint_anndata(), folder / "joint.zarr")
        shutil.rmtree(path / name)
        return path

    return breaks


def other_zarr(folder: Path) -> Path:
    zarr.open_group(folder / "other.zarr", mode="w").create_group("images")
    return folder / "other.zarr"


def not_zarr(folder: Path) -> Path:
    (folder / "not.zarr").mkdir()
    (folder / "not.zarr" / "notes.md").write_text("hello")
    return folder / "not.zarr"


def no_x(folder: Path) -> Path:
    adata = AnnData(obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=GENES[:2]))
    return write(adata, folder / "no_x.h5ad")


def text_in_obsm(folder: Path) -> Path:
    adata = rna_anndata()
    frame = pd.DataFrame(PROTEIN, index=CELLS, columns=PROTEINS).astype(str)
    adata.obsm["protein_counts"] = frame
    return write(adata, folder / "text.h5ad")


def too_few_names(folder: Path) -> Path:
    adata = rna_anndata()
    adata.obsm["protein_counts"] = PROTEIN
    adata.uns["protein_names"] = np.array(PROTEINS[:3])
    return write(adata, folder / "names.h5ad")


def first_negative(values: np.ndarray) -> np.ndarray:
    values[0] = -1
    return values


DAMAGED = "is damaged (its sparse matrix has"
BROKEN = {
    "missing": (lambda f: nothing(f, "count.h5ad"), 'did you mean "counts.h5ad"'),
    "missing folder": (lambda f: nothing(f, "nowhere/x.h5ad"), "nor does its folder"),
    "empty file": (file_of("x.h5", b""), "is empty"),
    "empty folder": (empty_folder("x"), "is empty"),
    "text named .h5": (file_of("x.h5", b"gene,cell\n1,2\n"), "it looks like text"),
    "bytes named .h5mu": (file_of("x.h5mu", bytes(range(256))), "it is not HDF5"),
    "unknown suffix": (file_of("x.dat", b"RDX3"), 'unknown suffix ".dat"'),
    "of R": (file_of("x.rds", b"RDX3"), "docs/r.md"),
    "no suffix": (file_of("counts", b"1 2 3"), 'unknown suffix ""'),
    "archive": (file_of("x.tar.gz", b"\x1f\x8b"), "is a packed file; unpack it"),
    "HDF5 of nothing": (h5_of("x.h5"), "it holds nothing"),
    "HDF5 of others": (h5_of("x.h5ad", "images", "labels"), "it holds images, labels"),
    "h5mu of nothing": (h5_of("x.h5mu", "mod"), "is a MuData without modalities"),
    "h5ad cut short": (cut(".h5ad"), "cannot be read as an HDF5 file"),
    "h5mu cut short": (cut(".h5mu"), "cannot be read as an HDF5 file"),
    "index out of range": (h5ad_with("X/indices", lambda v: v + 5), DAMAGED),
    "index negative": (h5ad_with("X/indices", first_negative), DAMAGED),
    "pointers backwards": (h5ad_with("X/indptr", lambda v: v[::-1]), DAMAGED),
    "layer out of range": (h5ad_with("layers/raw/indices", lambda v: v + 9), '"raw" of'),
    "no feature names": (h5ad_with("var/_index", None), 'has lost the names in "var"'),
    "no data": (h5ad_with("X/data", None), "cannot be read as an AnnData"),
    "no X": (no_x, "has no X; write it again with the raw counts"),
    "h5mu index": (h5mu_with("mod/rna/X/indices", 99), 'modality "rna" of'),
    "zarr without X data": (zarr_without("X/data"), 'lacks 1 of 1 chunks of "X/data"'),
    "zarr without var": (zarr_without("var"), 'lacks 1 of 1 chunks of "var/_index"'),
    "zarr of others": (other_zarr, "neither an AnnData nor a MuData (it holds images)"),
    "not zarr": (not_zarr, "it has neither zarr.json nor .zgroup"),
    "folder of others": (lambda f: not_zarr(f).rename(f / "folder"), "lacks matrix.mtx.gz"),
    "text in obsm": (
        text_in_obsm,
        f'in place of counts, first "{PROTEIN[0, 0]}" in cell "{CELLS[0]}", feature "CD3"',
    ),
    "too few protein names": (too_few_names, "is 9 x 4 but there are 9 cells and 3 names"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BROKEN)
def test_broken(case, tmp_path):
    breaks, expected = BROKEN[case]
    path = breaks(tmp_path)
    with pytest.raises(ReadError) as caught:
        read(path)
    message = str(caught.value)
    assert expected in message
    assert str(path) in message
    assert "\n" not in message
    assert "; " in message  # what is wrong, then the fix
    assert message.endswith(".")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read_with", [read, open_on_disk])
@pytest.mark.parametrize("lost", ["the table", "its index", "its attributes"])
@pytest.mark.parametrize("table", ["mod/prot/var", "mod/rna/var", "mod/prot/obs", "obs"])
@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
def test_names_that_were_lost_are_not_made_up(tmp_path, suffix, table, lost, read_with):
    """The readers of MuData put numbers in their place."""
    path = write(
        mudata_of({"rna": rna_anndata(), "prot": protein_anndata()}), tmp_path / f"x{suffix}"
    )
    open_root = h5py.File if suffix == ".h5mu" else zarr.open_group
    root = open_root(path, mode="r+")
    if lost == "the table":
        del root[table]
    elif lost == "its index":
        del root[table][root[table].attrs["_index"]]
    else:
        for name in list(root[table].attrs):
            del root[table].attrs[name]
    if suffix == ".h5mu":
        root.close()
    else:
        zarr.consolidate_metadata(path)
    with pytest.raises(ReadError) as caught:
        read_with(path)
    assert f'{path} has lost the names in "{table}"; ' in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"protein_path": "protein.csv"}, "is a MuData, which has its proteins in a modality"),
        ({"protein_expression_obsm_key": "x"}, "is a MuData, which has its proteins in a modality"),
    ],
)
def test_options_that_do_not_fit_a_mudata(tmp_path, options, expected):
    path = write(mudata_of({"rna": rna_anndata(), "prot": protein_anndata()}), tmp_path / "x.h5mu")
    with pytest.raises(ReadError, match=expected):
        read(path, **options)


def test_options_that_do_not_fit_an_anndata(tmp_path):
    path = write(rna_anndata(), tmp_path / "rna.h5ad")
    mu = write(mudata_of({"rna": rna_anndata(), "prot": protein_anndata()}), tmp_path / "x.h5mu")
    with pytest.raises(ReadError, match=r'no obsm\["X_pc"\].*did you mean "X_pca"'):
        read(path, protein_expression_obsm_key="X_pc")
    with pytest.raises(ReadError, match="give one of them"):
        read(path, protein_path=mu, protein_expression_obsm_key="X_pca")
    with pytest.raises(ReadError, match="which may hold RNA as well"):
        read(path, protein_path=mu)
    with pytest.raises(ReadError, match="is not a file on this machine"):
        read("https://example.org/x.h5")


def test_modalities_of_other_names_are_tidied_alike(tmp_path):
    given = mudata_of({"gex": rna_anndata(), "adt": protein_anndata()})
    path = write(given, tmp_path / "x.h5mu")
    mdata = read(path, rna_modality="gex", protein_modality="adt")
    assert list(mdata.mod) == ["gex", "adt", "hto"]
    assert mdata["adt"].var["control"].to_dict() == {"CD3": False, "CD4": False, "IgG2a": True}
    assert mdata["adt"].X.format == mdata["gex"].X.format == "csr"
    for option in ("hashtags", "controls"):
        with pytest.raises(ReadError, match=r'no modality "prot" in .* with protein_modality'):
            read(path, **{option: "CD"})
