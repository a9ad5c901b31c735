"""What a run records of itself: arguments, versions, and the hash of its input."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("totalvi", "torch", "numpy", "scipy", "scanpy", "anndata", "mudata")


def provenance(arguments: Mapping[str, Any], inputs: Sequence[Path]) -> dict[str, Any]:
    """Return when and with what the run was made, as JSON can hold it.

    Parameters
    ----------
    arguments
        Of the run; values other than numbers, texts and sequences of them are left out.
    inputs
        Files or folders that were read.
    """
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        "input_sha256": {str(path): sha256(path) for path in inputs},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
    }


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write ``record`` as indented JSON."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256(file_path)}\0".encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return (
        value if isinstance(value, str | int | float | None) else f"{type(value).__name__} object"
    )
