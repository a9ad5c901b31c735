"""Cells drawn: all of few, and of many a sample with every stratum."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.report.report_data import AT_LEAST, stratified_sample


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=8), st.integers(1, 900))
def test_a_sample_is_bounded_and_stands_for_all(sizes: list[int], n_wanted: int) -> None:
    strata = np.repeat(np.arange(len(sizes)), sizes)
    sample = stratified_sample(strata, n_wanted)
    assert len(sample.rows) == len(set(sample.rows.tolist())) <= max(n_wanted, 0)
    taken = np.bincount(strata[sample.rows], minlength=len(sizes))
    weight = np.bincount(strata[sample.rows], weights=sample.weights, minlength=len(sizes))
    np.testing.assert_allclose(weight[taken > 0], np.array(sizes)[taken > 0], rtol=1e-4)
    if n_wanted >= AT_LEAST * len(sizes):
        assert (taken >= np.minimum(sizes, AT_LEAST)).all()
