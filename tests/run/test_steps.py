"""Steps are timed; a terminal shows all of them, and a log what takes long."""

from types import SimpleNamespace

import pytest

from totalvi import progress
from totalvi.progress import Steps, cell_progress, epoch_progress


@pytest.mark.parametrize("show", [None, False, True])
def test_steps_are_timed(show: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(show)
    with steps.step("read"):
        pass
    with steps.step("train", spinner=False):
        pass
    assert list(steps.seconds) == ["read", "train"]
    assert all(seconds >= 0 for seconds in steps.seconds.values())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (printed.err != "") == bool(show)


def test_failed_steps_are_not_counted() -> None:
    steps = Steps(False)
    with pytest.raises(ValueError, match="no"), steps.step("read"):
        raise ValueError("no")
    assert steps.seconds == {}


def test_a_log_has_the_steps_that_took_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LEAST_SECONDS_OF_A_LINE", -1.0)
    for show in (None, False):
        with Steps(show).step("read"):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" s  read")


@pytest.mark.parametrize("show", [None, False])
def test_a_log_has_a_line_a_minute_of_fits_and_queries(
    show: bool | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 50.0)
    clock = iter(range(0, 10_000, 30))  # seconds; each is read once after each epoch or minibatch
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with epoch_progress(4, show) as tell:
        assert (tell is None) == (show is False)
        for epoch in range(4 if tell else 0):
            assert tell is not None
            tell(epoch, {"train_loss": 10.0, "validation_loss": 11.0, "seconds": 0.5})
    batches = [SimpleNamespace(cells=range(600)) for _ in range(2)]
    with cell_progress(batches, 1200, "denoised values", show) as given:
        assert list(given) == batches
    expected = [
        "training: 2 of 4 epochs, 2.00 epochs/s, loss 10.0, held out 11.0",
        "training: 4 of 4 epochs, 2.00 epochs/s, loss 10.0, held out 11.0",
        "denoised values: 1,200 of 1,200 cells",
    ]
    assert capsys.readouterr().err.splitlines() == (expected if show is None else [])
