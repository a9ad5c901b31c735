"""Read the folders that Cell Ranger and other counting tools write."""

import csv
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from totalvi.data.io.features import join_genomes, pick_genomes, prefix_shared_names
from totalvi.data.io.text_tables import (
    LARGEST_TEXT_RATIO,
    are_barcodes,
    open_text,
    require_last_line_end,
)
from totalvi.data.io.trust import reading, require_lengths
from totalvi.errors import ReadError, argument, listed

MTX_COLUMNS = {"feature": np.int64, "cell": np.int64, "count": np.float32}
ENTRIES_PER_CHUNK = 5_000_000

OUTPUTS = (
    "filtered_feature_bc_matrix.h5",
    "filtered_feature_bc_matrix",
    "sample_filtered_feature_bc_matrix.h5",
    "sample_filtered_feature_bc_matrix",
    "filtered_gene_bc_matrices_h5.h5",
    "filtered_gene_bc_matrices",
    *("count", "outs"),
    *("Solo.out", "Gene/filtered", "GeneFull/filtered", "filtered"),  # of STARsolo
    "umi_count",  # of CITE-seq-Count, beside read_count
    "counts_filtered",  # of kallisto and bustools
    "counts_unfiltered",
    "alevin",  # of alevin-fry
    "DGE_filtered",  # of Parse, as is the next
    "all-sample",
)
SAMPLES = "per_sample_outs"  # of `cellranger multi`


class Layout(NamedTuple):
    """The files of another counter: a matrix of cells x features, and the names of both."""

    matrix: str
    cells: str
    features: tuple[str, ...]


LAYOUTS = (
    *(
        Layout(
            f"cells_x_{what}{kind}.mtx",
            f"cells_x_{what}.barcodes.txt",
            (f"cells_x_{what}.genes.names.txt", f"cells_x_{what}.genes.txt"),
        )
        for what in ("genes", "features", "tcc", "adt")
        for kind in ("", ".total")
    ),
    Layout("quants_mat.mtx", "quants_mat_rows.txt", ("quants_mat_cols.txt",)),
    Layout("count_matrix.mtx", "cell_metadata.csv", ("all_genes.csv",)),
    Layout("DGE.mtx", "cell_metadata.csv", ("all_genes.csv",)),
)
_HEAD = re.compile(  # the first line of a list that has one too many
    r"(x|v1|names?|(gene|cell|feature|antibod|barcode|protein|adt|tag|hto|symbol)[ _.a-z]*)(\t.*)?",
    re.IGNORECASE,
)
READABLE = (".h5", ".h5ad", ".h5mu", ".zarr")


def cell_ranger_output(folder: Path) -> Path | None:
    """Return the filtered matrix in a folder such as ``outs``, if there is one.

    Raises
    ------
    ReadError
        If the folder holds several samples, or files of counts that do not belong together.
    """
    found = next((folder / name for name in OUTPUTS if (folder / name).exists()), None)
    if found is not None or layout_of(folder) is not None:
        return found
    of_starsolo = [path for path in folder.glob("*Solo.out") if path.is_dir()]
    if len(of_starsolo) == 1:
        return of_starsolo[0]
    place = folder / SAMPLES if (folder / SAMPLES).is_dir() else folder
    samples = sorted(path.parents[1] for path in place.glob("*/count/sample_filtered_*matrix.h5"))
    samples = samples or sorted(p.parents[1] for p in place.glob("*/count/sample_filtered_*matrix"))
    if len(samples) == 1:
        return samples[0]
    if samples:
        names = listed([str(sample) for sample in samples])
        raise ReadError(
            f"{folder} holds {len(samples)} samples; give one of them, or read each and join them "
            f"with totalvi.concat ({names})."
        )
    files = sorted(p.name for p in folder.iterdir() if p.name.endswith(READABLE))
    if files and not any(p.is_dir() and holds_matrix(p) for p in folder.iterdir()):
        raise ReadError(
            f"{folder} holds no matrix of its own but files that may hold counts; give the path of one "
            f"of them ({listed(files)})."
        )
    return None


def layout_of(folder: Path) -> tuple[Layout, Path] | None:
    """Return how the files of another counter in a folder lie, and its matrix; None without any."""
    found = ((layout, file_of(folder, "", layout.matrix)) for layout in LAYOUTS)
    return next(((layout, matrix) for layout, matrix in found if matrix is not None), None)


