"""Files as people post them who ask for help: the command line and Python find the same in them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import io, sparse

import totalvi
from totalvi.cli.main import execute
from totalvi.cli.options import OPTIONS
from totalvi.data.cell_pairs import pair_cells
from totalvi.data.columns import Columns
from totalvi.data.io.features import are_controls, with_symbols
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.panels.antibody_names import identify, matched_pairs
from totalvi.errors import DataError, Finding, ReadError
from totalvi.explorer.run_cells import open_cells
from totalvi.run.convert import convert_counts
from totalvi.run.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore")
N = 60
GENES = ["CD3E", "CD4", "CD8A", "MS4A1", "LYZ", "NKG7", *(f"RPL{i}" for i in range(14))]
IDS = [f"ENSG{i:011d}" for i in range(len(GENES))]
PROTEINS = ["CD3", "CD4", "CD8a", "CD19", "CD14", "CD56"]
RNG = np.random.default_rng(11)
RNA = RNG.poisson(2.0, (N, len(GENES))) + 1
PROT = RNG.poisson(20.0, (N, len(PROTEINS)))
BASES = ["".join(RNG.choice(list("ACGT"), 16)) for _ in range(N)]
CELLS = [f"{bases}-1" for bases in BASES]
BATCH = np.where(np.arange(N) % 2 == 0, "a", "b")


def rna_table(cells: list[str] = CELLS) -> pd.DataFrame:
    return pd.DataFrame(RNA.copy(), index=cells, columns=GENES)


def protein_table(cells: list[str] = CELLS) -> pd.DataFrame:
    return pd.DataFrame(PROT.copy(), index=cells, columns=PROTEINS)


def rna_anndata(var: pd.DataFrame | None = None) -> AnnData:
    obs = pd.DataFrame({"batch": BATCH}, index=CELLS)
    var = pd.DataFrame(index=GENES) if var is None else var
    return AnnData(sparse.csr_matrix(RNA.astype(np.float32)), obs=obs, var=var)


def protein_anndata() -> AnnData:
    obs, var = pd.DataFrame(index=CELLS), pd.DataFrame(index=PROTEINS)
    return AnnData(PROT.astype(np.float32), obs=obs, var=var)


def joint_anndata() -> AnnData:
    counts = sparse.csr_matrix(np.hstack([RNA, PROT]).astype(np.float32))
    types = ["Gene Expression"] * len(GENES) + ["Antibody Capture"] * len(PROTEINS)
    names = [*GENES, *(f"{name}_TotalSeqC" for name in PROTEINS)]
    return AnnData(counts, obs=pd.DataFrame(index=CELLS),
                   var=pd.DataFrame({"feature_types": types}, index=names))  # fmt: skip


def with_proteins(**obsm: Any) -> AnnData:
    adata = rna_anndata()
    for key, values in (obsm or {"protein_expression": protein_table()}).items():
        adata.obsm[key] = values
    return adata


def joined(**others: AnnData) -> MuData:
    with mudata.set_options(pull_on_update=False):
        return MuData({"rna": rna_anndata(), "prot": protein_anndata(), **others})


def check_counts(mdata: MuData) -> None:
    np.testing.assert_array_equal(mdata["rna"].to_df().to_numpy(), RNA)
    np.testing.assert_array_equal(mdata["prot"].to_df().to_numpy(), PROT)


def found_both_ways(
    capsys: pytest.CaptureFixture[str], path: Path, **arguments: Any
) -> list[Finding]:
    """Return what the checks find, which is the same in Python and by `totalvi check`."""
    options = []
    for name, value in arguments.items():
        options += [OPTIONS[name], str(value)]
    capsys.readouterr()
    execute(["check", str(path), *options, "--json"])
    said = json.loads(capsys.readouterr().out)["findings"]
    found = totalvi.check(path, **arguments)
    assert [(f["severity"], f["code"]) for f in said] == [(f.severity, f.code) for f in found]
    return found


def message(found: list[Finding], code: str) -> str:
    (said,) = (finding.message for finding in found if finding.code == code)
    return said


def refused_both_ways(
    capsys: pytest.CaptureFixture[str], path: Path, words: str, **arguments: Any
) -> None:
    """Check that both ways refuse a file with these words."""
    with pytest.raises(ReadError, match=words):
        read(path, **arguments)
    options = [word for name, value in arguments.items() for word in (OPTIONS[name], str(value))]
    capsys.readouterr()
    assert execute(["check", str(path), *options]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: ")


@pytest.fixture
def tables(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def write(
        rna: pd.DataFrame | None = None, protein: pd.DataFrame | None = None
    ) -> tuple[Path, Path]:
        (rna_table() if rna is None else rna).to_csv(tmp_path / "rna.csv")
        (protein_table() if protein is None else protein).to_csv(tmp_path / "protein.csv")
        return tmp_path / "rna.csv", tmp_path / "protein.csv"

    return write


Tables = Callable[..., tuple[Path, Path]]

# ------------------------------------------------------------------- 1. rows that are no antibodies


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", ["Unnamed: 0", "index", "X", "V1", "level_0"])
@pytest.mark.parametrize("kind", ["rna", "protein"])
def test_an_index_that_was_written_twice_is_no_feature(
    tables: Tables, capsys: pytest.CaptureFixture[str], kind: str, name: str, start: int
) -> None:
    """As pandas writes it that read a table without index_col, and R with row.names."""
    given = {"rna": rna_table(), "protein": protein_table()}
    given[kind].insert(0, name, range(start, start + N))
    rna, protein = tables(**given)
    check_counts(read(rna, protein_path=protein))
    said = message(found_both_ways(capsys, rna, protein_path=protein), "row_numbers")
    assert f'"{name}"' in said
    given[kind][name] += RNG.integers(2, 9, N)
    rna, protein = tables(**given)
    assert name in read(rna, protein_path=protein)["rna" if kind == "rna" else "prot"].var_names


@pytest.mark.parametrize(
    "name", ["unmapped-1", "ADT-unmapped", "unmapped.1", "ADT_no_match-TotalSeqB", "prot_unmapped"]
)
def test_reads_of_no_antibody_under_names_that_tools_changed(tables: Tables, name: str) -> None:
    rna, protein = tables(protein=protein_table().assign(**{name: RNG.poisson(9, N)}))
    mdata = read(rna, protein_path=protein)
    check_counts(mdata)
    assert mdata["no_antibody"].var_names.tolist() == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("total_counts", "n_genes_by_counts", "percent.mt", "pct_counts_mt", "nCount_RNA", "nUMI"),
        *("__no_feature", "__ambiguous", "N_multimapping", "N_noFeature", "mito_frac", "unmapped"),
    ],
)
def test_metrics_of_cells_among_the_genes_are_warned_of(
    tables: Tables, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rna, protein = tables(rna_table().assign(**{name: RNG.poisson(400, N)}))
    found = found_both_ways(capsys, rna, protein_path=protein)
    assert f'"{name}"' in message(found, "rna_no_gene")


def test_genes_are_no_metrics(tables: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Cd4", "mt-Nd1", "mt_co1", "si:ch211-1", "unc13a", "NOTCH1", "NUP62", "NULL1", "UNG"]
    named = rna_table().set_axis([*names, *GENES[len(names) :]], axis=1)
    rna, protein = tables(named)
    codes = [f.code for f in found_both_ways(capsys, rna, protein_path=protein)]
    assert "rna_no_gene" not in codes


@pytest.mark.parametrize(
    "name", ["Isotpye_control", "isotypCtrl", "IsoytpeCtrl", "isotyp.ctrl", "Istoype-control"]
)
def test_misspelt_isotype_controls(name: str) -> None:
    assert are_controls(pd.DataFrame(index=[name, "Isotope", "CD3"]), None, "x").tolist() == [
        True, False, False,
    ]  # fmt: skip


# ------------------------------------------------------------ 2. what is used and what is set apart


@pytest.mark.parametrize(
    ("make", "apart"),
    [
        (lambda: with_proteins(protein_expression=protein_table(), protein_counts=PROT * 2),
         'obsm["protein_counts"]'),
        (lambda: joined(airr=AnnData(obs=pd.DataFrame({"clone": "c"}, index=CELLS))),
         'modality "airr" (0 features)'),
        (lambda: joined(airr=AnnData(obs=pd.DataFrame({"clone": "c"}, index=CELLS[:9]))),
         'modality "airr" (0 features)'),
        (lambda: joined(atac=AnnData(np.ones((N, 2)), obs=pd.DataFrame(index=CELLS))),
         'modality "atac" (2 features'),
        (lambda: with_raw(with_proteins()), 'raw of "rna"'),
    ],
)  # fmt: skip
def test_what_is_not_used_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[], AnnData | MuData],
    apart: str,
) -> None:
    data = make()
    path = tmp_path / ("cells.h5mu" if isinstance(data, MuData) else "cells.h5ad")
    data.write(path)
    check_counts(read(path))
    said = message(found_both_ways(capsys, path), "contents")
    assert apart in said.partition("set apart: ")[2]


def with_raw(adata: AnnData) -> AnnData:
    adata.raw = adata.copy()
    return adata


# --------------------------------------------------------------------------- 3. zeros of a whole batch


@pytest.mark.parametrize("value", [-1, -9, -99])
def test_numbers_that_stand_for_not_measured_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: int
) -> None:
    protein = protein_table()
    protein.loc[BATCH == "a", "CD4"] = value
    path = tmp_path / "cells.h5ad"
    with_proteins(protein_expression=protein).write_h5ad(path)
    said = message(found_both_ways(capsys, path, batch_key="batch"), "protein_negative")
    assert f"make {value} NaN" in said
    protein = protein.astype(float).replace(value, np.nan)
    with_proteins(protein_expression=protein).write_h5ad(path)
    found = found_both_ways(capsys, path, batch_key="batch")
    assert [f.code for f in found if f.severity == "error"] == []
    assert '"CD4"' in message(found, "protein_unmeasured")


# ------------------------------------------------------------------------------ 4. sound files are read


@pytest.mark.parametrize("place", ["X/data", "obsm/protein_expression/CD4"])
def test_an_unknown_compression_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """Zstandard, as anndata writes it with the help of a package that is not needed here."""
    path = tmp_path / "cells.h5ad"
    with_proteins().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        values, attributes = file[place][...], dict(file[place].attrs)
        del file[place]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((len(values),))
        created.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        group, _, name = place.rpartition("/")
        space, kind = h5py.h5s.create_simple(values.shape), h5py.h5t.py_create(values.dtype)
        made = h5py.h5d.create(file[group].id, name.encode(), kind, space, created)
        made.write_direct_chunk((0,), values.tobytes(), 0)
        h5py.Dataset(made).attrs.update(attributes)
    with pytest.raises(ReadError) as caught:
        read(path)
    assert "damaged" not in str(caught.value)
    refused_both_ways(capsys, path, "cannot be read")


# ------------------------------------------------------------------------------ 5. options of reading


@pytest.mark.parametrize(
    ("write", "keys", "options"),
    [
        (lambda: with_proteins(X_adt=protein_table()),
         {"protein_expression_obsm_key": "X_adt"}, {}),
        (lambda: with_proteins(protein_expression=protein_table().assign(tagA=1, tagB=2)),
         {}, {"hashtags": "^tag"}),
        (lambda: with_proteins(protein_expression=protein_table().assign(rest=5)),
         {}, {"leave_out": "^rest$"}),
        (lambda: MuData({"gex": rna_anndata(), "ab": protein_anndata()}),
         {"rna_modality": "gex", "protein_modality": "ab"}, {}),
    ],
)  # fmt: skip
def test_the_explorer_reads_as_other_commands_do(
    tmp_path: Path,
    write: Callable[[], AnnData | MuData],
    keys: dict[str, str],
    options: dict[str, Any],
) -> None:
    data = write()
    path = tmp_path / ("cells.h5mu" if isinstance(data, MuData) else "cells.h5ad")
    data.write(path)
    cells = open_cells(path, (Columns(**keys), ReadOptions(**options), None))
    assert list(cells.protein_names) == PROTEINS
    np.testing.assert_array_equal(cells.values("protein_raw", "CD14"), protein_table()["CD14"])


def test_the_explorer_takes_no_options_of_reading_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ReadError, match="leave out the options of reading"):
        open_cells(tmp_path / "run", (Columns(rna_layer="counts"), ReadOptions(), None))


def test_the_explorer_takes_a_folder_with_a_matrix(tmp_path: Path) -> None:
    lists(tmp_path / "mex", np.hstack([RNA, PROT]).T, [*GENES, *PROTEINS], CELLS,
          ["Gene Expression"] * len(GENES) + ["Antibody Capture"] * len(PROTEINS))  # fmt: skip
    assert list(open_cells(tmp_path / "mex").protein_names) == PROTEINS


# ------------------------------------------------------------------ 6. lists of cells that nearly agree


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("run_{}x", "{}-1"),
        ("possorted_genome_bam_XY12:{}x", "{}-1"),
        ("s1_{}-1", "{}-1_1"),
        ("{}-1-0", "{}-1"),
        ("{}-1-sampleA", "sampleA_{}"),
        ('"{}-1"', "{}-1"),
        (" {}-1", "{}-1 "),
    ],
)
def test_cells_that_velocyto_scanpy_and_seurat_named(
    tables: Tables, capsys: pytest.CaptureFixture[str], first: str, second: str
) -> None:
    order = RNG.permutation(N)
    given = protein_table([second.format(bases) for bases in BASES]).iloc[order]
    rna, protein = tables(rna_table([first.format(bases) for bases in BASES]), given)
    check_counts(read(rna, protein_path=protein))
    found = found_both_ways(capsys, rna, protein_path=protein)
    assert [f.code for f in found if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("CELL_{:03d}", "cell.{:03d}"),
        ("P1_A{:02d}", "P1-A{:02d}"),
        ("bc{0:02d}_07_11", "bc{0:02d}_07_11__s1"),
        ("plate 1 well {}", "plate1_well{}"),
    ],
)
@pytest.mark.parametrize("by_genes", [False, True])
def test_cells_without_barcodes(tables: Tables, first: str, second: str, by_genes: bool) -> None:
    """Of plates and of Parse; that a gene and its protein share a name makes no cells of them."""
    order = RNG.permutation(N)
    given = protein_table([second.format(i) for i in range(N)]).iloc[order]
    if by_genes:
        given.columns = GENES[: len(PROTEINS)]
    rna, protein = tables(rna_table([first.format(i) for i in range(N)]), given)
    check_counts(read(rna, protein_path=protein))


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("suffix", [".csv", ".h5ad"])
def test_numbered_cells_agree_by_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, start: int
) -> None:
    def write(table: pd.DataFrame, name: str) -> Path:
        table = table.set_axis([str(i) for i in range(start, start + len(table))])
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".csv":
            table.to_csv(path)
        else:
            AnnData(table.astype(np.float32)).write_h5ad(path)
        return path

    options = {"cells_in": "rows"} if suffix == ".csv" else {}
    rna, protein = write(rna_table(), "rna"), write(protein_table()[:-4], "protein")
    refused_both_ways(capsys, rna, "only numbered, 60 and 56", protein_path=protein, **options)
    protein = write(protein_table(), "protein")
    check_counts(read(rna, protein_path=protein, **options))
    found = found_both_ways(capsys, rna, protein_path=protein, **options)
    assert "in their order" in message(found, "cells_numbered")


@pytest.mark.parametrize(
    ("first", "second"),
    [("donor1_", "donor2_"), ("cell_", "drop_"), ("s1:", "s2:"), ("a#1-", "b#1-")],
)
def test_cells_numbered_by_sample_agree_by_chance(first: str, second: str) -> None:
    names = [pd.Index([f"{prefix}{i}" for i in range(150)]) for prefix in (first, second)]
    assert not pair_cells(*names).is_enough
    assert pair_cells(names[0], names[0][::-1]).is_enough


def test_numbers_that_tell_cells_apart_are_names() -> None:
    pairs = pair_cells(pd.Index(["7", "12", "30"]), pd.Index(["30", "7"]))
    assert pairs.second.tolist() == [1, 0]


# --------------------------------------------------------------------------------------- 7. convert


def of_unsigned_columns(folder: Path) -> tuple[Path, Columns]:
    adata = with_proteins()
    adata.layers["counts"] = sparse.csc_matrix(RNA.astype(np.uint16))
    adata.X = np.log1p(RNA).astype(np.float32)
    adata.write_h5ad(folder / "x.h5ad")
    return folder / "x.h5ad", Columns(rna_layer="counts")


def of_other_modalities(folder: Path) -> tuple[Path, Columns]:
    mdata = joined(atac=AnnData(np.ones((N, 2)), obs=pd.DataFrame(index=CELLS)))
    mdata["rna"].obsp["near"] = sparse.eye_array(N, format="csr")
    mdata["rna"].varm["PCs"] = np.zeros((len(GENES), 3))
    mdata.write(folder / "x.h5mu")
    return folder / "x.h5mu", Columns()


def of_raw_with_antibodies(folder: Path) -> tuple[Path, Columns]:
    joint_with_raw().write_h5ad(folder / "x.h5ad")
    return folder / "x.h5ad", Columns(rna_layer="raw", protein_layer="raw")


def of_lists_from_r(folder: Path) -> tuple[Path, Columns]:
    lists(folder / "x", np.hstack([RNA, PROT]).T, [*GENES, *(f"{p}_TotalSeqB" for p in PROTEINS)],
          CELLS)  # fmt: skip
    return folder / "x", Columns()


def of_two_obsm(folder: Path) -> tuple[Path, Columns]:
    with_proteins(adt=PROT * 3, mine=protein_table()).write_h5ad(folder / "x.h5ad")
    return folder / "x.h5ad", Columns(protein_expression_obsm_key="mine")


@pytest.mark.parametrize(
    "write",
    [
        of_unsigned_columns,
        of_other_modalities,
        of_raw_with_antibodies,
        of_lists_from_r,
        of_two_obsm,
    ],
)
def test_convert_writes_what_was_counted(
    tmp_path: Path, write: Callable[[Path], tuple[Path, Columns]]
) -> None:
    path, keys = write(tmp_path)
    check_counts(mudata.read_zarr(convert_counts(path, tmp_path / "cells.zarr", keys=keys)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: setattr(a, "X", a.X * 0.5), "normalised"),
        (lambda a: a.obsm["protein_expression"].__imul__(-1), "negative"),
        (lambda a: a.obsm.__setitem__("protein_expression", np.log1p(protein_table())), "CLR"),
        (lambda a: a.obsm.__setitem__("protein_expression", protein_table() / 3), "fractional"),
        (lambda a: setattr(a, "X", a.X.toarray() - RNA.mean(axis=0)), "scaled"),
    ],
)
def test_convert_refuses_what_others_refuse(
    tmp_path: Path, spoil: Callable[[AnnData], Any], words: str
) -> None:
    adata = with_proteins()
    spoil(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=words):
        convert_counts(tmp_path / "cells.h5ad", tmp_path / "cells.zarr")
    assert not (tmp_path / "cells.zarr").exists()
    out = str(tmp_path / "cells.zarr")
    assert execute(["convert", str(tmp_path / "cells.h5ad"), out]) == 2


# ------------------------------------------------------------ 8. no proteins at all, and where they are


def genes_alone() -> AnnData:
    adata = rna_anndata()
    adata.var["feature_types"] = "Gene Expression"
    return adata


def antibodies_alone() -> AnnData:
    adata = protein_anndata()
    adata.var["feature_types"] = "Antibody Capture"
    return adata


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (genes_alone, "gex_only=False"),
        (antibodies_alone, "There is no RNA, only 6 proteins"),
        (lambda: MuData({"prot": protein_anndata()}), "There is no RNA, only 6 proteins"),
        (lambda: MuData({"rna": rna_anndata(), "prot": protein_anndata()[:, :0].copy()}),
         "give the file that has both"),
        (lambda: with_proteins(protein=np.log1p(PROT)), "CLR-normalised"),
        (lambda: with_proteins(Surface=np.log1p(PROT), antibody_clr=np.log1p(PROT)),
         'obsm["antibody_clr"] is named as if it held them'),
    ],
)  # fmt: skip
def test_a_file_without_proteins_is_told_what_it_is(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[], AnnData | MuData],
    words: str,
) -> None:
    data = make()
    path = tmp_path / ("cells.h5mu" if isinstance(data, MuData) else "cells.h5ad")
    data.write(path)
    found = found_both_ways(capsys, path)
    said = " ".join(f.message for f in found if f.severity == "error")
    assert words in said
    if path.suffix == ".h5ad":
        assert "MuData" not in said


def test_hashtags_alone_are_no_proteins(tables: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    tags = pd.DataFrame(PROT[:, :2], index=CELLS, columns=["HTO1", "HTO2"])
    rna, path = tables(protein=tags)
    found = found_both_ways(capsys, rna, protein_path=path)
    assert 'only hashtags ("HTO1", "HTO2")' in found[0].message
    assert "protein_modality" not in found[0].message


# --------------------------------------------------------------- 9. types, raw, names of genes


@pytest.mark.parametrize(
    "column",
    ["external_gene_name", "gene", "Gene", "genes", "name", "features", "geneName", "gene-name",
     "original_gene_symbols", "mgi_symbol", "Symbols"],
)  # fmt: skip
def test_symbols_in_columns_of_any_name(tmp_path: Path, column: str) -> None:
    adata = rna_anndata(pd.DataFrame({"chromosome": "1", column: GENES}, index=IDS))
    adata.obsm["protein_expression"] = protein_table()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    mdata = read(tmp_path / "cells.h5ad")
    assert mdata["rna"].var_names.tolist() == GENES
    assert mdata["rna"].var["gene_ids"].tolist() == IDS


@pytest.mark.parametrize("column", ["gene", "name", "features"])
def test_ids_in_such_columns_are_no_symbols(column: str) -> None:
    var = pd.DataFrame({column: IDS, "symbol": GENES}, index=IDS)
    assert with_symbols(var).index.tolist() == GENES
    assert with_symbols(var[[column]]).index.tolist() == IDS
    assert with_symbols(var.assign(gene="protein_coding")).index.tolist() == GENES


@pytest.mark.parametrize(
    "form",
    ["{id}_{name}", "{name}_{id}", "{id}|{name}", "{id}.7_{name}", "{id}-{name}", "{name};{id}.2"],
)
def test_ids_and_symbols_in_one_name(tmp_path: Path, form: str) -> None:
    names = [form.format(id=one, name=name) for one, name in zip(IDS, GENES, strict=True)]
    adata = rna_anndata(pd.DataFrame(index=names))
    adata.obsm["protein_expression"] = protein_table()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    mdata = read(tmp_path / "cells.h5ad")
    assert mdata["rna"].var_names.tolist() == GENES
    assert mdata["rna"].var["gene_ids"].tolist() == names


@pytest.mark.parametrize("prefix", ["GRCh38-", "hg38-", "GRCh38.", "GRCh38:", "mm10---", "hg19_"])
def test_pairs_of_genes_with_the_prefix_of_their_genome(prefix: str) -> None:
    """Seurat makes a dash of the underscore."""
    pairs = matched_pairs(PROTEINS, [f"{prefix}{gene}" for gene in GENES])
    assert ("CD8a", f"{prefix}CD8A") in pairs


def joint_with_raw() -> AnnData:
    adata = with_raw(joint_anndata())
    adata = adata[:, [0, 1, 2, *range(len(GENES), adata.n_vars)]].copy()
    adata.X = np.log1p(adata.X.toarray())
    return adata


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_raw_of_genes_and_antibodies_is_split_as_x_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    adata = joint_with_raw()
    path = tmp_path / f"cells{suffix}"
    adata.write_h5ad(path) if suffix == ".h5ad" else adata.write_zarr(path)
    said = " ".join(f.message for f in found_both_ways(capsys, path))
    assert 'rna_layer="raw"' in said
    assert 'protein_layer="raw"' in said
    both = {"rna_layer": "raw", "protein_layer": "raw"}
    found = found_both_ways(capsys, path, **both)
    assert [f.code for f in found if f.severity == "error"] == []
    check_counts(prepare(read(path), Columns(**both)).mdata)
    in_memory = totalvi.Model(adata, n_hidden=8, n_latent=2, **both)
    assert list(in_memory.schema.gene_names) == GENES
    np.testing.assert_array_equal(in_memory._training_data().protein.read(), PROT)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("from_file", [True, False])
def test_raw_that_modalities_took_with_them(tmp_path: Path, typed: bool, from_file: bool) -> None:
    """A subset of an AnnData keeps all of its raw, so that the RNA's holds antibodies as well."""
    adata = joint_with_raw()
    if not typed:
        del adata.raw.var["feature_types"]
    is_gene = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    with mudata.set_options(pull_on_update=False):
        mdata = MuData({"rna": adata[:, is_gene].copy(), "prot": adata[:, ~is_gene].copy()})
    if from_file:
        mdata.write(tmp_path / "cells.h5mu")
        mdata = read(tmp_path / "cells.h5mu")
    both = {"rna_layer": "raw", "protein_layer": "raw"}
    check_counts(prepare(mdata, Columns(**both)).mdata)
    model = totalvi.Model(mdata, n_hidden=8, n_latent=2, **both)
    assert list(model.schema.gene_names) == GENES
    np.testing.assert_array_equal(model._training_data().protein.read(), PROT)


