"""The latent cell state and the library size: means, samples, and how uncertain they are."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypedDict, Unpack, overload

import numpy as np
import pandas as pd
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from totalvi.data.describe import Data
from totalvi.errors import DataWarning
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.coders import CellPosterior
from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import Cells, Names, documented
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.unmeasured import answering_for

_MOST_CLUSTERS, _CELLS_OF_A_CLUSTER = 10, 30


class LatentDistribution(NamedTuple):
    """q(u | cell) = N(mean, diag(variance)) of each cell, each (cells, n_latent) float32.

    u is the latent state z itself, or for the logistic normal what z is the softmax of.
    """

    mean: np.ndarray
    variance: np.ndarray

    def of(self, cells: np.ndarray) -> Self:
        """Return those of the cells at positions."""
        return type(self)(self.mean[cells], self.variance[cells])


class CellUncertainty(NamedTuple):
    """How uncertain the state of each cell is, (cells,).

    Parameters
    ----------
    latent_entropy
        Entropy of q(u | cell) in nats: ``sum_j log(2 pi e v_j) / 2``.
    latent_variance
        Mean of v_j over the latent dimensions.
    protein_entropy
        Entropy in nats of whether a protein is foreground, with its probability averaged over
        q(z | cell), given the count where the question gives it; the mean over proteins, between 0
        and log 2.
    """

    latent_entropy: np.ndarray
    latent_variance: np.ndarray
    protein_entropy: np.ndarray


def latent_mean(question: Question, batch: Minibatch) -> Tensor:
    """Return E[z], (B, n_latent).

    For the logistic normal, E[softmax(u)] is an average over ``question.n_samples`` samples.
    """
    posterior = batch.encode(question.network)
    if question.network.latent_distribution == "normal":
        return posterior.qz_m
    total = torch.zeros_like(posterior.qz_m)
    for z in _samples(question, batch, posterior):
        total += z
    return total / question.n_samples


def latent_samples(question: Question, batch: Minibatch) -> Tensor:
    """Return samples of z, (n_samples, B, n_latent)."""
    return torch.stack(list(_samples(question, batch, batch.encode(question.network))))


def latent_distribution(question: Question) -> LatentDistribution:
    """Return the mean and variance of q(u | cell) of all cells of a question."""

    def moments(batch: Minibatch) -> Tensor:
        posterior = batch.encode(question.network)
        return torch.stack([posterior.qz_m, posterior.qz_v])

    return LatentDistribution(*question.gather("latent states", moments, axis=1))


def library_mean(question: Question, batch: Minibatch) -> Tensor:
    """Return the posterior mean exp(m + v / 2) of each library size, or the known one, (B, 1)."""
    return batch.encode(question.network).library_mean(batch.context)


def library_samples(question: Question, batch: Minibatch) -> Tensor:
    """Return samples of the library size, (n_samples, B, 1); all the same where it is known."""
    posterior = batch.encode(question.network)
    samples = []
    for sample in range(question.n_samples):
        normal = question.noise.normal("library", sample, batch.keys, 1).to(batch.device)
        samples.append(posterior.library_at(batch.context, normal)[0])
    return torch.stack(samples)


def _samples(question: Question, batch: Minibatch, posterior: CellPosterior) -> Iterator[Tensor]:
    network = question.network
    for sample in range(question.n_samples):
        normal = question.noise.normal("latent", sample, batch.keys, network.n_latent)
        yield network.transform_latent(network.latent_at(posterior, normal.to(batch.device)))


def cell_uncertainty(question: Question, proteins: np.ndarray) -> CellUncertainty:
    """Return the uncertainty of each cell, averaged over the proteins at these positions."""

    def entropies(batch: Minibatch) -> Tensor:
        foreground = batch.zeros(question.network.n_input_proteins)
        for i, draw in enumerate(question.draws(batch)):
            foreground += draw.foreground_probability() * question.share(i, batch)
        foreground /= question.n_samples
        variance = draw.posterior.qz_v
        latent = 0.5 * (variance.log() + math.log(2 * math.pi * math.e)).sum(dim=1)
        protein = _binary_entropy(foreground[:, proteins]).nanmean(dim=1)
        return torch.stack([latent, variance.mean(dim=1), protein])

    return CellUncertainty(*question.gather("uncertainty", entropies, axis=1))


def _binary_entropy(probability: Tensor) -> Tensor:
    other = 1 - probability
    return -torch.xlogy(probability, probability) - torch.xlogy(other, other)


class _LatentOptions(TypedDict, total=False):
    n_samples: int
    seed: int
    progress: bool | None


@documented
class LatentQueries(Fitted):
    """What a model says of the state of cells."""

    @overload
    def get_latent_representation(
        self,
        adata: Data | None = ...,
        indices: Cells = ...,
        give_mean: bool = ...,
        mc_samples: int = ...,
        batch_size: int = ...,
        *,
        out: str | Path,
        **options: Unpack[_LatentOptions],
    ) -> Path: ...

    @overload
    def get_latent_representation(
        self,
        adata: Data | None = ...,
        indices: Cells = ...,
        give_mean: bool = ...,
        mc_samples: int = ...,
        batch_size: int = ...,
        *,
        return_dist: Literal[True],
        **options: Unpack[_LatentOptions],
    ) -> LatentDistribution: ...

    @overload
    def get_latent_representation(
        self,
        adata: Data | None = ...,
        indices: Cells = ...,
        give_mean: bool = ...,
        mc_samples: int = ...,
        batch_size: int = ...,
        **options: Unpack[_LatentOptions],
    ) -> np.ndarray: ...

    def get_latent_representation(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        give_mean: bool = True,
        mc_samples: int = 5000,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        n_samples: int = 1,
        return_dist: bool = False,
        out: str | Path | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> np.ndarray | LatentDistribution | Path:
        """Return the latent cell state: the mean of q(z | cell), samples of it, or q itself.

        Parameters
        ----------
        {cells}
        give_mean
            Whether to return the mean; otherwise samples.
        mc_samples
            Samples for the mean of the logistic normal; the normal's mean is exact.
        {batch_size}
        n_samples
            Samples of each cell, with ``give_mean=False``.
        return_dist
            Whether to return the distribution: ``mean`` and ``variance`` of the normal q(u | cell),
            whatever ``give_mean`` is. u is z, or for the logistic normal what z is the softmax of.
        out
            Folder of a new zarr store to write the mean to, in place of memory: it gets the group
            "latent", which `anndata.read_zarr` reads.
        {seed} {progress}

        Returns
        -------
        (cells, n_latent) float32; with ``n_samples`` above 1 (n_samples, cells, n_latent); with
        ``return_dist`` a named tuple of two arrays (cells, n_latent); with ``out``, its path.

        {value_error} {output_error}
        NotTrainedError
            When the model has not been trained, or its fit failed; every other query raises it too.

        {fitted_model}
        >>> model.get_latent_representation().shape
        (60, 4)
        >>> model.get_latent_representation(indices=[3, 7], give_mean=False, n_samples=10).shape
        (10, 2, 4)
        """
        at_least_one("mc_samples", mc_samples)
        question = self._question(
            adata, indices, batch_size, progress, seed, mc_samples if give_mean else n_samples
        )
        _check_n_samples(n_samples, give_mean or return_dist)
        if out is not None:
            if return_dist or not give_mean:
                raise ValueError("out takes means only; leave give_mean at True, or out at None.")
            return _write_latent(question, out)
        if return_dist:
            return latent_distribution(question)
        if give_mean:
            return question.gather("latent states", lambda batch: latent_mean(question, batch))
        return _each_sample(question, "latent states", latent_samples)

    def get_latent_library_size(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        give_mean: bool = True,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        n_samples: int = 1,
        seed: int = 0,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Return the RNA library size: the mean exp(m + v / 2) of q(l | cell), or samples of it.

        m and v are the mean and variance of the log library size. A library size that is not latent
        (the total RNA count, or a size factor) is returned as it is. Of cells without RNA it is NaN,
        with a `DataWarning`.

        Parameters
        ----------
        {cells}
        give_mean
            Whether to return the mean; otherwise samples.
        {batch_size}
        n_samples
            Samples of each cell, with ``give_mean=False``.
        {seed} {progress}

        Returns
        -------
        (cells, 1) float32; with ``n_samples`` above 1 (n_samples, cells, 1).

        {value_error}

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4, library="latent")
        >>> model.train(max_epochs=2)
        >>> model.get_latent_library_size().shape
        (60, 1)
        """
        question = self._question(adata, indices, batch_size, progress, seed, n_samples)
        _check_n_samples(n_samples, give_mean)
        if give_mean:
            sizes = question.gather("library sizes", lambda batch: library_mean(question, batch))
        else:
            sizes = _each_sample(question, "library sizes", library_samples)
        lacking = ~question.data.has_rna[question.cells]
        if lacking.any():
            said = f"The library size is NaN in {lacking.sum():,} cells, which have no RNA."
            warnings.warn(said, DataWarning, stacklevel=3)
            sizes[..., lacking, :] = np.nan
        return sizes

    def get_cell_uncertainty(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 25,
        given_counts: bool = True,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return how sure the model is of each cell.

        The entropy of a cell is averaged only over proteins that its panel measured.

        Parameters
        ----------
        {cells} {transform_batch}
        protein_list
            Proteins whose entropy is averaged. None: all. NaN if a cell measured none of them.
        n_samples
            Posterior samples over which each foreground probability is averaged.
        {given_counts} {batch_size} {seed} {progress}

        Returns
        -------
        Data frame of the cells with the columns

        - ``latent_entropy``: entropy of q(u | cell) in nats, sum_j log(2 pi e v_j) / 2, with v_j the
          variance of latent dimension j; it may be below 0;
        - ``latent_variance``: the mean of v_j;
        - ``protein_entropy``: mean over proteins of the entropy, in nats, of whether the protein is
          foreground: 0 where all are certain, log 2 = 0.69 where nothing is known.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or ``protein_list`` is empty.

        {fitted_model}
        >>> list(model.get_cell_uncertainty(n_samples=2))
        ['latent_entropy', 'latent_variance', 'protein_entropy']
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, transform_batch, given_counts
        )
        proteins = self._proteins(protein_list)
        if not len(proteins):
            raise ValueError("protein_list is empty; name at least one protein, or leave it None.")
        question = answering_for(self, question, proteins)
        uncertainty = cell_uncertainty(question, proteins.positions)
        return pd.DataFrame(uncertainty._asdict(), index=question.cell_names)


