"""Every command that reads counts has the same options for it, and its messages name these."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from anndata import AnnData
from mudata import MuData

import totalvi
from totalvi.cli.main import app, execute
from totalvi.cli.options import unmeasured_proteins
from totalvi.errors import ReadError

pytestmark = pytest.mark.filterwarnings("ignore")
READERS = ["check", "run", "train", "convert", "map", "impute", "denoise", "de", "gate", "explore"]
OPTIONS = {
    *("--protein", "--genome", "--hashtags", "--controls", "--leave-out", "--cells-in"),
    *("--rna-modality", "--protein-modality", "--rna-layer", "--protein-layer", "--protein-obsm"),
    *("--unmeasured", "--mosaic"),
}

TEXT_BEHIND = {"and", "or", "if", "with"}  # an option without a value


def options_of(command: str) -> set[str]:
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return {option for parameter in found.params for option in parameter.opts}


@pytest.mark.parametrize("command", READERS)
def test_every_command_that_reads_has_the_options_of_reading(command: str) -> None:
    assert options_of(command) >= OPTIONS


def anndata_of(mdata: MuData, **obsm: pd.DataFrame) -> AnnData:
    rna = mdata["rna"].copy()
    rna.obs["batch"] = mdata.obs["batch"].to_numpy()
    for key, values in obsm.items():
        rna.obsm[key] = values
    return rna


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted model, and files whose counts lie where no command looks by itself."""
    folder = tmp_path_factory.mktemp("reading")
    cells = totalvi.simulate(n_cells=150, n_genes=60, n_proteins=6, n_batches=2, seed=2)
    cells.write(folder / "cells.h5mu")
    assert (
        execute(["train", str(folder / "cells.h5mu"), "-o", str(folder / "m"), "--epochs", "2"])
        == 0
    )
    table = cells["prot"].to_df()
    hidden = anndata_of(cells, X_adt=table)
    hidden.write_h5ad(folder / "obsm.h5ad")
    log = anndata_of(cells, protein_expression=table)
    log.layers["counts"] = log.X.copy()
    log.X = np.log1p(log.X)
    log.write_h5ad(folder / "layer.h5ad")
    raw = anndata_of(cells, protein_expression=table)
    raw.raw = raw.copy()
    raw.X = np.log1p(raw.X)
    raw.write_h5ad(folder / "raw.h5ad")
    padded = table.copy()
    padded.loc[
        (cells.obs["batch"] == cells.obs["batch"].iloc[0]).to_numpy(), padded.columns[:2]
    ] = 0
    anndata_of(cells, protein_expression=padded).write_h5ad(folder / "padded.h5ad")
    scaled = cells.copy()
    scaled["prot"].layers["counts"] = scaled["prot"].X.copy()
    scaled["prot"].X = np.asarray(scaled["prot"].X) - 3.5
    scaled.write(folder / "scaled.h5mu")
    scaled["rna"].layers["raw counts"] = scaled["rna"].X.copy()
    scaled["rna"].X = scaled["rna"].X / 3.0
    scaled.write(folder / "both.h5mu")
    named = MuData({"gex": cells["rna"], "ab": cells["prot"]})
    named.obs["batch"] = cells.obs["batch"].to_numpy()
    named.write(folder / "named.h5mu")
    few = table.iloc[:, :3]
    query = anndata_of(cells, protein_expression=few)
    query.write_h5ad(folder / "query.h5ad")
    return folder


def command_on(command: str, folder: Path, file: str, out: Path) -> list[str]:
    path, model = str(folder / file), str(folder / "m")
    return {
        "check": ["check", path],
        "train": ["train", path, "-o", str(out / "t"), "--epochs", "1"],
        "convert": ["convert", path, str(out / "c.zarr")],
        "map": ["map", model, path, "-o", str(out / "q")],
        "impute": [
            "impute",
            path,
            str(folder / "query.h5ad"),
            "-o",
            str(out / "i"),
            "--epochs",
            "1",
        ],
        "denoise": ["denoise", model, path, "-o", str(out / "d.h5mu"), "--samples", "1"],
        "de": ["de", model, path, "--groupby", "batch", "-o", str(out / "d.csv")],
    }[command]


