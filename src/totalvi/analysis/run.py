"""The whole way from a count file to a folder of results."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from anndata import AnnData
from mudata import MuData

from totalvi.analysis.output import RECORD, require_writable, staged_folder
from totalvi.analysis.prepare import ReadOptions, prepare, read_input
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
    overwrite: bool = False,
    progress: bool | None = None,
) -> RunResult:
    """Check, select genes, fit, embed, cluster, denoise, and write tables and figures.

    ``output`` then holds ``results.h5mu``, ``model.totalvi``, ``tables``, ``figures`` and
    ``run.json``. It appears whole at the end; a run that fails leaves nothing behind.

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
        refuse_input_in_output(path, output)
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
    with steps.step("read"):
        data, keys = read_input(input, keys, read_options)
    with steps.step("check and select genes"):
        mdata, findings = prepare(data, keys, n_genes=n_genes, drop_empty_cells=drop_empty_cells)
    messages = {
        severity: [f.message for f in findings if f.severity == severity]
        for severity in ("warning", "note")
    }
    # Loaded only now: bad input is refused before seconds go to loading torch and scanpy.
    from totalvi.analysis.pipeline import fit_and_write

    with staged_folder(output, overwrite=overwrite) as folder:
        summary, antibody_warnings = fit_and_write(
            mdata,
            keys,
            folder,
            steps,
            max_epochs=max_epochs,
            resolution=resolution,
            seed=seed,
        )
        record = {
            **provenance(arguments, paths),
            **summary,
            "seconds": steps.seconds,
            "warnings": [*messages["warning"], *antibody_warnings],
            "notes": messages["note"],
        }
        write_record(record, folder / RECORD)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return RunResult(output, files, record)


def refuse_input_in_output(given: Path, output: Path) -> None:
    """Refuse an input that is in the output, or is a link in it, or is a link into it."""
    place, real = given.absolute(), Path(os.path.realpath(given))
    above = {real, *real.parents, *map(Path, map(os.path.realpath, (place, *place.parents)))}
    if Path(os.path.realpath(output)) in above:
        raise OutputError(
            f"the input {given} lies in the output folder {output}, which would be replaced: "
            "choose another output folder"
        )
