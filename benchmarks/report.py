"""Time how long the reports of runs take to build, and measure their size.

    python benchmarks/report.py FOLDER_OF_A_RUN... [--write]

Each report is built three times. With --write the table goes to results/report.md.
"""

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from totalvi.report.build import build_report

RESULT = Path(__file__).parent / "results" / "report.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    lines = [
        "| input | cells | proteins | seconds | seconds of CPU | MB |",
        "|---|---:|---:|---:|---:|---:|",
        *map(measured, given.folders),
    ]
    print("\n".join(lines))
    if given.write:
        load = f"{os.getloadavg()[1]:.0f} on {os.cpu_count()} cores"
        head = (
            "# Building report.html\n\n"
            f"`python benchmarks/report.py FOLDER... --write`, totalvi {version('totalvi')}: the "
            "best of three builds from the folder of a\nrun, and the size of the file. The load "
            f"average of the machine was {load}. The goals are less than 20 s\nfor PBMC10k and less "
            "than 10 MB for 10,000 cells.\n\n"
        )
        RESULT.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def measured(folder: Path) -> str:
    """Return a row of the table."""
    seconds, cpu = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(3):
            start, start_cpu = time.perf_counter(), time.process_time()
            path = build_report(folder, Path(scratch) / "report.html")
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
        megabytes = path.stat().st_size / 1e6
    record = json.loads((folder / "run.json").read_text())
    name = Path(str(record["arguments"]["input"])).name
    return (
        f"| {name} | {record['cells']:,} | {record['proteins']} | {min(seconds):.1f} | {min(cpu):.1f} "
        f"| {megabytes:.1f} |"
    )


if __name__ == "__main__":
    main()
