"""Names of scvi-tools' TOTALVI, each answered by a sentence that names what stands for it here."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from types import FunctionType
from typing import Any

_AT_ONCE = "there is no step of setting up; call totalvi.Model(data, ...) with"
SCVI_NAMES = {
    "setup_anndata": f"{_AT_ONCE} batch_key, rna_layer and protein_expression_obsm_key",
    "setup_mudata": f"{_AT_ONCE} batch_key, rna_modality, protein_modality and rna_layer",
    "load_query_data": "map_query(data, train=True) of the fitted model does it",
    "prepare_query_anndata": "map_query finds the genes and proteins that both have by itself",
    "prepare_query_mudata": "map_query finds the genes and proteins that both have by itself",
    "convert_legacy_save": "totalvi.persistence.load_scvi reads models of scvi-tools",
    "view_anndata_setup": "schema and findings say what the model was given",
    "summary_string": "repr(model) and fit_summary say it",
    "adata": "the model keeps counts and no AnnData; use your own",
    **dict.fromkeys(
        (
            *("adata_manager", "registry", "registry_", "get_anndata_manager", "get_from_registry"),
            *("summary_stats", "get_setup_arg", "load_registry", "REGISTRY_KEYS"),
        ),
        "schema says what the model was given",
    ),
    "to_device": "give accelerator to train; queries choose the device themselves",
    "minify_adata": "save(path, minified=True) keeps posteriors in place of counts",
    "history_": "history has it",
    "is_trained_": "is_trained has it",
    "trainer": "fit_summary and plan say how the fit went",
    "train_indices": "split.train has them",
    "validation_indices": "split.validation has them",
    "test_indices": "split.test has them",
    "TOTALVI": "totalvi.Model is the class; call it with the data",
    "TOTALANVI": "give labels_key and unlabeled_category to totalvi.Model, and call predict",
    "soft": "predict().probabilities has them",
    **dict.fromkeys(
        ("from_totalvi_model", "n_samples_per_label", "linear_classifier", "use_posterior_mean"),
        "a fit does not use labels that are known of some cells, and predict needs no other fit",
    ),
    **dict.fromkeys(
        ("get_ranked_features", "ig_interpretability", "shap_predict"),
        "get_deciding_features says what speaks for each label",
    ),
    "settings": "give seed to totalvi.Model",
    "plan_kwargs": "give lr, weight_decay and n_epochs_kl_warmup to train itself",
    "adversarial_classifier": "give adversarial=True",
    "n_steps_kl_warmup": "give n_epochs_kl_warmup",
    "reduce_lr_on_plateau": 'give schedule="one-cycle" or "constant"',
    "check_val_every_n_epoch": "the held-out loss is computed after each epoch",
    "datasplitter_kwargs": "give train_size, validation_size or split",
    "shuffle_set_split": "give split with the positions of the cells",
    "external_indexing": "give split with the positions of the cells",
    "early_stopping_monitor": "early stopping is by the held-out loss",
    "enable_progress_bar": "give progress",
    "silent": "give progress=False",
    "n_samples_overall": "give n_samples, and indices of the cells",
    "weights": "all cells of a group count alike",
    "filter_outlier_cells": "leave outliers out of the groups",
    "importance_weighting_kwargs": "all samples of a cell count alike",
    "give_mean": "the mean over n_samples is returned",
    "prefix": "each model has a folder of its own",
    "save_anndata": "a saved model holds no counts; write your data yourself",
    "lr_scheduler_metric": 'give schedule="one-cycle" or "constant"',
    "lr_patience": 'give schedule="one-cycle" or "constant"',
    "lr_factor": 'give schedule="one-cycle" or "constant"',
    "early_stopping_min_delta": "give early_stopping_patience",
    "enable_checkpointing": "give checkpoint",
    "init_params_": "seed and module.config have them",
    "model": "totalvi.Model is the class",
    "external": "only totalVI is here, as totalvi.Model",
    "autotune": "train takes the numbers that suit the size of the data by itself",
    "organize_multimodal_anndatas": "totalvi.mosaic joins data that lack a modality",
    "use_gpu": 'give accelerator="cuda"',
    "layer": "give rna_layer and protein_layer",
    "modalities": "give rna_modality and protein_modality",
    "use_observed_lib_size": 'give library="observed" or "latent"',
    "override_missing_proteins": "zeros count as measured; see totalvi.declare_unmeasured",
    "elbo_train": 'history["train_loss"] has the loss of training',
    "elbo_validation": 'history["validation_paper_loss"] has the held-out one',
    "train_loss_epoch": 'history["train_loss"] has it',
    "train_loss_step": 'history["train_loss"] has it by epoch',
    "reconstruction_loss_train": 'history["train_reconst_loss_gene"] and the like have it',
    "reconstruction_loss_validation": 'history["validation_reconst_loss_gene"] and the like have it',
    "kl_local_train": 'history["train_kl_div_z"] and the like have it',
    "kl_local_validation": 'history["validation_kl_div_z"] and the like have it',
    "load": "totalvi.Model.load reads a model, and totalvi.persistence.load_scvi one of scvi-tools",
}
"""Names of scvi-tools, and what stands for them here."""


def of_scvi(name: str) -> str | None:
    """Return the sentence that answers a name of scvi-tools; None for other names.

    Examples
    --------
    >>> of_scvi("history_")
    "history_ is scvi-tools' name; history has it; see docs/from_scvi_tools.md."
    """
    if name not in SCVI_NAMES:
        return None
    return f"{name} is scvi-tools' name; {SCVI_NAMES[name]}; see docs/from_scvi_tools.md."


def answering(owner: str) -> Callable[[str], Any]:
    """Return a `__getattr__` that answers names of scvi-tools, and raises for all others as well."""

    def answer(name: str) -> Any:
        raise AttributeError(of_scvi(name) or f"{owner} has no attribute {name!r}")

    return answer


class KnowsScvi(type):
    """Metaclass of classes that answer names of scvi-tools' TOTALVI with a sentence."""

    def __getattr__(cls, name: str) -> Any:
        answering(f"type object {cls.__name__!r}")(name)


