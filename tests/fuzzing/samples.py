"""Small good files of every format, how each is read, and what a reading amounts to."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import totalvi
from totalvi.data.io.readable_parts import READING
from totalvi.formats.scvi_06 import read_config
from totalvi.formats.scvi_weights import scvi_state
from totalvi.persistence import load_scvi

N_CELLS, N_GENES, N_PROTEINS = 12, 9, 4
GENES = [f"GENE{i}" for i in range(N_GENES)]
PROTEINS = ["CD3", "CD4", "CD19", "IgG1_control"]
Reading = dict[str, str]


class Sample(NamedTuple):
    """A format: ``write`` makes a good file or folder in a folder, ``read`` says what it holds."""

    write: Callable[[Path], Path]
    read: Callable[[Path], Reading]


def counts() -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(5)
    rna = (rng.poisson(1.5, (N_CELLS, N_GENES)) * rng.integers(1, 40, (N_CELLS, N_GENES))) + 0
    rna[:, 0] += 1
    cells = ["".join(rng.choice(list("ACGT"), 12)) + "-1" for _ in range(N_CELLS)]
    return rna.astype(np.float32), rng.poisson(30, (N_CELLS, N_PROTEINS)).astype(np.float32), cells


def digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def of_matrix(values: Any) -> str:
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    return digest((dense.shape, dense.astype(np.float64).tobytes()))


def of_mudata(data: MuData) -> Reading:
    found = {"modalities": digest(sorted(data.mod))}
    for name, adata in data.mod.items():
        found[f"{name}.cells"] = digest(list(map(str, adata.obs_names)))
        found[f"{name}.features"] = digest(list(map(str, adata.var_names)))
        found[f"{name}.counts"] = of_matrix(adata.X)
    batch = data.obs.get("batch", [])
    found["batch"] = digest(list(map(str, batch)))
    said = data.uns.get(READING, {}).get("unread")
    return found if said is None else found | {"left out": said}


def of_model(model: totalvi.Model) -> Reading:
    state = model.module.state_dict()
    return {
        "schema": digest(json.dumps(model.schema.to_dict(), sort_keys=True)),
        "options": digest(sorted((k, v) for k, v in model._options.items() if v is not None)),
        "weights": digest([(name, value.numpy().tobytes()) for name, value in state.items()]),
        "trained": digest(model.is_trained),
    }


# ------------------------------------------------------------------------------------- count files


def rna_anndata() -> AnnData:
    rna, protein, cells = counts()
    adata = AnnData(
        sparse.csr_matrix(rna),
        obs=pd.DataFrame({"batch": pd.Categorical(["a", "b"] * 6)}, index=cells),
        var=pd.DataFrame(index=GENES),
    )
    adata.obsm["protein_expression"] = pd.DataFrame(protein, index=cells, columns=PROTEINS)
    adata.layers["counts"] = adata.X.copy()
    return adata


def mudata_of_both() -> MuData:
    rna, protein, cells = counts()
    parts = {
        name: AnnData(x, obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=names))
        for name, x, names in (("rna", sparse.csr_matrix(rna), GENES), ("prot", protein, PROTEINS))
    }
    with mudata.set_options(pull_on_update=False):
        data = MuData(parts)
    data.obs["batch"] = pd.Categorical(["a", "b"] * 6)
    return data


def write_10x_v3(folder: Path) -> Path:
    rna, protein, cells = counts()
    matrix = sparse.csr_matrix(np.hstack([rna, protein]).astype(np.int32))
    names = GENES + PROTEINS
    types = ["Gene Expression"] * N_GENES + ["Antibody Capture"] * N_PROTEINS
    with h5py.File(folder / "cells.h5", "w") as file:
        group = file.create_group("matrix")
        packed = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
        for name, values in (
            ("data", matrix.data),
            ("indices", matrix.indices.astype(np.int64)),
            ("indptr", matrix.indptr.astype(np.int64)),
            ("barcodes", np.array(cells, "S18")),
        ):
            group.create_dataset(name, data=values, chunks=(min(len(values), 64),), **packed)
        group["shape"] = np.array(matrix.shape[::-1], np.int32)
        features = group.create_group("features")
        for name, values in (
            ("id", [f"ID{i}" for i in range(len(names))]),
            ("name", names),
            ("feature_type", types),
            ("genome", ["GRCh38"] * N_GENES + [""] * N_PROTEINS),
        ):
            features.create_dataset(name, data=np.array(values, "S24"), chunks=(8,), **packed)
    return folder / "cells.h5"


def write_10x_v2(folder: Path) -> Path:
    rna, _, cells = counts()
    matrix = sparse.csr_matrix(rna.astype(np.int32))
    with h5py.File(folder / "cells.h5", "w") as file:
        group = file.create_group("GRCh38")
        group["barcodes"], group["genes"] = np.array(cells, "S18"), np.array(GENES, "S9")
        group["gene_names"] = np.array(GENES, "S9")
        group["data"], group["indices"] = matrix.data, matrix.indices.astype(np.int64)
        group["indptr"] = matrix.indptr.astype(np.int64)
        group["shape"] = np.array(matrix.shape[::-1], np.int32)
    return folder / "cells.h5"


def matrix_folder(packed: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rna, protein, cells = counts()
        both = np.hstack([rna, protein]).astype(int)
        features = [f"ID{i}\t{name}\tGene Expression" for i, name in enumerate(GENES)]
        features += [f"{name}\t{name}\tAntibody Capture" for name in PROTEINS]
        entries = [f"{g + 1} {c + 1} {both[c, g]}" for c, g in zip(*both.nonzero(), strict=True)]
        head = "%%MatrixMarket matrix coordinate integer general"
        sizes = f"{both.shape[1]} {N_CELLS} {len(entries)}"
        place = folder / "matrix"
        place.mkdir()
        for name, lines in (
            ("features.tsv", features),
            ("barcodes.tsv", cells),
            ("matrix.mtx", [head, "%made for a test", sizes, *entries]),
        ):
            text = ("\n".join(lines) + "\n").encode()
            if packed:
                (place / f"{name}.gz").write_bytes(gzip.compress(text, mtime=0))
            else:
                (place / name).write_bytes(text)
        return place

    return write


def h5ad(compression: str | None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rna_anndata().write_h5ad(folder / "cells.h5ad", compression=compression)
        return folder / "cells.h5ad"

    return write


def write_h5mu(folder: Path) -> Path:
    mudata_of_both().write_h5mu(folder / "cells.h5mu")
    return folder / "cells.h5mu"


def write_zarr_anndata(folder: Path) -> Path:
    rna_anndata().write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def write_zarr_v3(folder: Path) -> Path:
    before = anndata.settings.zarr_write_format
    anndata.settings.zarr_write_format = 3
    try:
        return write_zarr_anndata(folder)
    finally:
        anndata.settings.zarr_write_format = before


def write_zarr_mudata(folder: Path) -> Path:
    mudata_of_both().write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def tables(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rna, protein, cells = counts()
        place = folder / "tables"
        place.mkdir()
        separator = "," if "csv" in suffix else "\t"
        for name, values, names in (("rna", rna, GENES), ("protein", protein, PROTEINS)):
            frame = pd.DataFrame(values.astype(int), index=cells, columns=names)
            compression: Any = {"method": "gzip", "mtime": 0} if suffix.endswith("gz") else None
            frame.to_csv(place / f"{name}{suffix}", sep=separator, compression=compression)
        return place

    return write


def read_counts(path: Path) -> Reading:
    return of_mudata(totalvi.read(path))


def read_tables(place: Path) -> Reading:
    suffix = ".csv" if any(place.glob("*.csv")) else ".tsv.gz"
    rna, protein = place / f"rna{suffix}", place / f"protein{suffix}"
    return of_mudata(totalvi.read(rna, protein_path=protein))


def read_and_join(path: Path) -> Reading:
    data = totalvi.read(path)
    found = of_mudata(totalvi.concat({"a": data, "b": mudata_of_both()}, batch_key="set"))
    said = of_mudata(data).get("left out")
    return found if said is None else found | {"left out": said}


# ------------------------------------------------------------------------------------------ models


def fitted() -> totalvi.Model:
    model = totalvi.Model(mudata_of_both(), batch_key="batch", n_hidden=4, n_latent=2)
    model.train(max_epochs=1, batch_size=8, accelerator="cpu", progress=False)
    return model


def write_model(folder: Path) -> Path:
    return fitted().save(folder / "model")


def write_scvi(folder: Path) -> Path:
    return fitted().save_scvi(folder / "model")


def write_06(folder: Path) -> Path:
    state = scvi_state(fitted().module, (), ())
    state = {
        name: tensor
        for name, tensor in state.items()
        if "l_gene" not in name and "efficiency" not in name
    }
    generator = torch.Generator().manual_seed(0)
    for branch, head in (("z_encoder", None), ("l_gene_encoder", "l_gene_{}_encoder")):
        state[f"encoder.{branch}.0.weight"] = torch.randn(4, 4, generator=generator)
        for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
            state[f"encoder.{branch}.{name}"] = torch.rand(4, generator=generator)
        state[f"encoder.{branch}.1.num_batches_tracked"] = torch.tensor(3)
        for part in ("mean", "var") if head else ():
            state[f"encoder.{head.format(part)}.weight"] = torch.randn(1, 4, generator=generator)
            state[f"encoder.{head.format(part)}.bias"] = torch.zeros(1)
    torch.save(state, folder / "totalvi.pkl", _use_new_zipfile_serialization=False)
    return folder / "totalvi.pkl"


CONFIG_06: dict[str, Any] = {
    "batch_key": "batch",
    "gene_names": GENES,
    "protein_names": PROTEINS[:3],  # without the isotype control
    "batch_names": ["a", "b"],
    "library_log_mean": [5.0, 5.0],
    "library_log_variance": [0.1, 0.1],
}


def read_06(path: Path) -> Reading:
    return of_model(load_scvi(path, config=CONFIG_06))


def write_06_described(folder: Path) -> Path:
    place = folder / "described"
    place.mkdir()
    write_06(place)
    (place / "config.json").write_text(json.dumps(CONFIG_06, indent=1))
    return place


def read_06_described(place: Path) -> Reading:
    return of_model(load_scvi(place / "totalvi.pkl", config=read_config(place / "config.json")))


SAMPLES: dict[str, Sample] = {
    "Cell Ranger 3 .h5": Sample(write_10x_v3, read_counts),
    "Cell Ranger 2 .h5": Sample(write_10x_v2, read_counts),
    "matrix folder": Sample(matrix_folder(packed=False), read_counts),
    "matrix folder, gzip": Sample(matrix_folder(packed=True), read_counts),
    "h5ad": Sample(h5ad(None), read_counts),
    "h5ad, gzip": Sample(h5ad("gzip"), read_counts),
    "h5mu": Sample(write_h5mu, read_counts),
    "zarr 2": Sample(write_zarr_anndata, read_counts),
    "zarr 3": Sample(write_zarr_v3, read_counts),
    "zarr of MuData": Sample(write_zarr_mudata, read_counts),
    "csv": Sample(tables(".csv"), read_tables),
    "tsv.gz": Sample(tables(".tsv.gz"), read_tables),
    "concat": Sample(write_h5mu, read_and_join),
    "model folder": Sample(write_model, lambda path: of_model(totalvi.Model.load(path))),
    "scvi-tools model": Sample(write_scvi, lambda path: of_model(load_scvi(path))),
    "0.6.x weights": Sample(write_06, read_06),
    "0.6.x config": Sample(write_06_described, read_06_described),
}
