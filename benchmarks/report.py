"""How long the report of a run takes, and how large it is.

python benchmarks/report.py FOLDER_OF_A_RUN
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from totalvi.report.build import build_report


def main() -> None:
    """Build the report three times, and print the best time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    seconds, cpu = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(3):
            start, start_cpu = time.perf_counter(), time.process_time()
            path = build_report(folder, Path(scratch) / "report.html")
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
        size = path.stat().st_size
    cells = json.loads((folder / "run.json").read_text())["cells"]
    print(f"{cells:,} cells: {min(seconds):.1f} s ({min(cpu):.1f} s of CPU), {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
