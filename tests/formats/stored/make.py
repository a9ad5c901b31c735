"""Write a small model in the format of the installed totalvi, to be read by all later ones.

Run once for a new format version, before it is released; never again for an old one:
``python tests/persistence/stored/make.py 2``.
"""

import json
import sys
from pathlib import Path

import totalvi

FOLDER = Path(__file__).parent


def main(version: str) -> None:
    data = totalvi.simulate(n_cells=40, n_genes=12, n_proteins=3, n_batches=2, store_truth=False)
    model = totalvi.Model(data, batch_key="batch", n_hidden=8, n_latent=2, seed=1)
    model.train(max_epochs=3, accelerator="cpu", precision="32-true")
    model.save(FOLDER / f"version_{version}.totalvi")
    cells = data[:8]
    answer = {
        "rna": cells["rna"].X.toarray().tolist(),
        "protein": cells["prot"].X.tolist(),
        "batch": cells.obs["batch"].astype(str).tolist(),
        "cells": cells.obs_names.tolist(),
        "latent": model.get_latent_representation(cells).tolist(),
        "history": model.history["validation_loss"].tolist(),
    }
    (FOLDER / f"version_{version}.json").write_text(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
