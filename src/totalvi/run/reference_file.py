"""Write the minified reference of a run, and say what a file or folder of totalvi is."""

import json
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from totalvi.data.describe import Data
from totalvi.data.io.read import read
from totalvi.data.minified_cells import is_minified
from totalvi.errors import DataError, FormatError, counted, listed
from totalvi.fit.checkpoint import is_checkpoint, read_checkpoint
from totalvi.formats.minified import read_card
from totalvi.formats.model_folder import is_model, read_state, require_model
from totalvi.model import Model
from totalvi.run.folder import MODEL, RECORD, STORE, counts_beside, refuse_input_in_output

_MOST_BATCHES = 20
REFERENCE, MODEL_FOLDER, RESULTS = "minified reference", "model", "results"
CHECKPOINT = "checkpoint"


def write_reference(folder: Path, output: Path, overwrite: bool = False) -> Path:
    """Write the minified reference of a run.

    Parameters
    ----------
    folder
        Folder of `totalvi run`; or a model folder with ``results.h5mu`` or ``results.zarr`` beside it.
    output
        File to write.

    Raises
    ------
    DataError
        When the counts are not there.
    FormatError
        When ``folder`` is a minified reference already, or no model.
    OutputError
        When ``output`` may not be replaced, or cannot be written.
    """
    refuse_input_in_output(folder, output)
    if is_minified(folder):
        raise FormatError(f"{folder} is a minified reference already; copy the file.")
    model_folder = _model_of(folder)
    require_model(model_folder)
    counts = counts_beside(model_folder)
    if counts is None:
        raise DataError(
            f"{folder} holds no counts of the cells that the model was fitted to, which a reference is "
            "made from; give the folder of `totalvi run`, or in Python call "
            "Model.load(path, data).save(file, minified=True)."
        )
    data: Data = counts if counts.name == STORE else read(counts)
    return Model.load(model_folder, data).save(output, overwrite=overwrite, minified=True)


def _model_of(path: Path) -> Path:
    return path / MODEL if not is_model(path) and (path / MODEL).is_dir() else path


def information(path: Path) -> dict[str, Any]:
    """Return what a reference, a model folder, a folder of results or a checkpoint is, as JSON values.

    Raises
    ------
    FormatError
        When ``path`` is none of these, or damaged.
    """
    if is_minified(path):
        return {"kind": REFERENCE, "bytes": path.stat().st_size, **read_card(path)}
    if (path / RECORD).is_file():
        found = _record(path / RECORD)
        model = _about_model(path / MODEL) if is_model(path / MODEL) else {}
        return {"kind": RESULTS, **found, **model}
    if path.is_file() and (is_checkpoint(path) or path.suffix == f".{CHECKPOINT}"):
        return {"kind": CHECKPOINT, **_about_checkpoint(path)}
    require_model(path)
    return {"kind": MODEL_FOLDER, **_about_model(path)}


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        versions, finished = found["versions"], found["finished"]
        said = {name: found[name] for name in ("command", "summary", "notes") if name in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is not the record of a command of totalvi ({error}); give another folder."
        ) from error
    return {"finished": finished, "versions": versions, **said}


def _about_checkpoint(path: Path) -> dict[str, Any]:
    saved = read_checkpoint(path)
    rows = saved.values["rows"]
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return {
        "written": written,
        "epochs": len(rows),
        "most_epochs": saved.settings["plan"]["max_epochs"],
        "steps": saved.values["steps_done"],
        "held_out_loss": rows[-1].get("validation_loss") if rows else None,
        "stopped": saved.values["stopped"],
    }


def _about_model(path: Path) -> dict[str, Any]:
    state = read_state(path)
    schema, result = state.schema, state.result
    mapping = state.mapping
    return {
        "genes": len(schema.gene_names),
        "proteins": len(schema.protein_names),
        "batches": list(schema.batch_names),
        "mapped_batches": [] if mapping is None else [name for _, name in mapping.batches],
        "fit": {
            "n_latent": state.network.n_latent,
            "training_cells": len(result.split.train),
            "epochs": len(result.history),
            **{k: result.summary[k] for k in ("best_epoch", "stopped") if k in result.summary},
        },
    }