@pytest.mark.parametrize(
    "file", ["obsm.h5ad", "layer.h5ad", "raw.h5ad", "scaled.h5mu", "both.h5mu", "named.h5mu"]
)
@pytest.mark.parametrize("command", ["check", "train", "convert", "map", "impute", "denoise", "de"])
def test_the_options_that_a_message_names_are_there_and_help(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, file: str
) -> None:
    arguments = command_on(command, folder, file, tmp_path)
    if command == "impute":
        arguments += ["--samples", "20"]
    assert execute(arguments) == 2
    for _ in range(2):  # what is said next may name another option
        printed = capsys.readouterr()
        said = printed.err + printed.out
        named = re.findall(r"(--[a-z-]+)(?: (?:'([^']+)'|([\w-]+)))?", said)
        assert named, said
        assert {option for option, *_ in named} <= options_of(command)
        for option, quoted, plain in named:
            if (quoted or plain) and option not in arguments and plain not in TEXT_BEHIND:
                arguments += [option, quoted or plain]
        if execute(arguments) == 0:
            return
    raise AssertionError(capsys.readouterr())


@pytest.mark.parametrize("unmeasured", ["zeros", "by name"])
@pytest.mark.parametrize("command", ["train", "convert"])
def test_unmeasured_proteins_are_declared_on_the_command_line(
    folder: Path, tmp_path: Path, command: str, unmeasured: str
) -> None:
    source = totalvi.read(folder / "padded.h5ad")
    batch = str(source.obs["batch"].iloc[0])
    names = list(source["prot"].var_names[:2])
    given = "zeros" if unmeasured == "zeros" else f"{batch}={','.join(names)}"
    arguments = command_on(command, folder, "padded.h5ad", tmp_path)
    assert execute([*arguments, "--batch", "batch", "--unmeasured", given]) == 0
    if command == "convert":
        values = totalvi.read(tmp_path / "c.zarr")["prot"].to_df()
        lacking = values.isna().to_numpy()
        assert lacking[(source.obs["batch"] == batch).to_numpy(), :2].all()
        assert lacking.sum() == 2 * (source.obs["batch"] == batch).sum()
    else:
        schema = totalvi.Model.load(tmp_path / "t").schema
        measured = dict(zip(schema.batch_names, schema.panel_measured, strict=True))
        assert measured[batch] == (False, False, True, True, True, True)


@pytest.mark.parametrize("unmeasured", ["zeros", "by name"])
@pytest.mark.parametrize("batch", [[], ["--batch", "batch"]])
def test_what_a_query_lacks_is_declared_by_the_batches_of_its_own(
    folder: Path, tmp_path: Path, unmeasured: str, batch: list[str]
) -> None:
    """Without --batch, these are in the column that the model's batches were in."""
    cells = totalvi.read(folder / "cells.h5mu")
    reference, query = tmp_path / "reference", cells.copy()
    arguments = ["train", str(folder / "cells.h5mu"), "-o", str(reference), "--epochs", "1"]
    assert execute([*arguments, "--batch", "batch"]) == 0
    first = (query.obs["batch"] == query.obs["batch"].iloc[0]).to_numpy()
    query.obs["batch"] = np.where(first, "new 1", "new 2")
    for part in query.mod.values():
        part.obs["batch"] = query.obs["batch"].to_numpy()
    query["prot"].X[np.ix_(first, [0, 3])] = 0
    query.write(tmp_path / "query.h5mu")
    names = [str(query["prot"].var_names[i]) for i in (0, 3)]
    given = "zeros" if unmeasured == "zeros" else f"new 1={','.join(names)}"
    mapped = ["map", str(reference), str(tmp_path / "query.h5mu"), "-o", str(tmp_path / "q")]
    assert execute([*mapped, *batch, "--unmeasured", given]) == 0
    schema = totalvi.Model.load(tmp_path / "q" / "model.totalvi").schema
    by_batch = dict(zip(schema.batch_names, schema.panel_measured, strict=False))
    lacks = [row for row in schema.panel_measured if not all(row)]
    assert lacks == [(False, True, True, False, True, True)], by_batch


