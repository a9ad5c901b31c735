"""Measure the mixing of batches and the separation of cell types.

    python benchmarks/integration.py --scib-python /path/to/python

There are two cases: the two donors of a bone marrow data set, with known cell types; and PBMC10k
with PBMC5k, which has RNA alone. Each is embedded by a default fit and, uncorrected, by the first
20 principal components of log-normalised RNA. The scores are those of scib-metrics. The named
interpreter computes them and needs only that package. Results go to
benchmarks/results/integration.md.

The types of PBMC are unknown. Their labels are the clusters of each batch (k-means of its own principal
components of RNA, 12 clusters), and conservation is scored in each batch and averaged. This favours the
principal components, from which the labels were computed.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.cluster.vq import kmeans2
from scipy.sparse.linalg import svds

import totalvi

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
N_COMPONENTS, N_CLUSTERS, FEWEST_CELLS = 20, 12, 10


def principal_components(counts: sparse.csr_matrix) -> np.ndarray:
    """Return the first components of log-normalised RNA, scores scaled by the singular values."""
    rna = sparse.csr_matrix(counts, dtype=np.float64)
    total = np.asarray(rna.sum(axis=1))
    rna = rna.multiply(1e4 / total).tocsr()
    rna.data = np.log1p(rna.data)
    centred = rna.toarray()
    centred -= centred.mean(axis=0)
    u, scale, _ = svds(centred, N_COMPONENTS, random_state=0)
    return u * scale


def bone_marrow(folder: Path) -> tuple[mudata.MuData, np.ndarray]:
    mdata = totalvi.read(folder / "bmmc_134proteins.h5mu")
    mdata.obs = mdata["rna"].obs.copy()
    types = mdata.obs["cell_type"].astype(str)
    common = types.map(types.value_counts()) >= FEWEST_CELLS
    return mdata, np.where(common, types, "")  # rare types are not scored


def blood(folder: Path) -> tuple[mudata.MuData, np.ndarray]:
    both = {
        "PBMC10k": totalvi.read(folder / "pbmc10k.h5mu"),
        "PBMC5k": anndata.read_h5ad(folder / "pbmc5k_rna.h5ad"),
    }
    mdata = totalvi.concat(both)
    batch = mdata.obs["batch"].astype(str).to_numpy()
    labels = np.empty(len(batch), dtype=object)
    for name in both:
        own = principal_components(mdata["rna"].X[batch == name])
        clusters = kmeans2(own, N_CLUSTERS, minit="++", rng=0)[1]
        labels[batch == name] = [f"{name} {cluster}" for cluster in clusters]
    return mdata, labels


CASES = {"bone marrow, 2 donors": bone_marrow, "PBMC10k + PBMC5k": blood}


def scored(mdata: mudata.MuData, labels: np.ndarray, python: Path) -> dict[str, dict[str, float]]:
    model = totalvi.Model(mdata, batch_key="batch")
    model.train(progress=False)
    embeddings = {
        "totalvi": model.get_latent_representation(),
        "principal components": principal_components(mdata["rna"].X),
    }
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.npz"
        batch = mdata.obs["batch"].astype(str).to_numpy()
        np.savez(given, batch=batch.astype(str), label=labels.astype(str), **embeddings)
        scores = subprocess.run(
            [python, HERE / "integration_scores.py", given], check=True, capture_output=True
        )
    result: dict[str, dict[str, float]] = json.loads(scores.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the three files")
    parser.add_argument("--scib-python", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    file = HERE / "results" / "integration.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for case in arguments.cases:
        mdata, labels = CASES[case](arguments.data)
        results[case] = scored(mdata, labels, arguments.scib_python)
        file.write_text(json.dumps(results, indent=1) + "\n")
    table = pd.DataFrame(
        {(case, name): row for case, rows in results.items() for name, row in rows.items()}
    ).T
    lines = [
        "| data | embedding | " + " | ".join(table.columns) + " |",
        "|---|---|" + "---|" * len(table.columns),
    ]
    for (case, name), row in table.iterrows():
        lines.append(f"| {case} | {name} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    (file.with_suffix(".md")).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
