"""Public CITE-seq data sets, downloaded from their publishers."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pandas as pd

from totalvi.data.io.download import cache_folder, download
from totalvi.errors import DownloadError

if TYPE_CHECKING:
    from mudata import MuData

Kind = Literal["filtered", "raw"]

TENX_FILES = "https://cf.10xgenomics.com/samples"
TENX_PAGES = "https://support.10xgenomics.com"


class PublicDataset(NamedTuple):
    """One published data set: its address, and the content of its filtered file.

    ``cells`` and ``proteins`` are the numbers of barcodes and of antibodies (isotype controls
    included) of the filtered file, or None if they are not known for certain.
    """

    name: str
    title: str
    version: str  # version of Cell Ranger; part of the address
    cells: int | None = None
    proteins: int | None = None
    publisher_name: str = ""  # None: the same as `name`
    assay: Literal["cell-exp", "cell-vdj"] = "cell-exp"
    kinds: tuple[Kind, ...] = ("filtered", "raw")
    sha256: str | None = None  # of the filtered file

    @property
    def stem(self) -> str:
        """The publisher's name of the data set."""
        return self.publisher_name or self.name

    @property
    def page(self) -> str:
        """The address of the publisher's description."""
        product = "vdj" if self.assay == "cell-vdj" else "gene-expression"
        return f"{TENX_PAGES}/single-cell-{product}/datasets/{self.version}/{self.stem}"

    def file_name(self, kind: Kind) -> str:
        """Return the name of the count file of one kind."""
        return f"{self.stem}_{kind}_feature_bc_matrix.h5"

    def url(self, kind: Kind, base_url: str | None = None) -> str:
        """Return the address of the count file of one kind."""
        base = (base_url or TENX_FILES).rstrip("/")
        return f"{base}/{self.assay}/{self.version}/{self.stem}/{self.file_name(kind)}"


DATASETS = (
    PublicDataset("pbmc_10k_protein_v3", "10k PBMCs, healthy donor, TotalSeq-B", "3.0.0", 7865, 17),
    PublicDataset(
        "pbmc_5k_protein_v3",
        "5k PBMCs, healthy donor, TotalSeq-B",
        "3.1.0",
        5247,
        32,
        publisher_name="5k_pbmc_protein_v3",
        sha256="3b290ad9605b96974c9c16e5ae3427e5e5c496a66e55223df135b388b6d61417",
    ),
    PublicDataset(
        "5k_pbmc_protein_v3_nextgem", "5k PBMCs, healthy donor, TotalSeq-B, Next GEM", "3.1.0"
    ),
    PublicDataset("pbmc_1k_protein_v3", "1k PBMCs, healthy donor, TotalSeq-B", "3.0.0", 713, 17),
    PublicDataset(
        "malt_10k_protein_v3", "10k cells of a MALT tumour, TotalSeq-B", "3.0.0", 8412, 17
    ),
    PublicDataset(
        "10k_PBMCs_TotalSeq_B_3p", "10k PBMCs, TotalSeq-B, 3' v3.1", "6.0.0", kinds=("filtered",)
    ),
    PublicDataset(
        "vdj_v1_hs_pbmc2_5gex_protein",
        "PBMCs, TotalSeq-C, 5' v1 with immune profiling",
        "3.0.0",
        assay="cell-vdj",
        kinds=("filtered",),
    ),
    PublicDataset(
        "vdj_v1_hs_pbmc3",
        "PBMCs, TotalSeq-C, 5' v1 with immune profiling",
        "3.1.0",
        assay="cell-vdj",
        kinds=("filtered",),
    ),
    PublicDataset(
        "sc5p_v2_hs_PBMC_10k",
        "10k PBMCs, TotalSeq-C, 5' v2 with immune profiling",
        "4.0.0",
        10553,
        assay="cell-vdj",
    ),
)


def list_datasets() -> pd.DataFrame:
    """List the public data sets that can be downloaded by name.

    Returns
    -------
    DataFrame
        One row per data set, indexed by ``name``; columns ``title``, ``cells`` and ``proteins`` (of
        the filtered file, isotype controls included; missing if not known), ``kinds``,
        ``publisher``, ``page`` (the publisher's description, with licence and citation), ``url``.

    Examples
    --------
    >>> table = list_datasets()
    >>> int(table.loc["pbmc_10k_protein_v3", "cells"])
    7865
    """
    table = pd.DataFrame(
        {
            "name": [dataset.name for dataset in DATASETS],
            "title": [dataset.title for dataset in DATASETS],
            "cells": pd.array([dataset.cells for dataset in DATASETS], dtype="Int64"),
            "proteins": pd.array([dataset.proteins for dataset in DATASETS], dtype="Int64"),
            "kinds": [", ".join(dataset.kinds) for dataset in DATASETS],
            "publisher": "10x Genomics",
            "page": [dataset.page for dataset in DATASETS],
            "url": [dataset.url("filtered") for dataset in DATASETS],
        }
    )
    return table.set_index("name")


