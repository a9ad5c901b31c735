"""Measure partly known labels: accuracy, calibration, and a type that no known label names.

    python benchmarks/labels.py --data SHARED --seeds 0 1 2 --peer PYTHON --cache folder

SHARED is the folder with real counts. PYTHON is that of an environment with scvi-tools, whose TOTALANVI
is trained in the same run (`labels_peer.py`); without it only totalvi is measured.

A random 10 % of the cells keep their label. The model, fitted without labels, predicts the others.

- PBMC10k: clusters of principal components of both modalities (`principal_clusters` of `mapping.py`),
  which do not come from a model.
- bone marrow, 134 antibodies, two donors: the published 39 cell types. In 60 labelled cells many have
  one cell or none.

Cells whose type has no labelled cell cannot be right, and are left out of accuracy and calibration
error. The calibration error is that of the most probable label, in 15 bins of equally many cells, over the
cells of all seeds. As bins of few cells differ by chance, the error that the same probabilities
would have if they were right ("by chance") stands beside it, and what is left without it:
sqrt(max(0, mean over bins of gap² - its variance)).

For each type of at least 1 % of the cells, and 20, all of its labels are then taken away: the AUROC is
of P(unlike all labels) of its cells against the unlabelled cells of the other labels. TOTALANVI has
no such answer; its score is 1 - the largest probability. It is trained for each left-out type with the
first seed only.

Results go to benchmarks/results/labels.json and labels.md.
"""

import argparse
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from mapping import principal_clusters
from mudata import MuData
from result_files import write_results
from scipy import sparse
from sklearn.metrics import roc_auc_score

import totalvi

HERE = Path(__file__).resolve().parent
UNKNOWN = "Unknown"
KNOWN = 0.1
LEAST_SHARE, LEAST_CELLS = 0.01, 20  # of a type that is left out
BINS = 15


def cells_of(name: str, folder: Path, cache: Path) -> tuple[MuData, str | None, np.ndarray]:
    """Return the counts of a data set, its batch column, and the type of each cell."""
    if name == "bone marrow":
        mdata = totalvi.read(folder / "bmmc_134proteins.h5mu")
        return mdata, "batch", mdata["rna"].obs["cell_type"].astype(str).to_numpy(object)
    mdata = totalvi.read(folder / "pbmc10k.h5mu")
    kept = cache / "clusters.csv"
    if not kept.exists():
        pd.Series(principal_clusters(mdata), index=mdata.obs_names).to_csv(kept)
    return mdata, None, pd.read_csv(kept, index_col=0, dtype=str).iloc[:, 0].to_numpy(object)


def label_sets(types: np.ndarray, seed: int) -> pd.DataFrame:
    """Return the known labels, and the same without each of the larger types; others "Unknown"."""
    known = np.zeros(len(types), dtype=bool)
    known[np.random.default_rng(seed).permutation(len(types))[: round(KNOWN * len(types))]] = True
    sizes = pd.Series(types).value_counts()
    sets = {"known": np.where(known, types, UNKNOWN)}
    for name in sizes.index[sizes >= max(LEAST_CELLS, LEAST_SHARE * len(types))]:
        sets[f"without {name}"] = np.where(known & (types != name), types, UNKNOWN)
    return pd.DataFrame(sets)


def peer_inputs(
    name: str, mdata: MuData, batch_key: str | None, sets: pd.DataFrame, seed: int, cache: Path
) -> list[str]:
    """Write what `labels_peer.py` reads, and return its arguments."""
    rna = mdata["rna"]
    batch = "all" if batch_key is None else rna.obs[batch_key].astype(str).to_numpy()
    obs = pd.DataFrame({"batch": batch}, index=rna.obs_names)
    adata = anndata.AnnData(sparse.csr_matrix(rna.X), obs, rna.var[[]])
    adata.obsm["protein_expression"] = mdata["prot"].to_df()
    stem = cache / f"peer {name} {seed}"
    cells, labels, output = (Path(f"{stem}{end}") for end in (".h5ad", ".csv", ".npz"))
    adata.write_h5ad(cells)
    sets.to_csv(labels)
    return [str(cells), str(labels), str(output), "--seed", str(seed)]
