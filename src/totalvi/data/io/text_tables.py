"""Read counts from delimited text, and detect whether its cells are the rows or the columns."""

import csv
import gzip
import io
import os
import re
import warnings
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from totalvi.data.cell_pairs import pair_cells
from totalvi.data.io.features import ENSEMBL, says_antibody
from totalvi.data.io.readable_parts import say_of_reading
from totalvi.data.io.stand_ins import require_file_itself
from totalvi.data.io.trust import UNSUSPECTED, reading
from totalvi.errors import ReadError, argument, listed, setting

Axis = Literal["rows", "columns"]
BARCODE = re.compile(r"[ACGTN]{8,}")
LONGEST_LINE = 2**28  # bytes; the names of five million cells in columns take half of it
LARGEST_TEXT_RATIO = 300  # bytes of lists of names and of entries; gzip compresses them to a fourth
VALUES_PER_CHUNK = 20_000_000
MOST_NAMES = 1_000_000  # that are compared in all ways to find out where the cells are
_UNNAMED = re.compile(
    r"|unnamed[: _.-]*\d*|index|level_\d|x|v1|row[ _.]?(names?|id)?", re.IGNORECASE
)
MISSING = ["", "NA", "NaN", "nan", "N/A"]


def open_text(path: Path, at_most: int | None = None) -> io.BufferedReader:
    """Open text, gzipped or not, and check it while it is read.

    Parameters
    ----------
    at_most
        Largest number of bytes, or `UNSUSPECTED` if that is larger. None: no limit.

    Raises
    ------
    ReadError
        While reading: at a NUL byte, which readers of tables treat as the end of a field; at a carriage
        return within a line; or beyond ``at_most``.
    """
    return io.BufferedReader(_CheckedText(path, at_most), buffer_size=2**18)


def require_last_line_end(path: Path) -> None:
    """Refuse text that ends within a line, unless it is gzipped and so has a checksum.

    Raises
    ------
    ReadError
        When it does, because a number may have lost its last digits.
    """
    with path.open("rb") as file:
        is_whole = _is_gzip(path) or file.seek(0, os.SEEK_END) == 0
        if not is_whole:
            file.seek(-1, os.SEEK_END)
            is_whole = file.read(1) in b"\n"
    if not is_whole:
        raise ReadError(
            f"{path} ends within a line, so that it may be cut short; copy, download or write it "
            "again, or end its last line if it is whole."
        )


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


class _CheckedText(io.RawIOBase):
    def __init__(self, path: Path, at_most: int | None) -> None:
        self._path, self._at_most, self._n_read = path, at_most, 0
        self._ended_in_return = False
        require_file_itself(path, may_be_gzip=True)
        opened = gzip.open(path, "rb") if _is_gzip(path) else path.open("rb")  # noqa: SIM115
        self._file = cast(io.BufferedReader, opened)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        content = self._file.read(len(buffer))
        if b"\0" in content:
            raise ReadError(
                f"{self._path} is not text (it holds a NUL byte); give a .csv or .tsv file, or write "
                "it again as text."
            )
        self._require_paired_returns(content)
        self._n_read += len(content)
        if self._at_most is not None and self._n_read > max(self._at_most, UNSUSPECTED):
            raise ReadError(
                f"{self._path} unpacks to more than {self._n_read // 2**20} MB, which no list of this "
                "size does; copy, download or write it again."
            )
        buffer[: len(content)] = content
        return len(content)

    def _require_paired_returns(self, content: bytes) -> None:
        """Refuse a carriage return within a line, which readers of tables treat as its end."""
        alone = content.count(b"\r") - content.count(b"\r\n") - content.endswith(b"\r")
        if alone or (self._ended_in_return and not content.startswith(b"\n")):
            raise ReadError(
                f"{self._path} has a carriage return that ends no line; write it again with line ends "
                "of one kind."
            )
        self._ended_in_return = content.endswith(b"\r")

    def close(self) -> None:
        self._file.close()
        super().close()


class Table(NamedTuple):
    """The numbers of a text file in its own layout: CSR float32, with names of rows and columns."""

    path: Path
    values: sparse.csr_matrix
    rows: pd.Index
    columns: pd.Index
    left_out: tuple[str, ...] = ()

    def names(self, axis: Axis) -> pd.Index:
        """Return the names along an axis."""
        return self.rows if axis == "rows" else self.columns

    def to_anndata(self, cells_in: Axis) -> AnnData:
        """Return cells x features."""
        counts = self.values if cells_in == "rows" else self.values.T.tocsr()
        cells, features = self.rows, self.columns
        if cells_in == "columns":
            cells, features = features, cells
        found = AnnData(counts, obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=features))
        if self.left_out:
            say_of_reading(
                found,
                "row_numbers",
                f"Left out: the column {listed(self.left_out)} of {self.path}, which numbers the rows.",
            )
        return found


