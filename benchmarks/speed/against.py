"""Time this checkout and another one of totalvi side by side, with the cases of `run.py`.

    git worktree add ../before 3ffe23a
    python benchmarks/speed/against.py ../before

The workers of both take turns in separate processes of the same environment. Each imports its own
checkout. Versions before ``given_counts`` answer given z alone; with ``--given-z`` this one does too.
The table goes to standard output.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from run import CASES, DATA, Worker

HERE = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--given-z", action="store_true", help="answer as the other one does")
    arguments = parser.parse_args()
    for library in ("OMP", "MKL", "NUMBA"):
        os.environ[f"{library}_NUM_THREADS"] = arguments.threads
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--data", str(arguments.data), "--threads", arguments.threads]
        options += ["--device", "cpu", "--epochs", "10", "--clusters", f"{folder}/clusters.npy"]
        before = worker_of(arguments.other.resolve(), options)
        now = worker_of(HERE, options + ["--given-z"] * arguments.given_z)
        now.ask("write clusters")
        print(
            "| case | before | now | now over before: median, range over pairs |\n|---|---|---|---|"
        )
        for case in CASES:
            report(
                case, [(now.ask(case), before.ask(case)) for _ in range(arguments.repetitions + 1)]
            )
        now.stop()
        before.stop()


def worker_of(root: Path, options: list[str]) -> Worker:
    os.environ["PYTHONPATH"] = str(root / "src")
    return Worker(sys.executable, str(root / "benchmarks" / "speed" / "cases_ours.py"), options)


def report(case: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    """Print a row for each time that the case takes, without the repetition that warms up."""
    for what in pairs[0][0]:
        now, before = ([pair[side][what] for pair in pairs[1:]] for side in (0, 1))
        ratios = [after / first for after, first in zip(now, before, strict=True)]
        print(
            f"| {case if what == 'seconds' else what} | {statistics.median(before):.4g} s "
            f"| {statistics.median(now):.4g} s | {statistics.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
