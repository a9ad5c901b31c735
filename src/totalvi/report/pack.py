"""Numbers as short text in a page: few bits each, compressed, in base64."""

import base64
import gzip
import json
from typing import Any

import numpy as np


def packed(values: bytes) -> str:
    """Return bytes compressed with gzip, in base64."""
    return base64.b64encode(gzip.compress(values, compresslevel=6, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """Return what JSON can hold, compressed, in base64."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed(text.encode("utf-8"))


def packed_counts(counts: np.ndarray) -> dict[str, Any]:
    """Return counts to the letter, in as few bytes as they fit; the largest code is NaN.

    Examples
    --------
    >>> packed_counts(np.array([0, 7, np.nan]))["type"]
    'uint8'
    """
    known = np.isfinite(counts)
    highest = counts[known].max() if known.any() else 0
    kind = next(t for t in (np.uint8, np.uint16, np.uint32) if highest < np.iinfo(t).max)
    codes = np.where(known, counts, np.iinfo(kind).max).astype(kind)
    return _entry(codes, 0.0, 1.0)


def packed_levels(values: np.ndarray, n_levels: int) -> dict[str, Any]:
    """Return values rounded to the nearest of equally spaced levels; the largest code is NaN.

    Examples
    --------
    >>> entry = packed_levels(np.array([0.0, 1.0]), 251)
    >>> entry["type"], entry["low"], entry["step"]
    ('uint8', 0.0, 0.004)
    """
    known = np.isfinite(values)
    low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
    step = float(high - low) / (n_levels - 1) or 1.0
    kind = np.uint8 if n_levels < 256 else np.uint16
    codes = np.full(len(values), np.iinfo(kind).max, dtype=kind)
    codes[known] = np.round((values[known] - low) / step).astype(kind)
    return _entry(codes, float(low), step)


def _entry(codes: np.ndarray, low: float, step: float) -> dict[str, Any]:
    little = codes.astype(codes.dtype.newbyteorder("<"))
    return {"type": codes.dtype.name, "low": low, "step": step, "data": packed(little.tobytes())}


def size_of(entries: dict[str, Any]) -> int:
    """Return how many bytes the data of packed entries take in the page."""
    return sum(len(entry["data"]) for entry in entries.values())