class NetworkThatKnowsScvi(KnowsScvi):
    """Metaclass of the bare network, which says where data go."""

    @property
    def __signature__(cls) -> Signature:
        """The signature of the class, which is not that of `__call__`."""
        _, *parameters = signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return Signature(parameters)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        """Refuse data, which are for `totalvi.Model`."""
        if arguments and hasattr(arguments[0], "obs_names"):
            raise TypeError(
                "TOTALVI is the bare network, which takes numbers of genes and proteins; for data call "
                "totalvi.Model(data, ...), and see docs/from_scvi_tools.md."
            )
        return super().__call__(*arguments, **options)


_SHOWN = 8  # names of arguments in a message
_DATA = ("data", "adata", "mdata")  # what methods call their data


def saying_names(method: FunctionType, owner: str) -> Callable[..., Any]:
    """Return a method that says what it takes by name, and what stands for arguments of scvi-tools.

    scvi-tools takes nearly all by position, in an order that changed between its versions.

    Examples
    --------
    >>> def train(self, max_epochs=None, *, lr=0.01): ...
    >>> saying_names(train, "Model")(None, 9, 0.1)
    Traceback (most recent call last):
    TypeError: train takes only max_epochs by position; give the others by name, as lr=... \
(there are: lr), and see docs/from_scvi_tools.md.
    """
    parameters = list(signature(method).parameters.values())[1:]
    places = [each.name for each in parameters if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
    named = [each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY]
    takes_more = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
    called = owner if method.__name__ == "__init__" else method.__name__
    shown = ", ".join(named[:_SHOWN]) + (", ..." if len(named) > _SHOWN else "")

    @wraps(method)
    def checked(self: Any, *given: Any, **options: Any) -> Any:
        if len(given) > len(places) and named:
            only = f"only {', '.join(places)}" if places else "nothing"
            raise TypeError(
                f"{called} takes {only} by position; give the others by name, as {named[0]}=... (there "
                f"are: {shown}), and see docs/from_scvi_tools.md."
            )
        for name in (name for name in options if name not in {*places, *named}):
            of_data = next((place for place in places if place in _DATA), None)
            if name in _DATA and of_data:
                raise TypeError(f"{called} takes the data as {of_data}, not {name}; give them so.")
            answer = None if takes_more else of_scvi(name)
            if answer is not None:
                raise TypeError(answer)
        return method(self, *given, **options)

    return checked
