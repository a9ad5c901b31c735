"""Runs some of whose steps failed after the fit: what is said of them, and how they are completed."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from totalvi.analysis.output import RECORD
from totalvi.analysis.steps import NotMadeError
from totalvi.errors import IncompleteError, TotalviError


def incomplete_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a run some of whose steps failed; None if all was made."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record.get("failed") else None


def completed(earlier: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that was completed: what it said of its input, and what is new."""
    both = {**record, **{name: earlier[name] for name in ("arguments", "epochs_asked", "notes")}}
    both["seconds"] = earlier["seconds"] | record["seconds"]
    both["warnings"] = list(dict.fromkeys([*earlier["warnings"], *record["warnings"]]))
    return both


def named(error: Exception) -> str:
    """Return an error in a few words."""
    if isinstance(error, TotalviError | NotMadeError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def incomplete_error(
    output: Path, failed: Mapping[str, Exception], *, repeatable: bool
) -> IncompleteError:
    """Return the error that says in one sentence what failed, what is there, and how to complete it."""
    causes = {name: error for name, error in failed.items() if not isinstance(error, NotMadeError)}
    left_out = [name for name in failed if name not in causes]
    said = " and ".join(f"{name} failed ({named(error)})" for name, error in causes.items())
    if left_out:
        said += f", so that {', '.join(left_out)} could not be made"
    how = "the same call with resume"
    if repeatable:
        record, folder = shlex.quote(str(output / RECORD)), shlex.quote(str(output))
        how = f"`totalvi run --from {record} -o {folder} --resume`"
    error = IncompleteError(
        f"{said}; the model and all else are in {output}, and {how} makes what is missing"
    )
    errors = list(causes.values())
    error.__cause__ = errors[0] if len(errors) == 1 else ExceptionGroup("failed steps", errors)
    return error