def read_layout(folder: Path, layout: Layout, matrix: Path) -> AnnData:
    """Read the matrix of another counter, whatever way it lies."""
    lists = [file_of(folder, "", layout.cells), file_of(folder, "", *layout.features)]
    if lists[0] is None or lists[1] is None:
        missing = layout.cells if lists[0] is None else layout.features[-1]
        raise ReadError(
            f"{matrix} is a matrix whose names are in {missing}, which {folder} lacks; copy it beside "
            "the matrix."
        )
    ids_file = file_of(folder, "", layout.features[-1]) or lists[1]
    cells, features, ids = (_first_fields(path) for path in (lists[0], lists[1], ids_file))
    with reading(matrix, "a Matrix Market file"), open_list(matrix) as file:
        size = mtx_size(matrix, file)[:2]
    counts = _read_either_way(matrix, len(features), len(cells), size)
    var = pd.DataFrame({"gene_ids": ids}, index=pd.Index(features, dtype=object))
    found = AnnData(counts, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)), var=var)
    return _joined_splicing(found)


def _joined_splicing(found: AnnData) -> AnnData:
    """Sum the spliced and ambiguous (-A) counts of alevin-fry; the unspliced (-U) become a layer."""
    n = found.n_vars // 3
    names = found.var_names
    ends = [list(names[i * n : (i + 1) * n]) for i in range(3)]
    if n == 0 or ends[1:] != [[f"{name}{end}" for name in ends[0]] for end in ("-U", "-A")]:
        return found
    spliced = found[:, :n].copy()
    spliced.X = sparse.csr_matrix(found.X[:, :n] + found.X[:, 2 * n :])
    spliced.layers["unspliced"] = sparse.csr_matrix(found.X[:, n : 2 * n])
    return spliced


def _first_fields(path: Path) -> list[str]:
    """Return the names in a list; of a csv file with a head, the second column of genes."""
    lines = lines_of(path)
    if not path.name.removesuffix(".gz").endswith(".csv"):
        return [line.split("\t")[0] for line in lines]
    head = lines[0].split(",")
    column = head.index("gene_name") if "gene_name" in head else 0
    return [line.split(",")[column].strip('"') for line in lines[1:]]


def read_10x_folder(folder: Path, genome: str | None, prefix: str | None = None) -> AnnData:
    """Read a matrix folder, or a folder of Cell Ranger 2 with a subfolder for each genome.

    ``prefix`` is the part of the file names before ``matrix.mtx``, as in GEO's ``GSM1_matrix.mtx.gz``;
    by default it is found in the folder.
    """
    matrices = _matrices(folder) if prefix is None else [folder / f"{prefix}matrix.mtx"]
    if len(matrices) > 1:
        raise ReadError(
            f"{folder} holds {len(matrices)} matrices ({', '.join(p.name for p in matrices[:5])}); "
            "give the path of one of these files in place of the folder, and that of its proteins, if "
            f"they are in another, as {argument('protein_path')}."
        )
    subfolders = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and _matrices(p)}
    raw = [name for name in subfolders if name.startswith("raw")]
    if raw and not matrices:
        raise ReadError(
            f"{folder} has the matrix of all barcodes, {listed(raw)}, and none of the cells alone; "
            f"give that of the cells, or the path of this one if it is meant ({subfolders[raw[0]]})."
        )
    layout = None if matrices else layout_of(folder)
    if layout is not None:
        return read_layout(folder, *layout)
    if matrices or not subfolders:
        stem = matrices[0].name.partition("matrix.mtx")[0] if matrices else ""
        return _read_triple(folder, stem)
    chosen = pick_genomes(subfolders, genome, folder)
    parts: Mapping[str, AnnData] = {k: read_10x_folder(p, genome) for k, p in chosen.items()}
    for name, part in parts.items():
        part.var["genome"] = name
    return prefix_shared_names(join_genomes(parts, folder))


def holds_matrix(folder: Path) -> bool:
    """Return whether a folder itself holds a matrix."""
    return bool(_matrices(folder))


def matrix_files(folder: Path) -> list[Path]:
    """Return the files with the counts in a folder; none if it holds no matrix."""
    if holds_matrix(folder):
        parts = ("matrix.mtx", "features.tsv", "genes.tsv", "barcodes.tsv")
        listed = (
            path for path in folder.iterdir() if path.name.removesuffix(".gz").endswith(parts)
        )
        return sorted(path for path in listed if path.is_file())
    layout = layout_of(folder)
    if layout is not None:
        names = (layout[0].cells, *layout[0].features)
        lists = (file_of(folder, "", name) for name in names)
        return sorted({layout[1], *(path for path in lists if path is not None)})
    output = cell_ranger_output(folder)
    if output is not None:
        return [output] if output.is_file() else matrix_files(output)
    of_genomes = sorted(path for path in folder.iterdir() if path.is_dir() and holds_matrix(path))
    return [file for genome in of_genomes for file in matrix_files(genome)]


