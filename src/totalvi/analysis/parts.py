"""The parts of a run on their own: a fitted model, its denoised counts, its differential expression."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.analysis.output import STORE, staged_file
from totalvi.analysis.prepare import ReadOptions, prepare, read_input
from totalvi.analysis.steps import Steps
from totalvi.data.modalities import mudata_of
from totalvi.data.read import read
from totalvi.data.schema import Keys
from totalvi.errors import DataError, OutputError
from totalvi.model import Model
from totalvi.persistence.format import is_model

MODEL, RESULTS = "model.totalvi", "results.h5mu"


class Trained(NamedTuple):
    """A fitted model in its folder, and what was noted on the way."""

    folder: Path
    model: Model
    warnings: list[str]
    notes: list[str]


def train_model(
    input: str | Path | MuData | AnnData,
    output: Path,
    keys: Keys,
    options: ReadOptions,
    *,
    n_genes: int = 4000,
    max_epochs: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
) -> Trained:
    """Check counts, select genes, fit a model, and save it; nothing else.

    Parameters
    ----------
    input, keys, options
        Counts, and where in them what is.
    output
        The model's folder. Until it is there the fit is kept beside it, in ``<output>.checkpoint``.
    n_genes, max_epochs, seed, overwrite, resume, progress
        As in :func:`totalvi.analysis.run.run`.

    Raises
    ------
    TotalviError
        When the input cannot be used, the output cannot be written, or the fit fails.
    """
    if output.exists() and not (overwrite and is_model(output)):
        mend = (
            "choose another name"
            if overwrite
            else "choose another name, or replace it with overwrite"
        )
        raise OutputError(f"{output} exists: {mend}")
    steps = Steps(progress)
    with steps.step("read"):
        data, keys = read_input(input, keys, options)
    with steps.step("check and select genes"):
        mdata, findings = prepare(data, keys, n_genes=n_genes)
    with steps.step("train", spinner=False):
        model = Model(
            mdata,
            batch_key=keys.batch_key,
            panel_key=keys.panel_key,
            labels_key=keys.labels_key,
            size_factor_key=keys.size_factor_key,
            categorical_covariate_keys=keys.categorical_covariate_keys,
            continuous_covariate_keys=keys.continuous_covariate_keys,
            allow_fractional=keys.allow_fractional,
            isotype_controls=keys.isotype_controls,
            seed=seed,
        )
        checkpoint = output.with_name(f"{output.name}.checkpoint")
        model.train(
            max_epochs=max_epochs, checkpoint=checkpoint, resume=resume, progress=steps.shown
        )
    with steps.step("save"):
        model.save(output, overwrite=overwrite)
        checkpoint.unlink(missing_ok=True)
    said: dict[str, list[str]] = {"warning": [], "note": []}
    for finding in findings:
        said[finding.severity].append(finding.message)
    return Trained(output, model, said["warning"], said["note"])


def load_with_counts(model_path: Path, input: str | Path | None) -> tuple[Model, MuData]:
    """Return a model and the counts to ask it about.

    Parameters
    ----------
    model_path
        A model folder, or the folder of `totalvi run`, whose results are then the counts
        unless ``input`` names others.

    Raises
    ------
    DataError
        Where there are no counts.
    """
    is_run = not is_model(model_path) and (model_path / MODEL).is_dir()
    if input is None:
        beside = [model_path / name for name in (RESULTS, STORE) if is_run]
        input = next((path for path in beside if path.exists()), None)
        if input is None:
            raise DataError(f"{model_path} holds no counts: name the file with the counts as INPUT")
    data = read(input)
    return Model.load(model_path / MODEL if is_run else model_path, data), data


@contextmanager
def _values_of_the_user() -> Iterator[None]:
    """Make what a query says of a wrong name a matter of the input."""
    try:
        yield
    except ValueError as error:
        raise DataError(str(error)) from error


def denoise(
    model_path: Path,
    input: str | Path | None,
    output: Path,
    *,
    transform_batch: Sequence[str] | None = None,
    n_samples: int = 25,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path:
    """Write denoised counts: RNA by 10,000 a cell, proteins free of background.

    ``output`` ends in .h5mu (with the foreground probability as a layer), or in .zarr, which is
    written some cells at a time.

    Raises
    ------
    TotalviError
        When the model or the counts cannot be used, or the output cannot be written.
    """
    asked: dict[str, Any] = {
        "transform_batch": transform_batch,
        "n_samples": n_samples,
        "seed": seed,
        "progress": progress,
    }
    if output.suffix == ".zarr":
        if output.exists():
            raise OutputError(f"{output} exists: choose another name")
        model, _ = load_with_counts(model_path, input)
        with _values_of_the_user():
            model.get_normalized_expression(**asked, library_size=1e4, out=output)
        return output
    with staged_file(output, suffix=".h5mu", overwrite=overwrite) as staged, _values_of_the_user():
        model, data = load_with_counts(model_path, input)
        rna, protein = model.get_normalized_expression(**asked, library_size=1e4)
        foreground = model.get_protein_foreground_probability(**asked, return_numpy=True)
        modalities = {"rna": AnnData(rna.astype(np.float32)), "prot": AnnData(protein)}
        modalities["prot"].layers["foreground_probability"] = foreground.astype(np.float32)
        mudata_of(modalities, data.obs).write(staged, compression="gzip")
    return output


def compare(
    model_path: Path,
    input: str | Path | None,
    output: Path,
    *,
    groupby: str,
    group: str | None = None,
    against: str | None = None,
    delta: float = 0.25,
    fdr_target: float = 0.05,
    batch_correction: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Write the table of `Model.differential_expression` as .csv.

    Raises
    ------
    TotalviError
        When the model or the counts cannot be used, or the output cannot be written.
    """
    with staged_file(output, suffix=".csv", overwrite=overwrite) as staged, _values_of_the_user():
        model, _ = load_with_counts(model_path, input)
        table: pd.DataFrame = model.differential_expression(
            groupby=groupby,
            group1=group,
            group2=against,
            delta=delta,
            fdr_target=fdr_target,
            batch_correction=batch_correction,
            seed=seed,
            progress=progress,
        )
        table.to_csv(staged, index_label="name")
    return table
