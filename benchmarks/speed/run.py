"""Time totalvi and scvi-tools side by side on the same data.

    python benchmarks/speed/run.py --peer-python .peer-venv/bin/python

Each program runs in a separate process, and they take turns, so that other load on the machine
slows both. All repetitions go to results/speed.json, medians and ratios to results/speed.md. With a
CUDA device in both environments the cases run on it too, and go to speed_cuda.json and
speed_cuda.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from machine import machine

from report import markdown

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data" / "pbmc10k.h5mu"
RESULTS = HERE.parent / "results"
CASES = ("training", "latent", "denoised", "foreground", "two groups", "each cluster")
_PAUSE = 0.3  # seconds in which the threads of the other program go to sleep


class Worker:
    """A program that answers what its cases take."""

    def __init__(self, python: str, script: str, options: list[str]) -> None:
        command = [python, str(HERE / script), *options]
        self.script = script
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def ask(self, case: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        time.sleep(_PAUSE)
        print(case, file=self.process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            sys.exit(f"{self.script} failed at {case}:\n{answer['error']}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.script} ended early")
        return json.loads(line)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start_workers(arguments: argparse.Namespace, device: str, clusters: Path) -> list[Worker]:
    options = ["--data", str(arguments.data), "--clusters", str(clusters)]
    options += ["--threads", str(arguments.threads), "--device", device]
    ours = Worker(sys.executable, "cases_ours.py", [*options, "--epochs", "10"])
    peer = Worker(arguments.peer_python, "cases_peer.py", [*options, "--epochs", "1"])
    return [ours, peer]


def stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.stop()


def in_turns(workers: list[Worker], repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every repetition, by case and program, after one that warms up."""
    ours, peer = workers
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in CASES:
        for repetition in range(repetitions + 1):
            answers = {"ours": ours.ask(case), "peer": peer.ask(case)}
            if case == "training":
                answers["floor"] = ours.ask("floor")
            print(case, repetition, answers, flush=True)
            if repetition == 0:
                continue
            for program, answer in answers.items():
                for what, value in answer.items():
                    seconds[case if what == "seconds" else what][program].append(value)
    return {case: dict(by_program) for case, by_program in seconds.items()}


def peak_memory(workers: list[Worker]) -> dict[str, float]:
    """Return MB after a fit, training and all queries, once each, in processes that did no more."""
    for case in CASES:
        for worker in workers:
            worker.ask(case)
    ours, peer = (worker.ask("peak memory")["mb"] for worker in workers)
    return {"ours": ours, "peer": peer}


def start_up(peer_python: str, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Return the wall time of an import and of the command line, by program."""
    script = Path(sys.executable).with_name("totalvi")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "totalvi"]
    cases = {
        "import": {
            "ours": [sys.executable, "-c", "import totalvi"],
            "peer": [peer_python, "-c", "import scvi"],
        },
        "totalvi --help": {"ours": [*command, "--help"]},
    }
    return {
        case: {
            program: [wall_seconds(command) for _ in range(repetitions + 1)][1:]
            for program, command in commands.items()
        }
        for case, commands in cases.items()
    }


def wall_seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def other_script(script: str, *options: str) -> dict[str, Any]:
    """Run a script of this folder in a process of its own, and return what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / script), *options]
        subprocess.run([*command, "--output", str(output)], check=True)
        return json.loads(output.read_text())


def time_to_quality(
    arguments: argparse.Namespace, device: str, sizes: dict[str, Any]
) -> dict[str, Any] | None:
    """Return what `quality_time.py` found; None where no fit of the peer to such data is stored."""
    folder = arguments.output if arguments.quick else RESULTS
    stored = arguments.peer_result or folder / f"{named('peer_fit', device)}.json"
    if not arguments.refit_peer:
        fit = json.loads(stored.read_text()) if stored.exists() else {}
        if any(fit.get(name) != sizes[name] for name in ("cells", "genes", "proteins")):
            return None
    options = ["--data", str(arguments.data), "--peer-result", str(stored)]
    options += ["--threads", str(arguments.threads), "--device", device]
    options += ["--repetitions", str(arguments.repetitions)]
    if arguments.refit_peer:
        options += ["--peer-python", arguments.peer_python]
    if arguments.quick:
        options += ["--max-epochs", "2"]
    return other_script("quality_time.py", *options)


def growth(arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = ["--cells", "1000", "2000", "--genes", "100", "200"] if arguments.quick else []
    return other_script("growth.py", "--threads", str(arguments.threads), *sizes)


def simulate(path: Path, quick: bool) -> None:
    """Write data of the size of 10x Genomics' 10k PBMC, where there are none."""
    import totalvi

    size = (600, 200, 14) if quick else (6855, 4000, 14)
    totalvi.simulate(*size, n_cell_types=15, store_truth=False).write(path)


def measure(arguments: argparse.Namespace, device: str, clusters: Path) -> dict[str, Any]:
    workers = start_workers(arguments, device, clusters)
    ours, peer = (worker.about for worker in workers)
    result: dict[str, Any] = {
        "data": arguments.data.name,
        "device": device,
        "machine": machine(arguments.threads),
        "programs": {"ours": ours, "peer": peer},
        "clusters": workers[0].ask("write clusters")["clusters"],
        "seconds": in_turns(workers, arguments.repetitions),
    }
    stop(workers)
    workers = start_workers(arguments, device, clusters)
    result["peak_mb"] = peak_memory(workers)
    stop(workers)
    quality = time_to_quality(arguments, device, ours)
    if quality is not None:
        result["time_to_quality"] = quality
    if device == "cpu":
        result["seconds"] |= start_up(arguments.peer_python, arguments.repetitions)
        result["growth"] = growth(arguments)
    return result


def write(result: dict[str, Any], folder: Path) -> None:
    name = named("speed", result["device"])
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(result))
    print(f"\n{markdown(result)}", flush=True)


def named(stem: str, device: str) -> str:
    return stem if device == "cpu" else f"{stem}_{device}"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="of an environment with scvi-tools")
    parser.add_argument("--data", type=Path, help="MuData file; simulated if there is none")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default both, if present")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peer-result", type=Path, help="a stored fit of the peer")
    parser.add_argument("--refit-peer", action="store_true", help="takes ten minutes")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="try it on tiny simulated data")
    arguments = parser.parse_args()
    if shutil.which(arguments.peer_python) is None:
        parser.error(f"{arguments.peer_python} is no interpreter; give one with scvi-tools")
    if arguments.quick and arguments.output == RESULTS:
        parser.error("--quick measures nothing worth keeping; give another folder as --output")
    if arguments.data is not None and not arguments.data.exists():
        parser.error(f"{arguments.data} does not exist")
    return arguments


def main() -> None:
    arguments = read_arguments()
    threads = str(arguments.threads)
    for library in ("OMP", "MKL", "NUMBA"):
        os.environ[f"{library}_NUM_THREADS"] = threads
    os.environ["PYTHONWARNINGS"] = "ignore"
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None:
            arguments.data = Path(folder) / "simulated.h5mu" if arguments.quick else DATA
            if not arguments.data.exists():
                arguments.data = Path(folder) / "simulated.h5mu"
                simulate(arguments.data, arguments.quick)
        clusters = Path(folder) / "clusters.npy"
        result = measure(arguments, arguments.device or "cpu", clusters)
        write(result, arguments.output)
        has_gpu = all(program["cuda"] for program in result["programs"].values())
        if arguments.device is None and has_gpu:
            write(measure(arguments, "cuda", clusters), arguments.output)


if __name__ == "__main__":
    main()