def _matrices(folder: Path) -> list[Path]:
    found = {p.name.removesuffix(".gz"): p for p in folder.glob("*matrix.mtx*") if p.is_file()}
    of_others = {layout.matrix for layout in LAYOUTS}
    own = {name: path for name, path in found.items() if name not in of_others}
    return [path for name, path in sorted(own.items()) if name.endswith("matrix.mtx")]


def _read_triple(folder: Path, prefix: str) -> AnnData:
    if (binary := file_of(folder, prefix, "quants_mat")) is not None:
        raise ReadError(
            f"{binary} is a matrix in the format of alevin alone; write it again as text, with its "
            "option dumpMtx, and give the folder."
        )
    matrix = file_of(folder, prefix, "matrix.mtx")
    features = file_of(folder, prefix, "features.tsv", "genes.tsv")
    barcodes = file_of(folder, prefix, "barcodes.tsv")
    wanted = {
        "matrix.mtx.gz": matrix,
        "features.tsv.gz (or genes.tsv)": features,
        "barcodes.tsv.gz": barcodes,
    }
    missing = [prefix + name for name, found in wanted.items() if found is None]
    likely = _likely_lists(folder, [name for name, found in wanted.items() if found is None])
    if len(missing) == len(wanted):
        if likely:
            raise ReadError(
                f"{folder} holds {listed(likely)}, but counts are read from files whose names end in "
                "matrix.mtx.gz, features.tsv.gz (or genes.tsv) and barcodes.tsv.gz; rename these."
            )
        raise ReadError(
            f"{folder} holds no counts, as it lacks {', '.join(missing)}; give the file or folder that "
            "holds them, such as filtered_feature_bc_matrix.h5."
        )
    if matrix is None or features is None or barcodes is None:
        fix = "copy the missing ones beside the others"
        if likely:
            fix += f", under these names (there is {listed(likely)}, which may be one of them)"
        raise ReadError(
            f"{folder} lacks {', '.join(missing)}; a Cell Ranger matrix folder holds matrix.mtx.gz, "
            f"features.tsv.gz and barcodes.tsv.gz, so {fix}."
        )
    with reading(matrix, "a Matrix Market file"), open_list(matrix) as file:
        size = mtx_size(matrix, file)[:2]
    with reading(folder, "lists of features and barcodes"):
        lines_of_cells = _without_head(lines_of(barcodes), size)
        lines_of_features = _without_head(lines_of(features), size)
    if are_barcodes(lines_of_features) and not are_barcodes(lines_of_cells):
        raise ReadError(
            f"{features} holds barcodes, and {barcodes} none; name the files for what they hold."
        )
    # first, because lists that do not belong to it may be so long that parsing them fills the memory
    counts = _read_either_way(matrix, len(lines_of_features), len(lines_of_cells), size)
    cells = [line.partition("\t")[0] for line in lines_of_cells]
    table = [
        line.split("\t", maxsplit=3) for line in lines_of_features
    ]  # a line may consist of tabs
    n_fields = {line.count("\t") + 1 for line in lines_of_features}
    if len(n_fields) > 1:
        raise ReadError(
            f"{features} has lines of {min(n_fields)} and of {max(n_fields)} columns; "
            "copy, download or write it again."
        )
    names = [fields[1 if len(fields) > 1 else 0] for fields in table]
    var = pd.DataFrame({"gene_ids": [fields[0] for fields in table]}, index=names)
    if n_fields != {1}:  # version 2 has only genes, and no column for the type
        var["feature_types"] = [fields[2] if fields[2:] else "Gene Expression" for fields in table]
    return AnnData(counts, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)), var=var)


def _without_head(lines: list[str], size: tuple[int, int]) -> list[str]:
    """Return a list as Cell Ranger writes it, without the quotes, row numbers and head that R adds."""
    if lines and all(line.startswith('"') for line in lines[:100]):
        delimiter = "\t" if "\t" in lines[-1] else " "
        rows = list(csv.reader(lines, delimiter=delimiter))
        own = rows[1:] if len(rows[0]) < len(rows[-1]) else rows
        if len(rows[-1]) > 1 and all(row[0] == str(i + 1) for i, row in enumerate(own)):
            rows = [*rows[: len(rows) - len(own)], *(row[1:] for row in own)]
        lines = ["\t".join(row) for row in rows]
    if lines and len(lines) - 1 in size and len(lines) not in size and _HEAD.fullmatch(lines[0]):
        lines = lines[1:]
    return lines


