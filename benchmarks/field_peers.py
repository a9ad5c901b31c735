"""Ask programs that have environments of their own, for `field.py`.

Each program has a script (`field_scvi.py`, `field_midas.py`) that its own Python runs: it reads the
cells from one file and writes its answer to another. What it prints goes to a file beside the answer. A
program that is not installed, that ends with an error or that does not end has an answer in words.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse

HERE = Path(__file__).resolve().parent
# seconds on a clock after which a fit is given up
LIMIT = {"scvi": 1800.0, "midas": 3600.0}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Question:
    """One fit of one program: its script, the cells, where the answer goes, and the options.

    Both paths are absolute, as the script runs in the folder of the answer.
    """

    script: str
    cells: Path
    answer: Path
    options: tuple[str, ...]


Answer = dict[str, np.ndarray] | str  # what the script found, or why there is nothing


def ask(python: str, question: Question, *, limit: float) -> Answer:
    """Return what a program answers, or in words why it does not; an answer that is there stays."""
    if not question.answer.exists():
        found_python = shutil.which(python)
        if found_python is None:
            return "not installed"
        command = [
            Path(found_python).absolute(),  # not what it links to, which is no environment
            HERE / question.script,
            question.cells,
            question.answer,
        ]
        log = question.answer.with_suffix(".log")
        try:
            with log.open("w") as printed:
                ended = subprocess.run(
                    [*map(str, command), *question.options],
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    env=os.environ | ONE_THREAD,
                    cwd=question.answer.parent,  # where it may leave files of its own
                )
        except subprocess.TimeoutExpired:
            return f"failed: no answer after {limit:.0f} s"
        if ended.returncode or not question.answer.exists():
            return reason(log.read_text(errors="replace").splitlines(), ended.returncode)
    with np.load(question.answer) as found:
        return dict(found)


def reason(printed: Sequence[str], code: int) -> str:
    """Return why a script failed, by the last line that it printed."""
    last = next((line.strip() for line in reversed(printed) if line.strip()), f"ended with {code}")
    if last.startswith("ModuleNotFoundError"):
        return "not installed"
    return f"failed: {last[:120]}".replace("|", "/")


def write_partly_hidden(data: MuData, counts: np.ndarray, hidden: np.ndarray, path: Path) -> None:
    """Write cells for `field_scvi.py`, with zeros for the proteins that are hidden."""
    obs = pd.DataFrame({"panel": data.obs["panel"].astype(str).to_numpy()}, data.obs_names)
    rna = data["rna"]
    adata = anndata.AnnData(sparse.csr_matrix(rna.X, dtype=np.float32), obs, rna.var[[]])
    adata.obsm["protein_expression"] = np.where(hidden[:, None], 0, counts).astype(np.float32)
    adata.write_h5ad(path)
