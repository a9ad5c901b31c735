"""Files as other tools and people write them: what is read is what was counted, or said not to be."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mudata import MuData
from scipy import io, sparse

import totalvi
from totalvi.cli.options import unmeasured_proteins
from totalvi.data.cell_pairs import pair_cells
from totalvi.data.columns import Columns
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.data.io.modalities import mudata_of
from totalvi.data.io.read import ReadOptions, read
from totalvi.errors import DataError, DataWarning, ReadError
from totalvi.run.convert import convert_counts
from totalvi.run.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore")
N = 60
GENES = ["CD3E", "CD4", "CD8A", "MS4A1", "LYZ", "NKG7", *(f"RPL{i}" for i in range(14))]
PROTEINS = ["CD3", "CD4", "CD8a", "CD19", "CD14", "CD56"]
RNG = np.random.default_rng(7)
RNA = RNG.poisson(2.0, (N, len(GENES))) + 1
PROT = RNG.poisson(20.0, (N, len(PROTEINS)))
CELLS = ["".join(RNG.choice(list("ACGT"), 16)) + "-1" for _ in range(N)]


def rna_table(cells: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(RNA, index=cells or CELLS, columns=GENES)


def protein_table(cells: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(PROT, index=cells or CELLS, columns=PROTEINS)


def rna_anndata() -> AnnData:
    table = rna_table()
    obs, var = pd.DataFrame(index=table.index), pd.DataFrame(index=table.columns)
    return AnnData(sparse.csr_matrix(RNA.astype(np.float32)), obs=obs, var=var)


def joint_anndata(**var: Any) -> AnnData:
    counts = sparse.csr_matrix(np.hstack([RNA, PROT]).astype(np.float32))
    names = [*GENES, *(f"{name}_TotalSeqC" for name in PROTEINS)]
    return AnnData(counts, obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(var, index=names))


def types(gene: str, antibody: str, n_antibodies: int = len(PROTEINS)) -> list[str]:
    others = len(PROTEINS) - n_antibodies
    return [gene] * len(GENES) + [antibody] * n_antibodies + [f"{antibody} 2"] * others


def check_counts(mdata: MuData, cells: np.ndarray | None = None) -> None:
    """Compare what was read with the truth, cell by cell."""
    rows = np.arange(N) if cells is None else cells
    np.testing.assert_array_equal(mdata["rna"].to_df().to_numpy(), RNA[rows])
    np.testing.assert_array_equal(mdata["prot"].to_df().to_numpy(), PROT[rows])


def tables(folder: Path, rna: pd.DataFrame, protein: pd.DataFrame) -> tuple[Path, Path]:
    rna.to_csv(folder / "rna.csv")
    protein.to_csv(folder / "protein.csv")
    return folder / "rna.csv", folder / "protein.csv"


def codes(findings: list[Any], severity: str = "warning") -> list[str]:
    return [finding.code for finding in findings if finding.severity == severity]


# ------------------------------------------------------------------- 1. rows that are no antibodies


@pytest.mark.parametrize(
    "name",
    [
        "unmapped",
        "Unmapped",
        "no_match",
        "bad_struct",
        "ADT_unmapped",
        "unassigned",
        "ambiguous",
        "multimapped",
        "__unassigned",
        "Unassigned_reads",
        "*",
        "mismatch",
        "other",
        "off_target",
        "invalid_barcode",
        "__no_feature",
        "nFeature_ADT",
        "nCount_RNA",
        "percent.mt",
        "pct_counts_mt",
        "n_genes_by_counts",
    ],
)
def test_reads_of_no_antibody_are_kept_apart(tmp_path: Path, name: str) -> None:
    protein = protein_table().assign(**{name: RNG.poisson(9, N)})
    rna, path = tables(tmp_path, rna_table(), protein)
    mdata = read(rna, protein_path=path)
    check_counts(mdata)
    assert mdata["no_antibody"].var_names.tolist() == [name]
    found = read(rna, protein_path=path, leave_out=())
    assert found["prot"].var_names.tolist() == [*PROTEINS, name]


@pytest.mark.parametrize("name", ["total", "total_reads", "Sum", "n_umis", "ADT total", "all"])
def test_totals_are_known_by_their_counts(tmp_path: Path, name: str) -> None:
    rna, path = tables(tmp_path, rna_table(), protein_table().assign(**{name: PROT.sum(axis=1)}))
    check_counts(read(rna, protein_path=path))
    rna, path = tables(tmp_path, rna_table(), protein_table().assign(**{name: PROT[:, 0] + 1}))
    assert name in read(rna, protein_path=path)["prot"].var_names


@pytest.mark.parametrize("name", ["everything", "lane", "QC", "depth", "Panel"])
def test_a_sum_under_any_name_is_warned_of_with_a_way_that_works(tmp_path: Path, name: str) -> None:
    rna, path = tables(tmp_path, rna_table(), protein_table().assign(**{name: PROT.sum(axis=1)}))
    findings = totalvi.check(rna, protein_path=path)
    (said,) = (f.message for f in findings if f.code == "protein_no_antibody")
    pattern = said.split('leave_out="')[1].split('"')[0]
    findings = totalvi.check(rna, protein_path=path, leave_out=pattern)
    assert "protein_no_antibody" not in codes(findings)
    check_counts(read(rna, protein_path=path, leave_out=pattern))


def tags(names: list[str]) -> pd.DataFrame:
    counts = RNG.poisson(3, (N, len(names)))
    counts[np.arange(N), np.arange(N) % len(names)] += 200
    return pd.DataFrame(counts, index=CELLS, columns=names)


@pytest.mark.parametrize(
    "names",
    [
        ["hash1", "hash2"],
        ["SampleTag01_hs", "SampleTag02_hs"],
        ["HTOB-TGTCTTTCCTGCCAG", "HTOA-GTCAACTCTTTAGCG"],
        ["LMO_1", "LMO_2"],
        ["TotalSeq-A0251", "TotalSeq-A0252"],
        ["MULTI-BC3", "MULTI-BC4"],
        ["Hu.Hashtag.1", "Hu.Hashtag.2"],
    ],
)
def test_hashtags_are_known_by_name(tmp_path: Path, names: list[str]) -> None:
    rna, path = tables(tmp_path, rna_table(), pd.concat([protein_table(), tags(names)], axis=1))
    mdata = read(rna, protein_path=path)
    check_counts(mdata)
    assert mdata["hto"].var_names.tolist() == names


@pytest.mark.parametrize(
    "names", [["Proximal", "Distal", "Colon"], ["donorA", "donorB"], list("wxyz"), ["S1", "S2"]]
)
def test_hashtags_under_any_name_are_warned_of(tmp_path: Path, names: list[str]) -> None:
    rna, path = tables(tmp_path, rna_table(), pd.concat([protein_table(), tags(names)], axis=1))
    findings = totalvi.check(rna, protein_path=path)
    (said,) = (f.message for f in findings if f.code == "protein_hashtags")
    pattern = said.split('hashtags="')[1].split('"')[0]
    mdata = read(rna, protein_path=path, hashtags=pattern)
    check_counts(mdata)
    assert mdata["hto"].var_names.tolist() == names


def test_markers_of_cell_types_are_no_hashtags() -> None:
    mdata = totalvi.simulate(n_cells=400, n_genes=250, n_proteins=12, n_cell_types=3, seed=5)
    assert "protein_hashtags" not in codes(totalvi.check(mdata))


# ------------------------------------------------------------ 2. what is used and what is set apart

EXTRA_TYPES = ["CRISPR Guide Capture", "Antigen Capture", "Custom", "Multiplexing Capture", "Peaks"]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    extra=st.lists(st.sampled_from(EXTRA_TYPES), max_size=4),
    layers=st.sets(st.sampled_from(["spliced", "logcounts", "scaled"]), max_size=2),
    obsm=st.sets(st.sampled_from(["X_pca", "spatial", "X_umap", "X_hto"]), max_size=3),
    unmapped=st.booleans(),
    suffix=st.sampled_from([".h5ad", ".zarr"]),
)
def test_whatever_is_not_used_is_named(
    tmp_path_factory: pytest.TempPathFactory,
    extra: list[str],
    layers: set[str],
    obsm: set[str],
    unmapped: bool,
    suffix: str,
) -> None:
    names = [f"f{i}" for i in range(len(extra))] + ["unmapped"] * unmapped
    counts = np.hstack([RNA, PROT, RNG.poisson(3, (N, len(names)))]).astype(np.float32)
    of_type = types("Gene Expression", "Antibody Capture") + extra
    of_type += ["Antibody Capture"] * unmapped
    var = pd.DataFrame({"feature_types": of_type}, index=[*GENES, *PROTEINS, *names])
    adata = AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(index=CELLS), var=var)
    for name in layers:
        adata.layers[name] = adata.X.copy()
    for name in obsm:
        adata.obsm[name] = RNG.normal(size=(N, 2))
    path = tmp_path_factory.mktemp("file") / f"cells{suffix}"
    adata.write_h5ad(path) if suffix == ".h5ad" else adata.write_zarr(path)
    findings = totalvi.check(path)
    (said,) = (f.message for f in findings if f.code == "contents")
    apart = said.partition("set apart: ")[2]
    for name in (*layers, *obsm, *names):
        assert f'"{name}"' in apart
    in_python = totalvi.check(read(path))
    assert [f.message for f in in_python if f.code == "contents"] == [said]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    extra=st.sets(st.sampled_from(["atac", "guides", "custom", "peaks", "spliced"]), max_size=3),
    layers=st.sets(st.sampled_from(["logcounts", "scaled"]), max_size=2),
    obsm=st.sets(st.sampled_from(["X_pca", "X_umap"]), max_size=2),
    suffix=st.sampled_from([".h5mu", ".zarr"]),
)
def test_whatever_is_not_used_of_a_mudata_is_named(
    tmp_path_factory: pytest.TempPathFactory,
    extra: set[str],
    layers: set[str],
    obsm: set[str],
    suffix: str,
) -> None:
    obs = pd.DataFrame(index=CELLS)
    parts = {
        "rna": AnnData(sparse.csr_matrix(RNA.astype(np.float32)), obs=obs.copy()),
        "prot": AnnData(PROT.astype(np.float32), obs=obs.copy()),
    }
    parts["rna"].var_names, parts["prot"].var_names = GENES, PROTEINS
    for name in layers:
        parts["rna"].layers[name] = parts["rna"].X.copy()
    for name in obsm:
        parts["prot"].obsm[name] = RNG.normal(size=(N, 2))
    for name in extra:
        parts[name] = AnnData(RNG.poisson(2, (N, 4)).astype(np.float32), obs=obs.copy())
        parts[name].var_names = [f"{name}_{i}" for i in range(4)]
    path = tmp_path_factory.mktemp("file") / f"cells{suffix}"
    mdata = MuData(parts)
    mdata.write_h5mu(path) if suffix == ".h5mu" else mdata.write_zarr(path)
    said = " ".join(f.message for f in totalvi.check(path) if f.code == "contents")
    apart = said.partition("set apart: ")[2]
    for name in (*layers, *obsm, *extra):
        assert f'"{name}"' in apart
    check_counts(read(path))


@pytest.mark.parametrize(
    "hide",
    [
        lambda a: a.obsm.__setitem__("X_adt", PROT),
        lambda a: a.obsm.__setitem__("surface", protein_table()),
        lambda a: a.obsm.__setitem__("ADT_raw", sparse.csr_matrix(PROT)),
        lambda a: a.uns.__setitem__("proteins", protein_table()),
        lambda a: a.obs.__setitem__(PROTEINS, PROT),
    ],
)
def test_a_file_with_antibodies_is_never_taken_for_rna_alone(
    tmp_path: Path, hide: Callable[[AnnData], None]
) -> None:
    adata = rna_anndata()
    hide(adata)
    adata.write_h5ad(tmp_path / "query.h5ad")
    other = read(
        *[tables(tmp_path, rna_table(), protein_table())[0]], protein_path=tmp_path / "protein.csv"
    )
    with pytest.raises(DataError, match="look"):
        totalvi.concat({"a": other, "b": read(tmp_path / "query.h5ad")})
    (finding,) = totalvi.check(tmp_path / "query.h5ad")
    assert finding.severity == "error"
    assert "look" in finding.message


# --------------------------------------------------------------------------- 3. zeros of a whole batch


def padded(batch: np.ndarray) -> np.ndarray:
    values = PROT.astype(np.float32).copy()
    values[np.ix_(batch == "b", [1, 4])] = 0
    return values


def two_batches() -> np.ndarray:
    return np.where(np.arange(N) % 2 == 0, "a", "b")


def in_mudata(values: np.ndarray, batch: np.ndarray) -> tuple[MuData, dict[str, str]]:
    protein = AnnData(values, obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=PROTEINS))
    return mudata_of(
        {"rna": rna_anndata(), "prot": protein}, pd.DataFrame({"batch": batch}, CELLS)
    ), {}


def in_obsm(values: np.ndarray, batch: np.ndarray) -> tuple[AnnData, dict[str, str]]:
    adata = rna_anndata()
    adata.obs["batch"] = batch
    adata.obsm["adt_table"] = pd.DataFrame(values, index=CELLS, columns=PROTEINS)
    return adata, {"protein_expression_obsm_key": "adt_table"}


def in_array(values: np.ndarray, batch: np.ndarray) -> tuple[AnnData, dict[str, str]]:
    adata, where = in_obsm(values, batch)
    adata.obsm["adt_table"] = values
    adata.uns["adt_table_names"] = np.array(PROTEINS)
    return adata, where


def in_x(
    values: np.ndarray, batch: np.ndarray, dense: bool = False
) -> tuple[AnnData, dict[str, str]]:
    counts = np.hstack([RNA, values]).astype(np.float32)
    var = pd.DataFrame({"feature_types": types("Gene Expression", "Antibody Capture")},
                       index=[*GENES, *(f"p_{name}" for name in PROTEINS)])  # fmt: skip
    obs = pd.DataFrame({"batch": batch}, index=CELLS)
    return AnnData(counts if dense else sparse.csr_matrix(counts), obs=obs, var=var), {}


def in_dense_x(values: np.ndarray, batch: np.ndarray) -> tuple[AnnData, dict[str, str]]:
    return in_x(values, batch, dense=True)


@pytest.mark.parametrize("make", [in_mudata, in_obsm, in_array, in_x, in_dense_x])
@pytest.mark.parametrize("by_name", [False, True])
def test_unmeasured_proteins_can_be_declared_everywhere(
    make: Callable[..., tuple[Any, dict[str, str]]], by_name: bool
) -> None:
    batch = two_batches()
    data, where = make(padded(batch), batch)
    with pytest.warns(DataWarning, match="zero in all cells of batch"):
        totalvi.Model(data, batch_key="batch", n_hidden=8, n_latent=2, **where)
    names = [f"p_{PROTEINS[i]}" if make in (in_x, in_dense_x) else PROTEINS[i] for i in (1, 4)]
    unmeasured: Any = {"b": names} if by_name else "zeros"
    declared = totalvi.declare_unmeasured(data, unmeasured, batch_key="batch", **where)
    model = totalvi.Model(declared, batch_key="batch", n_hidden=8, n_latent=2, **where)
    assert [list(row) for row in model.schema.panel_measured] == [
        [True] * 6,
        [True, False, True, True, False, True],
    ]
    kept = model._training_data().protein.read()
    np.testing.assert_array_equal(kept[batch == "a"], PROT[batch == "a"])
    codes_now = codes(list(model.findings))
    assert "protein_zero_in_group" not in codes_now


@pytest.mark.parametrize("n_zero", [1, 2, 9])
def test_all_proteins_that_are_zero_are_named_up_to_ten(n_zero: int) -> None:
    """Naming the first alone would leave the others to be looked for."""
    values = np.repeat(PROT, 2, axis=1).astype(np.float32)
    values[:, :n_zero] = 0
    names = [f"Ab{i}" for i in range(values.shape[1])]
    protein = AnnData(values, obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=names))
    data = mudata_of({"rna": rna_anndata(), "prot": protein}, pd.DataFrame(index=CELLS))
    (said,) = (f.message for f in totalvi.check(data) if f.code == "protein_zero")
    assert all(f'"{name}"' in said for name in names[:n_zero])
    assert (" it was not" in said) != ("them" in said)
    assert ("remove it if" in said) == (n_zero == 1)


@pytest.mark.parametrize(
    ("n_cells_of_batch", "share_positive", "warned"),
    [(2, 0.5, False), (5, 0.6, False), (30, 0.05, False), (30, 0.5, True), (12, 0.9, True)],
)
def test_zeros_that_chance_explains_are_not_warned_of(
    n_cells_of_batch: int, share_positive: float, warned: bool
) -> None:
    values = PROT.astype(np.float32).copy()
    elsewhere = N - n_cells_of_batch
    values[:, 2] = 0
    values[: round(share_positive * elsewhere), 2] = 3
    batch = np.where(np.arange(N) < elsewhere, "a", "b")
    data, _ = in_mudata(values, batch)
    found = codes(totalvi.check(data, batch_key="batch"))
    assert ("protein_zero_in_group" in found) == warned


def test_cells_of_a_batch_without_proteins_are_not_called_unstained_as_well() -> None:
    values = PROT.astype(np.float32).copy()
    values[two_batches() == "b"] = 0
    data, _ = in_mudata(values, two_batches())
    found = codes(totalvi.check(data, batch_key="batch"))
    assert "protein_zero_in_group" in found
    assert "cell_without_protein" not in found


@pytest.mark.parametrize(("n_proteins", "warned"), [(1, False), (3, False), (6, True)])
def test_a_cell_may_have_none_of_a_few_antibodies(n_proteins: int, warned: bool) -> None:
    values = PROT[:, :n_proteins].astype(np.float32)
    values[4] = 0
    protein = AnnData(
        values, obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=PROTEINS[:n_proteins])
    )
    data = mudata_of({"rna": rna_anndata(), "prot": protein}, pd.DataFrame(index=CELLS))
    assert ("cell_without_protein" in codes(totalvi.check(data))) == warned


BATCHES_OF_PEOPLE = [(1, 2), (1.0, 2.0), (True, False), ("PBMC, day 0", "day 1"), ("a=b", "c")]


@pytest.mark.parametrize("names", BATCHES_OF_PEOPLE)
@pytest.mark.parametrize("by_name", [False, True])
def test_batches_of_all_types_can_be_declared(names: tuple[Any, Any], by_name: bool) -> None:
    """Also as the command line gives them, whose texts are cut at the first "=" and at commas."""
    first = two_batches() == "a"
    data, _ = in_mudata(padded(two_batches()), np.where(first, *names[::-1]))
    data.obs["batch"] = np.where(first, names[1], names[0])
    given = unmeasured_proteins([f"{names[0]}=CD4,CD14"]) if by_name else "zeros"
    declared = totalvi.declare_unmeasured(data, given, batch_key="batch")  # type: ignore[arg-type]
    lacking = np.isnan(np.asarray(declared["prot"].X))
    assert lacking[np.ix_(~first, [1, 4])].all()
    assert lacking.sum() == 2 * (~first).sum()


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["HLA-A,B,C", "CD45=RA"], ["b=HLA-A,B,C,CD45=RA"]),
        (["HLA-A,B,C", "CD45=RA"], ["b=CD45=RA", "b=HLA-A,B,C"]),
        (["TCR gamma/delta", "CD16.1"], ["b=TCR gamma/delta, CD16.1"]),
        (["CD8 a", "b=b"], ["b=b=b,CD8 a"]),
        (["CD3", "CD3,CD4"], ["b=CD3,CD4,CD3"]),
    ],
)
def test_antibodies_of_any_name_can_be_declared(names: list[str], given: list[str]) -> None:
    batch = two_batches()
    data, _ = in_mudata(PROT.astype(np.float32), batch)
    data["prot"].var_names = [*names, *PROTEINS[2:]]
    declared = totalvi.declare_unmeasured(
        data,
        unmeasured_proteins(given),  # type: ignore[arg-type]
        batch_key="batch",
    )
    lacking = np.isnan(np.asarray(declared["prot"].X))
    assert lacking[np.ix_(batch == "b", [0, 1])].all()
    assert lacking.sum() == 2 * (batch == "b").sum()


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_zeros_that_declare_nothing_are_warned_of(batch_key: str | None) -> None:
    batch = two_batches()
    values = padded(batch) if batch_key is None else PROT.astype(np.float32)
    data, _ = in_mudata(values, batch)
    with pytest.warns(DataWarning, match="declares nothing") as caught:
        totalvi.declare_unmeasured(data, "zeros", batch_key=batch_key)
    assert ("name the batches with batch_key" in str(caught[0].message)) == (batch_key is None)


@pytest.mark.parametrize("form", [sparse.csc_matrix, sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float64])
def test_proteins_in_any_matrix_are_declared_and_converted(
    tmp_path: Path, form: Callable[..., Any], dtype: type
) -> None:
    batch = two_batches()
    data, _ = in_mudata(padded(batch), batch)
    data["prot"].X = form(padded(batch).astype(dtype))
    data.write(tmp_path / "cells.h5mu")
    keys = Columns(batch_key="batch")
    convert_counts(tmp_path / "cells.h5mu", tmp_path / "c.zarr", keys=keys, unmeasured="zeros")
    lacking = np.isnan(mudata.read_zarr(tmp_path / "c.zarr")["prot"].to_df().to_numpy())
    assert lacking.sum() == 2 * (batch == "b").sum()


@pytest.mark.parametrize("unmeasured", ["zero", {"c": ["CD3"]}, {"b": ["CD33"]}, {"b": "CD3"}])
def test_what_cannot_be_declared_is_refused(unmeasured: Any) -> None:
    data, _ = in_mudata(PROT, two_batches())
    with pytest.raises(DataError, match="unmeasured"):
        totalvi.declare_unmeasured(data, unmeasured, batch_key="batch")


def test_map_query_warns_of_padded_proteins() -> None:
    data, _ = in_mudata(PROT.astype(np.float32), two_batches())
    model = totalvi.Model(data, n_hidden=8, n_latent=2)
    model.train(max_epochs=1)
    query = data.copy()
    query["prot"].X[:, 2:] = 0
    with pytest.warns(DataWarning, match="zero in all cells"):
        model.map_query(query)
    declared = totalvi.declare_unmeasured(query, "zeros")
    mapped = model.map_query(declared)
    assert list(mapped.schema.panel_measured[-1]) == [True, True, False, False, False, False]


# ------------------------------------------------------------------------------ 4. sound files are read


def zero_layer(adata: AnnData) -> None:
    adata.layers["spliced"] = np.zeros(adata.shape, np.float32)


def sparse_zero_layer(adata: AnnData) -> None:
    layer = sparse.csr_matrix(adata.X).copy()
    layer.data[:] = 0
    adata.layers["unspliced"] = layer


def zero_embedding(adata: AnnData) -> None:
    adata.obsm["X_umap"] = np.zeros((N, 2))


def zero_annotation(adata: AnnData) -> None:
    adata.obs["flag"] = 0
    adata.var["flag"] = 0.0


def zero_protein(adata: AnnData) -> None:
    adata.obsm["protein_expression"]["CD56"] = 0


def zero_pairs(adata: AnnData) -> None:
    adata.obsp["distances"] = sparse.csr_matrix((N, N))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "zeros",
    [zero_layer, sparse_zero_layer, zero_embedding, zero_annotation, zero_protein, zero_pairs],
)
def test_chunks_of_zeros_need_not_be_there(
    tmp_path: Path, zeros: Callable[[AnnData], None], zarr_format: int
) -> None:
    adata = rna_anndata()
    adata.obsm["protein_expression"] = protein_table()
    zeros(adata)
    before = anndata.settings.zarr_write_format
    anndata.settings.zarr_write_format = zarr_format
    try:
        adata.write_zarr(tmp_path / "cells.zarr")
    finally:
        anndata.settings.zarr_write_format = before
    mdata = read(tmp_path / "cells.zarr")
    pd.testing.assert_frame_equal(
        mdata["prot"].to_df(),
        adata.obsm["protein_expression"].astype(np.float32),
        check_names=False,
    )
    np.testing.assert_array_equal(mdata["rna"].to_df(), RNA)


def test_a_mudata_whose_proteins_are_zero_in_a_batch_is_read(tmp_path: Path) -> None:
    values = PROT.astype(np.float32).copy()
    values[: N // 2] = 0
    data, _ = in_mudata(values, np.repeat(["a", "b"], N // 2))
    data.write_zarr(tmp_path / "cells.zarr")
    np.testing.assert_array_equal(read(tmp_path / "cells.zarr")["prot"].to_df(), values)


def wrong_rows(file: h5py.File) -> None:
    del file["obsm/X_pca"]
    file.create_dataset("obsm/X_pca", data=np.zeros((N - 1, 2)))
    file["obsm/X_pca"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def unknown_encoding(file: h5py.File) -> None:
    file["obsm/X_pca"].attrs["encoding-type"] = "of another package"


def unknown_uns(file: h5py.File) -> None:
    file.create_dataset("uns/odd", data=np.zeros(3))
    file["uns/odd"].attrs.update({"encoding-type": "odd", "encoding-version": "9"})


def wrong_layer(file: h5py.File) -> None:
    file.create_dataset("layers/odd", data=np.zeros((N, 2)))
    file["layers/odd"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


ODD = {"encoding-type": "of another package", "encoding-version": "1"}


def unknown_columns(file: h5py.File) -> None:
    for axis in ("obs", "var"):
        file[axis].create_group("odd").attrs.update(ODD)
        file[axis].attrs["column-order"] = [*file[axis].attrs["column-order"], "odd"]


def unknown_categories(file: h5py.File) -> None:
    file["obs/lane"].attrs.update(ODD)


def column_of_other_cells(file: h5py.File) -> None:
    file["obs"].create_dataset("short", data=np.zeros(3))
    file["obs/short"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    file["obs"].attrs["column-order"] = ["lane", "short"]


def raw_of_other_cells(file: h5py.File) -> None:
    file["raw/X"].attrs["shape"] = [3, 3]


def raw_without_rows(file: h5py.File) -> None:
    del file["raw/X/indptr"]


def pairs_of_other_cells(file: h5py.File) -> None:
    file["obsp/near"].attrs["shape"] = [5, 5]


def loadings_of_other_genes(file: h5py.File) -> None:
    file.create_dataset("varm/PCs", data=np.zeros((3, 2)))
    file["varm/PCs"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@pytest.mark.parametrize(
    "spoil",
    [
        *(unknown_columns, unknown_categories, column_of_other_cells, raw_of_other_cells),
        *(raw_without_rows, pairs_of_other_cells, loadings_of_other_genes),
    ],
)
@pytest.mark.parametrize("stays_on_disk", [False, True])
def test_annotation_and_raw_that_nobody_needs_need_not_be_readable(
    tmp_path: Path, spoil: Callable[[h5py.File], None], stays_on_disk: bool
) -> None:
    adata = rna_anndata()
    adata.raw = adata.copy()
    adata.obs["lane"] = pd.Categorical(two_batches())
    adata.obsp["near"] = sparse.eye_array(N, format="csr")
    adata.obsm["protein_expression"] = protein_table()
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    if stays_on_disk:
        convert_counts(path, tmp_path / "cells.zarr")
        check_counts(mudata.read_zarr(tmp_path / "cells.zarr"))
        return
    found = read(path)
    check_counts(found)
    has_lane = spoil not in (unknown_categories,)
    assert ("lane" in found.obs) == has_lane
    said = [f.message for f in totalvi.check(path)]
    assert any("cannot be read" in message for message in said)
    assert not any("damaged" in message for message in said)


@pytest.mark.parametrize("compression", ["lzf", "gzip"])
@pytest.mark.parametrize("attributes", ["kept", "mod-order lost"])
def test_files_of_other_writers_are_sound(
    tmp_path: Path, compression: str, attributes: str
) -> None:
    data, _ = in_mudata(PROT.astype(np.float32), two_batches())
    data.write(tmp_path / "cells.h5mu", compression=compression)
    if attributes != "kept":
        with h5py.File(tmp_path / "cells.h5mu", "r+") as file:
            del file["mod"].attrs["mod-order"]
    check_counts(read(tmp_path / "cells.h5mu"))


def numbered_rows(file: h5py.File) -> None:
    table = file["obsm/protein_expression"]
    index = table.attrs["_index"]
    attributes = dict(table[index].attrs)
    del table[index]
    table.create_dataset(index, data=[str(i + 1) for i in range(N)], dtype=h5py.string_dtype())
    table[index].attrs.update(attributes)


@pytest.mark.parametrize(
    "spoil", [wrong_rows, unknown_encoding, unknown_uns, wrong_layer, numbered_rows]
)
def test_what_is_not_needed_need_not_be_readable(
    tmp_path: Path, spoil: Callable[[h5py.File], None]
) -> None:
    adata = rna_anndata()
    adata.obsm["X_pca"] = RNG.normal(size=(N, 2))
    adata.obsm["protein_expression"] = protein_table()
    adata.layers["spare"] = adata.X.copy()
    adata.uns["title"] = "x"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        spoil(file)
    check_counts(read(tmp_path / "cells.h5ad"))
    said = " ".join(f.message for f in totalvi.check(tmp_path / "cells.h5ad"))
    assert "cannot be read" in said or "numbers in place of names" in said


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
@pytest.mark.parametrize("stays_on_disk", [False, True])
def test_a_part_that_cannot_be_read_takes_no_other_with_it(
    tmp_path: Path, suffix: str, stays_on_disk: bool
) -> None:
    mdata = totalvi.simulate(n_cells=N, n_genes=30, n_proteins=5, seed=1)
    rna = mdata["rna"]
    rna.raw = AnnData(rna.X, obs=rna.obs, var=rna.var)
    rna.obsm["kept"] = RNG.normal(size=(N, 2))
    rna.obsp["near"] = sparse.eye_array(N, format="csr")
    for owner in (rna, mdata["prot"], mdata):
        owner.uns["odd"] = "x"
        owner.uns["title"] = "a title"
    mdata.obsm["map"] = RNG.normal(size=(N, 2))
    path = tmp_path / f"cells{suffix}"
    mdata.write(path) if suffix == ".h5mu" else mdata.write_zarr(path)
    opened = h5py.File(path, "r+") if suffix == ".h5mu" else zarr.open_group(path, mode="r+")
    for place in ("mod/rna/uns/odd", "mod/prot/uns/odd", "uns/odd"):
        opened[place].attrs.update({"encoding-type": "odd", "encoding-version": "9"})
    if isinstance(opened, h5py.File):
        opened.close()
    found = open_on_disk(path) if stays_on_disk else read(path)
    assert isinstance(found, MuData)
    assert found["rna"].raw.shape == rna.raw.shape
    assert np.array_equal(found["rna"].obsm["kept"], rna.obsm["kept"])
    assert {*found.uns} >= {"title"} <= {*found["rna"].uns}
    if not stays_on_disk:
        assert np.array_equal(found.obsm["map"], mdata.obsm["map"])
        assert (found["rna"].obsp["near"] != rna.obsp["near"]).nnz == 0
    said = [f.message for f in totalvi.check(found) if f.code == "unread"]
    assert len(said) == 1
    for part in ('uns["odd"] of modality "rna"', 'uns["odd"] of modality "prot"', 'uns["odd"] ('):
        assert part in said[0]


def test_proteins_of_other_cells_are_refused_and_not_called_damaged(tmp_path: Path) -> None:
    adata = rna_anndata()
    adata.obsm["protein_expression"] = protein_table()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        table = file["obsm/protein_expression"]
        index = table[table.attrs["_index"]]
        index[:] = [f"other {i}" for i in range(N)]
    with pytest.raises(ReadError, match=r'obsm\["protein_expression"\]') as caught:
        read(tmp_path / "cells.h5ad")
    assert "damaged" not in str(caught.value)


# ------------------------------------------------------------------ 6. lists of cells that nearly agree

ORDER = np.random.default_rng(3).permutation(N)


def bare(cell: str) -> str:
    return cell.removesuffix("-1")


def translated(cell: str) -> str:
    pairs = str.maketrans("ACGT", "TGCA")
    return cell[:7] + cell[7:9].translate(pairs) + cell[9:]


def reversed_complement(cell: str) -> str:
    return bare(cell).translate(str.maketrans("ACGT", "TGCA"))[::-1]


@pytest.mark.parametrize(
    ("rename", "n"),
    [
        (lambda cell: cell, N),
        (bare, N),
        (bare, N - 8),
        (lambda cell: f"donor1_{cell}", N),
        (lambda cell: f"GSM1#{bare(cell)}", N - 3),
        (str.lower, N),
        (lambda cell: cell.replace("-", "."), N),
        (lambda cell: f"{bare(cell)}_1", N - 20),
        (translated, N),
        (reversed_complement, N - 5),
    ],
)
def test_cells_are_paired_by_whatever_makes_the_names_agree(
    tmp_path: Path, rename: Callable[[str], str], n: int
) -> None:
    protein = protein_table()
    protein.index = [rename(cell) for cell in CELLS]
    rna, path = tables(tmp_path, rna_table(), protein.iloc[ORDER[:n]])
    mdata = read(rna, protein_path=path)
    kept = np.sort(ORDER[:n])
    check_counts(mdata, kept)
    assert mdata.obs_names.tolist() == [CELLS[i] for i in kept]
    said = mdata.uns.get("totalvi_reading", {}).get("cells_paired", "")
    assert (f"are {N - n} of {rna}" in said) == (n < N)


def test_lanes_are_told_apart_by_the_barcodes_that_they_share() -> None:
    rng = np.random.default_rng(0)
    barcodes = ["".join(rng.choice(list("ACGT"), 16)) for _ in range(80)]
    lanes = {1: barcodes[:50], 2: barcodes[30:]}  # 20 barcodes are in both
    first = pd.Index([f"{b}-{lane}" for lane, own in lanes.items() for b in own])
    second = pd.Index([f"{'xy'[lane - 1]}_{b}" for lane, own in lanes.items() for b in own])
    order = rng.permutation(len(second))
    pairs = pair_cells(first, second[order])
    assert pairs.is_enough
    assert [second[order][i] for i in pairs.second] == list(second)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4])
def test_agreement_by_chance_is_refused(tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(1)
    others = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(N)]
    n = int(share * N)
    rna, path = tables(tmp_path, rna_table(), protein_table(CELLS[:n] + others[n:]))
    with pytest.raises(ReadError, match=r"not of the same cells|no cell name in common"):
        read(rna, protein_path=path)


@pytest.mark.parametrize("n", [N, N - 10])
def test_modalities_of_a_file_are_put_in_one_order(tmp_path: Path, n: int) -> None:
    protein = AnnData(PROT[ORDER[:n]].astype(np.float32),
                      obs=pd.DataFrame(index=[CELLS[i] for i in ORDER[:n]]),
                      var=pd.DataFrame(index=[f"p_{name}" for name in PROTEINS]))  # fmt: skip
    with mudata.set_options(pull_on_update=False):
        MuData({"rna": rna_anndata(), "prot": protein}).write(tmp_path / "cells.h5mu")
    check_counts(read(tmp_path / "cells.h5mu"), np.sort(ORDER[:n]))


@pytest.mark.parametrize("n", [N, N - 10])
@pytest.mark.parametrize("suffix", ["", "_1"])
def test_what_is_said_of_modalities_in_memory_can_be_followed(n: int, suffix: str) -> None:
    names = [CELLS[i] + suffix for i in ORDER[:n]]
    protein = AnnData(PROT[ORDER[:n]].astype(np.float32), obs=pd.DataFrame(index=names),
                      var=pd.DataFrame(index=[f"p_{name}" for name in PROTEINS]))  # fmt: skip
    with mudata.set_options(pull_on_update=False):
        mdata = MuData({"rna": rna_anndata(), "prot": protein})
    with pytest.raises(DataError, match=r"mdata\[.*\]\.copy\(\)") as caught:
        totalvi.Model(mdata)
    assert ("once the names are compared" in str(caught.value)) == bool(suffix)
    if suffix:
        mdata["prot"].obs_names = [name.removesuffix(suffix) for name in names]
        with mudata.set_options(pull_on_update=False):
            mdata = MuData({"rna": mdata["rna"], "prot": mdata["prot"]})
    mdata = mdata[mdata["rna"].obs_names.intersection(mdata["prot"].obs_names)].copy()
    model = totalvi.Model(mdata, n_hidden=8, n_latent=2)
    np.testing.assert_array_equal(model._training_data().protein.read(), PROT[np.sort(ORDER[:n])])


# --------------------------------------------------------------------------------------- 7. convert


def with_layer(adata: AnnData) -> AnnData:
    adata.layers["counts"] = adata.X.copy()
    adata.layers["spliced"] = adata.X.copy() * 2
    adata.X = np.log1p(adata.X)
    return adata


def test_convert_refuses_what_is_no_count(tmp_path: Path) -> None:
    adata = with_layer(joint_anndata(feature_types=types("Gene Expression", "Antibody Capture")))
    adata.write_h5ad(tmp_path / "log.h5ad")
    with pytest.raises(DataError, match='rna_layer="counts"'):
        convert_counts(tmp_path / "log.h5ad", tmp_path / "log.zarr")
    assert not (tmp_path / "log.zarr").exists()


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("kind", ["X", "layer"])
@pytest.mark.parametrize("in_a_mudata", [False, True])
def test_convert_takes_any_matrix_and_keeps_layers(
    tmp_path: Path, form: Callable[[Any], Any], kind: str, in_a_mudata: bool
) -> None:
    adata = joint_anndata(feature_types=types("Gene Expression", "Antibody Capture"))
    adata.X = form(adata.X.toarray())
    keys = Columns()
    if kind == "layer":
        adata = with_layer(adata)
        keys = Columns(rna_layer="counts", protein_layer="counts")
    if in_a_mudata:
        is_gene = (adata.var["feature_types"] == "Gene Expression").to_numpy()
        parts = {"rna": adata[:, is_gene].copy(), "prot": adata[:, ~is_gene].copy()}
        mudata_of(parts, adata.obs).write(tmp_path / "cells.h5mu")
        path = tmp_path / "cells.h5mu"
    else:
        path = tmp_path / "cells.h5ad"
        adata.write_h5ad(path)
    mdata = read(convert_counts(path, tmp_path / "cells.zarr", keys=keys))
    check_counts(mdata)
    if kind == "layer":
        np.testing.assert_array_equal(mdata["rna"].to_df("spliced"), RNA * 2)
        np.testing.assert_array_equal(mdata["prot"].to_df("spliced"), PROT * 2)
        np.testing.assert_allclose(mdata["rna"].to_df("X"), np.log1p(RNA), rtol=1e-6)


# ------------------------------------------------------------ 8. no proteins at all, and where they are


@pytest.mark.parametrize(
    ("hide", "words"),
    [
        (lambda a: a.obsm.__setitem__("X_adt", PROT), 'protein_expression_obsm_key="X_adt"'),
        (lambda a: a.uns.__setitem__("cite", protein_table()), 'obsm["cite"]'),
        (lambda a: a.obs.__setitem__([f"adt_{p}" for p in PROTEINS], PROT), "columns"),
        (lambda a: a, 'var["feature_types"]'),
        (lambda a: a.obsm.__setitem__("X_protein", np.log1p(PROT)), 'obsm["X_protein"] is named'),
        (lambda a: a.uns.__setitem__("adt", {"counts": PROT, "names": PROTEINS}), 'obsm["adt"]'),
        (lambda a: a.uns.__setitem__("adt_counts", sparse.csr_matrix(PROT)), 'obsm["adt_counts"]'),
    ],
)
def test_no_proteins_says_where_they_may_be(
    tmp_path: Path, hide: Callable[[AnnData], Any], words: str
) -> None:
    adata = rna_anndata()
    hide(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    (finding,) = totalvi.check(tmp_path / "cells.h5ad")
    assert words in finding.message
    assert "no proteins at all" in finding.message
    assert "MuData" not in finding.message


def joined_with(names: list[str]) -> AnnData:
    counts = np.hstack([RNA, PROT[:, : len(names)]]).astype(np.float32)
    var = pd.DataFrame(index=[*GENES, *names])
    return AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(index=CELLS), var=var)


@pytest.mark.parametrize(
    ("names", "are_found"),
    [
        (["CD45RA", "CD45RO", "CD56"], True),
        (["CD3-TotalC", "CD16-TotalC"], True),
        (["CD11b", "CD25"], True),
        (["CD3D", "CD3G", "CD8B", "CD19"], False),
        (["CD27-AS1", "CD99L2", "CD24P4", "CD40LG"], False),
    ],
)
def test_antibodies_among_genes_without_types(names: list[str], are_found: bool) -> None:
    """Names that no gene has are of antibodies; genes may be named as their antigen is."""
    (finding,) = totalvi.check(joined_with(names))
    assert (
        '"Antibody Capture" in var["feature_types"], and the others' in finding.message
    ) == are_found
    if are_found:
        marked = joined_with(names)
        n = len(names)
        marked.var["feature_types"] = ["Gene Expression"] * len(GENES) + ["Antibody Capture"] * n
        assert codes(totalvi.check(marked), "error") == []


@pytest.mark.parametrize(
    "names",
    [("gex", "adt"), ("RNA", "ADT"), ("GEX", "protein"), ("Gene Expression", "Antibody Capture")],
)
def test_modalities_under_other_names_are_named_at_once(names: tuple[str, str]) -> None:
    data, _ = in_mudata(PROT.astype(np.float32), two_batches())
    parts = {names[0]: data["rna"], names[1]: data["prot"]}
    renamed = mudata_of(parts, data.obs)
    (finding,) = totalvi.check(renamed)
    assert f'rna_modality="{names[0]}"' in finding.message
    assert f'protein_modality="{names[1]}"' in finding.message
    found = totalvi.check(renamed, rna_modality=names[0], protein_modality=names[1])
    assert codes(found, "error") == []


def test_antibodies_in_raw_can_be_had_as_it_is_said(tmp_path: Path) -> None:
    joint = joint_anndata(feature_types=types("Gene Expression", "Antibody Capture"))
    genes = joint[:, : len(GENES)].copy()
    genes.raw = joint
    genes.X = np.log1p(genes.X.toarray())
    genes.write_h5ad(tmp_path / "cells.h5ad")
    (finding,) = totalvi.check(tmp_path / "cells.h5ad")
    assert "adata.raw.to_adata().write_h5ad" in finding.message
    genes.raw.to_adata().write_h5ad(tmp_path / "all.h5ad")
    check_counts(read(tmp_path / "all.h5ad"))


@pytest.mark.parametrize("protein", ["protein.csv", "protein.h5ad"])
def test_a_transposed_file_beside_proteins_is_called_so(tmp_path: Path, protein: str) -> None:
    tables(tmp_path, rna_table(), protein_table())
    AnnData(PROT.astype(np.float32), obs=pd.DataFrame(index=CELLS),
            var=pd.DataFrame(index=PROTEINS)).write_h5ad(tmp_path / "protein.h5ad")  # fmt: skip
    rna_anndata().T.copy().write_h5ad(tmp_path / "turned.h5ad")
    with pytest.raises(ReadError, match=r"turned.h5ad is transposed"):
        read(tmp_path / "turned.h5ad", protein_path=tmp_path / protein)


@pytest.mark.parametrize("names", [PROTEINS, [f"{p}:UCHT1|{p}|AHS0001|pAbO" for p in PROTEINS]])
def test_a_file_of_antibodies_alone_is_called_so(tmp_path: Path, names: list[str]) -> None:
    protein_table().set_axis(names, axis=1).to_csv(tmp_path / "adt.csv")
    (finding,) = totalvi.check(tmp_path / "adt.csv")
    assert "named as antibodies" in finding.message
    rna_table().to_csv(tmp_path / "rna.csv")
    check_counts(read(tmp_path / "rna.csv", protein_path=tmp_path / "adt.csv"))


def test_a_transposed_table_is_called_so(tmp_path: Path) -> None:
    rna_anndata().T.copy().write_h5ad(tmp_path / "turned.h5ad")
    (finding,) = totalvi.check(tmp_path / "turned.h5ad")
    assert "transposed" in finding.message


# --------------------------------------------------------------- 9. types, raw, names of genes


@pytest.mark.parametrize(
    "var",
    [
        {"Type": types("Gene Expression", "Antibody Capture")},
        {"feature_type": types("Gene Expression", "Antibody Capture")},
        {"modality": types("RNA", "ADT")},
        {"feature_types": types("Gene Expression", "Antibody Capture", 4)},
        {"feature_types": types("Gene Expression", "Antibody-derived tags")},
        {"feature_types": types("Gene Expression", "Protein Expression")},
        {"kind": types("gene", "protein"), "n": list(range(26))},
        {},
    ],
)
def test_types_of_features_in_any_column(tmp_path: Path, var: dict[str, list[Any]]) -> None:
    joint_anndata(**var).write_h5ad(tmp_path / "cells.h5ad")
    mdata = read(tmp_path / "cells.h5ad")
    check_counts(mdata)
    assert mdata["prot"].n_vars == len(PROTEINS)


IDS = [f"ENSG{i:011d}" for i in range(len(GENES))]


@pytest.mark.parametrize(
    "column", ["feature_name", "Symbol", "gene_symbols", "gene_name", "hgnc_symbol"]
)
def test_symbols_name_the_genes_and_ids_are_kept(tmp_path: Path, column: str) -> None:
    adata = rna_anndata()
    adata.var = pd.DataFrame({column: pd.Categorical(GENES)}, index=IDS)
    adata.obsm["protein_counts"] = protein_table()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    mdata = read(tmp_path / "cells.h5ad")
    check_counts(mdata)
    assert mdata["rna"].var_names.tolist() == GENES
    assert mdata["rna"].var["gene_ids"].tolist() == IDS
    model = totalvi.Model(mdata, n_hidden=8, n_latent=2)
    in_memory = AnnData(adata.X, obs=adata.obs, var=adata.var, obsm=dict(adata.obsm))
    in_memory.obsm["protein_counts"] = protein_table()
    parts = {"rna": in_memory, "prot": mdata["prot"]}
    assert model._describe(mudata_of(parts, adata.obs)).rna.read().sum() == RNA.sum()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("subset", [False, True])
def test_counts_in_raw_are_read_with_one_option(tmp_path: Path, suffix: str, subset: bool) -> None:
    adata = rna_anndata()
    adata.var = pd.DataFrame({"feature_name": GENES}, index=IDS)
    adata.raw = adata.copy()
    adata.obsm["protein_counts"] = protein_table()
    if subset:
        adata = adata[:, :7].copy()
    adata.X = np.log1p(adata.X.toarray())
    path = tmp_path / f"cells{suffix}"
    adata.write_h5ad(path) if suffix == ".h5ad" else adata.write_zarr(path)
    findings = totalvi.check(path)
    assert 'rna_layer="raw"' in findings[0].message
    findings = totalvi.check(path, rna_layer="raw")
    assert codes(findings, "error") == []
    prepared = prepare(read(path), Columns(rna_layer="raw"))
    check_counts(prepared.mdata)
    assert prepared.mdata["rna"].var_names.tolist() == GENES
    store = convert_counts(path, tmp_path / "out.zarr", keys=Columns(rna_layer="raw"))
    check_counts(read(store))


def test_names_made_unique_over_modalities_are_taken_back() -> None:
    data, _ = in_mudata(PROT.astype(np.float32), two_batches())
    data["prot"].var_names = PROTEINS
    data["rna"].var_names = [f"rna:{name}" for name in GENES]
    data["prot"].var_names = [f"prot:{name}" for name in PROTEINS]
    model = totalvi.Model(data, n_hidden=8, n_latent=2)
    assert list(model.schema.gene_names) == GENES
    assert list(model.schema.protein_names) == PROTEINS


# ------------------------------------------------------------------ 10. folders and tables of others


def lines(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}\n" for name in names)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def matrix(path: Path, counts: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    io.mmwrite(str(plain), sparse.coo_matrix(counts.astype(int)), field="integer")
    written = plain if plain.exists() else plain.with_name(f"{plain.name}.mtx")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(written.read_bytes()))
        written.unlink()


def triple(
    folder: Path, counts: np.ndarray, names: list[str], kind: str, packed: bool = True
) -> None:
    end = ".gz" if packed else ""
    matrix(folder / f"matrix.mtx{end}", counts.T)
    lines(folder / f"features.tsv{end}", [f"{name}\t{name}\t{kind}" for name in names])
    lines(folder / f"barcodes.tsv{end}", CELLS)


def kallisto(folder: Path) -> None:
    place = folder / "counts_unfiltered"
    matrix(place / "cells_x_features.mtx", PROT)
    lines(place / "cells_x_features.barcodes.txt", [bare(cell) for cell in CELLS])
    lines(place / "cells_x_features.genes.txt", PROTEINS)


def alevin_fry(folder: Path) -> None:
    matrix(folder / "alevin" / "quants_mat.mtx", PROT)
    lines(folder / "alevin" / "quants_mat_rows.txt", [bare(cell) for cell in CELLS])
    lines(folder / "alevin" / "quants_mat_cols.txt", PROTEINS)


def cite_seq_count(folder: Path) -> None:
    triple(folder / "umi_count", PROT, PROTEINS, "Antibody Capture")
    triple(folder / "read_count", PROT * 9, PROTEINS, "Antibody Capture")


def starsolo(folder: Path) -> None:
    triple(
        folder / "Solo.out" / "Gene" / "filtered", PROT, PROTEINS, "Antibody Capture", packed=False
    )
    triple(
        folder / "Solo.out" / "Gene" / "raw", PROT * 3, PROTEINS, "Antibody Capture", packed=False
    )


def parse(folder: Path) -> None:
    matrix(folder / "count_matrix.mtx", PROT)
    lines(folder / "cell_metadata.csv", ["bc_wells,sample", *(f"{cell},s1" for cell in CELLS)])
    lines(
        folder / "all_genes.csv", ["gene_id,gene_name,genome", *(f"x,{p},hg38" for p in PROTEINS)]
    )


def cell_ranger_multi(folder: Path) -> None:
    place = folder / "outs" / "per_sample_outs" / "S1" / "count"
    triple(place / "sample_filtered_feature_bc_matrix", PROT, PROTEINS, "Antibody Capture")


def aggr(folder: Path) -> None:
    place = folder / "outs" / "count" / "filtered_feature_bc_matrix"
    triple(place, PROT, PROTEINS, "Antibody Capture")


def alevin_with_introns(folder: Path) -> None:
    ambiguous = PROT // 3
    parts = np.hstack([PROT - ambiguous, PROT * 2, ambiguous])
    matrix(folder / "alevin" / "quants_mat.mtx", parts)
    lines(folder / "alevin" / "quants_mat_rows.txt", [bare(cell) for cell in CELLS])
    names = [f"{name}{end}" for end in ("", "-U", "-A") for name in PROTEINS]
    lines(folder / "alevin" / "quants_mat_cols.txt", names)


def starsolo_of_a_sample(folder: Path) -> None:
    place = folder / "S1_Solo.out" / "GeneFull" / "filtered"
    triple(place, PROT, PROTEINS, "Antibody Capture", packed=False)


def parse_of_all_samples(folder: Path) -> None:
    parse(folder / "all-sample" / "DGE_filtered")


@pytest.mark.parametrize(
    "write",
    [
        alevin_with_introns,
        starsolo_of_a_sample,
        parse_of_all_samples,
        kallisto,
        alevin_fry,
        cite_seq_count,
        starsolo,
        parse,
        cell_ranger_multi,
        aggr,
    ],
)
def test_folders_of_other_counters(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "adt")
    rna_table().to_csv(tmp_path / "rna.csv")
    check_counts(read(tmp_path / "rna.csv", protein_path=tmp_path / "adt"))


def mixed(folder: Path, prefix: str, kinds: list[tuple[str, np.ndarray, list[str]]]) -> None:
    """A matrix folder with features of several types, its files prefixed."""
    counts = np.hstack([values for _, values, _ in kinds])
    matrix(folder / f"{prefix}matrix.mtx.gz", counts.T)
    named = [f"id_{name}\t{name}\t{kind}" for kind, _, names in kinds for name in names]
    lines(folder / f"{prefix}features.tsv.gz", named)
    lines(folder / f"{prefix}barcodes.tsv.gz", CELLS)


GENES = [str(name) for name in rna_table().columns]
PEAKS = [f"chr1:{i}00-{i}50" for i in range(8)]


def rhapsody_mex(folder: Path, prefix: str) -> None:
    rna = rna_table().to_numpy()
    mixed(folder, prefix, [("Gene Expression", rna, GENES), ("Antibody Capture", PROT, PROTEINS)])


@pytest.mark.parametrize("prefix", ["", "Sample1_RSEC_MolsPerCell_MEX_", "GSM5025059_s1."])
def test_folders_of_genes_and_antibodies(tmp_path: Path, prefix: str) -> None:
    rhapsody_mex(tmp_path / "mex", prefix)
    found = read(tmp_path / "mex")
    check_counts(found)
    assert list(found["rna"].var_names) == GENES


@pytest.mark.parametrize("prefix", ["", "pbmc_granulocyte_"])
def test_the_peaks_of_a_multiome_are_set_apart_and_named(tmp_path: Path, prefix: str) -> None:
    """The folder of Cell Ranger ARC beside antibodies that another tool counted."""
    rna, peaks = rna_table().to_numpy(), RNG.poisson(0.2, (N, len(PEAKS)))
    arc = tmp_path / "outs" / "filtered_feature_bc_matrix" if not prefix else tmp_path / "arc"
    mixed(arc, prefix, [("Gene Expression", rna, GENES), ("Peaks", peaks, PEAKS)])
    triple(tmp_path / "adt", PROT, PROTEINS, "Antibody Capture")
    given = tmp_path / "outs" if not prefix else arc
    found = read(given, protein_path=tmp_path / "adt")
    check_counts(found)
    assert list(found["rna"].var_names) == GENES
    said = [f.message for f in totalvi.check(given, protein_path=tmp_path / "adt")]
    assert any("peaks" in message.lower() and "set apart" in message for message in said)
    alone = [f for f in totalvi.check(given) if f.severity == "error"]
    assert len(alone) == 1
    assert "protein_path" in alone[0].message


def test_several_samples_are_named(tmp_path: Path) -> None:
    for sample in ("S1", "S2"):
        place = tmp_path / "outs" / "per_sample_outs" / sample / "count"
        triple(place / "sample_filtered_feature_bc_matrix", PROT, PROTEINS, "Antibody Capture")
    with pytest.raises(ReadError, match=r"2 samples.*S1.*S2"):
        read(tmp_path / "outs")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cells.rds", "docs/r.md"),
        ("cells.h5Seurat", "docs/r.md"),
        ("cells.loom", "read_loom"),
        ("cells.xlsx", ".csv"),
        ("matrix_S1.mtx", "S1_matrix.mtx.gz"),
    ],
)
def test_other_formats_are_told_what_to_give(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 600)
    with pytest.raises(ReadError) as caught:
        read(tmp_path / name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (("assays", "cell.names"), "docs/r.md"),
        (("row_attrs", "col_attrs", "matrix"), "read_loom"),
        (("a", "b"), "it holds a, b"),
    ],
)
def test_other_formats_are_known_by_what_is_in_them(
    tmp_path: Path, members: tuple[str, ...], words: str
) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in members:
            if name == "matrix":
                file[name] = np.zeros((3, 4))
            else:
                file.create_group(name)
    with pytest.raises(ReadError) as caught:
        read(tmp_path / "x.h5")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("names", "likely"),
    [
        (("a_matrix.mtx.gz", "b_features.tsv.gz", "a_barcodes.tsv.gz"), "b_features.tsv.gz"),
        (("a_matrix.mtx.gz", "a_features.tsv.gz", "cells_barcodes.tsv"), "cells_barcodes.tsv"),
        (("matrix.mtx", "genes.csv", "barcodes.tsv"), "genes.csv"),
        (("matrix_1.mtx.gz", "features_1.tsv.gz", "barcodes_1.tsv.gz"), "features_1.tsv.gz"),
    ],
)
def test_lists_under_another_name_are_named(
    tmp_path: Path, names: tuple[str, ...], likely: str
) -> None:
    triple(tmp_path / "as_it_was", PROT, PROTEINS, "Antibody Capture")
    (tmp_path / "x").mkdir()
    for name in names:
        kind = next(k for k in ("matrix", "barcodes", "") if k in name) or "features"
        (source,) = (tmp_path / "as_it_was").glob(f"{kind}*")
        text = gzip.decompress(source.read_bytes())
        packed = gzip.compress(text) if name.endswith(".gz") else text
        (tmp_path / "x" / name).write_bytes(packed)
    with pytest.raises(ReadError) as caught:
        read(tmp_path / "x")
    assert f'"{likely}"' in str(caught.value)


def test_a_folder_of_files_names_them(tmp_path: Path) -> None:
    for name in ("a.h5ad", "b.h5ad"):
        rna_anndata().write_h5ad(tmp_path / name)
    with pytest.raises(ReadError, match=r'"a.h5ad", "b.h5ad"'):
        read(tmp_path)


def both_in_one() -> pd.DataFrame:
    antibodies = protein_table().set_axis([f"{p}:CLONE|{p}|AHS0001|pAbO" for p in PROTEINS], axis=1)
    return pd.concat([rna_table(), antibodies], axis=1).set_axis([str(9 * i) for i in range(N)])


@pytest.mark.parametrize("head", ["", "##########\n## Rhapsody 1.9\n## Sample: x\n"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_table_with_comments_and_both_kinds(tmp_path: Path, head: str, turned: bool) -> None:
    table = both_in_one().T if turned else both_in_one()
    (tmp_path / "x.csv").write_text(head + table.to_csv(index_label="Cell_Index"))
    check_counts(read(tmp_path / "x.csv"))


@pytest.mark.parametrize("corner", [True, False])
@pytest.mark.parametrize("quoted", [True, False])
def test_tables_with_spaces(tmp_path: Path, corner: bool, quoted: bool) -> None:
    quoting = {"quoting": 2} if quoted else {}
    text = rna_table().T.to_csv(sep=" ", index_label="x", **quoting)
    first = '"x" ' if quoted else "x "
    assert text.startswith(first)
    (tmp_path / "rna.txt").write_text(text if corner else text.removeprefix(first))
    protein_table().to_csv(tmp_path / "protein.csv")
    check_counts(read(tmp_path / "rna.txt", protein_path=tmp_path / "protein.csv"))


# ------------------------------------------------------------------ 11. results keep what the input had


@pytest.mark.parametrize("on_disk", [False, True])
def test_prepared_data_keep_the_rest(tmp_path: Path, on_disk: bool) -> None:
    from totalvi.run.inputs import open_input
    from totalvi.run.prepare import prepare_on_disk

    adata = rna_anndata()
    adata.obs["donor"] = two_batches()
    adata.var["mean"] = RNA.mean(axis=0)
    adata.obsm["spatial"] = RNG.integers(0, 900, (N, 2))
    adata.obsm["X_pca"] = pd.DataFrame(RNG.normal(size=(N, 2)), index=CELLS, columns=["a", "b"])
    adata.uns["spatial"] = {"library": {"scale": 0.3}}
    adata.obsm["protein_expression"] = protein_table()
    adata.X[5] = 0
    adata.X.eliminate_zeros()
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    keys = Columns(protein_expression_obsm_key="protein_expression")
    if on_disk:
        data, keys, _ = open_input(path, keys, ReadOptions())
        prepare_on_disk(data, keys, tmp_path / "store.zarr", n_genes=10)
        mdata = mudata.read_zarr(tmp_path / "store.zarr")
    else:
        mdata = prepare(adata, keys, n_genes=10).mdata
    kept = np.delete(np.arange(N), 5)
    np.testing.assert_array_equal(mdata["rna"].obsm["spatial"], adata.obsm["spatial"][kept])
    np.testing.assert_allclose(mdata["rna"].obsm["X_pca"], adata.obsm["X_pca"].iloc[kept])
    assert float(mdata["rna"].uns["spatial"]["library"]["scale"]) == 0.3
    assert mdata.obs["donor"].tolist() == adata.obs["donor"].iloc[kept].tolist()
    assert "mean" in mdata["rna"].var
    if not on_disk:
        np.testing.assert_array_equal(mdata["rna"].raw.X.toarray(), RNA[kept])
        assert mdata["rna"].raw.var_names.tolist() == GENES
        assert mdata["rna"].n_vars == 10


def ordered_categories(adata: AnnData) -> None:
    adata.obs["stage"] = pd.Categorical(["late"] * N, ["early", "late", "none"], ordered=True)


def missing_integers(adata: AnnData) -> None:
    adata.obs["passage"] = pd.array([1, None] * (N // 2), dtype="Int64")


def missing_flags(adata: AnnData) -> None:
    adata.obs["doublet"] = pd.array([True, None] * (N // 2), dtype="boolean")


def colours_and_tables(adata: AnnData) -> None:
    adata.uns["stage_colors"] = np.array(["#000000", "#ffffff"])
    adata.uns["markers"] = pd.DataFrame({"gene": ["CD4"]}, index=["0"])


def images(adata: AnnData) -> None:
    adata.uns["spatial"] = {"slide": {"images": {"lowres": RNG.random((4, 4, 3))}}}
    adata.obsm["spatial"] = RNG.random((N, 2))


def embeddings(adata: AnnData) -> None:
    adata.obsm["X_umap"] = RNG.random((N, 2))
    adata.obsm["X_tsne"] = RNG.random((N, 2))
    adata.obsm["fractions"] = pd.DataFrame({"a b": np.arange(N) / N}, index=CELLS)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    "add",
    [
        *(ordered_categories, missing_integers, missing_flags, colours_and_tables),
        *(images, embeddings),
    ],
)
def test_prepared_data_keep_what_people_have(
    tmp_path: Path, add: Callable[[AnnData], None], on_disk: bool
) -> None:
    """A map of the input is not lost to that of the results, which has another name."""
    from totalvi.run.inputs import open_input
    from totalvi.run.prepare import prepare_on_disk

    adata = rna_anndata()
    adata.obsm["protein_expression"] = protein_table()
    add(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    keys = Columns(protein_expression_obsm_key="protein_expression")
    if on_disk:
        data, keys, _ = open_input(tmp_path / "cells.h5ad", keys, ReadOptions())
        prepare_on_disk(data, keys, tmp_path / "store.zarr", n_genes=10)
        mdata = mudata.read_zarr(tmp_path / "store.zarr")
    else:
        mdata = prepare(adata, keys, n_genes=10).mdata
    rna = mdata["rna"]
    for name in adata.obs:
        pd.testing.assert_series_equal(
            mdata.obs[name], adata.obs[name], check_names=False, check_index_type=False
        )
    for name, values in adata.obsm.items():
        if name != "protein_expression":
            kept = rna.obsm[{"X_umap": "X_umap_of_input"}.get(name, name)]
            np.testing.assert_allclose(np.asarray(kept), np.asarray(values))
    assert "X_umap" not in rna.obsm
    assert set(rna.uns) >= set(adata.uns)
    if add is colours_and_tables:
        assert list(map(str, rna.uns["stage_colors"])) == list(adata.uns["stage_colors"])
        assert rna.uns["markers"].to_numpy().tolist() == [["CD4"]]
    if add is images:
        of_slide = [each.uns["spatial"]["slide"]["images"]["lowres"] for each in (rna, adata)]
        np.testing.assert_array_equal(*of_slide)


# -------------------------------------------------------------------------- 12. what is no sound count


@pytest.mark.parametrize("place", [in_mudata, in_obsm, in_array])
@pytest.mark.parametrize("on_disk", [False, True])
def test_antibodies_without_a_count_are_an_error(
    place: Callable[..., Any], on_disk: bool, tmp_path: Path
) -> None:
    data, where = place(np.zeros_like(PROT, dtype=np.float32), two_batches())
    if on_disk:
        path = tmp_path / ("cells.h5mu" if isinstance(data, MuData) else "cells.h5ad")
        data.write(path)
        data = path
    assert "protein_all_zero" in codes(totalvi.check(data, **where), "error")
    with pytest.raises(DataError, match="no count at all"):
        totalvi.Model(data, **where)


@pytest.mark.parametrize("factor", [80, 500])
def test_aggregates_are_warned_of(factor: int) -> None:
    values = PROT.astype(np.float32).copy()
    values[7] *= factor
    data, _ = in_mudata(values, two_batches())
    (said,) = (f.message for f in totalvi.check(data) if f.code == "cell_aggregate")
    assert CELLS[7] in said


@pytest.mark.parametrize("n_empty", [2000, 5000])
def test_a_raw_matrix_given_for_cells_is_warned_of(n_empty: int) -> None:
    cells = totalvi.simulate(n_cells=300, n_genes=250, n_proteins=4, seed=1)
    raw = totalvi.simulate_raw(cells, n_empty=n_empty)
    assert "mostly_empty_droplets" in codes(totalvi.check(raw))
    assert "mostly_empty_droplets" not in codes(totalvi.check(cells))


def test_lost_chunks_of_names_are_still_damage(tmp_path: Path) -> None:
    rna_anndata().write_zarr(tmp_path / "cells.zarr")
    root = zarr.open_group(tmp_path / "cells.zarr", mode="r")
    index = root["var"].attrs["_index"]
    (array,) = (
        p for p in (tmp_path / "cells.zarr" / "var" / index).rglob("*") if p.name in ("0", "c")
    )
    if array.is_dir():
        (array / "0").unlink()
        array.rmdir()
    else:
        array.unlink()
    with pytest.raises(ReadError, match="lacks 1 of 1 chunks"):
        read(tmp_path / "cells.zarr")
