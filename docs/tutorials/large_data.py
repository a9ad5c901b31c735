# %% [markdown]
# # Past memory, and on several GPUs
#
# Counts can stay on disk, and several processes can share a fit. This tutorial does both on a small
# scale: the same lines work for millions of cells. [Large data](../scaling.md) describes what
# happens inside, and how much memory and time it takes.

# %%
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import anndata
import matplotlib.pyplot as plt
import numpy as np

import totalvi

folder = Path(mkdtemp())
n_cells = 20_000  # short: 2000
blood = totalvi.simulate_blood(n_cells, n_donors=4, share_of_doublets=0.0, seed=6)
blood.write(folder / "cells.h5mu")


def run(command):
    """Run a command of totalvi and print what it says."""
    print(f"$ totalvi {command}")
    done = subprocess.run(
        [sys.executable, "-m", "totalvi", *command.split()],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    print(done.stdout)


# %% [markdown]
# ## Convert once
#
# `convert` reads some cells at a time and writes a store of compressed chunks, in which blocks of
# cells are read quickly. Files `.h5ad` and `.h5mu` can be trained from as they are, only more
# slowly.

# %%
run("convert cells.h5mu cells.zarr")
store = folder / "cells.zarr"
for path in (folder / "cells.h5mu", store):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print(f"{path.name}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")

# %% [markdown]
# ## Fit from disk
#
# Give the path in place of the data. The counts are never in memory as a whole; the annotation of
# cells is. With `checkpoint`, a fit that is interrupted goes on where it stopped, to the same
# result.

# %%
epochs = 20  # short: 2
model = totalvi.Model(store, batch_key="donor", seed=0)
model.train(max_epochs=epochs, checkpoint=folder / "fit.checkpoint", resume=True, progress=False)
model.save(folder / "atlas.totalvi")
model.history.tail(1).T

# %% [markdown]
# ## Results that stay on disk, too
#
# With `out=`, a query writes a zarr store instead of returning arrays. anndata opens it, and reads
# what is asked for.

# %%
latent = model.get_latent_representation(out=folder / "latent.zarr")
proteins = model.get_normalized_expression(
    gene_list=[], protein_list=["CD4", "CD8"], n_samples=5, out=folder / "proteins.zarr"
)
denoised = anndata.read_zarr(proteins / "protein")
figure, ax = plt.subplots(figsize=(4, 3.2))
x, y = np.log1p(np.asarray(denoised.X)).T
image = ax.hexbin(x, y, gridsize=45, bins="log", cmap="magma_r", linewidths=0)
ax.set(title=f"{denoised.n_obs:,} cells", xlabel="CD4, denoised, log(1 + count)", ylabel="CD8")
figure.colorbar(image, ax=ax, label="cells")

# %% [markdown]
# ## Several processes
#
# `--devices` starts one process for each GPU of the machine, or, without GPUs, on its processors. A
# minibatch is divided between them; the gradients are summed, so the fit is that of one process
# with the same minibatch.

# %%
epochs = 3  # short: 1
run(f"train cells.zarr -o both.totalvi --batch donor --on-disk --devices 2 --epochs {epochs}")
run("info both.totalvi")

# %% [markdown]
# ## On GPUs and on a cluster
#
# A GPU is used if PyTorch sees one; nothing else changes. With several, give larger minibatches:
#
# ```sh
# totalvi train cells.zarr -o atlas.totalvi --on-disk --batch donor --devices 8 --batch-size 2048
# ```
#
# In a script, or on several machines:
#
# ```python
# model = totalvi.Model("cells.zarr", batch_key="donor")
# model.train(devices=8, batch_size=2048, checkpoint="fit.checkpoint", resume=True)
# ```
#
# ```sh
# torchrun --nnodes 2 --nproc-per-node 8 fit.py
# ```
#
# [Several processes](../scaling.md#several-processes) has the script for SLURM, which resumes by
# itself when the time of a job is over. [The benchmark of large
# data](../../benchmarks/results/scale.md) has the time, the peak memory and the held-out loss of a
# fit of a million cells.
