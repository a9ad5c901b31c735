"""Pack numbers and texts of cells into few bytes, and unpack them: codes, posteriors, sparse counts.

Whole numbers are stored in as few bytes as they need, first the highest byte of all, so that LZMA finds
what they have in common.
"""

import lzma
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from totalvi.data.counts import evenly_spaced
from totalvi.data.minified_cells import Grid, Steps

_LOG_SIZE_STEP, _SMALLEST_SIZE = 2.0**-16, 1e-6
_CELLS_TO_FIT, _CELLS_AT_ONCE = 20_000, 8192
_MOST_PRODUCTS = 30  # dimensions whose products are predictors; of more, squares are


class Packed(NamedTuple):
    """Bytes, and what must be known to unpack them, as JSON values."""

    content: bytes
    described: dict[str, Any]

    @property
    def n_unpacked(self) -> int:
        """Number of bytes that they unpack to.

        Raises
        ------
        ValueError
            When they have a negative one.
        """
        shape = self.described["shape"]
        if any(length < 0 for length in shape):
            raise ValueError(f"packed numbers of the shape {shape}.")
        n_bytes: int = math.prod(shape) * np.dtype(self.described["type"]).itemsize
        return n_bytes

    def tensor(self) -> np.ndarray:
        """Return the bytes as an array, uint8."""
        return np.frombuffer(bytearray(self.content), dtype=np.uint8)


def pack(values: np.ndarray) -> Packed:
    """Pack numbers; whole ones exactly, others as float32.

    Parameters
    ----------
    values
        An array of one or two dimensions; of two, those of a column are alike.

    Examples
    --------
    >>> packed = pack(np.array([[3, 700], [4, -1]]))
    >>> unpack(packed.content, packed.described, (2, 2)).tolist()
    [[3, 700], [4, -1]]
    """
    offset = 0
    if np.issubdtype(values.dtype, np.floating):
        kind = "f4"
        stored = values.astype("<f4")
    else:
        whole = values.astype(np.int64)
        offset = int(whole.min()) if whole.size else 0
        whole = whole - offset
        largest = int(whole.max()) if whole.size else 0
        kind = next(k for k in ("u1", "u2", "u4", "u8") if largest <= np.iinfo(k).max)
        stored = whole.astype(f"<{kind}")
    by_column = np.ascontiguousarray(stored.T)
    planes = by_column.reshape(-1, 1).view(np.uint8)[:, ::-1].T
    described = {"type": kind, "shape": list(values.shape), "offset": offset}
    return Packed(
        lzma.compress(np.ascontiguousarray(planes).tobytes(), lzma.FORMAT_ALONE), described
    )


