"""Read paired RNA and protein counts from any supported file."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import h5py
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.background.ambient import AMBIENT, profile_of_droplets
from totalvi.data.background.droplets import batches_of_cells
from totalvi.data.cell_pairs import pair_modalities
from totalvi.data.columns import Columns, names_of
from totalvi.data.io.features import keep_genome, with_symbols
from totalvi.data.io.h5_zarr import read_10x_h5, read_h5ad, read_h5mu, read_zarr
from totalvi.data.io.modalities import (
    Rows,
    assemble,
    join_proteins,
    proteins_in_obsm,
    tidy_mudata,
)
from totalvi.data.io.stand_ins import require_file_itself
from totalvi.data.io.tenx import (
    cell_ranger_output,
    holds_matrix,
    layout_of,
    read_10x_folder,
    read_layout,
)
from totalvi.data.io.text_tables import Axis, Table, orient_alone, orient_pair, read_table
from totalvi.data.io.trust import reading
from totalvi.data.mosaic import as_mosaic
from totalvi.errors import ReadError, allowed, argument, did_you_mean

FORMATS = (
    ((".h5", ".hdf5", ".h5ad", ".h5mu"), "HDF5: Cell Ranger, AnnData or MuData"),
    ((".zarr",), "zarr: AnnData or MuData"),
    (("matrix.mtx", "matrix.mtx.gz"), "a Cell Ranger matrix, or the folder that holds it"),
    ((".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"), "tables of RNA and of proteins"),
)
PACKED = (".tar", ".tar.gz", ".tgz", ".zip", ".gz", ".bz2", ".xz", ".zst", ".7z")
OF_R, OF_LOOM = (".rds", ".rdata", ".rda", ".qs", ".h5seurat"), (".loom",)
ELSEWHERE = {
    OF_R: (
        'of R; export its counts as docs/r.md says (section "From R"), as 10x folders or an .h5ad file'
    ),
    OF_LOOM: "a loom file; write it as .h5ad with anndata.io.read_loom and its write_h5ad",
    (".parquet", ".feather", ".xlsx", ".xls"): (
        "a table of another format; write it as .csv, cells and features named"
    ),
}
# Repeated features are renamed, which `renamed_features` notes; repeated cells are reported by the
# checks; and files of older versions are read all the same.
SILENCED = (
    r".*names are not unique|Duplicated (obs|var)_names|Suffix used"
    r"|.* written without encoding|.* not created by"
)


class ReadOptions(NamedTuple):
    """Options of reading a file, besides the places of its counts; see `read`."""

    protein_path: str | PathLike[str] | None = None
    genome: str | None = None
    hashtags: str | Sequence[str] | None = None
    controls: str | Sequence[str] | None = None
    cells_in: Axis | None = None
    leave_out: str | Sequence[str] | None = None
    mosaic: bool | None = None

    @property
    def rows(self) -> Rows:
        """Which rows of the antibodies are something else."""
        return Rows(self.hashtags, self.controls, self.leave_out)


def read(
    path: str | PathLike[str] | None = None,
    *,
    filtered: str | PathLike[str] | None = None,
    raw: str | PathLike[str] | None = None,
    protein_path: str | PathLike[str] | None = None,
    protein_expression_obsm_key: str | None = None,
    genome: str | None = None,
    hashtags: str | Sequence[str] | None = None,
    controls: str | Sequence[str] | None = None,
    cells_in: Axis | None = None,
    leave_out: str | Sequence[str] | None = None,
    mosaic: bool | None = None,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
) -> MuData:
    """Read raw counts of RNA and proteins, without changing any file.

    Parameters
    ----------
    path
        One of

        - a Cell Ranger ``.h5`` file, matrix folder or ``outs`` folder, of version 2 or later;
        - an AnnData (``.h5ad``, ``.zarr``) with proteins in ``obsm`` or as features whose
          ``var["feature_types"]`` is "Antibody Capture";
        - a MuData (``.h5mu``, ``.zarr``);
        - a table of RNA counts (``.csv``, ``.tsv``, ``.txt``, gzipped or not).
    filtered
        Another name of ``path``, for ``read(raw=..., filtered=...)``.
    raw
        The raw matrix of all barcodes of the same run, such as ``raw_feature_bc_matrix.h5``. Each
        protein's distribution in empty droplets is then stored in ``uns["ambient"]``, and anchors the
        background of a `totalvi.Model` of these data. See `totalvi.ambient_profile`.
    protein_path
        A second file with the proteins of the same cells: a table, or any of the above except a
        MuData. Its antibodies are read, or all of its features if none is marked as antibody. By
        default the first file holds the proteins, or there are none.
    protein_expression_obsm_key
        AnnData only: the ``obsm`` entry with the proteins. By default one with a usual name, such as
        ``protein_expression`` or ``protein_counts``.
    genome
        Keep only the genes of this genome. By default the genes of all genomes are joined, and a name
        that several genomes have gets a prefix, as in ``mm10_Actb``.
    hashtags
        Which antibodies are hashtags: a list of names or a regular expression. By default those with
        names such as ``HTO_1`` or ``anti-human_Hashtag_1``. An empty list means none.
    controls
        Which antibodies are isotype controls, in the same way. By default those with names such as
        ``IgG1_control_TotalSeqB`` or ``Rat IgG2b``.
    cells_in
        Tables only: whether cells are "rows" or "columns". By default the direction that makes
        the names in both tables agree, or in which the names are barcodes.
    leave_out
        Which rows among the antibodies are not antibodies, such as totals and reads that match none;
        given in the same way. By default those with names such as ``unmapped``, ``no_match`` and
        ``total``. They form a modality "no_antibody".
    mosaic
        MuData only: whether cells of one modality alone are kept, as cells that lack the other; else
        only those of both are. None: where fewer than half of all cells are in both; see
        `totalvi.mosaic`.
    rna_modality, protein_modality
        MuData only: names of the modalities of RNA and proteins, which do not change.

    Returns
    -------
    MuData
        Those of the modalities "rna", "prot" and "hto" (hashtags) that the file has. Counts are CSR
        float32, cells x features. Repeated feature names are made unique (``TBCE``, ``TBCE-1``), and
        ``var["name_in_file"]`` keeps those of the file. ``var["gene_ids"]`` has Cell Ranger's feature
        ids, and ``prot.var["control"]`` marks isotype controls. Cell annotation is in ``obs`` and in
        the first modality's ``obs``. Features of other types, such as "CRISPR Guide Capture", form a
        modality (``crispr_guide_capture``).

    Raises
    ------
    ReadError
        If a file is missing, damaged or of an unknown format, or an option does not fit it.
    DataError
        If ``raw`` is not from the same run as the cells, or has too few empty droplets.

    Examples
    --------
    >>> import tempfile, pandas as pd
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> cells = ["AACGTTGA-1", "CCATGGTA-1", "TTGACCAG-1"]
    >>> pd.DataFrame({"CD3E": [0, 4, 1]}, index=cells).to_csv(folder / "rna.csv")
    >>> proteins = pd.DataFrame({"CD3": [3, 90, 41], "IgG1": [2, 0, 5]}, index=cells)
    >>> proteins.T.to_csv(folder / "proteins.csv")
    >>> mdata = read(folder / "rna.csv", protein_path=folder / "proteins.csv")
    >>> {name: modality.shape for name, modality in mdata.mod.items()}
    {'rna': (3, 1), 'prot': (3, 2)}
    >>> mdata["prot"].var["control"].to_dict()
    {'CD3': False, 'IgG1': True}
    """
    if path is not None and filtered is not None:
        raise ReadError("path and filtered both name the file of the cells; give one of them.")
    if path is None and filtered is None:
        raise ReadError("path is missing; give the file of the cells.")
    given = path if filtered is None else filtered
    assert given is not None
    if cells_in not in (None, "rows", "columns"):
        raise ReadError(allowed("cells_in", cells_in, ("rows", "columns")))
    columns = Columns(
        rna_modality=rna_modality,
        protein_modality=protein_modality,
        protein_expression_obsm_key=protein_expression_obsm_key,
    )
    options = ReadOptions(protein_path, genome, hashtags, controls, cells_in, leave_out, mosaic)
    mdata = _read(given, columns, options)
    if raw is not None:
        _add_ambient(mdata, given, raw, columns)
    return mdata


def _add_ambient(
    mdata: MuData, path: str | PathLike[str], raw: str | PathLike[str], columns: Columns
) -> None:
    """Store the ambient profile of the raw matrix beside the cells."""
    if columns.protein_modality not in mdata.mod:
        raise ReadError(
            f"{path} has no antibodies, of whose background raw could tell; leave out "
            f"{argument('raw')}."
        )
    names = names_of(mdata[columns.protein_modality].var_names)
    modalities = replace(columns, protein_expression_obsm_key=None)
    barcodes = _read(raw, modalities, ReadOptions())
    cells = batches_of_cells(mdata, columns)
    profile = profile_of_droplets(barcodes, cells, columns, str(raw), names)
    mdata.uns[AMBIENT] = profile.to_table()


def _read(path: str | PathLike[str], columns: Columns, options: ReadOptions) -> MuData:
    first = _existing(path)
    with _without_irrelevant_warnings():
        found = _load(first, options.genome)
        if isinstance(found, MuData):
            return _tidy(found, first, columns, options)
        protein_path, key = options.protein_path, columns.protein_expression_obsm_key
        if protein_path is None:
            where = protein_where = str(first)
            adata = orient_alone(found, options.cells_in) if isinstance(found, Table) else found
            proteins = proteins_in_obsm(adata, key, where)
        elif key is None:
            second = _existing(protein_path)
            where, protein_where = f"{first} and {second}", str(second)
            adata, proteins = _paired(found, first, second, options.cells_in)
        else:
            raise ReadError(
                f"{argument('protein_path')} and {argument('protein_expression_obsm_key')} both say "
                "where the proteins are; give one of them."
            )
        adata = _by_symbol(keep_genome(adata, options.genome, first))
        modalities = join_proteins(adata, proteins, options.rows, str(first), protein_where)
        return assemble(modalities, adata.obs, options.controls, where)


def _by_symbol(adata: AnnData) -> AnnData:
    var = with_symbols(pd.DataFrame(adata.var))
    if var is not adata.var and not var.index.equals(adata.var_names):
        adata.var = var
    return adata


def _tidy(found: MuData, path: Path, columns: Columns, options: ReadOptions) -> MuData:
    if options.protein_path is not None or columns.protein_expression_obsm_key is not None:
        raise ReadError(
            f"{path} is a MuData, which has its proteins in a modality; leave out "
            f"{argument('protein_path')} and {argument('protein_expression_obsm_key')}."
        )
    if columns.rna_modality in found.mod:
        rna = found.mod[columns.rna_modality]
        found.mod[columns.rna_modality] = _by_symbol(keep_genome(rna, options.genome, path))
    as_union = as_mosaic(found, columns, options.mosaic)
    rna, protein = columns.rna_modality, columns.protein_modality
    return tidy_mudata(as_union, options.rows, path, rna, protein)


def _paired(
    found: Table | AnnData, first: Path, second: Path, cells_in: Axis | None
) -> tuple[AnnData, AnnData]:
    """Read the file of the proteins and match its cells with those of the RNA."""
    more = _load(second, None)
    if isinstance(more, MuData):
        raise ReadError(
            f"{second} is a MuData, which may hold RNA as well; read it alone, or write its "
            "proteins to an .h5ad file."
        )
    return pair_modalities(*orient_pair(found, more, cells_in, (first, second)), (first, second))


def _existing(path: str | PathLike[str]) -> Path:
    if "://" in str(path):
        raise ReadError(f"{path} is not a file on this machine; download it and give its path.")
    found = Path(path).expanduser()
    if not found.exists():
        folder = found.parent
        if found.is_symlink():
            raise ReadError(
                f"{path} is a link to {found.readlink()}, which does not exist; fetch or mount what it "
                "leads to, or give the path of the file itself."
            )
        if not folder.is_dir():
            raise ReadError(f"{path} does not exist, nor does its folder; check the path.")
        hint = did_you_mean(found.name, sorted(p.name for p in folder.iterdir()))
        raise ReadError(f"{path} does not exist; check the name ({hint}).")
    with reading(found, "a file of counts"):
        is_empty = not any(found.iterdir()) if found.is_dir() else found.stat().st_size == 0
    if is_empty:
        raise ReadError(f"{path} is empty; copy, download or write it again.")
    return found


def _load(path: Path, genome: str | None) -> AnnData | MuData | Table:
    """Read one file or folder; its name and its first bytes give the format."""
    if path.is_dir():
        return _load_folder(path, genome)
    name = path.name.lower()
    hdf5, _, matrix, tables = (suffixes for suffixes, _ in FORMATS)
    if name.endswith(hdf5):
        return _load_hdf5(path, genome)
    if name.removesuffix(".gz").endswith(".mtx"):
        require_file_itself(path, may_be_gzip=True)
    if name.endswith(matrix):
        prefix = path.name[: name.rindex("matrix.mtx")]
        return read_10x_folder(path.parent, genome, prefix)
    if name.endswith(tables):
        return read_table(path)
    if name.removesuffix(".gz").endswith(".mtx"):
        return _load_other_matrix(path)
    for suffixes, fix in ELSEWHERE.items():
        if name.endswith(suffixes):
            raise ReadError(f"{path} is {fix}.")
    require_file_itself(path, may_be_gzip=False)
    if name.endswith(PACKED):
        raise ReadError(f"{path} is a packed file; unpack it and give the path of what was in it.")
    known = "; ".join(f"{', '.join(suffixes)} ({what})" for suffixes, what in FORMATS)
    raise ReadError(
        f'{path} has the unknown suffix "{path.suffix}"; convert it to one of these formats: {known}.'
    )


def _load_other_matrix(path: Path) -> AnnData:
    """Read a Matrix Market file of another name than Cell Ranger's, with the lists beside it."""
    found = layout_of(path.parent)
    if found is not None and found[1] == path:
        return read_layout(path.parent, *found)
    stem = path.name.removesuffix(".gz").removesuffix(".mtx").replace("matrix", "").strip("_.-")
    raise ReadError(
        f"{path} is a matrix whose features and barcodes are in files of other names; name the three "
        f"{stem or 'sample'}_matrix.mtx.gz, {stem or 'sample'}_features.tsv.gz and "
        f"{stem or 'sample'}_barcodes.tsv.gz."
    )


