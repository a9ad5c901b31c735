"""Pack numbers and texts of cells into few bytes, and unpack them: codes, posteriors, sparse counts.

Whole numbers are stored in as few bytes as they need, first the highest byte of all, so that LZMA finds
what they have in common.
"""

import lzma
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from totalvi.data.minified_cells import MEAN_STEP, Steps

_LOG_SIZE_STEP = 2.0**-16


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
            raise ValueError(f"packed numbers of the shape {shape}")
        return math.prod(shape) * np.dtype(self.described["type"]).itemsize

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
    return Packed(lzma.compress(np.ascontiguousarray(planes).tobytes()), described)


def unpack(content: bytes, described: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers that `pack` packed, int64 or float32.

    Raises
    ------
    ValueError
        When they are damaged, or have another shape than they should.
    """
    kind = described["type"]
    if kind not in ("u1", "u2", "u4", "u8", "f4") or tuple(described["shape"]) != shape:
        raise ValueError(f"packed numbers of {kind} and {described['shape']}, not {shape}")
    dtype = np.dtype(f"<{kind}")
    n_values = int(np.prod(shape))
    raw = _decompressed(content, n_values * dtype.itemsize)
    if len(raw) != n_values * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes of packed numbers, not {n_values * dtype.itemsize}")
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
        reader = lzma.LZMADecompressor(memlimit=1 << 28)
        return reader.decompress(content, max_length=at_most) if at_most else b""
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"packed bytes are damaged: {error}") from error


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
        raise ValueError(f"{len(texts)} names, not {n_texts}")
    return texts


class PackedSteps(NamedTuple):
    """Means and variances of N cells, to the steps that are kept.

    Attributes
    ----------
    mean, residual
        Means, and log variances less what is expected of them, in steps.
    expected
        Coefficients of a regression of the log variances, (2 d + 2, d), float32.
    """

    mean: Packed
    residual: Packed
    expected: np.ndarray


def pack_steps(steps: Steps, size: np.ndarray) -> PackedSteps:
    """Pack the posteriors of cells.

    Log variances follow the means, their squares and the log library size so closely that the residuals
    of a linear regression need a quarter of a byte less.

    Parameters
    ----------
    size
        Library size of each cell, (N,), which is the same when they are unpacked.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> steps = Steps.of(rng.normal(size=(50, 3)), rng.gamma(2, size=(50, 3)))
    >>> again = unpack_steps(pack_steps(steps, np.ones(50)), (50, 3), np.ones(50))
    >>> bool((again.mean == steps.mean).all() and (again.log_variance == steps.log_variance).all())
    True
    """
    known = _predictors(steps.mean, size)
    expected = np.linalg.lstsq(known, steps.log_variance, rcond=1e-6)[0].astype(np.float32)
    residual = steps.log_variance - _expected(known, expected)
    return PackedSteps(pack(steps.mean), pack(residual), expected)


def unpack_steps(packed: PackedSteps, shape: tuple[int, int], size: np.ndarray) -> Steps:
    """Return the posteriors that `pack_steps` packed.

    Raises
    ------
    ValueError
        When they are damaged.
    """
    if packed.expected.shape != (2 * shape[1] + 2, shape[1]):
        raise ValueError(f"coefficients of the shape {packed.expected.shape}")
    mean = unpack(*packed.mean, shape)
    expected = _expected(_predictors(mean, size), packed.expected)
    return Steps(mean, unpack(*packed.residual, shape) + expected)


def _predictors(mean_steps: np.ndarray, size: np.ndarray) -> np.ndarray:
    mean, log_size = mean_steps * MEAN_STEP, np.log(np.maximum(size.astype(np.float64), 1e-6))
    return np.column_stack([np.ones(len(mean)), log_size, mean, mean**2])


def _expected(known: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return the expected steps, summed in one order, so that they are the same anywhere."""
    total = np.zeros((len(known), coefficients.shape[1]))
    for column, weights in zip(known.T, coefficients.astype(np.float64), strict=True):
        total += column[:, None] * weights
    return np.rint(total).astype(np.int64)


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
        raise ValueError("counts at columns that are not there, or that are no counts")
    return sparse.csr_matrix((counts, column.astype(np.int32), pointer.astype(np.int32)), shape)


def as_whole(counts: np.ndarray) -> np.ndarray:
    """Return counts as int64 if all are whole, else unchanged."""
    return counts.astype(np.int64) if (counts == np.rint(counts)).all() else counts
