# %% [markdown]
# # Two panels, joined and imputed
#
# Two laboratories stained blood with panels that overlap. This tutorial joins both data sets into
# one model, predicts for each cell the proteins that its panel lacks, and says which of these
# predictions to trust. The counts that are taken away here are kept aside, so that the predictions
# can be compared with them.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from mudata import MuData

import totalvi

n_cells = 4000  # short: 1200
blood = totalvi.simulate_blood(n_cells, share_of_doublets=0.0, seed=4)
donors = blood.obs["donor"]


def laboratory(donor, without, names):
    """Return the cells of a donor, stained without some antibodies, under names of the laboratory."""
    cells = blood[(donors == donor).to_numpy()].copy()
    prot = cells["prot"][:, ~cells["prot"].var_names.isin(without)].copy()
    prot.var_names = [names.get(name, name) for name in prot.var_names]
    part = MuData({"rna": cells["rna"].copy(), "prot": prot})
    part.obs["cell_type"] = cells.obs["cell_type"]
    return part


london = laboratory(
    "donor_A", ["CD25", "IgD", "CD127"], {"CD8": "CD8a", "HLA-DR": "anti-human HLA-DR"}
)
kyoto = laboratory("donor_B", ["CD16", "CD11c", "CD27"], {"CD197": "CD197_TotalSeqB"})
print(sorted(london["prot"].var_names))
print(sorted(kyoto["prot"].var_names))

# %% [markdown]
# ## Join
#
# `concat` matches antibodies by what their names mean: `CD8a` and `CD8` are one antigen. The table
# says which names were matched, so that a wrong match can be seen. An antibody that a panel lacks
# is NaN there: not measured, which is not zero.

# %%
both = totalvi.concat({"London": london, "Kyoto": kyoto})
names = both.uns["concat"]["antibodies"]
names[names["original"].isin(["CD8", "CD8a", "HLA-DR", "anti-human HLA-DR", "CD197_TotalSeqB"])]

# %% [markdown]
# ## Fit
#
# Where panels differ, the fit hides proteins from the encoder at random, so that it learns to do
# without them.

# %%
epochs = None  # short: 8
model = totalvi.Model(both, batch_key="batch", seed=0)
model.train(max_epochs=epochs, progress=False)

latent = sc.AnnData(model.get_latent_representation(), obs=both.obs)
sc.pp.neighbors(latent, use_rep="X")
sc.tl.umap(latent)

# %% [markdown]
# The laboratories mix within cell types, although six of the antibodies were used in one of them
# only.

# %%
umap = latent.obsm["X_umap"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for ax, key in zip(axes, ("batch", "cell_type")):
    kinds = both.obs[key].astype("category").cat.remove_unused_categories().cat.categories
    for i, kind in enumerate(kinds):
        cells = (both.obs[key] == kind).to_numpy()
        color = plt.cm.tab20(i % 20) if key == "cell_type" else None
        ax.scatter(*umap[cells].T, s=3, linewidths=0, color=color, label=kind, alpha=0.7)
    ax.set(title=key, xticks=[], yticks=[])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4, fontsize=7)

# %% [markdown]
# ## Impute
#
# `impute_proteins` predicts what a count would have been, with an interval. The model, ridge
# regression and neighbours in RNA are combined; held-out cells decide with which weights.

# %%
imputed = model.impute_proteins()
truth = pd.DataFrame(blood["prot"].X, blood["prot"].obs_names, blood["prot"].var_names)
cell = both.obs_names.str.replace(r"-(London|Kyoto)$", "", regex=True)

hidden = {"CD25": "London", "IgD": "London", "CD127": "London"}
hidden |= {"CD16": "Kyoto", "CD11c": "Kyoto", "CD27": "Kyoto"}
figure, axes = plt.subplots(2, 3, figsize=(8, 5))
rows = []
for ax, (protein, lacking) in zip(axes.flat, hidden.items()):
    where = (both.obs["batch"] == lacking).to_numpy()
    known = truth.loc[cell[where], protein].to_numpy()
    predicted = imputed.log1p[protein].to_numpy()[where]
    r = np.corrcoef(np.log1p(known), predicted)[0, 1]
    low, high = (limit[protein].to_numpy()[where] for limit in (imputed.lower, imputed.upper))
    rows.append((protein, lacking, r, ((low <= known) & (known <= high)).mean()))
    ax.scatter(predicted, np.log1p(known), s=2, alpha=0.4, linewidths=0)
    ax.axline((0, 0), slope=1, color="#8A8F98", lw=0.8)
    ax.set(
        title=f"{protein}, not in {lacking}",
        xlabel="predicted log(1 + count)",
        ylabel="true log(1 + count)",
    )

# %% [markdown]
# ## Which to trust
#
# In an experiment the truth is not known. `get_imputation_reliability` measures the same on cells
# that have the protein: it is hidden from them, predicted, and compared. `reliable` asks for a high
# correlation over all cells, and for some within cell types.

# %%
measured = pd.DataFrame(
    rows, columns=["protein", "panel", "true correlation", "share in 90 % interval"]
)
measured = measured.set_index(["panel", "protein"])
reliability = model.get_imputation_reliability()
measured.join(
    reliability[["pearson", "within_pearson", "reliable"]].rename_axis(["panel", "protein"])
)

# %% [markdown]
# ## Name all cells alike
#
# `gate` uses imputed values where a marker was not measured. So the cells of both laboratories get
# names by one hierarchy.

# %%
named = model.gate(hierarchy="blood").population
for laboratory_name in ("London", "Kyoto"):
    cells = (both.obs["batch"] == laboratory_name).to_numpy()
    agree = (
        named[cells].astype(str).to_numpy() == both.obs["cell_type"][cells].astype(str).to_numpy()
    )
    print(f"{laboratory_name}: {agree.mean():.1%} of the cells have the name of their type")

# %% [markdown]
# On the command line, with one file of RNA alone instead of a second panel:
#
# ```sh
# totalvi impute cite.h5mu rna.h5ad -o imputed
# ```
