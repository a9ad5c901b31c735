"""Measure a mosaic: labels carried between cells of one modality, and RNA imputed from proteins.

    python benchmarks/mosaic.py --data /path/to/data --seeds 0 1 2

WNN PBMC (Hao et al., Cell 2021), 400 cells a donor: p1 has RNA alone, p2 proteins alone, p3 both. The
labels of p1 and p2 are those of the 15 nearest cells of p3 in the latent space of one fit to all
three, which sees no labels. Beside it: the nearest cells of p3 in the own modality (50 components of
log counts, centred by donor).

RNA: half of p3, and a third of the cells of a bone marrow (BMMC, 600 cells), are given as proteins
alone. Their RNA is compared with `impute_rna`, cell by cell: the correlation over genes of
log(1 + count), scaled to the usual library size. Beside it: what the model predicts alone, and ridge
regression and neighbours in the proteins. The share of these counts, rounded, in intervals of 90 % is
that of genes with a mean of 1 or more: elsewhere most counts are 0, which any interval holds.

Results go to benchmarks/results/mosaic.md, after each fit.
"""

import argparse
import warnings
from pathlib import Path

import mudata
import numpy as np
from mudata import MuData
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import totalvi
from totalvi.posterior.rna_imputation import ImputedRna
from totalvi.posterior.simple_predictors import ProteinPredictors, log_normalised

HERE = Path(__file__).parent
RNA_COLUMNS = [
    "data", "seed", "stacked", "model alone", "ridge", "neighbours", "90 % intervals hold",
    "not calibrated", "genes",
]  # fmt: skip
DONORS = {"p1_0": "p1 (RNA)", "p2_0": "p2 (proteins)"}


def labelled_atlas(folder: Path) -> MuData:
    """Return the donors p1 to p3, whose cells have labels."""
    wnn = mudata.read_h5mu(folder / "wnn_pbmc_mosaic_224proteins.h5mu")
    return wnn[(wnn.obs["batch"] != "p4_0").to_numpy()].copy()


def joined_mosaic(atlas: MuData) -> MuData:
    """Return the atlas as totalvi takes it, which marks what each cell has."""
    parts = MuData({"rna": atlas["rna"].copy(), "prot": atlas["adt"].copy()})
    parts.obs["batch"], parts.obs["celltype"] = atlas.obs["batch"], atlas.obs["celltype"]
    return totalvi.mosaic(parts)


def fitted(data: MuData, seed: int, epochs: int, **options: object) -> totalvi.Model:
    model = totalvi.Model(data, batch_key="batch", seed=seed, **options)
    model.train(max_epochs=epochs, progress=False)
    return model


def as_mosaic(data: MuData, without_rna: np.ndarray) -> MuData:
    """Return a copy in which some cells have proteins alone, as a batch of their own."""
    rna = sparse.csr_matrix(data["rna"].X).astype(np.float32)
    kinds = np.where(without_rna, "prot", "both")
    if "measured_modalities" in data.obs:
        kinds = np.where(without_rna, "prot", data.obs["measured_modalities"].astype(str))
    hidden = data.copy()
    hidden.mod["rna"].X = sparse.csr_matrix(rna.multiply((~without_rna)[:, None]))
    hidden.obs["batch"] = data.obs["batch"].astype(str) + np.where(without_rna, " proteins", "")
    hidden.obs["measured_modalities"] = kinds
    return hidden


