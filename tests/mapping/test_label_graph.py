"""Random walks to labelled points, and what they say of the others, beside independent computations."""

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from totalvi.mapping import label_graph
from totalvi.mapping.label_graph import (
    Graph,
    effective_number,
    probability_unlike,
    spread_labels,
    tail_of_hidden,
    walks,
)
from totalvi.mapping.reference_neighbours import calibration_error


def blobs(n_cells: int, centres: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points around centres, and the centre of each."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(len(centres), size=n_cells)
    return centres[truth] + rng.normal(0, 1, (n_cells, centres.shape[1])), truth


def some_known(truth: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    known = np.random.default_rng(seed).random(len(truth)) < share
    return np.where(known, truth, -1)


def test_walks_solve_the_linear_equations() -> None:
    points, truth = blobs(120, np.eye(4)[:3] * 4)
    code = some_known(truth, 0.2)
    graph = Graph.of(points, np.flatnonzero(code >= 0))
    found = walks(graph, code, 3)
    unknown = code < 0
    step = graph.step.toarray() * (1 - label_graph._ENDS)
    ends = np.eye(3)[code[~unknown]]
    exact = np.linalg.solve(
        np.eye(unknown.sum()) - step[np.ix_(unknown, unknown)],
        step[np.ix_(unknown, ~unknown)] @ ends,
    )
    np.testing.assert_allclose(found[unknown], exact, atol=0.01)
    np.testing.assert_array_equal(found[~unknown], ends)


def test_walks_agree_with_simulated_ones() -> None:
    points, truth = blobs(60, np.array([[0.0, 0.0], [3.0, 0.0]]))
    code = some_known(truth, 0.2)
    graph = Graph.of(points, np.flatnonzero(code >= 0))
    start, rng = int(np.flatnonzero(code < 0)[0]), np.random.default_rng(1)
    step, ended = graph.step.toarray(), np.zeros(2)
    for _ in range(4000):
        at = start
        while rng.random() > label_graph._ENDS:
            at = rng.choice(len(step), p=step[at])
            if code[at] >= 0:
                ended[code[at]] += 1
                break
    np.testing.assert_allclose(walks(graph, code, 2)[start], ended / 4000, atol=0.04)


def test_labels_of_apart_populations_are_found() -> None:
    points, truth = blobs(900, np.eye(6)[:4] * 12)
    found = spread_labels(points, some_known(truth, 0.05), np.random.default_rng(0))
    assert (found.probabilities.argmax(axis=1) == truth).mean() > 0.99
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert (found.unlike > 0.5).mean() < 0.01


def test_probabilities_of_overlapping_populations_are_calibrated() -> None:
    points, truth = blobs(4000, np.eye(4)[:3] * 2.5)
    code = some_known(truth, 0.1)
    found = spread_labels(points, code, np.random.default_rng(0))
    others = code < 0
    accuracy = (found.probabilities.argmax(axis=1) == truth)[others].mean()
    best = np.linalg.norm(points[:, None] - np.eye(4)[:3] * 2.5, axis=2).argmin(axis=1) == truth
    assert accuracy > best[others].mean() - 0.02
    assert calibration_error(found.probabilities[others], truth[others]) < 0.03


def test_p_values_are_uniform_where_labels_are_of_random_points() -> None:
    points, truth = blobs(3000, np.eye(5)[:4] * 4)
    p = []
    for seed in range(3):
        code = some_known(truth, 0.1, seed)
        found = spread_labels(points, code, np.random.default_rng(seed))
        p.append(found.p_value[code < 0])
    assert stats.kstest(np.concatenate(p), "uniform").statistic < 0.08
    assert (np.concatenate(p) <= 0.05).mean() < 0.07


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_a_population_without_labels_is_unlike(share: float) -> None:
    points, truth = blobs(3000, np.eye(6)[:4] * 7)
    rng = np.random.default_rng(1)
    kept = (truth != 3) | (rng.random(3000) < share)
    points, truth = points[kept], truth[kept]
    code = np.where(truth == 3, -1, some_known(truth, 0.1))
    found = spread_labels(points, code, rng)
    others = code < 0
    assert roc_auc_score(truth[others] == 3, -found.reach[others]) > 0.99
    assert (found.unlike[truth == 3] > 0.5).mean() > 0.9
    assert (found.unlike[others & (truth != 3)] > 0.5).mean() < 0.02


def test_labels_known_in_different_shares_do_not_make_cells_unlike() -> None:
    """Without weights, the p-values of four fifths of the cells below are under 0.05."""
    points, truth = blobs(4000, np.eye(6)[:4] * 7)
    called = []
    for seed in range(5):
        known = np.random.default_rng(seed).random(4000) < np.array([0.6, 0.6, 0.6, 0.03])[truth]
        found = spread_labels(points, np.where(known, truth, -1), np.random.default_rng(0))
        asked = (truth == 3) & ~known
        called.append((found.unlike[asked] > 0.5).mean())
        assert np.median(found.p_value[asked]) > 0.1
    assert np.mean(called) < 0.1


def test_a_wrong_label_is_seen_at_its_own_cell() -> None:
    points, truth = blobs(600, np.eye(6)[:3] * 10)
    code = some_known(truth, 0.3)
    wrong = np.flatnonzero(code == 0)[:3]
    code[wrong] = 1
    found = spread_labels(points, code, np.random.default_rng(0))
    assert (found.probabilities[wrong].argmax(axis=1) == 0).all()


def test_a_graph_of_some_points_answers_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    points, truth = blobs(2000, np.eye(6)[:3] * 8)
    code = np.where(truth == 2, -1, some_known(truth, 0.1))
    whole = spread_labels(points, code, np.random.default_rng(0))
    monkeypatch.setattr(label_graph, "_MOST_POINTS", 500)
    monkeypatch.setattr(label_graph, "_MOST_LEARNED", 60)
    graph = Graph.of(points, np.flatnonzero(code >= 0))
    assert graph.step.shape == (500, 500)
    some = spread_labels(points, code, np.random.default_rng(0))
    others = code < 0
    same = some.probabilities.argmax(axis=1) == whole.probabilities.argmax(axis=1)
    assert same[truth < 2].mean() > 0.99
    assert roc_auc_score(truth[others] == 2, -some.reach[others]) > 0.99


@pytest.mark.parametrize("weighted", [False, True])
def test_p_values_against_a_loop(*, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    reach, fold = rng.random((50, 4)).round(1), rng.integers(-1, 4, 50)
    weight = np.where(fold >= 0, rng.random(50) if weighted else 1.0, 0.0)
    hidden = np.flatnonzero(fold >= 0)
    n = effective_number(weight)
    scaled = weight * n / weight.sum()
    p = tail_of_hidden(reach, fold, weight)
    for i in np.flatnonzero(fold < 0):
        at_most = sum(scaled[j] for j in hidden if reach[j, fold[j]] <= reach[i, fold[j]])
        assert p[i] == pytest.approx(min((1 + at_most) / (1 + n), 1))
    assert ((p > 0) & (p <= 1)).all()


def test_probability_unlike_is_the_local_false_discovery_rate() -> None:
    rng = np.random.default_rng(0)
    unlike = rng.random(20_000) < 0.2
    p = np.where(unlike, rng.beta(0.2, 8, 20_000), rng.random(20_000))
    found = probability_unlike(p, np.ones(20_000, dtype=bool), 1000)
    exact = 1 - 0.8 / (0.8 + 0.2 * stats.beta(0.2, 8).pdf(p))
    assert abs(found - exact)[p > 0.005].mean() < 0.03
    assert abs(found.mean() - 0.2) < 0.03
    assert (probability_unlike(rng.random(5000), np.ones(5000, bool), 500) > 0.5).mean() < 0.01


def test_one_label_alone_and_no_other_points_are_answered() -> None:
    points = np.random.default_rng(0).normal(0, 1, (40, 3))
    found = spread_labels(points, np.zeros(40, dtype=np.int64), np.random.default_rng(0))
    np.testing.assert_allclose(found.probabilities, 1)
    np.testing.assert_array_equal(found.unlike, 0)


def test_steps_are_probabilities_also_between_equal_points() -> None:
    step = Graph.of(np.zeros((30, 2)), np.arange(5)).step
    assert sparse.issparse(step)
    np.testing.assert_allclose(np.asarray(step.sum(axis=1)).ravel(), 1)