def fetch(
    name: str,
    *,
    kind: Kind = "filtered",
    folder: str | Path | None = None,
    base_url: str | None = None,
    progress: bool = True,
) -> Path:
    """Download a public data set, unless it is already there, and return the path of its file.

    An interrupted transfer continues where it stopped. The file's checksum is compared with the
    known one, or with the one recorded beside the file at its first download.

    Parameters
    ----------
    name
        A name of :func:`list_datasets`, or the publisher's own name of the data set.
    kind
        ``"filtered"``: the barcodes that were called cells; ``"raw"``: all barcodes.
    folder
        Folder for the file; by default ``TOTALVI_CACHE``, else the user's cache folder.
    base_url
        A mirror with the publisher's layout of folders.
    progress
        Whether to draw a progress bar on a terminal.

    Raises
    ------
    DownloadError
        If the name or kind is not known, or the file cannot be downloaded completely.

    Examples
    --------
    >>> fetch("pbmc_10k_protein")
    Traceback (most recent call last):
        ...
    totalvi.errors.DownloadError: No public data set is called 'pbmc_10k_protein'; did you mean \
'pbmc_10k_protein_v3'?
    """
    dataset = _find(name)
    if kind not in dataset.kinds:
        raise DownloadError(
            f"The data set {dataset.name!r} has no {kind!r} file; choose from "
            f"{', '.join(map(repr, dataset.kinds))}."
        )
    return download(
        dataset.url(kind, base_url),
        cache_folder(folder) / dataset.file_name(kind),
        sha256=dataset.sha256 if kind == "filtered" else None,
        progress=progress,
    )


def load(
    name: str,
    *,
    kind: Kind = "filtered",
    folder: str | Path | None = None,
    base_url: str | None = None,
    progress: bool = True,
) -> MuData:
    """Download a public data set and read it.

    Parameters are those of :func:`fetch`.

    Returns
    -------
    MuData
        With modalities ``"rna"`` and ``"prot"``: raw counts, cells x features.

    Raises
    ------
    DownloadError
        As :func:`fetch` does.
    ReadError
        If the file is not a count file.
    """
    from totalvi.data.io.read import read

    return read(fetch(name, kind=kind, folder=folder, base_url=base_url, progress=progress))


class Dataset10X:
    """A 10x Genomics data set with the sizes that :class:`totalvi.TOTALVI` needs.

    Parameters
    ----------
    dataset_name
        A name of :func:`list_datasets`, or the publisher's own name of the data set.
    save_path
        Folder for the file; by default that of :func:`fetch`.
    kind, base_url, progress
        As in :func:`fetch`.

    Attributes
    ----------
    filename : Path
        The count file.
    mdata : MuData
        Its content, with modalities ``"rna"`` and ``"prot"``.
    nb_genes : int
        Number of genes.
    protein_names : list of str
        The antibodies, isotype controls included.

    Raises
    ------
    DownloadError
        If the data set is not known or cannot be downloaded completely.
    ReadError
        If the file is not a count file.

    Examples
    --------
    >>> dataset = Dataset10X(dataset_name="pbmc_10k_protein_v3")  # doctest: +SKIP
    >>> dataset.nb_genes, len(dataset.protein_names)  # doctest: +SKIP
    (33538, 17)
    """

    def __init__(
        self,
        dataset_name: str,
        save_path: str | Path | None = None,
        *,
        kind: Kind = "filtered",
        base_url: str | None = None,
        progress: bool = True,
    ) -> None:
        from totalvi.data.io.read import read

        self.filename = fetch(
            dataset_name, kind=kind, folder=save_path, base_url=base_url, progress=progress
        )
        self.mdata: MuData = read(self.filename)
        self.nb_genes: int = self.mdata["rna"].n_vars
        proteins = self.mdata["prot"].var_names if "prot" in self.mdata.mod else []
        self.protein_names: list[str] = list(proteins)


def _find(name: str) -> PublicDataset:
    by_name = {key: dataset for dataset in DATASETS for key in (dataset.name, dataset.stem)}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(by_name)}."
    raise DownloadError(f"No public data set is called {name!r}; {fix}")
