"""The table of differential expression: one row a comparison and feature."""

import numpy as np
import pandas as pd

from totalvi.posterior.differential.comparison import Differences
from totalvi.posterior.differential.groups import Groups
from totalvi.posterior.differential.raw_counts import RawCounts

_SMALLEST = 1e-12


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), the Bayes factor under even prior odds, kept finite.

    Examples
    --------
    >>> import numpy as np
    >>> log_odds(np.array([0.5, 1.0])).round(1)
    array([ 0. , 27.6])
    """
    p = np.clip(probability, _SMALLEST, 1 - _SMALLEST)
    return np.log(p) - np.log1p(-p)


def expected_fdr_calls(proba_not: np.ndarray, target: float) -> np.ndarray:
    """Call as many features as keep the posterior expected false discovery rate within ``target``.

    The expected rate of a set of calls is the mean of their ``proba_not``, so the likeliest features
    are called first (Boyeau et al., "Deep generative models for detecting differential expression in
    single cells", 2019). Features without a probability (NaN) are never called.

    Examples
    --------
    >>> import numpy as np
    >>> expected_fdr_calls(np.array([0.3, 0.0, 0.08, np.nan]), 0.05).tolist()
    [False, True, True, False]
    """
    order = np.argsort(proba_not, kind="stable")  # NaN last
    rate = np.cumsum(proba_not[order]) / np.arange(1, len(order) + 1)
    calls = np.zeros(len(order), dtype=bool)
    calls[order[: int((rate <= target).sum())]] = True
    return calls


def differential_table(
    found: Differences,
    groups: Groups,
    gene_names: np.ndarray,
    protein_names: np.ndarray,
    raw: RawCounts | None,
    mode: str,
    fdr_target: float,
) -> pd.DataFrame:
    """Return the table that `Model.differential_expression` documents."""
    names = np.concatenate([gene_names, protein_names])
    modality = np.repeat(["rna", "protein"], [len(gene_names), len(protein_names)])
    tables = []
    for number, (first, second) in enumerate(groups.names):
        columns: dict[str, object] = {
            "comparison": f"{first} vs {second}",
            "group1": first,
            "group2": second,
            "modality": modality,
        }
        columns |= _probabilities(found, number, mode, fdr_target)
        if raw is not None:
            parts = groups.comparisons[number]
            for place, group in enumerate(parts, start=1):
                mean, fraction = raw.of(group)
                columns |= {f"raw_mean{place}": mean, f"non_zeros_proportion{place}": fraction}
        table = pd.DataFrame(columns, index=pd.Index(names, name="feature"))
        tables.append(table.iloc[_order(found, number, mode)])
    table = pd.concat(tables)
    for column in ("comparison", "group1", "group2", "modality"):
        table[column] = pd.Categorical(table[column], categories=list(dict.fromkeys(table[column])))
    return table


def _probabilities(
    found: Differences, number: int, mode: str, fdr_target: float
) -> dict[str, object]:
    effects = found.effects
    scales = {"scale1": found.first_scale[number], "scale2": found.second_scale[number]}
    pseudocounts = {"pseudocounts": found.pseudocount[number]}
    if mode == "vanilla":
        above = effects.above[number]
        return {
            "proba_m1": above,
            "proba_m2": 1 - above,
            "bayes_factor": log_odds(above),
            **scales,
            **pseudocounts,
        }
    beyond = effects.beyond[number]
    return {
        "proba_de": beyond,
        "proba_not_de": 1 - beyond,
        "bayes_factor": log_odds(beyond),
        **scales,
        "lfc_mean": effects.mean[number],
        "lfc_median": effects.median[number],
        "lfc_std": effects.sd[number],
        "lfc_ci_low": effects.low[number],
        "lfc_ci_high": effects.high[number],
        "delta": found.delta[number],
        **pseudocounts,
        f"is_de_fdr_{fdr_target:g}": expected_fdr_calls(1 - beyond, fdr_target),
    }


def _order(found: Differences, number: int, mode: str) -> np.ndarray:
    """Return the likeliest first, the larger effect first among equals; NaN last."""
    effects = found.effects
    if mode == "vanilla":
        return np.argsort(-effects.above[number], kind="stable")
    beyond = effects.beyond[number].round(6)
    return np.lexsort([-np.abs(effects.median[number]), -beyond])
