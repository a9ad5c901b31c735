"""Tables of differential expression: of groups of these cells, and of groups over samples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from totalvi.compiled import compiled
from totalvi.data.cells import CiteData
from totalvi.posterior.differential.comparison import Differences
from totalvi.posterior.differential.groups import Groups
from totalvi.posterior.differential.sample_comparison import SampleDifferences

_SMALLEST_PROBABILITY = 1e-12
_SUREST_NOT = 0.5  # a feature that is likelier not to differ is not called

OF_THESE_CELLS = (
    "Inference is about these cells. Whether other samples (donors) of the same groups would differ is "
    "not asked; sample_key asks that."
)
OF_SAMPLES = (
    "Inference is about the populations that the samples were drawn from, by how much samples of a "
    "group differ."
)


class RawCounts(NamedTuple):
    """Sums over the cells of each group, each (groups, genes + proteins).

    Parameters
    ----------
    n_cells
        Cells whose panel measured the feature.
    total
        Of the raw counts.
    n_expressing
        Cells with a count.
    """

    n_cells: np.ndarray
    total: np.ndarray
    n_expressing: np.ndarray

    def of(self, groups: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean count and the expressing fraction of several groups as one; NaN: no cell."""
        n_cells, total, n_expressing = (part[list(groups)].sum(axis=0) for part in self)
        n_cells = np.where(n_cells > 0, n_cells, np.nan)
        return total / n_cells, n_expressing / n_cells


def differential_table(
    found: Differences,
    groups: Groups,
    gene_names: np.ndarray,
    protein_names: np.ndarray,
    raw: RawCounts | None,
    mode: str,
    fdr_target: float | None,
) -> pd.DataFrame:
    """Return the table that `Model.differential_expression` documents.

    ``fdr_target`` None: how cells differ is no statement on a discovery, so nothing is called.
    """
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
        columns |= _raw(raw, groups, number)
        table = pd.DataFrame(columns, index=pd.Index(names, name="feature"))
        tables.append(table.iloc[_order(found, number, mode)])
    return _joined(tables, OF_THESE_CELLS)


def _raw(raw: RawCounts | None, groups: Groups, number: int) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    if raw is not None:
        for place, group in enumerate(groups.comparisons[number], start=1):
            mean, fraction = raw.of(group)
            columns |= {f"raw_mean{place}": mean, f"non_zeros_proportion{place}": fraction}
    return columns


def _joined(tables: Sequence[pd.DataFrame], inference: str) -> pd.DataFrame:
    table = pd.concat(tables)
    for column in ("comparison", "within", "group1", "group2", "modality"):
        if column in table:
            names = list(dict.fromkeys(table[column]))
            table[column] = pd.Categorical(table[column], categories=names)
    table.attrs["inference"] = inference
    return table


def sample_table(
    found: Sequence[SampleDifferences],
    groups: Groups,
    within: Sequence[str] | None,
    gene_names: np.ndarray,
    protein_names: np.ndarray,
    raw: RawCounts | None,
    fdr_target: float,
) -> pd.DataFrame:
    """Return the table of comparisons over samples that `Model.differential_expression` documents."""
    names = np.concatenate([gene_names, protein_names])
    modality = np.repeat(["rna", "protein"], [len(gene_names), len(protein_names)])
    p_values = [result.found.p_value for result in found]
    p_adjusted = np.split(adjusted(np.concatenate(p_values)), len(found))
    tables = []
    for number, (result, (first, second)) in enumerate(zip(found, groups.names, strict=True)):
        low, high = result.found.interval()
        columns: dict[str, object] = {
            "comparison": comparison_name(groups, within, number),
            **({} if within is None else {"within": within[number]}),
            "group1": first,
            "group2": second,
            "modality": modality,
            "lfc_mean": result.found.effect,
            "lfc_se": result.found.error,
            "lfc_ci_low": low,
            "lfc_ci_high": high,
            "df": result.found.df,
            "df_residual": result.found.residual_df,
            "p_value": p_values[number],
            "p_adjusted": p_adjusted[number],
            f"is_de_fdr_{fdr_target:g}": p_adjusted[number] <= fdr_target,
            "sample_sd": result.found.sample_sd,
            "n_samples1": result.n_samples[0],
            "n_samples2": result.n_samples[1],
            "design": result.design,
            "scale1": result.first_scale,
            "scale2": result.second_scale,
            "pseudocounts": result.pseudocount,
            **_raw(raw, groups, number),
        }
        table = pd.DataFrame(columns, index=pd.Index(names, name="feature"))
        order = np.lexsort([-np.abs(result.found.effect), p_values[number]])
        tables.append(table.iloc[order])
    return _joined(tables, OF_SAMPLES)


def comparison_name(groups: Groups, within: Sequence[str] | None, number: int) -> str:
    """Return the name of a comparison, such as "case vs control in B cells"."""
    first, second = groups.names[number]
    place = "" if within is None or not within[number] else f" in {within[number]}"
    return f"{first} vs {second}{place}"


