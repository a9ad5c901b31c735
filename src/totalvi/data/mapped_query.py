"""The reference's schema with a query's batches and panels behind its own."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.alignment import AlignedQuery, align_query, check_query
from totalvi.data.cells import Annotation, CiteData, Schema, library_prior
from totalvi.data.columns import Columns
from totalvi.data.counts import CountsInMemory
from totalvi.data.describe import Data, opened
from totalvi.data.find import CountSource
from totalvi.data.finding import did_you_mean
from totalvi.errors import DataError
from totalvi.nn.v06 import TOTALVI

_ALL_CELLS = "query"  # name of a batch that has no other


@dataclass(frozen=True)
class QueryMapping:
    """What a mapped model remembers of how its query was laid on the reference.

    Parameters
    ----------
    n_reference_batches, n_reference_panels, n_reference_categories
        How many batches, panels and categories of each covariate are the reference's; the query's
        come after them.
    batches, panels
        The query's own name of each of its batches and panels, and the model's; empty ``panels``:
        each batch is one.
    antibody_names
        Names of the query's antibodies that the user decided on.
    reference_batches
        For each query batch, the reference batch whose weights it started from, or "average".
    missing_genes
        The reference's genes that the query lacks.
    """

    n_reference_batches: int
    n_reference_panels: int
    n_reference_categories: tuple[int, ...]
    batches: tuple[tuple[str, str], ...]
    panels: tuple[tuple[str, str], ...]
    antibody_names: tuple[tuple[str, str], ...] = ()
    reference_batches: tuple[str, ...] = ()
    missing_genes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Return the mapping that `to_dict` wrote."""
        plain = {
            name: tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
            for name, value in given.items()
            if isinstance(value, list | tuple)
        }
        return cls(**(given | plain))


