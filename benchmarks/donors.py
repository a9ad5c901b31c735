"""Measure inference about donors against simulated truth: false calls, power, effects, abundance.

    python benchmarks/donors.py --seeds 20 --cache folder

Each simulation has 16 donors, 8 of them "case", and one fit. Type 0 has twofold changes of a tenth of
its genes and of two fifths of the proteins that it carries; the other types have none. As many further
simulations have no effect in any type. Subsets of the donors are 3, 5 and 8 a side. Two generators:

- "model": `totalvi.simulate`, with random effects of the donors on every gene and protein.
- "counts": negative binomial counts drawn without the model: additive protein background, zero
  inflation, depth by donor, and shares of types that depend on donor and condition.

The standard deviation of a donor's log effect is .1 to .4, uniform over features; donors have
unequal numbers of cells. The baseline is the moderated t test of pseudobulk: log counts per million,
freed of the shift that most genes share, and log mean counts of proteins. Both have the same adjustment
(Benjamini-Hochberg, over genes and proteins) and see the same features.

Results go to benchmarks/results/donors.json and donors.md.
"""

import argparse
import json
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData, set_options
from scipy import sparse, stats
from scipy.optimize import minimize
from scipy.special import expit, logit

import totalvi
import totalvi.errors
from totalvi.posterior.abundance import log_odds_of_counts
from totalvi.posterior.differential.differential_tables import adjusted
from totalvi.posterior.differential.moderated import compare_samples

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
N_DONORS, SIZES = 16, (3, 5, 8)
N_CELLS, N_GENES, N_PROTEINS = 3000, 150, 40
EPOCHS = 40


