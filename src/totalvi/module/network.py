"""The network of totalVI: construction, encoding, decoding, and the terms of its objective."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from totalvi.module.context import CellContext, integer_codes, one_hot_columns, one_hot_width
from totalvi.module.decoder import BackgroundScale, Decoded, Decoder
from totalvi.module.distributions import (
    log_normal_log_prob,
    negative_binomial_mixture_log_prob,
    normal_kl,
    standard_normal_kl,
)
from totalvi.module.elbo import ElboTerms
from totalvi.module.encoder import CellPosterior, Encoder, EncoderArchitecture
from totalvi.module.fused.arrays import suits_compiled_loops
from totalvi.module.fused.gene_loss import gene_head_loss
from totalvi.module.fused.proportions import add_proportions
from totalvi.module.fused.protein_terms import background_divergence, protein_mixture_loss
from totalvi.module.layers import Normalization
from totalvi.module.likelihood import gene_reconstruction_loss
from totalvi.module.options import at_least_one, check_options, protein_mask
from totalvi.module.sparse import SparseCounts

LibraryKind = Literal["latent", "observed", "size_factor"]
_LARGEST_LOG_LIBRARY = 15.0
_SAMPLES_AT_ONCE = 50
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


class CellExtras(TypedDict, total=False):
    """Keyword arguments that the methods of `TOTALVI` take besides the reference's.

    ``panel_index`` (B,), ``size_factor`` (B, 1), ``categorical_covariates`` (B, covariates) of codes,
    ``continuous_covariates`` (B, covariates).
    """

    panel_index: Tensor | None
    size_factor: Tensor | None
    categorical_covariates: Tensor | None
    continuous_covariates: Tensor | None


class Network(nn.Module):
    """Encoder, decoder and parameters of totalVI; the arguments are documented at `TOTALVI`."""

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
        self.bfloat16_products = False
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

    def context(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        **extras: Unpack[CellExtras],
    ) -> CellContext:
        """Check the shapes of a minibatch and return what is known of its cells.

        Raises
        ------
        ValueError
            Naming the argument, what came and what is allowed.
        """
        unknown = sorted(set(extras) - set(CellExtras.__annotations__))
        if unknown:
            known = ", ".join(CellExtras.__annotations__)
            raise ValueError(f"{unknown[0]} is not an argument; allowed besides are {known}.")
        self.check_counts(x, y)
        batch = self._codes("batch_index", batch_index, y, self.n_batch)
        has_labels = label is not None and self.n_labels > 0
        labels = self._codes("label", label, y, self.n_labels) if has_labels else None
        panel_index = extras.get("panel_index")
        panel = (
            batch
            if self.panel_is_batch
            else self._codes("panel_index", panel_index, y, self.n_panels)
        )
        categorical = self._matrix(
            "categorical_covariates", extras, y, len(self.n_categories_per_covariate)
        )
        continuous = self._matrix("continuous_covariates", extras, y, self.n_continuous_covariates)
        return CellContext(
            batch=batch,
            panel=panel,
            label=labels,
            categorical=None if categorical is None else self._covariate_codes(categorical),
            continuous=None if continuous is None else continuous.to(y.dtype),
            library_size=self._known_library(x, extras),
        )

    def check_counts(self, x: Tensor | SparseCounts, y: Tensor) -> None:
        """Raise ValueError unless ``x`` is (B, G) and ``y`` (B, T), of the module's data type."""
        dtype = self.gene_log_r.dtype
        for name, given, width in (("x", x, self.n_input_genes), ("y", y, self.n_input_proteins)):
            if not isinstance(given, Tensor | SparseCounts):
                raise ValueError(f"{name} is a {type(given).__name__}; allowed is a torch tensor.")
            if tuple(given.shape) != (x.shape[0], width):
                raise ValueError(
                    f"{name} has shape {tuple(given.shape)}; allowed is ({x.shape[0]}, {width})."
                )
            values = given.counts if isinstance(given, SparseCounts) else given
            if values.dtype != dtype:
                raise ValueError(f"{name} holds {values.dtype}; allowed is {dtype}.")
        if isinstance(x, SparseCounts):
            x.check()

    def _codes(self, name: str, given: Tensor | None, y: Tensor, n_categories: int) -> Tensor:
        if given is None and n_categories > 1:
            raise ValueError(f"{name} is None; allowed are codes from 0 to {n_categories - 1}.")
        if given is not None and n_categories == 0 and len(given) != len(y):
            raise ValueError(f"{name} has {len(given)} rows; allowed are {len(y)}, one a cell.")
        if given is None or n_categories == 0:  # the model knows no groups: all cells are one
            return torch.zeros(len(y), dtype=torch.long, device=y.device)
        return integer_codes(name, torch.as_tensor(given), len(y), n_categories)

    def _covariate_codes(self, given: Tensor) -> Tensor:
        columns = [
            integer_codes(f"categorical_covariates[:, {i}]", given[:, i], len(given), n)
            for i, n in enumerate(self.n_categories_per_covariate)
        ]
        return torch.stack(columns, dim=1) if columns else given.long()

    def _matrix(
        self,
        name: Literal["categorical_covariates", "continuous_covariates"],
        extras: CellExtras,
        y: Tensor,
        width: int,
    ) -> Tensor | None:
        given = extras.get(name)
        if width == 0 and given is None:
            return None
        shape = None if given is None else tuple(given.shape)
        if shape != (len(y), width):
            raise ValueError(f"{name} has shape {shape}; allowed is ({len(y)}, {width}).")
        return given

    def _known_library(self, x: Tensor | SparseCounts, extras: CellExtras) -> Tensor | None:
        if self.library == "latent":
            return None
        if self.library == "observed":
            total = x.sum_by_cell(x.counts) if isinstance(x, SparseCounts) else x.sum(dim=1)
            return total[:, None]
        size_factor = extras.get("size_factor")
        if size_factor is None or size_factor.numel() != x.shape[0]:
            shape = None if size_factor is None else tuple(size_factor.shape)
            raise ValueError(f"size_factor has shape {shape}; allowed is ({x.shape[0]}, 1).")
        if not bool((size_factor > 0).all()):
            raise ValueError("size_factor holds a value that is not above 0.")
        return size_factor.reshape(-1, 1)

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
        other = panel[torch.randperm(len(panel), generator=generator, device=panel.device)]
        chance = torch.rand(len(panel), generator=generator, device=panel.device)
        return self.protein_mask[torch.where(chance < self.hidden_protein_rate, other, panel)]

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

    def protein_log_inverse_dispersion(self, context: CellContext) -> Tensor:
        """Return log r of the proteins, (1, T) or (B, T)."""
        return self._rows_of_cells(self.protein_log_r, self.protein_dispersion, context)

    def elbo(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        local_l_mean_gene: Tensor | None = None,
        local_l_var_gene: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """Return the terms of `forward` for cells whose ``context`` has been checked."""
        posterior = self.encode(x, y, context, generator)
        untran_z = sample_normal(posterior.qz_m, posterior.qz_v.sqrt(), generator)
        library_size = self.sample_library(posterior, context, generator)[0]
        decoded = self.decode(self.transform_latent(untran_z), context, generator)
        log_background = self.sample_log_background(decoded, generator)
        return self.elbo_terms(
            x, y, context, posterior, decoded, library_size, log_background,
            local_l_mean_gene, local_l_var_gene,
        )  # fmt: skip

    def elbo_terms(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        posterior: CellPosterior,
        decoded: Decoded,
        library_size: Tensor,
        log_background: Tensor,
        local_l_mean_gene: Tensor | None = None,
        local_l_var_gene: Tensor | None = None,
    ) -> ElboTerms:
        """Return the terms at given samples of the latent variables."""
        kl_z = standard_normal_kl(posterior.qz_m, posterior.qz_v).sum(dim=-1)
        return ElboTerms(
            reconst_loss_gene=self._gene_loss(x, context, decoded, library_size),
            reconst_loss_protein=self._protein_loss(y, context, decoded, log_background),
            kl_div_z=kl_z,
            kl_div_l_gene=self._library_kl(posterior, local_l_mean_gene, local_l_var_gene, kl_z),
            kl_div_back_pro=self._background_kl(context, decoded),
        )

    def _gene_loss(
        self, x: Tensor | SparseCounts, context: CellContext, decoded: Decoded, library_size: Tensor
    ) -> Tensor:
        if self._can_fuse(x, library_size):
            assert isinstance(x, SparseCounts)
            group = self._dispersion_group(self.gene_dispersion, context)
            return gene_head_loss(
                decoded.gene_product,
                decoded.dropout_product,
                x,
                library_size.clamp(min=SMALLEST_NORMAL),
                self.gene_log_r,
                group,
                self.bfloat16_products,
            )
        log_mean = self.gene_log_mean(decoded.gene_logit, library_size)
        log_r = self.gene_log_inverse_dispersion(context)
        return gene_reconstruction_loss(x, log_mean, log_r, decoded.dropout_logit)

    def _can_fuse(self, x: Tensor | SparseCounts, library_size: Tensor) -> bool:
        """Return whether a compiled loop can take RNA's loss: sparse, one sample a cell, softmax."""
        return (
            self.fused
            and isinstance(x, SparseCounts)
            and suits_compiled_loops(library_size)
            and library_size.dim() == 2
            and self.library != "size_factor"
        )

    def _protein_loss(
        self, y: Tensor, context: CellContext, decoded: Decoded, log_background: Tensor
    ) -> Tensor:
        if self.fused and suits_compiled_loops(log_background) and log_background.dim() == 2:
            if self.log_efficiency is not None:
                log_background = log_background + self.log_efficiency[context.batch]
            return protein_mixture_loss(
                y,
                self.measured(context.panel),
                log_background,
                decoded.foreground_factor,
                decoded.background_logit,
                self.protein_log_r,
                self._dispersion_group(self.protein_dispersion, context),
            )
        log_efficiency = self.protein_log_efficiency(context)
        log_mean_background = log_background + log_efficiency
        measured = self.measured(context.panel)
        log_prob = negative_binomial_mixture_log_prob(
            without_unmeasured(y, measured),
            log_mean_background,
            log_mean_background + decoded.foreground_factor.log(),
            self.protein_log_inverse_dispersion(context),
            decoded.background_logit,
        )
        return -sum_measured(log_prob, measured)

    def _library_kl(
        self,
        posterior: CellPosterior,
        local_l_mean_gene: Tensor | None,
        local_l_var_gene: Tensor | None,
        like: Tensor,
    ) -> Tensor:
        if posterior.ql_m is None or posterior.ql_v is None:
            return torch.zeros_like(like)
        if local_l_mean_gene is None or local_l_var_gene is None:
            raise ValueError(
                "local_l_mean_gene and local_l_var_gene are needed where the library size is latent."
            )
        n_cells = len(posterior.ql_m)
        prior = {"local_l_mean_gene": local_l_mean_gene, "local_l_var_gene": local_l_var_gene}
        for name, given in prior.items():
            if given.numel() not in (1, n_cells):
                raise ValueError(
                    f"{name} has shape {tuple(given.shape)}; allowed is ({n_cells}, 1)."
                )
        prior_mean, prior_variance = (given.reshape(-1, 1) for given in prior.values())
        return normal_kl(posterior.ql_m, posterior.ql_v, prior_mean, prior_variance).sum(dim=-1)

    def _background_kl(self, context: CellContext, decoded: Decoded) -> Tensor:
        mean, scale = decoded.background_mean, decoded.background_scale
        measured = self.measured(context.panel)
        prior = self.background_prior_mean, self.background_prior_log_scale
        if self.fused and suits_compiled_loops(mean) and mean.dim() == 2:
            total = background_divergence(measured, mean, scale, *prior, context.panel)
        else:
            prior_mean, prior_log_scale = (parameter[context.panel] for parameter in prior)
            divergence = normal_kl(mean, scale**2, prior_mean, (2 * prior_log_scale).exp())
            total = sum_measured(divergence, measured)
        if self.log_efficiency is not None:
            # scvi-tools' prior of the efficiency, and its small pull of pi towards 1
            efficiency_prior = log_normal_log_prob(self.log_efficiency[context.batch]).sum(dim=-1)
            log_pi = F.logsigmoid(decoded.background_logit).sum(dim=-1)
            total = total - efficiency_prior - 1e-3 * log_pi
        return total

    def protein_log_efficiency(self, context: CellContext) -> Tensor | float:
        """Return the log of the factor on both protein means, (B, T); 0 where the model has none."""
        return 0.0 if self.log_efficiency is None else self.log_efficiency[context.batch]

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
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + scale * noise


def without_unmeasured(y: Tensor, measured: Tensor | None) -> Tensor:
    """Return ``y`` with 0 where it was not measured."""
    return y if measured is None else torch.where(measured, y, torch.zeros_like(y))


def sum_measured(value: Tensor, measured: Tensor | None) -> Tensor:
    """Sum over proteins; where unmeasured, neither the value nor its gradient counts."""
    if measured is not None:
        value = torch.where(measured, value, torch.zeros_like(value))
    return value.sum(dim=-1)