def test_raw_of_the_proteins_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after prot.raw = prot and a transform of its X."""
    mdata = joined()
    mdata["prot"].raw = mdata["prot"].copy()
    mdata["prot"].X = np.log1p(np.asarray(mdata["prot"].X))
    path = tmp_path / "cells.h5mu"
    mdata.write(path)
    said = " ".join(f.message for f in found_both_ways(capsys, path))
    assert 'protein_layer="raw"' in said
    assert "contents" in [f.code for f in found_both_ways(capsys, path, protein_layer="raw")]
    for data in (mdata, read(path)):
        check_counts(prepare(data, Columns(protein_layer="raw")).mdata)
    store = convert_counts(path, tmp_path / "c.zarr", keys=Columns(protein_layer="raw"))
    check_counts(mudata.read_zarr(store))


# ------------------------------------------------------------------ 10. folders and tables of others


def lists(
    folder: Path,
    counts: np.ndarray,
    features: list[str],
    cells: list[str],
    types: list[str] | None = None,
    form: Callable[[list[str]], str] = lambda names: "".join(f"{name}\n" for name in names),
) -> None:
    """Write a matrix with its lists, each as ``form`` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    io.mmwrite(str(folder / "matrix.mtx"), sparse.coo_matrix(counts.astype(int)), field="integer")
    if types is not None:
        features = ["\t".join(row) for row in zip(features, features, types, strict=True)]
    (folder / "genes.tsv").write_text(form(features))
    (folder / "barcodes.tsv").write_text(form(cells))


