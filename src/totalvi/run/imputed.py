"""What is imputed in a query: proteins and RNA with their reliability, the files, and what to note."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.errors import DataError, listed
from totalvi.progress import Steps
from totalvi.run.impute_inputs import BATCH, PANEL, QUERY, in_query, without_rna

_LIMITS = ("lower", "upper")
LEVEL_NOTE = (
    "imputed counts are as the reference measured them: ranks hold elsewhere, levels may not."
)


def level_notes(levels: pd.DataFrame) -> list[str]:
    """Say at which level counts of a query's batches are imputed.

    Parameters
    ----------
    levels
        Of `ImputedProteins`, the query's batches alone.

    Examples
    --------
    >>> index = pd.MultiIndex.from_tuples([("query", "donor_1")], names=["batch", "decoded"])
    >>> told = {"level": [0.31], "lower": [0.2], "upper": [0.5], "n_proteins": [3]}
    >>> level_notes(pd.DataFrame(told, index=index))[0][:66]
    'imputed counts of "query" are at its own level, 0.31 (0.2 to 0.5) '
    """
    batch, decoded = (levels.index.get_level_values(name) for name in ("batch", "decoded"))
    over_itself = (batch == decoded) & (levels["n_proteins"] == 0)
    logs = levels.loc[~over_itself, ["level", "lower", "upper"]].transform(np.log)
    by_batch = logs.groupby(level="batch", sort=False).mean().transform(np.exp)
    known = by_batch.dropna()
    if known.empty:
        return [LEVEL_NOTE]
    each = [
        f'"{name}" {"are at its own level, " * (i == 0)}{level:.2g} ({lower:.2g} to {upper:.2g})'
        for i, (name, level, lower, upper) in enumerate(known.itertuples())
    ]
    notes = [f"imputed counts of {', of '.join(each)} times what is expected of the reference."]
    if len(known) < len(by_batch):
        others = map(str, by_batch.index.difference(known.index))
        notes.append(f"of {listed(others)}, {LEVEL_NOTE}")
    return notes


def unreliable_warnings(reliability: pd.DataFrame, at_most: int = 8) -> list[str]:
    """Return a warning with the unreliable proteins, worst first.

    Examples
    --------
    >>> table = pd.DataFrame(
    ...     {"pearson": [0.9, 0.42], "reliable": [True, False]}, index=["CD3", "CD15"]
    ... )
    >>> unreliable_warnings(table)
    ['1 of 2 proteins cannot be trusted (Pearson not surely 0.7, or 0 within clusters): CD15 (0.42).']
    """
    poor = reliability[~reliability["reliable"]].sort_values("pearson")
    if not len(poor):
        return []
    named = ", ".join(
        f"{name} ({value:.2f})" for name, value in poor["pearson"].iloc[:at_most].items()
    )
    if len(poor) > at_most:
        named += f" and {len(poor) - at_most} more, see tables/reliability.csv"
    return [
        f"{len(poor)} of {len(reliability)} proteins cannot be trusted (Pearson "
        f"not surely 0.7, or 0 within clusters): {named}."
    ]


NOT_TOLD = (
    "how well RNA is predicted is not known, since too few cells that the fit held out have both RNA "
    "and proteins; it is predicted by the model alone."
)


class ImputedOfQuery(NamedTuple):
    """Imputed proteins of the query, with their reliability in ``var``, and levels of its batches."""

    adata: AnnData
    levels: pd.DataFrame


def imputed_proteins(
    model: Any, query: Any, mdata: MuData, lacking: np.ndarray, n_samples: int, interval: float,
    steps: Steps,
) -> ImputedOfQuery:  # fmt: skip
    """Impute proteins in the cells of the query that lack some of them.

    Parameters
    ----------
    model, query
        The fit of the reference and the query mapped on it, or that of both and None.
    mdata
        Reference and query.
    lacking
        Which proteins these are, bool.
    n_samples, interval
        Of `totalvi.Model.impute_proteins`.
    steps
        To which the time is added.
    """
    names = list(mdata["prot"].var_names[lacking])
    of_query = in_query(mdata)
    cells = of_query & np.isnan(mdata["prot"].X[:, lacking]).any(axis=1)
    question: dict[str, Any] = {
        "protein_list": names,
        "n_samples": n_samples,
        "interval": interval,
        "progress": False,
    }
    if query is None:
        answering, indices = model, cells
        reliability_of, imputed_by = model.get_imputation_reliability, model.impute_proteins
    else:
        answering, indices = query, cells[of_query]
        reliability_of = partial(model.get_query_reliability, query)
        imputed_by = partial(model.impute_query, query)
    with steps.step("reliability"):
        by_panel = reliability_of(**question)
        # the batches of a query that all lack the protein are alike but for their cells
        reliability = by_panel.loc[_panels(answering, indices)]
        reliability = reliability.groupby("protein", sort=False).mean().loc[names]
        flags = [name for name in ("reliable", "model_is_best") if name in reliability]
        reliability = reliability.assign(**(reliability[flags] == 1))
    with steps.step("impute"):
        imputed = imputed_by(indices=indices, **question)
        latent = answering.get_latent_representation(indices=indices, progress=False)
    own_batches = mdata.obs[BATCH].astype(str)[cells].unique()
    levels = imputed.levels[imputed.levels.index.get_level_values("batch").isin(own_batches)]
    layers = ("sd", "log1p", *_LIMITS, "foreground_probability")
    adata = AnnData(
        imputed.mean.to_numpy(),
        obs=_obs(mdata, cells),
        var=reliability,
        layers={name: getattr(imputed, name).to_numpy() for name in layers},
        obsm={"X_totalvi": latent},
        uns={
            "totalvi": {
                "X": "expected counts with background",
                "interval": interval,
                "levels": levels.reset_index(),
            }
        },
    )
    return ImputedOfQuery(adata, levels)


def imputed_rna(
    model: Any, mdata: MuData, n_samples: int, interval: float, steps: Steps
) -> AnnData:
    """Impute the RNA of cells of the query that have none; arguments are as in `imputed_proteins`."""
    cells = without_rna(mdata)
    question: dict[str, Any] = {"n_samples": n_samples, "interval": interval, "progress": False}
    with steps.step("reliability of RNA"):
        reliability = _rna_reliability(model, cells, question)
    with steps.step("impute RNA"):
        imputed = model.impute_rna(indices=cells, **question)
        latent = model.get_latent_representation(indices=cells, progress=False)
    return AnnData(
        imputed.mean.to_numpy(dtype=np.float32),
        obs=_obs(mdata, cells),
        var=reliability,
        layers={
            name: getattr(imputed, name).to_numpy(dtype=np.float32) for name in ("log1p", *_LIMITS)
        },
        obsm={"X_totalvi": latent},
        uns={"totalvi": {"X": "expected counts at the usual library size", "interval": interval}},
    )


def _rna_reliability(model: Any, cells: np.ndarray, question: dict[str, Any]) -> pd.DataFrame:
    """Return the reliability of each gene; without columns where too few cells have both to tell."""
    genes = pd.Index(model.schema.gene_names, name="gene")
    try:
        by_panel = model.get_rna_reliability(**question)
    except DataError:  # of too few cells, by which `impute_rna` lets the model alone predict
        return pd.DataFrame(index=genes)
    known = by_panel.index.get_level_values("panel").isin(_panels(model, cells))
    if not known.any():
        return pd.DataFrame(index=genes)
    reliability: pd.DataFrame = by_panel[known].groupby("gene", sort=False).mean().loc[genes]
    return reliability.assign(model_is_best=reliability["model_is_best"] == 1)


def _panels(model: Any, cells: np.ndarray) -> list[str]:
    """Return the names of the panels of some cells, (N,) bool."""
    names = np.array(model.schema.panel_names or model.schema.batch_names, dtype=object)
    return list(pd.unique(names[model._training_data().panel[cells]]))


def write_imputed(proteins: ImputedOfQuery | None, rna: AnnData | None, folder: Path) -> None:
    """Write what was imputed, and the tables of proteins and of reliability."""
    tables = folder / "tables"
    tables.mkdir()
    if proteins is not None:
        adata = proteins.adata
        adata.to_df().to_csv(tables / "mean.csv.gz", float_format="%.5g")
        for layer in adata.layers:
            adata.to_df(layer).to_csv(tables / f"{layer}.csv.gz", float_format="%.5g")
        adata.var.to_csv(tables / "reliability.csv", float_format="%.4g")
        proteins.levels.to_csv(tables / "levels.csv", float_format="%.4g")
        adata.write_h5ad(folder / "imputed.h5ad", compression="gzip")
    if rna is not None:
        rna.var.to_csv(tables / "rna_reliability.csv", float_format="%.4g")
        rna.write_h5ad(folder / "imputed_rna.h5ad", compression="gzip")


def _obs(mdata: MuData, cells: np.ndarray) -> pd.DataFrame:
    """Return the annotation of cells of the query, as it was given."""
    obs: pd.DataFrame = mdata.obs[cells].drop(columns=[BATCH, PANEL])
    obs.index = obs.index.str.removesuffix(f"-{QUERY}")
    return obs