@pytest.mark.parametrize("command", ["train", "convert", "map", "denoise", "de"])
@pytest.mark.parametrize("given", ["batch_9=protein_0", "batch_0=CD99"])
def test_wrong_names_of_the_unmeasured_are_said_by_the_option(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    given: str,
) -> None:
    arguments = command_on(command, folder, "cells.h5mu", tmp_path)
    if command in ("train", "convert", "map"):
        arguments += ["--batch", "batch"]
    assert execute([*arguments, "--unmeasured", given]) == 2
    assert "--unmeasured holds" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["x"], ["=CD3"], ["a="], ["zeros", "zeros"], ["a=CD3", "zeros"]])
def test_what_names_no_batch_is_refused(given: list[str]) -> None:
    with pytest.raises(ReadError, match="--unmeasured"):
        unmeasured_proteins(given)


@pytest.mark.parametrize(
    ("file", "options", "arguments"),
    [
        ("cells.h5mu", [], {}),
        ("cells.h5mu", ["--batch", "batch"], {"batch_key": "batch"}),
        ("cells.h5mu", ["--batch", "donor"], {"batch_key": "donor"}),
        ("obsm.h5ad", [], {}),
        ("obsm.h5ad", ["--protein-obsm", "X_adt"], {"protein_expression_obsm_key": "X_adt"}),
        ("layer.h5ad", [], {}),
        ("layer.h5ad", ["--rna-layer", "counts"], {"rna_layer": "counts"}),
        ("raw.h5ad", ["--rna-layer", "raw"], {"rna_layer": "raw"}),
        ("padded.h5ad", ["--batch", "batch"], {"batch_key": "batch"}),
        (
            "padded.h5ad",
            ["--batch", "batch", "--unmeasured", "zeros"],
            {"batch_key": "batch", "unmeasured": "zeros"},
        ),
        ("query.h5ad", ["--hashtags", "^protein"], {"hashtags": "^protein"}),
    ],
)
def test_python_and_the_command_line_find_the_same(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    options: list[str],
    arguments: dict[str, str],
) -> None:
    execute(["check", str(folder / file), *options, "--json"])
    printed = capsys.readouterr()
    try:
        found = totalvi.check(folder / file, **arguments)  # type: ignore[arg-type]
    except ReadError:
        assert printed.err.startswith("error: ")
        return
    said = json.loads(printed.out)["findings"]
    assert [(f["severity"], f["code"]) for f in said] == [(f.severity, f.code) for f in found]


@pytest.mark.parametrize("command", ["map", "denoise", "de"])
@pytest.mark.parametrize("labels", [[], ["--labels", "cell_type"]])
def test_a_model_that_is_not_there_is_said_first(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    labels: list[str],
) -> None:
    arguments = command_on(command, folder, "cells.h5mu", tmp_path)
    arguments[1] = str(tmp_path / "nowhere")
    assert execute([*arguments, *(labels if command == "map" else [])]) == 2
    assert "nowhere is not a totalvi model: it does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [[], ["--batch", "batch"]])
def test_what_is_said_of_zeros_can_be_followed(
    folder: Path, capsys: pytest.CaptureFixture[str], batch: list[str]
) -> None:
    """With a batch, some of its proteins are zero; without, those of a query that was padded."""
    file = "padded.h5ad"
    if not batch:
        adata = totalvi.read(folder / "cells.h5mu")
        adata["prot"].X[:, :2] = 0
        adata.write(folder / "padded_query.h5mu")
        file = "padded_query.h5mu"
    assert execute(["check", str(folder / file), *batch]) == 0
    said = capsys.readouterr().out
    assert "--unmeasured zeros" in said
    execute(["check", str(folder / file), *batch, "--unmeasured", "zeros"])
    assert "zero in all cells" not in capsys.readouterr().out


