import gzip
import tracemalloc
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

from totalvi.data.io import tenx
from totalvi.data.io.read import read
from totalvi.data.io.tenx import read_10x_folder
from totalvi.errors import ReadError

N_CELLS = 12
GENES = ["CD3E", "TBCE", "TBCE", "CD19"]
ANTIBODIES = ["CD3", "CD19", "IgG1_control_TotalSeqB", "Hashtag_1", "Hashtag_2"]
NAMES = [*GENES, *ANTIBODIES, "CMO301", "GUIDE_1"]
IDS = [f"ENSG{i}" for i in range(4)] + [f"A{i}" for i in range(5)] + ["CMO301", "G1"]
TYPES = (
    ["Gene Expression"] * 4
    + ["Antibody Capture"] * 5
    + ["Multiplexing Capture", "CRISPR Guide Capture"]
)
CELLS = [f"ACGTACGTAC{'ACGT'[i % 4]}{'ACGT'[i // 4]}-1" for i in range(N_CELLS)]
COUNTS = np.random.default_rng(0).poisson(1.0, size=(N_CELLS, len(NAMES))).astype(np.int64)


def write_text(path: Path, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_mtx(path: Path, counts: np.ndarray) -> None:
    plain = path.with_name("plain.tmp.mtx")
    scipy.io.mmwrite(plain, sparse.coo_matrix(counts.T))
    content = plain.read_bytes()
    plain.unlink()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_folder(folder: Path, *, gz: str = ".gz", prefix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["\t".join(row) for row in zip(IDS, NAMES, TYPES, strict=True)]
    write_text(folder / f"{prefix}features.tsv{gz}", rows)
    write_text(folder / f"{prefix}barcodes.tsv{gz}", CELLS)
    write_mtx(folder / f"{prefix}matrix.mtx{gz}", COUNTS)
    return folder


def write_v2_folder(folder: Path, names: list[str], cells: list[str], counts: np.ndarray) -> None:
    folder.mkdir(parents=True)
    write_text(folder / "genes.tsv", [f"id_{name}\t{name}" for name in names])
    write_text(folder / "barcodes.tsv", cells)
    write_mtx(folder / "matrix.mtx", counts)


def write_matrix(group: h5py.Group, cells: list[str], counts: np.ndarray) -> None:
    csc = sparse.csr_matrix(counts)  # cells x features CSR is features x cells CSC
    group["barcodes"] = np.array(cells, dtype="S")
    group["data"] = csc.data.astype(np.int32)
    group["indices"] = csc.indices.astype(np.int64)
    group["indptr"] = csc.indptr.astype(np.int64)
    group["shape"] = np.array(counts.T.shape, dtype=np.int32)


def write_v3(path: Path, *, names: list[str] = NAMES, genomes: list[str] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        write_matrix(group, CELLS, COUNTS[:, : len(names)])
        features = group.create_group("features")
        features["id"] = np.array(IDS[: len(names)], dtype="S")
        features["name"] = np.array(names, dtype="S")
        features["feature_type"] = np.array(TYPES[: len(names)], dtype="S")
        features["_all_tag_keys"] = np.array(["genome"], dtype="S")
        genomes = genomes or ["GRCh38"] * 4 + [""] * (len(names) - 4)
        features["genome"] = np.array(genomes, dtype="S")
    return path


def write_v2(path: Path, genomes: dict[str, tuple[list[str], list[str], np.ndarray]]) -> Path:
    with h5py.File(path, "w") as file:
        for genome, (names, cells, counts) in genomes.items():
            group = file.create_group(genome)
            write_matrix(group, cells, counts)
            group["genes"] = np.array([f"id_{name}" for name in names], dtype="S")
            group["gene_names"] = np.array(names, dtype="S")
    return path


def dense(adata: anndata.AnnData) -> np.ndarray:
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    return adata.X.toarray()


def check_v3(mdata) -> None:
    assert list(mdata.mod) == ["rna", "prot", "hto", "crispr_guide_capture"]
    np.testing.assert_array_equal(dense(mdata["rna"]), COUNTS[:, :4])
    np.testing.assert_array_equal(dense(mdata["prot"]), COUNTS[:, 4:7])
    np.testing.assert_array_equal(dense(mdata["hto"]), COUNTS[:, 7:10])
    np.testing.assert_array_equal(dense(mdata["crispr_guide_capture"]), COUNTS[:, 10:])
    assert mdata["rna"].var_names.tolist() == ["CD3E", "TBCE", "TBCE-1", "CD19"]
    assert mdata["rna"].var["gene_ids"].tolist() == IDS[:4]
    assert mdata["rna"].var["name_in_file"].tolist() == GENES
    assert "name_in_file" not in mdata["prot"].var
    assert mdata["prot"].var_names.tolist() == ANTIBODIES[:3]
    assert mdata["prot"].var["control"].tolist() == [False, False, True]
    assert mdata["hto"].var_names.tolist() == ["Hashtag_1", "Hashtag_2", "CMO301"]
    assert all(adata.obs_names.tolist() == CELLS for adata in mdata.mod.values())


def test_v3_h5(tmp_path):
    path = write_v3(tmp_path / "filtered_feature_bc_matrix.h5")
    before = path.read_bytes()
    check_v3(read(str(path)))
    assert path.read_bytes() == before


@pytest.mark.parametrize("gz", [".gz", ""])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
def test_v3_folder(tmp_path, gz, prefix):
    folder = write_folder(tmp_path / "matrix", gz=gz, prefix=prefix)
    check_v3(read(folder))
    check_v3(read(folder / f"{prefix}matrix.mtx{gz}"))


def test_a_matrix_is_read_some_entries_at_a_time(tmp_path, monkeypatch):
    n_entries = np.count_nonzero(COUNTS)
    for at_a_time in (7, n_entries - 1, n_entries):
        monkeypatch.setattr(tenx, "ENTRIES_PER_CHUNK", at_a_time)
        folder = tmp_path / str(at_a_time)
        write_folder(folder)
        check_v3(read(folder))


def test_one_of_several_matrices_in_a_folder(tmp_path):
    write_folder(tmp_path, prefix="GSM1_")
    write_folder(tmp_path, prefix="GSM2_")
    check_v3(read(tmp_path / "GSM2_matrix.mtx.gz"))
    with pytest.raises(ReadError, match=r"2 matrices \(GSM1_matrix"):
        read(tmp_path)


@pytest.mark.parametrize("parents", ["", "outs", "run/outs"])
@pytest.mark.parametrize("as_h5", [True, False])
def test_outs_folder(tmp_path, parents, as_h5):
    outs = tmp_path / parents
    outs.mkdir(parents=True, exist_ok=True)
    if as_h5:
        write_v3(outs / "filtered_feature_bc_matrix.h5")
    else:
        write_folder(outs / "filtered_feature_bc_matrix")
    (outs / "raw_feature_bc_matrix.h5").write_bytes(b"not to be read")
    check_v3(read(tmp_path / parents.partition("/")[0]))


def test_v3_genomes_are_joined_and_shared_names_prefixed(tmp_path):
    genomes = ["GRCh38", "GRCh38", "mm10", "mm10"] + [""] * 5
    names = ["ACTB", "CD4", "ACTB", "Cd4", *ANTIBODIES]
    path = write_v3(tmp_path / "mixed.h5", names=names, genomes=genomes)
    rna = read(path)["rna"]
    assert rna.var_names.tolist() == ["GRCh38_ACTB", "CD4", "mm10_ACTB", "Cd4"]
    np.testing.assert_array_equal(dense(rna), COUNTS[:, :4])
    mouse = read(path, genome="mm10")
    assert mouse["rna"].var_names.tolist() == ["mm10_ACTB", "Cd4"]
    np.testing.assert_array_equal(dense(mouse["rna"]), COUNTS[:, 2:4])
    assert mouse["prot"].n_vars == 3
    with pytest.raises(ReadError, match=r'no genome "mm9".*there are: "GRCh38", "mm10"'):
        read(path, genome="mm9")


HUMAN = (["ACTB", "CD4"], CELLS[:8], COUNTS[:8, :2])
MOUSE = (["ACTB", "Cd4", "Cd8a"], CELLS[:3:-1], COUNTS[:3:-1, 2:5])


def check_two_genomes(read_it) -> None:
    rna = read_it(None)["rna"]
    expected = pd.DataFrame(0, index=CELLS, columns=range(5))
    expected.iloc[:8, :2] = HUMAN[2]
    expected.loc[MOUSE[1], [2, 3, 4]] = MOUSE[2]
    assert rna.obs_names.tolist() == CELLS[:8] + CELLS[:7:-1]
    np.testing.assert_array_equal(dense(rna), expected.loc[rna.obs_names])
    names = ["hg19_ACTB", "CD4", "mm10_ACTB", "Cd4", "Cd8a"]
    assert rna.var_names.tolist() == names
    mouse = read_it("mm10")["rna"]
    assert mouse.obs_names.tolist() == MOUSE[1]
    assert mouse.var_names.tolist() == MOUSE[0]
    np.testing.assert_array_equal(dense(mouse), MOUSE[2])
    with pytest.raises(ReadError, match=r'no genome "hg38".*there are: "hg19", "mm10"'):
        read_it("hg38")


def test_v2_h5_of_two_genomes(tmp_path):
    path = write_v2(tmp_path / "genomes.h5", {"hg19": HUMAN, "mm10": MOUSE})
    check_two_genomes(lambda genome: read(path, genome=genome))


def test_v2_folders_of_two_genomes(tmp_path):
    write_v2_folder(tmp_path / "filtered_gene_bc_matrices" / "hg19", *HUMAN)
    write_v2_folder(tmp_path / "filtered_gene_bc_matrices" / "mm10", *MOUSE)
    check_two_genomes(lambda genome: read(tmp_path, genome=genome))


def test_v2_of_one_genome(tmp_path):
    write_v2(tmp_path / "one.h5", {"hg19": HUMAN})
    write_v2_folder(tmp_path / "folder" / "hg19", *HUMAN)
    for path in (tmp_path / "one.h5", tmp_path / "folder", tmp_path / "folder" / "hg19"):
        mdata = read(path)
        assert list(mdata.mod) == ["rna"]
        assert mdata["rna"].var_names.tolist() == HUMAN[0]
        assert mdata["rna"].var["gene_ids"].tolist() == ["id_ACTB", "id_CD4"]
        np.testing.assert_array_equal(dense(mdata["rna"]), HUMAN[2])


def test_repeated_barcodes_in_one_genome_cannot_be_joined(tmp_path):
    twice = (HUMAN[0], [CELLS[0]] * 8, HUMAN[2])
    path = write_v2(tmp_path / "twice.h5", {"hg19": twice, "mm10": MOUSE})
    with pytest.raises(ReadError, match=f'"{CELLS[0]}" twice for the genome "hg19"'):
        read(path)
    assert read(path, genome="hg19")["rna"].obs_names.tolist() == twice[1]


def test_fractions_in_an_integer_matrix_are_not_cut(tmp_path):
    folder = write_folder(tmp_path, gz="")
    content = (folder / "matrix.mtx").read_text().splitlines()
    content[-1] = content[-1].rsplit(" ", 1)[0] + " 4.5"
    write_text(folder / "matrix.mtx", content)
    assert "integer" in content[0]
    assert 4.5 in read(folder)["crispr_guide_capture"].X.data


def test_single_column_features_of_cite_seq_count(tmp_path):
    write_text(tmp_path / "features.tsv.gz", ["CD3", "CD19"])
    write_text(tmp_path / "barcodes.tsv.gz", CELLS)
    write_mtx(tmp_path / "matrix.mtx.gz", COUNTS[:, :2])
    rna = write_folder(tmp_path / "rna")
    write_v2_folder(tmp_path / "v2", *HUMAN)
    mdata = read(tmp_path / "v2", protein_path=tmp_path)
    assert mdata["prot"].var_names.tolist() == ["CD3", "CD19"]
    both = [CELLS.index(cell) for cell in mdata["rna"].obs_names]
    assert mdata["prot"].obs_names.tolist() == mdata["rna"].obs_names.tolist()
    np.testing.assert_array_equal(dense(mdata["prot"]), COUNTS[both, :2])
    with pytest.raises(ReadError, match='"prot" features beside the genes'):
        read(rna, protein_path=tmp_path)


def test_real_cell_ranger_folder(shared):
    mdata = read(shared / "data" / "10x_pbmc_10k_protein_v3_subset")
    assert mdata["rna"].shape == (1024, 100)
    assert mdata["prot"].shape == (1024, 17)
    controls = mdata["prot"].var_names[mdata["prot"].var["control"]]
    assert sorted(controls) == [f"IgG{c}_control_TotalSeqB" for c in ("1", "2a", "2b")]
    folder = shared / "data" / "10x_pbmc_10k_protein_v3_subset"
    with gzip.open(folder / "matrix.mtx.gz") as file:
        entries = np.loadtxt(file, skiprows=3, dtype=int)
    assert mdata["rna"].X.sum() + mdata["prot"].X.sum() == entries[:, 2].sum()
    row, column, count = entries[entries[:, 0] > 100][0]
    assert mdata["prot"].X[column - 1, row - 101] == count


# Broken inputs ----------------------------------------------------------------------------------


def replace_dataset(path: Path, name: str, values: np.ndarray | None) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


def h5_with(name: str, change) -> "callable":
    def breaks(folder: Path) -> Path:
        path = write_v3(folder / "matrix.h5")
        with h5py.File(path) as file:
            values = None if change is None else change(file[name][:])
        replace_dataset(path, name, values)
        return path

    return breaks


def set_at(index: int, value: int):
    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return change


def folder_without(*names: str):
    def breaks(folder: Path) -> Path:
        write_folder(folder / "matrix")
        for name in names:
            (folder / "matrix" / name).unlink()
        return folder / "matrix"

    return breaks


def folder_with(name: str, lines: list[str]):
    def breaks(folder: Path) -> Path:
        write_folder(folder / "matrix")
        write_text(folder / "matrix" / name, lines)
        return folder / "matrix"

    return breaks


def cut(name: str, keep: float = 0.5):
    def breaks(folder: Path) -> Path:
        write_folder(folder / "matrix")
        path = folder / "matrix" / name
        path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * keep)])
        return folder / "matrix"

    return breaks


