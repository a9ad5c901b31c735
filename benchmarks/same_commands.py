"""Digests of the command line: the output of each command, and its options."""

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import same_models as models
from same_digests import digests

COMMANDS = [
    "run", "demo", "explore", "impute", "check", "convert", "map", "train", "denoise", "de", "report",
    "simulate", "datasets",
]  # fmt: skip
SIZE = ["--cells", "300", "--genes", "120", "--proteins", "12", "--batches", "2"]


def run(*arguments: str) -> str:
    """Run a command in this process, and return what it prints."""
    before, printed = sys.argv, io.StringIO()
    sys.argv = ["totalvi", *arguments]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_module("totalvi", run_name="__main__", alter_sys=False)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"totalvi {' '.join(arguments)}: {printed.getvalue()}") from end
    finally:
        sys.argv = before
    return printed.getvalue()


def commands() -> dict[str, Callable[[Path], Iterator[tuple[str, str]]]]:
    return {
        "totalvi --help": options,
        "totalvi run, denoise, de, map": run_and_ask,
        "totalvi run --on-disk": run_on_disk,
        "totalvi impute": impute,
        "totalvi train, convert": train_and_convert,
    }


def options(_folder: Path) -> Iterator[tuple[str, str]]:
    for command in COMMANDS:
        words = re.findall(
            r"(?<![\w-])--?[a-z][\w-]*", run(command, "--help").split("Options:")[-1]
        )
        yield command, " ".join(sorted(set(words)))


def run_and_ask(folder: Path) -> Iterator[tuple[str, str]]:
    run("simulate", "-o", "cells.h5mu", *SIZE, "--raw", "raw.h5mu", "--empty", "400")
    models.rna_only().write_h5ad("query.h5ad")
    yield from digests(folder / "cells.h5mu", "cells")
    yield "check", run("check", "cells.h5mu")
    run("run", "cells.h5mu", "-o", "results", "--batch", "batch", "--epochs", "3",
        "--raw", "raw.h5mu")  # fmt: skip
    run("denoise", "results", "-o", "denoised.h5mu", "--as-batch", "batch_1", "--samples", "3")
    run("de", "results", "-o", "de.csv")
    run("de", "results", "--groupby", "batch", "--batch-correction", "-o", "batches.csv")
    run("map", "results", "query.h5ad", "-o", "mapped")
    for name in ("results", "denoised.h5mu", "de.csv", "batches.csv", "mapped"):
        yield from digests(folder / name, name)


def run_on_disk(folder: Path) -> Iterator[tuple[str, str]]:
    run("simulate", "-o", "cells.h5mu", *SIZE)
    run("convert", "cells.h5mu", "cells.zarr")
    run("run", "cells.zarr", "-o", "results", "--on-disk", "--batch", "batch", "--epochs", "3",
        "--genes", "100")  # fmt: skip
    for name in ("cells.zarr", "results"):
        yield from digests(folder / name, name)


def impute(folder: Path) -> Iterator[tuple[str, str]]:
    models.plain().write_h5mu("cite.h5mu")
    models.rna_only().write_h5ad("rna.h5ad")
    run("impute", "cite.h5mu", "rna.h5ad", "-o", "imputed", "--epochs", "3", "--samples", "20")
    yield from digests(folder / "imputed", "imputed")


def train_and_convert(folder: Path) -> Iterator[tuple[str, str]]:
    models.panels().write_h5mu("cells.h5mu")
    run("train", "cells.h5mu", "-o", "model", "--epochs", "3", "--batch", "batch",
        "--covariate", "sex", "--continuous-covariate", "age")  # fmt: skip
    run("convert", "model", "-o", "scvi", "--to", "scvi")
    run("convert", "scvi", "-o", "back")
    for name in ("model", "scvi", "back"):
        yield from digests(folder / name, name)