def negative_binomial(rng: np.random.Generator, mean: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return counts with variance m + m^2 / r."""
    return rng.poisson(rng.standard_gamma(np.broadcast_to(r, mean.shape)) * mean / r)


def donors_of_cells(rng: np.random.Generator, n_cells: int) -> np.ndarray:
    """Return a donor of each cell; donors have unequal shares, at least 2 % each."""
    share = 0.02 + (1 - 0.02 * N_DONORS) * rng.dirichlet(np.full(N_DONORS, 4.0))
    return rng.choice(N_DONORS, n_cells, p=share)


def changes(rng: np.random.Generator, able: np.ndarray, share: float | None) -> np.ndarray:
    """Return log2 effects of 1 and -1, in turns, of a share of the features that may change."""
    effect = np.zeros(len(able))
    if share is None:
        return effect
    chosen = rng.permutation(np.flatnonzero(able))[: max(round(share * able.sum()), 2)]
    effect[chosen] = np.resize([1.0, -1.0], len(chosen))
    return effect


def donor_effects(rng: np.random.Generator, n_features: int) -> np.ndarray:
    return np.exp(rng.normal(size=(N_DONORS, n_features)) * rng.uniform(0.1, 0.4, n_features))


def from_model(seed: int, *, effects: bool = True) -> tuple[MuData, dict[str, np.ndarray]]:
    """Return counts of `totalvi.simulate` with donors, and the true effects in type 0."""
    mdata = totalvi.simulate(
        N_CELLS, N_GENES, N_PROTEINS, n_cell_types=3, n_isotype_controls=0,
        median_library_size=600.0, seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng((seed, 1))
    donor = donors_of_cells(rng, N_CELLS)
    case = donor % 2 == 0
    types = mdata.obs["cell_type"].cat.codes.to_numpy()
    changed = ((types == 0) & case)[:, None]
    rho = np.asarray(mdata["rna"].layers["denoised"], dtype=float)
    common = rho[types == 0].mean(axis=0)
    rna = changes(rng, (common > 5e-4) & (common < 0.02), 0.1 if effects else None)
    rho *= donor_effects(rng, N_GENES)[donor] * np.where(changed, 2.0**rna, 1)
    rho /= rho.sum(axis=1, keepdims=True)
    mean = rho * mdata.obs["library_size"].to_numpy()[:, None]
    x = negative_binomial(rng, mean, mdata["rna"].var["inverse_dispersion"].to_numpy())
    prot = mdata["prot"]
    protein = changes(
        rng, prot.varm["foreground_probability"][:, 0] > 0.5, 0.4 if effects else None
    )
    foreground = np.asarray(prot.layers["foreground"], dtype=bool)
    factor = donor_effects(rng, N_PROTEINS)[donor] * np.where(changed, 2.0**protein, 1)
    background = prot.layers["background_mean"] * donor_effects(rng, N_PROTEINS)[donor]
    level = np.where(foreground, prot.layers["denoised"] * factor, background)
    y = negative_binomial(rng, level, prot.var["inverse_dispersion"].to_numpy())
    return assembled(x, y, donor, types), {"rna": rna, "protein": protein}


def from_counts(seed: int, *, effects: bool = True) -> tuple[MuData, dict[str, np.ndarray]]:
    """Return counts drawn without the model, and the true effects in type 0."""
    rng = np.random.default_rng((seed, 2))
    donor = donors_of_cells(rng, N_CELLS)
    case = donor % 2 == 0
    shares = np.array(
        [rng.dirichlet(np.array([12.0, 12 + 6 * (k % 2), 8])) for k in range(N_DONORS)]
    )
    types = (rng.random(N_CELLS)[:, None] > np.cumsum(shares, axis=1)[donor]).sum(axis=1)
    changed = ((types == 0) & case)[:, None]
    profile = np.exp(rng.normal(0, 1.2, N_GENES) + rng.normal(0, 0.5, (3, N_GENES)))
    profile /= profile.sum(axis=1, keepdims=True)
    rna = changes(rng, (profile[0] > 5e-4) & (profile[0] < 0.02), 0.1 if effects else None)
    depth = np.exp(rng.normal(np.log(600), 0.3, N_CELLS) + rng.normal(0, 0.3, N_DONORS)[donor])
    rho = profile[types] * donor_effects(rng, N_GENES)[donor] * np.where(changed, 2.0**rna, 1)
    rho *= np.exp(rng.normal(0, 0.2, (N_CELLS, 1)) * rng.normal(0, 1, N_GENES))  # a program
    rho /= rho.sum(axis=1, keepdims=True)
    x = negative_binomial(rng, rho * depth[:, None], rng.gamma(4, 0.5, N_GENES) + 0.2)
    x *= rng.random(x.shape) > rng.uniform(0, 0.2, N_GENES)
    positive = rng.random((3, N_PROTEINS)) < 0.5
    protein = changes(rng, positive[0], 0.4 if effects else None)
    background = np.exp(rng.normal(1.5, 0.6, N_PROTEINS)) * donor_effects(rng, N_PROTEINS)[donor]
    background *= np.exp(rng.normal(0, 0.4, (N_CELLS, 1)))
    signal = np.exp(rng.normal(4.5, 0.8, N_PROTEINS)) * positive[types]
    signal = signal * donor_effects(rng, N_PROTEINS)[donor] * np.where(changed, 2.0**protein, 1)
    y = negative_binomial(rng, background + signal, rng.gamma(6, 1.0, N_PROTEINS) + 1)
    return assembled(x, y, donor, types), {"rna": rna, "protein": protein}


def assembled(x: np.ndarray, y: np.ndarray, donor: np.ndarray, types: np.ndarray) -> MuData:
    names = [f"cell_{i}" for i in range(len(x))]
    obs = pd.DataFrame(index=names)
    rna = AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs)
    prot = AnnData(y.astype(np.float32), obs=obs)
    rna.var_names = [f"gene_{i}" for i in range(x.shape[1])]
    prot.var_names = [f"protein_{i}" for i in range(y.shape[1])]
    with set_options(pull_on_update=False):
        mdata = MuData({"rna": rna, "prot": prot})
    mdata.obs["donor"] = pd.Categorical([f"d{k:02d}" for k in donor])
    mdata.obs["condition"] = np.where(donor % 2 == 0, "case", "control")
    mdata.obs["cell_type"] = pd.Categorical([f"type_{k}" for k in types])
    return mdata


GENERATORS = {"model": from_model, "counts": from_counts}


def fitted(mdata: MuData, path: Path | None, batch_key: str | None) -> totalvi.Model:
    """Return a fitted model, from the cache if it is there."""
    if path is not None and path.exists():
        return totalvi.Model.load(path, mdata)
    model = totalvi.Model(mdata, n_hidden=64, n_latent=10, isotype_controls=(), batch_key=batch_key)
    model.train(max_epochs=EPOCHS, progress=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return model


def pseudobulk(
    mdata: MuData, cells: np.ndarray, tested: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return p-values of the moderated t test of pseudobulk, by modality; NaN where not tested."""
    obs = mdata.obs[cells]
    donors = np.unique(obs["donor"])
    rows = [(obs["donor"] == name).to_numpy() for name in donors]
    case = np.array([obs["condition"][row].iloc[0] == "case" for row in rows])
    x, y = mdata["rna"].X[cells], np.asarray(mdata["prot"].X)[cells]
    counts = np.array([np.asarray(x[row].sum(axis=0)).ravel() for row in rows])
    rna = np.log2((counts + 0.5) / (counts.sum(axis=1, keepdims=True) + 1) * 1e6)
    well = np.median(counts, axis=0) >= np.median(counts)
    rna -= np.median((rna - rna.mean(axis=0))[:, well], axis=1, keepdims=True)
    protein = np.log2([y[row].mean(axis=0) + 0.5 for row in rows])
    design = np.column_stack([case.astype(float), np.ones(len(case))])
    result = {}
    for modality, levels in (("rna", rna), ("protein", protein)):
        some = tested[modality]
        result[modality] = np.full(len(some), np.nan)
        found = compare_samples(levels[:, some], np.zeros_like(levels[:, some]), design)
        result[modality][some] = found.p_value
    return result


def donors_used(mdata: MuData, size: int, seed: int) -> np.ndarray:
    """Return the cells of some donors of each condition."""
    rng = np.random.default_rng((seed, size))
    names = mdata.obs["donor"].cat.categories
    kept = [names[i] for half in (0, 1) for i in 2 * rng.permutation(N_DONORS // 2)[:size] + half]
    return mdata.obs["donor"].isin(kept).to_numpy()


def compared(
    model: totalvi.Model, mdata: MuData, cells: np.ndarray, truth: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Return calls of each type by the package and by the baseline; only type 0 has effects."""
    options = {"condition_key": "condition", "group2": "control", "sample_key": "donor"}
    rows = []
    for name in ("type_0", "type_1", "type_2"):
        of_type = cells & (mdata.obs["cell_type"] == name).to_numpy()
        table = model.differential_expression(
            idx1=of_type, all_stats=False, progress=False, **options
        )
        parts = {
            modality: table[table["modality"] == modality].loc[list(mdata[key].var_names)]
            for modality, key in (("rna", "rna"), ("protein", "prot"))
        }
        tested = {modality: part["p_value"].notna().to_numpy() for modality, part in parts.items()}
        of_baseline = pseudobulk(mdata, of_type, tested)
        p_values = {
            "samples": {modality: part["p_value"].to_numpy() for modality, part in parts.items()},
            "pseudobulk": of_baseline,
        }
        for method, of_method in p_values.items():
            calls = adjusted(np.concatenate([*of_method.values()])) <= 0.05
            by_modality = dict(
                zip(of_method, np.split(calls, [len(of_method["rna"])]), strict=True)
            )
            for modality, called in by_modality.items():
                effect = truth[modality] * (name == "type_0")
                row = {
                    "type": name, "method": method, "modality": modality,
                    "called": int(called.sum()), "false": int((called & (effect == 0)).sum()),
                    "changed": int((effect != 0).sum()), "tested": int(tested[modality].sum()),
                }  # fmt: skip
                if method == "samples" and effect.any():
                    part, some = parts[modality], tested[modality]
                    low, high = part["lfc_ci_low"], part["lfc_ci_high"]
                    estimate = part["lfc_mean"].to_numpy()[some]
                    row["slope"] = float(np.polyfit(effect[some], estimate, 1)[0])
                    row["coverage"] = float(((low < effect) & (effect < high))[some].mean())
                rows.append(row)
    return rows


def measure(
    generator: str, seed: int, batch_key: str | None, cache: Path | None, *, effects: bool = True
) -> list[dict[str, Any]]:
    """Return the results of one simulation, one row for each size, type, method and modality."""
    name = f"{generator}_{seed}_{batch_key or 'none'}{'' if effects else '_null'}"
    done = None if cache is None else cache / f"{name}.pickle"
    if done is not None and done.exists():
        return pickle.loads(done.read_bytes())  # of this script
    mdata, truth = GENERATORS[generator](seed, effects=effects)
    started = time.process_time()
    model = fitted(mdata, None if cache is None else cache / f"{name}.totalvi", batch_key)
    print(f"{name}: fit {time.process_time() - started:.0f} s", flush=True)
    rows = []
    for size in SIZES:
        cells = donors_used(mdata, size, seed)
        for row in compared(model, mdata, cells, truth):
            batch = batch_key or "none"
            rows.append({"generator": generator, "seed": seed, "batch": batch, "size": size, **row})
    if done is not None:
        done.write_bytes(pickle.dumps(rows))
    return rows


def summary(table: pd.DataFrame) -> list[str]:
    """Return the lines of the results: calls without an effect, and calls with one."""
    keys = ["generator", "size", "method"]
    null = table[table["type"] != "type_0"]
    null = null.groupby([*keys, "seed", "type"])["called"].sum().gt(0)
    null = null.groupby(keys).agg(["mean", "count"])
    effect = table[table["type"] == "type_0"]
    both = effect.groupby([*keys, "seed"])[["called", "false"]].sum()
    fdp = (both["false"] / both["called"].clip(lower=1)).groupby(keys).agg(["mean", "sem"])
    effect = effect.assign(power=(effect["called"] - effect["false"]) / effect["changed"])
    by = effect.groupby([*keys, "modality"])[["power", "slope", "coverage"]].agg(["mean", "std"])
    lines = [
        f"{table['seed'].nunique()} simulations of each generator; one fit each.",
        "",
        "| counts | donors a side | method | types without effect with a false call | FDP (s.e.) | "
        "power RNA | power protein | slope RNA (sd) | slope protein (sd) | coverage RNA, protein |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in null.iterrows():
        rna, protein = (by.loc[(*key, modality)] for modality in ("rna", "protein"))
        slopes = [
            ""
            if np.isnan(of["slope"]["mean"])
            else f"{of['slope']['mean']:.2f} ({of['slope']['std']:.2f})"
            for of in (rna, protein)
        ]
        covered = [of["coverage"]["mean"] for of in (rna, protein)]
        shown = "" if np.isnan(covered[0]) else f"{covered[0]:.3f}, {covered[1]:.3f}"
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {row['mean']:.3f} of {row['count']:.0f} | "
            f"{fdp.loc[key, 'mean']:.3f} ({fdp.loc[key, 'sem']:.3f}) | {rna['power']['mean']:.2f} | "
            f"{protein['power']['mean']:.2f} | {slopes[0]} | {slopes[1]} | {shown} |"
        )
    return lines


def power_gained(table: pd.DataFrame) -> list[str]:
    """Return the lines of power above that of pseudobulk in the same simulation."""
    keys = ["generator", "size", "modality"]
    effect = table[table["type"] == "type_0"]
    effect = effect.assign(power=(effect["called"] - effect["false"]) / effect["changed"])
    power = effect.pivot_table(index=[*keys, "seed"], columns="method", values="power")
    gained = (power["samples"] - power["pseudobulk"]).groupby(keys).agg(["mean", "sem"])
    lines = [
        "",
        "Power above that of pseudobulk in the same simulation (s.e.):",
        "",
        "| counts | donors a side | RNA | protein |",
        "|---|---|---|---|",
    ]
    for (generator, size), of in gained.groupby(level=["generator", "size"]):
        rna, protein = (of.loc[(generator, size, modality)] for modality in ("rna", "protein"))
        lines.append(
            f"| {generator} | {size} | {rna['mean']:+.3f} ({rna['sem']:.3f}) | "
            f"{protein['mean']:+.3f} ({protein['sem']:.3f}) |"
        )
    return lines


def without_effects(table: pd.DataFrame) -> list[str]:
    """Return the lines of simulations in which no feature of any type has an effect."""
    keys = ["generator", "size", "method"]
    runs = table.groupby([*keys, "seed", "type"])[["called", "tested"]].sum().groupby(keys)
    lines = [
        "",
        f"No effect in any type: {table['seed'].nunique()} more simulations of each generator, three "
        "types each.",
        "",
        "| counts | donors a side | method | comparisons with a call | calls in all, of tests |",
        "|---|---|---|---|---|",
    ]
    for key, row in runs.agg(list).iterrows():
        called = np.array(row["called"])
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {(called > 0).mean():.3f} of {len(called)} | "
            f"{called.sum()} of {sum(row['tested']):,} |"
        )
    return lines


def beta_binomial_p(counts: np.ndarray, totals: np.ndarray, case: np.ndarray) -> float:
    """Return the p-value of the likelihood ratio test that cases have the share of controls."""

    def lack(theta: np.ndarray) -> float:
        share = np.clip(expit(theta[:-1]), 1e-6, 1 - 1e-6)
        of_sample = share[case.astype(int)] if len(share) == 2 else share[0]
        size = np.exp(np.clip(theta[-1], -3, 12))
        return -float(
            stats.betabinom.logpmf(counts, totals, of_sample * size, (1 - of_sample) * size).sum()
        )

    start = logit(np.clip(counts.sum() / totals.sum(), 1e-4, 1 - 1e-4))
    fits = [
        min(minimize(lack, [*[start] * n, size], method="Nelder-Mead").fun for size in (3.0, 6.0))
        for n in (1, 2)
    ]
    return float(stats.chi2.sf(2 * max(fits[0] - fits[1], 0), 1))


def abundance(n_simulations: int) -> list[str]:
    """Return uniformity and power of tests of shares of types, beside a beta-binomial test."""
    lines = [
        "",
        f"Shares of 8 types, Dirichlet-multinomial (concentration 60), 300 cells a donor (median); "
        f"{n_simulations} simulations with the first type doubled, and as many without:",
        "",
        "| donors a side | test | KS distance of null p | null p < .05 | power at p < .05 |",
        "|---|---|---|---|---|",
    ]
    for size in SIZES:
        null: dict[str, list[float]] = {"moderated t": [], "beta-binomial": []}
        power: dict[str, list[float]] = {name: [] for name in null}
        rng = np.random.default_rng(size)
        case = np.repeat([True, False], size)
        design = np.column_stack([case.astype(float), np.ones(2 * size)])
        for effect in (0.0, 1.0):
            for _ in range(n_simulations):
                base = rng.dirichlet(np.full(8, 3.0))
                totals = rng.lognormal(5.7, 0.5, 2 * size).astype(int) + 30
                shares = base * np.where(case[:, None] & (np.arange(8) == 0), 2.0**effect, 1)
                shares /= shares.sum(axis=1, keepdims=True)
                counts = np.array(
                    [
                        rng.multinomial(n, rng.dirichlet(60 * share))
                        for n, share in zip(totals, shares, strict=True)
                    ]
                )
                p_value = compare_samples(*log_odds_of_counts(counts), design).p_value[0]
                into = power if effect else null
                into["moderated t"].append(p_value)
                into["beta-binomial"].append(beta_binomial_p(counts[:, 0], totals, case))
        for name, values in null.items():
            p = np.array(values)
            lines.append(
                f"| {size} | {name} | {stats.kstest(p, 'uniform').statistic:.3f} | "
                f"{(p < 0.05).mean():.3f} | {(np.array(power[name]) < 0.05).mean():.2f} |"
            )
    return lines


def rare_types(n_simulations: int) -> list[str]:
    """Return how often types without an effect are found where one condition has more cells."""
    lines = [
        "",
        f"Shares of 12 types without effects, some with fewer than ten cells in all; one condition has "
        f"more cells; {n_simulations} simulations:",
        "",
        "| donors a side | times the cells | p < .05, types of 10 cells or more | p < .05, rarer |",
        "|---|---|---|---|",
    ]
    for size in SIZES:
        design = np.column_stack([np.repeat([1.0, 0.0], size), np.ones(2 * size)])
        for ratio in (1, 5, 20):
            rng = np.random.default_rng((size, ratio))
            found: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(n_simulations):
                share = rng.dirichlet(np.full(12, 0.6))
                totals = rng.lognormal(5.5, 0.4, 2 * size) * np.repeat([ratio, 1], size)
                counts = np.array(
                    [rng.multinomial(int(n), rng.dirichlet(60 * share + 1e-12)) for n in totals]
                )
                p_value = compare_samples(*log_odds_of_counts(counts), design).p_value
                for some in (True, False):
                    found[some] += list(p_value[(counts.sum(axis=0) >= 10) == some])
            rates = [f"{(np.array(found[some]) < 0.05).mean():.3f}" for some in (True, False)]
            lines.append(f"| {size} | {ratio} | {rates[0]} | {rates[1]} |")
    lines.append("")
    lines.append("The table of `differential_abundance` does not test the rarer ones.")
    return lines


def cost() -> list[str]:
    """Return the processor time of a comparison of 16 types over 2 x 10 samples, of 50,000 cells."""
    mdata = totalvi.simulate(
        50_000, 500, 40, n_cell_types=16, n_isotype_controls=0, seed=0, store_truth=False
    )
    rng = np.random.default_rng(0)
    donor, case = rng.integers(10, size=mdata.n_obs), rng.random(mdata.n_obs) < 0.5
    mdata.obs["condition"] = np.where(case, "case", "control")
    mdata.obs["donor"] = [f"{k}_{c}" for k, c in zip(donor, mdata.obs["condition"], strict=True)]
    model = totalvi.Model(mdata, isotype_controls=())
    model.train(max_epochs=1, progress=False)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        model.differential_expression(
            groupby="cell_type", condition_key="condition", sample_key="donor", progress=False
        )
        seconds.append(time.process_time() - started)
    return [
        "",
        "16 cell types, 2 conditions, 10 donors each, 50,000 cells, 500 genes, 40 proteins: "
        f"{min(seconds):.1f} to {max(seconds):.1f} s of processor time in 3 runs.",
    ]


def real(path: Path) -> list[str]:
    """Return what the package says of the two donors of the bone marrow data."""
    mdata = totalvi.read(path)
    obs = mdata["rna"].obs.rename(columns=lambda name: name.removeprefix("rna:"))
    mdata.obs["donor"] = obs["batch"].astype(str).to_numpy()
    lymphoid = obs["cell_type"].astype(str).str.contains(r"\bT\b|NK|MAIT").to_numpy()
    mdata.obs["lineage"] = np.where(lymphoid, "T and NK", "other")
    model = totalvi.Model(mdata, n_hidden=64, n_latent=10)
    model.train(max_epochs=40, progress=False)
    ask = {"sample_key": "donor", "progress": False}
    try:
        model.differential_expression(condition_key="donor", **ask)
        said = "compared"
    except totalvi.errors.DataError as error:
        said = str(error)
    table = model.differential_expression(groupby="lineage", group1="T and NK", **ask)
    called = int(table["is_de_fdr_0.05"].sum())
    cells = model.differential_expression(groupby="lineage", group1="T and NK", progress=False)
    return [
        "",
        f'Bone marrow, {mdata.n_obs} cells of two donors. The donors as conditions: "{said}" T and NK '
        f"cells against all others, within both donors: {called} of {table['p_value'].notna().sum()} "
        f"tests called over donors ({table['df'].median():.1f} degrees of freedom), "
        f"{int(cells['is_de_fdr_0.05'].sum())} of these cells alone.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS))
    parser.add_argument("--batch", default="donor", help="Key of the batches, or none.")
    parser.add_argument("--cache", type=Path)
    parser.add_argument(
        "--real", type=Path, default=ROOT.parent / "shared" / "data" / "bmmc_134proteins.h5mu"
    )
    given = parser.parse_args()
    batch_key = None if given.batch == "none" else given.batch
    warnings.simplefilter("ignore")
    rows = [
        row
        for seed in range(1, given.seeds + 1)
        for generator in given.generators
        for row in measure(generator, seed, batch_key, given.cache)
    ]
    null = [
        row
        for seed in range(101, given.seeds + 101)
        for generator in given.generators
        for row in measure(generator, seed, batch_key, given.cache, effects=False)
    ]
    RESULTS.mkdir(exist_ok=True)
    found = {"effects": rows, "null": null}
    (RESULTS / "donors.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    table = pd.DataFrame(rows)
    lines = summary(table) + power_gained(table) + without_effects(pd.DataFrame(null))
    lines += abundance(300) + rare_types(300) + cost()
    if given.real.exists():
        lines += real(given.real)
    (RESULTS / "donors.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
