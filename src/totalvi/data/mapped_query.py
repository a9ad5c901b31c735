"""Cells of a query in the order of a reference model, whose schema gets their batches."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.background.isotype_controls import control_counts
from totalvi.data.cells import CiteData, QueryMapping, Schema, has_rna
from totalvi.data.checks import TRAINING_ONLY, check_counts, raise_errors
from totalvi.data.columns import Columns
from totalvi.data.contents import contents_findings
from totalvi.data.counts import CountsInMemory
from totalvi.data.describe import (
    Data,
    Found,
    categories,
    cells,
    library_prior,
    measured_by_group,
    opened,
)
from totalvi.data.find import CountSource
from totalvi.data.panels.antibodies import harmonise_antibodies
from totalvi.data.panels.data_sets import DataSet, align_genes, find_data_set
from totalvi.errors import DataError, Finding, did_you_mean, listed

LEAST_SHARED_GENES = 0.5  # of the reference's
_ALL_CELLS = "query"  # name of the batch if the query has no batch column


class MappedQuery(NamedTuple):
    """A query as cells of the reference's schema, to which its batches and panels were appended."""

    cells: CiteData
    mapping: QueryMapping
    aligned: "AlignedQuery"


class AlignedQuery(NamedTuple):
    """A query's counts in the reference's order.

    Parameters
    ----------
    source
        Counts of the reference's genes, 0 if the query lacks one, and of its proteins, NaN if the query
        lacks one.
    found_genes
        Which of the reference's genes the query has.
    unknown_proteins
        Names of the query's proteins that the reference does not have, without isotype controls.
    controls
        Counts of the reference's isotype controls that the query has, (N, controls), by name.
    unused
        Names of the other modalities of a query without proteins.
    """

    source: CountSource
    found_genes: np.ndarray
    unknown_proteins: tuple[str, ...]
    controls: pd.DataFrame
    unused: tuple[str, ...]


def map_cells(
    data: MuData | AnnData,
    columns: Columns,
    reference: Schema,
    *,
    batch_key: str | None,
    antibody_names: Mapping[str, str] | None,
    new_categories: bool,
    needs_labels: bool,
) -> MappedQuery:
    """Find, check and order the cells of a query; its batches follow those of the reference.

    Parameters
    ----------
    columns
        Places of its counts and annotation.
    reference
        The reference's schema.
    batch_key
        Column with the query's batches. None: that of ``columns``, if the query has it; else all cells
        are one batch, named "query".
    antibody_names
        The reference's names of antibodies whose automatic match is wrong.
    new_categories
        Whether categorical covariates may have categories that the reference does not have.
    needs_labels
        Whether the network needs each cell's label.

    Raises
    ------
    DataError
        When the data cannot be used; the message names what is wrong and the fix.
    """
    aligned = align_query(data, columns, reference, antibody_names)
    obs = aligned.source.obs
    if batch_key is None and columns.batch_key in obs:
        batch_key = columns.batch_key
    panel_key = columns.panel_key
    if panel_key is not None and panel_key not in obs:
        panel_key = batch_key
    columns = replace(columns, batch_key=batch_key, panel_key=panel_key)
    used, findings = _require_usable(aligned, columns, needs_labels)
    schema, mapping = extended_schema(
        aligned, columns, reference, antibody_names, new_categories=new_categories
    )
    found = Found(data, aligned.source, aligned.controls)
    described = cells(found, used, schema, mapping)
    findings = (*contents_findings(data, columns), *findings)
    return MappedQuery(replace(described, findings=findings), mapping, aligned)


def describe_query(
    data: Data, schema: Schema, mapping: QueryMapping, needs_labels: bool
) -> CiteData:
    """Return new cells of a mapped query, or the same cells again, in memory.

    Raises
    ------
    DataError
        When the data cannot be used, or hold other batches than the query that was mapped.
    """
    data = opened(data)[0]
    aligned = align_query(data, schema.columns, schema, dict(mapping.antibody_names))
    used = _require_usable(aligned, schema.columns, needs_labels)[0]
    return cells(Found(data, aligned.source, aligned.controls), used, schema, mapping)


def _require_usable(
    query: AlignedQuery, columns: Columns, needs_labels: bool
) -> tuple[Columns, tuple[Finding, ...]]:
    """Refuse counts and annotation that cannot be used, and return the columns that will be.

    Beside them is what the checks warn of, but for genes without counts: those that the query lacks
    are named elsewhere.
    """
    if not needs_labels:
        columns = replace(columns, labels_key=None, unlabeled_category=None)
    findings = check_counts(query.source, columns)
    raise_errors([finding for finding in findings if finding.code not in TRAINING_ONLY])
    of_fits = {"gene_zero", "few_genes", "group_small", "covariate_constant_category"}
    warned = (f for f in findings if f.severity == "warning" and f.code not in of_fits)
    return columns, tuple(warned)


