"""Record the numbers of one version of totalvi, and compare them with those of another.

    PYTHONPATH=old/src python benchmarks/same_numbers.py record old.json
    PYTHONPATH=new/src python benchmarks/same_numbers.py record new.json
    python benchmarks/same_numbers.py compare old.json new.json
    PYTHONPATH=new/src python benchmarks/same_numbers.py step

- `record` fits small models of every kind (`same_models.py`), runs all queries of each
  (`same_queries.py`), and uses files, processes, mapping and the command line (`same_ways.py`). It
  writes the public names and a digest of each weight, loss and result (`same_digests.py`). It uses
  only public names, with one thread. `--only WORD` runs the cases whose names contain the word, and
  keeps the others of the file. A separate process compiles the loops first, because the process
  that compiles them may compute other last digits than processes that load them.
- `compare` prints the differences, and ends with status 1 if there are any. Both records must come
  from the same machine.
- `step` (`same_steps.py`) times training steps, with one JSON line for each measurement. Use a
  shell loop to run the old code and the new code in turns.
"""

import argparse
import json
import os
import platform
import subprocess
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
        sys.exit(compare(arguments.old, arguments.new, arguments.only, arguments.show))
    os.environ.update(ONE_THREAD)  # before the first import of what reads it
    if arguments.command == "record":
        record(arguments.file, arguments.only, arguments.golden)
    elif arguments.command == "warm-up":
        from same_models import COMPILING
        from same_ways import cases

        _record_cases({name: cases(Path())[name] for name in COMPILING})
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
    comparing.add_argument("--show", type=int, default=10, help="differences shown of a case")
    timing = commands.add_parser("step", help="time training steps")
    timing.add_argument("--repetitions", type=int, default=3)
    commands.add_parser("warm-up", help="what `record` starts to compile all loops")
    shared = commands.add_parser("shared", help="what `record` starts in two processes")
    shared.add_argument("folder", type=Path)
    return parser


# ----------------------------------------------------------------------------------------- record


def record(file: Path, only: str, golden: Path) -> None:
    """Write the digests of all cases, or of those whose names hold a word."""
    print(f"totalvi of {_package()}", flush=True)
    forget_stale_loops()
    if not _kept_loops():
        print("compiling loops, which takes a minute", flush=True)
        command = [sys.executable, __file__, "warm-up"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    kept = _kept_loops()
    from same_ways import cases  # imports totalvi

    every = cases(golden)
    found, seconds = _record_cases({name: every[name] for name in every if only in name})
    if _kept_loops() != kept:
        print("Loops were compiled. Once more, with what was kept: last digits may differ.")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if only and file.is_file():
        old = json.loads(file.read_text())
        found, seconds = old["cases"] | found, old["seconds"] | seconds
    about = {name: version(name) for name in PACKAGES}
    about |= {"python": platform.python_version(), "machine": platform.machine()}
    file.write_text(json.dumps({"about": about, "seconds": seconds, "cases": found}, indent=1))
    failed = [name for name, digests in found.items() if "raises" in digests]
    print(f"{sum(map(len, found.values()))} digests, {sum(seconds.values()):.0f} s; {failed=}")


def _record_cases(cases: dict[str, Any]) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Return the digests and the seconds of each case."""
    warnings.simplefilter("ignore")
    found, seconds = {}, {}
    for name, case in cases.items():
        started, work = time.perf_counter(), _processor_time()
        with TemporaryDirectory(prefix="same-") as folder:
            found[name] = _digests_of_case(case, Path(folder).resolve())
        seconds[name] = round(time.perf_counter() - started, 1)
        work = _processor_time() - work
        print(f"{seconds[name]:6.1f} s ({work:4.1f} s of work)  {name}", flush=True)
    return found, seconds


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


def _processor_time() -> float:
    return sum(os.times()[:4])


def _package() -> Path:
    spec = find_spec("totalvi")
    if spec is None or spec.origin is None or "PYTHONPATH" not in os.environ:
        raise SystemExit("Which totalvi? Set PYTHONPATH to the src folder of a checkout.")
    return Path(spec.origin).parent


def _kept_loops() -> list[Path]:
    return sorted(_package().rglob("__pycache__/*.nb[ic]"))


def forget_stale_loops() -> None:
    """Delete compiled loops that are older than a source: numba misses changes of what a loop calls."""
    kept = _kept_loops()
    sources = [path for path in _package().rglob("*.py") if "compiled" in path.read_text()]
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    if kept and min(path.stat().st_mtime for path in kept) < newest:
        for path in kept:
            path.unlink()


# ---------------------------------------------------------------------------------------- compare


def compare(old_file: Path, new_file: Path, only: str, n_shown: int) -> int:
    """Print what differs between two records, and return the exit status."""
    old, new = (json.loads(file.read_text()) for file in (old_file, new_file))
    for name in sorted({*old["about"], *new["about"]}):
        if old["about"].get(name) != new["about"].get(name):
            print(f"note: {name} {old['about'].get(name)} and {new['about'].get(name)}")
    n_same = n_different = 0
    for case in {**old["cases"], **new["cases"]}:
        if only not in case:
            continue
        before, after = old["cases"].get(case), new["cases"].get(case)
        if before is None or after is None:
            print(f"{case}: only in {new_file if before is None else old_file}")
            n_different += 1
            continue
        items = {**before, **after}
        different = [item for item in items if before.get(item) != after.get(item)]
        n_different, n_same = n_different + len(different), n_same + len(items) - len(different)
        for item in different[:n_shown]:
            print(f"{case}: {item}")
            print(f"    old {before.get(item, 'has none')}\n    new {after.get(item, 'has none')}")
        if len(different) > n_shown:
            print(f"{case}: and {len(different) - n_shown} more")
    print(f"{n_same} the same, {n_different} different")
    return int(n_different > 0)


if __name__ == "__main__":
    main()
