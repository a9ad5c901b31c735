"""Numbers that do not come from a fit in memory: files, processes, mapping, public names."""

import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch

import same_models as models
import totalvi
import totalvi.errors
from same_commands import commands, run
from same_digests import digests
from same_models import BATCHES, FITS, SMALL, TRAIN, Fit, fitted
from same_queries import ask_all, ask_stored, describe
from totalvi import datasets, persistence, processes

Digests = Iterator[tuple[str, str]]
Case = Callable[[Path], Digests]


def cases(golden: Path) -> dict[str, Case]:
    """Return all cases by name, each a function of an empty folder."""
    found: dict[str, Case] = {"public names": public_names, "data": data}
    found |= {f"fit: {name}": partial(one_fit, fit) for name, fit in FITS.items()}
    found |= {
        "module, compiled": partial(module, True),
        "module, plain": partial(module, False),
        "trained twice": trained_twice,
        "saved and loaded": saved_and_loaded,
        "saved for scvi-tools": saved_for_scvi,
        "interrupted and resumed": interrupted,
        "zarr on disk": zarr_on_disk,
        "h5ad on disk": h5ad_on_disk,
        "windows on disk": windows_on_disk,
        "two processes": two_processes,
    }
    for way in ("rna", "proteins", "trained", "average", "panels"):
        found[f"mapped: {way}"] = partial(mapped, way)
    for folder in sorted(golden.glob("scvi_tools_*")):
        found[f"scvi-tools: {folder.name}"] = partial(of_scvi, folder)
    for file in sorted(golden.glob("seed_*.npz")):
        found[f"0.6: {file.stem}"] = partial(of_06, file)
    return found | commands()


def one_fit(fit: Fit, folder: Path) -> Digests:
    model = fitted(fit)
    yield from describe(model)
    yield from ask_all(model, fit.data())
    if fit is FITS["zinb, ln, latent library"]:
        yield from ask_stored(model, fit.data(), folder)


def trained_twice(_folder: Path) -> Digests:
    model = fitted(FITS["nb"])
    model.train(**TRAIN | {"max_epochs": 2})
    yield from describe(model)


def saved_and_loaded(folder: Path) -> Digests:
    fit = FITS["panels by lane, covariates, efficiencies, dispersions by batch"]
    fitted(fit).save(folder / "model")
    yield from digests(folder / "model", "folder")
    model = totalvi.Model.load(folder / "model", fit.data())
    yield from ask_all(model, fit.data())
    yield from describe(model)
    model.train(**TRAIN | {"max_epochs": 1})
    yield from digests(model.get_latent_representation(), "after another fit")


def saved_for_scvi(folder: Path) -> Digests:
    for name in ("zinb, ln, latent library", "panels", "AnnData", "layer norm"):
        fit, out = FITS[name], folder / name
        fitted(fit).save_scvi(out)
        yield from digests(out, name)
        model = persistence.load_scvi(out, fit.data())
        yield from describe(model)


def interrupted(folder: Path) -> Digests:
    """Interrupt fits once they have written a checkpoint, and go on with them."""
    for name in ("zinb", "panels, adversary", "stopped early"):
        fit, file = FITS[name], folder / f"{name}.checkpoint"
        arguments = TRAIN | fit.train | {"max_epochs": 20}
        arguments |= {"checkpoint": file, "checkpoint_every": 1}
        model = totalvi.Model(fit.data(), **SMALL | fit.model)
        with _interruption_after(file):
            try:
                model.train(**arguments)
            except KeyboardInterrupt:
                pass
            else:
                raise RuntimeError("The fit ended before it was interrupted.")
        model.train(**arguments, resume=True)
        yield from describe(model)


class _interruption_after:  # noqa: N801, a context
    """Send SIGINT to this process once a file is there."""

    def __init__(self, file: Path) -> None:
        self.file, self.left = file, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._wait, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.left.set()

    def _wait(self) -> None:
        while not self.file.exists():
            if self.left.wait(0.002):
                return
        os.kill(os.getpid(), signal.SIGINT)


# ------------------------------------------------------------------------------------------- disk


def zarr_on_disk(folder: Path) -> Digests:
    models.panels().write_h5mu(folder / "cells.h5mu")
    run("convert", "cells.h5mu", "cells.zarr")
    yield from digests(folder / "cells.zarr", "store")
    model = totalvi.Model(folder / "cells.zarr", **BATCHES, **SMALL)
    model.train(**TRAIN, checkpoint=folder / "checkpoint")
    yield from describe(model)
    yield from ask_all(model, folder / "cells.zarr")
    yield from ask_stored(model, folder / "cells.zarr", folder)


def h5ad_on_disk(folder: Path) -> Digests:
    models.anndata().write_h5ad(folder / "cells.h5ad")
    options = {"protein_expression_obsm_key": "adt", "gene_likelihood": "zinb"}
    model = totalvi.Model(folder / "cells.h5ad", **BATCHES, **SMALL, **options)
    model.train(**TRAIN)
    yield from describe(model)
    yield from ask_all(model, folder / "cells.h5ad")