def of_write_table(names: list[str]) -> str:
    return '"x"\n' + "".join(f'"{i + 1}" "{name}"\n' for i, name in enumerate(names))


def with_head(names: list[str]) -> str:
    return ("barcode" if names[0] in CELLS else "gene_id") + "\n" + "\n".join(names) + "\n"


def with_quotes(names: list[str]) -> str:
    return "".join(f'"{name}"\n' for name in names)


def with_windows_ends(names: list[str]) -> str:
    return "".join(f"{name}\r\n" for name in names)


def with_quotes_and_head(names: list[str]) -> str:
    return '"V1"\n' + with_quotes(names)


@pytest.mark.parametrize(
    "form", [of_write_table, with_head, with_quotes, with_windows_ends, with_quotes_and_head]
)
@pytest.mark.parametrize("turned", [False, True])
def test_lists_and_matrices_that_r_and_people_wrote(
    tmp_path: Path, tables: Tables, form: Callable[[list[str]], str], turned: bool
) -> None:
    rna, _ = tables()
    lists(tmp_path / "adt", PROT if turned else PROT.T, PROTEINS, CELLS, form=form)
    mdata = read(rna, protein_path=tmp_path / "adt")
    check_counts(mdata)
    assert mdata["prot"].var_names.tolist() == PROTEINS
    assert mdata.obs_names.tolist() == CELLS


