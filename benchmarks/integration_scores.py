"""Score embeddings with scib-metrics; `integration.py` runs this in an environment that has it."""

import json
import sys

import numpy as np
from scib_metrics import (
    ilisi_knn,
    nmi_ari_cluster_labels_kmeans,
    silhouette_batch,
    silhouette_label,
)
from scib_metrics.nearest_neighbors import pynndescent
from scipy.stats import entropy

N_NEIGHBOURS = 30


def mixing(embedding: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    """1 where batches are mixed as if cells were dealt at random; 0 where they are apart."""
    neighbours = pynndescent(embedding, N_NEIGHBOURS + 1, random_state=0)
    codes = np.unique(batch, return_inverse=True)[1]
    share = np.eye(codes.max() + 1)[codes[neighbours.indices[:, 1:]]].mean(axis=1)
    expected = entropy(np.bincount(codes))
    return {
        "iLISI": float(ilisi_knn(neighbours, batch)),
        "entropy of batches": float(entropy(share, axis=1).mean() / expected),
    }


def conservation(embedding: np.ndarray, label: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    """Scores of the labelled cells; where batches have labels of their own, the mean over batches."""
    known = label != ""
    shared = len(set(label[batch == batch[0]]) & set(label[batch != batch[0]])) > 1
    groups = [known] if shared else [known & (batch == name) for name in np.unique(batch)]
    rows = []
    for cells in groups:
        clusters = nmi_ari_cluster_labels_kmeans(embedding[cells], label[cells])
        row = {
            "label silhouette": float(silhouette_label(embedding[cells], label[cells])),
            "ARI": float(clusters["ari"]),
            "NMI": float(clusters["nmi"]),
        }
        if shared:
            row["batch silhouette"] = float(
                silhouette_batch(embedding[cells], label[cells], batch[cells])
            )
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    given = np.load(sys.argv[1])
    batch, label = given["batch"], given["label"]
    embeddings = {name: given[name] for name in given.files if name not in ("batch", "label")}
    scores = {
        name: mixing(np.float32(values), batch) | conservation(np.float32(values), label, batch)
        for name, values in embeddings.items()
    }
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
