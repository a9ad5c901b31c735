"""Code that the workers of both programs share: requests, responses and clocks."""

import argparse
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

Case = Callable[[], dict[str, Any]]


def private_stdout() -> TextIO:
    """Return the way to who asks; whatever else is printed goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def worker_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clusters", type=Path, required=True, help="a cluster a cell, .npy")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--epochs", type=int, required=True, help="of the fit that is asked about")
    parser.add_argument("--given-z", action="store_true", help="answer without the cell's count")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def serve(cases: Mapping[str, Case], about: Mapping[str, Any], answers: TextIO) -> None:
    """Say what this is, and answer each line of standard input, the name of a case, with JSON."""
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = cases[line.strip()]()
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def clock(device: str) -> float:
    """Return the time once all that the GPU was told to do is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(function: Callable[[], Any], device: str) -> Case:
    """Return a case: the seconds that ``function`` takes."""

    def case() -> dict[str, float]:
        started = clock(device)
        result = function()
        seconds = clock(device) - started
        del result  # not while the clock runs
        return {"seconds": seconds}

    return case


def peak_memory() -> dict[str, float]:
    """Return the most memory that this process ever had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}