def test_lists_under_each_others_name_are_told(tmp_path: Path, tables: Tables) -> None:
    """Turned, the matrix would fit them, with genes as cells."""
    rna, _ = tables()
    lists(tmp_path / "adt", PROT.T, CELLS, PROTEINS)
    with pytest.raises(ReadError, match="name the files for what they hold"):
        read(rna, protein_path=tmp_path / "adt")


@pytest.mark.parametrize(
    "head", ["# made by a script\n", "#one, two\n# three\n", "##x\n#y\n", "# a b c\n##\n"]
)
def test_tables_with_comments_of_one_mark(tables: Tables, head: str) -> None:
    rna, protein = tables()
    protein.write_text(head + protein.read_text())
    check_counts(read(rna, protein_path=protein))


def test_a_head_that_begins_with_the_mark_of_comments(tables: Tables) -> None:
    rna, protein = tables()
    protein.write_text("#cell" + protein.read_text())
    check_counts(read(rna, protein_path=protein))


def long_table(folder: Path) -> tuple[Path, str]:
    table = protein_table().reset_index().melt("index", var_name="antibody", value_name="count")
    table.to_csv(folder / "long.csv", index=False)
    return folder / "long.csv", "each line is one count"


def of_alevin(folder: Path) -> tuple[Path, str]:
    place = folder / "alevin"
    place.mkdir()
    (place / "quants_mat.gz").write_bytes(gzip.compress(b"\0" * 400))
    (place / "quants_mat_rows.txt").write_text("\n".join(CELLS))
    return folder / "alevin", "dumpMtx"


