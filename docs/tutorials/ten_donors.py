# %% [markdown]
# # Ten donors, two conditions
#
# Five healthy donors and five patients were stained with one panel and pooled in one run, told
# apart by hashtags. Which cell types are more or less frequent in patients, and which genes and
# proteins change within a cell type? The donor, not the cell, is what the experiment repeats. So
# p-values must be about donors.

# %%
import matplotlib.pyplot as plt
import numpy as np

import totalvi

n_cells = 4000  # short: 1000
mdata = totalvi.simulate_blood(n_cells, n_donors=10, n_patients=5, share_of_doublets=0.0, seed=7)
mdata.obs.groupby("donor", observed=True)["condition"].agg(["first", "size"])

# %% [markdown]
# ## Fit and name
#
# All donors were in one run, so there is no batch to correct. (If each donor had a lane of its own,
# `batch_key="lane"` would take out the differences between lanes. Do not take out the donors
# themselves: the differences between conditions would go with them.)

# %%
epochs = None  # short: 6
model = totalvi.Model(mdata, seed=0)
model.train(max_epochs=epochs, progress=False)
mdata.obs["population"] = model.gate(hierarchy="blood").population.to_numpy()
mdata.obs["population"].value_counts().head(6)

# %% [markdown]
# ## Which cell types change in frequency?
#
# Each donor has one share of each population. The shares are compared on the scale of log odds by
# moderated t tests, which count donors. `share1` is that of the patients.

# %%
shares = model.differential_abundance(
    sample_key="donor", condition_key="condition", groupby="population", group2="healthy"
)
columns = ["share1", "share2", "log2_ratio", "ci_low", "ci_high", "p_adjusted"]
shares[columns].sort_values("p_adjusted").head(6)

# %% [markdown]
# In the simulation, patients have 1.8 times as many CD14 monocytes, half of the CD16 monocytes, 0.4
# times the pDC and 1.6 times the CD8 effector cells. Where shares rise, all others must fall a
# little. A plot with a dot for each donor shows the same.

# %%
cells = mdata.obs.query("population != 'undecided'")
per_donor = cells.groupby(["condition", "donor"], observed=True)["population"]
per_donor = per_donor.value_counts(normalize=True).rename("share").reset_index()
shown = shares.dropna(subset="p_value").sort_values("log2_ratio").index
shown = [name for name in shown if name != "undecided"]
figure, ax = plt.subplots(figsize=(8, 3))
for offset, condition, color in ((-0.15, "healthy", "#8A8F98"), (0.15, "patient", "#C43C00")):
    part = per_donor[(per_donor["condition"] == condition) & per_donor["population"].isin(shown)]
    x = np.array([shown.index(name) for name in part["population"]]) + offset
    ax.scatter(x, 100 * part["share"], s=12, color=color, label=condition)
ax.set_yscale("log")
ax.set_xticks(range(len(shown)), shown, rotation=45, ha="right")
ax.set(ylabel="% of a donor's cells", title="Populations by donor")
ax.legend()

# %% [markdown]
# ## Which genes and proteins change within a cell type?
#
# With `sample_key`, each donor has one level of each gene and protein in each population. Patients
# are compared with the healthy within the populations of `groupby`; a false discovery rate of 5 %
# holds over all rows.

# %%
changes = model.differential_expression(
    groupby="population",
    sample_key="donor",
    condition_key="condition",
    group1="patient",
    group2="healthy",
)
called = changes[changes["is_de_fdr_0.05"].astype(bool)]
called[["within", "modality", "lfc_mean", "lfc_ci_low", "lfc_ci_high", "p_adjusted"]].head(12)

# %% [markdown]
# The simulation lowers HLA-DR and its genes in CD14 monocytes of patients, raises `S100A8` and
# `S100A9` there, raises `IRF7` in CD14 monocytes and CD4 memory cells, and lowers CD127 and its
# gene `IL7R` in CD4 memory cells.

# %%
within = changes[changes["within"] == "CD14 monocyte"].dropna(subset="p_value")
significant = within["is_de_fdr_0.05"].astype(bool)
changed = within[significant].sort_values("lfc_mean")
y = np.arange(len(changed))
figure, ax = plt.subplots(figsize=(5, 0.6 + 0.28 * len(changed)))
ax.hlines(y, changed["lfc_ci_low"], changed["lfc_ci_high"], color="#0072B2", lw=1.5)
ax.plot(changed["lfc_mean"], y, "o", color="#0072B2", ms=4)
ax.axvline(0, color="#8A8F98", lw=0.8)
ax.set_yticks(y, [f"{name} ({kind})" for name, kind in changed["modality"].items()])
ax.set(xlabel="patients against healthy, log2, 95 % interval over donors", title="CD14 monocytes")

# %% [markdown]
# ## How many donors would a study need?
#
# The table also says how much donors of a group differ, so it serves as a pilot. `expected_power`
# says how likely a change of each feature would be found with other numbers of donors. Its median
# over the features that are expressed in CD14 monocytes:

# %%
figure, ax = plt.subplots(figsize=(4.5, 2.7))
for fold_change in (1.25, 1.5, 2.0):
    power = totalvi.expected_power(within, fold_change=fold_change, n_samples=(3, 4, 5, 6, 8, 10))
    median = power.filter(like="power_").median()
    ax.plot(
        [int(name[6:]) for name in median.index], median, marker=".", label=f"{fold_change}-fold"
    )
ax.legend(title="change", fontsize=8)
ax.set(xlabel="donors a group", ylabel="power", ylim=(0, 1.02), title="Expected power")

# %% [markdown]
# ## Why not over cells?
#
# A comparison over cells asks another question: whether *these* cells differ, of *these* donors. It
# takes hundreds of cells of one donor for independent evidence, and so calls the differences
# between single donors too. Use it for markers of populations, not for conditions.
#
# On the command line, the same comparison, with its section in the report:
#
# ```sh
# totalvi run cells.h5mu -o results --sample donor --condition condition
# totalvi compare results --sample donor --condition condition    # of a run that is there already
# ```
