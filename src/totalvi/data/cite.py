"""CiteData: checked counts and annotation as arrays, in the order that a model knows them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.annotation import Annotation
from totalvi.data.checks import TRAINING_ONLY, check_counts, raise_errors
from totalvi.data.isotypes import control_counts, split_controls
from totalvi.data.source import CountSource, did_you_mean, find_counts
from totalvi.errors import DataError


@dataclass(frozen=True)
class Keys:
    """Where in a MuData or AnnData the counts and annotation are; see `totalvi.Model`."""

    batch_key: str | None = None
    panel_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    rna_modality: str = "rna"
    protein_modality: str = "prot"
    rna_layer: str | None = None
    protein_layer: str | None = None
    protein_expression_obsm_key: str | None = None
    protein_names_uns_key: str | None = None
    allow_fractional: bool = False
    isotype_controls: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Schema:
    """What a model must know of its training data to take new data.

    Parameters
    ----------
    keys
        Where counts and annotation are.
    gene_names, protein_names
        Features in the network's order.
    batch_names, panel_names, label_names
        Categories in the order of their codes; ``panel_names`` is empty where batches are the panels.
    covariate_categories
        Categories of each categorical covariate.
    continuous_mean, continuous_scale
        By which continuous covariates are standardised.
    panel_measured
        One row a panel: which proteins it measured.
    library_log_mean, library_log_variance
        Of the log RNA library size, by batch.
    control_names
        Isotype controls, which are not among the proteins.
    """

    keys: Keys
    gene_names: tuple[str, ...]
    protein_names: tuple[str, ...]
    batch_names: tuple[str, ...]
    panel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    covariate_categories: tuple[tuple[str, ...], ...]
    continuous_mean: tuple[float, ...]
    continuous_scale: tuple[float, ...]
    panel_measured: tuple[tuple[bool, ...], ...]
    library_log_mean: tuple[float, ...]
    library_log_variance: tuple[float, ...]
    control_names: tuple[str, ...] = ()

    def categories(self) -> dict[str, tuple[str, ...]]:
        """Return the known categories by obs key."""
        keys = self.keys
        known = dict(zip(keys.categorical_covariate_keys, self.covariate_categories, strict=True))
        by_key = {
            keys.batch_key: self.batch_names,
            keys.panel_key: self.panel_names,
            keys.labels_key: self.label_names,
        }
        known |= {key: names for key, names in by_key.items() if key is not None}
        return known

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """Return the schema that `to_dict` wrote."""
        keys = Keys(**{name: _tuples(value) for name, value in given["keys"].items()})
        rest = {name: _tuples(value) for name, value in given.items() if name != "keys"}
        return cls(keys=keys, **rest)


@dataclass(frozen=True)
class CiteData:
    """Counts and annotation of N cells, aligned with a schema; nothing here is the user's object.

    Parameters
    ----------
    schema
        Names and categories.
    rna
        Counts (N, G), CSR.
    protein
        Counts (N, T), float32; unmeasured proteins hold 0 and are told by ``schema.panel_measured``.
    cell_names
        Of the N cells.
    batch, panel, label
        Codes (N,); ``label`` is None without a labels key.
    categorical, continuous
        Covariates (N, covariates), or None.
    library_size
        Size factor where a key is given, else total RNA count, (N,).
    annotation
        Gives the ``obs`` of the cells.
    controls
        Counts of the isotype controls that the data have, (N, controls), by name.
    """

    schema: Schema
    rna: sparse.csr_matrix
    protein: np.ndarray
    cell_names: pd.Index
    batch: np.ndarray
    panel: np.ndarray
    label: np.ndarray | None
    categorical: np.ndarray | None
    continuous: np.ndarray | None
    library_size: np.ndarray
    annotation: Annotation
    controls: pd.DataFrame

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.rna.shape[0])

    @cached_property
    def cell_keys(self) -> np.ndarray:
        """One 64-bit number a cell, made from its name: the same in whatever data it comes."""
        return pd.util.hash_array(self.cell_names.to_numpy(object), categorize=False)


def describe(data: MuData | AnnData, keys: Keys, schema: Schema | None = None) -> CiteData:
    """Find, check and order the counts and annotation of ``data``, which is not changed.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts.
    keys
        Where they are.
    schema
        Of a model that exists: features are aligned with it by name, and categories must be known
        to it. None: the schema is made from the data.

    Raises
    ------
    DataError
        When the data cannot be used; the message names what is wrong and the mend.
    """
    source = find_source(data, keys)
    findings = check_source(source, keys)
    if schema is None:
        raise_errors(findings)
        source, controls = split_controls(
            data, source, keys.protein_modality, keys.isotype_controls
        )
    else:
        raise_errors([finding for finding in findings if finding.code not in TRAINING_ONLY])
        controls = control_counts(data, source, schema.control_names)
        source = _align(source, schema)
    annotation = Annotation(data, source.obs, keys.rna_modality, keys.protein_modality)
    return _cite_data(source, keys, schema, annotation, controls)


def find_source(data: MuData | AnnData, keys: Keys) -> CountSource:
    """Find the counts where ``keys`` say."""
    return find_counts(
        data,
        rna_modality=keys.rna_modality,
        protein_modality=keys.protein_modality,
        rna_layer=keys.rna_layer,
        protein_layer=keys.protein_layer,
        protein_expression_obsm_key=keys.protein_expression_obsm_key,
        protein_names_uns_key=keys.protein_names_uns_key,
    )


def check_source(source: CountSource, keys: Keys) -> list[Any]:
    """Return the findings of all checks of ``source`` under ``keys``."""
    return check_counts(
        source,
        batch_key=keys.batch_key,
        panel_key=keys.panel_key,
        labels_key=keys.labels_key,
        size_factor_key=keys.size_factor_key,
        categorical_covariate_keys=keys.categorical_covariate_keys,
        continuous_covariate_keys=keys.continuous_covariate_keys,
        allow_fractional=keys.allow_fractional,
    )


def _cite_data(
    source: CountSource,
    keys: Keys,
    schema: Schema | None,
    annotation: Annotation,
    controls: pd.DataFrame,
) -> CiteData:
    obs = source.obs
    known = {} if schema is None else schema.categories()
    rna = source.rna.astype(np.float32)  # keeps the user's own array out of reach
    rna.eliminate_zeros()
    batch, batch_names = _codes(obs, keys.batch_key, known)
    panel, panel_names = (
        (batch, ()) if keys.panel_key is None else _codes(obs, keys.panel_key, known)
    )
    label, label_names = _codes(obs, keys.labels_key, known)
    categorical = [_codes(obs, key, known) for key in keys.categorical_covariate_keys]
    continuous = obs[list(keys.continuous_covariate_keys)].to_numpy(dtype=np.float64)
    library_size = (
        np.asarray(rna.sum(axis=1)).ravel()
        if keys.size_factor_key is None
        else obs[keys.size_factor_key].to_numpy(dtype=np.float64)
    )
    if schema is None:
        n_panels = len(panel_names) or len(batch_names)
        log_mean, log_variance = library_prior(library_size, batch, len(batch_names))
        schema = Schema(
            keys=keys,
            gene_names=tuple(source.gene_names),
            protein_names=tuple(source.protein_names),
            batch_names=batch_names,
            panel_names=panel_names,
            label_names=label_names if keys.labels_key else (),
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
        label=label if keys.labels_key else None,
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


def library_prior(
    library_size: np.ndarray, batch: np.ndarray, n_batches: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and variance of the log library size of each batch."""
    logs = [np.log(library_size[batch == code]) for code in range(n_batches)]
    return tuple(float(x.mean()) for x in logs), tuple(max(float(x.var()), 1e-4) for x in logs)