def windows_on_disk(_folder: Path) -> Digests:
    """Fit more cells than one window on disk holds."""
    size = ["--cells", "70000", "--genes", "24", "--proteins", "4", "--batches", "2"]
    run("simulate", "-o", "cells.zarr", *size)
    model = totalvi.Model("cells.zarr", **BATCHES, n_hidden=8, n_latent=3)
    model.train(**TRAIN | {"max_epochs": 2, "batch_size": 4096})
    yield from describe(model)
    yield from digests(model.get_latent_representation(), "latent")
    groups = model.differential_expression(groupby="cell_type", group1="type_0")
    yield from digests(groups, "differential expression")


# -------------------------------------------------------------------------------------- processes


def two_processes(folder: Path) -> Digests:
    script = Path(__file__).with_name("same_numbers.py")
    done = subprocess.run(
        [sys.executable, str(script), "shared", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    yield from describe(totalvi.Model.load(folder / "model"))
    yield from digests(folder / "stored", "stored")


def fit_shared(folder: Path) -> None:
    """Fit a model with two processes; this program runs in each of them from its start."""
    fit = FITS["panels"]
    model = totalvi.Model(fit.data(), **SMALL | fit.model)
    model.train(**TRAIN, devices=2)
    model.save(folder / "model")
    stored = folder / "stored"
    stored.mkdir(exist_ok=True)
    for _ in ask_stored(model, fit.data(), stored):
        pass


# ---------------------------------------------------------------------------------------- mapping


def mapped(way: str, _folder: Path) -> Digests:
    arguments: dict[str, Any] = {"reference_batch": "average"} if way == "average" else {}
    if way in ("trained", "panels"):
        arguments |= {"train": True, "batch_key": "batch"} | TRAIN | {"max_epochs": 2}
    fit = {
        "rna": FITS["nb"],
        "proteins": FITS["zinb, ln, latent library"],
        "trained": FITS["panels by lane, covariates, efficiencies, dispersions by batch"],
        "average": FITS["panels"],
        "panels": FITS["size factors, zinb, plain"],
    }[way]
    cells = models.rna_only() if way in ("rna", "average") else models.fewer_proteins()
    model = fitted(fit)
    query = model.map_query(cells, **arguments)
    yield from describe(query)
    yield from ask_all(query, cells)
    yield from digests(model.transfer_labels(query, "cell_type"), "labels")
    yield from digests(model.get_unlikeness(query), "unlikeness")
    yield from digests(model.get_query_reliability(query, n_samples=20), "reliability")


# -------------------------------------------------------------------- models of other packages


def of_scvi(source: Path, folder: Path) -> Digests:
    adata = anndata.read_h5ad(source / "adata.h5ad")
    adata.obs["cell_type"] = [f"type_{i % 3}" for i in range(adata.n_obs)]
    model = persistence.load_scvi(source, adata)
    yield from describe(model)
    yield from ask_all(model, adata)
    model.save_scvi(folder / "again")
    yield from digests(folder / "again", "again")


def of_06(file: Path, _folder: Path) -> Digests:
    """Give recorded weights of 0.6.x to a network, and ask it with the recorded counts."""
    with np.load(file) as stored:
        arrays = {name: torch.as_tensor(stored[name]) for name in stored}
    state = {n.removeprefix("param/"): v for n, v in arrays.items() if n.startswith("param/")}
    options: dict[str, Any] = {
        "seed_default_nb_ln": {},
        "seed_batch_zinb_normal": {
            "n_batch": 2, "reconstruction_loss_gene": "zinb", "latent_distribution": "normal",
            "n_layers_encoder": 2, "n_layers_decoder": 2, "gene_dispersion": "gene-batch",
            "protein_dispersion": "protein-batch",
        },
        "seed_batch_mask_nb_ln": {"n_batch": 2, "encoder_batch": False},
        "seed_label_nb_normal_nolog": {
            "n_batch": 2, "n_labels": 3, "gene_dispersion": "gene-label",
            "protein_dispersion": "protein-label", "latent_distribution": "normal",
            "log_variational": False,
        },
    }[file.stem]  # fmt: skip
    if "in/protein_mask" in arrays:
        options["protein_batch_mask"] = list(arrays["in/protein_mask"])
    network = totalvi.TOTALVI(120, 14, n_hidden=32, n_latent=8, **options).eval()
    persistence.load_scvi_state(network, state)
    yield from _ask_module(network, arrays["in/x"], arrays["in/y"], options)


def module(fused: bool, _folder: Path) -> Digests:
    """Ask networks of several options for their losses, gradients and parameters."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.poisson(0.6, (40, 30)), dtype=torch.float32)
    y = torch.as_tensor(rng.poisson(20, (40, 6)), dtype=torch.float32)
    for options in (
        {},
        {"n_batch": 2, "latent_distribution": "normal", "normalization": "layer"},
        {"n_batch": 2, "reconstruction_loss_gene": "zinb", "gene_dispersion": "gene-batch"},
        {"n_batch": 2, "library": "observed", "encoder_architecture": "direct", "scale_input": True,
         "background_scale": "softplus", "background_samples": 4, "protein_efficiency": True},
        {"n_batch": 2, "protein_batch_mask": [[True] * 6, [True] * 4 + [False] * 2],
         "hidden_protein_rate": 0.8},
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        sizes = {"n_hidden": 16, "n_latent": 4, "fused": fused, "generator": generator}
        network = totalvi.TOTALVI(30, 6, **sizes, **options)
        for mode in (True, False):
            network.train(mode)
            for name, digest in _ask_module(network, x, y, options):
                yield f"{options} {'training' if mode else 'evaluation'} {name}", digest


def _ask_module(
    network: totalvi.TOTALVI, x: torch.Tensor, y: torch.Tensor, options: dict[str, Any]
) -> Digests:
    n = len(x)
    extras: dict[str, Any] = {}
    if options.get("n_batch"):
        extras["batch_index"] = torch.arange(n)[:, None] % 2
    if options.get("n_labels"):
        extras["label"] = torch.arange(n)[:, None] % 3
    prior = (torch.full((n, 1), 4.0), torch.full((n, 1), 0.3))

    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(11)

    network.zero_grad()
    terms = network(x, y, *prior, **extras, generator=noise())
    yield from digests({k: v for k, v in terms._asdict().items() if v is not None}, "loss")
    sum(value.sum() for value in terms if isinstance(value, torch.Tensor)).backward()
    for name, weight in sorted(network.named_parameters()):
        if weight.grad is not None:
            yield from digests(weight.grad, f"gradient {name}")
    with torch.no_grad():
        asked = {**extras, "generator": noise()}
        yield from digests(network.inference(x, y, **asked, n_samples=2), "inference")
        yield from digests(network.get_sample_scale(x, y, **asked), "scale")
        yield from digests(network.get_sample_rate(x, y, **asked), "rate")
        yield from digests(network.get_sample_dispersion(x, y, **extras), "dispersion")
        del asked["generator"]
        asked.pop("label", None)
        for method in (network.sample_from_posterior_z, network.sample_from_posterior_l):
            yield from digests(method(x, y, **asked, generator=noise()), method.__name__)


# ------------------------------------------------------------------------------------ data, names


def data(_folder: Path) -> Digests:
    for name in ("plain", "panels", "droplets", "anndata", "rna_only"):
        found = getattr(models, name)()
        for modality in found.mod.values() if hasattr(found, "mod") else [found]:
            for part in ("X", "obs", "var", "obsm", "varm", "layers"):
                value = getattr(modality, part)
                yield from digests(
                    dict(value) if hasattr(value, "keys") and part[-1] in "ms" and
                    part not in ("obs",) else value, f"{name} {part}"
                )  # fmt: skip
    ambient = totalvi.ambient_profile(models.droplets(), models.plain(), batch_key="batch")
    yield from digests(ambient, "ambient")
    names = {"a": ["CD4_TotalSeqB", "CD8 (SK1)", "PD-1"], "b": ["CD279", "CD8a", "anti-human CD4"]}
    yield from digests(totalvi.harmonise_antibodies(names), "antibodies")
    parts = {"a": models.plain(), "b": models.rna_only(), "c": models.panels()}
    joined = totalvi.concat(parts, sub_batch_key="batch", batch_key="lot")
    yield from digests(joined["rna"].X, "joined RNA")
    yield from digests(joined["prot"].X, "joined proteins")
    yield from digests(joined.obs, "joined cells")
    yield from digests(dict(joined.uns["concat"]), "joined tables")
    unmeasured = totalvi.declare_unmeasured(models.plain(), {"batch_0": ["CD4"]}, batch_key="batch")
    yield from digests(unmeasured["prot"].X, "unmeasured")
    yield from digests(datasets.list_datasets(), "data sets")


def public_names(_folder: Path) -> Digests:
    yield "totalvi", " ".join(sorted(totalvi.__all__))
    for part in (totalvi.Model, totalvi.TOTALVI):
        yield from _signatures(part, dir(part))
    functions = [name for name in totalvi.__all__ if callable(getattr(totalvi, name))]
    yield from _signatures(totalvi, functions)
    yield from _signatures(persistence, ["load_scvi", "load_scvi_state"])
    yield from _signatures(processes, ["launch"])
    yield from _signatures(datasets, ["list_datasets", "fetch", "load", "Dataset10X"])
    for name, error in sorted(vars(totalvi.errors).items()):
        if isinstance(error, type) and issubclass(error, BaseException):
            yield f"totalvi.errors.{name}", " ".join(base.__name__ for base in error.__mro__)


def _signatures(owner: Any, names: list[str]) -> Digests:
    for name in sorted(names):
        member = getattr(owner, name)
        inherited = hasattr(torch.nn.Module, name)
        if name.startswith("_") or inherited or not callable(member):
            continue
        parameters = inspect.signature(member).parameters.values()
        texts = [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]
        yield f"{owner.__name__}.{name}", ", ".join(texts)
