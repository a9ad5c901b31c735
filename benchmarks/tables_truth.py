"""Measure the tables of a run against simulated truth: intervals, clusters, isotype controls.

    python benchmarks/tables_truth.py --seeds 3

Two kinds of counts: of the model's family (`totalvi.simulate`), and of the same means with log-normal
noise instead of gamma noise, of the same variance, in RNA and proteins.

- Intervals: of cells of five types, each type, and each of six groups of cells of alike programs
  (k-means of the true programs), against the rest. How often the 95 % intervals of differential
  expression cover the true effect; false discoveries and power; and the same for a prior of the
  effects themselves, in place of one of ratios without the pseudocount.
- Clusters: of cells of one type that vary along three programs, clusters of the model's latent space.
  How many calls have an effect below delta, where clusters are tested on the counts that they were
  found in, and on the other half: of `totalvi.split_counts`, and of binomial thinning.
- Isotype controls: rows of markers with adjusted p < 0.05, for rank sums of counts, of denoised values,
  and of the other half of the counts.

Results go to benchmarks/results/tables_truth.json and tables_truth.md.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse
from sklearn.cluster import KMeans

import totalvi
from result_files import write_results
from totalvi.posterior.differential.differential_tables import expected_fdr_calls
from totalvi.posterior.differential.effects import fit_prior, posterior_effects
from totalvi.run.clusters import cluster_cells
from totalvi.run.tables import marker_table

SIZES = {"n_cells": 1500, "n_genes": 400}
FIT = {"isotype_controls": (), "n_hidden": 128}
DELTA = 0.25
WELL_COUNTED = 30  # counts of the smaller group


def simulated(seed: int, kind: str, **options: int) -> MuData:
    mdata = totalvi.simulate(**SIZES, **options, seed=seed)
    if kind == "family":
        return mdata
    rng = np.random.default_rng([seed, 7])
    rna, prot = mdata["rna"], mdata["prot"]
    size = mdata.obs["library_size"].to_numpy()[:, None]
    stained = np.asarray(prot.layers["foreground"]) > 0
    of_protein = np.where(stained, prot.layers["denoised"], prot.layers["background_mean"])
    rna.X = sparse.csr_matrix(log_normal_counts(rng, size * rna.layers["denoised"], rna.var))
    prot.X = log_normal_counts(rng, of_protein, prot.var)
    return mdata


def log_normal_counts(rng: np.random.Generator, mean: np.ndarray, var: pd.DataFrame) -> np.ndarray:
    sd = np.sqrt(np.log1p(1 / var["inverse_dispersion"].to_numpy()))
    noise = np.exp(rng.normal(-(sd**2) / 2, sd, mean.shape))
    return rng.poisson(mean * noise).astype(np.float32)


def fitted(mdata: MuData, seed: int) -> totalvi.Model:
    model = totalvi.Model(mdata, seed=seed, **FIT)
    model.train(max_epochs=60, progress=False)
    return model


def true_effects(mdata: MuData, group: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """Return the true effects of genes in a table of groups against the rest."""
    rho = pd.DataFrame(mdata["rna"].layers["denoised"], columns=mdata["rna"].var_names, dtype=float)
    truth = np.full(len(rows), np.nan)
    for first, some in rows.reset_index().groupby("group1", observed=True):
        inside = group == str(first)
        means = [rho[cells].mean()[some["feature"]] for cells in (inside, ~inside)]
        c = some["pseudocounts"].to_numpy()
        truth[some.index] = np.log2(means[0] + c) - np.log2(means[1] + c)
    return truth


def called(rows: pd.DataFrame, not_beyond: np.ndarray) -> np.ndarray:
    """Return the calls among genes, comparison by comparison."""
    calls = np.zeros(len(rows), dtype=bool)
    for some in rows.reset_index().groupby("comparison", observed=True).indices.values():
        calls[some] = expected_fdr_calls(not_beyond[some], 0.05)
    return calls


def judged(
    low: np.ndarray, high: np.ndarray, calls: np.ndarray, truth: np.ndarray, many: np.ndarray
) -> dict[str, float]:
    inside, large = (low <= truth) & (truth <= high), np.abs(truth) >= 1
    return {
        "coverage": float(inside.mean()),
        "coverage_well_counted": float(inside[many].mean()),
        "calls": int(calls.sum()),
        "false": int((calls & (np.abs(truth) < DELTA)).sum()),
        "power": float(calls[large].mean()) if large.any() else float("nan"),
    }


def prior_of_effects(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return intervals and P(|r| < delta) under a prior of r itself."""
    low, high, inside = np.empty((3, len(rows)))
    for some in rows.reset_index().groupby("comparison", observed=True).indices.values():
        estimate = rows["lfc_unshrunk"].to_numpy()[None, some]
        variance = rows["lfc_unshrunk_se"].to_numpy()[None, some] ** 2
        prior = fit_prior(estimate, variance, free_mode=True)
        found = posterior_effects(estimate, variance, prior, np.array([DELTA]))
        low[some], high[some], inside[some] = found.low[0], found.high[0], 1 - found.beyond[0]
    return low, high, inside


