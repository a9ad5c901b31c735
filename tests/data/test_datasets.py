import functools
import gzip
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from scipy.io import mmread
from scipy.sparse import csc_matrix, random_array

from totalvi.data.datasets import DATASETS, Dataset10X, fetch, list_datasets, load
from totalvi.errors import DownloadError, ReadError

NAME = "pbmc_10k_protein_v3"


class Counts(NamedTuple):
    """What a Cell Ranger v3 file holds; ``matrix`` is features x cells."""

    matrix: csc_matrix
    barcodes: list[str]
    ids: list[str]
    names: list[str]
    types: list[str]

    def of_type(self, feature_type: str) -> np.ndarray:
        """Cells x features of one type, dense."""
        return self.matrix.toarray()[np.array(self.types) == feature_type].T


def write_cell_ranger_h5(path: Path, counts: Counts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(counts.barcodes, dtype="S")
        matrix["data"] = counts.matrix.data.astype(np.int32)
        matrix["indices"] = counts.matrix.indices.astype(np.int64)
        matrix["indptr"] = counts.matrix.indptr.astype(np.int64)
        matrix["shape"] = np.array(counts.matrix.shape, dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array(counts.ids, dtype="S")
        features["name"] = np.array(counts.names, dtype="S")
        features["feature_type"] = np.array(counts.types, dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(counts.ids), dtype="S")
        features["_all_tag_keys"] = np.array(["genome"], dtype="S")


def simulated_counts() -> Counts:
    rng = np.random.default_rng(0)
    genes, proteins, cells = 12, 3, 20
    matrix = random_array((genes + proteins, cells), density=0.5, rng=rng, format="csc")
    matrix.data = rng.integers(1, 50, matrix.nnz)
    return Counts(
        csc_matrix(matrix),
        [f"CELL{i}-1" for i in range(cells)],
        [f"ENSG{i}" for i in range(genes)] + ["CD3", "CD4", "IgG1"],
        [f"GENE{i}" for i in range(genes)] + ["CD3_TotalSeqB", "CD4_TotalSeqB", "IgG1_control"],
        ["Gene Expression"] * genes + ["Antibody Capture"] * proteins,
    )


def counts_of_folder(folder: Path) -> Counts:
    with gzip.open(folder / "features.tsv.gz", "rt") as file:
        ids, names, types = zip(*(line.rstrip("\n").split("\t")[:3] for line in file), strict=True)
    with gzip.open(folder / "barcodes.tsv.gz", "rt") as file:
        barcodes = file.read().split()
    matrix = csc_matrix(mmread(folder / "matrix.mtx.gz"))
    return Counts(matrix, barcodes, list(ids), list(names), list(types))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The address and the folder of a local server; the cache lies elsewhere in `tmp_path`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TOTALVI_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def place(folder: Path, counts: Counts, kind: str = "filtered") -> None:
    file = f"cell-exp/3.0.0/{NAME}/{NAME}_{kind}_feature_bc_matrix.h5"
    write_cell_ranger_h5(folder / file, counts)


def check_dataset(dataset: Dataset10X, counts: Counts) -> None:
    rna, protein = counts.of_type("Gene Expression"), counts.of_type("Antibody Capture")
    assert dataset.nb_genes == rna.shape[1]
    assert len(dataset.protein_names) == protein.shape[1]
    assert set(dataset.mdata.mod) == {"rna", "prot"}
    assert list(dataset.mdata.obs_names) == counts.barcodes
    np.testing.assert_array_equal(dataset.mdata["rna"].X.toarray(), rna)
    found = dataset.mdata["prot"].X
    np.testing.assert_array_equal(found.toarray() if hasattr(found, "toarray") else found, protein)


def test_dataset_10x(mirror: tuple[str, Path], tmp_path: Path) -> None:
    base_url, folder = mirror
    counts = simulated_counts()
    place(folder, counts)
    dataset = Dataset10X(dataset_name=NAME, save_path=tmp_path / "save", base_url=base_url)
    assert dataset.filename == tmp_path / "save" / f"{NAME}_filtered_feature_bc_matrix.h5"
    check_dataset(dataset, counts)


def test_dataset_10x_of_real_counts(mirror: tuple[str, Path], tmp_path: Path, shared: Path) -> None:
    base_url, folder = mirror
    counts = counts_of_folder(shared / "data/10x_pbmc_10k_protein_v3_subset")
    place(folder, counts)
    dataset = Dataset10X(dataset_name=NAME, save_path=tmp_path, base_url=base_url)
    check_dataset(dataset, counts)
    assert (dataset.nb_genes, len(dataset.protein_names)) == (100, 17)


def test_present_file_needs_no_network(tmp_path: Path) -> None:
    counts = simulated_counts()
    write_cell_ranger_h5(tmp_path / f"{NAME}_filtered_feature_bc_matrix.h5", counts)
    check_dataset(Dataset10X(NAME, tmp_path, base_url="http://127.0.0.1:9"), counts)


def test_load_uses_the_cache_folder(mirror: tuple[str, Path], tmp_path: Path) -> None:
    base_url, folder = mirror
    place(folder, simulated_counts(), "raw")
    assert load(NAME, kind="raw", base_url=base_url).n_obs == 20
    assert (tmp_path / "cache" / f"{NAME}_raw_feature_bc_matrix.h5").exists()


def test_publishers_name_is_the_same_data_set(tmp_path: Path) -> None:
    file = tmp_path / "5k_pbmc_protein_v3_raw_feature_bc_matrix.h5"
    file.write_bytes(b"anything")
    for name in ("pbmc_5k_protein_v3", "5k_pbmc_protein_v3"):
        assert fetch(name, kind="raw", folder=tmp_path) == file


def test_known_checksum_is_enforced(tmp_path: Path) -> None:
    (tmp_path / "5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5").write_bytes(b"anything")
    with pytest.raises(DownloadError, match=r"has sha256 .* in place of the expected 3b290ad9"):
        fetch("pbmc_5k_protein_v3", folder=tmp_path)


def test_file_that_is_no_count_file(mirror: tuple[str, Path], tmp_path: Path) -> None:
    base_url, folder = mirror
    place(folder, simulated_counts())
    for path in folder.rglob("*.h5"):
        path.write_bytes(b"<html>please sign in</html>")
    with pytest.raises(ReadError):
        load(NAME, base_url=base_url)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("pbmc_10k_protein", "filtered", f"did you mean '{NAME}'"),
        ("zebra", "filtered", f"choose from {NAME}"),
        (NAME, "cooked", "no 'cooked' file; choose from 'filtered', 'raw'"),
        ("vdj_v1_hs_pbmc3", "raw", "no 'raw' file; choose from 'filtered'"),
    ],
)
def test_what_is_not_listed(tmp_path: Path, name: str, kind: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        fetch(name, kind=kind, folder=tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_missing_on_the_mirror_names_where_to_put_the_file(
    mirror: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match="404") as caught:
        fetch(NAME, folder=tmp_path / "here", base_url=mirror[0])
    assert str(tmp_path / "here" / f"{NAME}_filtered_feature_bc_matrix.h5") in str(caught.value)


def test_table_of_data_sets() -> None:
    table = list_datasets()
    assert table.index.is_unique
    assert len(table) == len(DATASETS)
    assert {"pbmc_10k_protein_v3", "pbmc_5k_protein_v3", "malt_10k_protein_v3"} <= set(table.index)
    assert table.loc[NAME, "url"] == (
        "https://cf.10xgenomics.com/samples/cell-exp/3.0.0/"
        f"{NAME}/{NAME}_filtered_feature_bc_matrix.h5"
    )
    assert table["url"].str.match(r"https://cf\.10xgenomics\.com/samples/cell-(exp|vdj)/").all()
    assert table["page"].str.startswith("https://").all()
