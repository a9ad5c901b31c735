"""Tables of a run as CSV: six digits of each number."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
from hypothesis import given

from totalvi.run.table_files import DIGITS, rounded, write_tables


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_six_digits_are_kept_and_no_more(value: float) -> None:
    found = float(rounded(np.array([value]))[0])
    assert abs(found - value) <= 0.51 * 10.0 ** (1 - DIGITS) * abs(value)
    if value:
        digits = f"{found!r}".split("e")[0].replace(".", "").replace("-", "").strip("0")
        assert len(digits) <= DIGITS


def test_a_table_reads_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "small": rng.normal(size=50) * 1e-30,
            "float32": rng.normal(size=50).astype(np.float32),
            "count": rng.integers(0, 1e9, 50).astype(np.float64),
            "gaps": np.where(np.arange(50) % 3, np.arange(50) / 7, np.nan),
            "text": [f"a,{i}" for i in range(50)],
            "kind": pd.Categorical(["x", "y"] * 25),
            "endless": [np.inf, -np.inf] * 25,
        },
        index=pd.Index([f"cell_{i}" for i in range(50)], name="cell"),
    )
    write_tables({"cells": table, "proteins": table}, tmp_path)
    for file in ("cells.csv.gz", "proteins.csv"):
        found = pd.read_csv(tmp_path / file, index_col="cell")
        assert list(found) == list(table)
        for name in ("small", "float32", "gaps"):
            np.testing.assert_allclose(found[name], table[name], rtol=5.01e-6)
        assert found["count"].dtype == np.int64
        assert (found["count"] == table["count"]).all()
        assert found["text"].tolist() == table["text"].tolist()
        assert found["kind"].tolist() == table["kind"].tolist()
        assert found["endless"].tolist() == table["endless"].tolist()
