"""What RNA and proteins each tell of a cell's state, in nats, and which features tell it."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.describe import Data
from totalvi.errors import argument, did_you_mean
from totalvi.fit.batches import Minibatch
from totalvi.nn.coders import Decoded
from totalvi.nn.likelihoods import Dispersion, GeneLikelihood
from totalvi.nn.network import Network
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.draws import decoded_cells, plausible
from totalvi.posterior.fisher_information import (
    gene_information,
    nats,
    protein_information,
    share_weights,
)
from totalvi.posterior.question import Fitted, Question

_STEP = 0.03  # of u to both sides, a small part of the prior's standard deviation of 1
_BATCH_SIZE = 256  # the derivatives of a cell's genes are n_latent times its decoded RNA


class ModalityInformation(NamedTuple):
    """What each modality tells of cells' states, in nats.

    Parameters
    ----------
    cells
        A row for each cell. ``total``: by how much its counts narrow the prior of the state. ``rna``,
        ``protein``: what either tells alone. ``rna_added``, ``protein_added``: what it adds to the
        other, ``total`` less what the other tells alone.
    features
        A row for each gene and protein: ``modality``, and its share of the nats of a cell, the mean
        over all cells (``all``) or over those of each group. A column's sum is the mean of ``total``.
    dimensions
        A row for each latent dimension: the mean share of ``rna`` and of ``protein``.
    """

    cells: pd.DataFrame
    features: pd.DataFrame
    dimensions: pd.DataFrame


class _Moved(NamedTuple):
    """Parameters of the counts at a state, or their derivatives (B, d, F) by the state.

    Parameters
    ----------
    log_mean, dropout_logit
        Of RNA, (B, G); ``dropout_logit`` is None without zero inflation.
    protein
        Mean and log standard deviation of q(b | z), log foreground factor, and logit of the
        background probability, (B, T, 4).
    """

    log_mean: Tensor
    dropout_logit: Tensor | None
    protein: Tensor


class Told(NamedTuple):
    """What the counts of B cells tell of their states.

    Parameters
    ----------
    rna, protein
        Fisher information of each modality about u, (B, d, d).
    genes, proteins
        Share of each feature in the nats of both, (B, G) and (B, T).
    dimensions
        Share of each latent dimension in those of RNA and of proteins, (B, d, 2).
    """

    rna: Tensor
    protein: Tensor
    genes: Tensor
    proteins: Tensor
    dimensions: Tensor


def _decoded(network: Network, u: Tensor, batch: Minibatch) -> Decoded:
    return decoded_cells(network, network.transform_latent(u), batch.context, None, genes=True)


def _moved(network: Network, decoded: Decoded, library: Tensor, batch: Minibatch) -> _Moved:
    genes = network.genes(decoded, library, batch.context)
    mixture = plausible(network.proteins(decoded, decoded.background_mean, batch.context))
    protein = [
        mixture.log_background,
        decoded.background_scale.log(),
        decoded.foreground_factor.log(),
        decoded.background_logit,
    ]
    return _Moved(genes.log_mean(), genes.dropout_logit(), torch.stack(protein, dim=-1))


def _derivatives(network: Network, batch: Minibatch, u: Tensor, library: Tensor) -> _Moved:
    """Return the derivatives by u, from steps to both sides, with the dimension as second axis."""
    found = []
    for j in range(u.shape[1]):
        step = torch.zeros_like(u)
        step[:, j] = _STEP
        up, down = (
            _moved(network, _decoded(network, at, batch), library, batch)
            for at in (u + step, u - step)
        )
        found.append(
            [
                None if a is None or b is None else (a - b) / (2 * _STEP)
                for a, b in zip(up, down, strict=True)
            ]
        )
    log_mean, dropout, protein = zip(*found, strict=True)
    return _Moved(
        torch.stack(log_mean, dim=1),
        None if dropout[0] is None else torch.stack(dropout, dim=1),
        torch.stack(protein, dim=1),
    )


class _Part(NamedTuple):
    """A part of an information matrix: ``sum_f weight_f left_if right_jf``.

    ``left`` and ``right`` are derivatives by the state, (B, d, F), and ``weight`` is (B, F).
    """

    left: Tensor
    right: Tensor
    weight: Tensor

    def matrix(self) -> Tensor:
        """Return the matrix, (B, d, d), made symmetric."""
        matrix = (self.left * self.weight[:, None]) @ self.right.mT
        return (matrix + matrix.mT) / 2

    def shares(self, weights: Tensor) -> Tensor:
        """Return ``tr(M A_f)`` of the matrix of each feature, (B, F); M is ``weights``, (B, d, d)."""
        turned = weights.to(self.left.dtype) @ self.left
        return (turned * self.right).sum(dim=1) * self.weight


def _rna_parts(genes: GeneLikelihood, by_u: _Moved, seen: Tensor) -> list[_Part]:
    first, *others = (entry * seen for entry in gene_information(genes))
    parts = [_Part(by_u.log_mean, by_u.log_mean, first)]
    if others and by_u.dropout_logit is not None:
        both, dropout = others
        parts.append(_Part(by_u.log_mean, by_u.dropout_logit, 2 * both))
        parts.append(_Part(by_u.dropout_logit, by_u.dropout_logit, dropout))
    return parts


def _protein_parts(
    proteins: Tensor, dispersion: Dispersion, by_u: Tensor, seen: Tensor
) -> list[_Part]:
    """Return a part for each of the four parameters of proteins; ``by_u`` is (B, d, T, 4)."""
    told = torch.einsum("btij,bdtj->bdti", protein_information(proteins, dispersion), by_u)
    return [
        _Part(left, right, seen)
        for left, right in zip(by_u.unbind(dim=-1), told.unbind(dim=-1), strict=True)
    ]


def information(network: Network, batch: Minibatch) -> Told:
    """Return what the modalities tell of a minibatch's cells at the mean of q(u | cell)."""
    context = batch.context
    posterior = network.masks.known_library(
        network.encode(batch.x, batch.y, context), context.panel,
        batch.library_log_mean, batch.library_log_variance,
    )  # fmt: skip
    u, library = posterior.qz_m, network.library_mean(posterior, context)
    decoded = _decoded(network, u, batch)
    moved = _moved(network, decoded, library, batch)
    by_u = _derivatives(network, batch, u, library)
    has_rna, measured = u.new_ones(len(u), 1), network.measured(context.panel)
    if network.rna_mask is not None:
        has_rna = network.rna_mask[context.panel][:, None].to(u.dtype)
    of_rna = _rna_parts(network.genes(decoded, library, context), by_u, has_rna)
    of_proteins = _protein_parts(
        moved.protein,
        Dispersion.of(network.protein_log_r, network.protein_dispersion, context),
        by_u.protein,
        torch.ones_like(batch.y) if measured is None else measured.to(u.dtype),
    )
    rna, protein = (_sum(part.matrix() for part in parts) for parts in (of_rna, of_proteins))
    weights = share_weights(rna + protein)
    return Told(
        rna,
        protein,
        _sum(part.shares(weights) for part in of_rna),
        _sum(part.shares(weights) for part in of_proteins),
        torch.stack(
            [(weights @ a.double()).diagonal(dim1=1, dim2=2) for a in (rna, protein)], dim=2
        ),
    )


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


