"""The whole way from a count file to a folder of results."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from anndata import AnnData
from mudata import MuData

from totalvi.analysis.convert import open_input
from totalvi.analysis.output import RECORD, STORE, require_writable, staged_folder
from totalvi.analysis.prepare import ReadOptions, prepare, read_input
from totalvi.analysis.prepare_on_disk import prepare_on_disk
from totalvi.analysis.record import provenance, write_record
from totalvi.analysis.steps import Steps
from totalvi.data.cite import Keys
from totalvi.errors import OutputError


class RunResult(NamedTuple):
    """What a run made.

    Attributes
    ----------
    folder
        Where it is.
    files
        All files, relative to ``folder``.
    record
        What ``run.json`` holds, the warnings among it.
    """

    folder: Path
    files: list[Path]
    record: dict[str, Any]


def run(
    input: str | Path | MuData | AnnData,
    output: str | Path,
    *,
    protein_path: str | Path | None = None,
    genome: str | None = None,
    hashtags: str | Sequence[str] | None = None,
    controls: str | Sequence[str] | None = None,
    cells_in: Literal["rows", "columns"] | None = None,
    batch_key: str | None = None,
    panel_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] = (),
    continuous_covariate_keys: Sequence[str] = (),
    rna_modality: str = "rna",
    protein_modality: str = "prot",
    rna_layer: str | None = None,
    protein_layer: str | None = None,
    protein_expression_obsm_key: str | None = None,
    allow_fractional: bool = False,
    drop_empty_cells: bool = True,
    n_genes: int = 4000,
    max_epochs: int | None = None,
    resolution: float = 1.0,
    seed: int = 0,
    on_disk: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
) -> RunResult:
    """Check, select genes, fit, embed, cluster, denoise, and write tables and figures.

    ``output`` then holds ``results.h5mu`` (``results.zarr`` with ``on_disk``), ``model.totalvi``,
    ``tables``, ``figures`` and ``run.json``. It appears whole at the end; a run that fails leaves
    nothing behind.

    Parameters
    ----------
    input
        A path that :func:`totalvi.read` takes, or data in memory, which is never written to.
    output
        A folder that does not exist or is empty, or a link to one.
    protein_path, genome, hashtags, controls, cells_in
        How to read a path; see :func:`totalvi.read`.
    batch_key, panel_key, labels_key, size_factor_key
        Columns of ``obs``; see :class:`totalvi.Model`.
    categorical_covariate_keys, continuous_covariate_keys
        Columns of ``obs``; see :class:`totalvi.Model`.
    rna_modality, protein_modality, rna_layer, protein_layer, protein_expression_obsm_key
        Where the counts are; see :class:`totalvi.Model`.
    allow_fractional
        Whether counts may have fractions.
    drop_empty_cells
        Leave out cells without any RNA count, with a warning; otherwise they are an error.
    n_genes
        With more genes than this, that many are selected for varying most.
    max_epochs
        Epochs of training at most; None: by the number of cells.
    resolution
        Of the clusters; higher gives more.
    seed
        The same seed gives the same results on the same machine.
    on_disk
        Whether counts are left on disk and read some cells at a time; ``input`` is then a path. What
        differs is in `totalvi.analysis.pipeline_on_disk.fit_and_write_on_disk`.
    overwrite
        Replace the folder of an earlier run, which holds nothing else, at the end.
    progress
        Whether to show the steps on standard error; by default when it is a terminal.

    Raises
    ------
    TotalviError
        When the input cannot be used, the output cannot be written, or the fit fails.
    """
    arguments = dict(locals())
    read_options = ReadOptions(protein_path, genome, hashtags, controls, cells_in)
    output = Path(output)
    paths = [Path(p) for p in (input, protein_path) if isinstance(p, str | Path)]
    for path in paths:
        _refuse_input_in_output(path, output)
    steps = Steps(progress)
    keys = Keys(
        batch_key=batch_key,
        panel_key=panel_key,
        labels_key=labels_key,
        size_factor_key=size_factor_key,
        categorical_covariate_keys=tuple(categorical_covariate_keys),
        continuous_covariate_keys=tuple(continuous_covariate_keys),
        rna_modality=rna_modality,
        protein_modality=protein_modality,
        rna_layer=rna_layer,
        protein_layer=protein_layer,
        protein_expression_obsm_key=protein_expression_obsm_key,
        allow_fractional=allow_fractional,
    )
    require_writable(output, overwrite=overwrite)
    course: dict[str, Any] = {"max_epochs": max_epochs, "resolution": resolution, "seed": seed}
    choice: dict[str, Any] = {"n_genes": n_genes, "drop_empty_cells": drop_empty_cells}
    with steps.step("read"):
        if not on_disk:
            data, keys = read_input(input, keys, read_options)
        elif isinstance(input, MuData | AnnData):
            raise ValueError("on_disk is for the path of a file; data in memory do without.")
        else:
            data, keys = open_input(input, keys, read_options)
    if not on_disk:
        with steps.step("check and select genes"):
            mdata, findings = prepare(data, keys, **choice)
    # What fits a model is loaded only now: bad input is refused before seconds go to loading torch.
    with staged_folder(output, overwrite=overwrite) as folder:
        if on_disk:
            with steps.step("check and select genes"):
                findings = prepare_on_disk(data, keys, folder / STORE, **choice)
            from totalvi.analysis.pipeline_on_disk import fit_and_write_on_disk

            summary, antibody_warnings = fit_and_write_on_disk(keys, folder, steps, **course)
        else:
            from totalvi.analysis.pipeline import fit_and_write

            summary, antibody_warnings = fit_and_write(mdata, keys, folder, steps, **course)
        messages = {
            severity: [f.message for f in findings if f.severity == severity]
            for severity in ("warning", "note")
        }
        record = {
            **provenance(arguments, paths),
            **summary,
            "seconds": steps.seconds,
            "warnings": [*messages["warning"], *antibody_warnings],
            "notes": messages["note"],
        }
        write_record(record, folder / RECORD)
        files = sorted(_written(folder))
    return RunResult(output, files, record)


def _written(folder: Path) -> Iterator[Path]:
    """Yield what is in the folder; of a zarr store, which has many files, the store."""
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if place.parts[0] == STORE:
            if len(place.parts) == 1:
                yield place
        elif path.is_file():
            yield place


def _refuse_input_in_output(given: Path, output: Path) -> None:
    """Refuse an input that is in the output, or is a link in it, or is a link into it."""
    place, real = given.absolute(), Path(os.path.realpath(given))
    above = {real, *real.parents, *map(Path, map(os.path.realpath, (place, *place.parents)))}
    if Path(os.path.realpath(output)) in above:
        raise OutputError(
            f"the input {given} lies in the output folder {output}, which would be replaced: "
            "choose another output folder"
        )
