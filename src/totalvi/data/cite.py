"""CiteData: checked counts and annotation as arrays, in the order that a model knows them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, Self, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.annotation import Annotation
from totalvi.data.checks import TRAINING_ONLY, check_counts, raise_errors, tally_by_group
from totalvi.data.finding import Finding
from totalvi.data.isotypes import control_counts, split_controls
from totalvi.data.on_disk import RowsOnDisk, row_blocks, take_columns
from totalvi.data.open import open_on_disk
from totalvi.data.source import CountSource, did_you_mean, find_counts
from totalvi.data.tally import CountTally
from totalvi.errors import DataError

Data: TypeAlias = MuData | AnnData | str | PathLike[str]


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
        Counts (N, G), CSR, or rows on disk.
    protein
        Counts (N, T), float32, or rows on disk; unmeasured proteins hold 0 and are told by
        ``schema.panel_measured``.
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
    rna: Any  # csr_matrix or RowsOnDisk
    protein: Any  # ndarray or MeasuredOnDisk
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

    @property
    def on_disk(self) -> bool:
        """Whether the RNA counts are on disk, to be read some cells at a time."""
        return isinstance(self.rna, RowsOnDisk)

    def in_memory(self, cells: np.ndarray) -> Self:
        """Return the cells at these positions, counts and all, in memory."""

        def of_cells(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[cells]

        return replace(
            self,
            rna=self.rna[cells],
            protein=self.protein[cells],
            cell_names=self.cell_names[cells],
            batch=self.batch[cells],
            panel=self.panel[cells],
            label=of_cells(self.label),
            categorical=of_cells(self.categorical),
            continuous=of_cells(self.continuous),
            library_size=self.library_size[cells],
            controls=self.controls.iloc[cells],
        )

    @cached_property
    def cell_keys(self) -> np.ndarray:
        """One 64-bit number a cell, made from its name: the same in whatever data it comes."""
        return pd.util.hash_array(self.cell_names.to_numpy(object), categorize=False)


class MeasuredOnDisk:
    """Protein counts on disk, with 0 where the cell's panel did not measure the protein."""

    def __init__(self, protein: RowsOnDisk, panel: np.ndarray, measured: np.ndarray) -> None:
        self._protein, self._panel, self._measured = protein, panel, measured
        self.shape = protein.shape

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        return np.where(self._measured[self._panel[rows]], self._protein[rows], np.float32(0))


