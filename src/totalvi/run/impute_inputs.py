"""Read the reference and the query of an imputation, and join them as batches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.background.ambient import AMBIENT
from totalvi.data.cells import has_rna
from totalvi.data.check_counts import rna_findings
from totalvi.data.checks import raise_errors, tally_by_group
from totalvi.data.columns import Columns, joined_obs
from totalvi.data.contents import contents_findings
from totalvi.data.find import CountSource
from totalvi.data.io.features import has_types
from totalvi.data.io.modalities import (
    Rows,
    known_protein_obsm_key,
    mudata_of,
    split_proteins,
)
from totalvi.data.io.read import ReadOptions
from totalvi.data.panels.antibodies import Unmeasured, declare_unmeasured, harmonise_antibodies
from totalvi.data.panels.concat import concat
from totalvi.data.panels.data_sets import find_data_set
from totalvi.errors import DataError, Finding, ReadError, did_you_mean, setting
from totalvi.run.inputs import counts_in_x, read_input

REFERENCE, QUERY = "reference", "query"
BATCH, PANEL = "totalvi_batch", "totalvi_panel"  # unlikely to be columns of the user's
_MOST_ANTIBODIES = 1000  # which no panel exceeds
_OF_PROTEINS = (
    "the query's features are named as the antibodies of the reference, not as its genes, so they are "
    "read as proteins, without RNA."
)
Input: TypeAlias = str | Path | MuData | AnnData


def read_both(
    reference: Input,
    query: Input,
    keys: Columns,
    reading: ReadOptions,
    unmeasured: Unmeasured | None,
) -> tuple[dict[str, MuData | AnnData], list[Finding]]:
    """Read both inputs, each with its counts where they are, and say what of each is used."""
    both, said = dict[str, MuData | AnnData](), list[Finding]()
    of_reference = Columns()
    for name, given in ((REFERENCE, reference), (QUERY, query)):
        own, how = keys, reading
        if name == QUERY:
            how = how._replace(protein_path=None)
        try:
            data, found = read_input(given, own, how)
        except ReadError:
            if name == REFERENCE or own.protein_expression_obsm_key is None:
                raise
            own = replace(own, protein_expression_obsm_key=None)  # the query may well lack it
            data, found = read_input(given, own, how)
        if isinstance(data, AnnData) and found.protein_expression_obsm_key is None:
            found = replace(found, protein_expression_obsm_key=known_protein_obsm_key(data))
        as_proteins = None
        if name == QUERY and (features := _few_untyped(data)) is not None:
            where = of_reference if isinstance(both[REFERENCE], AnnData) else Columns()
            known = find_data_set(REFERENCE, both[REFERENCE], where).source
            as_proteins = _antibodies_of(known, features, data.obs, reading)
        if as_proteins is not None:
            layers = (keys.protein_layer, keys.rna_layer)
            own_layer = next((x for x in layers if x in as_proteins["prot"].layers), None)
            data, found = as_proteins, Columns(protein_layer=own_layer)
            said.append(Finding("note", "query_of_proteins", _OF_PROTEINS))
        said += contents_findings(data, found, name)
        data = counts_in_x(data, found)
        if isinstance(data, MuData):
            _require_counts(name, data, keys.allow_fractional)
        if isinstance(data, MuData) and unmeasured and "prot" in data.mod:
            data = _declared(data, unmeasured, keys.batch_key)
        both[name] = data
        of_reference = found if name == REFERENCE else of_reference
    return both, said


def _few_untyped(query: MuData | AnnData) -> AnnData | None:
    """Return features that may be antibodies without saying so, as in a table; None: there are none."""
    features = (
        query.mod["rna"] if isinstance(query, MuData) and set(query.mod) == {"rna"} else query
    )
    if isinstance(features, MuData) or not 0 < features.n_vars <= _MOST_ANTIBODIES:
        return None
    return None if has_types(features.var) or not features.var_names.is_unique else features


def _antibodies_of(
    reference: CountSource, features: AnnData, obs: pd.DataFrame, reading: ReadOptions
) -> MuData | None:
    """Return a query whose features are the reference's antibodies as such; None for other features.

    Raises
    ------
    DataError
        When all are names of both, as CD4, CD14 and CD19 are.
    """
    names = {REFERENCE: list(reference.protein_names), QUERY: list(features.var_names.astype(str))}
    if not names[REFERENCE]:
        return None
    table = harmonise_antibodies(names)
    by_data_set = table.groupby("data_set")["harmonised"].agg(set)
    n_antibodies = len(by_data_set[QUERY] & by_data_set[REFERENCE])
    n_genes = len(set(names[QUERY]) & set(reference.gene_names))
    if n_antibodies == n_genes == features.n_vars:
        raise DataError(
            "the query's features are named as antibodies and as genes of the reference alike; say "
            'what they are in var["feature_types"] ("Antibody Capture" or "Gene Expression").'
        )
    if n_antibodies <= n_genes or 2 * n_antibodies < features.n_vars:
        return None
    rows = Rows(reading.hashtags, reading.controls, reading.leave_out)
    return mudata_of(split_proteins(features, rows, "the query"), obs)


def joined_batches(both: Mapping[str, MuData | AnnData], given: Columns) -> tuple[MuData, Columns]:
    """Join reference and query as batches, and return the columns that say so."""
    joined = concat(
        both,
        batch_key=BATCH,
        panel_key=PANEL,
        sub_batch_key=given.batch_key,
        protein_expression_obsm_key=_obsm_key_in_memory(both, given),
    )
    keys = Columns(
        batch_key=BATCH,
        panel_key=None if given.batch_key is None else PANEL,
        allow_fractional=given.allow_fractional,
        isotype_controls=given.isotype_controls,
    )
    return joined, keys


def in_query(mdata: MuData) -> np.ndarray:
    """Return which cells are the query's, (N,)."""
    batch = mdata.obs[BATCH].astype(str)
    return np.asarray((batch == QUERY) | batch.str.startswith(f"{QUERY}:"))


