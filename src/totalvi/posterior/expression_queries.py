"""Queries of denoised expression, and of the foreground and background of proteins."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import Cells, checked_library_size
from totalvi.posterior.draws import Draw
from totalvi.posterior.expression import (
    ExpressionQuery,
    ScaledLibrary,
    normalized_expression,
    protein_means,
)
from totalvi.posterior.question import QUERY_BATCH_SIZE, Asking, Data, Names
from totalvi.posterior.rows import Table, row_targets


class ExpressionQueries(Asking):
    """What a model says of RNA and proteins, cell by cell."""

    def get_normalized_expression(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        library_size: ScaledLibrary = 1.0,
        n_samples: int = 1,
        sample_protein_mixing: bool = False,
        scale_protein: bool = False,
        include_protein_background: bool = False,
        return_mean: bool = True,
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Any:
        """Return denoised RNA and protein.

        RNA is E[rho] times ``library_size``; protein E[(1 - pi) beta alpha], in counts, free of
        background and of the batch's protein efficiency, where the model has one. The expectation is
        over the posterior, by ``n_samples`` Monte Carlo samples, of which no more than one minibatch
        is held at a time.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        transform_batch
            Batch or batches to decode every cell into, averaged. None: each cell's own.
        gene_list, protein_list
            Wanted features. None: all; an empty list: none.
        library_size
            Number that RNA proportions are multiplied by, or "latent" for each cell's library size.
        n_samples
            Posterior samples a cell.
        sample_protein_mixing
            Whether each protein is drawn to be background or foreground, rather than weighted.
        scale_protein
            Whether the proteins of a cell are made to sum to one.
        include_protein_background
            Whether to add the background, E[pi beta].
        return_mean
            Whether to average the samples; otherwise each is returned, as an array
            (n_samples, cells, features).
        return_numpy
            Whether to return arrays in place of data frames.
        out
            Folder of a new zarr store to write to, in place of memory: it gets the groups "rna" and
            "protein", each of which `anndata.read_zarr` reads.

        Returns
        -------
        RNA (cells, genes) and protein (cells, proteins); with ``out``, its path.

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
        >>> rna, protein = model.get_normalized_expression(n_samples=5, library_size=10_000)
        >>> rna.shape, protein.shape
        ((60, 30), (60, 5))
        """
        asked = self._asked(adata, indices)
        query = ExpressionQuery(
            genes=self._genes(gene_list),
            proteins=self._proteins(protein_list),
            transform_batches=self._batch_codes(transform_batch),
            library_size=checked_library_size(library_size),
            n_samples=at_least_one("n_samples", n_samples),
            sample_protein_mixing=sample_protein_mixing,
            scale_protein=scale_protein,
            include_protein_background=include_protein_background,
        )
        noise = self._noise(seed)
        tables = {
            "rna": Table(asked.cell_names, self._gene_names(query.genes)),
            "protein": Table(asked.cell_names, self._protein_names(query.proteins)),
        }
        with (
            row_targets(tables, out, None if return_mean else query.n_samples) as targets,
            asked.stream(batch_size, "denoised expression", progress, out=out) as batches,
        ):
            normalized_expression(
                self.module, batches, query, noise, targets["rna"], targets["protein"],
                return_mean=return_mean,
            )  # fmt: skip
        if out is not None:
            return Path(out)
        rna, protein = targets["rna"], targets["protein"]
        if return_numpy or not return_mean:
            return rna, protein
        return tables["rna"].frame(rna), tables["protein"].frame(protein)

    def _write_denoised(
        self,
        rna: Any,
        protein: Any,
        foreground_probability: Any,
        *,
        library_size: float = 1.0,
        n_samples: int = 1,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        """Write denoised RNA and proteins, and foreground probabilities, in one pass over the samples.

        The numbers are those of `get_normalized_expression` and `get_protein_foreground_probability`.

        Parameters
        ----------
        rna, protein, foreground_probability
            What takes the rows, one slice of all cells after the other: arrays of NumPy, HDF5 or zarr
            of shape (cells, genes) and (cells, proteins). RNA None: it is not wanted.
        library_size, n_samples, batch_size, seed, progress
            As in `get_normalized_expression`.
        """
        asked = self._asked(None, None)
        query = ExpressionQuery(
            genes=self._genes([] if rna is None else None),
            proteins=self._proteins(None),
            library_size=checked_library_size(library_size),
            n_samples=at_least_one("n_samples", n_samples),
        )
        noise = self._noise(seed)
        with asked.stream(batch_size, "denoised expression", progress) as batches:
            normalized_expression(
                self.module, batches, query, noise,
                np.empty((len(asked.cells), 0)) if rna is None else rna,
                protein, foreground_probability, return_mean=True,
            )  # fmt: skip

    def get_protein_foreground_probability(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        return_mean: bool = True,
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Any:
        """Return the probability that each protein count is foreground, E[1 - pi].

        The expectation is over q(z | cell).

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        transform_batch, protein_list, n_samples, return_mean, return_numpy, out
            As in `get_normalized_expression`; the store gets the group "protein".

        Returns
        -------
        (cells, proteins), between 0 and 1; with ``out``, its path.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a protein or batch is not known.
        OutputError
            When ``out`` exists or cannot be written.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> foreground = model.get_protein_foreground_probability(n_samples=5)
        >>> foreground.shape, bool(foreground.min(axis=None) > 0)
        ((60, 5), True)
        """
        return self._protein_means(
            Draw.foreground_probability, "foreground probability", adata, indices, transform_batch,
            protein_list, n_samples, return_mean, return_numpy, out, batch_size, seed, progress,
        )  # fmt: skip

    def get_protein_background_mean(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        return_mean: bool = True,
        return_numpy: bool = False,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Any:
        """Return the mean count of each protein's background, E[beta].

        The expectation is over q(z, b | cell). Like `get_normalized_expression` it is free of the
        batch's protein efficiency, where the model has one.

        Parameters
        ----------
        adata, indices, batch_size, seed, progress
            As in `get_latent_representation`.
        transform_batch, protein_list, n_samples, return_mean, return_numpy, out
            As in `get_normalized_expression`; the store gets the group "protein".

        Returns
        -------
        (cells, proteins), above 0; with ``out``, its path.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a protein or batch is not known.
        OutputError
            When ``out`` exists or cannot be written.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> model.get_protein_background_mean(protein_list=["protein_0"]).shape
        (60, 1)
        """
        return self._protein_means(
            Draw.background_rate, "protein background", adata, indices, transform_batch,
            protein_list, n_samples, return_mean, return_numpy, out, batch_size, seed, progress,
        )  # fmt: skip

    def _protein_means(
        self,
        quantity: Callable[[Draw], Tensor],
        what: str,
        adata: Data | None,
        indices: Cells,
        transform_batch: Names,
        protein_list: Sequence[str] | None,
        n_samples: int,
        return_mean: bool,
        return_numpy: bool,
        out: str | Path | None,
        batch_size: int,
        seed: int,
        progress: bool | None,
    ) -> Any:
        asked = self._asked(adata, indices)
        proteins, codes = self._proteins(protein_list), self._batch_codes(transform_batch)
        n_samples, noise = at_least_one("n_samples", n_samples), self._noise(seed)
        table = Table(asked.cell_names, self._protein_names(proteins))
        with (
            row_targets({"protein": table}, out, None if return_mean else n_samples) as targets,
            asked.stream(batch_size, what, progress, out=out) as batches,
        ):
            protein_means(
                self.module, batches, noise, quantity, proteins, targets["protein"],
                n_samples=n_samples, transform_batches=codes, return_mean=return_mean,
            )  # fmt: skip
        if out is not None:
            return Path(out)
        values = targets["protein"]
        return values if return_numpy or not return_mean else table.frame(values)
