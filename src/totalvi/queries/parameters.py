"""Queries of the parameters of the counts' distributions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from totalvi.arguments import Cells
from totalvi.module.options import at_least_one
from totalvi.posterior.parameters import mean_parameters
from totalvi.queries.asking import QUERY_BATCH_SIZE, Asking, Data, Names
from totalvi.queries.store import Table, row_targets


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