def extended_schema(
    query: AlignedQuery,
    columns: Columns,
    reference: Schema,
    antibody_names: Mapping[str, str] | None,
    *,
    new_categories: bool,
) -> tuple[Schema, QueryMapping]:
    """Return the reference's schema with the query's batches and panels behind its own.

    Parameters
    ----------
    new_categories
        Whether categorical covariates may have categories that the reference does not know.

    Raises
    ------
    DataError
        When a column is missing, or holds a category that may not be new.
    """
    obs = query.source.obs
    own_batches = _groups(obs, columns.batch_key)
    batches = _new_names(own_batches, reference.batch_names)
    has_panels = bool(reference.panel_names)
    own_panels = _groups(obs, columns.panel_key) if has_panels else []
    panels = _new_names(own_panels, reference.panel_names)
    group = texts_of(obs, columns.panel_key if has_panels else columns.batch_key)
    measured = _measured(query.source.protein.read(), group, own_panels or own_batches)
    categories = tuple(
        known + _unknown(obs, key, known, new_categories)
        for key, known in zip(
            columns.categorical_covariate_keys, reference.covariate_categories, strict=True
        )
    )
    library_size = np.asarray(query.source.rna.read().sum(axis=1), dtype=np.float64).ravel()
    codes = pd.Index(own_batches).get_indexer(pd.Index(texts_of(obs, columns.batch_key)))
    log_mean, log_variance = library_prior(np.maximum(library_size, 1.0), codes, len(own_batches))
    schema = replace(
        reference,
        columns=columns,
        batch_names=reference.batch_names + tuple(batches.values()),
        panel_names=reference.panel_names + tuple(panels.values()),
        covariate_categories=categories,
        panel_measured=reference.panel_measured + measured,
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


def texts_of(obs: pd.DataFrame, key: str | None) -> np.ndarray:
    """Return each cell's name in a column; without a key, one name for all."""
    return np.full(len(obs), _ALL_CELLS) if key is None else obs[key].astype(str).to_numpy()


def _groups(obs: pd.DataFrame, key: str | None) -> list[str]:
    return sorted(map(str, set(texts_of(obs, key))))


def _new_names(own: list[str], known: tuple[str, ...]) -> dict[str, str]:
    """Name batches or panels of the query so that they differ from the reference's."""
    names: dict[str, str] = {}
    for name in own:
        new = name
        while new in known or new in names.values():
            new = f"{new} (query)"
        names[name] = new
    return names


def _measured(
    protein: np.ndarray, group: np.ndarray, groups: list[str]
) -> tuple[tuple[bool, ...], ...]:
    rows = [~np.isnan(protein[group == name]).all(axis=0) for name in groups]
    return tuple(tuple(map(bool, row)) for row in rows)


def _unknown(
    obs: pd.DataFrame, key: str, known: tuple[str, ...], may_be_new: bool
) -> tuple[str, ...]:
    new = tuple(name for name in _groups(obs, key) if name not in known)
    if new and not may_be_new:
        raise DataError(
            f'obs["{key}"] holds "{new[0]}", which the model was not trained on; '
            f"{did_you_mean(new[0], known)}; or learn it with map_query(..., train=True)."
        )
    return new


def dispersion_by_label(module: TOTALVI) -> bool:
    """Return whether the network needs each cell's label."""
    return "label" in module.gene_dispersion + module.protein_dispersion


def describe_query(
    data: Data, schema: Schema, mapping: QueryMapping, needs_labels: bool
) -> CiteData:
    """Return more cells of a query that was mapped, or the same ones again, in memory.

    Raises
    ------
    DataError
        When the data cannot be used, or hold other batches than the query that was mapped.
    """
    data = opened(data)[0]
    query = align_query(data, schema.columns, schema, dict(mapping.antibody_names))
    check_query(query.source, schema.columns, needs_labels)
    return query_cite_data(data, query, schema, mapping, needs_labels)


def query_cite_data(
    data: MuData | AnnData,
    query: AlignedQuery,
    schema: Schema,
    mapping: QueryMapping,
    needs_labels: bool,
) -> CiteData:
    """Return an aligned query as arrays; ``schema`` and ``mapping`` are of `extended_schema`."""
    columns, source, obs = schema.columns, query.source, query.source.obs
    batch = _codes(obs, columns.batch_key, dict(mapping.batches), schema.batch_names)
    panel = batch
    if mapping.panels:
        panel = _codes(obs, columns.panel_key, dict(mapping.panels), schema.panel_names)
    label = None
    if needs_labels:
        label = _known_codes(obs, str(columns.labels_key), schema.label_names)
    categorical = [
        _known_codes(obs, key, known)
        for key, known in zip(
            columns.categorical_covariate_keys, schema.covariate_categories, strict=True
        )
    ]
    continuous = obs[list(columns.continuous_covariate_keys)].to_numpy(dtype=np.float64)
    standardised = (continuous - schema.continuous_mean) / schema.continuous_scale
    rna = source.rna.read().astype(np.float32)
    rna.eliminate_zeros()
    library_size = (
        np.asarray(rna.sum(axis=1)).ravel()
        if columns.size_factor_key is None
        else obs[columns.size_factor_key].to_numpy(dtype=np.float64)
    )
    return CiteData(
        schema=schema,
        rna=CountsInMemory(rna),
        protein=CountsInMemory(_measured_protein(source, np.array(schema.panel_measured)[panel])),
        cell_names=source.cell_names,
        batch=batch,
        panel=panel,
        label=label,
        categorical=np.stack(categorical, axis=1) if categorical else None,
        continuous=standardised.astype(np.float32) if continuous.shape[1] else None,
        library_size=library_size.astype(np.float32),
        annotation=Annotation(data, obs, columns.rna_modality, columns.protein_modality),
        controls=query.controls,
    )


def _codes(
    obs: pd.DataFrame, key: str | None, names: dict[str, str], known: tuple[str, ...]
) -> np.ndarray:
    """Return the codes of the query's batches or panels, by their own names."""
    texts = texts_of(obs, key)
    for name in sorted(set(texts) - set(names)):
        raise DataError(
            f'obs["{key}"] holds "{name}", which was not in the query that was mapped; '
            f"{did_you_mean(name, names)}; map these cells with map_query of the reference model."
        )
    return np.array([known.index(names[text]) for text in texts], dtype=np.int64)


def _known_codes(obs: pd.DataFrame, key: str, known: tuple[str, ...]) -> np.ndarray:
    texts = texts_of(obs, key)
    codes = pd.Index(known).get_indexer(pd.Index(texts)).astype(np.int64)
    if (codes < 0).any():
        name = str(texts[int((codes < 0).argmax())])
        raise DataError(
            f'obs["{key}"] holds "{name}", which the model was not trained on; '
            f"{did_you_mean(name, known)}."
        )
    return codes


def _measured_protein(source: CountSource, measured: np.ndarray) -> np.ndarray:
    counts = source.protein.read()
    missing = np.argwhere(measured & np.isnan(counts))
    if len(missing):
        cell, protein = missing[0]
        raise DataError(
            f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" in '
            f'cell "{source.cell_names[cell]}", though others of its panel (or batch) have; give the '
            "counts, leave the cell out, or tell the panels apart by batch_key."
        )
    return np.where(measured, counts, np.float32(0))
