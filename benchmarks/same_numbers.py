"""Write down the numbers of a totalvi, to see that a change of its code changes none of them.

    PYTHONPATH=old/src python benchmarks/same_numbers.py record old.json
    PYTHONPATH=new/src python benchmarks/same_numbers.py record new.json
    python benchmarks/same_numbers.py compare old.json new.json
    PYTHONPATH=new/src python benchmarks/same_numbers.py step

`record` fits small models of every kind (`same_models.py`), asks all queries of each
(`same_queries.py`), goes through files, processes, mapping and the command line (`same_ways.py`), and
writes a digest of each weight, loss and answer (`same_digests.py`), and the public names. It uses only
what is public, with one thread. `--only WORD` takes the cases whose names hold the word, and leaves the
others in the file as they are. `compare` prints what differs, and ends with status 1 if anything does.
`step` (`same_steps.py`) times training steps, one JSON line a measurement; with a shell loop the old
code and the new take turns.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": "agg"}
PACKAGES = ("torch", "numpy", "scipy", "pandas", "numba", "scanpy", "anndata", "mudata", "zarr")


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.command == "compare":
        sys.exit(compare(arguments.old, arguments.new, arguments.only))
    os.environ.update(ONE_THREAD)  # before the first import of what reads it
    if arguments.command == "record":
        record(arguments.file, arguments.only, arguments.golden)
    elif arguments.command == "step":
        from same_steps import time_steps

        time_steps(arguments.repetitions)
    else:
        from same_ways import fit_shared

        fit_shared(arguments.folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    taking = commands.add_parser("record", help="write the numbers of the totalvi on PYTHONPATH")
    taking.add_argument("file", type=Path)
    taking.add_argument("--only", default="", help="cases whose names hold this")
    beside = Path(__file__).resolve().parents[2] / "shared" / "golden"
    taking.add_argument("--golden", type=Path, default=beside, help="models of scvi-tools")
    comparing = commands.add_parser("compare", help="print what differs")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--only", default="", help="cases whose names hold this")
    timing = commands.add_parser("step", help="time training steps")
    timing.add_argument("--repetitions", type=int, default=3)
    shared = commands.add_parser("shared", help="what `record` starts in two processes")
    shared.add_argument("folder", type=Path)
    return parser


# ----------------------------------------------------------------------------------------- record


def record(file: Path, only: str, golden: Path) -> None:
    """Write the digests of all cases, or of those whose names hold a word."""
    forget_stale_loops()
    from same_ways import cases  # imports totalvi

    warnings.simplefilter("ignore")
    old = json.loads(file.read_text()) if only and file.is_file() else {"cases": {}, "seconds": {}}
    found, seconds = old["cases"], old["seconds"]
    print(f"totalvi of {_package()}")
    for name, case in cases(golden).items():
        if only not in name:
            continue
        started = time.perf_counter()
        with TemporaryDirectory(prefix="same-") as folder:
            found[name] = _digests_of_case(case, Path(folder).resolve())
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{seconds[name]:6.1f} s  {len(found[name]):5d} digests  {name}", flush=True)
    about = {name: version(name) for name in PACKAGES}
    about |= {"python": platform.python_version(), "machine": platform.machine()}
    file.write_text(json.dumps({"about": about, "seconds": seconds, "cases": found}, indent=1))
    failed = [name for name, digests in found.items() if "raises" in digests]
    print(f"{sum(map(len, found.values()))} digests, {sum(seconds.values()):.0f} s; {failed=}")


def _digests_of_case(case: Any, folder: Path) -> dict[str, str]:
    """Return the digests of a case; one that fails says so, and the others go on."""
    found: dict[str, str] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        found.update(case(folder))
    except Exception as error:
        traceback.print_exc()
        found["raises"] = f"{type(error).__name__}: {error}"
    finally:
        os.chdir(before)
    return found


def _package() -> Path:
    spec = find_spec("totalvi")
    if spec is None or spec.origin is None or "PYTHONPATH" not in os.environ:
        raise SystemExit("Which totalvi? Set PYTHONPATH to the src folder of a checkout.")
    return Path(spec.origin).parent


def forget_stale_loops() -> None:
    """Delete compiled loops that are older than a source: numba misses changes of what a loop calls."""
    kept = list(_package().rglob("__pycache__/*.nb[ic]"))
    sources = [path for path in _package().rglob("*.py") if "compiled" in path.read_text()]
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    if kept and min(path.stat().st_mtime for path in kept) < newest:
        for path in kept:
            path.unlink()


# ---------------------------------------------------------------------------------------- compare


def compare(old_file: Path, new_file: Path, only: str) -> int:
    """Print what differs between two records, and return the exit status."""
    old, new = (json.loads(file.read_text()) for file in (old_file, new_file))
    for name in sorted({*old["about"], *new["about"]}):
        if old["about"].get(name) != new["about"].get(name):
            print(f"note: {name} {old['about'].get(name)} and {new['about'].get(name)}")
    n_different = n_same = 0
    for case in {**old["cases"], **new["cases"]}:
        if only not in case:
            continue
        if case not in old["cases"] or case not in new["cases"]:
            print(f"{case}: only in {old_file if case in old['cases'] else new_file}")
            n_different += 1
            continue
        before, after = old["cases"][case], new["cases"][case]
        for item in {**before, **after}:
            if before.get(item) == after.get(item):
                n_same += 1
                continue
            n_different += 1
            print(f"{case}: {item}")
            print(f"    old {before.get(item, 'has none')}\n    new {after.get(item, 'has none')}")
    print(f"{n_same} the same, {n_different} different")
    return int(n_different > 0)


if __name__ == "__main__":
    main()
