"""Join files of counts, such as the output folders of several samples, into one data set."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData
from mudata import MuData

from totalvi.data.io.read import read
from totalvi.data.panels.concat import concat
from totalvi.data.panels.data_sets import Join
from totalvi.errors import DataError, argument

_SUFFIXES = (
    ".gz",
    ".bz2",
    ".h5",
    ".h5ad",
    ".h5mu",
    ".zarr",
    ".csv",
    ".tsv",
    ".txt",
    ".hdf5",
    ".mtx",
    ".tar",
)


def join_files(
    paths: Sequence[str], names: Sequence[str] | None, sample_key: str, genes: Join = "inner"
) -> MuData:
    """Return the cells of several files, with the name of each one's sample in a column of ``obs``.

    Parameters
    ----------
    paths
        Files or folders that `totalvi.read` reads, or names of public data sets.
    names
        Of the samples; None: those of `sample_names`.
    sample_key
        Column of ``obs`` for the sample.
    genes
        As of `totalvi.concat`.

    Raises
    ------
    DataError
        When there is one file only or one twice, names and files differ in number, names are repeated,
        the column exists, or files cannot be read or joined.
    """
    if len(paths) < 2:
        raise DataError("join got fewer than two inputs; name two or more.")
    repeated = _repeated([os.path.realpath(path) for path in paths])
    if repeated:
        raise DataError(f"INPUT {repeated} is given twice; name each sample once.")
    names = sample_names(paths) if names is None else names
    if len(names) != len(paths):
        raise DataError(
            f"{argument('names')} has {len(names)} of {len(paths)} inputs; give one for each, in order."
        )
    twice = _repeated(names)
    if twice is not None or not all(names):
        what = "has an empty name" if twice is None else f'repeats "{twice}"'
        raise DataError(f"{argument('names')} {what}; give each input a name of its own.")
    data = dict(zip(names, map(read, paths), strict=True))
    columns = {column for each in data.values() for column in _columns(each)}
    if not sample_key or sample_key in columns:
        what = f"is {sample_key!r}, a column of an input" if sample_key else "is empty"
        raise DataError(f"{argument('sample_key')} {what}; give another name.")
    free = (f"panel{suffix}" for suffix in ("", *range(2, 100)))
    panel_key = next(name for name in free if name not in columns | {sample_key})
    return concat(data, genes=genes, batch_key=sample_key, panel_key=panel_key)


def _repeated(values: Sequence[str]) -> str | None:
    """Return a value that is there twice; None: none is."""
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _columns(data: MuData | AnnData) -> set[str]:
    parts = [data, *data.mod.values()] if isinstance(data, MuData) else [data]
    return {str(column) for part in parts for column in part.obs}


def sample_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each path: the last part of it that differs from those of all others.

    Examples
    --------
    >>> sample_names(["run/donor_1/outs/cells.h5", "run/donor_2/outs/cells.h5"])
    ['donor_1', 'donor_2']
    >>> sample_names(["a.h5mu", "b.h5mu"])
    ['a', 'b']
    """
    # links keep their names, which a workflow may have chosen
    parts = [[_stem(part) for part in Path(path).absolute().parts[1:]] for path in paths]
    for from_end in range(1, min(map(len, parts)) + 1):
        names = [of_path[-from_end] for of_path in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"sample_{number}" for number in range(1, len(paths) + 1)]


def _stem(part: str) -> str:
    """Return a part of a path without the endings of files of counts."""
    while part.lower().endswith(_SUFFIXES):
        part = part[: part.rindex(".")]
    return part
