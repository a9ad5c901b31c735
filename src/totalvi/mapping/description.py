"""A query as the arrays of its mapped model."""

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.annotation import Annotation
from totalvi.data.cite import CiteData
from totalvi.data.describe import Data, opened
from totalvi.data.finding import did_you_mean
from totalvi.data.schema import Schema
from totalvi.data.source import CountSource
from totalvi.errors import DataError
from totalvi.mapping.alignment import AlignedQuery, align_query, check_query
from totalvi.mapping.query_schema import QueryMapping, texts_of
from totalvi.module.totalvi import TOTALVI


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
    query = align_query(data, schema.keys, schema, dict(mapping.antibody_names))
    check_query(query.source, schema.keys, needs_labels)
    return query_cite_data(data, query, schema, mapping, needs_labels)


def query_cite_data(
    data: MuData | AnnData,
    query: AlignedQuery,
    schema: Schema,
    mapping: QueryMapping,
    needs_labels: bool,
) -> CiteData:
    """Return an aligned query as arrays; ``schema`` and ``mapping`` are of `extended_schema`."""
    keys, source, obs = schema.keys, query.source, query.source.obs
    batch = _codes(obs, keys.batch_key, dict(mapping.batches), schema.batch_names)
    panel = batch
    if mapping.panels:
        panel = _codes(obs, keys.panel_key, dict(mapping.panels), schema.panel_names)
    label = None
    if needs_labels:
        label = _known_codes(obs, str(keys.labels_key), schema.label_names)
    categorical = [
        _known_codes(obs, key, known)
        for key, known in zip(
            keys.categorical_covariate_keys, schema.covariate_categories, strict=True
        )
    ]
    continuous = obs[list(keys.continuous_covariate_keys)].to_numpy(dtype=np.float64)
    standardised = (continuous - schema.continuous_mean) / schema.continuous_scale
    rna = source.rna.astype(np.float32)
    rna.eliminate_zeros()
    library_size = (
        np.asarray(rna.sum(axis=1)).ravel()
        if keys.size_factor_key is None
        else obs[keys.size_factor_key].to_numpy(dtype=np.float64)
    )
    return CiteData(
        schema=schema,
        rna=rna,
        protein=_measured_protein(source, np.array(schema.panel_measured)[panel]),
        cell_names=source.cell_names,
        batch=batch,
        panel=panel,
        label=label,
        categorical=np.stack(categorical, axis=1) if categorical else None,
        continuous=standardised.astype(np.float32) if continuous.shape[1] else None,
        library_size=library_size.astype(np.float32),
        annotation=Annotation(data, obs, keys.rna_modality, keys.protein_modality),
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
    missing = np.argwhere(measured & np.isnan(source.protein))
    if len(missing):
        cell, protein = missing[0]
        raise DataError(
            f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" in '
            f'cell "{source.cell_names[cell]}", though others of its panel (or batch) have; give the '
            "counts, leave the cell out, or tell the panels apart by batch_key."
        )
    return np.where(measured, source.protein, np.float32(0))