def unpack(content: bytes, described: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers that `pack` packed, int64 or float32.

    Raises
    ------
    ValueError
        When they are damaged, or have another shape than they should.
    """
    kind = described["type"]
    if kind not in ("u1", "u2", "u4", "u8", "f4") or tuple(described["shape"]) != shape:
        raise ValueError(f"packed numbers of {kind} and {described['shape']}, not {shape}.")
    dtype = np.dtype(f"<{kind}")
    n_values = int(np.prod(shape))
    raw = _decompressed(content, n_values * dtype.itemsize)
    if len(raw) != n_values * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes of packed numbers, not {n_values * dtype.itemsize}.")
    planes = np.frombuffer(raw, dtype=np.uint8).reshape(dtype.itemsize, n_values)
    by_column = np.ascontiguousarray(planes.T[:, ::-1]).view(dtype).reshape(shape[::-1])
    values = np.ascontiguousarray(by_column.T)
    if dtype.kind == "f":
        return values.astype(np.float32)
    whole: np.ndarray = values.astype(np.int64) + int(described["offset"])
    return whole


def _decompressed(content: bytes, at_most: int) -> bytes:
    """Return what LZMA packed, without ever holding more than was declared."""
    try:
        reader = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=1 << 28)
        return reader.decompress(content, max_length=at_most) if at_most else b""
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"packed bytes are damaged: {error}.") from error


def pack_texts(texts: list[str]) -> Packed:
    """Pack the names of cells.

    Examples
    --------
    >>> packed = pack_texts(["a", "b"])
    >>> unpack_texts(packed, 2)
    ['a', 'b']
    """
    return pack(np.frombuffer("\0".join(texts).encode(), dtype=np.uint8))


def unpack_texts(packed: Packed, n_texts: int) -> list[str]:
    """Return the texts that `pack_texts` packed.

    Raises
    ------
    ValueError
        When they are damaged, or not ``n_texts``.
    """
    (length,) = packed.described["shape"]
    texts = unpack(*packed, (length,)).astype(np.uint8).tobytes().decode().split("\0")
    if len(texts) != n_texts:
        raise ValueError(f"{len(texts)} names, not {n_texts}.")
    return texts


class PackedSteps(NamedTuple):
    """Means and variances of N cells, to the steps that are kept.

    Attributes
    ----------
    mean, residual
        Means, and log variances less what is expected of them, in steps.
    coefficients
        Of a regression of the log variances, (`n_predictors`, d), float32.
    grid
        That of the steps.
    """

    mean: Packed
    residual: Packed
    coefficients: np.ndarray
    grid: Grid


def pack_steps(steps: Steps, size: np.ndarray) -> PackedSteps:
    """Pack the posteriors of cells.

    Log variances follow the means and the library size so closely that the residuals of a regression on
    their products need a third of a byte less.

    Parameters
    ----------
    size
        Library size of each cell, (N,), which is the same when they are unpacked.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> steps = Steps.of(rng.normal(size=(50, 3)), rng.gamma(2, size=(50, 3)), Grid(11, 9))
    >>> again = unpack_steps(pack_steps(steps, np.ones(50)), (50, 3), np.ones(50))
    >>> bool((again.mean == steps.mean).all() and (again.log_variance == steps.log_variance).all())
    True
    """
    some = evenly_spaced(np.arange(len(size)), _CELLS_TO_FIT)
    known = _predictors(steps.mean[some], size[some], steps.grid)
    found = np.linalg.lstsq(known, steps.log_variance[some], rcond=1e-6)[0].astype(np.float32)
    residual = steps.log_variance - _expected(steps.mean, size, found, steps.grid)
    return PackedSteps(pack(steps.mean), pack(residual), found, steps.grid)


def unpack_steps(packed: PackedSteps, shape: tuple[int, int], size: np.ndarray) -> Steps:
    """Return the posteriors that `pack_steps` packed.

    Raises
    ------
    ValueError
        When they are damaged.
    """
    mean = unpack(*packed.mean, shape)
    expected = _expected(mean, size, packed.coefficients, packed.grid)
    return Steps(mean, unpack(*packed.residual, shape) + expected, packed.grid)


def n_predictors(n_dimensions: int) -> int:
    """Return the number of predictors of the log variances.

    Examples
    --------
    >>> n_predictors(20), n_predictors(50)
    (253, 153)
    """
    products = n_dimensions * (n_dimensions + 1) // 2
    return 3 + 2 * n_dimensions + (products if n_dimensions <= _MOST_PRODUCTS else n_dimensions)


def _predictors(mean_steps: np.ndarray, size: np.ndarray, grid: Grid) -> np.ndarray:
    mean, n_cells = mean_steps / 2.0**grid.mean, len(mean_steps)
    log_size = np.log(np.maximum(size.astype(np.float64), _SMALLEST_SIZE))[:, None]
    first, second = np.triu_indices(mean.shape[1])
    if mean.shape[1] > _MOST_PRODUCTS:
        first = second = np.arange(mean.shape[1])
    return np.hstack(
        [
            np.ones((n_cells, 1)), log_size, log_size**2, mean, mean * log_size,
            mean[:, first] * mean[:, second],
        ]
    )  # fmt: skip


def _expected(
    mean_steps: np.ndarray, size: np.ndarray, coefficients: np.ndarray, grid: Grid
) -> np.ndarray:
    """Return the expected steps of the log variances."""
    expected = np.empty(mean_steps.shape, dtype=np.int64)
    weights = coefficients.astype(np.float64)
    for start in range(0, len(expected), _CELLS_AT_ONCE):
        rows = slice(start, start + _CELLS_AT_ONCE)
        expected[rows] = np.rint(_predictors(mean_steps[rows], size[rows], grid) @ weights)
    return expected


def pack_sizes(sizes: np.ndarray) -> Packed:
    """Pack library sizes (N,): whole ones exactly, others to 1e-5 of each."""
    if (sizes == np.rint(sizes)).all():
        return pack(sizes.astype(np.int64))
    packed = pack(np.rint(np.log(sizes.astype(np.float64)) / _LOG_SIZE_STEP).astype(np.int64))
    return packed._replace(described=packed.described | {"log": True})


def unpack_sizes(content: bytes, described: dict[str, Any], n_cells: int) -> np.ndarray:
    """Return the sizes that `pack_sizes` packed, float32."""
    found = unpack(content, described, (n_cells,))
    sizes = np.exp(found * _LOG_SIZE_STEP) if described.get("log") else found
    return sizes.astype(np.float32)


def pack_rows(rows: sparse.csr_matrix) -> dict[str, Packed]:
    """Pack sparse counts: numbers of each row, gaps between columns, and counts.

    Examples
    --------
    >>> rows = sparse.csr_matrix([[0, 2.0, 5.0], [0, 0, 0], [1.0, 0, 0]])
    >>> unpack_rows(pack_rows(rows), rows.shape).toarray().tolist()
    [[0.0, 2.0, 5.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    length = np.diff(rows.indptr)
    gap = np.diff(rows.indices.astype(np.int64), prepend=0)
    starts = rows.indptr[:-1][length > 0]
    gap[starts] = rows.indices[starts]
    return {"length": pack(length), "gap": pack(gap), "count": pack(as_whole(rows.data))}


def unpack_rows(packed: dict[str, Packed], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return the sparse counts that `pack_rows` packed, float32.

    Raises
    ------
    ValueError
        When they are damaged.
    """
    length = unpack(*packed["length"], (shape[0],))
    n_stored = int(length.sum())
    gap = unpack(*packed["gap"], (n_stored,))
    pointer = np.concatenate([[0], np.cumsum(length)])
    passed = np.cumsum(gap)
    before = np.concatenate([[0], passed])[pointer[:-1]]
    column = passed - np.repeat(before, length)
    counts = unpack(*packed["count"], (n_stored,)).astype(np.float32)
    is_first = np.zeros(n_stored, dtype=bool)
    is_first[pointer[:-1][length > 0]] = True
    if n_stored and not (
        column.min() >= 0
        and column.max() < shape[1]
        and (gap[~is_first] > 0).all()
        and np.isfinite(counts).all()
        and counts.min() >= 0
    ):
        raise ValueError("counts at columns that are not there, or that are no counts.")
    return sparse.csr_matrix((counts, column.astype(np.int32), pointer.astype(np.int32)), shape)


def as_whole(counts: np.ndarray) -> np.ndarray:
    """Return counts as int64 if all are whole, else unchanged."""
    return counts.astype(np.int64) if (counts == np.rint(counts)).all() else counts
