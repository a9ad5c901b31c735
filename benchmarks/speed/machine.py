"""Describe the machine of a benchmark."""

import os
import platform
import subprocess
from pathlib import Path


def machine(threads: int) -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit that is measured, and whether files were changed since.

    The version of an editable installation is that of the day of the installation.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
