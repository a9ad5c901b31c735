"""Place the cells of a mosaic with scmidas, for `field.py`, which starts this script.

    python field_midas.py mosaic.h5mu latent.npz --seed 0 --epochs 500

Runs in an environment that has scmidas. ``mosaic.h5mu`` has raw counts of the modalities `rna` and
`adt`, each of the cells that have it, with ``obs["batch"]``. `scmidas.integrate` fits the model with
everything but the epochs as it comes. ``latent.npz`` has its joint latent space of what is
biological, the names of the cells, and the processor seconds.
"""

import argparse
import tempfile
import time
import warnings

import mudata
import numpy as np
import scmidas
import torch

warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mosaic")
    parser.add_argument("latent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None, help="default: its own, 65")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = mudata.read_h5mu(given.mosaic)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        scmidas.integrate(
            data,
            max_epochs=given.epochs,
            accelerator="cpu",
            seed=given.seed,
            save_model_path=folder,
        )
    np.savez(
        given.latent,
        latent=data.obsm["X_midas"],
        cells=data.obs_names.to_numpy(str),
        version=scmidas.__version__,
        fit_seconds=time.process_time() - started,
    )


if __name__ == "__main__":
    main()