def scores_of_own_modality(
    data: MuData, donor: str, modality: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return components of the cells of a donor and of p3 in one modality, their batch and label."""
    batch, labels = data.obs["batch"].astype(str), data.obs["celltype"].astype(str)
    adata = data[modality]
    values = np.asarray(adata.X.toarray() if sparse.issparse(adata.X) else adata.X, float)
    both = batch.isin([donor, "p3_0"]).to_numpy()
    values, batch, labels = values[both], batch[both].to_numpy(), labels[both].to_numpy()
    if modality == "rna":
        values = log_normalised(sparse.csr_matrix(values), 1000.0).toarray()
    else:
        logs = np.log1p(values)
        values = logs - logs.mean(axis=1, keepdims=True)
    for code in np.unique(batch):
        values[batch == code] -= values[batch == code].mean(axis=0)
    return PCA(50, random_state=0).fit_transform(values), batch, labels


def accuracy(scores: np.ndarray, batch: np.ndarray, labels: np.ndarray, donor: str) -> float:
    known, asked = batch == "p3_0", batch == donor
    found = KNeighborsClassifier(15).fit(scores[known], labels[known]).predict(scores[asked])
    return float((found == labels[asked]).mean())


def mixing(scores: np.ndarray, batch: np.ndarray, donor: str) -> float:
    """The share of p3 among the 30 nearest cells of the donor's; a half is perfect."""
    both, asked = np.isin(batch, [donor, "p3_0"]), batch == donor
    search = NearestNeighbors(n_neighbors=31).fit(scores[both])
    near = search.kneighbors(scores[asked], return_distance=False)[:, 1:]
    return float((batch[both][near] == "p3_0").mean())


def labels_of(data: MuData, seed: int, epochs: int, **options: object) -> list[str]:
    model = fitted(data, seed, epochs, **options)
    latent = model.get_latent_representation()
    batch = data.obs["batch"].astype(str).to_numpy()
    labels = data.obs["celltype"].astype(str).to_numpy()
    row = []
    for donor in DONORS:
        row += [f"{accuracy(latent, batch, labels, donor):.3f}"]
        row += [f"{mixing(latent, batch, donor):.2f}"]
    return row


def by_cell(first: np.ndarray, second: np.ndarray) -> float:
    """The mean over cells of the correlation over genes."""
    a, b = (v - v.mean(axis=1, keepdims=True) for v in (first, second))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return float(np.nanmean(np.where(scale > 0, (a * b).sum(axis=1) / np.maximum(scale, 1e-12), 0)))


def held_by(imputed: ImputedRna, counts: np.ndarray, genes: np.ndarray) -> float:
    """The share of the counts of some genes that lie in their intervals."""
    lower, upper = imputed.lower.to_numpy()[:, genes], imputed.upper.to_numpy()[:, genes]
    rounded = np.round(counts[:, genes])
    return float(((rounded >= lower) & (rounded <= upper)).mean())


def rna_of(data: MuData, hidden: np.ndarray, seed: int, epochs: int) -> list[str]:
    model = fitted(as_mosaic(data, hidden), seed, epochs)
    means = np.array(model.schema.library_log_mean)
    with_rna = model.schema.measured_rna
    size = float(np.exp(means[with_rna].mean()))
    genes = np.array(model.schema.gene_names)
    truth = data["rna"][hidden, list(genes)].X
    truth = log_normalised(sparse.csr_matrix(truth).astype(np.float64), size).toarray()
    asked = np.flatnonzero(hidden)
    imputed = model.impute_rna(indices=asked)
    counts = np.expm1(truth)
    often = counts.mean(axis=0) >= 1
    held = [
        held_by(found, counts, often)
        for found in (imputed, model.impute_rna(indices=asked, calibrated=False))
    ]
    row = [by_cell(truth, imputed.log1p.to_numpy())]
    rna, _ = model.get_normalized_expression(
        indices=asked, unmeasured="impute", n_samples=50, library_size=size, return_numpy=True
    )
    row.append(by_cell(truth, np.log1p(rna)))
    described = model._describe(as_mosaic(data, hidden))
    panel = int(described.panel[asked[0]])
    measured = np.array(model.schema.panel_measured[panel])
    everyone = np.flatnonzero(described.has_rna)
    others = ProteinPredictors(described, everyone, np.arange(len(genes)), measured, size)
    question = model._question(None, asked, 256, False)
    with question.minibatches("others") as batches:
        predicted = np.concatenate([others.predict(batch) for batch in batches], axis=1)
    row += [*(by_cell(truth, values) for values in predicted), *held]
    return [*(f"{value:.3f}" for value in row), f"{often.sum()} of {len(often)}"]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def write(labels: list[list[str]], rna: list[list[str]], own: list[float], epochs: int) -> None:
    text = f"""# A mosaic

`python benchmarks/mosaic.py`, {epochs} epochs at most; data and measures are in its docstring.

## Labels of p1 and p2 from p3

The neighbours of each modality alone reach {own[0]:.3f} (p1) and {own[1]:.3f} (p2). Mixing is the
share of p3 among the 30 nearest cells, which is .5 at best.

{table(["encoder", "seed", "p1 accuracy", "p1 mixing", "p2 accuracy", "p2 mixing"], labels)}

## RNA of cells with proteins alone

Correlation over genes in a cell, mean over cells.

{table(RNA_COLUMNS, rna)}
"""
    (HERE / "results" / "mosaic.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=150)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    joined = joined_mosaic(labelled_atlas(given.data))
    bmmc = mudata.read_h5mu(given.data / "bmmc_134proteins.h5mu")
    bmmc.obs["batch"] = bmmc["rna"].obs["batch"].astype(str)
    own = [
        accuracy(*scores_of_own_modality(joined, donor, modality), donor)
        for donor, modality in (("p1_0", "rna"), ("p2_0", "prot"))
    ]
    labels: list[list[str]] = []
    rna: list[list[str]] = []
    for seed in given.seeds:
        rng = np.random.default_rng(seed)
        third = np.isin(np.arange(bmmc.n_obs), rng.permutation(bmmc.n_obs)[: bmmc.n_obs // 3])
        rna.append(["BMMC", str(seed), *rna_of(bmmc, third, seed, given.epochs)])
        write(labels, rna, own, given.epochs)
        of_p3 = np.flatnonzero((joined.obs["batch"] == "p3_0").to_numpy())
        half = np.isin(np.arange(joined.n_obs), rng.permutation(of_p3)[: len(of_p3) // 2])
        rna.append(["WNN p3", str(seed), *rna_of(joined, half, seed, given.epochs)])
        write(labels, rna, own, given.epochs)
        labels.append(["does not see the batch", str(seed), *labels_of(joined, seed, given.epochs)])
        write(labels, rna, own, given.epochs)
        seeing = labels_of(joined, seed, given.epochs, encoder_batch=True)
        labels.append(["sees it", str(seed), *seeing])
        write(labels, rna, own, given.epochs)


if __name__ == "__main__":
    main()
