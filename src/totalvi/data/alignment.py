"""A query's counts in the order of a reference model."""

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
from totalvi.data.cells import Schema
from totalvi.data.checks import TRAINING_ONLY, check_counts, raise_errors
from totalvi.data.columns import Columns
from totalvi.data.counts import CountsInMemory
from totalvi.data.find import CountSource
from totalvi.data.finding import listed
from totalvi.data.panels.antibodies import harmonise_antibodies
from totalvi.data.panels.data_sets import DataSet, find_data_set
from totalvi.data.panels.gene_names import align_genes
from totalvi.errors import DataError

LEAST_SHARED_GENES = 0.5  # of the reference's


class AlignedQuery(NamedTuple):
    """A query's counts in the reference's order.

    Parameters
    ----------
    source
        Counts of the reference's genes, 0 where the query lacks one, and of its proteins, NaN where
        the query lacks one.
    found_genes, found_proteins
        Which of the reference's genes and proteins the query has.
    unknown_proteins
        Names of the query's proteins that the reference does not know, isotype controls aside.
    controls
        Counts of the reference's isotype controls that the query has, (N, controls), by name.
    unused
        What a query without proteins has beside its RNA.
    """

    source: CountSource
    found_genes: np.ndarray
    found_proteins: np.ndarray
    unknown_proteins: tuple[str, ...]
    controls: pd.DataFrame
    unused: tuple[str, ...]


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
        When no counts are found, or too few genes or no proteins of those there match.
    """
    found = find_data_set("query", data, columns)
    rna, found_genes = _aligned_rna(found, schema)
    protein, found_proteins, unknown = _aligned_proteins(found, schema, antibody_names)
    source = found.source._replace(
        rna=CountsInMemory(rna),
        protein=CountsInMemory(protein),
        gene_names=pd.Index(schema.gene_names, dtype=object),
        protein_names=pd.Index(schema.protein_names, dtype=object),
    )
    controls = control_counts(data, found.source, schema.control_names)
    return AlignedQuery(source, found_genes, found_proteins, unknown, controls, found.unused)


def _aligned_rna(found: DataSet, schema: Schema) -> tuple[sparse.csr_matrix, np.ndarray]:
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
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    own = list(found.source.protein_names)
    counts = np.full((len(found.source.cell_names), len(schema.protein_names)), np.nan, np.float32)
    if not own:
        return counts, np.zeros(len(schema.protein_names), dtype=bool), ()
    names = harmonise_antibodies(
        {"reference": list(schema.protein_names), "query": own},
        {"query": antibody_names} if antibody_names else None,
    )
    of_query = names[names["data_set"] == "query"]
    of_reference = names[names["data_set"] == "reference"]
    known = pd.Index(of_reference["harmonised"])
    position = known.get_indexer(pd.Index(of_query["harmonised"]))
    exact = pd.Index(schema.protein_names).get_indexer(pd.Index(of_query["harmonised"]))
    position = np.where(position < 0, exact, position)  # a name given is the model's own
    matched = position >= 0
    if not (matched | found.controls).any():
        raise DataError(
            f"none of the query's {len(own)} proteins ({listed(own)}) is one of the reference model "
            f"({listed(schema.protein_names)}); say which are which with antibody_names, or give the "
            "RNA alone."
        )
    counts[:, position[matched]] = found.source.protein.read()[:, matched]
    measured = np.asarray(~np.isnan(counts).all(axis=0))
    return counts, measured, tuple(np.array(own, dtype=object)[~matched & ~found.controls])


def check_query(source: CountSource, columns: Columns, needs_labels: bool) -> None:
    """Raise DataError for the first thing that keeps the counts and annotation from being used."""
    if not needs_labels:
        columns = replace(columns, labels_key=None)
    findings = check_counts(source, columns)
    raise_errors([finding for finding in findings if finding.code not in TRAINING_ONLY])


def warn_of_alignment(query: AlignedQuery, schema: Schema, share_of_missing: float) -> None:
    """Warn of genes that the query lacks, of proteins that the reference lacks, and of what is unused.

    ``share_of_missing`` is the share of RNA that the model expects in the genes that are missing.
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
