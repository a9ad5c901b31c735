import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from totalvi.data.io import text_tables as tables
from totalvi.data.io.read import read
from totalvi.errors import ReadError

CELLS = [f"cell {i}" for i in range(7)]
BARCODES = [f"ACGTACGTAC{base}{i}" for i, base in enumerate("ACGTACG")]
GENES = ["CD3E", "CD4", "HLA-A,B", "NA"]
PROTEINS = ["CD3", "CD4", "IgG1"]
RNA = np.random.default_rng(1).poisson(2.0, (7, 4))
PROTEIN = np.random.default_rng(2).poisson(20.0, (7, 3))


def frames(cells: list[str] = CELLS) -> tuple[pd.DataFrame, pd.DataFrame]:
    rna = pd.DataFrame(RNA, index=pd.Index(cells, name="cell"), columns=GENES)
    protein = pd.DataFrame(PROTEIN, index=pd.Index(cells, name="cell"), columns=PROTEINS)
    return rna, protein


def write(frame: pd.DataFrame, path: Path, **options: object) -> Path:
    sep = {".csv": ",", ".tsv": "\t", ".txt": ";"}[path.suffixes[0]]
    frame.to_csv(path, sep=sep, **options)
    return path


def check(mdata, cells: list[str] = CELLS) -> None:
    assert mdata.obs_names.tolist() == cells
    for name, counts, features in (("rna", RNA, GENES), ("prot", PROTEIN, PROTEINS)):
        assert mdata[name].obs_names.tolist() == cells
        assert mdata[name].var_names.tolist() == features
        assert mdata[name].X.format == "csr"
        assert mdata[name].X.dtype == np.float32
        np.testing.assert_array_equal(mdata[name].X.toarray(), counts)
    assert mdata["prot"].var["control"].tolist() == [False, False, True]


@pytest.mark.parametrize("rna_cells", ["rows", "columns"])
@pytest.mark.parametrize("protein_cells", ["rows", "columns"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz"])
def test_pairs(tmp_path, rna_cells, protein_cells, suffix):
    rna, protein = frames()
    paths = [
        write(frame if cells == "rows" else frame.T, tmp_path / f"{name}{suffix}")
        for name, frame, cells in (("rna", rna, rna_cells), ("protein", protein, protein_cells))
    ]
    check(read(paths[0], protein_path=paths[1]))


def test_cells_of_the_proteins_in_another_order(tmp_path):
    rna, protein = frames()
    path = write(rna, tmp_path / "rna.csv")
    check(read(path, protein_path=write(protein.iloc[::-1], tmp_path / "protein.csv")))


def test_cells_in_one_file_only_are_left_out_and_counted(tmp_path):
    rna, protein = frames()
    path = write(rna, tmp_path / "rna.csv")
    mdata = read(path, protein_path=write(protein.iloc[2:], tmp_path / "protein.csv"))
    assert mdata["rna"].obs_names.tolist() == mdata["prot"].obs_names.tolist() == CELLS[2:]
    np.testing.assert_array_equal(mdata["rna"].X.toarray(), RNA[2:])
    said = mdata.uns["totalvi_reading"]["cells_paired"]
    assert said.endswith(f"left out, as the other lacks them, are 2 of {path}.")


def test_header_without_a_corner_as_r_writes_it(tmp_path):
    rna, protein = frames()
    paths = [write(rna, tmp_path / "rna.tsv"), write(protein.T, tmp_path / "protein.tsv")]
    for path in paths:
        text = path.read_text()
        path.write_text(text.partition("\t")[2])
    check(read(paths[0], protein_path=paths[1]))


def test_barcodes_tell_where_the_cells_are(tmp_path):
    rna, protein = frames(BARCODES)
    for frame in (rna, rna.T):
        alone = read(write(frame, tmp_path / "rna.csv"))
        assert list(alone.mod) == ["rna"]
        np.testing.assert_array_equal(alone["rna"].X.toarray(), RNA)
    # Barcodes that differ are not outdone by the names that genes and proteins have in common.
    protein.index = [name.replace("A", "T") for name in BARCODES]
    with pytest.raises(ReadError, match=r"no cell name in common .*ACGTACGTACA0.*TCGTTCGTTCT0"):
        read(tmp_path / "rna.csv", protein_path=write(protein, tmp_path / "protein.csv"))


@pytest.mark.parametrize("n_cells", [900, 1100])
def test_the_first_thousand_names_tell_where_the_cells_are(tmp_path, n_cells):
    rng = np.random.default_rng(0)
    cells = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(n_cells)]
    counts = pd.DataFrame(rng.poisson(2.0, (n_cells, 2)), index=cells, columns=["CD3E", "CD4"])
    for table in (counts, counts.T):
        rna = read(write(table, tmp_path / "rna.csv"))["rna"]
        assert rna.obs_names.tolist() == cells
        np.testing.assert_array_equal(rna.X.toarray(), counts)


def test_cells_in(tmp_path):
    rna, protein = frames()
    path = write(rna, tmp_path / "rna.csv")
    assert read(path, cells_in="rows")["rna"].obs_names.tolist() == CELLS
    assert read(path, cells_in="columns")["rna"].obs_names.tolist() == GENES
    with pytest.raises(ReadError, match="does not tell whether its cells are rows or columns"):
        read(path)
    with pytest.raises(ReadError, match="allowed are 'rows', 'columns'"):
        read(path, cells_in="row")
    rna, protein = rna.iloc[:1], protein.iloc[:1]  # one cell and one gene name, CD4, in common
    paths = write(rna, tmp_path / "rna.csv"), write(protein, tmp_path / "protein.csv")
    with pytest.raises(ReadError, match="1 names in common along either axis"):
        read(paths[0], protein_path=paths[1])
    assert read(paths[0], protein_path=paths[1], cells_in="rows").obs_names.tolist() == CELLS[:1]


def test_protein_table_beside_an_anndata(tmp_path):
    rna, protein = frames()
    AnnData(rna.astype(np.float64)).write_h5ad(tmp_path / "rna.h5ad")
    check(read(tmp_path / "rna.h5ad", protein_path=write(protein.T, tmp_path / "protein.csv")))


def test_missing_values_are_nan_and_repeated_rows_unique(tmp_path):
    (tmp_path / "rna.csv").write_text("gene,a,b\nTBCE,1,2\nTBCE,3,4\n")
    (tmp_path / "protein.csv").write_text("﻿protein,a,b\n\nCD3,,5\nCD4,NA,1e2\nCD5,0,\n")
    mdata = read(tmp_path / "rna.csv", protein_path=tmp_path / "protein.csv")
    assert mdata["rna"].var_names.tolist() == ["TBCE", "TBCE-1"]
    expected = [[np.nan, np.nan, 0], [5, 100, np.nan]]
    np.testing.assert_array_equal(mdata["prot"].X.toarray(), expected)


def test_repeated_cells_pair_only_when_both_files_list_them_alike(tmp_path):
    rna, protein = frames(["x", "x", *CELLS[2:]])
    paths = write(rna, tmp_path / "rna.csv"), write(protein, tmp_path / "protein.csv")
    check(read(paths[0], protein_path=paths[1]), ["x", "x", *CELLS[2:]])
    write(protein.iloc[::-1], paths[1])
    with pytest.raises(ReadError, match=r'cell "x" occurs more than once in "rna" of .*own name'):
        read(paths[0], protein_path=paths[1])


def test_delimiters_at_the_end_of_lines_are_harmless(tmp_path):
    (tmp_path / "rna.csv").write_text("cell,CD3E,CD4\na,1,2,\nb,3,4,\n")
    rna = read(tmp_path / "rna.csv", cells_in="rows")["rna"]
    np.testing.assert_array_equal(rna.X.toarray(), [[1, 2], [3, 4]])


def test_chunks_make_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "VALUES_PER_CHUNK", 9)
    rna, protein = frames()
    path = write(rna, tmp_path / "rna.csv")
    check(read(path, protein_path=write(protein.T, tmp_path / "protein.csv")))