def lines_of(path: Path, found: dict[str, Any]) -> list[str]:
    """Return the lines that say what `information` found.

    Raises
    ------
    FormatError
        When something is missing, or not what it should be.
    """
    try:
        lines = list(_lines(path, found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise FormatError(f"{path} does not say what it holds ({why}); write it again.") from error
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]


def _lines(path: Path, found: dict[str, Any]) -> Iterator[str]:
    kind = found["kind"]
    if kind == REFERENCE:
        card = found["card"]
        size = found["bytes"]
        yield f"{path}: a minified reference of {counted(card['cells'], 'cell')}, {size / 1e6:,.1f} MB"
        yield from _of_card(card, found)
        return
    if kind == CHECKPOINT:
        goes_on = "that has ended" if found["stopped"] else "to resume"
        yield f"{path}: a checkpoint, of a fit {goes_on}"
        yield _row("written", found["written"])
        yield _row("fit", f"{found['epochs']:,} of {counted(found['most_epochs'], 'epoch')}")
        if found["held_out_loss"] is not None:
            yield _row("held out", f"loss {found['held_out_loss']:,.1f} after the last epoch")
        yield _row("steps", f"{found['steps']:,}")
        if found["stopped"]:
            yield _row("ended", found["stopped"])
        return
    which = {MODEL_FOLDER: "a model", RESULTS: "results of totalvi"}[kind]
    yield f"{path}: {which}"
    if "finished" in found:
        yield _row("finished", f"{found['finished']}, totalvi {found['versions'].get('totalvi')}")
    if "summary" in found:
        yield _row("summary", found["summary"])
    if "genes" in found:
        yield _row("features", f"{counted(found['genes'], 'gene')}, {_proteins(found['proteins'])}")
        yield _row(
            "batches", f"{len(found['batches']):,}: {listed(found['batches'], _MOST_BATCHES)}"
        )
        if found["mapped_batches"]:
            yield _row("mapped", listed(found["mapped_batches"], _MOST_BATCHES))
        yield _row("fit", _fit(found["fit"]))
    for note in found.get("notes", []):
        yield _row("note", note)


def _of_card(card: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    yield _row("written by", f"totalvi {found['versions']['totalvi']}")
    without = card["cells_without_rna"]
    cells = f"{card['cells']:,}" + (f", {without:,} without RNA" if without else "")
    yield _row("cells", f"{cells}; counts of {card['cells_with_counts']:,}, to calibrate on")
    yield _row("features", f"{counted(card['genes'], 'gene')}, {_proteins(card['proteins'])}")
    batches = [f"{name} ({n:,} cells)" for name, n in card["batches"].items()]
    yield _row("batches", f"{len(batches):,}: {_some(batches)}")
    if len({panel["proteins"] for panel in card["panels"].values()}) > 1:
        panels = [f"{name} ({_proteins(p['proteins'])})" for name, p in card["panels"].items()]
        yield _row("panels", _some(panels))
    yield _row("fit", _fit(card["fit"]))
    if card["obs_left_out"]:
        yield _row("not kept", f"{_some(card['obs_left_out'])} of obs")
    yield ""
    yield from textwrap.wrap(card["measured"], 100)
    if card["labels"]:
        table = pd.DataFrame.from_dict(card["labels"], orient="index")
        yield ""
        yield "Labels: share of the cells that get their own"
        shown = table[["labels", "cells", "accuracy_rna_and_proteins", "accuracy_rna"]]
        yield from _table(shown.set_axis(["labels", "cells", "all", "RNA alone"], axis=1))
    if card["imputed_proteins"]:
        table = pd.DataFrame.from_dict(card["imputed_proteins"], orient="index")
        yield ""
        yield "Proteins from RNA: Pearson correlation of log(1 + count), over all cells and in clusters"
        shown = table[["n_cells", "pearson", "within_pearson", "rmse", "reliable"]].copy()
        shown["reliable"] = ["yes" if value else "no" for value in shown["reliable"]]
        yield from _table(
            shown.set_axis(["cells", "all", "in clusters", "RMSE", "reliable"], axis=1)
        )


def _row(name: str, value: str) -> str:
    return f"{name:<12}{value}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_BATCHES:,} more" if len(names) > _MOST_BATCHES else ""
    return ", ".join(names[:_MOST_BATCHES]) + more


def _proteins(number: int) -> str:
    return counted(number, "protein")


def _fit(fit: dict[str, Any]) -> str:
    said = f"{fit['n_latent']} latent dimensions"
    if not fit["epochs"]:
        return said
    trained = counted(fit["training_cells"], "training cell")
    return f"{said}, {trained}, {fit['epochs']:,} epochs, the best {fit['best_epoch'] + 1:,}"


def _table(table: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of a table, with two digits of fractions, whole numbers as they are."""
    for name, column in table.items():
        if column.dtype.kind == "f":
            table = table.assign(**{str(name): column.map("{:.2f}".format).replace("nan", "-")})
        elif column.dtype.kind in "iu":
            table = table.assign(**{str(name): column.map("{:,}".format)})
    yield from table.to_string().splitlines()
