# %% [markdown]
# # New cells on a reference
#
# A fitted model of labelled cells is a reference. This tutorial maps new cells on it without
# fitting again, gives them labels with probabilities, finds a cell type that the reference lacks,
# and predicts proteins that the new panel lacks.

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from mudata import MuData

import totalvi

n_cells = 4500  # short: 1500
blood = totalvi.simulate_blood(n_cells, n_donors=3, share_of_doublets=0.0, seed=5)
types = blood.obs["cell_type"]
is_new = (blood.obs["donor"] == "donor_C").to_numpy()

# %% [markdown]
# The reference has two donors. Its cell sort lost the B cells. The new donor has them, and was
# stained with a panel of thirteen antibodies.

# %%
is_b = types.isin(["B naive", "B memory"]).to_numpy()
reference = blood[~is_new & ~is_b].copy()
panel = ["CD3", "CD4", "CD8", "CD14", "CD16", "CD19", "CD20", "CD56", "CD45RA", "CD45RO"]
panel += ["CD127", "HLA-DR", "CD11c"]
cells = blood[is_new].copy()
new = MuData({"rna": cells["rna"].copy(), "prot": cells["prot"][:, panel].copy()})
new.obs["cell_type"] = cells.obs["cell_type"]
print(f"reference: {reference.n_obs:,} cells, {reference['prot'].n_vars} antibodies")
print(f"new: {new.n_obs:,} cells, {new['prot'].n_vars} antibodies")

# %% [markdown]
# ## The reference
#
# A map of the reference is stored with it, so that new cells can be placed on it later.

# %%
epochs = None  # short: 6
reference.obs["donor"] = reference.obs["donor"].cat.remove_unused_categories()
model = totalvi.Model(reference, batch_key="donor", seed=0)
model.train(max_epochs=epochs, progress=False)

latent = sc.AnnData(model.get_latent_representation())
sc.pp.neighbors(latent, use_rep="X")
sc.tl.umap(latent)
reference.obsm["X_umap"] = latent.obsm["X_umap"]

folder = Path(mkdtemp())
model.save(folder / "model.totalvi")
model = totalvi.Model.load(folder / "model.totalvi", reference)  # with the map

# %% [markdown]
# ## Map
#
# `map_query` returns a model of the new cells. Genes and antibodies are matched by name; proteins
# that the new panel lacks are unmeasured. Nothing of the reference changes.

# %%
query = model.map_query(new)
transfer = model.transfer_labels(query, "cell_type")
unlike = model.get_unlikeness(query)
places = model.get_map_coordinates(query)
print(f"accuracy on held-out cells of the reference: {transfer.held_out_accuracy:.1%}")

# %% [markdown]
# Labels cover only what the reference has. So each cell also gets a p-value of being like the
# reference: `p_value_after_shift` is small for states that the reference lacks, after the shift that
# all cells of the new experiment share. Of cells that are like it, one in twenty falls below 0.05.
# B cells fall below far more often, though the reference never saw one. So do, less often, cells of
# types of which the reference has few, such as cDC and pDC.

# %%
strange = (unlike["p_value_after_shift"] < 0.05).to_numpy()
truth = new.obs["cell_type"]
share = pd.Series(strange).groupby(truth.to_numpy()).mean().sort_values()
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(1.2, 1))
axes[0].scatter(*reference.obsm["X_umap"].T, s=2, color="#D5D8DC", linewidths=0, label="reference")
for part, color, label in (
    (~strange, "#0072B2", "new"),
    (strange, "#C43C00", "unlike the reference"),
):
    axes[0].scatter(
        places["umap_1"][part], places["umap_2"][part], s=3, color=color, linewidths=0, label=label
    )
axes[0].set(title="New cells on the map of the reference", xticks=[], yticks=[])
axes[0].legend(markerscale=4, fontsize=7)
axes[1].barh(share.index, share, color="#C43C00")
axes[1].axvline(0.05, color="#8A8F98", lw=0.8)
axes[1].set(title="Called unlike, by true type", xlabel="share of cells", xlim=(0, 1))

# %% [markdown]
# ## Labels
#
# Of the cells that are like the reference, nearly all get their own label. Probabilities are
# calibrated on held-out cells of the reference, encoded with the panel of the query.

# %%
like = ~strange & ~truth.isin(["B naive", "B memory"]).to_numpy()
right = transfer.labels.astype(str).to_numpy() == truth.astype(str).to_numpy()
sure = transfer.probabilities.max(axis=1).to_numpy()
print(f"{right[like].mean():.1%} of {like.sum():,} cells have their own label,")
print(f"which has a mean probability of {sure[like].mean():.1%}")
table = pd.crosstab(truth[like].astype(str), transfer.labels[like].astype(str), normalize="index")
figure, ax = plt.subplots(figsize=(5.2, 4))
image = ax.imshow(table, cmap="Blues", vmin=0, vmax=1)
ax.set_xticks(range(table.shape[1]), table.columns, rotation=90, fontsize=8)
ax.set_yticks(range(table.shape[0]), table.index, fontsize=8)
ax.set(title="Labels of new cells", xlabel="label", ylabel="true type")
figure.colorbar(image, ax=ax, shrink=0.6, label="share of the type")

# %% [markdown]
# ## Proteins that the new panel lacks
#
# The model, regression and neighbours of the reference predict them together, at the level at which
# the query counts the proteins that it has.
# `get_query_reliability` measures on cells of the reference how well that works with the query's
# panel. It holds for cells that are like the reference: CD123 is predicted for B cells (orange),
# which lie near the pDC for want of a closer type.

# %%
imputed = model.impute_query(query, protein_list=["CD27", "CD25", "CD1c", "CD123"])
hidden = pd.DataFrame(cells["prot"].X, columns=cells["prot"].var_names)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for ax, protein in zip(axes, imputed.log1p.columns):
    x, y = imputed.log1p[protein].to_numpy(), np.log1p(hidden[protein])
    for part, color in ((~strange, "#0072B2"), (strange, "#E69F00")):
        ax.scatter(x[part], y[part], s=3, alpha=0.5, linewidths=0, color=color)
    ax.axline((0, 0), slope=1, color="#8A8F98", lw=0.8)
    ax.set(
        title=protein,
        xlabel="predicted log(1 + count)",
        ylabel="true log(1 + count)" if protein == "CD27" else None,
    )
model.get_query_reliability(query)[["pearson", "within_pearson", "reliable"]]

# %% [markdown]
# ## Share the reference
#
# One file holds all that others need to map their cells: weights, posteriors and labels, and the
# counts of a few cells that calibrate. Its card says how accurate it is.

# %%
file = model.save(folder / "blood.totalvi", minified=True)
print(f"{file.stat().st_size / 1e6:.1f} MB for {reference.n_obs:,} cells")
small = totalvi.Model.load(file)
again = small.transfer_labels(small.map_query(new), "cell_type")
print("same labels:", again.labels.equals(transfer.labels))

# %% [markdown]
# On the command line:
#
# ```sh
# totalvi convert results blood.totalvi --to minified    # results: folder of totalvi run
# totalvi map blood.totalvi new_cells.h5 -o mapped
# ```
