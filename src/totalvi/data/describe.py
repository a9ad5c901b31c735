"""Turn the user's object into arrays: the cells of a fit, new cells, or a mapped query."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData
from scipy import sparse

from totalvi.data.background.isotype_controls import control_counts, split_controls
from totalvi.data.cells import Annotation, CiteData, QueryMapping, Schema, has_rna
from totalvi.data.checks import TRAINING_ONLY, check_counts, raise_errors, tally_by_group
from totalvi.data.columns import Columns, names_of
from totalvi.data.contents import contents_findings, with_panels
from totalvi.data.counts import Counts, CountsInMemory, MeasuredCounts
from totalvi.data.find import CountSource, find_counts, gene_table
from totalvi.data.io.features import with_symbols
from totalvi.data.io.h5_zarr import open_on_disk
from totalvi.data.mosaic import as_mosaic, rna_by_group
from totalvi.data.panels.antibody_names import identify
from totalvi.errors import DataError, argument, did_you_mean

ALL_CELLS = "all cells"  # name of the batch if there is no batch key
Data: TypeAlias = MuData | AnnData | str | PathLike[str]


class Found(NamedTuple):
    """Counts found in an object, checked, and in the order of the model.

    Parameters
    ----------
    data
        The user's object.
    source
        Its counts and annotation.
    controls
        Counts of isotype controls, (N, controls), by name.
    library_size
        Total RNA count of each cell, (N,). None: total of the counts as float32.
    """

    data: MuData | AnnData
    source: CountSource
    controls: pd.DataFrame
    library_size: np.ndarray | None = None


def describe(
    data: Data, columns: Columns, schema: Schema | None = None, *, on_disk: bool = False
) -> CiteData:
    """Find, check and order the counts and annotation of ``data``, without changing it.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts; or the path of one, whose counts then stay on disk.
    columns
        Places of counts and annotation.
    schema
        Schema of an existing model: features are aligned with it by name, and it must have all
        categories. None: a new schema is built from the data.
    on_disk
        Whether counts of ``data`` that are on disk stay there.

    Raises
    ------
    DataError
        When the data cannot be used; the message names what is wrong and the fix.
    """
    given, on_disk = opened(data, on_disk=on_disk)
    if schema is not None:  # new cells need no labels that are known of some cells only
        of_network = columns.network_labels_key
        columns = replace(columns, labels_key=of_network, unlabeled_category=None)
    data = as_mosaic(given, columns)
    source = find_counts(data, columns, on_disk=on_disk)
    columns = with_panels(source.obs, columns)
    tally = tally_by_group(source, columns)
    findings = check_counts(source, columns, tally)
    library_size = tally.rna_total
    if schema is None:
        raise_errors(findings)
        source, controls = split_controls(data, source, columns)
        schema = _schema_of(source, columns, library_size, tuple(map(str, controls.columns)))
    else:
        raise_errors([finding for finding in findings if finding.code not in TRAINING_ONLY])
        controls = control_counts(data, source, schema.control_names)
        aligned = _align(source, schema, gene_table(data, columns))
        if aligned.rna is not source.rna:
            library_size = _totals(aligned.rna)
        source = aligned
    described = cells(Found(given, source, controls, library_size), columns, schema)
    noted = tuple(finding for finding in findings if finding.severity != "error")
    return replace(described, findings=(*contents_findings(data, columns), *noted))


def opened(data: Data, *, on_disk: bool = False) -> tuple[MuData | AnnData, bool]:
    """Open a path; return the data and whether their counts stay on disk."""
    if isinstance(data, str | PathLike):
        return open_on_disk(data), True
    return data, on_disk


def cells(
    found: Found, columns: Columns, schema: Schema, mapping: QueryMapping | None = None
) -> CiteData:
    """Return counts and annotation as arrays, by the names and categories of ``schema``.

    Parameters
    ----------
    found
        Features in the order of ``schema``.
    columns
        Columns of the annotation; without ``labels_key``, labels are left out.
    schema
        Schema of the model.
    mapping
        Names of the batches and panels of a mapped query in the model.

    Raises
    ------
    DataError
        When a category is not known, or a protein that the panel measured lacks a value.
    """
    source, obs = found.source, found.source.obs
    rna = source.rna
    if isinstance(rna, CountsInMemory):
        rna = CountsInMemory(_own_counts(rna.values))
    of_model = None if mapping is None else dict(mapping.batches)
    batch = panel = _codes(obs, columns.batch_key, schema.batch_names, of_model)
    if schema.panel_names:
        of_model = None if mapping is None else dict(mapping.panels)
        panel = _codes(obs, columns.panel_key, schema.panel_names, of_model)
    covariates = zip(columns.categorical_covariate_keys, schema.covariate_categories, strict=True)
    categorical = [_codes(obs, key, names) for key, names in covariates]
    continuous = _numbers(obs, columns.continuous_covariate_keys)
    standardised = (continuous - schema.continuous_mean) / schema.continuous_scale
    library_size = _totals(rna) if found.library_size is None else found.library_size
    if schema.panel_measured_rna:
        usual = np.exp(np.array(schema.library_log_mean))[batch]
        library_size = np.where(_has_rna(source, schema, panel), library_size, usual)
    if columns.size_factor_key is not None:
        library_size = obs[columns.size_factor_key].to_numpy(dtype=np.float64)
    label = None
    if columns.network_labels_key is not None:
        label = _codes(obs, columns.network_labels_key, schema.label_names)
    return CiteData(
        schema=schema,
        rna=rna,
        protein=_measured_protein(source, schema, panel, is_query=mapping is not None),
        cell_names=source.cell_names,
        batch=batch,
        panel=panel,
        label=label,
        categorical=np.stack(categorical, axis=1) if categorical else None,
        continuous=standardised.astype(np.float32) if continuous.shape[1] else None,
        library_size=library_size.astype(np.float32),
        annotation=Annotation(found.data, obs, columns.rna_modality, columns.protein_modality),
        controls=found.controls,
    )


def categories(obs: pd.DataFrame, key: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the code of each cell in a column, and the categories; one for all cells without a key."""
    if key is None:
        return np.zeros(len(obs), dtype=np.int64), (ALL_CELLS,)
    categorical = obs[key].astype("category").cat.remove_unused_categories()
    names = tuple(map(str, categorical.cat.categories))
    return categorical.cat.codes.to_numpy(np.int64), names


