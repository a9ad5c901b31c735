"""A sample of the numerics grid; benchmarks/numerics_grid.py fits all of it."""

import pytest

from extremes import COUNTS, LARGE, NETWORKS, OF_LARGE, outcome_of, pairs

# each kind of counts once, with the kinds of network in turn
SAMPLE = [
    (counts, tuple(NETWORKS)[i % len(NETWORKS)])
    for i, counts in enumerate(counts for counts in COUNTS if counts != LARGE)
]
FOUND = [  # of the whole grid: fits whose background went beyond any count, which is said
    ("a feature at 1e6 in all cells", "10 x learning rate, constant, no warm-up"),
    ("all counts around 1e5", "as 0.6.x"),
]
# its background is beyond any count in samples alone, and no mean of proteins samples it
ANSWERED = [("a feature at 1e6 in all cells", "panels, efficiency")]
# of mudata, about defaults to come; of anndata, about types
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


# what is neither refused nor stopped with a sentence is to end with finite answers
STOPPED, REFUSED = "learning rate 10", "batches of 1 to 100 cells"
# whether such a fit ends beyond any count depends on the random numbers, which torch changes, and on
# how the processor rounds
WILD = "10 x learning rate"


@pytest.mark.parametrize(("counts", "network"), [*SAMPLE, *FOUND, *ANSWERED])
def test_extreme_counts_give_finite_answers_or_a_sentence(counts: str, network: str) -> None:
    outcome, said = outcome_of(counts, network)
    expected = "stopped" if network == STOPPED else "refused" if counts == REFUSED else "finite"
    either = WILD in network or (counts, network) in FOUND
    allowed = {"finite", "refused"} if either else {expected}
    assert outcome in allowed, said
    assert bool(said) is (outcome != "finite")
    assert "\n" not in said


@pytest.mark.parametrize("counts", ["usual", "all counts around 1e5", "constant proteins"])
def test_a_fit_that_fails_names_the_learning_rate_and_answers_nothing(counts: str) -> None:
    outcome, said = outcome_of(counts, "learning rate 10")
    assert outcome == "stopped"
    assert "learning rate" in said


def test_the_grid_is_large_enough() -> None:
    assert len(list(pairs())) >= 200
    assert set(OF_LARGE) <= set(NETWORKS)