def _measured(
    protein: np.ndarray, panel: np.ndarray, n_panels: int
) -> tuple[tuple[bool, ...], ...]:
    """Return which proteins each panel measured: those not NaN in its cells."""
    unmeasured = np.isnan(protein)
    rows = [~unmeasured[panel == code].all(axis=0) for code in range(n_panels)]
    return tuple(tuple(map(bool, row)) for row in rows)


def _measured_protein(source: CountSource, schema: Schema, panel: np.ndarray) -> np.ndarray:
    """Return protein counts with 0 where the cell's panel did not measure the protein."""
    measured = np.array(schema.panel_measured)[panel]
    missing = np.argwhere(measured & np.isnan(source.protein))
    if len(missing):
        cell, protein = missing[0]
        raise DataError(
            f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" in '
            f'cell "{source.cell_names[cell]}", whose panel (or batch) measured it in the data that '
            "the model was trained on; give the counts, or leave the cell out."
        )
    return np.where(measured, source.protein, np.float32(0))


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
        rna=source.rna if _is_identity(genes, source.rna.shape[1]) else source.rna[:, genes],
        protein=source.protein[:, proteins],
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


def _is_identity(positions: np.ndarray, n: int) -> bool:
    return len(positions) == n and bool((positions == np.arange(n)).all())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
