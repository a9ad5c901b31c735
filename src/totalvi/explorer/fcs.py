"""FCS 3.1 files of the cells: values of proteins, the map, and which gates each cell is in.

The format (Spidlen et al., Cytometry A 2010) is a header of offsets, a text of keywords, and the
numbers of each cell after the other, here float32 in little-endian order. Channels are named as
Gating-ML refers to them (`totalvi.explorer.gatingml`), with a short name for people in ``$PnS``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from totalvi.atomic import write_file
from totalvi.errors import DataError, OutputError
from totalvi.explorer.axes import WORDS, Axis, AxisChoices, Kind
from totalvi.explorer.gates import Gating, members
from totalvi.explorer.gatingml import channel_of, to_gating_ml
from totalvi.explorer.run_cells import Cells
from totalvi.run.folder import DOUBLET_PROBABILITY

_KINDS: tuple[Kind, ...] = ("protein_raw", "protein_denoised", "protein_foreground")
_HEADER_BYTES = 58
_MOST_BYTES_OF_HEADER = 99_999_999  # an offset beyond is 0 there, and only among the keywords
_SEPARATOR = "/"
_CELL = "Cell"  # channel of the number of each cell in the data, from 1
_CELLS_AT_ONCE = 50_000


def channels_of(cells: Cells, gating: Gating) -> list[Axis]:
    """Return the axes that are channels: values of proteins, doublets, the map, what gates lie on.

    An axis on an asinh scale is a channel of its values; on a log scale, of log10(1 + value).
    """
    axes = [
        Axis(kind, str(name))
        for kind in _KINDS
        if kind in cells.kinds
        for name in cells.protein_names
    ]
    axes += [Axis("obs", DOUBLET_PROBABILITY)] if DOUBLET_PROBABILITY in cells.obs else []
    if cells.umap is not None:
        axes += [Axis("umap", "1"), Axis("umap", "2")]
    for gate in gating.gates:
        for axis in gate.axes:
            axes.append(axis if axis.scale == "log" else Axis(axis.kind, axis.name))
    return list(dict.fromkeys(axes))


def fcs_bytes(
    values: np.ndarray, names: Sequence[str], labels: Sequence[str], **keywords: str
) -> bytes:
    """Return a file in FCS 3.1.

    Parameters
    ----------
    values
        Of the cells, (cells, channels); NaN becomes 0, as the format has no missing values.
    names, labels
        Of the channels: for programs (``$PnN``) and people (``$PnS``).
    **keywords
        More of the text, such as the sample.

    Examples
    --------
    >>> fcs_bytes(np.array([[1.0, 2.0]]), ["a", "b"], ["A", "B"])[:6]
    b'FCS3.1'
    """
    data = np.ascontiguousarray(np.nan_to_num(values, nan=0.0), dtype="<f4").tobytes()
    n_cells, n_channels = values.shape
    text = {
        "$BEGINANALYSIS": "0", "$ENDANALYSIS": "0", "$BEGINSTEXT": "0", "$ENDSTEXT": "0",
        "$BYTEORD": "1,2,3,4", "$DATATYPE": "F", "$MODE": "L", "$NEXTDATA": "0",
        "$PAR": str(n_channels), "$TOT": str(n_cells), **keywords,
    }  # fmt: skip
    top = np.nan_to_num(values, nan=0.0).max(axis=0, initial=1.0)
    for number, (name, label) in enumerate(zip(names, labels, strict=True), start=1):
        text |= {
            f"$P{number}N": name, f"$P{number}S": label, f"$P{number}B": "32", f"$P{number}E": "0,0",
            f"$P{number}R": str(int(np.ceil(top[number - 1])) + 1),
        }  # fmt: skip
    before = ""
    begin = end = 0
    while True:  # the text holds its own length
        whole = {"$BEGINDATA": f"{begin}", "$ENDDATA": f"{end}", **text}
        words = [_escaped(word) for pair in whole.items() for word in pair]
        written = _SEPARATOR + _SEPARATOR.join(words) + _SEPARATOR
        encoded = written.encode()
        if written == before:
            break
        before = written
        begin = _HEADER_BYTES + len(encoded)
        end = begin + len(data) - 1
    if not data:
        raise DataError("An FCS file needs at least one cell and one channel.")
    offsets = [_HEADER_BYTES, _HEADER_BYTES + len(encoded) - 1, begin, end, 0, 0]
    if end > _MOST_BYTES_OF_HEADER:
        offsets[2:4] = [0, 0]
    header = b"FCS3.1    " + b"".join(f"{offset:>8}".encode() for offset in offsets)
    return header + encoded + data


def _escaped(text: str) -> str:
    return (text or " ").replace(_SEPARATOR, _SEPARATOR * 2)


def write_exchange(
    cells: Cells, gating: Gating, folder: Path, sample_column: str | None = None
) -> list[Path]:
    """Write the cells as FCS, one file for each sample, with the gates as Gating-ML 2.0.

    Parameters
    ----------
    folder
        Is made where it is missing; files with the same names are replaced.
    sample_column
        Column of ``obs``; None: all cells are in ``cells.fcs``.

    Returns
    -------
    The files: NAME.fcs of each sample, and ``gates.xml``; or NAME.xml of each, where gates differ.

    Raises
    ------
    OutputError
        When gates differ by sample and the samples are not those of the files.
    """
    differing = {adjusted.column for gate in gating.gates for adjusted in gate.by_sample}
    if not differing <= {sample_column}:
        raise OutputError(
            f"Gates differ by {sorted(differing)[0]!r}; choose it as Samples, so that each has a file."
        )
    folder.mkdir(parents=True, exist_ok=True)
    axes = channels_of(cells, gating)
    choices = AxisChoices(list(map(str, cells.protein_names)), [], [], cells.kinds, True)
    inside = members(gating, cells.inside, cells.n_cells)
    numbers = range(1, len(gating.populations) + 1)
    names = [_CELL, *map(channel_of, axes), *(f"Gate {number}" for number in numbers)]
    labels = ["cell", *(_label(axis, choices.tidy) for axis in axes)]
    labels += [f"in {name}" for name in gating.populations]
    written = []
    for name, sample, some in _samples(cells, sample_column):
        values = np.empty((len(some), len(names)), dtype=np.float32)
        values[:, 0] = some + 1
        for place, axis in enumerate(axes, start=1):
            values[:, place] = cells.places(axis.kind, axis.name, axis.scale)[some]
        for place, gate in enumerate(gating.populations, start=len(axes) + 1):
            values[:, place] = inside[gate][some]
        content = fcs_bytes(values, names, labels, SAMPLE=name)
        written.append(folder / f"{name}.fcs")
        write_file(written[-1], content)
        if differing:
            written.append(folder / f"{name}.xml")
            write_file(written[-1], to_gating_ml(gating, sample).encode())
    if not differing:
        written.append(folder / "gates.xml")
        write_file(written[-1], to_gating_ml(gating).encode())
    return written


def _samples(
    cells: Cells, column: str | None
) -> list[tuple[str, tuple[str, str] | None, np.ndarray]]:
    """Return a file name for each sample that no other has, the sample, and its cells."""
    if column is None:
        return [("cells", None, np.arange(cells.n_cells))]
    found: list[tuple[str, tuple[str, str] | None, np.ndarray]] = []
    taken = set[str]()
    for sample in cells.samples(column).names:
        name = re.sub(r"[^\w.+-]", "_", sample).lstrip(".") or "sample"
        while name.lower() in taken:
            name += "_"
        taken.add(name.lower())
        found.append((name, (column, sample), np.flatnonzero(cells.of_sample(column, sample))))
    return found


def _label(axis: Axis, tidy: Mapping[str, str]) -> str:
    if axis.kind == "umap":
        return f"UMAP {axis.name}"
    words = (
        f"{tidy.get(axis.name, axis.name)} {WORDS[axis.kind].partition(', ')[2] or 'annotation'}"
    )
    return f"log10(1 + {words})" if axis.scale == "log" else words
