"""Read tens of thousands of damaged and hostile files, and count the outcomes.

    python benchmarks/fuzz.py --files 22000

Every file is a small valid one, damaged at random with a seed (tests/fuzzing): cut short, with
flipped bits or moved bytes, or with hostile numbers, types, names, links and sizes. A separate
process with limited time and memory reads it. Results go to benchmarks/results/fuzz.json and
fuzz.md. `--reader NAME` reads the files of one reader again, and `--reader NAME --index N` reports
on one file.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzzing.process import FAULTS, Worker

RESULTS = Path(__file__).resolve().parent / "results"
SHARES = {
    "Cell Ranger 3 .h5": 25, "Cell Ranger 2 .h5": 20, "matrix folder": 25, "matrix folder, gzip": 15,
    "h5ad": 15, "h5ad, gzip": 12, "h5mu": 15, "zarr 2": 5, "zarr 3": 5, "zarr of MuData": 3, "csv": 20,
    "tsv.gz": 10, "concat": 5, "model folder": 15, "scvi-tools model": 15, "0.6.x weights": 10,
    "0.6.x config": 5,
}  # fmt: skip
ENDINGS = ("refused", "right", "undetectable", *FAULTS)
EXPLAINED = """
- refused: totalvi raises an error that names the file.
- right: counts, names and batches (of a model: weights, schema and options) are those of the undamaged
  file.
- undetectable: the file is complete and contains what was read (an independent parser of text agrees),
  or it is read correctly once values in blocks without a checksum are restored. HDF5 without
  compression, zarr and torch's older format do not protect values.
- faults: a number or name that differs from the file (wrong), an error that is not totalvi's, more than
  600 MB of memory for a few kilobytes, a file changed or written, more than 30 s, or a crash.
"""


def run(
    readers: Sequence[str], n_files: int, n_workers: int
) -> tuple[dict[str, Counter[str]], list[dict[str, object]], float]:
    """Return the endings by reader, the faults, and the seconds."""
    started = time.perf_counter()
    numbers = {name: -(-n_files * SHARES[name] // sum(SHARES.values())) for name in readers}
    with ThreadPoolExecutor(n_workers) as pool:
        found = list(pool.map(endings_of, numbers, numbers.values()))
    faults = [fault for _, of_reader in found for fault in of_reader]
    endings = {name: counts for name, (counts, _) in zip(numbers, found, strict=True)}
    return endings, faults, time.perf_counter() - started


def endings_of(name: str, n_files: int) -> tuple[Counter[str], list[dict[str, object]]]:
    """Return how readings of one format end, and the faults."""
    endings: Counter[str] = Counter()
    faults: list[dict[str, object]] = []
    with Worker() as worker:
        for index in range(n_files):
            outcome = worker.outcome(name, index)
            endings[outcome.kind] += 1
            if outcome.kind in FAULTS:
                faults.append({"reader": name, "index": index, **outcome._asdict()})
    print(name, dict(endings), *faults, sep="\n  ", flush=True)
    return endings, faults


def report(endings: dict[str, Counter[str]], faults: list[dict[str, object]]) -> str:
    """Return the table of endings, and the faults, as Markdown."""
    total = sum(endings.values(), Counter())
    rows = [*endings.items(), ("all", total)]
    lines = [
        f"{total.total():,} damaged files, {len(faults)} faults (`python benchmarks/fuzz.py`).",
        "",
        "| reader | files | " + " | ".join(ENDINGS) + " |",
        "|---|" + "---|" * (len(ENDINGS) + 1),
    ]
    for name, counts in rows:
        cells = " | ".join(f"{counts[ending]:,}" for ending in ENDINGS)
        lines.append(f"| {name} | {counts.total():,} | {cells} |")
    lines.append(EXPLAINED)
    lines += [
        f"- {f['reader']} {f['index']}: {f['kind']}, {f['what']}; {f['detail']}"
        for f in faults[:50]
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=22_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--reader", choices=tuple(SHARES), help="Only this one, and replace its row."
    )
    parser.add_argument("--index", type=int, help="Tell of one file of --reader.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    os.nice(max(0, 10 - os.nice(0)))
    if given.index is not None:
        with Worker() as worker:
            print(worker.outcome(given.reader, given.index))
        return
    readers = tuple(SHARES) if given.reader is None else (given.reader,)
    endings, faults, seconds = run(readers, given.files, given.workers)
    if given.reader is not None:  # again, since its faults are fixed
        before = json.loads((given.output / "fuzz.json").read_text())
        endings = {name: Counter(of) for name, of in before["endings"].items()} | endings
        faults += [fault for fault in before["faults"] if fault["reader"] != given.reader]
        seconds += before["seconds"]
    content = {"seconds": round(seconds), "endings": endings, "faults": faults}
    (given.output / "fuzz.json").write_text(json.dumps(content, indent=1) + "\n")
    (given.output / "fuzz.md").write_text(report(endings, faults))


if __name__ == "__main__":
    main()