GOOD = b"cell,CD3,CD4\na,1,2\nb,3,4\nc,5,6\n"
BROKEN = {
    "text": (GOOD.replace(b",4", b",high"), 'text "high" in row "b", column "CD4"'),
    "thousands": (GOOD.replace(b",4", b',"1,000"'), 'text "1,000" in row "b", column "CD4"'),
    "underscores": (GOOD.replace(b",4", b",1_000"), 'text "1_000" in row "b", column "CD4"'),
    "annotation column": (GOOD.replace(b"1", b"T cell"), 'text "T cell" in row "a", column "CD3"'),
    "repeated header line": (GOOD + GOOD, 'text "CD3" in row "cell", column "CD3"'),
    "line cut short": (GOOD[:-3], '2 fields in its line 4 (row "c") in place of 3'),
    "short line": (GOOD.replace(b"b,3,4", b"b,3"), '2 fields in its line 3 (row "b")'),
    "long line": (GOOD.replace(b"b,3,4", b"b,3,4,5"), '4 fields in its line 3 (row "b")'),
    "long first line": (GOOD.replace(b"a,1,2", b"a,1,2,3,4"), '5 fields in its line 2 (row "a")'),
    "all lines long": (
        b"".join(line + b",7,7\n" for line in GOOD.splitlines()).replace(b"4,7,7", b"4", 1),
        '5 fields in its line 2 (row "a")',
    ),
    "repeated column": (GOOD.replace(b"CD4", b"CD3"), 'more than one column "CD3"'),
    "header only": (GOOD[:13], "holds a line of names but no counts"),
    "one column": (b"cell\na\nb\n", "has only one column"),
    "binary": (b"\x89HDF\r\n\x1a\n\0\0\0", "is not text"),
    "zeros": (bytes(1000), "is not text"),
    "latin-1 names": (GOOD.replace(b"CD4", b"TCR\xb1"), "cannot be read as a table of text"),
    "gzip cut short": (gzip.compress(GOOD * 99)[:60], "cannot be read as a table of text"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("role", ["rna", "protein"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken(case, role, tmp_path):
    content, expected = BROKEN[case]
    paths = {name: tmp_path / f"{name}.csv" for name in ("rna", "protein")}
    for name, path in paths.items():
        path.write_bytes(content if name == role else GOOD)
    with pytest.raises(ReadError) as caught:
        read(paths["rna"], protein_path=paths["protein"], cells_in="rows")
    message = str(caught.value)
    assert expected in message
    assert str(paths[role]) in message
    assert "\n" not in message


def test_no_common_cells(tmp_path):
    rna, protein = frames()
    protein.index = [f"donor {name}" for name in "ABCDEFG"]
    protein.columns = ["a", "b", "c"]
    paths = write(rna, tmp_path / "rna.csv"), write(protein, tmp_path / "protein.csv")
    with pytest.raises(ReadError, match='"cell 0" and "donor A"'):
        read(paths[0], protein_path=paths[1])
