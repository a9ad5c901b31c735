"""Wrapper of `totalvi run` for Snakemake: from a file of counts to a folder of results."""

import os
from pathlib import Path

job = snakemake  # noqa: F821  # Snakemake defines it before it runs this file

command = ["totalvi", "run", job.input.counts, "--output", job.output.results, "--resume"]
raw, batches = job.input.get("raw", []), job.params.get("raw_batches", [])
paths = [raw] if isinstance(raw, str) else raw
for path, batch in zip(paths, batches, strict=True) if batches else ((path, "") for path in paths):
    command += ["--raw", f"{batch}={path}" if batch else path]
for name in ("batch", "sample", "condition"):
    if job.params.get(name):
        command += [f"--{name}", job.params.get(name)]
extra = job.params.get("extra", [])
command += extra.split() if isinstance(extra, str) else extra

threads = str(job.threads)
environment = os.environ | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
if job.log:
    Path(job.log[0]).parent.mkdir(parents=True, exist_ok=True)
    with Path(job.log[0]).open("ab") as log:  # earlier lines stay, unless Snakemake deleted them
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
# totalvi takes the place of this process, so that it gets the signals, and its exit status is the job's
os.execvpe(command[0], command, environment)