def read_table(path: Path) -> Table:
    """Read a table of numbers whose first line and first column are names.

    The first line shows whether the delimiter is a tab, comma or semicolon. It may lack the corner,
    as in files that R writes. Empty and NA fields become NaN.
    """
    with reading(path, "a table of text"):
        n_comments, delimiter, columns = _header(path)
        blocks: list[sparse.csr_matrix] = []
        rows: list[str] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # lines that are too long
                for chunk in _chunks(path, n_comments, delimiter, len(columns)):
                    values = chunk.iloc[:, 1:].to_numpy(np.float32)
                    if np.isnan(values[:, -1]).any():  # a line that ends early looks like this
                        _require_whole_lines(path, n_comments, delimiter, columns)
                    rows.extend(chunk.iloc[:, 0])
                    blocks.append(sparse.csr_matrix(values))
        except (ValueError, pd.errors.ParserWarning):
            _require_whole_lines(path, n_comments, delimiter, columns, numbers=True)
            raise
    require_last_line_end(path)
    if not rows:
        raise ReadError(f"{path} holds a line of names but no counts; write the table again.")
    counts = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    names = pd.Index(columns, dtype=object)
    numbers = _row_numbers(counts, names)
    left_out = tuple(names[numbers])
    if left_out:
        counts, names = counts[:, ~numbers], names[~numbers]
    return Table(path, counts, pd.Index(rows, dtype=object), names, left_out)


def _row_numbers(counts: sparse.csr_matrix, names: pd.Index) -> np.ndarray:
    """Mark columns that number the rows, as an index does that was written once more."""
    found = np.zeros(len(names), dtype=bool)
    n = counts.shape[0]
    odd = [i for i, name in enumerate(names) if _UNNAMED.fullmatch(name)]
    for column in odd if len(odd) < len(names) and n > 2 else ():
        values = counts[:, column].toarray().ravel()
        found[column] = any(np.array_equal(values, np.arange(start, start + n)) for start in (0, 1))
    return found


