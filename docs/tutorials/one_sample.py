# %% [markdown]
# # One sample: from counts to named cells
#
# This tutorial takes the blood of one donor from raw counts to cells with names. The counts are
# simulated, with the markers that real cell types carry, so that every answer can be compared with
# the truth. With your own file, change only the first line of code: `mdata =
# totalvi.read("filtered_feature_bc_matrix.h5")`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc

import totalvi

mdata = totalvi.simulate_blood(2000, n_donors=1, seed=1)
mdata

# %% [markdown]
# ## Check the data
#
# `totalvi.check` says what is in the data and what is wrong with it, before anything is computed.
# Isotype controls are recognised by their names. They are not part of the model; they serve to
# check its background.

# %%
for finding in totalvi.check(mdata):
    print(f"{finding.severity}: {finding.message}")

# %% [markdown]
# Counts of antibodies have two parts: the background, which all cells have, and the foreground of
# cells that carry the protein. How far they lie apart differs from antibody to antibody. The
# antibody against CD197 failed in this experiment: it shows background alone.

# %%
counts = pd.DataFrame(
    mdata["prot"].X, index=mdata["prot"].obs_names, columns=mdata["prot"].var_names
)
figure, axes = plt.subplots(1, 4, figsize=(8, 2))
for ax, protein in zip(axes, ["CD3", "CD4", "CD16", "CD197"]):
    ax.hist(np.log1p(counts[protein]), bins=40, color="#8A8F98")
    ax.set(title=protein, xlabel="log(1 + count)", yticks=[])

# %% [markdown]
# ## Fit the model
#
# The model takes raw counts of both modalities; nothing is normalised first. The number of epochs
# follows from the number of cells. The same seed gives the same numbers.

# %%
epochs = None  # short: 8
model = totalvi.Model(mdata, seed=0)
model.train(max_epochs=epochs, progress=False)

figure, ax = plt.subplots(figsize=(4.5, 2.5))
model.history[["train_loss", "validation_loss"]].plot(ax=ax, lw=1)
ax.set(xlabel="epoch", ylabel="nats per cell", title="Loss")

# %% [markdown]
# The held-out loss, in nats per cell, decides which weights are kept. If it were still falling at
# the end, more epochs would help; if it rose, the fit keeps the weights from before.
#
# ## A map of the cells
#
# The latent space takes the place of a PCA. It comes from RNA and proteins together, so no weights
# between the two have to be chosen. scanpy does the rest.

# %%
rna = mdata["rna"]
rna.obsm["X_totalvi"] = model.get_latent_representation()
sc.pp.neighbors(rna, use_rep="X_totalvi")
sc.tl.umap(rna)
sc.tl.leiden(rna, flavor="igraph", n_iterations=2)

# %% [markdown]
# ## Proteins without background
#
# `get_normalized_expression` returns RNA proportions, and protein counts without their background.
# On the left are raw counts, on the right denoised ones. Double-negative cells move to zero, and
# the populations come apart.

# %%
_, denoised = model.get_normalized_expression(n_samples=25)
foreground = model.get_protein_foreground_probability(n_samples=25)

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharex=True, sharey=True)
for ax, values, title in zip(axes, (counts, denoised), ("Raw counts", "Denoised")):
    ax.scatter(np.log1p(values["CD4"]), np.log1p(values["CD8"]), s=2, alpha=0.5, linewidths=0)
    ax.set(title=title, xlabel="CD4, log(1 + count)", ylabel="CD8, log(1 + count)")

# %% [markdown]
# %% [markdown]
# ## Names
#
# `gate` names cells by a [hierarchy of gates](../gates.md), as one would draw them by hand. The
# gates are applied to what the model says of each cell, so every name has a probability. `else`
# names what stands in for a marker that was not measured; `wanting` would name a marker without
# which a population is not known.

# %%
gating = model.gate(hierarchy="blood")
gating.populations.head(8)