def describe(
    data: Data, keys: Keys, schema: Schema | None = None, *, on_disk: bool = False
) -> CiteData:
    """Find, check and order the counts and annotation of ``data``, which is not changed.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts; or the path of one, whose counts then stay on disk.
    keys
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
    source = find_source(data, keys, on_disk=on_disk)
    tally = tally_by_group(source, keys.batch_key, keys.panel_key)
    findings = check_source(source, keys, tally)
    library_size = tally.rna_total
    if schema is None:
        raise_errors(findings)
        source, controls = split_controls(
            data, source, keys.protein_modality, keys.isotype_controls
        )
    else:
        raise_errors([finding for finding in findings if finding.code not in TRAINING_ONLY])
        controls = control_counts(data, source, schema.control_names)
        aligned = _align(source, schema)
        if aligned.rna is not source.rna:
            library_size = _totals(aligned.rna)
        source = aligned
    annotation = Annotation(data, source.obs, keys.rna_modality, keys.protein_modality)
    return _cite_data(source, keys, schema, annotation, library_size, controls)


def opened(data: Data, *, on_disk: bool = False) -> tuple[MuData | AnnData, bool]:
    """Open a path, and return the data and whether counts that lie on disk are to stay there."""
    if isinstance(data, str | PathLike):
        return open_on_disk(data), True
    return data, on_disk


def find_source(data: MuData | AnnData, keys: Keys, *, on_disk: bool = False) -> CountSource:
    """Find the counts where ``keys`` say."""
    return find_counts(
        data,
        rna_modality=keys.rna_modality,
        protein_modality=keys.protein_modality,
        rna_layer=keys.rna_layer,
        protein_layer=keys.protein_layer,
        protein_expression_obsm_key=keys.protein_expression_obsm_key,
        protein_names_uns_key=keys.protein_names_uns_key,
        on_disk=on_disk,
    )


def check_source(source: CountSource, keys: Keys, tally: CountTally | None = None) -> list[Finding]:
    """Return the findings of all checks of ``source`` under ``keys``; see `check_counts`."""
    return check_counts(
        source,
        batch_key=keys.batch_key,
        panel_key=keys.panel_key,
        labels_key=keys.labels_key,
        size_factor_key=keys.size_factor_key,
        categorical_covariate_keys=keys.categorical_covariate_keys,
        continuous_covariate_keys=keys.continuous_covariate_keys,
        allow_fractional=keys.allow_fractional,
        tally=tally,
    )


def _cite_data(
    source: CountSource,
    keys: Keys,
    schema: Schema | None,
    annotation: Annotation,
    library_size: np.ndarray,
    controls: pd.DataFrame,
) -> CiteData:
    obs = source.obs
    known = {} if schema is None else schema.categories()
    rna = source.rna
    if not isinstance(rna, RowsOnDisk):
        rna = rna.astype(np.float32)  # keeps the user's own array out of reach
        rna.eliminate_zeros()
    batch, batch_names = _codes(obs, keys.batch_key, known)
    panel, panel_names = (
        (batch, ()) if keys.panel_key is None else _codes(obs, keys.panel_key, known)
    )
    label, label_names = _codes(obs, keys.labels_key, known)
    categorical = [_codes(obs, key, known) for key in keys.categorical_covariate_keys]
    continuous = obs[list(keys.continuous_covariate_keys)].to_numpy(dtype=np.float64)
    if keys.size_factor_key is not None:
        library_size = obs[keys.size_factor_key].to_numpy(dtype=np.float64)
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


def _totals(rna: sparse.csr_matrix | RowsOnDisk) -> np.ndarray:
    """Return the total RNA count of each cell."""
    totals = [np.asarray(block.sum(axis=1)).ravel() for _, block in row_blocks(rna)]
    return np.concatenate(totals)


def _measured(
    protein: np.ndarray | RowsOnDisk, panel: np.ndarray, n_panels: int
) -> tuple[tuple[bool, ...], ...]:
    """Return which proteins each panel measured: those not NaN in its cells."""
    measured = np.zeros((n_panels, protein.shape[1]), dtype=bool)
    for start, values in row_blocks(protein):
        codes = panel[start : start + len(values)]
        for code in np.unique(codes):
            measured[code] |= ~np.isnan(values[codes == code]).all(axis=0)
    return tuple(tuple(map(bool, row)) for row in measured)


def _measured_protein(
    source: CountSource, schema: Schema, panel: np.ndarray
) -> np.ndarray | MeasuredOnDisk:
    """Return protein counts with 0 where the cell's panel did not measure the protein."""
    by_panel = np.array(schema.panel_measured)
    for start, values in row_blocks(source.protein):
        measured = by_panel[panel[start : start + len(values)]]
        missing = np.argwhere(measured & np.isnan(values))
        if len(missing):
            cell, protein = start + missing[0][0], missing[0][1]
            raise DataError(
                f'{source.protein_where} has no value for protein "{source.protein_names[protein]}" '
                f'in cell "{source.cell_names[cell]}", whose panel (or batch) measured it in the data '
                "that the model was trained on; give the counts, or leave the cell out."
            )
    if isinstance(source.protein, RowsOnDisk):
        return MeasuredOnDisk(source.protein, panel, by_panel)
    return np.where(by_panel[panel], source.protein, np.float32(0))


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
        rna=take_columns(source.rna, genes),
        protein=take_columns(source.protein, proteins),
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


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