def intervals(seed: int, kind: str) -> list[dict[str, Any]]:
    mdata = simulated(seed, kind, n_proteins=15, n_cell_types=5)
    programs = KMeans(6, random_state=0, n_init=3).fit_predict(np.asarray(mdata.obsm["programs"]))
    model = fitted(mdata, seed)
    found = []
    for what, group in (("types", mdata.obs["cell_type"].astype(str)), ("programs", programs)):
        names = np.asarray(group).astype(str)
        mdata.obs["group"] = pd.Categorical(names)
        table = model.differential_expression(groupby="group", progress=False)
        genes = table[table["modality"] == "rna"]
        truth = true_effects(mdata, names, genes)
        size = genes["group1"].astype(str).map(pd.Series(names).value_counts()).to_numpy()
        many = (genes["raw_mean1"] * np.minimum(size, len(names) - size)).to_numpy() > WELL_COUNTED
        for prior in ("ratios", "effects"):
            low, high = genes["lfc_ci_low"].to_numpy(), genes["lfc_ci_high"].to_numpy()
            inside = genes["proba_not_de"].to_numpy()
            if prior == "effects":
                low, high, inside = prior_of_effects(genes)
            judgement = judged(low, high, called(genes, inside), truth, many)
            found.append({"seed": seed, "kind": kind, "of": what, "prior": prior, **judgement})
    return found


def clusters(seed: int, kind: str) -> list[dict[str, Any]]:
    mdata = simulated(seed, kind, n_proteins=20, n_cell_types=1, n_isotype_controls=8)
    ways = {
        "same": (mdata, mdata),
        "held out": totalvi.split_counts(mdata, seed=seed),
    }
    if kind == "family":
        ways["held out, binomial"] = binomial_halves(mdata, seed)
    found = []
    for tested, (fit, test) in ways.items():
        model = fitted(fit, seed)
        labels = cluster_cells(model.get_latent_representation(), seed=seed).labels
        test.obs["cluster"] = labels
        table = model.differential_expression(test, groupby="cluster", progress=False)
        genes = table[table["modality"] == "rna"]
        truth = true_effects(mdata, np.asarray(labels).astype(str), genes)
        calls = genes["is_de_fdr_0.05"].to_numpy()
        row = {
            "seed": seed,
            "kind": kind,
            "tested_on": tested,
            "clusters": len(labels.categories),
            "calls": int(calls.sum()),
            "false": int((calls & (np.abs(truth) < DELTA)).sum()),
            "power": float(calls[np.abs(truth) >= 2 * DELTA].mean()),
        }
        _, denoised = model.get_normalized_expression(n_samples=10, return_numpy=True)
        row["controls_counts"] = controls_marked(labels, test, np.asarray(test["prot"].X))
        row["controls_denoised"] = controls_marked(labels, test, denoised)
        found.append(row)
    return found


