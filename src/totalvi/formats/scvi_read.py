"""Models of scvi-tools and of 0.6.x as models of this package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from anndata import AnnData
from mudata import MuData

from totalvi.data.cells import Schema
from totalvi.data.describe import describe
from totalvi.data.io.h5_zarr import read_h5ad, read_h5mu
from totalvi.errors import DataError, FormatError, TotalviError
from totalvi.fit.split import Split
from totalvi.formats.safe_pickle import checked_tensors, load_inert, stored_values
from totalvi.formats.scvi_06 import schema_and_options
from totalvi.formats.scvi_options import model_arguments, network_options, version_of
from totalvi.formats.scvi_registry import at, keys_of, schema_of
from totalvi.formats.scvi_weights import State, load_scvi_state

if TYPE_CHECKING:
    from totalvi.model import Model

Data: TypeAlias = AnnData | MuData
_MODEL, _ADATA, _MDATA = "model.pt", "adata.h5ad", "mdata.h5mu"


def load_scvi(
    path: str | Path,
    adata: Data | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    allow_fractional: bool = False,
) -> "Model":
    """Return a model that scvi-tools (from 1.0 on) or the 0.6.x implementation saved.

    scvi-tools is not needed, and nothing in the file is run: it is read as data, and anything else than
    tensors, plain containers and arrays of texts and numbers is refused.

    Parameters
    ----------
    path
        Folder that ``scvi.model.TOTALVI.save`` wrote, or the ``model.pt`` in it (with its prefix, if it
        has one); or the file of a 0.6.x state dict.
    adata
        The cells that queries are about when none are given; features are aligned by name. None: the
        data saved beside the model, if any.
    config
        Needed for a 0.6.x state dict only, which says nothing but its weights: arguments of `TOTALVI`
        that are not its defaults; ``gene_names`` and ``protein_names`` (None: those of ``adata``),
        ``batch_names`` and ``label_names`` (None: "0", "1", ...); where data have their counts and
        annotation, as in `Model` (``batch_key``, ...); and ``library_log_mean`` and
        ``library_log_variance`` of each batch (None: those of ``adata``).
    allow_fractional
        Whether counts that the model is asked about may have fractions.

    Returns
    -------
    The model, ready for queries. The history of its training is not read.

    Raises
    ------
    FormatError
        When the file is damaged, is no totalVI model, would run code, or the model has an option that
        this package has not.
    DataError
        When ``adata`` lack what the model needs.

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
    model = model_of_scvi(file, config, adata, allow_fractional=allow_fractional)
    saved = None if adata is not None else _saved_data(file)
    data = adata if saved is None else saved
    if data is None:
        return model
    try:
        model._data = describe(data, model.schema.columns, model.schema)
    except DataError as error:
        if saved is None:
            raise
        raise DataError(
            f"{error} (in the data saved beside {file}: give adata, or move them away.)"
        ) from error
    return model


def model_of_scvi(
    path: str | Path,
    config: Mapping[str, Any] | None = None,
    adata: Data | None = None,
    *,
    allow_fractional: bool = False,
) -> "Model":
    """Return the same without data; ``adata`` gives what ``config`` lacks."""
    from totalvi.model import Model  # which imports this package

    file = _file(path)
    content = load_inert(file)
    model = Model.__new__(Model)
    try:
        if at(content, "attr_dict") is not None:
            read = _scvi_tools(content, file, allow_fractional)
        elif config is not None:
            state = checked_tensors(content, file)
            config = {"allow_fractional": allow_fractional, **config}
            read = (state, *schema_and_options(state, config, adata))
        else:
            raise FormatError(
                f"{file} holds no model of scvi-tools; if it is a state dict of 0.6.x, describe it "
                "with config."
            )
        state, schema, options = read
        attributes = at(content, "attr_dict")
        model._restore(
            {
                "schema": schema.to_dict(),
                "options": options,
                "seed": 0,
                "n_fits": 1,
                "plan": None,
                "fit_summary": {},
                "split": _split(attributes),
                "history": {},
            }
        )
        load_scvi_state(model.module, state)
    except TotalviError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FormatError(
            f"{file} cannot be read as a totalVI model ({type(error).__name__}: {error}); save it "
            "again."
        ) from error
    model.is_trained = at(attributes, "is_trained_") is not False
    model._data = None
    return model


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of a 0.6.x state dict from a JSON file.

    Raises
    ------
    FormatError
        When it is not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); mend it.") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}); give a JSON file.") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} is not a JSON object; write the entries of config as one.")
    return config


def _file(path: str | Path) -> Path:
    return Path(path) / _MODEL if Path(path).is_dir() else Path(path)


def _scvi_tools(
    content: Mapping[str, Any], file: Path, allow_fractional: bool
) -> tuple[State, Schema, dict[str, Any]]:
    """Return the weights and the schema of a scvi-tools model and the options of its network."""
    weights, attributes = content.get("model_state_dict"), content["attr_dict"]
    if isinstance(weights, dict):
        weights.pop("pyro_param_store", None)  # which totalVI keeps nothing in
    state = checked_tensors(weights, file)
    registry = at(attributes, "registry_")
    name = at(registry, "model_name")
    if name != "TOTALVI":
        raise FormatError(f"The model is a {name} of scvi-tools; only TOTALVI can be read.")
    version = version_of(at(registry, "scvi_version"))
    arguments = model_arguments(at(attributes, "init_params_"))
    keys = keys_of(registry, allow_fractional)
    schema = schema_of(registry, keys, masked=not arguments["override_missing_proteins"])
    options = network_options(arguments, version, keys.size_factor_key is not None, state)
    if options["library"] == "latent":
        schema = _with_library(schema, state)
    return state, schema, options


def _with_library(schema: Schema, state: State) -> Schema:
    """Return the schema with the mean and variance of the log library size that a state dict has."""
    mean, variance = (
        tuple(state[f"library_log_{name}"].reshape(-1).tolist()) for name in ("means", "vars")
    )
    if not len(mean) == len(variance) == len(schema.batch_names):
        raise FormatError("The state dict's library_log_means are not one a batch.")
    given = schema.to_dict() | {"library_log_mean": mean, "library_log_variance": variance}
    return Schema.from_dict(given)


def _split(attributes: Any) -> dict[str, list[int]]:
    """Return the cells that the model was trained, validated and tested on, if it says so."""
    stored = {part: at(attributes, f"{part}_indices_") for part in Split._fields}
    return {
        part: [] if cells is None else list(map(int, stored_values(cells, f"{part}_indices_")))
        for part, cells in stored.items()
    }


def _saved_data(file: Path) -> Data | None:
    """Return the data saved beside the model; None where there are none."""
    prefix = file.name.removesuffix(_MODEL)
    adata, mdata = (file.with_name(prefix + name) for name in (_ADATA, _MDATA))
    if adata.is_file():
        return read_h5ad(adata)
    return read_h5mu(mdata) if mdata.is_file() else None
