"""From a MuData or AnnData to CiteData: found, checked, and in the order of a schema."""

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.background.isotype_controls import control_counts, split_controls
from totalvi.data.cells import Annotation, CiteData, Schema, library_prior
from totalvi.data.checks import TRAINING_ONLY, check_counts, raise_errors, tally_by_group
from totalvi.data.columns import Columns
from totalvi.data.counts import Counts, CountsInMemory, MeasuredCounts
from totalvi.data.find import CountSource, find_counts
from totalvi.data.finding import did_you_mean
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.errors import DataError

Data: TypeAlias = MuData | AnnData | str | PathLike[str]


def describe(
    data: Data, columns: Columns, schema: Schema | None = None, *, on_disk: bool = False
) -> CiteData:
    """Find, check and order the counts and annotation of ``data``, which is not changed.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts; or the path of one, whose counts then stay on disk.
    columns
        Where they are.
    schema
        Of a model that exists: features are aligned with it by name, and categories must be known
        to it. None: the schema is made from the data.
    on_disk
        Whether counts of ``data`` that lie on disk stay there.

    Raises
    ------
    DataError
        When the data cannot be used; the message names what is wrong and the mend.
    """
    data, on_disk = opened(data, on_disk=on_disk)
    source = find_counts(data, columns, on_disk=on_disk)
    tally = tally_by_group(source, columns)
    findings = check_counts(source, columns, tally)
    library_size = tally.rna_total
    if schema is None:
        raise_errors(findings)
        source, controls = split_controls(data, source, columns)
    else:
        raise_errors([finding for finding in findings if finding.code not in TRAINING_ONLY])
        controls = control_counts(data, source, schema.control_names)
        aligned = _align(source, schema)
        if aligned.rna is not source.rna:
            library_size = _totals(aligned.rna)
        source = aligned
    annotation = Annotation(data, source.obs, columns.rna_modality, columns.protein_modality)
    return _cite_data(source, columns, schema, annotation, library_size, controls)


def opened(data: Data, *, on_disk: bool = False) -> tuple[MuData | AnnData, bool]:
    """Open a path, and return the data and whether counts that lie on disk are to stay there."""
    if isinstance(data, str | PathLike):
        return open_on_disk(data), True
    return data, on_disk


def _cite_data(
    source: CountSource,
    columns: Columns,
    schema: Schema | None,
    annotation: Annotation,
    library_size: np.ndarray,
    controls: pd.DataFrame,
) -> CiteData:
    obs = source.obs
    known = {} if schema is None else schema.categories()
    rna = source.rna
    if isinstance(rna, CountsInMemory):
        rna = CountsInMemory(_own_counts(rna.values))
    batch, batch_names = _codes(obs, columns.batch_key, known)
    panel, panel_names = (
        (batch, ()) if columns.panel_key is None else _codes(obs, columns.panel_key, known)
    )
    label, label_names = _codes(obs, columns.labels_key, known)
    categorical = [_codes(obs, key, known) for key in columns.categorical_covariate_keys]
    continuous = obs[list(columns.continuous_covariate_keys)].to_numpy(dtype=np.float64)
    if columns.size_factor_key is not None:
        library_size = obs[columns.size_factor_key].to_numpy(dtype=np.float64)
    if schema is None:
        n_panels = len(panel_names) or len(batch_names)
        log_mean, log_variance = library_prior(library_size, batch, len(batch_names))
        schema = Schema(
            columns=columns,
            gene_names=tuple(source.gene_names),
            protein_names=tuple(source.protein_names),
            batch_names=batch_names,
            panel_names=panel_names,
            label_names=label_names if columns.labels_key else (),
            covariate_categories=tuple(names for _, names in categorical),
            continuous_mean=tuple(map(float, continuous.mean(axis=0))),
            continuous_scale=tuple(map(float, continuous.std(axis=0))),
            panel_measured=_measured(source.protein, panel, n_panels),
            library_log_mean=log_mean,
            library_log_variance=log_variance,
            control_names=tuple(map(str, controls.columns)),
        )
    standardised = (continuous - schema.continuous_mean) / schema.continuous_scale
    return CiteData(
        schema=schema,
        rna=rna,
        protein=_measured_protein(source, schema, panel),
        cell_names=source.cell_names,
        batch=batch,
        panel=panel,
        label=label if columns.labels_key else None,
        categorical=np.stack([c for c, _ in categorical], axis=1) if categorical else None,
        continuous=standardised.astype(np.float32) if continuous.shape[1] else None,
        library_size=library_size.astype(np.float32),
        annotation=annotation,
        controls=controls,
    )