def _chunks(
    path: Path, n_comments: int, delimiter: str, n_columns: int
) -> "pd.io.parsers.TextFileReader":
    fields = range(n_columns + 1)
    return pd.read_csv(
        open_text(path),
        sep=delimiter,
        header=None,
        names=fields,
        index_col=False,
        skiprows=n_comments + 1,
        dtype=dict.fromkeys(fields[1:], np.float32),
        converters={0: str.strip},
        na_values=MISSING,
        keep_default_na=False,
        encoding="utf-8-sig",
        chunksize=max(1, VALUES_PER_CHUNK // n_columns),
        low_memory=False,
    )


def _open(path: Path) -> IO[str]:
    return io.TextIOWrapper(open_text(path), encoding="utf-8-sig", newline="")


def _header(path: Path) -> tuple[int, str, list[str]]:
    """Find the lines of comments, the delimiter, and the names of the columns that hold counts."""
    with _open(path) as file:
        n_comments, last, behind = 0, "", ""
        line = file.readline(LONGEST_LINE)
        while line.startswith("#"):
            n_comments, last = n_comments + 1, line
            line = file.readline(LONGEST_LINE)
        if n_comments and not last.startswith("##") and _n_marks(last) >= _n_marks(line):
            n_comments -= 1
            line, behind = last, line  # a head that begins with this mark
        if len(line) == LONGEST_LINE:
            raise ReadError(f"{path} has a first line without end; write the table again.")
        delimiter = "\t" if "\t" in line else max(",;", key=line.count)
        if delimiter not in line and " " in line.strip():
            delimiter = " "  # as R writes tables by default
        header = next(csv.reader([line], delimiter=delimiter), [])
        rest = chain([behind], file) if behind else file
        first = next(csv.reader(rest, delimiter=delimiter), [])
    # An empty last field is a stray delimiter: R, which leaves out the corner, writes NA.
    has_corner = (
        len(first) != len(header) + 1 or not first[-1].strip() or not "".join(header[:1]).strip()
    )
    columns = [name.strip() for name in (header[1:] if has_corner else header)]
    if not columns:
        raise ReadError(
            f"{path} has only one column; give a count table, with a column of names and then one per "
            "cell or feature, separated by commas, tabs or spaces."
        )
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise ReadError(f'{path} has more than one column "{name}"; give each its own name.')
        seen.add(name)
    return n_comments, delimiter, columns


def _n_marks(line: str) -> int:
    return max(map(line.count, "\t,; "))


def _require_whole_lines(
    path: Path, n_comments: int, delimiter: str, columns: list[str], numbers: bool = False
) -> None:
    """Raise for the first line of the wrong length and, on request, for the first field of text."""
    with _open(path) as file:
        lines = csv.reader(file, delimiter=delimiter)
        for line in islice(lines, n_comments + 1, None):
            if line and len(line) != len(columns) + 1:
                raise ReadError(
                    f'{path} has {len(line)} fields in its line {lines.line_num} (row "{line[0]}") '
                    f"in place of {len(columns) + 1}; write the table again."
                )
            for name, field in zip(columns, line[1:], strict=bool(line)) if numbers else ():
                if not _is_number(field):
                    fix = "remove or fix it, as a count table holds numbers only"
                    if len(columns) == 2 and not field[:1].isdigit():
                        fix = "if each line is one count, write a table of all cells and features"
                    raise ReadError(
                        f'{path} holds the text "{field[:60]}" in row "{line[0]}", column "{name}"; '
                        f"{fix}."
                    )


def _is_number(field: str) -> bool:
    try:
        float(field.strip() or "nan")
    except ValueError:
        return field.strip() in MISSING
    return "_" not in field  # Python reads 1_000, pandas does not


def orient_pair(
    first: Table | AnnData, second: Table | AnnData, cells_in: Axis | None, paths: tuple[Path, Path]
) -> tuple[AnnData, AnnData]:
    """Transpose both so that cells are rows: along the axes that share the most names."""
    axes = {
        (a, b): (names, others)
        for a, names in _cell_axes(first, cells_in).items()
        for b, others in _cell_axes(second, cells_in).items()
    }
    shared = {
        both: len(names.unique().intersection(others.unique()))
        for both, (names, others) in axes.items()
    }
    is_clear = any(2 * n >= max(map(len, axes[both])) for both, n in shared.items())
    n_names = max(len(names) for both in axes.values() for names in both)
    may_differ = len(axes) > 1 and not is_clear and n_names <= MOST_NAMES
    if may_differ or max(shared.values()) == 0:
        # Few are named alike, as a gene and its protein are; the cells may be named otherwise.
        pairs = {both: pair_cells(*names) for both, names in axes.items()}
        found = {both: len(each.first) for both, each in pairs.items() if each.is_enough}
        shared = found or {both: len(each.first) for both, each in pairs.items()}
    most = max(shared.values())
    best = [axes for axes, n in shared.items() if n == most]
    if most == 0:
        names, others = (next(iter(_cell_axes(x, cells_in).values())) for x in (first, second))
        _require_upright(first, second, paths)
        _require_upright(second, first, paths[::-1])
        hint = ""
        if isinstance(first, Table) or isinstance(second, Table):
            hint = f', or say with {argument("cells_in")} whether they are "rows" or "columns"'
        raise ReadError(
            f"{paths[0]} and {paths[1]} have no cell name in common (they begin with "
            f'"{_first(names)}" and "{_first(others)}"); write the cell names alike in both{hint}.'
        )
    if len(best) > 1:
        raise ReadError(
            f"{paths[0]} and {paths[1]} have {most} names in common along either axis; say where "
            f"the cells are with {setting('cells_in', 'rows')} or {setting('cells_in', 'columns')}."
        )
    return _oriented(first, best[0][0]), _oriented(second, best[0][1])


def _require_upright(
    found: Table | AnnData, other: Table | AnnData, paths: tuple[Path, Path]
) -> None:
    """Refuse an AnnData whose features are the cells of the other file."""
    if isinstance(found, Table) or not found.n_vars:
        return
    n = max(
        len(pair_cells(found.var_names, cells).first) for cells in _cell_axes(other, None).values()
    )
    if 2 * n > found.n_vars:
        raise ReadError(
            f'{paths[0]} is transposed, as its features ("{_first(found.var_names)}", ...) are the '
            f"cells of {paths[1]}; write it again with cells as rows, for example with "
            'anndata.read_h5ad(path).T.copy().write_h5ad("cells.h5ad").'
        )


def orient_alone(table: Table, cells_in: Axis | None) -> AnnData:
    """Transpose one table so that cells are rows, if its names show their direction."""
    axes = _cell_axes(table, cells_in)
    if len(axes) > 1:
        raise ReadError(
            f"{table.path} does not tell whether its cells are rows or columns; say it with "
            f"{setting('cells_in', 'rows')} or {setting('cells_in', 'columns')}, or give the protein "
            f"table as {argument('protein_path')}."
        )
    return table.to_anndata(next(iter(axes)))


def _cell_axes(found: Table | AnnData, cells_in: Axis | None) -> dict[Axis, pd.Index]:
    """Return the possible axes of the cells, with the names along them."""
    if not isinstance(found, Table):
        return {"rows": found.obs_names}
    axes: dict[Axis, pd.Index] = {"rows": found.rows, "columns": found.columns}
    if cells_in is not None:
        return {cells_in: axes[cells_in]}
    barcodes = {axis: names for axis, names in axes.items() if are_barcodes(names)}
    if len(barcodes) != 1:  # or else the other axis is that of features
        barcodes = {axis: names for axis, names in axes.items() if not _are_features(names)}
    return barcodes if len(barcodes) == 1 else axes


def _are_features(names: pd.Index) -> bool:
    return any(says_antibody(name) or ENSEMBL.match(name) for name in names)


def are_barcodes(names: pd.Index | Sequence[str]) -> bool:
    """Whether most of the first names hold a barcode."""
    return bool(np.mean([BARCODE.search(name) is not None for name in names[:1000]]) > 0.5)


def _first(names: pd.Index) -> str:
    return str(names[0]) if len(names) else ""


def _oriented(found: Table | AnnData, cells_in: Axis) -> AnnData:
    return found.to_anndata(cells_in) if isinstance(found, Table) else found
