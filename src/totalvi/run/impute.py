"""Impute the proteins of a query from a reference, from files to a folder of results."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.io.read import ReadOptions
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import DataError, listed, setting, warnings_and_notes
from totalvi.progress import Steps
from totalvi.run.folder import (
    RECORD,
    RunResult,
    WriteOptions,
    files_in,
    finished,
    holds_this_run,
    refuse_input_in_output,
    require_writable,
    results_folder,
)
from totalvi.run.impute_inputs import (
    BATCH,
    PANEL,
    QUERY,
    in_query,
    joined_batches,
    read_both,
    require_column,
)
from totalvi.run.prepare import prepare
from totalvi.run.record import Options, asked, circumstances, differences, write_record

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


@dataclass(frozen=True)
class ImputeOptions(Options):
    """What `impute` was asked, whose arguments these are."""

    INPUTS = ("reference", "query", "protein_path")

    reference: str | Path | MuData | AnnData
    query: str | Path | MuData | AnnData
    reading: ReadOptions
    keys: Columns
    unmeasured: Unmeasured | None
    n_genes: int
    staining_level: bool
    max_epochs: int | None
    n_samples: int
    interval: float
    seed: int
    writing: WriteOptions


class Imputed(NamedTuple):
    """Imputed proteins of the query, the model, the reliability of the proteins, and their levels."""

    adata: AnnData
    model: Any
    reliability: pd.DataFrame
    levels: pd.DataFrame


def impute(
    reference: str | Path | MuData | AnnData,
    query: str | Path | MuData | AnnData,
    output: str | Path,
    *,
    batch_key: str | None = None,
    genome: str | None = None,
    hashtags: str | Sequence[str] | None = None,
    controls: str | Sequence[str] | None = None,
    leave_out: str | Sequence[str] | None = None,
    mosaic: bool | None = None,
    cells_in: Literal["rows", "columns"] | None = None,
    protein_path: str | Path | None = None,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
    rna_layer: str | None = None,
    protein_layer: str | None = None,
    protein_expression_obsm_key: str | None = None,
    allow_fractional: bool = False,
    isotype_controls: Sequence[str] | None = None,
    unmeasured: Unmeasured | None = None,
    n_genes: int = 4000,
    staining_level: bool = False,
    max_epochs: int | None = None,
    n_samples: int = 100,
    interval: float = 0.9,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: timedelta = timedelta(minutes=10),
    progress: bool | None = None,
) -> RunResult:
    """Fit reference and query together, and predict the proteins that the query lacks.

    ``output`` then holds ``imputed.h5ad`` (mean counts; layers ``sd``, ``log1p``, ``lower``,
    ``upper`` and ``foreground_probability``; the reliability of each protein in ``var``),
    ``tables``, ``model.totalvi`` and ``run.json``. It appears at the end; until then the fit is kept
    in ``<output>.checkpoint``.

    Parameters
    ----------
    reference
        RNA and proteins: a path that :func:`totalvi.read` takes, or data in memory.
    query
        RNA of the same tissue, with other proteins or none.
    output
        A folder that does not exist or is empty, or a link to one.
    batch_key
        Column of ``obs`` with the batches within reference or query, where it is there.
    genome, hashtags, controls, leave_out, cells_in, mosaic
        How to read paths; see :func:`totalvi.read`.
    protein_path
        Proteins of the reference, if they are in a file of their own.
    rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
        Where the counts are, in whichever of the two has it; the other's are where they usually are.
    allow_fractional
        Whether counts may have fractions.
    isotype_controls
        Antibodies that are left out as controls, as in :class:`totalvi.Model`; () imputes them too.
    unmeasured
        Proteins that a batch did not measure; see :func:`totalvi.declare_unmeasured`.
    n_genes
        Number of highly variable genes to select if more are shared.
    staining_level
        Whether each cell has a latent level of all its protein counts, as in :class:`totalvi.Model`.
    max_epochs
        Largest number of epochs; None: by the number of cells.
    n_samples, interval
        See :meth:`totalvi.Model.impute_proteins`.
    seed
        The same seed gives the same results on the same machine.
    overwrite, resume, checkpoint_every, progress
        As in :func:`totalvi.run.run.run`.

    Raises
    ------
    TotalviError
        When the input cannot be used, the output cannot be written, or the fit fails.
    KeyboardInterrupt
        When SIGINT or SIGTERM ended the fit; its checkpoint is written.
    """
    return _run(
        ImputeOptions(
            reference=reference,
            query=query,
            reading=ReadOptions(
                protein_path, genome, hashtags, controls, cells_in, leave_out, mosaic
            ),
            keys=Columns(
                batch_key=batch_key,
                rna_modality=rna_modality,
                protein_modality=protein_modality,
                rna_layer=rna_layer,
                protein_layer=protein_layer,
                protein_expression_obsm_key=protein_expression_obsm_key,
                allow_fractional=allow_fractional,
                isotype_controls=None if isotype_controls is None else tuple(isotype_controls),
            ),
            unmeasured=unmeasured,
            n_genes=n_genes,
            staining_level=staining_level,
            max_epochs=max_epochs,
            n_samples=n_samples,
            interval=interval,
            seed=seed,
            writing=WriteOptions(Path(output), overwrite, resume, checkpoint_every, progress),
        )
    )


def _run(options: ImputeOptions) -> RunResult:
    writing, inputs = options.writing, options.inputs()
    output, batch_key = writing.output, options.keys.batch_key
    for path in inputs.values():
        refuse_input_in_output(path, output)
    are_paths = {"reference", "query"} <= set(inputs)
    resumed = writing.resume and are_paths
    if resumed and holds_this_run(writing, differences(output / RECORD, options)):
        return finished(output)
    request = asked(options)
    require_writable(output, overwrite=writing.overwrite)
    steps = Steps(writing.progress)
    with steps.step("read"):
        both, contents = read_both(
            options.reference, options.query, options.keys, options.reading, options.unmeasured
        )
    require_column(both, batch_key)
    with steps.step("join, check and select genes"):
        joined, keys = joined_batches(both, options.keys)
        mdata, findings = prepare(joined, keys, n_genes=options.n_genes)
        findings = [*contents, *(f for f in findings if f.code != "contents")]
        lacking = _lacking(mdata)
    # Loads torch, as in `_impute`: bad input is refused before seconds go to that.
    from totalvi.fit.plan import default_max_epochs

    with results_folder(writing) as folder:
        imputed = _impute(mdata, keys, lacking, steps, options)
        with steps.step("save"):
            _write(imputed, folder)
            joined.uns["concat"]["antibodies"].to_csv(
                folder / "tables" / "antibodies.csv", index=False
            )
        warnings, notes = warnings_and_notes(findings)
        plan, split = imputed.model.plan, imputed.model.split
        request["arguments"]["max_epochs"] = plan.max_epochs  # None: of the checkpoint, or default
        record = {
            **circumstances(),
            **request,
            "cells": imputed.adata.n_obs,
            "reference_cells": mdata.n_obs - imputed.adata.n_obs,
            "genes": mdata["rna"].n_vars,
            "proteins": imputed.adata.n_vars,
            "epochs_asked": options.max_epochs,
            "default_max_epochs": default_max_epochs(len(split.train)),
            "epochs": len(imputed.model.history),
            **imputed.model.fit_summary,
            "seconds": steps.seconds,
            "warnings": [*warnings, *unreliable_warnings(imputed.reliability)],
            "notes": [*notes, *_left_out(joined), *level_notes(imputed.levels)],
        }
        write_record(record, folder / RECORD)
        files = files_in(folder)
    return RunResult(output, files, record)


def _left_out(joined: MuData) -> list[str]:
    return [
        f"the {name} has {others} beside its RNA, which is left out."
        for name, others in joined.uns["concat"]["data_sets"]["others_left_out"].items()
        if others
    ]


def _lacking(mdata: MuData) -> np.ndarray:
    """Return the positions of the proteins that no cell of the query has."""
    of_query, measured = in_query(mdata), ~np.isnan(mdata["prot"].X)
    if not measured[~of_query].any():
        raise DataError("the reference has no proteins; give it first, and then the query.")
    lacking = np.flatnonzero(~measured[of_query].any(axis=0))
    if not len(lacking):
        raise DataError(
            "the query has all proteins of the reference, so there is nothing to impute; give a query "
            "without some of them, or fit both with `totalvi run`; zeros count as measured, unless "
            f"they are declared otherwise, with {setting('unmeasured', 'zeros')}."
        )
    return lacking


def _impute(
    mdata: MuData, keys: Columns, lacking: np.ndarray, steps: Steps, options: ImputeOptions
) -> Imputed:
    # Loaded only now: bad input is refused before seconds go to loading torch.
    from totalvi.run.new_model import fit_model, new_model

    with steps.step("train", spinner=False):
        model = new_model(mdata, keys, options.seed, options.staining_level)
        fit_model(model, options.max_epochs, options.writing, steps.show)
    names = list(mdata["prot"].var_names[lacking])
    cells = in_query(mdata)
    question: dict[str, Any] = {
        "protein_list": names,
        "n_samples": options.n_samples,
        "interval": options.interval,
        "progress": False,
    }
    with steps.step("reliability"):
        by_panel = model.get_imputation_reliability(**question)
        panels = mdata.obs[keys.panel_key or BATCH].astype(str)[cells].unique()
        # the batches of a query that all lack the protein are alike but for their cells
        reliability = by_panel.loc[list(panels)].groupby("protein", sort=False).mean().loc[names]
        reliability = reliability.assign(**(reliability[["reliable", "model_is_best"]] == 1))
    with steps.step("impute"):
        imputed = model.impute_proteins(indices=cells, **question)
        foreground = model.get_protein_foreground_probability(
            indices=cells, protein_list=names, n_samples=options.n_samples, given_counts=False,
            unmeasured="impute", progress=False,
        )  # fmt: skip
        latent = model.get_latent_representation(indices=cells, progress=False)
    own_batches = mdata.obs[keys.batch_key or BATCH].astype(str)[cells].unique()
    levels = imputed.levels[imputed.levels.index.get_level_values("batch").isin(own_batches)]
    obs = mdata.obs[cells].drop(columns=[BATCH, PANEL])
    obs.index = obs.index.str.removesuffix(f"-{QUERY}")
    adata = AnnData(
        imputed.mean.to_numpy(),
        obs=obs,
        var=reliability,
        layers={
            **{
                name: getattr(imputed, name).to_numpy()
                for name in ("sd", "log1p", "lower", "upper")
            },
            "foreground_probability": np.asarray(foreground),
        },
        obsm={"X_totalvi": latent},
        uns={
            "totalvi": {
                "X": "expected counts with background",
                "interval": options.interval,
                "levels": levels.reset_index(),
            }
        },
    )
    return Imputed(adata, model, reliability, levels)


def _write(imputed: Imputed, folder: Path) -> None:
    tables, adata = folder / "tables", imputed.adata
    tables.mkdir()
    adata.to_df().to_csv(tables / "mean.csv.gz", float_format="%.5g")
    for layer in adata.layers:
        adata.to_df(layer).to_csv(tables / f"{layer}.csv.gz", float_format="%.5g")
    imputed.reliability.to_csv(tables / "reliability.csv", float_format="%.4g")
    imputed.levels.to_csv(tables / "levels.csv", float_format="%.4g")
    imputed.model.history.to_csv(tables / "history.csv", float_format="%.6g")
    imputed.model.save(folder / "model.totalvi")
    adata.write_h5ad(folder / "imputed.h5ad", compression="gzip")


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