def _read_either_way(
    matrix: Path, n_features: int, n_cells: int, size: tuple[int, int]
) -> sparse.csr_matrix:
    """Read features x cells, or cells x features where only this fits the lists."""
    if size == (n_cells, n_features) and n_cells != n_features:
        return sparse.csr_matrix(read_mtx(matrix, n_cells, n_features).T)
    return read_mtx(matrix, n_features, n_cells)


def _likely_lists(folder: Path, missing: list[str]) -> list[str]:
    """Return the files that may be the missing ones, under another name."""
    words = "|".join(re.findall(r"matrix|features|genes|barcodes", " ".join(missing)))
    of_any_name = r"|.*\.mtx(\.gz)?" if "matrix" in words else ""
    like = re.compile(rf".*({words}).*\.(mtx|tsv|txt|csv)(\.gz)?{of_any_name}", re.IGNORECASE)
    return sorted(path.name for path in folder.iterdir() if like.fullmatch(path.name))


def file_of(folder: Path, prefix: str, *names: str) -> Path | None:
    """Return the first of these files that a folder has, gzipped or not, with a prefix."""
    candidates = [folder / f"{prefix}{name}{end}" for name in names for end in (".gz", "")]
    return next((path for path in candidates if path.is_file()), None)


def open_list(path: Path) -> IO[bytes]:
    """Open a list of names or of entries, and refuse one that unpacks to much more than it should."""
    return open_text(path, at_most=LARGEST_TEXT_RATIO * path.stat().st_size)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a list that are not empty."""
    with reading(path, "a tab-separated list"), open_list(path) as file:
        lines = file.read().decode("utf-8-sig").splitlines()
    require_last_line_end(path)
    return [line for line in lines if line]


def read_mtx(path: Path, n_features: int, n_cells: int) -> sparse.csr_matrix:
    """Read features x cells counts as cells x features CSR float32."""
    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    with (
        reading(path, "a Matrix Market file"),
        open_list(path) as file,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", pd.errors.ParserWarning)  # lines with more than three fields
        n_rows, n_columns, n_entries = mtx_size(path, file)
        require_lengths(path, n_rows, n_features, n_columns, n_cells)
        for chunk in _mtx_entries(file) if n_entries else ():
            features, cells, counts = (chunk[name].to_numpy() for name in MTX_COLUMNS)
            for indices, n, what in ((features, n_rows, "row"), (cells, n_columns, "column")):
                if indices.min() < 1 or indices.max() > n:
                    worst = indices.min() if indices.min() < 1 else indices.max()
                    raise ReadError(
                        f"{path} has a count in {what} {worst}, outside its {n} {what}s; "
                        "copy, download or write it again."
                    )
            chunks.append((counts, cells.astype(np.int32) - 1, features.astype(np.int32) - 1))
    require_last_line_end(path)
    found = sum(len(counts) for counts, _, _ in chunks)
    if found != n_entries:
        raise ReadError(
            f"{path} announces {n_entries} counts but has {found}; it is damaged or cut short, so "
            "copy, download or write it again."
        )
    empty = (np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.int32))
    counts, cells, features = (np.concatenate(parts) for parts in zip(empty, *chunks, strict=True))
    return sparse.coo_matrix((counts, (cells, features)), shape=(n_cells, n_features)).tocsr()


def mtx_size(path: Path, file: IO[bytes]) -> tuple[int, int, int]:
    """Read the header of a Matrix Market file: numbers of rows, columns and entries."""
    banner = file.readline(1000).decode().lower().split()
    if banner[:2] != ["%%matrixmarket", "matrix"]:
        raise ReadError(
            f"{path} is not a Matrix Market file (its first line is no %%MatrixMarket); "
            "copy, download or write it again."
        )
    if banner[2:] not in (["coordinate", kind, "general"] for kind in ("integer", "real")):
        raise ReadError(
            f'{path} is a Matrix Market file of the kind "{" ".join(banner[2:])}", and counts are '
            '"coordinate integer general"; write it again as a sparse matrix of integers.'
        )
    line = b"%"
    while line.startswith(b"%") or line.isspace():
        line = file.readline(1000)
    n_rows, n_columns, n_entries = (int(field) for field in line.split())
    return n_rows, n_columns, n_entries


def _mtx_entries(file: IO[bytes]) -> Iterator[pd.DataFrame]:
    """Read the entries; scipy's faster reader aborts the process on some damaged streams."""
    return pd.read_csv(
        file,
        sep=r"\s+",
        header=None,
        names=list(MTX_COLUMNS),
        index_col=False,
        dtype=MTX_COLUMNS,
        na_filter=False,
        chunksize=ENTRIES_PER_CHUNK,
    )
