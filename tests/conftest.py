"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real counts and golden numbers that lies beside a developer's checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the developers' data folder {SHARED}, which is not on this machine")
    return SHARED