def levels_table(
    found: Sequence[SampleDifferences],
    groups: Groups,
    within: Sequence[str] | None,
    gene_names: np.ndarray,
    protein_names: np.ndarray,
) -> pd.DataFrame:
    """Return the level of each sample, one row for each comparison, sample and group."""
    features = pd.MultiIndex.from_arrays(
        [
            np.repeat(["rna", "protein"], [len(gene_names), len(protein_names)]),
            np.concatenate([gene_names, protein_names]),
        ],
        names=["modality", "feature"],
    )
    parts = []
    for number, result in enumerate(found):
        units = result.units.assign(comparison=comparison_name(groups, within, number))
        index = pd.MultiIndex.from_frame(units[["comparison", "group", "sample", "n_cells"]])
        parts.append(pd.DataFrame(result.levels, index=index, columns=features))
    return pd.concat(parts)


def _probabilities(
    found: Differences, number: int, mode: str, fdr_target: float | None
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
    calls, unshrunk = {}, {}
    if fdr_target is not None:
        calls = {f"is_de_fdr_{fdr_target:g}": expected_fdr_calls(1 - beyond, fdr_target)}
    if found.estimate is not None and found.error is not None:
        unshrunk = {
            "lfc_unshrunk": found.estimate[number],
            "lfc_unshrunk_se": found.error[number],
        }
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
        **unshrunk,
        "delta": found.delta[number],
        **pseudocounts,
        **calls,
    }


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), the Bayes factor under even prior odds, kept finite.

    Examples
    --------
    >>> import numpy as np
    >>> log_odds(np.array([0.5, 1.0])).round(1)
    array([ 0. , 27.6])
    """
    p = np.clip(probability, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    odds: np.ndarray = np.log(p) - np.log1p(-p)
    return odds


def expected_fdr_calls(proba_not: np.ndarray, target: float) -> np.ndarray:
    """Call as many features as keep the posterior expected false discovery rate within ``target``.

    The expected rate of a set of calls is the mean of their ``proba_not``, so the likeliest features
    are called first (Boyeau et al., "Deep generative models for detecting differential expression in
    single cells", 2019). Many sure calls would leave room for some that are likelier wrong than right;
    these are not called, nor are features without a probability (NaN).

    Examples
    --------
    >>> import numpy as np
    >>> expected_fdr_calls(np.array([0.3, 0.0, 0.08, np.nan]), 0.05).tolist()
    [False, True, True, False]
    """
    order = np.argsort(proba_not, kind="stable")  # NaN comes last
    rate = np.cumsum(proba_not[order]) / np.arange(1, len(order) + 1)
    calls = np.zeros(len(order), dtype=bool)
    calls[order[: int((rate <= target).sum())]] = True
    calls &= proba_not <= _SUREST_NOT
    return calls


def _order(found: Differences, number: int, mode: str) -> np.ndarray:
    """Return the likeliest first, the larger effect first among equals; NaN last."""
    effects = found.effects
    if mode == "vanilla":
        return np.argsort(-effects.above[number], kind="stable")
    beyond = effects.beyond[number].round(6)
    return np.lexsort([-np.abs(effects.median[number]), -beyond])


def raw_counts(data: CiteData, group: np.ndarray, n_groups: int) -> RawCounts:
    """Sum the counts of the cells of each group.

    Parameters
    ----------
    group
        Of each cell, (N,); -1: none.
    """
    n_genes, n_proteins = data.rna.shape[1], data.protein.shape[1]
    total, n_expressing = (np.zeros((n_groups, n_genes)) for _ in range(2))
    for start, rna in data.rna.blocks():
        rows = slice(start, start + rna.shape[0])
        _add_rows(rna.indptr, rna.indices, rna.data, group[rows], total, n_expressing)
    n_measured, protein_total, n_positive = (np.zeros((n_groups, n_proteins)) for _ in range(3))
    by_panel = np.array(data.schema.panel_measured)
    for start, protein in data.protein.blocks():
        codes = group[start : start + len(protein)]
        used = np.flatnonzero(codes >= 0)
        membership = np.zeros((n_groups, len(used)))
        membership[codes[used], np.arange(len(used))] = 1
        measured = by_panel[data.panel[start + used]]
        counts = np.where(measured, protein[used], 0)  # because what a panel lacks may be filled in
        n_measured += membership @ measured
        protein_total += membership @ counts
        n_positive += membership @ (counts > 0)
    n_cells = np.bincount(group[group >= 0], minlength=n_groups).astype(np.float64)[:, None]
    return RawCounts(
        np.hstack([np.broadcast_to(n_cells, total.shape), n_measured]),
        np.hstack([total, protein_total]),
        np.hstack([n_expressing, n_positive]),
    )


@compiled()
def _add_rows(
    pointer: np.ndarray,
    gene: np.ndarray,
    counts: np.ndarray,
    group: np.ndarray,
    total: np.ndarray,
    n_expressing: np.ndarray,
) -> None:
    for cell in range(len(group)):
        k = group[cell]
        if k < 0:
            continue
        for i in range(pointer[cell], pointer[cell + 1]):
            total[k, gene[i]] += counts[i]
            n_expressing[k, gene[i]] += counts[i] > 0


def adjusted(p_value: np.ndarray) -> np.ndarray:
    """Return p-values adjusted by Benjamini and Hochberg (JRSS B 1995); NaN takes no part.

    Examples
    --------
    >>> adjusted(np.array([0.01, np.nan, 0.5])).tolist()
    [0.02, nan, 0.5]
    """
    result = np.full(len(p_value), np.nan)
    known = ~np.isnan(p_value)
    if known.any():
        result[known] = false_discovery_control(p_value[known])
    return result
