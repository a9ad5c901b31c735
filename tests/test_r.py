"""The R code of docs/r.md is run as it stands there, where R and the packages are installed."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import totalvi
from report.run_folder import write_run_folder

pytestmark = pytest.mark.filterwarnings("ignore")
RSCRIPT = shutil.which("Rscript")
PAGE = Path(__file__).parents[1] / "docs" / "r.md"
NEWEST = {"Seurat": 5, "SeuratObject": 5}  # GetAssayData has no argument "layer" before
GENES = ["CD4", "CD8A", "MS4A1", *(f"RPL{i}" for i in range(17))]
PROTEINS = ["CD4", "CD8a", "CD19", "HLA-DR"]
# What readH5MU of MuData knows, by its source.
ENCODINGS_OF_MUDATA = {
    *("array", "csr_matrix", "csc_matrix", "dataframe", "dict", "numeric-scalar", "string"),
    *("categorical", "string-array", "nullable-integer", "nullable-boolean"),
}


def code_of_page() -> dict[str, list[str]]:
    """Return the R code of the page, by the title of its section."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    code = {
        section.partition("\n")[0]: re.findall(r"```r\n(.*?)```", section, re.DOTALL)
        for section in sections
    }
    return {title: blocks for title, blocks in code.items() if blocks}


CODE = code_of_page()


@cache
def installed() -> dict[str, int]:
    """Return the first number of the version of each installed package of R."""
    if RSCRIPT is None:
        pytest.skip("needs R (Rscript), which is not on this machine")
    tell = "p <- installed.packages(); cat(paste(p[, 'Package'], p[, 'Version']), sep = '\\n')"
    done = subprocess.run([RSCRIPT, "-e", tell], capture_output=True, text=True, check=True)
    pairs = (line.split(" ") for line in done.stdout.splitlines() if " " in line)
    return {package: int(version.split(".")[0]) for package, version in pairs}