def without_rna(mdata: MuData) -> np.ndarray:
    """Return which cells are the query's and have no RNA, (N,)."""
    return np.asarray(in_query(mdata) & ~has_rna(mdata.obs))


def reference_alone(mdata: MuData) -> MuData:
    """Return the cells of the reference, with the proteins that it measured."""
    cells = ~in_query(mdata)
    measured = ~np.isnan(mdata["prot"].X[cells]).all(axis=0)
    reference = _part(mdata, cells, mdata["prot"].var_names[measured])
    reference.uns |= {name: value for name, value in mdata.uns.items() if name == AMBIENT}
    return reference


def query_alone(mdata: MuData, proteins: Sequence[str]) -> MuData:
    """Return the cells of the query, with those of the proteins that are there."""
    return _part(mdata, in_query(mdata), mdata["prot"].var_names.intersection(proteins))


def _part(mdata: MuData, cells: np.ndarray, proteins: pd.Index) -> MuData:
    rna, protein = mdata["rna"][cells].copy(), mdata["prot"][cells][:, proteins].copy()
    part = MuData({"rna": rna, "prot": protein})
    part.obs = mdata.obs.loc[part.obs_names].copy()
    for name in (BATCH, PANEL):
        part.obs[name] = part.obs[name].astype(str)  # without the categories of the other cells
    return part


def _require_counts(name: str, data: MuData, allow_fractional: bool) -> None:
    """Refuse values that are no counts while it is known what else the input holds."""
    source = find_data_set(name, data, Columns()).source
    tally = tally_by_group(source, Columns())
    findings = rna_findings(source, tally, allow_fractional=allow_fractional)
    raise_errors([f for f in findings if f.code != "cell_without_rna"])


def _declared(data: MuData, unmeasured: Unmeasured, batch_key: str | None) -> MuData:
    """Return one of the inputs with NaN for the proteins that its batches did not measure."""
    obs = joined_obs(data, data["rna"], data["prot"]) if "rna" in data.mod else data.obs
    batch_key = batch_key if batch_key in obs else None
    if not isinstance(unmeasured, str):
        own = set() if batch_key is None else set(obs[batch_key].astype(str))
        unmeasured = {name: proteins for name, proteins in unmeasured.items() if name in own}
    return declare_unmeasured(data, unmeasured, batch_key=batch_key)


def _obsm_key_in_memory(both: Mapping[str, MuData | AnnData], keys: Columns) -> str | None:
    """Return the entry of ``obsm`` that was named, where data in memory have it."""
    key = keys.protein_expression_obsm_key
    return key if any(isinstance(d, AnnData) and key in d.obsm for d in both.values()) else None


def require_column(data: Mapping[str, MuData | AnnData], batch_key: str | None) -> None:
    """Refuse a column of batches that neither input has."""
    obs = [each.obs for each in data.values()]
    obs += [
        part.obs for each in data.values() if isinstance(each, MuData) for part in each.mod.values()
    ]
    known = dict.fromkeys(str(column) for frame in obs for column in frame)
    if batch_key is not None and batch_key not in known:
        raise DataError(
            f"{setting('batch_key', batch_key)} is no column of obs of the reference or the query; "
            f"{did_you_mean(batch_key, known)}."
        )