def binomial_halves(mdata: MuData, seed: int) -> tuple[MuData, MuData]:
    """Split counts as if cells of one mean had Poisson counts."""
    rng = np.random.default_rng([seed, 8])
    first, second = mdata.copy(), mdata.copy()
    for name in ("rna", "prot"):
        counts = mdata[name].to_df().to_numpy().astype(int)
        half = rng.binomial(counts, 0.5).astype(np.float32)
        for part, values in ((first, half), (second, counts.astype(np.float32) - half)):
            part[name].X = sparse.csr_matrix(values) if name == "rna" else values
    return first, second


def controls_marked(labels: pd.Categorical, test: MuData, ranked: np.ndarray) -> float:
    """Return the share of rows of isotype controls with adjusted p < 0.05."""
    protein = test["prot"]
    ones = np.ones(protein.shape)
    table = marker_table(
        labels, test["rna"].X.tocsr(), test["rna"].var_names, ranked.astype(float), ones, ones,
        protein.var_names,
    )  # fmt: skip
    rows = table[(table["modality"] == "protein") & table["feature"].str.startswith("isotype")]
    return float((rows["adjusted_p"] < 0.05).mean())


def spread(values: pd.Series) -> str:
    return f"{values.mean():.3f} ({values.min():.3f}-{values.max():.3f})"


def lines_of(rows: dict[str, list[dict[str, Any]]], n_seeds: int) -> list[str]:
    lines = [
        f"{n_seeds} simulations a row of 1500 cells and 400 genes; mean (smallest-largest). Counts:",
        "of the model's family, or with log-normal noise. Measured by benchmarks/tables_truth.py.",
        "",
        "95 % intervals of genes in differential expression: five true types, or six groups of true",
        f"programs, each against the rest; delta {DELTA:g}. Well counted: above {WELL_COUNTED} counts "
        "in the group.",
        "The prior is of log ratios without the pseudocount or, to compare, of effects themselves.",
        "",
        "| counts | groups | prior | coverage | of well counted | calls | false | power at 2-fold |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, of, prior), some in pd.DataFrame(rows["intervals"]).groupby(
        ["kind", "of", "prior"], sort=False
    ):
        lines.append(
            f"| {kind} | {of} | {prior} | {spread(some['coverage'])} | "
            f"{spread(some['coverage_well_counted'])} | {some['calls'].sum()} | "
            f"{some['false'].sum() / max(some['calls'].sum(), 1):.3f} | {spread(some['power'])} |"
        )
    lines += [
        "",
        "Clusters of cells of one continuous type: genes called with an effect below delta, of all",
        "calls of all simulations; mean of the shares of the simulations; power at an effect of 0.5;",
        "and rows of isotype controls with adjusted p < 0.05.",
        "",
        "| counts | tested on | clusters | calls | false | mean share | power | controls, counts | "
        "controls, denoised |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (kind, tested), some in pd.DataFrame(rows["clusters"]).groupby(
        ["kind", "tested_on"], sort=False
    ):
        share = some["false"] / some["calls"].clip(lower=1)
        lines.append(
            f"| {kind} | {tested} | {some['clusters'].min()}-{some['clusters'].max()} | "
            f"{some['calls'].sum()} | {some['false'].sum() / max(some['calls'].sum(), 1):.3f} | "
            f"{spread(share)} | {spread(some['power'])} | {spread(some['controls_counts'])} | "
            f"{spread(some['controls_denoised'])} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    n_seeds = parser.parse_args().seeds
    started = time.process_time()
    rows: dict[str, list[dict[str, Any]]] = {"intervals": [], "clusters": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(1, n_seeds + 1):
            for kind in ("family", "log-normal"):
                print(seed, kind, flush=True)
                rows["intervals"] += intervals(seed, kind)
                rows["clusters"] += clusters(seed, kind)
            write_results("tables_truth", rows, lines_of(rows, seed), started)


if __name__ == "__main__":
    main()