def write_everything(folder: Path) -> None:
    """Write counts of two genomes, hashtags, controls and rows that are none of these."""
    rng = np.random.default_rng(3)
    cells = ["".join(rng.choice(list("ACGT"), 14)) + "-1" for _ in range(50)]
    genes = [f"{genome}_G{i}" for genome in ("GRCh38", "mm10") for i in range(9)]
    antibodies = ["CD3", "CD4", "CD8", "tagA", "tagB", "blank1", "rest"]
    counts = pd.DataFrame(rng.poisson(4, (50, 25)), index=cells, columns=[*genes, *antibodies])
    rna = AnnData(counts[genes].astype(np.float32))
    rna.var["genome"] = [name.partition("_")[0] for name in genes]
    rna.obs["batch"] = np.where(np.arange(50) < 25, "a", "b")
    alone = rna.copy()
    alone.write_h5ad(folder / "rna.h5ad")
    counts[antibodies].to_csv(folder / "protein.csv")
    counts[antibodies].T.to_csv(folder / "turned.csv")
    rna.obsm["protein_expression"] = counts[antibodies]
    rna.obsm["X_adt"] = counts[antibodies[:3]]
    rna.write_h5ad(folder / "joint.h5ad")
    few = AnnData(counts[antibodies].astype(np.float32).iloc[10:])
    MuData({"rna": alone, "prot": few}).write(folder / "partly.h5mu")


@pytest.mark.parametrize(
    ("file", "options", "arguments"),
    [
        ("rna.h5ad", ["--protein", "protein.csv"], {"protein_path": "protein.csv"}),
        (
            "rna.h5ad",
            ["--protein", "turned.csv", "--cells-in", "columns"],
            {"protein_path": "turned.csv", "cells_in": "columns"},
        ),
        ("joint.h5ad", ["--genome", "mm10"], {"genome": "mm10"}),
        ("joint.h5ad", ["--hashtags", "^tag"], {"hashtags": "^tag"}),
        ("joint.h5ad", ["--controls", "^blank"], {"controls": "^blank"}),
        ("joint.h5ad", ["--leave-out", "^rest"], {"leave_out": "^rest"}),
        (
            "joint.h5ad",
            ["--protein-obsm", "X_adt"],
            {"protein_expression_obsm_key": "X_adt"},
        ),
        ("partly.h5mu", ["--mosaic"], {"mosaic": True}),
        ("partly.h5mu", ["--no-mosaic"], {"mosaic": False}),
        (
            "joint.h5ad",
            ["--hashtags", "^tag", "--leave-out", "^rest", "--genome", "GRCh38"],
            {"hashtags": "^tag", "leave_out": "^rest", "genome": "GRCh38"},
        ),
    ],
)
@pytest.mark.parametrize("command", ["check", "convert", "train"])
def test_an_option_of_reading_does_what_its_argument_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    file: str,
    options: list[str],
    arguments: dict[str, object],
) -> None:
    write_everything(tmp_path)
    options = [str(tmp_path / word) if word.endswith(".csv") else word for word in options]
    given = dict(arguments)
    if "protein_path" in given:
        given["protein_path"] = tmp_path / str(given["protein_path"])
    expected = totalvi.read(tmp_path / file, **given)  # type: ignore[arg-type]
    path, out = str(tmp_path / file), str(tmp_path / "out")
    if command == "check":
        execute(["check", path, *options, "--json"])
        said = json.loads(capsys.readouterr().out)["findings"]
        found = totalvi.check(tmp_path / file, **given)  # type: ignore[arg-type]
        assert [f["message"] for f in said if f["code"] == "used"] == [
            f.message for f in found if f.code == "used"
        ]
        assert [f["code"] for f in said] == [f.code for f in found]
    elif command == "convert":
        assert execute(["convert", path, out + ".zarr", *options]) == 0
        written = totalvi.read(out + ".zarr", mosaic=True)
        for name in ("rna", "prot"):
            pd.testing.assert_frame_equal(
                written[name].to_df(), expected[name].to_df(), check_dtype=False
            )
        assert set(written.mod) == set(expected.mod)
    else:
        assert execute(["train", path, "-o", out, "--epochs", "1", *options]) == 0
        schema, wanted = totalvi.Model.load(out).schema, totalvi.Model(expected).schema
        assert schema.gene_names == wanted.gene_names
        assert schema.protein_names == wanted.protein_names