@documented
class InformationQueries(Fitted):
    """What each modality tells of the state of cells."""

    def get_modality_information(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        groupby: str | Sequence[Any] | None = None,
        batch_size: int = _BATCH_SIZE,
        progress: bool | None = None,
    ) -> ModalityInformation:
        """Return what RNA and proteins each tell of a cell's state, and which features tell it.

        Counts narrow the state's prior N(0, I). With J the Fisher information of a modality about u at
        the cell's state, by the fitted model, it tells ``log det(I + J) / 2`` nats. The information of
        both is the sum of their J. So "protein_added" is what the proteins tell that the RNA does not.
        Shares of features and latent dimensions add up to the total. It is what counts of such a cell
        tell on average, not what its own counts happened to tell. docs/model.md has the formulas.

        Parameters
        ----------
        {cells}
        groupby
            Column of ``obs``, or a group for each cell of ``adata``, such as clusters: the columns of
            ``features``. None: one column, "all".
        {batch_size} {progress}

        Returns
        -------
        ModalityInformation
            Tables of ``cells``, ``features`` and ``dimensions``. A modality that a cell lacks tells 0.

        {value_error}

        {fitted_model}
        >>> told = model.get_modality_information()
        >>> list(told.cells)
        ['total', 'rna', 'protein', 'rna_added', 'protein_added']
        >>> bool(np.isclose(told.features["all"].sum(), told.cells["total"].mean()))
        True
        """
        question = self._question(adata, indices, batch_size, progress)
        groups = pd.Categorical(_groups(question, groupby))
        genes, proteins = self.schema.gene_names, self.schema.protein_names
        sums = np.zeros((len(groups.categories), len(genes) + len(proteins)))
        dimensions = np.zeros((self.module.n_latent, 2))
        nats_of_cells, start = [], 0
        with question.minibatches("modality information") as batches:
            for batch in batches:
                told = information(self.module, batch)
                code = groups.codes[start : start + len(batch.cells)]
                start += len(batch.cells)
                parts = (told.rna + told.protein, told.rna, told.protein)
                nats_of_cells.append(torch.stack([nats(part) for part in parts]).cpu().numpy())
                dimensions += told.dimensions.sum(dim=0).cpu().numpy()
                shares = torch.cat([told.genes, told.proteins], dim=1).double().cpu().numpy()
                np.add.at(sums, code[code >= 0], shares[code >= 0])
        total, rna, protein = np.concatenate(nats_of_cells, axis=1)
        columns = {"total": total, "rna": rna, "protein": protein}
        columns |= {"rna_added": total - protein, "protein_added": total - rna}
        features = pd.DataFrame(
            (sums / np.bincount(groups.codes[groups.codes >= 0])[:, None]).T,
            index=pd.Index([*genes, *proteins], name="feature"),
            columns=groups.categories.astype(str),
        )
        features.insert(0, "modality", ["rna"] * len(genes) + ["protein"] * len(proteins))
        return ModalityInformation(
            pd.DataFrame(columns, index=question.cell_names),
            features,
            pd.DataFrame(dimensions / start, columns=["rna", "protein"]),
        )


def _groups(question: Question, groupby: str | Sequence[Any] | None) -> np.ndarray:
    """Return the group of each cell that the question is about."""
    if groupby is None:
        return np.repeat("all", len(question.cells))
    data = question.data
    given: Any = groupby
    if isinstance(groupby, str):
        obs = data.annotation.obs()
        if groupby not in obs:
            raise ValueError(
                f"{argument('groupby')} is {groupby!r}, which is no column of obs; "
                f"{did_you_mean(groupby, obs.columns)}."
            )
        given = obs[groupby]
    groups: np.ndarray = np.asarray(given, dtype=object)
    if len(groups) != data.n_cells:
        raise ValueError(
            f"groupby has {len(groups)} values; allowed are {data.n_cells}, one a cell."
        )
    of_cells: np.ndarray = groups[question.cells]
    return of_cells
