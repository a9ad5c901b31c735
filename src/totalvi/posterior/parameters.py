"""Parameters of the counts' distributions: at one posterior sample, and their posterior means."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.fit.batches import Minibatch
from totalvi.nn.config import at_least_one
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.arguments import Cells
from totalvi.posterior.draws import CellNoise, Draw, draws, plausible_background
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asking, Data, Names
from totalvi.posterior.rows import Table, row_targets


class GeneLikelihood(NamedTuple):
    """Parameters of the RNA counts of B cells and g genes.

    Parameters
    ----------
    log_mean
        Of the negative binomial, (B, g).
    log_r
        Log inverse dispersion, (1, g) or (B, g).
    dropout_logit
        Of the zero inflation, (B, g); None without.
    """

    log_mean: Tensor
    log_r: Tensor
    dropout_logit: Tensor | None


class ProteinLikelihood(NamedTuple):
    """Parameters of the protein counts of B cells and t proteins.

    Parameters
    ----------
    log_background, log_foreground
        Log means of both parts, the batch's protein efficiency included, (B, t).
    log_r
        Log inverse dispersion, (1, t) or (B, t).
    background_logit
        Of the probability of background, (B, t).
    """

    log_background: Tensor
    log_foreground: Tensor
    log_r: Tensor
    background_logit: Tensor


def gene_likelihood(module: TOTALVI, draw: Draw, genes: np.ndarray) -> GeneLikelihood:
    """Return the parameters of the genes at positions ``genes`` at one posterior sample."""
    some = _selection(genes, module.n_input_genes)
    dropout = draw.decoded.dropout_logit
    return GeneLikelihood(
        log_mean=module.gene_log_mean(draw.decoded.gene_logit, draw.library_size)[:, some],
        log_r=module.gene_log_inverse_dispersion(draw.context)[:, some],
        dropout_logit=None if dropout is None else dropout[:, some],
    )


def protein_likelihood(module: TOTALVI, draw: Draw, proteins: np.ndarray) -> ProteinLikelihood:
    """Return the parameters of the proteins at positions ``proteins`` at one posterior sample."""
    some = _selection(proteins, module.n_input_proteins)
    log_background = draw.log_background + module.protein_log_efficiency(draw.context)
    log_background = plausible_background(log_background[:, some], proteins)
    return ProteinLikelihood(
        log_background=log_background,
        log_foreground=log_background + draw.decoded.foreground_factor[:, some].log(),
        log_r=module.protein_log_inverse_dispersion(draw.context)[:, some],
        background_logit=draw.decoded.background_logit[:, some],
    )


def _selection(positions: np.ndarray, n: int) -> slice | np.ndarray:
    """Return a slice when all features are wanted, which spares a copy."""
    return slice(None) if np.array_equal(positions, np.arange(n)) else positions


@torch.no_grad()
def mean_parameters(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    noise: CellNoise,
    genes: np.ndarray,
    proteins: np.ndarray,
    targets: Mapping[str, Any],
    *,
    n_samples: int,
    transform_batches: Sequence[int | None] = (None,),
) -> None:
    """Write the posterior mean of each parameter to the rows of its target.

    Parameters
    ----------
    targets
        Arrays or zarr arrays (cells, features): "mean" and, for "zinb", "dropout" of RNA;
        "protein_background_mean", "protein_foreground_mean" and "protein_mixing".
    transform_batches
        Codes of the batches to decode into, averaged over; (None,): each cell's own.
    """
    n_draws = n_samples * len(transform_batches)
    start = 0
    for batch in batches:
        totals: dict[str, Tensor] = {}
        for draw in draws(module, batch, n_samples, noise, transform_batches):
            for name, value in _parameters(module, draw, genes, proteins).items():
                totals[name] = totals[name].add_(value) if name in totals else value
        rows = slice(start, start + len(batch.cells))
        for name, total in totals.items():
            targets[name][rows] = (total / n_draws).cpu().numpy()
        start = rows.stop


def _parameters(
    module: TOTALVI, draw: Draw, genes: np.ndarray, proteins: np.ndarray
) -> dict[str, Tensor]:
    protein = protein_likelihood(module, draw, proteins)
    values = {
        "protein_background_mean": protein.log_background.exp(),
        "protein_foreground_mean": protein.log_foreground.exp(),
        "protein_mixing": protein.background_logit.sigmoid(),
    }
    if len(genes):
        gene = gene_likelihood(module, draw, genes)
        values["mean"] = gene.log_mean.exp()
        if gene.dropout_logit is not None:
            values["dropout"] = gene.dropout_logit.sigmoid()
    return values


class ParameterQueries(Asking):
    """What a model says of how counts are distributed."""

    def get_likelihood_parameters(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Any:
        """Return the parameters of the distributions of the counts, as posterior means.

        RNA counts are ``NB(mean, r)``, set to zero with probability ``dropout`` in a "zinb" model;
        protein counts ``mixing NB(background mean, r) + (1 - mixing) NB(foreground mean, r)``;
        ``NB(m, r)`` has variance ``m + m^2 / r``. The protein means are those of the counts: the
        batch's protein efficiency, where the model has one, is in them.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        transform_batch
            Batch or batches to decode every cell into, averaged. None: each cell's own.
        gene_list, protein_list
            Wanted features. None: all; an empty list: none.
        n_samples
            Posterior samples a cell.
        return_numpy
            Whether to return arrays in place of data frames.
        out
            Folder of a new zarr store to write to, in place of memory: it gets one group a
            parameter, each of which `anndata.read_zarr` reads.

        Returns
        -------
        Data frames by name of the parameter: "mean" and, for "zinb", "dropout" (cells, genes);
        "protein_background_mean", "protein_foreground_mean" and "protein_mixing", the probability of
        background, (cells, proteins); "dispersions" and "protein_dispersions", the inverse
        dispersions r, with one row, or one a batch or label where they differ by it. With ``out``,
        its path.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a feature or batch is not known.
        OutputError
            When ``out`` exists or cannot be written.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> parameters = model.get_likelihood_parameters()
        >>> parameters["mean"].shape, parameters["protein_mixing"].shape
        ((60, 30), (60, 5))
        """
        asked = self._asked(adata, indices)
        genes, proteins = self._genes(gene_list), self._proteins(protein_list)
        n_samples, noise = at_least_one("n_samples", n_samples), self._noise(seed)
        codes = self._batch_codes(transform_batch)
        module = self.module
        rna = Table(asked.cell_names, self._gene_names(genes))
        protein = Table(asked.cell_names, self._protein_names(proteins))
        tables = {
            "mean": rna,
            "protein_background_mean": protein,
            "protein_foreground_mean": protein,
            "protein_mixing": protein,
            "dispersions": rna._replace(cells=self._groups(module.gene_dispersion)),
            "protein_dispersions": protein._replace(cells=self._groups(module.protein_dispersion)),
        }
        if module.decoder.dropout_head is not None:
            tables["dropout"] = rna
        with (
            row_targets(tables, out) as targets,
            asked.stream(batch_size, "likelihood parameters", progress, out=out) as batches,
        ):
            mean_parameters(
                module, batches, noise, genes, proteins, targets,
                n_samples=n_samples, transform_batches=codes,
            )  # fmt: skip
            targets["dispersions"][:] = module.gene_log_r.detach().exp()[:, genes].numpy()
            targets["protein_dispersions"][:] = (
                module.protein_log_r.detach().exp()[:, proteins].numpy()
            )
        if out is not None:
            return Path(out)
        if return_numpy:
            return targets
        return {name: table.frame(targets[name]) for name, table in tables.items()}

    def _groups(self, dispersion: str) -> pd.Index:
        """Return the names of the batches or labels by which inverse dispersions differ."""
        schema = self.schema
        names = {"batch": schema.batch_names, "label": schema.label_names}
        return pd.Index(names.get(dispersion.partition("-")[2]) or ("all cells",))