def of_starsolo_em(folder: Path) -> tuple[Path, str]:
    lists(folder / "em", PROT.T, PROTEINS, CELLS)
    (folder / "em" / "matrix.mtx").rename(folder / "em" / "UniqueAndMult-EM.mtx")
    return folder / "em", "UniqueAndMult-EM.mtx"


def of_raw_alone(folder: Path) -> tuple[Path, str]:
    lists(folder / "outs" / "raw_feature_bc_matrix", PROT.T, PROTEINS, CELLS)
    return folder / "outs", "matrix of all barcodes"


@pytest.mark.parametrize("write", [long_table, of_alevin, of_starsolo_em, of_raw_alone])
def test_what_cannot_be_read_is_told_what_to_give(
    tmp_path: Path,
    tables: Tables,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], tuple[Path, str]],
) -> None:
    path, words = write(tmp_path)
    rna, _ = tables()
    refused_both_ways(capsys, rna, words, protein_path=path)


# ------------------------------------------------------------------ 11. results keep what the input had


def markers_of_scanpy(adata: AnnData) -> None:
    names = np.array([("CD4", "LYZ")] * 3, dtype=[("a", "U10"), ("b", "U10")])
    adata.uns["rank_genes_groups"] = {"names": names, "params": {"use_raw": True}}


