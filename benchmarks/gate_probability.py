"""Measure whether the probability that a cell lies in a drawn gate is calibrated.

    python benchmarks/gate_probability.py SHARED --seeds 0 1 2 --cache folder

SHARED is the folder whose `data` has real counts. Each antibody has gates of denoised counts from the
25 %, 50 % and 75 % quantile of its stained cells, and one of foreground probabilities from 0.5; each of
the 20 most frequent genes has one of denoised counts from its median. The probability of a gate is the
share of 200 draws from the posterior inside (`feature_draws.draw_features`, as the explorer's
*Probability*); "rate at its mean" is the probability as it was before: the rate of a stained protein
was its posterior mean given z, and a gate of foreground probabilities held a cell where
P(foreground | z, y) is in it.

- Simulated: `totalvi.simulate`, 4,000 cells, 20 antibodies. A cell is in a gate if its true value is:
  the true rate of its counts is drawn given the true mean and the count, which is exact.
- Real: each protein count is split in two at random. The model is fitted to RNA and the first half. (a)
  The other half: does its count reach the gate's threshold? Given the rate it is a Poisson count, so
  that the prediction is the mean probability of that over the draws. Nothing of the model is used for
  the answer. (b) All counts: the probability of the same gate by a model of RNA and all counts. What is
  known from more must on average agree with what is predicted from less.

"Error" is the mean distance between mean probability and share inside over ten bins, weighted by their
sizes; "undecided" the share of cells and gates with a probability between 0.05 and 0.95, and "error of
undecided" that error among these alone; "Brier" the mean squared error. Cells and gates of all seeds
together.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse, stats

import totalvi
from totalvi.posterior.gates.feature_draws import FeatureDraws, draw_features

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUANTILES = (0.25, 0.5, 0.75)
N_SAMPLES, N_GENES, N_BINS = 25, 20, 10
NOW, BEFORE = "now", "rate at its mean"


class Answers(NamedTuple):
    """Probabilities and what is so, of cells in the gates of one kind.

    Attributes
    ----------
    kind
        What is gated.
    how
        By which the probability is computed.
    probability, inside
        (cells, gates); what is so is True or False, or a probability.
    """

    kind: str
    how: str
    probability: np.ndarray
    inside: np.ndarray


class Drawn(NamedTuple):
    """Draws as they are now, and samples of the latent state as they were."""

    now: FeatureDraws
    before: FeatureDraws


def dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values)


def fitted(mdata: MuData, path: Path, seed: int) -> totalvi.Model:
    if path.exists():
        return totalvi.Model.load(path, mdata)
    model = totalvi.Model(mdata, seed=seed)
    model.train(progress=False)
    model.save(path)
    return model


def drawn_of(model: totalvi.Model, genes: list[str]) -> Drawn:
    names = list(model.schema.protein_names)
    asked: dict[str, Any] = {"n_samples": N_SAMPLES, "return_mean": False, "progress": False}
    share, rate = model.get_normalized_expression(
        gene_list=genes, sample_protein_mixing=True, **asked
    )
    probability = np.asarray(model.get_protein_foreground_probability(**asked))
    foreground = (probability >= 0.5).astype(np.float32)
    before = FeatureDraws(share, rate, foreground, probability[:1].astype(np.float32))
    return Drawn(draw_features(model, None, genes, names, N_SAMPLES), before)


def thresholds(model: totalvi.Model) -> np.ndarray:
    """Return quantiles of the denoised counts of stained cells, (quantiles, proteins); NaN: too few."""
    asked: dict[str, Any] = {"n_samples": N_SAMPLES, "progress": False, "return_numpy": True}
    _, level = model.get_normalized_expression(gene_list=[], **asked)
    stained = np.asarray(model.get_protein_foreground_probability(**asked)) > 0.5
    found = np.full((len(QUANTILES), level.shape[1]), np.nan)
    for protein in np.flatnonzero(stained.sum(axis=0) >= 50):
        found[:, protein] = np.quantile(level[stained[:, protein], protein], QUANTILES)
    return found


def simulated(seed: int, cache: Path) -> Iterator[Answers]:
    """Yield answers about simulated cells, whose values are known."""
    mdata = totalvi.simulate(n_cells=4000, n_genes=800, n_proteins=20, seed=seed)
    prot, rna = mdata["prot"], mdata["rna"]
    genes = [str(rna.var_names[i]) for i in np.argsort(-dense(rna.X.sum(axis=0)).ravel())[:N_GENES]]
    model = fitted(mdata.copy(), cache / f"simulated_{seed}.totalvi", seed)
    columns = prot.var_names.get_indexer(list(model.schema.protein_names))
    counts, mean = dense(prot.X)[:, columns], prot.layers["denoised"][:, columns]
    r = prot.var["inverse_dispersion"].to_numpy()[columns]
    rng = np.random.default_rng([seed, 11])
    rate = rng.gamma(r + counts, 1 / (1 + r / np.maximum(mean, 1e-9)))
    stained = prot.layers["foreground"][:, columns] == 1
    rate[~stained] = 0
    share = rna[:, genes].layers["denoised"]
    limits, drawn = thresholds(model), drawn_of(model, genes)
    for how, (shares, rates, foreground, _) in zip((NOW, BEFORE), drawn, strict=True):
        for k, quantile in enumerate(QUANTILES):
            told = np.isfinite(limits[k])
            inside = (rates >= limits[k]).mean(axis=0)
            kind = f"simulated: denoised protein, from {quantile:.0%}"
            yield Answers(kind, how, inside[:, told], (rate >= limits[k])[:, told])
        yield Answers("simulated: foreground", how, foreground.mean(axis=0), stained)
        middle = np.median(share, axis=0)
        inside = (shares >= middle).mean(axis=0)
        yield Answers("simulated: denoised gene", how, inside, share >= middle)


def real(name: str, mdata: MuData, seed: int, cache: Path) -> Iterator[Answers]:
    """Yield answers about cells whose protein counts are split in two."""
    rng = np.random.default_rng([seed, 12])
    counts = dense(mdata["prot"].X).astype(int)
    first = rng.binomial(counts, 0.5)
    half, whole = mdata.copy(), mdata.copy()
    half["prot"].X, whole["prot"].X = first.astype(np.float32), counts.astype(np.float32)
    stem = name.replace(" ", "_")
    model = fitted(half, cache / f"{stem}_half_{seed}.totalvi", seed)
    of_all = fitted(whole, cache / f"{stem}_whole_{seed}.totalvi", seed)
    columns = mdata["prot"].var_names.get_indexer(list(model.schema.protein_names))
    other = (counts - first)[:, columns]
    known = of_all.schema.protein_names
    same = [known.index(protein) for protein in model.schema.protein_names]
    limits, drawn = thresholds(model), drawn_of(model, [])
    _, rates_of_all, foreground_of_all, _ = drawn_of(of_all, []).now
    for how, (_, rates, foreground, _) in zip((NOW, BEFORE), drawn, strict=True):
        for k, quantile in enumerate(QUANTILES):
            told, limit = np.isfinite(limits[k]), np.ceil(limits[k])
            reaches = np.mean([stats.poisson.sf(limit - 1, rate) for rate in rates], axis=0)
            kind = f"{name}, other half: denoised protein, from {quantile:.0%}"
            yield Answers(kind, how, reaches[:, told], (other >= limit)[:, told])
            probability = (rates >= limits[k]).mean(axis=0)
            reference = (rates_of_all[:, :, same] / 2 >= limits[k]).mean(axis=0)
            kind = f"{name}, all counts: denoised protein, from {quantile:.0%}"
            yield Answers(kind, how, probability[:, told], reference[:, told])
        probability, reference = (f.mean(axis=0) for f in (foreground, foreground_of_all))
        yield Answers(f"{name}, all counts: foreground", how, probability, reference[:, same])


def read(shared: Path, name: str) -> MuData:
    file = {"PBMC10k": "pbmc10k.h5mu", "bone marrow": "bmmc_134proteins.h5mu"}[name]
    return totalvi.read(shared / "data" / file)


def bins_of(probability: np.ndarray, inside: np.ndarray) -> pd.DataFrame:
    """Return cells and gates, mean probability and share inside of ten bins."""
    number = np.minimum((N_BINS * probability).astype(int), N_BINS - 1)
    table = pd.DataFrame({"bin": number, "probability": probability, "inside": inside})
    return table.groupby("bin").agg(
        n=("inside", "size"), probability=("probability", "mean"), inside=("inside", "mean")
    )


def error_of(bins: pd.DataFrame) -> float:
    return float(np.average((bins["probability"] - bins["inside"]).abs(), weights=bins["n"]))


def summary(answers: list[Answers], n_seeds: int) -> dict[str, Any]:
    """Return the figures of the answers of one kind, computed in one way."""
    probability = np.concatenate([a.probability.ravel() for a in answers]).astype(float)
    inside = np.concatenate([a.inside.ravel() for a in answers]).astype(float)
    undecided = (probability > 0.05) & (probability < 0.95)
    bins = bins_of(probability, inside)
    return {
        "seeds": n_seeds,
        "n": len(probability),
        "error": error_of(bins),
        "undecided": float(undecided.mean()),
        "error of undecided": error_of(bins_of(probability[undecided], inside[undecided])),
        "Brier": float(((probability - inside) ** 2).mean()),
        "bins": bins.reset_index().to_dict("records"),
    }


def report(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the results as Markdown."""
    names = ("error", "undecided", "error of undecided", "Brier")
    lines = ["# Probability of a gate", "", (__doc__ or "").partition("\n\n")[2].strip(), ""]
    lines += [
        f"| gates | probability | seeds | cells and gates | {' | '.join(names)} |",
        "|---|" + "---|" * 7,
    ]
    for kind, ways in found.items():
        for how, of in ways.items():
            figures = " | ".join(f"{of[name]:.3f}" for name in names)
            lines.append(f"| {kind} | {how} | {of['seeds']} | {of['n']:,} | {figures} |")
    lines += [
        "",
        "## Reliability",
        "",
        "Mean probability → share inside, by bin; - : no cells.",
        "",
    ]
    ends = [f"{k / N_BINS:.1f}" for k in range(N_BINS)]
    lines += [f"| gates | probability | {' | '.join(ends)} |", "|---|" + "---|" * (N_BINS + 1)]
    for kind, ways in found.items():
        for how, of in ways.items():
            by_bin = {int(b["bin"]): b for b in of["bins"]}
            cells = [
                f"{by_bin[k]['probability']:.2f} → {by_bin[k]['inside']:.2f}"
                if k in by_bin
                else "-"
                for k in range(N_BINS)
            ]
            lines.append(f"| {kind} | {how} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", nargs="*", default=["simulated", "PBMC10k", "bone marrow"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    given.cache.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "gate_probability.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in given.data:
        answers: dict[tuple[str, str], list[Answers]] = {}
        for seed in given.seeds:
            of_seed = (
                simulated(seed, given.cache)
                if name == "simulated"
                else real(name, read(given.shared, name), seed, given.cache)
            )
            for answer in of_seed:
                answers.setdefault((answer.kind, answer.how), []).append(answer)
        for (kind, how), some in answers.items():
            found.setdefault(kind, {})[how] = summary(some, len(given.seeds))
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        RESULTS.joinpath("gate_probability.md").write_text(report(found), encoding="utf-8")


if __name__ == "__main__":
    main()