# %%
umap = rna.obsm["X_umap"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True)
truth = mdata.obs["cell_type"]
named = gating.population
for ax, labels, title in zip(axes, (truth, named), ("Truth", "Named by gates")):
    kinds = [kind for kind in truth.cat.categories if (truth == kind).any()]
    ax.scatter(*umap.T, s=3, color="#D5D8DC", linewidths=0)  # cells without a name of this list
    for i, kind in enumerate(kinds):
        color = plt.cm.tab20(i % 20)
        ax.scatter(*umap[labels == kind].T, s=3, color=color, linewidths=0, label=kind)
    ax.set(title=title, xticks=[], yticks=[])
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4, fontsize=7)

# %%
single = truth != "doublet"
agree = truth[single].astype(str) == named[single].astype(str)
print(f"{agree.mean():.1%} of the single cells have the name of their type;")
print(f"{(named[single] == 'undecided').mean():.1%} are undecided.")

# %% [markdown]
# The probability that a count is foreground, averaged over the cells of a population, shows at a
# glance what each population carries. The column of CD197 is empty: no population carries it,
# though naive T cells should. A report of `totalvi run` warns of such antibodies.

# %%
carried = foreground.groupby(named.to_numpy()).mean().reindex(kinds[:-1])
figure, ax = plt.subplots(figsize=(8, 4))
image = ax.imshow(carried, cmap="Blues", vmin=0, vmax=1, aspect="auto")
ax.set_xticks(range(carried.shape[1]), carried.columns, rotation=60, ha="right")
ax.set_yticks(range(carried.shape[0]), carried.index)
ax.set(title="Which population carries which protein")
figure.colorbar(image, ax=ax, label="share with foreground")

# %% [markdown]
# ## Doublets
#
# Doublets carry proteins that exclude each other, such as CD3 and CD19. `find_doublets` gives every
# cell a probability; nothing is removed without you. Two cells of one type look like one large
# cell, so part of the doublets is missed; hardly any single cell is called one.

# %%
doublets = model.find_doublets()
found = doublets.cells["probability"] > 0.5
print(f"estimated rate {doublets.rate:.1%}; simulated {mdata.obs['doublet'].mean():.1%}")
pd.crosstab(mdata.obs["doublet"], found.to_numpy(), colnames=["found"])

# %% [markdown]
# ## Markers
#
# What distinguishes regulatory T cells from all others? Genes and proteins are in one table.
# `lfc_mean` is the log2 fold change, with its 95 % credible interval; `bayes_factor` is the log
# odds that it is larger than `delta`.

# %%
mdata.obs["population"] = named.to_numpy()
de = model.differential_expression(groupby="population", group1="Treg")
de.query("lfc_mean > 0")[
    ["modality", "lfc_mean", "lfc_ci_low", "lfc_ci_high", "bayes_factor"]
].head(8)

# %% [markdown]
# ## In scanpy, muon and others
#
# The results are ordinary entries of AnnData and MuData, so other tools take them as they are:
# `X_totalvi` wherever a tool asks for a representation of the cells, as scanpy's neighbours did
# above, and the denoised values as a layer. Here scanpy averages them over the populations.

# %%
protein = mdata["prot"]
protein.layers["denoised"] = denoised.reindex(columns=protein.var_names).to_numpy()
protein.obs["population"] = pd.Categorical(named).remove_unused_categories()
means = sc.get.aggregate(protein, by="population", func="mean", layer="denoised")
means.to_df(layer="mean")[["CD3", "CD4", "CD8", "CD19", "CD14"]].round(1)

# %% [markdown]
# muon draws the same object: `muon.pl.embedding(mdata, basis="rna:X_umap", color="prot:CD4")`.
# `decoupler` scores pathways and transcription factors on the RNA as it is. Tools that look for
# `X_pca` by name, such as `milopy`, take the latent space under that name:
# `rna.obsm["X_pca"] = rna.obsm["X_totalvi"]`.

# %% [markdown]
# ## Save
#
# The model is a folder without counts; the data are a file of mudata.
#
# ```python
# model.save("blood.totalvi")
# mdata.write("blood.h5mu")
# ```
#
# On the command line, one command does all of this, and writes figures, tables and a report:
#
# ```sh
# totalvi run filtered_feature_bc_matrix.h5 -o results
# totalvi explore results
# ```
