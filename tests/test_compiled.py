"""Loops compile whether or not a folder can be written to."""

from collections.abc import Callable
from typing import Any

import numba
import pytest

from totalvi import compiled as module
from totalvi.compiled import compiled


def refusing(message: str) -> Callable[..., Any]:
    def njit(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError(message)
        return numba.njit(**options)

    return njit


def twice(x: float) -> float:
    return 2 * x


def test_without_a_folder_to_write_to_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "cannot cache function 'twice': no locator available for file 'x.py'"
    monkeypatch.setattr(module, "njit", refusing(message))
    function = compiled(error_model="numpy")(twice)
    assert function(1.5) == 3
    assert function.stats.cache_path is None
    assert function.targetoptions["error_model"] == "numpy"


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "njit", refusing("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        compiled()(twice)
