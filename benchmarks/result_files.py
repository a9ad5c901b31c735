"""Write what a benchmark measured, for machines and for readers."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def write_results(
    name: str, measured: Mapping[str, Any], lines: Sequence[str], started: float
) -> None:
    """Write ``name``.json and ``name``.md; ``started`` is of `time.process_time`."""
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "processor_seconds": round(time.process_time() - started),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, **measured}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