def align_query(
    data: MuData | AnnData,
    columns: Columns,
    schema: Schema,
    antibody_names: Mapping[str, str] | None,
) -> AlignedQuery:
    """Find the counts of a query and put them in the order of the reference's ``schema``.

    Genes are matched as `align_genes` says, proteins as `harmonise_antibodies` says.

    Raises
    ------
    DataError
        When no counts are found, too few genes match, or there are proteins and none of them match.
    """
    found = find_data_set("query", data, columns)
    rna, found_genes = _aligned_rna(found, schema)
    protein, unknown = _aligned_proteins(found, schema, antibody_names)
    source = found.source._replace(
        rna=CountsInMemory(rna),
        protein=CountsInMemory(protein),
        gene_names=pd.Index(schema.gene_names, dtype=object),
        protein_names=pd.Index(schema.protein_names, dtype=object),
    )
    controls = control_counts(data, found.source, schema.control_names)
    return AlignedQuery(source, found_genes, unknown, controls, found.unused)


def _aligned_rna(found: DataSet, schema: Schema) -> tuple[sparse.csr_matrix, np.ndarray]:
    if not len(found.source.gene_names):
        raise DataError(
            "the query has no RNA, by which it is mapped; give cells with RNA, or fit a mosaic of the "
            "query and the reference (`totalvi.concat`)."
        )
    known = pd.DataFrame(index=pd.Index(schema.gene_names, dtype=object))
    try:
        aligned = align_genes({"reference": known, "query": found.genes}, "inner")
    except DataError as error:
        raise DataError(
            f"the query's genes do not match those of the reference model: {error}"
        ) from error
    joined = aligned.positions["reference"]
    gene_of_joined = np.full(len(aligned.names), -1)
    gene_of_joined[joined[joined >= 0]] = np.flatnonzero(joined >= 0)
    of_query = aligned.positions["query"]
    position = np.where(of_query >= 0, gene_of_joined[of_query], -1)
    rows = np.flatnonzero(position >= 0)
    n_genes = len(schema.gene_names)
    if len(rows) < LEAST_SHARED_GENES * n_genes:
        raise DataError(
            f"the query has only {len(rows):,} of the {n_genes:,} genes of the reference model (its "
            f'first is "{found.source.gene_names[0]}", the model\'s "{schema.gene_names[0]}"); give '
            "counts of all genes, before variable ones are selected."
        )
    given = found.source.rna.read()
    if len(rows) == n_genes == given.shape[1] and bool((position == np.arange(n_genes)).all()):
        rna = given
    else:
        ones = np.ones(len(rows), dtype=given.dtype)
        select = sparse.csr_matrix((ones, (rows, position[rows])), shape=(len(position), n_genes))
        rna = sparse.csr_matrix(given @ select)
        rna.sort_indices()
    has: np.ndarray = np.zeros(n_genes, dtype=bool)
    has[position[rows]] = True
    return rna, has


