"""Bad input of every kind: exit status 2, one sentence, no traceback, no file left behind."""

import gzip
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import totalvi
from totalvi.cli.main import execute, explain

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

N_CELLS, N_GENES, N_PROTEINS = 30, 25, 4
Build = Callable[[Path], list[str]]


def good() -> mudata.MuData:
    """A small MuData that could be fitted, for the cases to spoil."""
    rng = np.random.default_rng(0)
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(N_CELLS)])
    rna = anndata.AnnData(
        rng.poisson(2.0, (N_CELLS, N_GENES)).astype(np.float32),
        obs=cells,
        var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)]),
    )
    protein = anndata.AnnData(
        rng.poisson(20.0, (N_CELLS, N_PROTEINS)).astype(np.float32),
        obs=cells,
        var=pd.DataFrame(index=[f"CD{i}" for i in range(N_PROTEINS)]),
    )
    with mudata.set_options(pull_on_update=False):
        data = mudata.MuData({"rna": rna, "prot": protein})
    data.obs["batch"] = np.repeat(["a", "b"], N_CELLS // 2)
    data.obs["age"] = rng.normal(size=N_CELLS)
    return data


def run(file: Path, *options: str) -> list[str]:
    return ["run", str(file), "-o", str(file.parent / "out"), *options]


def spoiled(spoil: Callable[[mudata.MuData], object], *options: str) -> Build:
    """A case that changes the good data in place and runs on it."""

    def build(folder: Path) -> list[str]:
        data = good()
        spoil(data)
        data.write(folder / "cells.h5mu")
        return run(folder / "cells.h5mu", *options)

    return build


def value(modality: str, wrong: float, cell: int | slice = 3, feature: int | slice = 2) -> Build:
    def spoil(data: mudata.MuData) -> None:
        data[modality].X[cell, feature] = wrong

    return spoiled(spoil)


def column(key: str, values: object, *options: str) -> Build:
    def spoil(data: mudata.MuData) -> None:
        data.obs[key] = values

    return spoiled(spoil, *options)


def options(*given: str) -> Build:
    return spoiled(lambda _: None, *given)


def file(name: str, content: bytes, *more: str) -> Build:
    def build(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return run(folder / name, *more)

    return build


def replaced(make: Callable[[mudata.MuData], mudata.MuData]) -> Build:
    def build(folder: Path) -> list[str]:
        make(good()).write(folder / "cells.h5mu")
        return run(folder / "cells.h5mu")

    return build


def of_other_cells(protein: anndata.AnnData) -> anndata.AnnData:
    protein = protein.copy()
    names = list(protein.obs_names)
    protein.obs_names = [*names[:10], *(f"other{i}" for i in range(len(names) - 10))]
    return protein


def paired(make: Callable[[anndata.AnnData], anndata.AnnData]) -> Build:
    """Change the protein modality before it is joined with the RNA."""

    def remake(data: mudata.MuData) -> mudata.MuData:
        with mudata.set_options(pull_on_update=False):
            return mudata.MuData({"rna": data["rna"], "prot": make(data["prot"].copy())})

    return replaced(remake)


def tables(
    change: Callable[[pd.DataFrame, pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]],
) -> Build:
    def build(folder: Path) -> list[str]:
        data = good()
        rna, protein = change(data["rna"].to_df(), data["prot"].to_df())
        rna.to_csv(folder / "rna.csv")
        protein.to_csv(folder / "protein.csv")
        return run(folder / "rna.csv", "--protein", str(folder / "protein.csv"))

    return build


def text_in_table(rna: pd.DataFrame, protein: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    rna = rna.astype(object)
    rna.iloc[2, 3] = "many"
    return rna, protein


def truncated(folder: Path) -> list[str]:
    good().write(folder / "whole.h5mu")
    content = (folder / "whole.h5mu").read_bytes()
    (folder / "cells.h5mu").write_bytes(content[: len(content) // 2])
    return run(folder / "cells.h5mu")


def truncated_h5ad(folder: Path) -> list[str]:
    good()["rna"].write(folder / "whole.h5ad")
    (folder / "cells.h5ad").write_bytes((folder / "whole.h5ad").read_bytes()[:-3000])
    return run(folder / "cells.h5ad")


def other_hdf5(folder: Path) -> list[str]:
    with h5py.File(folder / "cells.h5", "w") as other:
        other["pictures"] = np.zeros(3)
    return run(folder / "cells.h5")


def empty_folder(folder: Path) -> list[str]:
    (folder / "matrix").mkdir()
    return run(folder / "matrix")


def not_zarr(folder: Path) -> list[str]:
    (folder / "cells.zarr").mkdir()
    (folder / "cells.zarr" / "readme.txt").write_text("nothing")
    return run(folder / "cells.zarr")


def matrix_folder(spoil: Callable[[Path], object]) -> Build:
    def build(folder: Path) -> list[str]:
        place = folder / "matrix"
        place.mkdir()
        features = [f"ENSG{i}\tgene{i}\tGene Expression" for i in range(3)]
        features += ["CD3\tCD3\tAntibody Capture"]
        entries = [f"{row + 1} {cell + 1} 5" for row in range(4) for cell in range(12)]
        head = ["%%MatrixMarket matrix coordinate integer general", f"4 12 {len(entries)}"]
        for name, lines in (
            ("features.tsv.gz", features),
            ("barcodes.tsv.gz", [f"cell{i}-1" for i in range(12)]),
            ("matrix.mtx.gz", head + entries),
        ):
            (place / name).write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
        spoil(place)
        return run(place)

    return build


def cut_matrix(place: Path) -> None:
    content = (place / "matrix.mtx.gz").read_bytes()
    (place / "matrix.mtx.gz").write_bytes(content[: len(content) // 2])


def rna_only(folder: Path) -> list[str]:
    good()["rna"].write(folder / "cells.h5ad")
    return run(folder / "cells.h5ad")


def rna_only_mudata(data: mudata.MuData) -> mudata.MuData:
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": data["rna"]})


def obsm_missing(folder: Path) -> list[str]:
    good()["rna"].write(folder / "cells.h5ad")
    return run(folder / "cells.h5ad", "--protein-obsm", "proteins")


def obsm_for_mudata(folder: Path) -> list[str]:
    good().write(folder / "cells.h5mu")
    return run(folder / "cells.h5mu", "--protein-obsm", "proteins")


def protein_is_mudata(folder: Path) -> list[str]:
    good().write(folder / "both.h5mu")
    good()["rna"].write(folder / "cells.h5ad")
    return run(folder / "cells.h5ad", "--protein", str(folder / "both.h5mu"))


def occupied(name: str, *more: str) -> Build:
    """The output folder holds a file of this name already."""

    def build(folder: Path) -> list[str]:
        good().write(folder / "cells.h5mu")
        (folder / "out").mkdir()
        (folder / "out" / name).write_text("{}")
        return run(folder / "cells.h5mu", *more)

    return build


def output_is_file(folder: Path) -> list[str]:
    good().write(folder / "cells.h5mu")
    (folder / "out").write_text("mine")
    return run(folder / "cells.h5mu")


def output_under_file(folder: Path) -> list[str]:
    good().write(folder / "cells.h5mu")
    return ["run", str(folder / "cells.h5mu"), "-o", str(folder / "cells.h5mu" / "out")]


def input_in_output(folder: Path) -> list[str]:
    good().write(folder / "cells.h5mu")
    (folder / "run.json").write_text("{}")
    return ["run", str(folder / "cells.h5mu"), "-o", str(folder), "--overwrite"]


def simulated_exists(folder: Path) -> list[str]:
    (folder / "cells.h5mu").write_text("mine")
    return ["simulate", "-o", str(folder / "cells.h5mu")]


def demo_exists(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "note.txt").write_text("mine")
    return ["demo", "-o", str(folder / "out")]


def plain(*arguments: str) -> Build:
    return lambda _: list(arguments)


def as_text(change: Callable[[str], str], name: str = "rna.csv") -> Build:
    """A pair of tables, the text of one of which is changed."""

    def build(folder: Path) -> list[str]:
        arguments = tables(lambda rna, protein: (rna, protein))(folder)
        (folder / name).write_text(change((folder / name).read_text()))
        return arguments

    return build


def hdf5(change: Callable[[h5py.File], object]) -> Build:
    """The good data as a file of which a member is changed."""

    def build(folder: Path) -> list[str]:
        good().write(folder / "cells.h5mu")
        with h5py.File(folder / "cells.h5mu", "r+") as opened:
            change(opened)
        return run(folder / "cells.h5mu")

    return build


def replace_counts(**how: Any) -> Callable[[h5py.File], object]:
    def change(opened: h5py.File) -> None:
        del opened["mod/rna/X"]
        opened.create_dataset("mod/rna/X", **how)

    return change


def link_counts(link: object) -> Callable[[h5py.File], object]:
    def change(opened: h5py.File) -> None:
        del opened["mod/rna/X"]
        opened["mod/rna/X"] = link

    return change


def entries(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change the text of the matrix in its packed file."""

    def spoil(place: Path) -> None:
        file = place / "matrix.mtx.gz"
        file.write_bytes(
            gzip.compress(change(gzip.decompress(file.read_bytes()).decode()).encode())
        )

    return spoil


def zarr_store(spoil: Callable[[Path], object]) -> Build:
    def build(folder: Path) -> list[str]:
        good().write_zarr(folder / "cells.zarr")
        spoil(folder / "cells.zarr")
        return run(folder / "cells.zarr")

    return build


def first_chunk(store: Path) -> Path:
    return next(f for f in sorted((store / "mod/rna/X").iterdir()) if f.name[0] != ".")


def link_out(store: Path) -> None:
    chunk = first_chunk(store)
    chunk.symlink_to(chunk.rename(store.parent / "elsewhere"))


def convert(name: str, content: bytes, *more: str) -> Build:
    def build(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return ["convert", str(folder / name), "-o", str(folder / "model"), *more]

    return build


def damaged_model(folder: Path) -> list[str]:
    (folder / "old").mkdir()
    (folder / "old" / "model.json").write_text('{"format": "totalvi model", "format_version": 1}')
    (folder / "old" / "weights.safetensors").write_bytes(b"\xff" * 40)
    return ["convert", str(folder / "old"), "-o", str(folder / "model")]


def newer_model(folder: Path) -> list[str]:
    (folder / "old").mkdir()
    (folder / "old" / "model.json").write_text('{"format": "totalvi model", "format_version": 99}')
    return ["convert", str(folder / "old"), "-o", str(folder / "model")]


def some(wrong: object) -> list:
    return [wrong, *(["a"] * (N_CELLS - 1))]


def log_normalised(data: mudata.MuData) -> None:
    counts = data["rna"].X
    data["rna"].X = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def raw_matrix() -> mudata.MuData:
    """The good cells and 60 empty droplets."""
    cells, rng = good(), np.random.default_rng(1)
    names = [*cells.obs_names, *(f"droplet{i}" for i in range(60))]
    modalities = {}
    for name, adata in cells.mod.items():
        mean = 5.0 if name == "prot" else 0.02
        counts = np.concatenate([adata.X, rng.poisson(mean, (60, adata.n_vars))])
        modalities[name] = anndata.AnnData(
            counts.astype(np.float32), obs=pd.DataFrame(index=names), var=adata.var[[]]
        )
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(modalities)


def raw(
    spoil: Callable[[mudata.MuData], mudata.MuData], protein: str = "CD0", batch: str = ""
) -> Build:
    """A case with a raw matrix, spoiled, or its first protein renamed."""

    def build(folder: Path) -> list[str]:
        good().write(folder / "cells.h5mu")
        matrix = raw_matrix()
        matrix["prot"].var_names = [protein, *matrix["prot"].var_names[1:]]
        spoil(matrix).write(folder / "raw.h5mu")
        path = str(folder / "raw.h5mu")
        if batch:
            return run(folder / "cells.h5mu", "--raw", f"{batch}={path}", "--batch", "batch")
        return run(folder / "cells.h5mu", "--raw", path)

    return build


def swapped(folder: Path) -> list[str]:
    good().write(folder / "cells.h5mu")
    raw_matrix().write(folder / "raw.h5mu")
    return run(folder / "raw.h5mu", "--raw", str(folder / "cells.h5mu"))


def only_controls(protein: anndata.AnnData) -> anndata.AnnData:
    protein.var_names = ["IgG1", "IgG2a", "IgG2b", "IgG3"]
    return protein


def repeated_cells(data: mudata.MuData) -> mudata.MuData:
    names = ["cell0", "cell0", *(f"cell{i}" for i in range(2, N_CELLS))]
    for adata in data.mod.values():
        adata.obs_names = names
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(dict(data.mod))


CASES: dict[str, tuple[Build, str]] = {
    # files
    "missing file": (lambda f: run(f / "cells.h5mu"), "does not exist"),
    "missing folder": (lambda f: run(f / "there" / "cells.h5"), "does not exist"),
    "address": (plain("run", "https://example.org/a.h5", "-o", "out"), "download it"),
    "empty file": (file("cells.h5", b""), "is empty"),
    "empty folder": (empty_folder, "is empty"),
    "truncated h5mu": (truncated, "cells.h5mu"),
    "truncated h5ad": (truncated_h5ad, "cells.h5ad"),
    "text named h5": (file("cells.h5", b"cell,gene\n1,2\n"), "looks like text"),
    "other HDF5": (other_hdf5, "pictures"),
    "unknown suffix": (file("cells.xlsx", b"PK\3\4"), ".xlsx"),
    "packed": (file("cells.tar.gz", b"\x1f\x8b"), "unpack"),
    "not zarr": (not_zarr, "zarr"),
    "no barcodes": (matrix_folder(lambda p: (p / "barcodes.tsv.gz").unlink()), "barcodes"),
    "truncated matrix": (matrix_folder(cut_matrix), "matrix.mtx.gz"),
    "text in csv": (tables(text_in_table), "many"),
    "empty csv": (file("cells.csv", b"\n\n"), "cells.csv"),
    "csv of RNA only": (
        file("rna.csv", b",g1,g2\nAAACGTAAACGTAAAC-1,1,2\nCCATGGTACCATGGTA-1,3,0\n"),
        "no proteins",
    ),
    "csv barcodes differ": (
        tables(lambda r, p: (r, p.rename(index="of another {}".format))),
        "cell0",
    ),
    "missing protein file": (options("--protein", "nowhere.csv"), "--protein "),
    "protein file is MuData": (protein_is_mudata, "MuData"),
    "RNA only h5ad": (rna_only, "no proteins"),
    "RNA only h5mu": (replaced(rna_only_mudata), "no proteins"),
    "no protein columns": (paired(lambda p: p[:, :0].copy()), "no proteins"),
    "csv direction unclear": (file("rna.csv", b",a,b\nc,1,2\nd,3,0\n"), "rows or columns"),
    "hashtags no pattern": (options("--hashtags", "("), "--hashtags"),
    "hashtags nowhere": (
        options("--hashtags", "HTO", "--protein-modality", "adt"),
        "with --protein-modality",
    ),
    "size factor missing": (options("--size-factor", "depth"), "--size-factor: "),
    "cells in neither": (options("--cells-in", "sheets"), "--cells-in"),
    "obsm entry missing": (obsm_missing, "proteins"),
    "obsm entry of MuData": (obsm_for_mudata, "modality"),
    # damage
    "csv without its last line end": (as_text(lambda text: text[:-2]), "within a line"),
    "NUL byte in csv": (as_text(lambda text: text.replace("3", "\0", 1)), "NUL byte"),
    "csv line cut short": (as_text(lambda text: text[: text.rindex(",")] + "\n"), "fields"),
    "csv line too long": (as_text(lambda text: text[:-1] + ",4\n"), "fields"),
    "repeated csv column": (as_text(lambda text: text.replace("gene2,", "gene1,", 1)), "gene1"),
    "matrix of more counts": (matrix_folder(entries(lambda text: text + "1 1 5\n")), "announces"),
    "matrix of fewer counts": (matrix_folder(entries(lambda text: text[:-7])), "matrix.mtx.gz"),
    "matrix of 1e15 counts": (
        matrix_folder(entries(lambda text: text.replace("4 12 48", f"4 12 {10**15}"))),
        "announces",
    ),
    "count outside the matrix": (
        matrix_folder(entries(lambda text: text.replace("1 1 5", "9 1 5", 1))),
        "outside",
    ),
    "matrix of complex numbers": (
        matrix_folder(entries(lambda text: text.replace("integer", "complex"))),
        "integer",
    ),
    "matrix of text": (
        matrix_folder(entries(lambda text: text.replace("1 1 5", "1 1 x", 1))),
        "matrix.mtx.gz",
    ),
    "no features": (matrix_folder(lambda p: (p / "features.tsv.gz").unlink()), "features"),
    "more features": (
        matrix_folder(
            lambda p: (p / "features.tsv.gz").write_bytes(gzip.compress(b"a\ta\tx\n" * 9))
        ),
        "does not fit",
    ),
    "HDF5 of 1e12 counts": (
        hdf5(replace_counts(shape=(10**6, 10**6), chunks=(64, 64), dtype="f4")),
        "declares",
    ),
    "HDF5 with a link to another file": (
        hdf5(link_counts(h5py.ExternalLink("/etc/passwd", "/x"))),
        "another place",
    ),
    "HDF5 with a link to nothing": (hdf5(link_counts(h5py.SoftLink("/nowhere"))), "cells.h5mu"),
    "HDF5 with text for counts": (hdf5(replace_counts(data=b"text")), "cells.h5mu"),
    "HDF5 of other size": (hdf5(replace_counts(data=np.zeros((3, 3)))), "cells.h5mu"),
    "HDF5 without obs": (hdf5(lambda f: f.__delitem__("mod/rna/obs")), '"mod/rna/obs"'),
    "zarr that lost a chunk": (zarr_store(lambda p: first_chunk(p).unlink()), "lacks"),
    "zarr with a short chunk": (
        zarr_store(lambda p: first_chunk(p).write_bytes(first_chunk(p).read_bytes()[:20])),
        "cells.zarr",
    ),
    "zarr with a link out": (zarr_store(link_out), "link out of"),
    # models
    "damaged model": (damaged_model, "weights.safetensors"),
    "model of a newer version": (newer_model, "update totalvi"),
    "text for a model": (convert("model.pt", b"hello"), "model.pt"),
    "empty model": (convert("model.pt", b""), "model.pt"),
    "pickle that runs": (convert("model.pt", b"cos\nsystem\n(S'true'\ntR."), "model.pt"),
    "model that is not there": (
        lambda f: ["convert", str(f / "old"), "-o", str(f / "model")],
        "is not a file",
    ),
    "config that is not there": (
        convert("model.pt", b"hello", "--config", "nowhere.json"),
        "nowhere.json",
    ),
    # values
    "negative RNA": (value("rna", -1), "negative"),
    "negative protein": (value("prot", -2), "negative"),
    "RNA NaN": (value("rna", np.nan), "NaN"),
    "RNA infinite": (value("rna", np.inf), "infinite"),
    "protein infinite": (value("prot", np.inf), "infinite"),
    "RNA fraction": (value("rna", 1.5), "with --allow-fractional"),
    "protein fraction": (value("prot", 2.25), "CD2"),
    "RNA log-normalised": (spoiled(log_normalised), "log"),
    "protein NaN in a cell": (value("prot", np.nan), "CD2"),
    "protein NaN everywhere": (value("prot", np.nan, cell=slice(None)), "CD2"),
    "cell without RNA": (
        spoiled(lambda data: data["rna"].X[3].fill(0), "--refuse-empty-cells"),
        "cell3",
    ),
    "no RNA at all": (value("rna", 0, slice(None), slice(None)), "RNA"),
    "few cells": (replaced(lambda data: data[:5].copy()), "5 cells"),
    # names
    "repeated cells": (replaced(repeated_cells), "cell0"),
    "cells of RNA only": (paired(of_other_cells), "cell10"),
    # annotation
    "batch missing": (options("--batch", "donor"), "donor"),
    "batch misspelt": (options("--batch", "bacth"), 'did you mean "batch"'),
    "batch of one cell": (column("batch", some("b"), "--batch", "batch"), "single cell"),
    "batch NaN": (column("batch", some(None), "--batch", "batch"), "cell0"),
    "batch continuous": (options("--batch", "age"), "age"),
    "panel missing": (options("--panel", "panel"), "--panel: "),
    "labels missing": (options("--labels", "type"), "--labels: "),
    "covariate missing": (options("--covariate", "sex"), "sex"),
    "covariate NaN": (column("sex", some(None), "--covariate", "sex"), "cell0"),
    "covariate text": (options("--continuous-covariate", "batch"), "numbers"),
    "covariate constant": (column("day", 1.0, "--continuous-covariate", "day"), "all cells"),
    "covariate infinite": (
        column("day", [np.inf, *range(N_CELLS - 1)], "--continuous-covariate", "day"),
        "infinite",
    ),
    # options
    "RNA modality": (options("--rna-modality", "gex"), "gex"),
    "protein modality": (options("--protein-modality", "adt"), "adt"),
    "RNA layer": (options("--rna-layer", "counts"), "counts"),
    "protein layer": (options("--protein-layer", "raw"), "raw"),
    "no genes": (options("--genes", "0"), "--genes"),
    "negative epochs": (options("--epochs", "-1"), "--epochs"),
    "epochs in words": (options("--epochs", "ten"), "--epochs"),
    "negative seed": (options("--seed", "-1"), "--seed"),
    "no resolution": (options("--resolution", "0"), "--resolution"),
    "unknown option": (options("--gene", "10"), "--gene"),
    "no input": (plain("run", "-o", "out"), "INPUT"),
    "no output": (lambda f: ["run", str(f / "cells.h5mu")], "--output"),
    "unknown command": (plain("runn"), "runn"),
    "unknown data set": (plain("datasets", "fetch", "pbmc_9k"), "pbmc_9k"),
    "check of nothing": (lambda f: ["check", str(f / "cells.h5mu")], "does not exist"),
    "simulate no cells": (
        lambda f: ["simulate", "-o", str(f / "a.h5mu"), "--cells", "0"],
        "--cells",
    ),
    "simulate too few proteins": (
        lambda f: ["simulate", "-o", str(f / "a.h5mu"), "--unmeasured", "50"],
        "--unmeasured",
    ),
    # empty droplets
    "raw missing": (options("--raw", "raw.h5"), "raw.h5 does not exist"),
    "raw of other cells": (raw(lambda r: r[N_CELLS:].copy()), "lacks 30 of the 30 cells"),
    "raw lacks a cell": (raw(lambda r: r[1:].copy()), "lacks 1 of the 30 cells"),
    "raw of other antibodies": (raw(lambda r: r, protein="CD99"), '"CD0"'),
    "raw without antibodies": (raw(rna_only_mudata), "no antibodies"),
    "raw is filtered": (raw(lambda r: r[:N_CELLS].copy()), "0 empty droplets"),
    "raw of few droplets": (raw(lambda r: r[: N_CELLS + 9].copy()), "an estimate needs 20"),
    "raw and filtered swapped": (swapped, "swapped"),
    "raw of unknown batch": (raw(lambda r: r, batch="c"), 'batch "c"'),
    "two raws without batch": (options("--raw", "a.h5", "--raw", "b.h5"), "BATCH=PATH"),
    "controls only": (paired(only_controls), "with --keep-isotypes"),
    "simulated raw is output": (
        lambda f: ["simulate", "-o", str(f / "a.h5mu"), "--raw", str(f / "a.h5mu")],
        "another name",
    ),
    # output
    "output not empty": (occupied("note.txt"), "not empty"),
    "overwrite of no run": (occupied("note.txt", "--overwrite"), "run.json"),
    "output is a file": (output_is_file, "is a file"),
    "output under a file": (output_under_file, "is a file"),
    "output in a device": (lambda f: ["demo", "-o", "/dev/null/out"], "is a file"),
    "input in output": (input_in_output, "lies in the output"),
    "simulated exists": (simulated_exists, "exists"),
    "simulated suffix": (lambda f: ["simulate", "-o", str(f / "cells.h5ad")], ".h5mu"),
    "demo not empty": (demo_exists, "not empty"),
}


def content(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, expected = CASES[name]
    monkeypatch.chdir(tmp_path)
    arguments = build(tmp_path)
    before = content(tmp_path)
    capsys.readouterr()
    status = execute(arguments)
    printed = capsys.readouterr()
    assert status == 2, printed
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert "Traceback" not in line
    assert not re.search(r"\w+_(key|keys|layer|modality|path|epochs|genes)\b", line)
    assert content(tmp_path) == before


OUT_OF_RANGE = {  # of each option what is refused before anything is read
    "--seed": ["", "abc", "-1", "1.5", "1e3", "nan", "4294967296", "9" * 30],
    "--resolution": ["", "abc", "-1", "0", "nan", "inf", "-inf", "1e300", "1e400"],
    "--checkpoint-every": ["", "abc", "-1", "nan", "inf", "1e300", "1e400"],
    "--delta": ["", "abc", "-1", "nan", "inf", "1e300"],
    "--fdr": ["", "abc", "-1", "0", "1", "nan", "inf"],
    "--foreground-factor": ["", "abc", "-1", "0", "nan", "inf", "1e300"],
    "--genes": ["", "abc", "-1", "0", "1.5", "nan", "inf", "1e3"],
    "--epochs": ["", "abc", "-1", "0", "1.5", "nan", "inf"],
    "--samples": ["", "abc", "-1", "0", "1.5", "nan", "inf"],
    "--interval": ["", "abc", "-1", "0", "1", "nan", "inf"],
    "--cells": ["", "abc", "-1", "0", "1.5", "nan", "inf", "9" * 30],
    "--proteins": ["", "abc", "-1", "0", "nan", "9" * 30],
    "--batches": ["", "abc", "-1", "0", "nan", "9" * 30],
    "--cell-types": ["", "abc", "-1", "0", "nan", "9" * 30],
    "--unmeasured": ["", "abc", "-1", "nan", "9" * 30],
    "--ubiquitous": ["", "abc", "-1", "nan", "9" * 30],
    "--empty": ["", "abc", "-1", "0", "nan"],
    "--cells-in": ["", "sheets"],
    "--to": ["", "seurat"],
}
COMMANDS = {
    "run": (["cells.h5mu", "-o", "out"], "seed resolution checkpoint-every genes epochs cells-in"),
    "train": (["cells.h5mu", "-o", "out"], "seed genes epochs cells-in"),
    "denoise": (["model", "-o", "out.h5mu"], "seed samples"),
    "de": (["model", "-o", "out.csv"], "seed delta fdr"),
    "impute": (
        ["cells.h5mu", "rna.h5ad", "-o", "out"],
        "seed checkpoint-every genes epochs interval samples",
    ),
    "map": (["model", "cells.h5mu", "-o", "out"], "checkpoint-every"),
    "check": (["cells.h5mu"], "cells-in"),
    "convert": (["model", "out"], "to"),
    "simulate": (
        ["-o", "out.h5mu"],
        "seed foreground-factor genes cells proteins batches cell-types unmeasured ubiquitous empty",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_out_of_range_are_one_sentence(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given, names = COMMANDS[command]
    for option in (f"--{name}" for name in names.split()):
        for wrong in OUT_OF_RANGE[option]:
            status = execute([command, *given, option, wrong])
            printed = capsys.readouterr()
            assert (status, printed.out) == (2, ""), (option, wrong, printed)
            (line,) = printed.err.splitlines()
            assert line.startswith("error: "), (option, wrong, line)
            assert option in line, (option, wrong, line)
            assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def a_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = totalvi.Model(good(), n_hidden=8, n_latent=2)
    model.train(max_epochs=1, accelerator="cpu", progress=False)
    return model.save(tmp_path_factory.mktemp("fitted") / "model")


ODD_PATHS = [
    "",
    ".",
    "..",
    "/",
    "/dev/null",
    "folder",
    "folder/",
    "thesis.txt",
    "thesis.txt/x",
    "x" * 300,
]
INPUTS = {  # and outputs: what is given in place of {}
    "run": (["run", "{}", "-o", "out"], ["run", "thesis.txt", "-o", "{}"]),
    "train": (["train", "{}", "-o", "out"], ["train", "thesis.txt", "-o", "{}"]),
    "check": (["check", "{}"],),
    "denoise": (["denoise", "{}"], ["denoise", "thesis.txt", "-o", "{}"]),
    "de": (["de", "{}"], ["de", "thesis.txt", "-o", "{}"]),
    "impute": (
        ["impute", "{}", "cells.h5mu", "-o", "out"],
        ["impute", "cells.h5mu", "{}", "-o", "out"],
        ["impute", "thesis.txt", "cells.h5mu", "-o", "{}"],
    ),
    "map": (
        ["map", "{}", "cells.h5mu", "-o", "out"],
        ["map", "model", "{}", "-o", "out"],
        ["map", "model", "cells.h5mu", "-o", "out", "--reference", "{}"],
        ["map", "thesis.txt", "cells.h5mu", "-o", "{}"],
    ),
    "convert": (["convert", "{}", "-o", "out"], ["convert", "thesis.txt", "-o", "{}"]),
    "counts": (["convert", "{}", "-o", "out.zarr"],),
    "simulate": (["simulate", "-o", "{}"], ["simulate", "-o", "a.h5mu", "--raw", "{}"]),
    "report": (["report", "{}"], ["report", "thesis.txt", "-o", "{}"]),
    "repeat": (["run", "--from", "{}", "-o", "out"],),
    "explore": (["explore", "{}"],),
}


@pytest.mark.parametrize("command", INPUTS)
def test_odd_paths_are_one_sentence(
    command: str,
    a_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("mine")
    (tmp_path / "thesis.txt").write_text("mine")
    if command in ("map", "impute"):  # of their inputs all but one are as they should be
        good().write(tmp_path / "cells.h5mu")
        shutil.copytree(a_model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    for arguments in INPUTS[command]:
        for path in ODD_PATHS:
            status = execute([path if each == "{}" else each for each in arguments])
            printed = capsys.readouterr()
            assert (status, printed.out.strip()[:5]) in ((2, ""), (2, "error")), (path, printed)
            assert len((printed.err + printed.out).splitlines()) == 1, (path, printed)
            assert "unexpected" not in printed.err
            assert content(tmp_path) == before


def test_a_memory_that_does_not_suffice_is_one_sentence() -> None:
    status, said = explain(MemoryError("Unable to allocate 9. PiB"))
    assert (status, said.count(";"), said[-1]) == (2, 1, ".")
    assert "Unable to allocate 9. PiB" in said


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("name", ["no genes", "RNA fraction"])
def test_a_process_exits_the_same_way(name: str, tmp_path: Path) -> None:
    build, expected = CASES[name]
    arguments = build(tmp_path)
    before = content(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "totalvi", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert content(tmp_path) == before


def test_the_good_data_are_good(tmp_path: Path) -> None:
    good().write(tmp_path / "cells.h5mu")
    raw_matrix().write(tmp_path / "raw.h5mu")
    cells, droplets = str(tmp_path / "cells.h5mu"), str(tmp_path / "raw.h5mu")
    assert execute(["check", cells, "--raw", droplets]) == 0
    assert execute(["check", str(tmp_path / "cells.h5mu"), "--batch", "batch"]) == 0


def test_sparse_and_dense_counts_are_refused_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for form in (np.asarray, sparse.csr_matrix):
        data = good()
        data["rna"].X[3, 2] = -1
        data["rna"].X = form(data["rna"].X)
        data.write(tmp_path / "cells.h5mu")
        execute(run(tmp_path / "cells.h5mu"))
        lines.append(capsys.readouterr().err)
    assert lines[0] == lines[1]
