"""Measure differential expression of proteins against simulated truth: intervals, calls, controls.

    python benchmarks/protein_effects.py --seeds 3

Counts are of the model's family, or have log-normal noise (see tables_truth.py), of 1,500 cells of five
types with 400 genes. Of the 15 proteins one is an isotype control, or 8 of 20, which the model is not
told. Groups are the types, or six groups of cells of alike programs (k-means of the true programs).

The true effect of a protein is that of the mean foreground of the populations that the cells were
drawn from: each type's share of foreground, factor and mean background, and for groups of programs the
mean over types, which do not depend on programs. A call is false if the true effect is below delta. As
no control has foreground, none of their effects is real.

Results go to benchmarks/results/protein_effects.json and protein_effects.md.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from sklearn.cluster import KMeans

import totalvi
from result_files import write_results
from tables_truth import DELTA, fitted, simulated, spread, true_effects

PANELS = {
    "1 of 15": {"n_proteins": 15},
    "8 of 20": {"n_proteins": 20, "n_isotype_controls": 8},
}


def program_effects(mdata: MuData) -> np.ndarray:
    """Return each cell's log factor by its programs on top of its type's, (cells, proteins).

    The simulation's log(alpha - 1) is linear in the programs, so cells with foreground give it exactly.
    """
    protein, programs = mdata["prot"], np.asarray(mdata.obsm["programs"], dtype=float)
    of_type = protein.varm["foreground_factor"].T[mdata.obs["cell_type"].cat.codes]
    stained = np.asarray(protein.layers["foreground"]) > 0
    effects = np.zeros(protein.shape)
    for t in np.flatnonzero(~protein.var["control"]):
        some = stained[:, t]
        alpha = protein.layers["denoised"][some, t] / protein.layers["background_mean"][some, t]
        relative = np.log((alpha.astype(float) - 1) / (of_type[some, t] - 1))
        effects[:, t] = programs @ np.linalg.lstsq(programs[some], relative, rcond=None)[0]
    return effects


def true_foreground(mdata: MuData, *, by_type: bool) -> pd.DataFrame:
    """Return the mean foreground of the population of each cell, (cells, proteins)."""
    protein, code = mdata["prot"], mdata.obs["cell_type"].cat.codes.to_numpy()
    sd = protein.var["log_background_sd"].to_numpy()
    background = np.exp(protein.varm["log_background_mean"][:, 0] + sd**2 / 2)
    factor, share = (protein.varm[f"foreground_{name}"].T for name in ("factor", "probability"))
    effect = np.exp(program_effects(mdata))
    if by_type:  # programs do not depend on the type
        mean = (share * (1 + (factor - 1) * effect.mean(axis=0)))[code]
    else:
        frequency = np.bincount(code) / len(code)
        mean = frequency @ share + (frequency @ (share * (factor - 1))) * effect
    return pd.DataFrame(mean * background, columns=protein.var_names)


def true_protein_effects(level: pd.DataFrame, group: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """Return the true effects of proteins in a table of groups against the rest."""
    truth = np.full(len(rows), np.nan)
    for first, some in rows.reset_index().groupby("group1", observed=True):
        inside = group == str(first)
        first_level, rest = (level[cells].mean()[some["feature"]] for cells in (inside, ~inside))
        c = some["pseudocounts"].to_numpy()
        truth[some.index] = np.log2(first_level.to_numpy() + c) - np.log2(rest.to_numpy() + c)
    return truth


def measure(seed: int, kind: str, controls: str) -> list[dict[str, Any]]:
    mdata = simulated(seed, kind, n_cell_types=5, **PANELS[controls])
    programs = KMeans(6, random_state=0, n_init=3).fit_predict(np.asarray(mdata.obsm["programs"]))
    model = fitted(mdata, seed)
    found = []
    for what, group in (("types", mdata.obs["cell_type"].astype(str)), ("programs", programs)):
        names = np.asarray(group).astype(str)
        mdata.obs["group"] = pd.Categorical(names)
        table = model.differential_expression(mdata, groupby="group", progress=False)
        is_gene = (table["modality"] == "rna").to_numpy()
        level = true_foreground(mdata, by_type=what == "types")
        truth = np.empty(len(table))
        truth[is_gene] = true_effects(mdata, names, table[is_gene])
        truth[~is_gene] = true_protein_effects(level, names, table[~is_gene])
        control = table.index.str.startswith("isotype") & ~is_gene
        calls = table["is_de_fdr_0.05"].to_numpy()
        inside = ((table["lfc_ci_low"] <= truth) & (truth <= table["lfc_ci_high"])).to_numpy()
        error = (table["lfc_unshrunk"] - truth) / table["lfc_unshrunk_se"]
        protein, large = ~is_gene & ~control, np.abs(truth) >= 1
        row = {
            "gene_coverage": float(inside[is_gene].mean()),
            "protein_coverage": float(inside[protein].mean()),
            "protein_error": float(np.sqrt((error[protein] ** 2).mean())),
            "control_rows": int(control.sum()),
            "control_calls": int(calls[control].sum()),
            "control_calls_fixed": controls_called_with_a_fixed_pseudocount(model, mdata),
            "gene_calls": int(calls[is_gene].sum()),
            "calls": int(calls.sum()),
            "false": int((calls & (np.abs(truth) < DELTA)).sum()),
            "large": int((large & protein).sum()),
            "large_called": int((calls & large & protein).sum()),
        }
        found.append({"seed": seed, "kind": kind, "controls": controls, "of": what, **row})
    return found


def controls_called_with_a_fixed_pseudocount(model: totalvi.Model, mdata: MuData) -> int:
    table = model.differential_expression(
        mdata, groupby="group", protein_prior_count=0.1, progress=False
    )
    control = (table["modality"] == "protein") & table.index.str.startswith("isotype")
    return int(table.loc[control, "is_de_fdr_0.05"].sum())


def lines_of(rows: list[dict[str, Any]], n_seeds: int) -> list[str]:
    lines = [
        f"{n_seeds} simulations a row of 1500 cells of five types and 400 genes; mean (smallest to",
        "largest). 95 % intervals of effects, of each group against the rest; the error of proteins is",
        "that of estimates before they are shrunk, in standard errors (root mean square). Calls and",
        f"false calls (true effect below {DELTA:g}) are of genes, proteins and controls together.",
        "c is the pseudocount of proteins, by default what a comparison detects. Measured by",
        "benchmarks/protein_effects.py.",
        "",
        "| controls | counts | groups | proteins covered | error | genes covered | controls called | "
        "with c = 0.1 | calls | false | 2-fold proteins called |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (controls, kind, of), some in pd.DataFrame(rows).groupby(
        ["controls", "kind", "of"], sort=False
    ):
        lines.append(
            f"| {controls} | {kind} | {of} | {spread(some['protein_coverage'])} | "
            f"{spread(some['protein_error'])} | {spread(some['gene_coverage'])} | "
            f"{some['control_calls'].sum()} of {some['control_rows'].sum()} | "
            f"{some['control_calls_fixed'].sum()} | {some['calls'].sum()} | "
            f"{some['false'].sum() / max(some['calls'].sum(), 1):.3f} | "
            f"{some['large_called'].sum()} of {some['large'].sum()} |"
        )
    every = pd.DataFrame(rows).sum(numeric_only=True)
    lines += [
        "",
        f"Controls called in all: {every['control_calls'] / every['control_rows']:.3f}. False calls in "
        f"all: {every['false'] / every['calls']:.3f}.",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    n_seeds = parser.parse_args().seeds
    started = time.process_time()
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(1, n_seeds + 1):
            for controls in PANELS:
                for kind in ("family", "log-normal"):
                    print(seed, controls, kind, flush=True)
                    rows += measure(seed, kind, controls)
    lines = lines_of(rows, n_seeds)
    write_results("protein_effects", {"comparisons": rows}, lines, started)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
