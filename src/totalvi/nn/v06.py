"""TOTALVI: the network with the interface of totalVI 0.6.x, which checks its arguments."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.errors import allowed
from totalvi.nn import config as options
from totalvi.nn import v06_minibatch as minibatch
from totalvi.nn.cell import CellContext, SparseCounts
from totalvi.nn.coders import Decoded
from totalvi.nn.config import NetworkConfig, at_least_one, check_option
from totalvi.nn.likelihoods import Dispersion, ElboTerms
from totalvi.nn.network import Network
from totalvi.nn.sync import standard_normal
from totalvi.nn.v06_minibatch import BatchCode, CellExtras, inverse_dispersion
from totalvi.scvi_names import NetworkThatKnowsScvi

NO_DROPOUT_LOGIT = -100.0  # of a probability that is 0 in float32


class TOTALVI(Network, metaclass=NetworkThatKnowsScvi):
    """Total variational inference for CITE-seq data.

    The generative model and its variational posterior are those of Gayoso, Steier et al., "Joint
    probabilistic modeling of single-cell multi-omic data with totalVI", Nature Methods 2021.

    Parameters
    ----------
    {options}
    use_cuda
        Whether to move the module to the GPU; without a GPU, warn and stay on the CPU.
    generator
        Generator of the initial weights. None: torch's own.

    Raises
    ------
    ValueError
        When an argument has a value that is not allowed.

    Examples
    --------
    >>> import torch
    >>> module = TOTALVI(100, 5, n_hidden=16, n_latent=4).eval()
    >>> x, y = torch.poisson(torch.ones(8, 100)), torch.poisson(torch.ones(8, 5))
    >>> terms = module(x, y, torch.full((8, 1), 4.6), torch.full((8, 1), 0.1))
    >>> terms.reconst_loss_gene.shape
    torch.Size([8])
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
        gene_dispersion: options.GeneDispersion = "gene",
        protein_dispersion: options.ProteinDispersion = "protein",
        log_variational: bool = True,
        reconstruction_loss_gene: options.GeneLoss = "nb",
        latent_distribution: options.LatentDistribution = "ln",
        protein_batch_mask: options.ProteinMask = None,
        encoder_batch: bool = True,
        *,
        use_cuda: bool = False,
        n_panels: int | None = None,
        library: options.LibraryKind = "latent",
        n_categories_per_covariate: Sequence[int] = (),
        n_continuous_covariates: int = 0,
        encode_covariates: bool = True,
        encoder_architecture: options.EncoderArchitecture = "branched",
        scale_input: bool = False,
        background_scale: options.BackgroundScale = "exp",
        protein_efficiency: bool = False,
        normalization: options.Normalization = "batch",
        background_prior: tuple[Any, Any] | None = None,
        hidden_protein_rate: float = 0.0,
        background_samples: int = 1,
        foreground_penalty: float = 0.0,
        panel_measured_rna: Sequence[bool] | None = None,
        staining_level: bool = False,
        fused: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        check_option("use_cuda", use_cuda, bool)
        config = NetworkConfig(
            n_input_genes=n_input_genes, n_input_proteins=n_input_proteins, n_batch=n_batch,
            n_labels=n_labels, n_hidden=n_hidden, n_latent=n_latent, n_layers_encoder=n_layers_encoder,
            n_layers_decoder=n_layers_decoder, dropout_rate_decoder=dropout_rate_decoder,
            dropout_rate_encoder=dropout_rate_encoder, gene_dispersion=gene_dispersion,
            protein_dispersion=protein_dispersion, log_variational=log_variational,
            reconstruction_loss_gene=reconstruction_loss_gene, latent_distribution=latent_distribution,
            protein_batch_mask=protein_batch_mask, encoder_batch=encoder_batch, n_panels=n_panels,
            library=library, n_categories_per_covariate=n_categories_per_covariate,
            n_continuous_covariates=n_continuous_covariates, encode_covariates=encode_covariates,
            encoder_architecture=encoder_architecture, scale_input=scale_input,
            background_scale=background_scale, protein_efficiency=protein_efficiency,
            normalization=normalization, background_prior=background_prior,
            hidden_protein_rate=hidden_protein_rate, background_samples=background_samples,
            panel_measured_rna=panel_measured_rna, foreground_penalty=foreground_penalty,
            staining_level=staining_level, fused=fused,
        )  # fmt: skip
        super().__init__(config, generator)
        if use_cuda and torch.cuda.is_available():
            self.cuda()
        elif use_cuda:
            said = "use_cuda=True, but there is no CUDA device: the model stays on the CPU."
            warnings.warn(said, stacklevel=3)

    def context(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        **extras: Unpack[CellExtras],
    ) -> CellContext:
        """Return the context of a minibatch's cells, after checking the shapes of all arguments."""
        return self._cells(x, y, batch_index, label, **extras)[2]

    def _cells(
        self, x: Tensor | SparseCounts, y: Tensor, *groups: Tensor | None,
        **extras: Unpack[CellExtras],
    ) -> tuple[Tensor | SparseCounts, Tensor, CellContext]:  # fmt: skip
        """Return the counts in the network's data type, and the context of the cells."""
        x, y = minibatch.checked_counts(self, x, y)
        return x, y, minibatch.checked_context(self.config, x, y, *groups, extras=extras)

    def forward(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        local_l_mean_gene: Tensor | None = None,
        local_l_var_gene: Tensor | None = None,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> ElboTerms:
        """Return the five terms of the negative ELBO, each (B,), from one posterior sample per cell.

        Parameters
        ----------
        x, y
            RNA counts (B, G), dense or sparse, and protein counts (B, T).
        local_l_mean_gene, local_l_var_gene
            Prior mean and variance of the log library size, (B, 1); needed only if it is latent.
        batch_index, label
            Codes (B,) or (B, 1), or one-hot.
        generator
            Generator of the samples and of dropout.
        """
        x, y, context = self._cells(x, y, batch_index, label, **extras)
        prior = minibatch.library_prior(self.library, local_l_mean_gene, local_l_var_gene, len(y))
        return self.elbo(x, y, context, *prior, generator)

    def get_reconstruction_loss(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        px_: dict[str, Tensor],
        py_: dict[str, Tensor],
        pro_batch_mask_minibatch: Tensor | np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the reconstruction loss of genes and proteins, each (B,).

        Parameters
        ----------
        x, y
            Counts (B, G) and (B, T).
        px_, py_
            Results of `inference` under these names. ``px_["dropout"]`` is used only by a "zinb"
            network.
        pro_batch_mask_minibatch
            True, or 1, for measured proteins, (B, T). None: all.
        """
        x, y = minibatch.checked_counts(self, x, y)
        measured = minibatch.measured_proteins(pro_batch_mask_minibatch, y)
        genes = minibatch.gene_loss_of(self, x, px_)
        return genes, minibatch.protein_reconstruction_loss(y, py_, measured)

    def inference(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: BatchCode | None = None,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> dict[str, Any]:
        """Encode the cells, sample their latent variables, and decode.

        Returns
        -------
        ``px_`` (scale, rate, r, dropout) and ``py_`` (back_alpha, back_beta, rate_back,
        fore_scale, rate_fore, mixing, scale, r; efficiency if the model has one) as dicts, and
        qz_m, qz_v, z, untran_z, ql_m, ql_v, untran_l (None if the library size is known),
        library_gene, log_pro_back_mean. With ``n_samples`` above 1, all except the dispersions
        gain a leading axis (n_samples, B, .).
        """
        x, y, context = self._cells(x, y, batch_index, label, **extras)
        given = n_samples, transform_batch, generator
        sample = minibatch.posterior_sample(self, x, y, context, *given)
        return {
            "px_": self.gene_parameters(sample.decoded, sample.library_size, sample.context),
            "py_": self.protein_parameters(sample.decoded, sample.log_background, sample.context),
            "z": sample.z,
            "untran_z": sample.untran_z,
            "untran_l": sample.untran_l,
            "library_gene": sample.library_size,
            "log_pro_back_mean": sample.log_background,
            **sample.posterior._asdict(),
        }

    def gene_parameters(
        self, decoded: Decoded, library_size: Tensor, context: CellContext
    ) -> dict[str, Tensor]:
        """Return the entries of ``px_``.

        "dropout" is the logit of the probability that a count is set to zero. An "nb" network leaves it
        out of its likelihood: it is of 0.6.x's head, if loaded, or of a probability of zero.
        """
        genes = self.genes(decoded, library_size, context)
        scale, r = genes.log_proportions().exp(), inverse_dispersion(genes.dispersion)
        dropout = decoded.dropout_logit
        if dropout is None:
            dropout = scale.new_full((), NO_DROPOUT_LOGIT).expand_as(scale)
        return {"scale": scale, "rate": library_size * scale, "r": r, "dropout": dropout}

    def protein_parameters(
        self, decoded: Decoded, log_background: Tensor, context: CellContext
    ) -> dict[str, Tensor]:
        """Return the entries of ``py_``."""
        mixture = self.proteins(decoded, log_background, context, efficiency=False)
        rate_fore = mixture.foreground_mean()
        parameters = {
            "back_alpha": decoded.background_mean,
            "back_beta": decoded.background_scale,
            "rate_back": mixture.background_mean(),
            "fore_scale": mixture.factor,
            "rate_fore": rate_fore,
            "mixing": mixture.background_logit,
            "scale": F.normalize(mixture.foreground_probability() * rate_fore, p=1, dim=-1),
            "r": inverse_dispersion(mixture.dispersion),
        }
        if isinstance(log_factor := self.log_factor(context), Tensor):
            parameters["efficiency"] = log_factor.exp()
        return parameters

    def sample_from_posterior_z(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        give_mean: bool = False,
        n_samples: int = 5000,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> Tensor:
        """Return one sample of z, or its posterior mean, (B, n_latent).

        The mean is exact for the normal; for the logistic normal it is the average of softmax(u) over
        ``n_samples`` samples.
        """
        x, y, context = self._cells(x, y, batch_index, **extras)
        posterior = self.encode(x, y, context, generator)
        if give_mean:
            return minibatch.latent_mean(self, posterior, n_samples, generator)
        noise = standard_normal(posterior.qz_m, generator)
        return self.transform_latent(self.latent_at(posterior, noise))

    def sample_from_posterior_l(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        give_mean: bool = True,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> Tensor:
        """Return the library size, (B, 1): its posterior mean exp(m + v/2), or one sample.

        A known library size (observed, or a size factor) is returned unchanged.
        """
        x, y, context = self._cells(x, y, batch_index, **extras)
        if context.library_size is not None:
            return context.library_size
        posterior = self.encode(x, y, context, generator)
        if give_mean:
            return posterior.library_mean(context)
        return self.sample_library(posterior, context, generator)[0]

    def get_sample_dispersion(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        **extras: Unpack[CellExtras],
    ) -> tuple[Tensor, Tensor]:
        """Return the inverse dispersions of genes and proteins: (G,) and (T,), or (B, G) and (B, T).

        They are parameters and not sampled. With ``n_samples`` above 1, those per cell are repeated
        along a leading axis.
        """
        at_least_one("n_samples", n_samples)
        x, y, context = self._cells(x, y, batch_index, label, **extras)
        gene = Dispersion.of(self.gene_log_r, self.gene_dispersion, context)
        protein = Dispersion.of(self.protein_log_r, self.protein_dispersion, context)
        return inverse_dispersion(gene, n_samples), inverse_dispersion(protein, n_samples)

    def get_sample_rate(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> Tensor:
        """Return samples of the negative binomial mean of genes, (B, G) or (n_samples, B, G)."""
        found = self.inference(x, y, batch_index, label, n_samples, generator=generator, **extras)
        return torch.as_tensor(found["px_"]["rate"])

    def get_sample_scale(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: BatchCode | None = None,
        eps: float = 0,
        normalize_pro: bool = False,
        sample_bern: bool = True,
        include_bg: bool = False,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> tuple[Tensor, Tensor]:
        """Return the scales of genes and proteins, on which queries compare expression.

        Parameters
        ----------
        transform_batch
            Decode every cell as if it came from this batch.
        eps
            Prior count that is added to the protein scale at the end.
        normalize_pro
            Whether the proteins of a cell are scaled to sum to one.
        sample_bern
            Whether to draw for each protein if it is background or foreground. Otherwise both are
            weighted by their probability.
        include_bg
            Whether to include the background part.

        Returns
        -------
        RNA proportions (B, G) and protein scale (B, T); with ``n_samples`` above 1 (n_samples, B, .).
        """
        if not 0 <= eps < math.inf:
            raise ValueError(allowed("eps", eps, "finite numbers from 0"))
        x, y, context = self._cells(x, y, batch_index, label, **extras)
        given = n_samples, transform_batch, generator
        sample = minibatch.posterior_sample(self, x, y, context, *given)
        mixture = self.proteins(
            sample.decoded, sample.log_background, sample.context, efficiency=False
        )
        in_background = mixture.background_probability()
        if sample_bern:
            in_background = torch.bernoulli(in_background, generator=generator)
        protein = mixture.mean(background=include_bg, in_background=in_background)
        if normalize_pro:
            protein = F.normalize(protein, p=1, dim=-1)
        genes = self.genes(sample.decoded, sample.library_size, sample.context)
        return genes.log_proportions().exp(), protein + eps


TOTALVI.__doc__ = (TOTALVI.__doc__ or "").replace("{options}", options.fields_page())
