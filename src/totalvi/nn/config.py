"""The options of the network, their defaults and allowed values, and their checks."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from totalvi.errors import allowed

GeneDispersion = Literal["gene", "gene-batch", "gene-label"]
ProteinDispersion = Literal["protein", "protein-batch", "protein-label"]
GeneLoss = Literal["nb", "zinb"]
LatentDistribution = Literal["normal", "ln"]
LibraryKind = Literal["latent", "observed", "size_factor"]
EncoderArchitecture = Literal["branched", "direct"]
BackgroundScale = Literal["exp", "softplus"]
Normalization = Literal["batch", "layer", "none"]
ProteinMask = Sequence[Any] | Mapping[Any, Any] | np.ndarray | Tensor | None

# The annotation of an int is the smallest allowed number.
Count = Annotated[int, 0]
Positive = Annotated[int, 1]
# A rate is a share from 0 to less than 1.
Rate = Annotated[float, "rate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkConfig:
    """The options of a `Network`. The type of a field says which values are allowed.

    Parameters
    ----------
    n_input_genes, n_input_proteins
        Number of genes G and proteins T.
    n_batch, n_labels
        Number of batches and of labels (0: none).
    n_hidden
        Nodes of each hidden layer.
    n_latent
        Dimensions of the latent cell state.
    n_layers_encoder, n_layers_decoder
        Hidden layers of the encoder's trunk and of each of the decoder's four trunks.
    dropout_rate_decoder, dropout_rate_encoder
        Share of hidden nodes set to zero while training.
    gene_dispersion
        Inverse dispersion of genes: one value for each gene ("gene"), or also for each batch
        ("gene-batch") or label ("gene-label").
    protein_dispersion
        Inverse dispersion of proteins: "protein", "protein-batch" or "protein-label".
    log_variational
        Whether the encoder sees log(1 + counts). The likelihood always sees the counts.
    reconstruction_loss_gene
        "nb" or "zinb".
    latent_distribution
        "normal", or "ln" for the logistic normal: z = softmax(u).
    protein_batch_mask
        Which proteins each batch measured, or each panel if ``n_panels`` is given: a sequence of
        boolean rows, or a dict from batch code to row. None: all proteins.
    encoder_batch
        Whether the encoder sees the batch. `Model` says no where some panel lacks RNA.
    n_panels
        Number of antibody panels, if they differ from the batches. None: each batch is one.
    library
        RNA library size: "latent", "observed" (the cell's total) or "size_factor" (given to each
        method; the RNA mean is then softplus(decoder) times the size factor).
    n_categories_per_covariate
        Categories of each further categorical covariate.
    n_continuous_covariates
        Number of continuous covariates.
    encode_covariates
        Whether the encoder sees the further covariates.
    encoder_architecture
        "branched" (0.6.x) or "direct" (scvi-tools); see `Encoder`.
    scale_input
        Whether the encoder first divides each modality by 1 + its mean over the cell's features.
    background_scale
        "exp" (0.6.x) or "softplus": function that makes the posterior scale of the background positive.
    protein_efficiency
        Whether each protein and batch has a learned factor on both protein means.
    normalization
        Normalisation of hidden layers: "batch", "layer" or "none".
    background_prior
        Initial mean and standard deviation of each protein's log background, each (T,) or
        (panels, T). None: standard normal draws for the mean, and 1 for the standard deviation.
    hidden_protein_rate
        Share of the cells for which the encoder sees, in training, only the proteins that another
        cell's panel measured. It has no effect if all panels measured the same proteins.
    background_samples
        Number of samples of each protein's background, in training, over which the likelihood of its
        count is averaged: log E[p(y | z, b)]. With 1, this is the E[log p(y | z, b)] of the ELBO.
    foreground_penalty
        Weight of -log pi in training, in nats, added to each cell's loss for each measured protein. The
        counts of a protein that no cell carries fit a foreground of all cells as well as a background;
        this penalty decides for the background. 0: the paper's objective.
    panel_measured_rna
        Whether each panel (or batch) measured RNA. None: all did. Where some did not, the encoder has
        one more input, whether the cell has RNA, and ``hidden_protein_rate`` hides RNA as well.
    staining_level
        Whether each cell has a latent staining level, which multiplies both means of its proteins.
    fused
        Whether training on the CPU uses compiled loops, if there are some for the operation. False:
        only plain torch operations.

    Raises
    ------
    ValueError
        When an option has a value that is not allowed; the message names the option.

    Examples
    --------
    >>> NetworkConfig(n_input_genes=100, n_input_proteins=5).n_latent
    20
    """

    n_input_genes: Positive
    n_input_proteins: Positive
    n_batch: Count = 0
    n_labels: Count = 0
    n_hidden: Positive = 256
    n_latent: Positive = 20
    n_layers_encoder: Positive = 1
    n_layers_decoder: Positive = 1
    dropout_rate_decoder: Rate = 0.2
    dropout_rate_encoder: Rate = 0.2
    gene_dispersion: GeneDispersion = "gene"
    protein_dispersion: ProteinDispersion = "protein"
    log_variational: bool = True
    reconstruction_loss_gene: GeneLoss = "nb"
    latent_distribution: LatentDistribution = "ln"
    protein_batch_mask: ProteinMask = None
    encoder_batch: bool = True
    n_panels: Positive | None = None
    library: LibraryKind = "latent"
    n_categories_per_covariate: Sequence[int] = ()
    n_continuous_covariates: Count = 0
    encode_covariates: bool = True
    encoder_architecture: EncoderArchitecture = "branched"
    scale_input: bool = False
    background_scale: BackgroundScale = "exp"
    protein_efficiency: bool = False
    normalization: Normalization = "batch"
    background_prior: tuple[Any, Any] | None = None
    hidden_protein_rate: Rate = 0.0
    background_samples: Positive = 1
    foreground_penalty: Rate = 0.0
    panel_measured_rna: Sequence[bool] | None = None
    staining_level: bool = False
    fused: bool = True

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            check_option(name, getattr(self, name), hint)
        _check_categories(self.n_categories_per_covariate)
        for name in ("gene_dispersion", "protein_dispersion"):
            dispersion = getattr(self, name)
            if dispersion.endswith("label") and self.n_labels < 1:
                raise ValueError(f"{name} is {dispersion!r}, which needs n_labels of at least 1.")

    def n_groups(self, dispersion: GeneDispersion | ProteinDispersion) -> int:
        """Return the number of groups of cells with separate inverse dispersions."""
        groups = {"batch": self.n_batch, "label": self.n_labels}
        return max(groups.get(dispersion.partition("-")[2], 1), 1)

    @property
    def is_mosaic(self) -> bool:
        """Whether some panel lacks RNA."""
        return self.panel_measured_rna is not None and not all(self.panel_measured_rna)

    def encoder_categories(self) -> tuple[int, ...]:
        """Return the categories of the batch and of each covariate that the encoder sees."""
        batch = self.n_batch if self.encoder_batch else 0
        return (batch, *(self.n_categories_per_covariate if self.encode_covariates else ()))

    def decoder_categories(self) -> tuple[int, ...]:
        """Return the categories of the batch and of each covariate, all of which the decoder sees."""
        return (self.n_batch, *self.n_categories_per_covariate)


def fields_page() -> str:
    """Return the text on the fields from the docstring of `NetworkConfig`, indented as in a class."""
    page = inspect.getdoc(NetworkConfig) or ""
    fields = page.partition("----------\n")[2].partition("\n\nRaises\n")[0]
    return fields.replace("\n", "\n    ")


def check_option(name: str, value: object, hint: Any) -> None:
    """Raise ValueError unless ``value`` is of the annotated type ``hint``.

    Only numbers, flags and choices of words are checked.
    """
    if get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
        if value is None:
            return
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ValueError(allowed(name, value, get_args(hint)))
    if hint is bool and not isinstance(value, bool | np.bool_):
        raise ValueError(allowed(name, value, "True and False"))
    if get_origin(hint) is not Annotated:
        return
    kind, limit = get_args(hint)
    if kind is int and not (_is_integer(value) and value >= limit):
        raise ValueError(allowed(name, value, f"whole numbers from {limit}"))
    if kind is float and not (isinstance(value, int | float | np.floating) and 0 <= value < 1):
        raise ValueError(allowed(name, value, "numbers from 0 to below 1"))


def _check_categories(per_covariate: object) -> None:
    name = "n_categories_per_covariate"
    if not isinstance(per_covariate, Sequence | np.ndarray) or isinstance(per_covariate, str):
        raise ValueError(allowed(name, per_covariate, "lists of whole numbers"))
    for categories in per_covariate:
        if not (_is_integer(categories) and categories >= 1):
            raise ValueError(f"{name} holds {categories!r}; allowed are whole numbers from 1.")


def rna_mask(given: Sequence[bool] | None, n_panels: int) -> Tensor | None:
    """Return which panels measured RNA, (panels,), or None if all did.

    Raises
    ------
    ValueError
        When there are more or fewer values than panels, or no panel measured RNA.
    """
    if given is None or all(given):
        return None
    if len(given) != n_panels or not any(given):
        raise ValueError(
            f"panel_measured_rna is {list(given)}; allowed is one truth value for each of {n_panels} "
            "panels, at least one of them true."
        )
    return torch.tensor([bool(value) for value in given])


def protein_mask(given: ProteinMask, n_panels: int, n_proteins: int) -> Tensor | None:
    """Return which proteins each panel measured, (panels, proteins), or None if all were measured.

    Parameters
    ----------
    given
        One row of booleans for each panel, as a sequence or array, or as a dict from the panel's code
        (integer or text) to its row.

    Raises
    ------
    ValueError
        When panels or proteins are too many or too few, or no panel measured a protein.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        if not all(str(code).isdigit() for code in given):
            raise ValueError(
                f"protein_batch_mask has the keys {list(given)}; allowed are 0 to {n_panels - 1}."
            )
        rows_by_code = {int(code): row for code, row in given.items()}
        if sorted(rows_by_code) != list(range(n_panels)):
            raise ValueError(
                f"protein_batch_mask has the keys {sorted(rows_by_code)}; "
                f"allowed are exactly 0 to {n_panels - 1}."
            )
        rows = [rows_by_code[code] for code in range(n_panels)]
    elif isinstance(given, Sequence | np.ndarray | Tensor) and not isinstance(given, str):
        rows = list(given)
    else:
        choices = "a list of rows, or a dict of rows by batch"
        raise ValueError(allowed("protein_batch_mask", given, choices))
    shapes = sorted({np.shape(row) for row in rows})
    if len(rows) != n_panels or shapes != [(n_proteins,)]:
        raise ValueError(
            f"protein_batch_mask has {len(rows)} rows of shape {shapes}; "
            f"allowed are {n_panels} rows of {n_proteins} booleans."
        )
    values = np.array([np.asarray(row) for row in rows])
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(
            "protein_batch_mask holds other values; allowed are True and False (or 1 and 0)."
        )
    mask = torch.as_tensor(values).bool()
    unmeasured = ~mask.any(dim=0)
    if bool(unmeasured.any()):
        raise ValueError(
            f"protein_batch_mask says that protein {int(unmeasured.nonzero()[0])} was measured "
            "nowhere; leave it out."
        )
    return None if bool(mask.all()) else mask


