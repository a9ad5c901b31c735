"""Packed numbers come back."""

import base64
import gzip

import numpy as np
import pytest

from totalvi.report.build import packed_counts, packed_levels


def unpacked(entry: dict) -> np.ndarray:
    codes = np.frombuffer(gzip.decompress(base64.b64decode(entry["data"])), entry["type"])
    values = entry["low"] + entry["step"] * codes
    return np.where(codes == np.iinfo(entry["type"]).max, np.nan, values)


@pytest.mark.parametrize("highest", [0, 254, 255, 65_534, 65_535, 1_000_000])
def test_counts_are_kept_to_the_letter(highest: int) -> None:
    counts = np.array([0, np.nan, highest, highest // 2], dtype=float)
    np.testing.assert_array_equal(unpacked(packed_counts(counts)), counts)


@pytest.mark.parametrize("n_levels", [201, 251, 2000])
def test_levels_are_within_half_a_step(n_levels: int) -> None:
    values = np.random.default_rng(0).normal(size=500)
    values[3] = np.nan
    entry = packed_levels(values, n_levels)
    np.testing.assert_allclose(unpacked(entry), values, atol=entry["step"] * 0.5001)


def test_equal_or_missing_values_are_no_trouble() -> None:
    np.testing.assert_allclose(unpacked(packed_levels(np.full(3, 2.5), 251)), 2.5)
    assert np.isnan(unpacked(packed_levels(np.full(3, np.nan), 251))).all()