def _load_hdf5(path: Path, genome: str | None) -> AnnData | MuData:
    require_file_itself(path, may_be_gzip=False)
    with reading(path, "an HDF5 file"), path.open("rb") as file:
        is_hdf5 = h5py.is_hdf5(path)
        start = file.read(512)
    if not is_hdf5:
        looks = "it looks like text" if start.isascii() and b"\0" not in start else "it is not HDF5"
        raise ReadError(
            f'{path} is not what its suffix "{path.suffix}" says ({looks}); give it the suffix of '
            "its format, or copy, download or write it again."
        )
    with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
        members = set(file)
        groups = [member for member in file.values() if isinstance(member, h5py.Group)]
        is_10x = isinstance(file.get("matrix"), h5py.Group)
        is_10x = is_10x or any("barcodes" in g or "indptr" in g for g in groups)
    if "mod" in members:
        return read_h5mu(path)
    if {"obs", "var"} <= members:
        return read_h5ad(path)
    if is_10x:
        return read_10x_h5(path, genome)
    if {"assays", "cell.names"} & members:
        raise ReadError(f"{path} is {ELSEWHERE[OF_R]}.")
    if {"row_attrs", "col_attrs"} & members:
        raise ReadError(f"{path} is {ELSEWHERE[OF_LOOM]}.")
    raise ReadError(
        f"{path} is HDF5, but not of Cell Ranger, AnnData or MuData (it holds "
        f"{', '.join(sorted(members)) or 'nothing'}); write it again as one of these."
    )


def _load_folder(path: Path, genome: str | None) -> AnnData | MuData | Table:
    if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return read_zarr(path)
    if path.suffix == ".zarr":
        raise ReadError(
            f"{path} is not a zarr store (it has neither zarr.json nor .zgroup); "
            "copy, download or write it again."
        )
    if not holds_matrix(path) and layout_of(path) is None:
        output = cell_ranger_output(path)
        if output is not None:
            return _load(output, genome)
    return read_10x_folder(path, genome)


@contextmanager
def _without_irrelevant_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=SILENCED)
        yield
