"""TOTALVI: the joint model of RNA and surface proteins as one torch module."""

import math
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.nn.cell import CellContext
from totalvi.nn.config import at_least_one
from totalvi.nn.decoder import Decoded
from totalvi.nn.elbo import ElboTerms, sum_measured, without_unmeasured
from totalvi.nn.encoder import CellPosterior
from totalvi.nn.likelihoods import gene_reconstruction_loss, negative_binomial_mixture_log_prob
from totalvi.nn.network import SMALLEST_NORMAL, sample_normal
from totalvi.nn.sparse import SparseCounts
from totalvi.nn.v06_inputs import CellExtras, CheckedInputs

Parameters = dict[str, Tensor]


class _Sample(NamedTuple):
    """Samples of the latent variables of a minibatch, and what they were decoded as and to."""

    posterior: CellPosterior
    context: CellContext
    untran_z: Tensor
    z: Tensor
    library_size: Tensor
    untran_l: Tensor | None
    decoded: Decoded
    log_background: Tensor


class TOTALVI(CheckedInputs):
    """Total variational inference for CITE-seq data.

    The generative model and its variational posterior are those of Gayoso, Steier et al., "Joint
    probabilistic modeling of single-cell multi-omic data with totalVI", Nature Methods 2021.

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
        Inverse dispersion of genes: one value a gene ("gene"), or one for each batch ("gene-batch")
        or label ("gene-label").
    protein_dispersion
        Likewise: "protein", "protein-batch" or "protein-label".
    log_variational
        Whether the encoder sees log(1 + counts). The likelihood always sees the counts.
    reconstruction_loss_gene
        "nb" or "zinb".
    latent_distribution
        "normal", or "ln" for the logistic normal: z = softmax(u).
    protein_batch_mask
        Which protein each batch (panel, where ``n_panels`` is given) measured: a sequence of boolean
        rows, or a dict from batch code to row. None: all measured.
    encoder_batch
        Whether the encoder sees the batch.
    use_cuda
        Move the module to the GPU; without one, warn and stay on the CPU.
    n_panels
        Number of antibody panels, where they differ from the batches. None: each batch is one.
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
        "exp" (0.6.x) or "softplus": how the posterior scale of the background stays positive.
    protein_efficiency
        Whether each protein and batch has a learned factor on both protein means.
    normalization
        Of hidden layers: "batch", "layer" or "none".
    background_prior
        Initial mean and standard deviation of each protein's log background, each (T,) or
        (panels, T). None: standard normal draws for the mean, and 1.
    hidden_protein_rate
        Share of the cells that show the encoder, in training, only the proteins that another cell's
        panel measured; without effect where all panels measured the same.
    background_samples
        Samples of each protein's background, in training, over which the likelihood of its count is
        averaged: log E[p(y | z, b)] in place of the E[log p(y | z, b)] of the ELBO, which it is with 1.
    fused
        Whether compiled loops do the work of training on the CPU, where there is one for it; False:
        plain torch operations everywhere.
    generator
        Source of the initial weights. None: torch's own.

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
        """Return the five terms of the negative ELBO, each (B,), from one posterior sample a cell.

        Parameters
        ----------
        x, y
            RNA counts (B, G), dense or sparse, and protein counts (B, T).
        local_l_mean_gene, local_l_var_gene
            Prior mean and variance of the log library size, (B, 1); needed only when it is latent.
        batch_index, label
            Codes (B,) or (B, 1), or one-hot.
        generator
            Source of the samples and of dropout.
        """
        context = self.context(x, y, batch_index, label, **extras)
        return self.elbo(x, y, context, local_l_mean_gene, local_l_var_gene, generator)

    def get_reconstruction_loss(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        px_: Parameters,
        py_: Parameters,
        pro_batch_mask_minibatch: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the reconstruction loss of genes and proteins, each (B,).

        Parameters
        ----------
        x, y
            Counts (B, G) and (B, T).
        px_, py_
            What `inference` returned under these names.
        pro_batch_mask_minibatch
            True where a protein was measured, (B, T). None: everywhere.
        """
        self.check_counts(x, y)
        mask_shape = None if pro_batch_mask_minibatch is None else pro_batch_mask_minibatch.shape
        if mask_shape not in (None, y.shape):
            raise ValueError(
                f"pro_batch_mask_minibatch has shape {tuple(mask_shape)}; "
                f"allowed is {tuple(y.shape)}."
            )
        gene_loss = gene_reconstruction_loss(
            x,
            px_["rate"].clamp(min=SMALLEST_NORMAL).log(),
            px_["r"].log().reshape(-1, self.n_input_genes),
            px_.get("dropout"),
        )
        efficiency = py_.get("efficiency", torch.ones_like(py_["rate_back"]))
        log_prob = negative_binomial_mixture_log_prob(
            without_unmeasured(y, pro_batch_mask_minibatch),
            (py_["rate_back"] * efficiency).log(),
            (py_["rate_fore"] * efficiency).log(),
            py_["r"].log(),
            py_["mixing"],
        )
        return gene_loss, -sum_measured(log_prob, pro_batch_mask_minibatch)

    def inference(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: int | None = None,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> dict[str, Any]:
        """Encode the cells, sample their latent variables, and decode.

        Returns
        -------
        ``px_`` (scale, rate, r; dropout for "zinb") and ``py_`` (back_alpha, back_beta, rate_back,
        fore_scale, rate_fore, mixing, scale, r; efficiency where the model has one) as dicts, and
        qz_m, qz_v, z, untran_z, ql_m, ql_v, untran_l (None when the library size is known),
        library_gene, log_pro_back_mean. With ``n_samples`` above 1 each, the dispersions apart, gains
        a leading axis (n_samples, B, .).
        """
        sample = self._sample(
            x, y, batch_index, label, n_samples, transform_batch, generator, extras
        )
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

    def _sample(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None,
        label: Tensor | None,
        n_samples: int,
        transform_batch: int | None,
        generator: torch.Generator | None,
        extras: CellExtras,
    ) -> _Sample:
        at_least_one("n_samples", n_samples)
        context = self.context(x, y, batch_index, label, **extras)
        posterior = self.encode(x, y, context, generator)
        if n_samples > 1:
            posterior = CellPosterior(
                *(None if part is None else part.expand(n_samples, -1, -1) for part in posterior)  # type: ignore[arg-type]
            )
        untran_z = sample_normal(posterior.qz_m, posterior.qz_v.sqrt(), generator)
        library_size, untran_l = self.sample_library(posterior, context, generator)
        z = self.transform_latent(untran_z)
        decode_context = self.in_batch(context, transform_batch)
        flat = self.decode(z.flatten(0, -2), decode_context.repeat(n_samples), generator)
        decoded = flat.unflatten(z.shape[:-1])
        log_background = self.sample_log_background(decoded, generator)
        return _Sample(
            posterior, decode_context, untran_z, z, library_size, untran_l, decoded, log_background
        )

    def gene_parameters(
        self, decoded: Decoded, library_size: Tensor, context: CellContext
    ) -> Parameters:
        """Return the entries of ``px_``."""
        scale = self.log_proportions(decoded.gene_logit).exp()
        parameters = {
            "scale": scale,
            "rate": library_size * scale,
            "r": self._inverse_dispersions(context)[0],
        }
        if decoded.dropout_product is not None:
            parameters["dropout"] = decoded.dropout_product.value()
        return parameters

    def protein_parameters(
        self, decoded: Decoded, log_background: Tensor, context: CellContext
    ) -> Parameters:
        """Return the entries of ``py_``."""
        mixture = self.proteins(decoded, log_background, context, efficiency=False)
        rate_fore = mixture.foreground_mean()
        foreground = mixture.foreground_probability() * rate_fore
        parameters = {
            "back_alpha": decoded.background_mean,
            "back_beta": decoded.background_scale,
            "rate_back": mixture.background_mean(),
            "fore_scale": mixture.factor,
            "rate_fore": rate_fore,
            "mixing": mixture.background_logit,
            "scale": F.normalize(foreground, p=1, dim=-1),
            "r": self._inverse_dispersions(context)[1],
        }
        if self.log_efficiency is not None:
            parameters["efficiency"] = self.log_efficiency[context.batch].exp()
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
        context = self.context(x, y, batch_index, **extras)
        posterior = self.encode(x, y, context, generator)
        if give_mean:
            return self.latent_mean(posterior, at_least_one("n_samples", n_samples), generator)
        return self.sample_latent(posterior, generator)

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

        A known library size (observed, or a size factor) is returned as it is.
        """
        context = self.context(x, y, batch_index, **extras)
        if context.library_size is not None:
            return context.library_size
        posterior = self.encode(x, y, context, generator)
        if give_mean:
            return self.library_mean(posterior, context)
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

        They are parameters, not sampled: with ``n_samples`` above 1 those by cell are repeated along
        a leading axis.
        """
        at_least_one("n_samples", n_samples)
        values = self._inverse_dispersions(self.context(x, y, batch_index, label, **extras))
        if n_samples == 1:
            return values
        gene, protein = (v.expand(n_samples, -1, -1) if v.dim() == 2 else v for v in values)
        return gene, protein

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
        outputs = self.inference(x, y, batch_index, label, n_samples, generator=generator, **extras)
        rate: Tensor = outputs["px_"]["rate"]
        return rate

    def get_sample_scale(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: int | None = None,
        eps: float = 0,
        normalize_pro: bool = False,
        sample_bern: bool = True,
        include_bg: bool = False,
        *,
        generator: torch.Generator | None = None,
        **extras: Unpack[CellExtras],
    ) -> tuple[Tensor, Tensor]:
        """Return the scales of genes and proteins, on which expression is compared.

        Parameters
        ----------
        x, y, batch_index, label, n_samples
            As in `inference`.
        transform_batch
            Decode every cell as if it came from this batch.
        eps
            Prior count added to the protein scale, last.
        normalize_pro
            Whether the proteins of a cell are made to sum to one.
        sample_bern
            Whether each protein is drawn to be background or foreground; otherwise both are weighted
            by their probability.
        include_bg
            Whether the background part counts.

        Returns
        -------
        RNA proportions (B, G) and protein scale (B, T); with ``n_samples`` above 1 (n_samples, B, .).
        """
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps is {eps!r}; allowed are finite numbers from 0.")
        sample = self._sample(
            x, y, batch_index, label, n_samples, transform_batch, generator, extras
        )
        mixture = self.proteins(
            sample.decoded, sample.log_background, sample.context, efficiency=False
        )
        in_background = mixture.background_probability()
        if sample_bern:
            in_background = torch.bernoulli(in_background, generator=generator)
        protein = mixture.mean(background=include_bg, in_background=in_background)
        if normalize_pro:
            protein = F.normalize(protein, p=1, dim=-1)
        return self.log_proportions(sample.decoded.gene_logit).exp(), protein + eps

    def _inverse_dispersions(self, context: CellContext) -> tuple[Tensor, Tensor]:
        """Return r of genes and proteins: (G,) and (T,), or by cell where they differ by group."""
        gene = self.gene_log_inverse_dispersion(context).exp()
        protein = self.protein_log_inverse_dispersion(context).exp()
        return (
            gene[0] if len(self.gene_log_r) == 1 else gene,
            protein[0] if len(self.protein_log_r) == 1 else protein,
        )