def background_prior(
    mean: Any, scale: Any, n_panels: int, n_proteins: int
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the log background, each (T,) or (panels, T).

    Raises
    ------
    ValueError
        When one has another shape, or holds a value that cannot be a mean or a scale.
    """
    shape = (n_panels, n_proteins)
    mean, scale = np.asarray(mean), np.asarray(scale)
    for name, value in (("mean", mean), ("scale", scale)):
        if np.shape(value) not in (shape, shape[1:]):
            raise ValueError(
                f"background_prior's {name} has shape {np.shape(value)}; "
                f"allowed are {shape[1:]} and {shape}."
            )
    if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(
            "background_prior holds a mean that is not finite, or a scale that is not a number "
            "above 0; allowed are finite means and scales above 0."
        )
    return torch.as_tensor(mean), torch.as_tensor(scale)


def background_anchor(given: Any, n_panels: int, n_proteins: int) -> Tensor:
    """Return the anchor of the background prior, (4, panels, T); see `Network.anchor_background`."""
    value = torch.as_tensor(np.asarray(given), dtype=torch.float32)
    shape = (4, n_panels, n_proteins)
    if value.shape != shape or not value.isfinite().all() or (value[2:] < 0).any():
        raise ValueError(
            f"anchor has shape {tuple(value.shape)}; allowed are finite numbers of shape {shape}, "
            "the precisions from 0."
        )
    return value


def at_least_one(name: str, value: int) -> int:
    """Return ``value`` if it is a whole number from 1; else raise ValueError that names it."""
    check_option(name, value, Positive)
    return int(value)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