def library_prior(
    library_size: np.ndarray, batch: np.ndarray, n_batches: int, known: np.ndarray | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and variance of the log library size of each batch.

    They are over the ``known`` cells, those that have RNA (None: all); a batch without any has those of
    all batches.
    """
    known = np.ones(len(batch), dtype=bool) if known is None else known
    of_batch = [known & (batch == code) for code in range(n_batches)]
    logs = [np.log(library_size[some if some.any() else known]) for some in of_batch]
    return tuple(float(x.mean()) for x in logs), tuple(max(float(x.var()), 1e-4) for x in logs)


def measured_by_group(
    protein: Counts[np.ndarray], group: np.ndarray, n_groups: int
) -> tuple[tuple[bool, ...], ...]:
    """Return which proteins each panel measured: those with a value in at least one of its cells."""
    measured = np.zeros((n_groups, protein.shape[1]), dtype=bool)
    for start, values in protein.blocks():
        codes = group[start : start + len(values)]
        for code in np.unique(codes):
            measured[code] |= ~np.isnan(values[codes == code]).all(axis=0)
    return tuple(tuple(map(bool, row)) for row in measured)


def _schema_of(
    source: CountSource, columns: Columns, library_size: np.ndarray, controls: tuple[str, ...]
) -> Schema:
    """Return the schema of the data that a model is fitted to."""
    obs = source.obs
    batch, batch_names = categories(obs, columns.batch_key)
    panel, panel_names = batch, tuple[str, ...]()
    if columns.panel_key is not None:
        panel, panel_names = categories(obs, columns.panel_key)
    if columns.size_factor_key is not None:
        library_size = obs[columns.size_factor_key].to_numpy(dtype=np.float64)
    continuous = _numbers(obs, columns.continuous_covariate_keys)
    n_panels, labels_key = len(panel_names) or len(batch_names), columns.network_labels_key
    measured_rna = rna_by_group(obs, panel, panel_names or batch_names)
    known = has_rna(obs) if measured_rna else None
    log_mean, log_variance = library_prior(library_size, batch, len(batch_names), known)
    return Schema(
        columns=columns,
        gene_names=tuple(source.gene_names),
        protein_names=tuple(source.protein_names),
        batch_names=batch_names,
        panel_names=panel_names,
        label_names=categories(obs, labels_key)[1] if labels_key else (),
        covariate_categories=tuple(
            categories(obs, key)[1] for key in columns.categorical_covariate_keys
        ),
        continuous_mean=tuple(map(float, continuous.mean(axis=0))),
        continuous_scale=tuple(map(float, continuous.std(axis=0))),
        panel_measured=measured_by_group(source.protein, panel, n_panels),
        library_log_mean=log_mean,
        library_log_variance=log_variance,
        control_names=controls,
        panel_measured_rna=measured_rna,
    )


def _has_rna(source: CountSource, schema: Schema, panel: np.ndarray) -> np.ndarray:
    """Return which cells have RNA, by their panels, which must agree with what the data say."""
    by_panel: np.ndarray = schema.measured_rna[panel]
    lacking = np.flatnonzero(by_panel & ~has_rna(source.obs))
    if len(lacking):
        raise DataError(
            f'cell "{source.cell_names[lacking[0]]}" has proteins alone, but its panel (or batch) '
            "measured RNA in the data that the model was trained on; leave such cells out, or fit a "
            "model to both together."
        )
    return by_panel


def _numbers(obs: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    return obs[list(keys)].to_numpy(dtype=np.float64)


def _codes(
    obs: pd.DataFrame,
    key: str | None,
    names: Sequence[str],
    of_model: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Return the position of each cell's name among the model's names, translated by ``of_model``."""
    codes, found = categories(obs, key)
    if key is None:
        if of_model is None:
            return codes
        found = tuple(of_model)  # all cells have the same code
    known = names if of_model is None else list(of_model)
    unknown = [name for name in found if name not in known]
    if unknown:
        near = did_you_mean(unknown[0], known)
        why = (
            f"which the model was not trained on; {near}."
            if of_model is None
            else f"which was not in the query that was mapped; {near}; map these cells with map_query "
            "of the reference model."
        )
        raise DataError(f'obs["{key}"] holds "{unknown[0]}", {why}')
    if of_model is not None:
        found = tuple(of_model[name] for name in found)
    position = pd.Index(names).get_indexer(pd.Index(found)).astype(np.int64)
    return np.asarray(position[codes])


def _own_counts(rna: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return a float32 copy without stored zeros, which does not share the user's memory."""
    rna = rna.astype(np.float32)
    rna.eliminate_zeros()
    return rna


def _totals(rna: Counts[sparse.csr_matrix]) -> np.ndarray:
    """Return the total RNA count of each cell."""
    return np.concatenate([np.asarray(block.sum(axis=1)).ravel() for _, block in rna.blocks()])


def _measured_protein(
    source: CountSource, schema: Schema, panel: np.ndarray, *, is_query: bool
) -> Counts[np.ndarray]:
    """Return protein counts with 0 for the proteins that the cell's panel did not measure."""
    by_panel = np.array(schema.panel_measured)
    for start, values in source.protein.blocks():
        measured = by_panel[panel[start : start + len(values)]]
        missing = np.argwhere(measured & np.isnan(values))
        if len(missing):
            cell, protein = start + missing[0][0], missing[0][1]
            why = (
                "though others of its panel (or batch) have; give the counts, leave the cell out, or "
                f"tell the panels apart by {argument('batch_key')}."
                if is_query
                else "whose panel (or batch) measured it in the data that the model was trained on; "
                "give the counts, or leave the cell out."
            )
            raise DataError(
                f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" '
                f'in cell "{source.cell_names[cell]}", {why}'
            )
    measured_counts = MeasuredCounts(source.protein, panel, by_panel)
    if isinstance(source.protein, CountsInMemory):
        return CountsInMemory(measured_counts.read())
    return measured_counts


def _align(source: CountSource, schema: Schema, var: pd.DataFrame) -> CountSource:
    """Return ``source`` with the schema's genes and proteins in its order.

    Genes are known by their names, or else by the symbols or Ensembl ids in their annotation ``var``.
    """
    names = source.gene_names
    if not names.isin(schema.gene_names).any():
        ids = names_of(pd.Index(var["gene_ids"])) if "gene_ids" in var else names
        others = [make_index_unique(names_of(with_symbols(var).index)), ids]
        names = max(others, key=lambda other: int(other.isin(schema.gene_names).sum()))
    genes = _positions(names, schema.gene_names, "gene", source.rna_where)
    proteins = _positions(
        source.protein_names, schema.protein_names, "protein", source.protein_where
    )
    for what, positions in (("genes", genes), ("proteins", proteins)):
        if (np.diff(positions) < 0).any():
            warnings.warn(
                f"The {what} of the data are in another order than the model's; they were matched by "
                "name.",
                stacklevel=5,
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
        fix = "add them"
        others = {
            identify(name).key: name for name in names if what == "protein" and name not in wanted
        }
        known = [name for name in missing if identify(name).key in others]
        if known:
            other = others[identify(known[0]).key]
            fix = f'give them the model\'s names, as "{known[0]}" to "{other}"'
        raise DataError(
            f'{where} lacks {len(missing)} of the {len(wanted)} {what}s of the model, "{missing[0]}" '
            f"among them; {fix}, or train a model on the {what}s that both have."
        )
    return positions
