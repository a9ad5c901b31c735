"""Steps are timed, and shown only on a terminal."""

import pytest

from totalvi.progress import Steps


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