def _write_latent(question: Question, out: str | Path) -> Path:
    names = np.array([f"latent_{i}" for i in range(question.network.n_latent)], dtype=object)

    def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
        return {"latent": latent_mean(question, batch).cpu().numpy()}

    written = question.rows("latent states", {"latent": question.table(names)}, rows, out=out)
    assert isinstance(written, Path)
    return written


def _each_sample(
    question: Question, what: str, samples_of: Callable[[Question, Minibatch], Tensor]
) -> np.ndarray:
    """Return samples (n_samples, cells, values); without the first axis where there is one sample."""
    samples = question.gather(what, lambda batch: samples_of(question, batch), axis=1)
    return samples[0] if question.n_samples == 1 else samples


def _check_n_samples(n_samples: int, no_samples: bool) -> None:
    if at_least_one("n_samples", n_samples) > 1 and no_samples:
        raise ValueError(
            f"n_samples is {n_samples}, but no samples are asked for; give give_mean=False as well, "
            "and not return_dist."
        )


def latent_clusters(question: Question) -> np.ndarray:
    """Return codes of clusters of the question's cells, (N,): k-means of the latent space."""
    network = question.network
    n_clusters = min(_MOST_CLUSTERS, len(question.cells) // _CELLS_OF_A_CLUSTER)
    if n_clusters < 2:
        return np.zeros(len(question.cells), dtype=np.int64)
    latent = question.gather(
        "latent space",
        lambda batch: network.transform_latent(batch.encode(network).qz_m),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of clusters without cells, which do no harm
        return np.asarray(kmeans2(latent.astype(np.float64), n_clusters, minit="++", seed=0)[1])
