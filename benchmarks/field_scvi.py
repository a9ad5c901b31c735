"""Predict hidden proteins with TOTALVI of scvi-tools, for `field.py`, which starts this script.

    python field_scvi.py cells.h5ad predicted.npz --seed 0 [--epochs 400]

Runs in an environment that has scvi-tools. ``cells.h5ad`` has the RNA counts, the proteins in
``obsm["protein_expression"]``, and ``obs["panel"]``: proteins of cells in the panel "hidden" are all
zero, which TOTALVI takes for unmeasured. It is trained with its defaults, and the proteins of hidden
cells are decoded as if measured, with their background, as the mean of 25 samples. ``predicted.npz``
has these means, the epochs, and the processor seconds of the fit and of the prediction.
"""

import argparse
import time
import warnings

import anndata
import numpy as np
import pandas as pd
import scvi
import torch

warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cells")
    parser.add_argument("predicted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None, help="at most; default: its own")
    given = parser.parse_args()
    scvi.settings.seed = given.seed
    torch.set_num_threads(1)
    adata = anndata.read_h5ad(given.cells)
    proteins = adata.obsm["protein_expression"]
    adata.obsm["protein_expression"] = pd.DataFrame(proteins).set_axis(adata.obs_names, axis=0)
    started = time.process_time()
    scvi.model.TOTALVI.setup_anndata(
        adata, protein_expression_obsm_key="protein_expression", batch_key="panel"
    )
    model = scvi.model.TOTALVI(adata)
    model.train(max_epochs=given.epochs, accelerator="cpu", enable_progress_bar=False)
    fitted = time.process_time()
    _, mean = model.get_normalized_expression(
        indices=np.flatnonzero(adata.obs["panel"] == "hidden"),
        transform_batch="measured",
        include_protein_background=True,
        n_samples=25,
        return_numpy=True,
    )
    np.savez(
        given.predicted,
        mean=mean,
        epochs=len(model.history["elbo_train"]),
        version=scvi.__version__,
        fit_seconds=fitted - started,
        answer_seconds=time.process_time() - fitted,
    )


if __name__ == "__main__":
    main()
