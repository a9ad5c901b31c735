"""What a damaged text file says, read by an independent and strict parser."""

import csv
import gzip
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from fuzzing.samples import Reading, digest, of_matrix


def text_of(file: Path) -> str:
    """Return the whole text; raises where it is cut short or no text."""
    content = file.read_bytes()
    return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")


def what_tables_say(place: Path) -> Reading | None:
    """Return what two tables say; None where they are not whole tables of numbers."""
    try:
        (rna,), (protein,) = place.glob("rna.*"), place.glob("protein.*")
        parts = _cells_of_both(_table(text_of(rna)), _table(text_of(protein)))
    except (ValueError, OSError, EOFError, StopIteration, csv.Error):
        return None
    return _reading(parts)


def _cells_of_both(rna: "Part", protein: "Part") -> dict[str, "Part"]:
    """Return both tables; a cell that only one of them names is left out, with a warning.

    Names are the same whose barcodes are, or that differ in punctuation and case alone.
    """
    known = [[_core(cell) for cell in cells] for cells, _, _ in (rna, protein)]
    both = [cell for cell in known[0] if cell in set(known[1])]
    parts = {"rna": rna, "prot": protein}
    if not both:
        return parts
    names = [rna[0][known[0].index(cell)] for cell in both]
    return {
        name: (names, features, counts[[here.index(cell) for cell in both]])
        for (name, (_, features, counts)), here in zip(parts.items(), known, strict=True)
    }


def _core(cell: str) -> str:
    bases = "".join(re.findall("[ACGTN]{6,}", cell.upper()))
    return bases or re.sub(r"[\W_]", "", cell).lower()


def what_a_folder_says(place: Path) -> Reading | None:
    """Return what a matrix folder says; None where it is not whole."""
    try:
        (matrix,), (features,), (barcodes,) = (
            place.glob(f"{name}*") for name in ("matrix.mtx", "features.tsv", "barcodes.tsv")
        )
        cells = [line.split("\t")[0] for line in _lines(barcodes)]
        listed = [line.split("\t") for line in _lines(features)]
        dense = _matrix(text_of(matrix), len(cells), len(listed))
        of_type = np.array([_modality(row) for row in listed])
        names = [row[1] for row in listed]
    except (ValueError, OSError, EOFError, IndexError):
        return None
    parts = {}
    for modality in map(str, set(of_type)):
        chosen = np.flatnonzero(of_type == modality)
        parts[modality] = (cells, [names[i] for i in chosen], dense[:, chosen])
    return _reading(parts)


def _modality(row: list[str]) -> str:
    kind = row[2].strip().lower()
    other = re.sub(r"\W+", "_", kind).strip("_")
    if re.search(r"\bantibod(y|ies)\b", kind):
        return "prot"
    return {"gene expression": "rna"}.get(kind, other)


def is_json(file: Path) -> bool:
    """Return whether a file is whole JSON, which may rightly say something else."""
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


def _lines(file: Path) -> list[str]:
    return [line for line in text_of(file).splitlines() if line]


Part = tuple[list[str], list[str], np.ndarray]


def _table(text: str) -> Part:
    separator = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    values = np.array([[_number(field) for field in row[1:]] for row in rows[1:]])
    if values.ndim != 2 or values.shape[1] != len(rows[0]) - 1:
        raise ValueError("no table")
    return [row[0].strip() for row in rows[1:]], [name.strip() for name in rows[0][1:]], values


def _number(field: str) -> float:
    return float(np.float32(field.strip() or "nan"))


def _matrix(text: str, n_cells: int, n_features: int) -> np.ndarray:
    lines = [line for line in text.splitlines()[1:] if line.strip() and not line.startswith("%")]
    sizes, entries = [int(field) for field in lines[0].split()], lines[1:]
    if sizes != [n_features, n_cells, len(entries)]:
        raise ValueError("sizes differ")
    dense = np.zeros((n_cells, n_features))
    for line in entries:
        feature, cell, count = line.split()
        if not (0 < int(feature) <= n_features and 0 < int(cell) <= n_cells):
            raise ValueError("outside")
        dense[int(cell) - 1, int(feature) - 1] += float(np.float32(count))
    return dense


def _reading(parts: dict[str, Part]) -> Reading:
    found = {"modalities": digest(sorted(parts)), "batch": digest([])}
    for name, (cells, features, values) in parts.items():
        found[f"{name}.cells"], found[f"{name}.features"] = digest(cells), digest(_unique(features))
        found[f"{name}.counts"] = of_matrix(values)
    return found


def _unique(names: list[str]) -> list[str]:
    return [str(name) for name in make_index_unique(pd.Index(names, dtype=object))]