def logarithm_of_scanpy(adata: AnnData) -> None:
    adata.uns["log1p"] = {"base": None}


def slash_in_a_name(adata: AnnData) -> None:
    adata.obs["CD4/CD8 ratio"] = np.linspace(0, 1, N)


def frame_of_texts(adata: AnnData) -> None:
    adata.obsm["frame"] = pd.DataFrame({"kind": pd.Categorical(BATCH)}, index=CELLS)


def missing_texts(adata: AnnData) -> None:
    adata.obs["note"] = pd.Series(["x", None] * (N // 2), index=CELLS, dtype=object)


@pytest.mark.parametrize(
    "add",
    [markers_of_scanpy, logarithm_of_scanpy, slash_in_a_name, frame_of_texts, missing_texts],
)
def test_results_keep_what_scanpy_leaves(tmp_path: Path, add: Callable[[AnnData], None]) -> None:
    from totalvi.run.results import ResultsFile

    adata = with_proteins()
    add(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    given = read(tmp_path / "cells.h5ad")
    ResultsFile(tmp_path, on_disk=False).write_counts(prepare(given, Columns(), n_genes=10).mdata)
    kept = mudata.read_h5mu(tmp_path / "results.h5mu")
    assert set(kept["rna"].uns) >= set(adata.uns)
    assert set(kept["rna"].obsm) >= set(adata.obsm) - {"protein_expression"}
    for name in adata.obs:
        assert kept.obs[name].astype(str).tolist() == given.obs[name].astype(str).tolist()


# -------------------------------------------------------------------------- 12. what is no sound count


@pytest.mark.parametrize("form", ["csv", "h5ad", "obsm", "h5mu"])
def test_rna_given_as_proteins_is_an_error(
    tmp_path: Path, tables: Tables, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    arguments: dict[str, Any] = {}
    if form == "csv":
        path, _ = tables()
        arguments["protein_path"] = path
    elif form == "h5ad":
        path = tmp_path / "rna.h5ad"
        genes_alone().write_h5ad(path)
        arguments["protein_path"] = path
    elif form == "obsm":
        path = tmp_path / "cells.h5ad"
        with_proteins(protein_expression=rna_table()).write_h5ad(path)
    else:
        path = tmp_path / "cells.h5mu"
        with mudata.set_options(pull_on_update=False):
            MuData({"rna": rna_anndata(), "prot": rna_anndata()}).write(path)
    said = message(found_both_ways(capsys, path, **arguments), "protein_is_rna")
    assert "holds the counts of" in said


def test_antibodies_named_as_their_genes_are_no_rna(
    tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    named = protein_table().set_axis(["CD3E", "CD4", "CD8A", "MS4A1", "LYZ", "NKG7"], axis=1)
    rna, protein = tables(protein=named)
    found = found_both_ways(capsys, rna, protein_path=protein)
    assert [f.code for f in found if f.severity == "error"] == []


@pytest.mark.parametrize("form", ["csv", "h5mu"])
def test_rna_and_proteins_in_each_others_place_are_warned_of(
    tmp_path: Path, tables: Tables, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    arguments: dict[str, Any] = {}
    if form == "csv":
        given, path = tables()
        arguments["protein_path"] = given
    else:
        path = tmp_path / "cells.h5mu"
        with mudata.set_options(pull_on_update=False):
            MuData({"rna": protein_anndata(), "prot": rna_anndata()}).write(path)
    said = message(found_both_ways(capsys, path, **arguments), "modalities_swapped")
    assert "fewer genes (6) than proteins (20)" in said


def test_a_panel_larger_than_the_chosen_genes_is_not_swapped() -> None:
    protein = protein_anndata()
    mdata = MuData({"rna": rna_anndata()[:, :4].copy(), "prot": protein})
    assert "modalities_swapped" not in [finding.code for finding in totalvi.check(mdata)]


# -------------------------------------------------------------------------- 13. coming from scvi-tools


def test_proteins_renamed_as_the_tutorial_does_are_told() -> None:
    """The tutorial cuts _TotalSeqB off the names after the fit, and then loads the model again."""
    mdata = joined()
    mdata["prot"].var_names = [f"{name}_TotalSeqB" for name in PROTEINS]
    model = totalvi.Model(mdata, n_hidden=8, n_latent=2)
    mdata["prot"].var_names = PROTEINS
    with pytest.raises(DataError, match=r'the model\'s names, as "CD3_TotalSeqB" to "CD3"'):
        model._describe(mdata)
    mdata["prot"].var_names = [f"other {i}" for i in range(len(PROTEINS))]
    with pytest.raises(DataError, match="add them"):
        model._describe(mdata)


@pytest.mark.parametrize(
    ("in_r", "in_file"),
    [
        *(("TIM.3", "TIM-3"), ("TIM.1", "TIM-1"), ("PD.1", "PD-1"), ("LAG.3", "LAG-3")),
        *(("CTLA.4", "CTLA-4"), ("B7.2", "B7-2"), ("Siglec.8", "Siglec-8"), ("CX3CR1.1", "CX3CR1")),
        *(("CD8a.1", "CD8a"), ("CD3_AB", "CD3"), ("TCR-Va7point2", "TCR Va7.2"), ("HuCD3", "CD3")),
    ],
)
def test_names_that_r_changed(in_r: str, in_file: str) -> None:
    """R makes ``.`` of ``-``, and adds ``.1`` to a repeated name: TIM.1 and TIM.3 stay apart."""
    assert identify(in_r).key == identify(in_file).key


def test_names_that_r_changed_stay_apart() -> None:
    names = ["TIM.1", "TIM.3", "Siglec.7", "Siglec.8", "B7.1", "B7.2", "Notch.1", "Notch.2", "PD.1"]
    assert len({identify(name).key for name in names}) == len(names)
