"""The network of totalVI: construction, encoding, decoding, and samples of its latent variables."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from totalvi.nn.cell import CellContext, one_hot_columns, one_hot_width
from totalvi.nn.config import at_least_one, check_options, protein_mask
from totalvi.nn.cpu.dispatch import suits_compiled_loops
from totalvi.nn.cpu.fused_proportions import add_proportions
from totalvi.nn.decoder import BackgroundScale, Decoded, Decoder, profile_penalty
from totalvi.nn.encoder import CellPosterior, Encoder, EncoderArchitecture
from totalvi.nn.layers import Normalization
from totalvi.nn.likelihoods import Dispersion, ProteinMixture
from totalvi.nn.sparse import SparseCounts
from totalvi.nn.sync import n_cells_of_all, of_all_cells, own_cells

LibraryKind = Literal["latent", "observed", "size_factor"]
_LARGEST_LOG_LIBRARY = 15.0
_SAMPLES_AT_ONCE = 50
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


class Network(nn.Module):
    """Encoder, decoder and parameters of totalVI; the arguments are documented at `TOTALVI`.

    docs/model.md states the generative model, its posterior and the objective.
    """

    def __init__(
        self,
        n_input_genes: int,
        n_input_proteins: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int = 256,
        n_latent: int = 20,
        n_layers_encoder: int = 1,
        n_layers_decoder: int = 1,
        dropout_rate_decoder: float = 0.2,
        dropout_rate_encoder: float = 0.2,
        gene_dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch", "protein-label"] = "protein",
        log_variational: bool = True,
        reconstruction_loss_gene: Literal["nb", "zinb"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "ln",
        protein_batch_mask: Sequence[Any] | Mapping[Any, Any] | np.ndarray | Tensor | None = None,
        encoder_batch: bool = True,
        *,
        use_cuda: bool = False,
        n_panels: int | None = None,
        library: LibraryKind = "latent",
        n_categories_per_covariate: Sequence[int] = (),
        n_continuous_covariates: int = 0,
        encode_covariates: bool = True,
        encoder_architecture: EncoderArchitecture = "branched",
        scale_input: bool = False,
        background_scale: BackgroundScale = "exp",
        protein_efficiency: bool = False,
        normalization: Normalization = "batch",
        background_prior: tuple[Any, Any] | None = None,
        hidden_protein_rate: float = 0.0,
        background_samples: int = 1,
        fused: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        check_options(locals())
        super().__init__()
        self.n_input_genes = n_input_genes
        self.n_input_proteins = n_input_proteins
        self.n_batch = n_batch
        self.n_labels = n_labels
        self.n_latent = n_latent
        self.n_panels = max(n_batch, 1) if n_panels is None else n_panels
        self.panel_is_batch = n_panels is None
        self.gene_dispersion = gene_dispersion
        self.protein_dispersion = protein_dispersion
        self.latent_distribution = latent_distribution
        self.library: LibraryKind = library
        self.n_categories_per_covariate = tuple(n_categories_per_covariate)
        self.n_continuous_covariates = n_continuous_covariates
        self.fused = fused
        self.hidden_protein_rate = hidden_protein_rate
        self.background_samples = background_samples
        self.bfloat16_products = False
        self.reference_frozen = False
        self.encoder_batch = encoder_batch
        self.encode_covariates = encode_covariates

        mask = protein_mask(protein_batch_mask, self.n_panels, n_input_proteins)
        self.register_buffer("protein_mask", mask)
        self.protein_mask: Tensor | None

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.gene_log_r = normal(self._rows_by(gene_dispersion), n_input_genes)
        self.protein_log_r = nn.Parameter(
            torch.ones(self._rows_by(protein_dispersion), n_input_proteins)
        )
        self.background_prior_mean = normal(self.n_panels, n_input_proteins)
        self.background_prior_log_scale = nn.Parameter(torch.zeros(self.n_panels, n_input_proteins))
        if background_prior is not None:
            self.set_background_prior(*background_prior)
        self.register_buffer("background_anchor", None, persistent=False)  # see `anchor_background`
        self.background_anchor: Tensor | None
        self.log_efficiency = (
            nn.Parameter(torch.zeros(max(n_batch, 1), n_input_proteins))
            if protein_efficiency
            else None
        )
        n_encoded = self.n_continuous_covariates if encode_covariates else 0
        self.encoder = Encoder(
            n_genes=n_input_genes,
            n_proteins=n_input_proteins,
            n_continuous=n_encoded,
            n_covariates=one_hot_width(self._encoder_categories()),
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers_encoder,
            dropout_rate=dropout_rate_encoder,
            normalization=normalization,
            architecture=encoder_architecture,
            log_input=log_variational,
            scale_input=scale_input,
            latent_library=library == "latent",
            generator=generator,
            fused=fused,
        )
        self.decoder = Decoder(
            n_input=n_latent + self.n_continuous_covariates,
            n_genes=n_input_genes,
            n_proteins=n_input_proteins,
            n_covariates=one_hot_width((n_batch, *self.n_categories_per_covariate)),
            n_hidden=n_hidden,
            n_layers=n_layers_decoder,
            dropout_rate=dropout_rate_decoder,
            normalization=normalization,
            background_scale=background_scale,
            zero_inflated=reconstruction_loss_gene == "zinb",
            generator=generator,
            fused=fused,
        )
        if use_cuda:
            if torch.cuda.is_available():
                self.cuda()
            else:
                warnings.warn(
                    "use_cuda=True, but there is no CUDA device: the model stays on the CPU.",
                    stacklevel=2,
                )

    def _rows_by(self, dispersion: str) -> int:
        groups = {"batch": self.n_batch, "label": self.n_labels}
        return max(groups.get(dispersion.partition("-")[2], 1), 1)

    def _encoder_categories(self) -> tuple[int, ...]:
        batch = self.n_batch if self.encoder_batch else 0
        extra = self.n_categories_per_covariate if self.encode_covariates else ()
        return (batch, *extra)

    def train(self, mode: bool = True) -> Self:
        """Go to training mode, unless a reference is frozen: its batch normalisation then stays."""
        return super().train(mode and not self.reference_frozen)

    def set_bfloat16_products(self, value: bool) -> None:
        """Say whether products as wide as the genes are in bfloat16, where compiled loops do them."""
        self.bfloat16_products = self.encoder.bfloat16_products = value

    def set_background_prior(self, mean: Any, scale: Any) -> None:
        """Set the prior mean and standard deviation of the log background, (T,) or (panels, T)."""
        shape = self.background_prior_mean.shape
        mean, scale = np.asarray(mean), np.asarray(scale)
        for name, value in (("mean", mean), ("scale", scale)):
            if np.shape(value) not in (tuple(shape), tuple(shape[1:])):
                raise ValueError(
                    f"background_prior's {name} has shape {np.shape(value)}; "
                    f"allowed are {tuple(shape[1:])} and {tuple(shape)}."
                )
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                "background_prior holds a mean that is not finite, or a scale that is not a number "
                "above 0; allowed are finite means and scales above 0."
            )
        with torch.no_grad():
            self.background_prior_mean.copy_(torch.as_tensor(mean))
            self.background_prior_log_scale.copy_(torch.as_tensor(scale).log())

    def anchor_background(self, anchor: Any) -> None:
        """Hold the background prior near a profile over proteins, while training.

        ``anchor`` holds, each (panels, T): the profile of `background_prior_mean`, that of
        `background_prior_log_scale`, and the precisions of both, counted once a cell (0: not anchored).
        """
        value = torch.as_tensor(np.asarray(anchor), dtype=torch.float32)
        shape = (4, *self.background_prior_mean.shape)
        if value.shape != shape or not value.isfinite().all() or (value[2:] < 0).any():
            raise ValueError(
                f"anchor has shape {tuple(value.shape)}; allowed are finite numbers of shape {shape}, "
                "the precisions from 0."
            )
        self.background_anchor = value.to(self.background_prior_mean.device)

    def anchor_penalty(self) -> Tensor | float:
        """Return what the anchor adds to the objective, in nats a cell; 0 without an anchor."""
        if self.background_anchor is None:
            return 0.0
        mean, log_scale, mean_precision, scale_precision = self.background_anchor
        return profile_penalty(self.background_prior_mean, mean, mean_precision) + profile_penalty(
            self.background_prior_log_scale, log_scale, scale_precision
        )

    def measured(self, panel: Tensor) -> Tensor | None:
        """Return which proteins were measured in each cell, (B, T), or None when all were."""
        return None if self.protein_mask is None else self.protein_mask[panel]

    def encode(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        generator: torch.Generator | None = None,
    ) -> CellPosterior:
        """Return the posterior of the latent state and library size.

        As in 0.6.x, values of unmeasured proteins are encoded as they are given; NaN enters as 0.
        """
        codes = [context.batch]
        if context.categorical is not None and self.encode_covariates:
            codes += list(context.categorical.unbind(dim=1))
        covariates = one_hot_columns(codes, self._encoder_categories(), y.dtype)
        continuous = context.continuous if self.encode_covariates else None
        measured = self.measured(context.panel)
        if measured is not None:
            y = torch.where(measured, y, y.nan_to_num(nan=0.0))
            if self.training and self.hidden_protein_rate:
                y = y * self._shown_proteins(context.panel, generator)
        return self.encoder(x, y, continuous, covariates, generator)

    def _shown_proteins(self, panel: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return which proteins the encoder sees in training, (B, T).

        A share of the cells shows only what the panel of another cell of the minibatch measured, so
        that the encoder learns to do without the rest.
        """
        assert self.protein_mask is not None
        whole = of_all_cells(panel, generator)
        other = whole[torch.randperm(len(whole), generator=generator, device=panel.device)]
        chance = torch.rand(len(whole), generator=generator, device=panel.device)
        seen = torch.where(chance < self.hidden_protein_rate, other, whole)
        return self.protein_mask[own_cells(seen, len(panel), generator)]

    def decode(
        self, z: Tensor, context: CellContext, generator: torch.Generator | None = None
    ) -> Decoded:
        """Decode the latent states ``z`` (B, n_latent) of cells in ``context``."""
        codes = [context.batch]
        if context.categorical is not None:
            codes += list(context.categorical.unbind(dim=1))
        categories = (self.n_batch, *self.n_categories_per_covariate)
        covariates = one_hot_columns(codes, categories, z.dtype)
        if context.continuous is not None:
            z = torch.cat([z, context.continuous], dim=1)
        return self.decoder(z, covariates, generator)

    def transform_latent(self, untran_z: Tensor) -> Tensor:
        """Return z from u: itself, or its softmax for the logistic normal."""
        return untran_z if self.latent_distribution == "normal" else untran_z.softmax(dim=-1)

    def gene_log_mean(self, gene_logit: Tensor, library_size: Tensor) -> Tensor:
        """Return the log of the NB mean of RNA, (..., B, G)."""
        return self.log_proportions(gene_logit) + library_size.clamp(min=SMALLEST_NORMAL).log()

    def log_proportions(self, gene_logit: Tensor) -> Tensor:
        """Return log rho, (..., B, G)."""
        if self.library != "size_factor":
            return F.log_softmax(gene_logit, dim=-1)
        # log softplus(a) tends to a where softplus(a) would underflow
        softplus = F.softplus(gene_logit).clamp(min=SMALLEST_NORMAL).log()
        return torch.where(gene_logit < -20, gene_logit, softplus)

    @torch.no_grad()
    def proportions(self, decoded: Decoded) -> Tensor:
        """Return rho, (B, G), without a gradient."""
        like = decoded.background_mean
        total = like.new_zeros(len(like), self.n_input_genes)
        self.add_proportions(decoded, like.new_ones(len(like), 1), total)
        return total

    @torch.no_grad()
    def add_proportions(self, decoded: Decoded, scale: Tensor, total: Tensor) -> None:
        """Add rho times ``scale`` (B, 1) to ``total`` (B, G), in place and without a gradient."""
        if self.fused and suits_compiled_loops(total) and self.library != "size_factor":
            add_proportions(decoded.gene_product, scale, total)
        else:
            total.add_(self.log_proportions(decoded.gene_logit).exp_().mul_(scale))

    def gene_log_inverse_dispersion(self, context: CellContext) -> Tensor:
        """Return log r of the genes, (1, G) or (B, G)."""
        return self._rows_of_cells(self.gene_log_r, self.gene_dispersion, context)

    def _rows_of_cells(self, by_group: Tensor, dispersion: str, context: CellContext) -> Tensor:
        """Return the row of each cell's batch or label, or the one row there is."""
        if by_group.shape[0] == 1:
            return by_group
        return by_group[self._dispersion_group(dispersion, context)]

    def _dispersion_group(self, dispersion: str, context: CellContext) -> Tensor:
        """Return the row of a dispersion parameter that each cell has, (B,)."""
        if not dispersion.endswith(("batch", "label")):
            return torch.zeros_like(context.batch)
        if dispersion.endswith("batch"):
            return context.batch
        if context.label is None:
            raise ValueError(
                f"label is None, but a dispersion is {dispersion!r}; give each cell's label."
            )
        return context.label

    def proteins(
        self,
        decoded: Decoded,
        log_background: Tensor,
        cell: CellContext,
        *,
        efficiency: bool = True,
    ) -> ProteinMixture:
        """Return the distribution of protein counts at a log background b, (..., B, T).

        Parameters
        ----------
        decoded
            What `decode` said of the cells.
        log_background
            A sample of b, or what stands for it, such as the logarithm of E[exp(b)].
        cell
            What the cells were decoded as.
        efficiency
            Whether the batch's protein efficiency, where the model has one, scales both means, as it
            does those of counts. Denoised expression leaves it out.
        """
        if efficiency and self.log_efficiency is not None:
            log_background = log_background + self.log_efficiency[cell.batch]
        group = self._dispersion_group(self.protein_dispersion, cell)
        return ProteinMixture(
            log_background=log_background,
            factor=decoded.foreground_factor,
            background_logit=decoded.background_logit,
            dispersion=Dispersion(self.protein_log_r, group),
        )

    def protein_log_inverse_dispersion(self, context: CellContext) -> Tensor:
        """Return log r of the proteins, (1, T) or (B, T)."""
        return self._rows_of_cells(self.protein_log_r, self.protein_dispersion, context)

    def latent_at(self, posterior: CellPosterior, normal: Tensor) -> Tensor:
        """Return u at given standard normal noise, (..., B, n_latent)."""
        return posterior.qz_m + posterior.qz_v.sqrt() * normal

    def library_at(
        self, posterior: CellPosterior, context: CellContext, normal: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the library size (B, 1) at given noise, and its log where it is latent."""
        if posterior.ql_m is None or posterior.ql_v is None:
            assert context.library_size is not None
            return context.library_size, None
        untran_l = posterior.ql_m + posterior.ql_v.sqrt() * normal
        return untran_l.clamp(max=_LARGEST_LOG_LIBRARY).exp(), untran_l

    def library_mean(self, posterior: CellPosterior, context: CellContext) -> Tensor:
        """Return the posterior mean of the library size, exp(m + v / 2), or the known one, (B, 1)."""
        if posterior.ql_m is None or posterior.ql_v is None:
            assert context.library_size is not None
            return context.library_size
        return (posterior.ql_m + 0.5 * posterior.ql_v).exp()

    def sample_latent(
        self, posterior: CellPosterior, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return one sample of z a cell, (B, n_latent)."""
        untran_z = sample_normal(posterior.qz_m, posterior.qz_v.sqrt(), generator)
        return self.transform_latent(untran_z)

    def sample_log_background(
        self, decoded: Decoded, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return one sample of b, the log background of each protein, (..., B, T)."""
        return sample_normal(decoded.background_mean, decoded.background_scale, generator)

    def latent_mean(
        self, posterior: CellPosterior, n_samples: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return E[z], (B, n_latent): exact, or from ``n_samples`` for the logistic normal."""
        mean, scale = posterior.qz_m, posterior.qz_v.sqrt()
        if self.latent_distribution == "normal":
            return mean
        at_least_one("n_samples", n_samples)
        total = torch.zeros_like(mean)
        for start in range(0, n_samples, _SAMPLES_AT_ONCE):
            n_now = min(_SAMPLES_AT_ONCE, n_samples - start)
            samples = sample_normal(
                mean.expand(n_now, -1, -1), scale.expand(n_now, -1, -1), generator
            )
            total += self.transform_latent(samples).sum(dim=0)
        return total / n_samples

    def in_batch(self, context: CellContext, transform_batch: int | None) -> CellContext:
        """Return the context as if every cell came from ``transform_batch``; None: its own."""
        if transform_batch is None:
            return context
        is_code = isinstance(transform_batch, int | np.integer)
        if not (is_code and 0 <= transform_batch < max(self.n_batch, 1)):
            raise ValueError(
                f"transform_batch is {transform_batch!r}; allowed are 0 to {max(self.n_batch, 1) - 1}."
            )
        return context._replace(batch=torch.full_like(context.batch, transform_batch))

    def sample_library(
        self, posterior: CellPosterior, context: CellContext, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the library size (..., B, 1), and its log where it is latent."""
        if posterior.ql_m is None or posterior.ql_v is None:
            assert context.library_size is not None
            leading = posterior.qz_m.shape[:-1]
            return context.library_size.expand(*leading, 1), None
        untran_l = sample_normal(posterior.ql_m, posterior.ql_v.sqrt(), generator)
        return untran_l.clamp(max=_LARGEST_LOG_LIBRARY).exp(), untran_l


def sample_normal(mean: Tensor, scale: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return one sample of N(mean, scale**2)."""
    noise = torch.randn(
        _shape_of_all(mean, generator), generator=generator, dtype=mean.dtype, device=mean.device
    )
    return mean + scale * own_cells(noise, mean.shape[-2], generator, axis=-2)


def _shape_of_all(like: Tensor, generator: torch.Generator | None) -> tuple[int, ...]:
    """Return the shape (..., B, features) that ``like`` has with the cells of all processes."""
    *leading, n_own, n_features = like.shape
    return *leading, n_cells_of_all(n_own, generator), n_features


def stratified_normal(n_samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal noise, (n_samples, *like.shape), one from each equally likely interval.

    Averages over it vary less than over independent samples, and have the same expectation.
    """
    shape = n_samples, *_shape_of_all(like, generator)
    dtype = torch.promote_types(like.dtype, torch.float32)  # ndtri has no half precision
    noise = torch.rand(shape, generator=generator, dtype=dtype, device=like.device)
    noise = own_cells(noise, like.shape[-2], generator, axis=-2)
    stratum = torch.arange(n_samples, dtype=dtype, device=like.device)
    noise.add_(stratum.view(-1, *(1,) * like.dim())).div_(n_samples)
    edge = torch.finfo(dtype).eps  # no infinite noise where the uniform sample is 0 or rounds to 1
    return torch.special.ndtri(noise.clamp_(edge, 1 - edge))
