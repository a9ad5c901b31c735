"""Train TOTALANVI of scvi-tools on partly known labels, for `labels.py`, which starts this script.

    python labels_peer.py cells.h5ad labels.csv output.npz --seed 0 [--epochs 400]

Runs in an environment that has scvi-tools. ``cells.h5ad`` has the RNA counts, ``obs["batch"]`` and
``obsm["protein_expression"]``; each column of ``labels.csv`` is a set of labels, of which "Unknown" is
none. TOTALVI is trained once with its defaults, and TOTALANVI from it for each set of labels, with its
defaults too. ``output.npz`` has for each column the names of the labels and the probability of each.
"""

import argparse
import time
import warnings

import anndata
import numpy as np
import pandas as pd
import scvi

warnings.simplefilter("ignore")
UNKNOWN = "Unknown"


def main() -> None:
    """Train, predict, and write the probabilities of the labels."""
    parser = argparse.ArgumentParser()
    for name in ("cells", "labels", "output"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None)
    given = parser.parse_args()
    scvi.settings.seed = given.seed
    adata = anndata.read_h5ad(given.cells)
    adata.obsm["protein_expression"] = pd.DataFrame(adata.obsm["protein_expression"]).set_axis(
        adata.obs_names, axis=0
    )
    where = {"protein_expression_obsm_key": "protein_expression", "batch_key": "batch"}
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    labels = pd.read_csv(given.labels, index_col=0, dtype=str, keep_default_na=False)
    start = time.time()
    scvi.model.TOTALVI.setup_anndata(adata, **where)
    base = scvi.model.TOTALVI(adata)
    base.train(max_epochs=given.epochs, **quiet)
    found = {"seconds_base": time.time() - start}
    print(
        f"TOTALVI: {len(base.history['elbo_train'])} epochs, {time.time() - start:.0f} s",
        flush=True,
    )
    for column in labels:
        start = time.time()
        scvi.settings.seed = given.seed
        adata.obs["label"] = pd.Categorical(labels[column].to_numpy())
        model = scvi.external.TOTALANVI.from_totalvi_model(
            base, unlabeled_category=UNKNOWN, labels_key="label", adata=adata
        )
        model.train(**quiet)
        predicted = model.predict(soft=True)
        table = predicted[0] if isinstance(predicted, tuple) else predicted
        found[f"{column}/names"] = np.array([str(name) for name in table.columns])
        found[f"{column}/probabilities"] = table.to_numpy()
        found[f"{column}/seconds"] = time.time() - start
        epochs = len(model.history["elbo_train"])
        print(f"TOTALANVI, {column}: {epochs} epochs, {time.time() - start:.0f} s", flush=True)
        np.savez(given.output, **found)


if __name__ == "__main__":
    main()
