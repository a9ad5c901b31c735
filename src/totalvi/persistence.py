"""Read models of other implementations of totalVI: scvi-tools and the 0.6.x module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from anndata import AnnData
from mudata import MuData

from totalvi.data.describe import describe
from totalvi.data.io.h5_zarr import read_h5ad, read_h5mu
from totalvi.errors import DataError
from totalvi.formats.scvi_read import read_scvi
from totalvi.formats.scvi_weights import load_scvi_state
from totalvi.model import Model

__all__ = ["load_scvi", "load_scvi_state", "model_of_scvi"]

Data: TypeAlias = AnnData | MuData
_MODEL, _ADATA, _MDATA = "model.pt", "adata.h5ad", "mdata.h5mu"


def load_scvi(
    path: str | Path,
    adata: Data | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    allow_fractional: bool = False,
) -> Model:
    """Return a model that scvi-tools (from 1.0 on) or the 0.6.x implementation saved.

    scvi-tools is not needed, and no code in the file is run. The file may hold only tensors, plain
    containers, and arrays of texts and numbers.

    Parameters
    ----------
    path
        Folder that ``scvi.model.TOTALVI.save`` wrote, or the ``model.pt`` in it (with its prefix, if it
        has one); or the file of a 0.6.x state dict.
    adata
        Cells that queries use by default; features are aligned by name. None: the data saved beside the
        model, if any.
    config
        Needed only for a 0.6.x state dict, which holds only weights. It may have

        - arguments of `TOTALVI` that are not its defaults;
        - ``gene_names`` and ``protein_names`` (None: those of ``adata``), ``batch_names`` and
          ``label_names`` (None: "0", "1", ...);
        - the places of counts and annotation in the data, as in `Model` (``batch_key``, ...);
        - ``library_log_mean`` and ``library_log_variance`` of each batch (None: those of ``adata``).
    allow_fractional
        Whether counts given to queries may have fractions.

    Returns
    -------
    The model, ready for queries, without its training history.

    Raises
    ------
    FormatError
        When the file is damaged, is not a totalVI model, would run code, or the model has an option
        that this package does not have.
    DataError
        When ``adata`` lack features or columns that the model needs.

    Examples
    --------
    >>> import tempfile, totalvi
    >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
    >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
    >>> model.train(max_epochs=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.save_scvi(f"{folder}/model")
    ...     again = totalvi.persistence.load_scvi(f"{folder}/model", mdata)
    >>> again.get_latent_representation().shape
    (60, 4)
    """
    file = _file(path)
    state = read_scvi(file, config, adata, allow_fractional=allow_fractional)
    saved = None if adata is not None else _saved_data(file)
    data = adata if saved is None else saved
    if data is None:
        return Model._from_state(state)
    try:
        return Model._from_state(state, describe(data, state.schema.columns, state.schema))
    except DataError as error:
        if saved is None:
            raise
        raise DataError(
            f"{str(error).rstrip('.')} (in the data saved beside {file}; give adata, or move "
            "them away)."
        ) from error


def model_of_scvi(
    path: str | Path,
    config: Mapping[str, Any] | None = None,
    adata: Data | None = None,
    *,
    allow_fractional: bool = False,
) -> Model:
    """Return the same model without data; ``adata`` completes ``config``."""
    return Model._from_state(
        read_scvi(_file(path), config, adata, allow_fractional=allow_fractional)
    )


def _file(path: str | Path) -> Path:
    return Path(path) / _MODEL if Path(path).is_dir() else Path(path)


def _saved_data(file: Path) -> Data | None:
    """Return the data saved beside the model; None if there are none."""
    prefix = file.name.removesuffix(_MODEL)
    adata, mdata = (file.with_name(prefix + name) for name in (_ADATA, _MDATA))
    if adata.is_file():
        return read_h5ad(adata)
    return read_h5mu(mdata) if mdata.is_file() else None
