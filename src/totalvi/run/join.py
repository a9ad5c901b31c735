"""Join files of counts, such as the output folders of several samples, into one data set."""

from collections.abc import Sequence
from pathlib import Path

from mudata import MuData

from totalvi.data.io.read import read
from totalvi.data.panels.concat import concat
from totalvi.data.panels.data_sets import Join
from totalvi.errors import DataError, listed

_SUFFIXES = (".gz", ".bz2", ".h5", ".h5ad", ".h5mu", ".zarr", ".csv", ".tsv", ".mtx", ".tar")


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
        When there is one file only, names and files differ in number, names are repeated, or files
        cannot be read or joined.
    """
    if len(paths) < 2:
        raise DataError("join got fewer than two inputs; name two or more.")
    if names is None:
        names = sample_names(paths)
    if len(names) != len(paths):
        raise DataError(
            f"--names has {len(names)} names of {len(paths)} inputs; give one for each, in order."
        )
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated or not all(names):
        what = f"repeats {listed(repeated)}" if repeated else "has an empty name"
        raise DataError(f"--names {what}; give each input a name of its own.")
    data = dict(zip(names, map(read, paths), strict=True))
    return concat(data, genes=genes, batch_key=sample_key)


def sample_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each path: the last part of it that differs from those of all others.

    Examples
    --------
    >>> sample_names(["run/donor_1/outs/cells.h5", "run/donor_2/outs/cells.h5"])
    ['donor_1', 'donor_2']
    >>> sample_names(["a.h5mu", "b.h5mu"])
    ['a', 'b']
    """
    parts = [[_stem(part) for part in Path(path).resolve().parts] for path in paths]
    for from_end in range(1, min(map(len, parts)) + 1):
        names = [of_path[-from_end] for of_path in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"sample_{number}" for number in range(1, len(paths) + 1)]


def _stem(part: str) -> str:
    """Return a part of a path without the endings of files of counts."""
    while part.endswith(_SUFFIXES):
        part = part[: part.rindex(".")]
    return part
