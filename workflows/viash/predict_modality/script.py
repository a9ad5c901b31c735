"""Predict proteins from RNA, or RNA from proteins, with totalVI fitted to training and test cells."""

import anndata as ad
import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse

import totalvi

## VIASH START
par = {
    "input_train_mod1": "train_mod1.h5ad",
    "input_train_mod2": "train_mod2.h5ad",
    "input_test_mod1": "test_mod1.h5ad",
    "output": "prediction.h5ad",
    "n_genes": 4000,
    "max_epochs": None,
}
meta = {"name": "totalvi"}
## VIASH END

MODALITIES = {"GEX": "rna", "ADT": "prot"}
N_GENES, SHARE_HIDDEN, MOST_HIDDEN = 4000, 0.1, 2000


def counts_of(given: ad.AnnData, prefix: str) -> ad.AnnData:
    """Return the counts, with cell names that are unique among those of training and test."""
    obs = given.obs[["batch"]].astype(str).set_axis([f"{prefix}_{i}" for i in range(given.n_obs)])
    counts = sparse.csr_matrix(given.layers["counts"], dtype=np.float32)
    return ad.AnnData(counts, obs=obs, var=given.var[[]])


def most_variable(given: ad.AnnData, n_genes: int) -> pd.Index:
    """Return the names of the genes with the highest scores, in the order of the data."""
    best = given.var["hvg_score"].rank(ascending=False, method="first") <= n_genes
    return given.var_names[best.to_numpy()]


def logs_per_10k(counts: np.ndarray) -> np.ndarray:
    """Return log(1 + count) of counts scaled to 10,000 a cell."""
    return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12))


def lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope, at least 0, and intercept of the least squares line of each column of y on x."""
    centred = x - x.mean(axis=0)
    variance = (centred**2).sum(axis=0)
    covariance = (centred * (y - y.mean(axis=0))).sum(axis=0)
    slope = np.maximum(covariance / np.where(variance > 1e-9, variance, np.inf), 0)
    return slope, y.mean(axis=0) - slope * x.mean(axis=0)


train_mod1, train_mod2, test_mod1 = (
    ad.read_h5ad(par[f"input_{name}"]) for name in ("train_mod1", "train_mod2", "test_mod1")
)
known, wanted = test_mod1.uns["modality"], train_mod2.uns["modality"]
if {known, wanted} != set(MODALITIES):
    raise SystemExit(f"totalVI predicts GEX from ADT and ADT from GEX, not {wanted} from {known}.")
if known == "GEX":
    genes = most_variable(train_mod1, par["n_genes"] or N_GENES)
    train_mod1, test_mod1 = train_mod1[:, genes].copy(), test_mod1[:, genes].copy()

first, second = counts_of(train_mod1, "train"), counts_of(train_mod2, "train")
test = counts_of(test_mod1, "test")
rna = first if known == "GEX" else second
with_rna = np.flatnonzero(np.asarray(rna.X.sum(axis=1)).ravel() > 0)
order = np.random.default_rng(0).permutation(with_rna)
hidden, paired = np.split(order, [min(int(SHARE_HIDDEN * len(order)), MOST_HIDDEN)])

# Cells of training that are hidden come to the model as those of test do: without the second modality.
alone = ad.concat([first[np.sort(hidden)], test])
both = np.sort(paired)
parts = {
    MODALITIES[known]: ad.concat([first[both], alone]),
    MODALITIES[wanted]: second[both].copy(),
}
data = totalvi.mosaic(MuData(parts))
batches = parts[MODALITIES[known]].obs["batch"]
data.obs["batch"] = batches.reindex(data.obs_names).to_numpy()
data.obs["panel"] = np.where(data.obs_names.isin(alone.obs_names), "one", "both")

model = totalvi.Model(data, batch_key="batch", panel_key="panel", isotype_controls=())
model.train(max_epochs=par["max_epochs"])
impute = model.impute_proteins if wanted == "ADT" else model.impute_rna
asked = data.obs_names.get_indexer(alone.obs_names)
imputed = impute(indices=asked, stacked=True, calibrated=False).log1p
counts = np.expm1(np.maximum(imputed[list(train_mod2.var_names)].to_numpy(), 0))
of_hidden, of_test = np.split(logs_per_10k(counts), [len(hidden)])

# How far the normalised values follow the prediction is known of the hidden cells.
true = sparse.csr_matrix(train_mod2.layers["normalized"])[np.sort(hidden)].toarray()
slope, intercept = lines(of_hidden, true)
prediction = ad.AnnData(
    layers={"normalized": sparse.csc_matrix(of_test * slope + intercept)},
    obs=test_mod1.obs[[]],
    var=train_mod2.var[[]],
    uns={"dataset_id": train_mod2.uns["dataset_id"], "method_id": meta["name"]},
)
prediction.write_h5ad(par["output"], compression="gzip")
