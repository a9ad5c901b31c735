"""Levels of groups: plain means where decoder and counts agree, corrected ones where they do not."""

import numpy as np
import pytest

from totalvi.posterior.differential.comparison import (
    group_level,
    pair_levels,
    shared_batch_weights,
)
from totalvi.posterior.differential.moments import Moments, StratumMoments


def moments(
    n: list[float], mean: list[float], sd: float = 0.1, library: float = 1e4, factor: float = 1
) -> Moments:
    """Sums of one feature over batches of cells of known mean; counts are ``factor`` times expected."""
    cells, mu = np.array(n)[:, None], np.array(mean)[:, None]
    return Moments(
        n_cells=cells,
        total=cells * mu,
        square=cells * (mu**2 + sd**2),
        counted=cells * mu * library * factor,
        expected=cells * mu * library,
        excess=np.zeros_like(cells),
        present=cells,
        prior=cells,
        informed=np.zeros_like(cells),
        missing=np.zeros_like(cells),
        noise=np.zeros_like(cells),
    )


def natural(sums: Moments) -> np.ndarray:
    return sums.n_cells / sums.n_cells.sum(axis=0)


def test_the_mean_over_all_cells_and_its_sampling_error() -> None:
    sums = moments([30, 10], [0.2, 0.6], sd=0.3, library=1e9)
    level = group_level(sums, natural(sums))
    assert level.mean == pytest.approx([0.3])
    assert level.variance == pytest.approx([(0.75**2 / 30 + 0.25**2 / 10) * 0.3**2], rel=1e-5)


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_many_counts_correct_the_decoder(factor: float) -> None:
    sums = moments([50], [0.01], sd=0, library=1e6, factor=factor)
    level = group_level(sums, natural(sums))
    assert level.mean == pytest.approx([0.01 * factor], rel=1e-4)
    assert level.variance / level.mean**2 == pytest.approx(1 / sums.counted[0], rel=1e-4)


def test_few_counts_leave_the_decoder_alone_and_much_open() -> None:
    sums = moments([2], [1e-6], sd=0, library=1e2, factor=0)
    level = group_level(sums, natural(sums))
    assert level.mean == pytest.approx([1e-6], rel=1e-3)
    assert level.variance / level.mean**2 > 1


def test_the_frequency_of_a_component_is_corrected() -> None:
    sums = moments([400], [0.5], sd=0, library=1e6)._replace(
        present=np.array([[40.0]]), prior=np.array([[80.0]])
    )
    assert group_level(sums, natural(sums)).mean == pytest.approx([0.25], rel=0.01)


def posterior_of_groups(
    rng: np.random.Generator, n: int, present: float, prior: float, distance: float
) -> Moments:
    """Sums over n cells whose value is N(0, 1), or N(distance, 1) in a share ``present`` of them."""
    value = rng.normal(size=n) + distance * (rng.random(n) < present)
    odds = prior / (1 - prior) * np.exp(distance * value - distance**2 / 2)
    q = odds / (1 + odds)
    of_cell = {"present": q, "prior": np.full(n, prior), "missing": q * (1 - q)}
    of_cell["informed"] = (q - prior) ** 2
    parts = {name: np.array([[values.sum()]]) for name, values in of_cell.items()}
    return moments([n], [1.0], sd=0, library=1e9)._replace(**parts)


@pytest.mark.parametrize("distance", [1.0, 1.5, 3.0, 8.0])
def test_frequencies_have_the_error_of_what_the_counts_say_of_their_component(
    distance: float,
) -> None:
    rng, n, share = np.random.default_rng(1), 1000, 0.3
    levels = []
    for _ in range(300):
        sums = posterior_of_groups(rng, n, share, share, distance)
        levels.append(group_level(sums, natural(sums)))
    log_mean = np.array([np.log(level.mean[0]) for level in levels])
    claimed = np.array([level.variance[0] / level.mean[0] ** 2 for level in levels])
    assert log_mean.mean() == pytest.approx(0, abs=0.03)
    assert claimed.mean() == pytest.approx(log_mean.var(), rel=0.25)
    known_components = (1 - share) / (share * n)
    assert claimed.mean() > known_components * (3 if distance == 1 else 0.99)


def test_components_that_overlap_are_corrected_as_far_as_those_that_do_not() -> None:
    rng = np.random.default_rng(2)
    for distance in (2.0, 8.0):
        sums = posterior_of_groups(rng, 100_000, 0.3, 0.25, distance)
        assert group_level(sums, natural(sums)).mean == pytest.approx([0.3 / 0.25], rel=0.04)


def test_a_variance_that_the_model_does_not_know_of_is_read_off_the_counts() -> None:
    sums = moments([1000], [1.0], sd=0, library=3)
    larger = sums._replace(excess=2 * sums.expected)
    few = moments([10], [1.0], sd=0, library=3)
    few_larger = few._replace(excess=2 * few.expected)
    ratio = [
        group_level(a, natural(a)).variance[0] / group_level(b, natural(b)).variance[0]
        for a, b in ((larger, sums), (few_larger, few))
    ]
    assert ratio[0] == pytest.approx(3, rel=0.02)
    assert ratio[1] == pytest.approx(2, rel=1e-6)  # as ten cells count for half


def test_shared_batches_have_the_same_weights_in_both_groups() -> None:
    first, second = np.array([[90.0], [10.0], [5.0]]), np.array([[10.0], [40.0], [0.0]])
    a, b = shared_batch_weights(first, second)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a[:, 0], np.array([9, 8, 0]) / 17)


def test_without_shared_batches_each_group_has_its_own() -> None:
    a, b = shared_batch_weights(np.array([[3.0], [0.0]]), np.array([[0.0], [7.0]]))
    assert a.ravel().tolist() == [1, 0]
    assert b.ravel().tolist() == [0, 1]


def stratum(sums: Moments) -> StratumMoments:
    nothing = Moments.zeros(len(sums.n_cells), 1)._replace(n_cells=sums.n_cells)
    return StratumMoments(sums, sums, nothing, sums.n_cells[:, 0] * 1e4)


def test_differences_between_batches_are_none_between_groups() -> None:
    by_batch = [0.1, 0.8]  # ten times as much in the second batch, nothing between the groups
    first, second = (stratum(moments(n, by_batch, library=1e8)) for n in ([90, 10], [10, 90]))
    a, b = pair_levels(first, second, scale_protein=False)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-4)


def test_a_protein_that_a_group_did_not_measure_is_unknown() -> None:
    measured, unmeasured = moments([40], [0.5]), Moments.zeros(1, 1)
    first = stratum(measured)
    second = first._replace(foreground=unmeasured, background=unmeasured)
    a, b = pair_levels(first, second, scale_protein=False)
    assert np.isfinite(a.mean).all()
    assert np.isfinite(b.mean[0])
    assert np.isnan(b.mean[1])
    assert np.isnan(b.variance[1])


def test_corrected_shares_still_sum_to_one() -> None:
    sums = stratum(moments([40], [0.5], factor=3))
    a, _ = pair_levels(sums, sums, scale_protein=True)
    assert a.mean[1] == pytest.approx(1)
