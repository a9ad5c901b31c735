"""Calls at an expected false discovery rate, and log odds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from totalvi.posterior.differential.differential_tables import expected_fdr_calls, log_odds

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


@given(probabilities, st.sampled_from([0.01, 0.05, 0.2]))
def test_calls_are_the_largest_set_of_likely_features_within_the_rate(
    proba_not: np.ndarray, target: float
) -> None:
    calls = expected_fdr_calls(proba_not, target)
    if calls.any():
        assert proba_not[calls].mean() <= target + 1e-12
        assert proba_not[calls].max() <= 0.5
    likely = ~calls & (proba_not <= 0.5)
    if likely.any():
        assert calls.sum() == 0 or proba_not[calls].max() <= proba_not[likely].min()
        one_more = np.append(proba_not[calls], proba_not[likely].min())
        assert one_more.mean() > target - 1e-12


def test_sure_calls_leave_no_room_for_a_feature_that_is_likelier_not_to_differ() -> None:
    proba_not = np.append(np.zeros(50), [0.4, 0.6])
    assert np.flatnonzero(~expected_fdr_calls(proba_not, 0.05)).tolist() == [51]


def test_unknown_features_are_never_called() -> None:
    assert not expected_fdr_calls(np.array([np.nan, np.nan]), 0.5).any()
    assert expected_fdr_calls(np.array([np.nan, 0.0]), 0.5).tolist() == [False, True]


def test_log_odds() -> None:
    p = np.array([0.2, 0.9])
    np.testing.assert_allclose(log_odds(p), np.log(p / (1 - p)))
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()
    assert np.isnan(log_odds(np.array([np.nan]))).all()
    assert log_odds(np.array([0.5])) == pytest.approx(0)