def run_r(folder: Path, *blocks: str) -> str:
    """Run code in a folder and return what it prints; skip where a package is missing."""
    script = "\n".join(blocks)
    known = installed()
    wanted = dict.fromkeys(a or b for a, b in re.findall(r"library\((\w+)\)|(\w+)::", script))
    missing = [name for name in wanted if known.get(name, -1) < NEWEST.get(name, 0)]
    if missing:
        pytest.skip(
            f"needs the R packages {', '.join(missing)}, which are not installed, or too old"
        )
    (folder / "script.R").write_text(script, encoding="utf-8")
    assert RSCRIPT is not None
    done = subprocess.run(
        [RSCRIPT, "--no-init-file", "script.R"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode and re.search(r"basilisk|conda|Could not resolve", done.stderr):
        pytest.skip("zellkonverter cannot set up the Python that it needs, as without a network")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_code_of_the_page_is_run_by_a_test_here() -> None:
    sizes = {title: len(blocks) for title, blocks in CODE.items()}
    assert sizes == {"Tables": 1, "Bioconductor": 1, "Seurat": 1, "From R": 2}
    assert all(re.search(r"<-|write", block) for blocks in CODE.values() for block in blocks)


# ------------------------------------------------------------------------------ from R

RNG = np.random.default_rng(5)
CELLS = ["".join(RNG.choice(list("ACGT"), 16)) + "-1" for _ in range(30)]
RNA = pd.DataFrame(RNG.poisson(2.0, (30, len(GENES))), CELLS, GENES)
PROTEIN = pd.DataFrame(RNG.poisson(20.0, (30, len(PROTEINS))), CELLS, PROTEINS)
COUNTS = """
library(Matrix)
counts_in <- function(file) {
  as(as.matrix(read.csv(file, row.names = 1, check.names = FALSE)), "CsparseMatrix")
}
rna <- counts_in("rna_in.csv")
adt <- counts_in("adt_in.csv")
"""


@pytest.fixture
def with_counts(tmp_path: Path) -> Path:
    RNA.T.to_csv(tmp_path / "rna_in.csv")
    PROTEIN.T.to_csv(tmp_path / "adt_in.csv")
    return tmp_path


def check_counts(mdata: MuData) -> None:
    assert mdata.obs_names.tolist() == CELLS
    pd.testing.assert_frame_equal(mdata["rna"].to_df(), RNA, check_dtype=False, check_names=False)
    pd.testing.assert_frame_equal(
        mdata["prot"].to_df(), PROTEIN, check_dtype=False, check_names=False
    )


def test_folders_written_from_seurat_are_read(with_counts: Path) -> None:
    make = """
library(Seurat)
object <- CreateSeuratObject(counts = rna)
object[["ADT"]] <- CreateAssayObject(counts = adt)
object$donor <- rep(c("a", "b"), length.out = ncol(object))
"""
    run_r(with_counts, COUNTS, make, CODE["From R"][0])
    check_counts(totalvi.read(with_counts / "rna", protein_path=with_counts / "adt"))
    annotation = pd.read_csv(with_counts / "cells.csv", index_col=0)
    assert annotation.index.tolist() == CELLS
    assert annotation["donor"].tolist() == ["a", "b"] * 15


def test_a_file_written_from_a_single_cell_experiment_is_read(with_counts: Path) -> None:
    make = """
library(SingleCellExperiment)
antibodies <- SummarizedExperiment(list(counts = adt))
sce <- SingleCellExperiment(list(counts = rna), altExps = list(ADT = antibodies))
sce$donor <- rep(c("a", "b"), length.out = ncol(sce))
"""
    run_r(with_counts, COUNTS, make, CODE["From R"][1])
    mdata = totalvi.read(with_counts / "cells.h5ad")
    check_counts(mdata)
    assert mdata.obs["donor"].tolist() == ["a", "b"] * 15


# -------------------------------------------------------------------------- results in R


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place of the results of a run, called as on the page."""
    folder = tmp_path_factory.mktemp("r")
    write_run_folder(folder / "results", 60, GENES, PROTEINS)
    return folder


def results(folder: Path) -> tuple[pd.DataFrame, h5py.File]:
    cells = pd.read_csv(folder / "results" / "tables" / "cells.csv.gz", index_col="cell")
    return cells, h5py.File(folder / "results" / "results.h5mu", "r")


def test_results_have_what_the_page_names(folder: Path) -> None:
    """Without R: the files and columns are there, in encodings that the reader in R knows."""
    cells, file = results(folder)
    assert {"cluster", "umap_1", "umap_2"} <= set(cells)
    table = pd.read_csv(folder / "results" / "tables" / "proteins.csv", index_col="protein")
    assert table.index.tolist() == PROTEINS
    assert (folder / "results" / "tables" / "differential_expression.csv.gz").is_file()
    found: dict[str, list[str]] = {}
    file.visititems(
        lambda name, item: found.setdefault(item.attrs.get("encoding-type", ""), []).append(name)
    )
    assert set(found) - ENCODINGS_OF_MUDATA - {"anndata", ""} == set(), found
    assert {"denoised", "foreground_probability"} <= set(file["mod/prot/layers"])
    for name in re.findall(r"denoised_(\w+)", CODE["Seurat"][0]):
        assert name in PROTEINS


def test_tables_are_read_in_r(folder: Path) -> None:
    tell = "cat(nrow(cells), nrow(proteins), nrow(de), sum(cells$umap_1), rownames(cells)[1])"
    said = run_r(folder, CODE["Tables"][0], tell).split()
    cells, _ = results(folder)
    n_rows = [len(cells), len(PROTEINS), 15 * (len(GENES) + len(PROTEINS))]
    assert [int(word) for word in said[:3]] == n_rows
    assert float(said[3]) == pytest.approx(cells["umap_1"].sum(), rel=1e-4)
    assert said[4] == cells.index[0]


def from_r(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, index_col=0)


def test_results_are_read_as_a_multi_assay_experiment(folder: Path) -> None:
    tell = """
write.csv(as.matrix(assay(rna, 1)), "rna.csv")
write.csv(as.matrix(assay(protein, 1)), "protein.csv")
write.csv(as.matrix(assay(protein, "denoised")), "denoised.csv")
cat(assayNames(protein), sep = "\\n")
"""
    said = run_r(folder, CODE["Bioconductor"][0], tell).splitlines()
    assert said[-2:] == ["denoised", "foreground_probability"]
    expected = totalvi.read(folder / "results" / "results.h5mu")
    for name, table in (
        ("rna", expected["rna"].to_df()),
        ("protein", expected["prot"].to_df()),
        ("denoised", expected["prot"].to_df("denoised")),
    ):
        found = from_r(folder / f"{name}.csv").T
        assert found.index.tolist() == table.index.tolist()
        assert found.columns.tolist() == table.columns.tolist()
        np.testing.assert_allclose(found, table, rtol=1e-5)


def test_results_are_read_as_a_seurat_object(folder: Path) -> None:
    tell = """
write.csv(as.matrix(GetAssayData(object, assay = "ADT", layer = "counts")), "adt.csv")
write.csv(Embeddings(object[["umap"]]), "umap.csv")
write.csv(data.frame(cluster = object$cluster, row.names = colnames(object)), "clusters.csv")
"""
    blocks = CODE["Tables"][0], CODE["Bioconductor"][0], CODE["Seurat"][0]
    run_r(folder, *blocks, tell)
    cells, _ = results(folder)
    expected = totalvi.read(folder / "results" / "results.h5mu")
    np.testing.assert_array_equal(from_r(folder / "adt.csv").T, expected["prot"].to_df())
    umap = from_r(folder / "umap.csv").loc[cells.index]
    np.testing.assert_allclose(umap, cells[["umap_1", "umap_2"]], rtol=1e-5)
    clusters = from_r(folder / "clusters.csv").loc[cells.index, "cluster"]
    assert clusters.astype(str).tolist() == cells["cluster"].astype(str).tolist()