def mtx(*lines: str):
    banner = "%%MatrixMarket matrix coordinate integer general"
    return folder_with("matrix.mtx.gz", [banner, f"{len(NAMES)} {N_CELLS} {len(lines)}", *lines])


def v2_without(name: str):
    def breaks(folder: Path) -> Path:
        path = write_v2(folder / "v2.h5", {"hg19": HUMAN})
        replace_dataset(path, f"hg19/{name}", None)
        return path

    return breaks


ARRAY = ["%%MatrixMarket matrix array integer general", "1 2", "1", "2"]
PATTERN = ["%%MatrixMarket matrix coordinate pattern general", "11 12 1", "1 1"]
TOO_MANY = ["%%MatrixMarket matrix coordinate integer general", "11 12 99999999999", "1 1 1"]

BROKEN = {
    "indptr goes backwards": (h5_with("matrix/indptr", set_at(3, 0)), "backwards"),
    "indptr too short": (h5_with("matrix/indptr", lambda v: v[:-1]), "row pointers for 11 rows"),
    "indptr beyond the data": (h5_with("matrix/indptr", set_at(-1, 10**9)), "to 1000000000 for"),
    "indptr not from 0": (h5_with("matrix/indptr", set_at(0, 1)), "row pointers from 1"),
    "index too large": (h5_with("matrix/indices", set_at(5, 11)), "index 11, outside the 11"),
    "index negative": (h5_with("matrix/indices", set_at(5, -1)), "index -1, outside"),
    "fewer indices than data": (h5_with("matrix/indices", lambda v: v[:-1]), "indices"),
    "text counts": (h5_with("matrix/data", lambda v: v.astype("S")), "counts of type"),
    "barcodes missing": (h5_with("matrix/barcodes", None), "lacks barcodes"),
    "fewer barcodes": (h5_with("matrix/barcodes", lambda v: v[:-1]), "12 barcodes, but 11"),
    "more names than ids": (
        h5_with("matrix/features/id", lambda v: v[:-1]),
        "10 feature ids but 11",
    ),
    "feature types missing": (h5_with("matrix/features/feature_type", None), "lacks feature_type"),
    "feature types short": (
        h5_with("matrix/features/feature_type", lambda v: v[:-1]),
        "cannot be read as a Cell Ranger",
    ),
    "v2 without genes": (v2_without("genes"), 'lacks genes in its group "/hg19"'),
    "v2 without indptr": (v2_without("indptr"), "lacks indptr"),
    "no matrix": (folder_without("matrix.mtx.gz"), "lacks matrix.mtx.gz;"),
    "no barcodes": (folder_without("barcodes.tsv.gz"), "lacks barcodes.tsv.gz;"),
    "no features": (folder_without("features.tsv.gz"), "lacks features.tsv.gz"),
    "one barcode less": (folder_with("barcodes.tsv.gz", CELLS[1:]), "12 barcodes, but 11"),
    "one feature less": (
        folder_with("features.tsv.gz", [f"{i}\t{i}\tGene Expression" for i in range(10)]),
        "11 features, but 10",
    ),
    "ragged features": (
        folder_with("features.tsv.gz", ["a\tb\tc"] * 10 + ["d"]),
        "of 1 and of 3 columns",
    ),
    "row out of range": (mtx("12 1 1"), "count in row 12, outside its 11 rows"),
    "row zero": (mtx("0 1 1"), "count in row 0,"),
    "column out of range": (mtx("1 13 1"), "count in column 13,"),
    "text count": (mtx("1 1 many"), "cannot be read as a Matrix Market"),
    "a fourth column": (mtx("1 1 1 7"), "cannot be read as a Matrix Market"),
    "a column less": (mtx("1 1 1", "1 2"), "cannot be read as a Matrix Market"),
    "fractional index": (mtx("1.5 1 1"), "cannot be read as a Matrix Market"),
    "huge index": (mtx("1 99999999999 1"), "count in column 99999999999"),
    "dense mtx": (folder_with("matrix.mtx.gz", ARRAY), '"array integer general"'),
    "pattern mtx": (folder_with("matrix.mtx.gz", PATTERN), '"coordinate pattern general"'),
    "impossible size": (
        folder_with("matrix.mtx.gz", TOO_MANY),
        "announces 99999999999 counts but has 1",
    ),
    "not an mtx": (folder_with("matrix.mtx.gz", ["hello"]), "is not a Matrix Market"),
    "mtx cut short": (cut("matrix.mtx.gz"), "cannot be read as a Matrix Market"),
    "features cut short": (cut("features.tsv.gz"), "cannot be read as a tab-separated list"),
}


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


def test_a_line_of_very_many_tabs_is_not_taken_apart(tmp_path: Path) -> None:
    """Of a matrix of one feature, whose lists have as many lines as it says."""
    n_tabs = 2_000_000
    write_text(tmp_path / "features.tsv", ["ENSG0\tCD3E\tGene Expression" + "\t" * n_tabs])
    write_text(tmp_path / "barcodes.tsv", CELLS)
    write_mtx(tmp_path / "matrix.mtx", np.ones((N_CELLS, 1), dtype=np.int64))
    tracemalloc.start()
    try:
        adata = read_10x_folder(tmp_path, None)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert list(adata.var.iloc[0]) == ["ENSG0", "Gene Expression"]
    assert peak_bytes < 8 * n_tabs  # a list of what is between them takes as much alone
