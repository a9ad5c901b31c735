"""From a latent state to the parameters of the counts' distributions."""

from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from totalvi.nn.layers import (
    Activation,
    HiddenLayer,
    Linear,
    LinearProduct,
    Normalization,
    ParallelHiddenLayer,
)

BackgroundScale = Literal["exp", "softplus"]
_TRUNKS = 4  # genes, protein background, protein foreground, mixing


class Decoded(NamedTuple):
    """What the decoder says of B cells.

    Parameters
    ----------
    gene_product, dropout_product
        What ends in ``gene_logit`` and ``dropout_logit``; the latter None without zero inflation.
    background_mean, background_scale
        Mean and standard deviation of q(b | z): the log background of each protein, (B, T).
    foreground_factor
        alpha > 1, (B, T).
    background_logit
        Of the probability that a protein count is background, (B, T).
    """

    gene_product: LinearProduct
    dropout_product: LinearProduct | None
    background_mean: Tensor
    background_scale: Tensor
    foreground_factor: Tensor
    background_logit: Tensor

    @property
    def gene_logit(self) -> Tensor:
        """Logit of the RNA proportions, (B, G), computed anew each time: the largest product."""
        return self.gene_product.value()

    @property
    def dropout_logit(self) -> Tensor | None:
        """Logit of RNA's zero inflation, (B, G), computed anew each time; None without."""
        return None if self.dropout_product is None else self.dropout_product.value()

    def unflatten(self, sizes: tuple[int, ...]) -> Self:
        """Return the same of cells laid out in ``sizes``."""
        parts: list[Any] = [
            None
            if part is None
            else part.unflatten(sizes)
            if isinstance(part, LinearProduct)
            else part.unflatten(0, sizes)
            for part in self
        ]
        return type(self)(*parts)


class Decoder(nn.Module):
    """p(x, y | z, covariates): four trunks side by side, and a linear head for each quantity.

    Parameters
    ----------
    n_input
        Latent dimensions and continuous covariates.
    n_covariates
        One-hot columns.
    background_scale
        How the scale of q(b | z) stays positive: "exp" (0.6.x) or "softplus" (bounded growth).
    zero_inflated
        Whether RNA has zero inflation.
    fused
        Whether compiled loops are used on the CPU.
    """

    def __init__(
        self,
        n_input: int,
        n_genes: int,
        n_proteins: int,
        n_covariates: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
        normalization: Normalization,
        background_scale: BackgroundScale,
        zero_inflated: bool,
        generator: torch.Generator | None = None,
        *,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.background_scale = background_scale

        def activation() -> Activation:
            return Activation(_TRUNKS * n_hidden, normalization, dropout_rate, _TRUNKS, fused=fused)

        self.first = HiddenLayer(n_input, _TRUNKS * n_hidden, n_covariates, activation(), generator)
        self.rest = nn.ModuleList(
            ParallelHiddenLayer(n_hidden, _TRUNKS, n_covariates, activation(), generator)
            for _ in range(n_layers - 1)
        )

        def head(n_output: int) -> Linear:
            return Linear(n_hidden + n_input, n_output, n_covariates, generator)

        self.gene_head = head(n_genes)
        self.dropout_head = head(n_genes) if zero_inflated else None
        self.background_mean_head = head(n_proteins)
        self.background_scale_head = head(n_proteins)
        self.foreground_head = head(n_proteins)
        self.background_logit_head = head(n_proteins)

    def forward(
        self, z: Tensor, covariates: Tensor | None, generator: torch.Generator | None = None
    ) -> Decoded:
        """Decode ``z`` (B, n_input): the latent state and the continuous covariates."""
        hidden = self.first(z, covariates, generator)
        for layer in self.rest:
            hidden = layer(hidden, covariates, generator)
        trunks = hidden.unflatten(1, (_TRUNKS, -1))
        with_z = torch.cat([trunks, z[:, None].expand(-1, _TRUNKS, -1)], dim=2)
        genes, background, foreground, mixing = with_z.unbind(dim=1)
        scale = self.background_scale_head(background, covariates)
        return Decoded(
            gene_product=self.gene_head.product(genes, covariates),
            dropout_product=(
                None if self.dropout_head is None else self.dropout_head.product(mixing, covariates)
            ),
            background_mean=self.background_mean_head(background, covariates),
            background_scale=(
                scale.exp() if self.background_scale == "exp" else F.softplus(scale) + 1e-8
            ),
            foreground_factor=1 + 1e-8 + F.relu(self.foreground_head(foreground, covariates)),
            background_logit=self.background_logit_head(mixing, covariates),
        )


def profile_penalty(values: Tensor, profile: Tensor, precision: Tensor) -> Tensor:
    """Return ``1/2 sum precision (values - profile - shift)^2``, the shift of each row the best one.

    All (panels, T). What a normal prior around the profile costs, in nats, where all proteins of a
    panel may shift together at no cost: the best shift is the weighted mean difference.

    Examples
    --------
    >>> profile, ones = torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3)
    >>> profile_penalty(profile + 5, profile, ones).item()
    0.0
    >>> profile_penalty(torch.tensor([[0.0, 1.0, 5.0]]), profile, ones).item()
    3.0
    """
    difference = values - profile
    weight = precision.sum(dim=1, keepdim=True).clamp(min=torch.finfo(precision.dtype).tiny)
    shift = (precision * difference).sum(dim=1, keepdim=True) / weight
    return 0.5 * (precision * (difference - shift).square()).sum()