def _aligned_proteins(
    found: DataSet, schema: Schema, antibody_names: Mapping[str, str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    own = list(found.source.protein_names)
    counts = np.full((len(found.source.cell_names), len(schema.protein_names)), np.nan, np.float32)
    if not own:
        return counts, ()
    names = harmonise_antibodies(
        {"reference": list(schema.protein_names), "query": own},
        {"query": antibody_names} if antibody_names else None,
    )
    of_query = names[names["data_set"] == "query"]
    of_reference = names[names["data_set"] == "reference"]
    known = pd.Index(of_reference["harmonised"])
    position = known.get_indexer(pd.Index(of_query["harmonised"]))
    exact = pd.Index(schema.protein_names).get_indexer(pd.Index(of_query["harmonised"]))
    position = np.where(position < 0, exact, position)  # the given name is one of the model's
    matched = position >= 0
    if not (matched | found.controls).any():
        raise DataError(
            f"none of the query's {len(own)} proteins ({listed(own)}) is one of the reference model "
            f"({listed(schema.protein_names)}); say which are which with antibody_names, or give the "
            "RNA alone."
        )
    counts[:, position[matched]] = found.source.protein.read()[:, matched]
    return counts, tuple(np.array(own, dtype=object)[~matched & ~found.controls])


def extended_schema(
    query: AlignedQuery,
    columns: Columns,
    reference: Schema,
    antibody_names: Mapping[str, str] | None,
    *,
    new_categories: bool,
) -> tuple[Schema, QueryMapping]:
    """Return the reference's schema with the query's batches and panels appended.

    Parameters
    ----------
    new_categories
        Whether categorical covariates may have categories that the reference does not have.

    Raises
    ------
    DataError
        When a column is missing, or holds a new category although none may be new.
    """
    obs = query.source.obs
    batch, own_batches = _own_categories(obs, columns.batch_key)
    batches = _new_names(own_batches, reference.batch_names)
    panel, own_panels, panels = batch, own_batches, {}
    if reference.panel_names:
        panel, own_panels = _own_categories(obs, columns.panel_key)
        panels = _new_names(own_panels, reference.panel_names)
    lacking = ~has_rna(obs)
    if lacking.any():
        raise DataError(
            f"{lacking.sum():,} cells of the query have proteins alone, and a query is mapped by its "
            "RNA; leave them out, or fit one model to reference and query with totalvi.concat."
        )
    measured_rna = reference.panel_measured_rna
    if measured_rna:
        measured_rna += (True,) * len(own_panels)
    measured = measured_by_group(query.source.protein, panel, len(own_panels))
    covariates = tuple(
        known + _unknown(obs, key, known, new_categories)
        for key, known in zip(
            columns.categorical_covariate_keys, reference.covariate_categories, strict=True
        )
    )
    library_size = np.asarray(query.source.rna.read().sum(axis=1), dtype=np.float64).ravel()
    log_mean, log_variance = library_prior(np.maximum(library_size, 1.0), batch, len(own_batches))
    schema = replace(
        reference,
        columns=columns,
        batch_names=reference.batch_names + tuple(batches.values()),
        panel_names=reference.panel_names + tuple(panels.values()),
        covariate_categories=covariates,
        panel_measured=reference.panel_measured + measured,
        panel_measured_rna=measured_rna,
        library_log_mean=reference.library_log_mean + log_mean,
        library_log_variance=reference.library_log_variance + log_variance,
    )
    return schema, QueryMapping(
        n_reference_batches=len(reference.batch_names),
        n_reference_panels=len(reference.panel_measured),
        n_reference_categories=tuple(map(len, reference.covariate_categories)),
        batches=tuple(batches.items()),
        panels=tuple(panels.items()),
        antibody_names=tuple((str(a), str(b)) for a, b in (antibody_names or {}).items()),
        missing_genes=tuple(np.array(reference.gene_names, dtype=object)[~query.found_genes]),
    )


def _own_categories(obs: pd.DataFrame, key: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the code of each cell in a column, and the categories in order of their names."""
    codes, found = categories(obs, key)
    names = [_ALL_CELLS] if key is None else sorted(found)
    return codes if key is None else pd.Index(names).get_indexer(pd.Index(found))[codes], names


def _new_names(own: list[str], known: tuple[str, ...]) -> dict[str, str]:
    """Name batches or panels of the query so that they differ from the reference's."""
    names: dict[str, str] = {}
    for name in own:
        new = name
        while new in known or new in names.values():
            new = f"{new} (query)"
        names[name] = new
    return names


def _unknown(
    obs: pd.DataFrame, key: str, known: tuple[str, ...], may_be_new: bool
) -> tuple[str, ...]:
    new = tuple(name for name in sorted(categories(obs, key)[1]) if name not in known)
    if new and not may_be_new:
        raise DataError(
            f'obs["{key}"] holds "{new[0]}", which the model was not trained on; '
            f"{did_you_mean(new[0], known)}; or learn it with map_query(..., train=True)."
        )
    return new


def warn_of_alignment(query: AlignedQuery, schema: Schema, share_of_missing: float) -> None:
    """Warn about genes missing in the query, proteins missing in the reference, and unused modalities.

    ``share_of_missing`` is the share of RNA that the model expects in the missing genes.
    """
    missing = ~query.found_genes
    if missing.any():
        first = schema.gene_names[int(missing.argmax())]
        warnings.warn(
            f"The query lacks {missing.sum():,} of the {missing.size:,} genes of the reference model "
            f'({100 * missing.mean():.1f} %, "{first}" the first), in which the model expects '
            f"{100 * share_of_missing:.1f} % of the RNA counts; they count as 0.",
            stacklevel=4,
        )
    if query.unknown_proteins:
        warnings.warn(
            f"The reference model does not know {len(query.unknown_proteins)} proteins of the query, "
            f"which are left out: {listed(query.unknown_proteins, at_most=20)}; where one goes by "
            "another name there, say so with antibody_names.",
            stacklevel=4,
        )
    if query.unused:
        warnings.warn(
            f"The query has {listed(query.unused)} beside its RNA, which is left out; where those are "
            "the proteins, say so with protein_modality.",
            stacklevel=4,
        )