def _codes(
    obs: pd.DataFrame, key: str | None, known: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return each cell's code and the categories; without a key, one category for all."""
    if key is None:
        return np.zeros(len(obs), dtype=np.int64), ("all cells",)
    categorical = obs[key].astype("category").cat.remove_unused_categories()
    found = tuple(map(str, categorical.cat.categories))
    codes = categorical.cat.codes.to_numpy(np.int64)
    if key not in known:
        return codes, found
    names = tuple(known[key])
    positions = pd.Index(names).get_indexer(pd.Index(found))
    if (positions < 0).any():
        name = found[int((positions < 0).argmax())]
        raise DataError(
            f'obs["{key}"] holds "{name}", which the model was not trained on; '
            f"{did_you_mean(name, names)}."
        )
    return positions[codes].astype(np.int64), names


def _own_counts(rna: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return a float32 copy without stored zeros, which does not share the user's memory."""
    rna = rna.astype(np.float32)
    rna.eliminate_zeros()
    return rna


def _totals(rna: Counts[sparse.csr_matrix]) -> np.ndarray:
    """Return the total RNA count of each cell."""
    totals = [np.asarray(block.sum(axis=1)).ravel() for _, block in rna.blocks()]
    return np.concatenate(totals)


def _measured(
    protein: Counts[np.ndarray], panel: np.ndarray, n_panels: int
) -> tuple[tuple[bool, ...], ...]:
    """Return which proteins each panel measured: those not NaN in its cells."""
    measured = np.zeros((n_panels, protein.shape[1]), dtype=bool)
    for start, values in protein.blocks():
        codes = panel[start : start + len(values)]
        for code in np.unique(codes):
            measured[code] |= ~np.isnan(values[codes == code]).all(axis=0)
    return tuple(tuple(map(bool, row)) for row in measured)


def _measured_protein(source: CountSource, schema: Schema, panel: np.ndarray) -> Counts[np.ndarray]:
    """Return protein counts with 0 where the cell's panel did not measure the protein."""
    by_panel = np.array(schema.panel_measured)
    for start, values in source.protein.blocks():
        measured = by_panel[panel[start : start + len(values)]]
        missing = np.argwhere(measured & np.isnan(values))
        if len(missing):
            cell, protein = start + missing[0][0], missing[0][1]
            raise DataError(
                f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" '
                f'in cell "{source.cell_names[cell]}", whose panel (or batch) measured it in the data '
                "that the model was trained on; give the counts, or leave the cell out."
            )
    measured_only = MeasuredCounts(source.protein, panel, by_panel)
    on_disk = not isinstance(source.protein, CountsInMemory)
    return measured_only if on_disk else CountsInMemory(measured_only.read())


def _align(source: CountSource, schema: Schema) -> CountSource:
    """Return ``source`` with the schema's genes and proteins in its order."""
    genes = _positions(source.gene_names, schema.gene_names, "gene", source.rna_where)
    proteins = _positions(
        source.protein_names, schema.protein_names, "protein", source.protein_where
    )
    for what, positions in (("genes", genes), ("proteins", proteins)):
        if (np.diff(positions) < 0).any():
            warnings.warn(
                f"The {what} of the data are in another order than the model's; they were matched by "
                "name.",
                stacklevel=4,
            )
    return source._replace(
        rna=source.rna.columns(genes),
        protein=source.protein.columns(proteins),
        gene_names=source.gene_names[genes],
        protein_names=source.protein_names[proteins],
    )


def _positions(names: pd.Index, wanted: Sequence[str], what: str, where: str) -> np.ndarray:
    positions = names.get_indexer(pd.Index(wanted))
    missing = [name for name, position in zip(wanted, positions, strict=True) if position < 0]
    if missing:
        raise DataError(
            f'{where} lacks {len(missing)} of the {len(wanted)} {what}s of the model, "{missing[0]}" '
            f"among them; add them, or train a model on the {what}s that both have."
        )
    return positions
