"""Proteins that a query lacks, filled in for the encoder by what the decoder expects of them."""

import numpy as np
import torch
from torch import Tensor

from totalvi.data.cells import CiteData, QueryMapping
from totalvi.fit.batches import Minibatch, minibatches
from totalvi.nn.cpu.dispatch import threads_of_torch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import naming_proteins, plausible_background

_ROUNDS = 6
_BATCH_SIZE = 1024


def always_shown(module: TOTALVI, panels: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """Return which proteins the encoder saw of every training cell with the panels in ``panel``.

    For it, a 0 there means a cell without the protein; elsewhere, it has learned to do without.

    Parameters
    ----------
    panels
        Which proteins each panel of the reference measured, (panels, T).
    panel
        Codes, (N,).

    Returns
    -------
    Shape (N, T).
    """
    if module.hidden_protein_rate:  # cells were also shown as other panels would have measured them
        return np.broadcast_to(panels.all(axis=0), (len(panel), panels.shape[1]))
    shown: np.ndarray = panels[panel]
    return shown


def filled_proteins(
    module: TOTALVI, data: CiteData, mapping: QueryMapping, start: str | None = None
) -> np.ndarray:
    """Return which unmeasured proteins of each cell are filled in for the encoder, (N, T).

    They are those that it always saw in the reference batch that the cell's batch started from.

    Parameters
    ----------
    start
        A reference batch to start from, in place of those that ``mapping`` names.
    """
    schema, n_batches = data.schema, mapping.n_reference_batches
    panels = np.array(schema.panel_measured)
    of_reference = panels[: mapping.n_reference_panels]
    always = of_reference.all(axis=0)
    starts = mapping.reference_batches if start is None else (start,) * len(mapping.batches)
    by_batch = np.zeros((len(schema.batch_names), panels.shape[1]), dtype=bool)
    for code, name in enumerate(starts, start=n_batches):
        known = schema.batch_names[:n_batches]
        own_panel = name in known and not mapping.panels
        by_batch[code] = (
            always_shown(module, of_reference, np.array([known.index(name)]))[0]
            if own_panel
            else always
        )
    filled: np.ndarray = by_batch[data.batch] & ~panels[data.panel]
    return filled


@torch.no_grad()
def fill_unmeasured(module: TOTALVI, data: CiteData, filled: np.ndarray) -> None:
    """Write expected counts where ``filled`` (N, T) into the proteins of ``data``, for the encoder.

    Likelihoods leave these values out, as the panel did not measure them.
    """
    cells, protein = np.flatnonzero(filled.any(axis=1)), data.protein.read()
    with threads_of_torch(), naming_proteins(data.schema.protein_names):
        for batch in minibatches(data, module, cells, _BATCH_SIZE):
            protein[batch.cells] = with_expected(module, batch, filled[batch.cells]).numpy()


@torch.no_grad()
def with_expected(module: TOTALVI, batch: Minibatch, filled: np.ndarray) -> Tensor:
    """Return protein counts (B, T) with expected ones where ``filled``.

    Encoding and decoding in turn, with these counts replaced by their means each time, goes to where
    the two agree: the deterministic form of the pseudo-Gibbs sampler for missing data of Rezende,
    Mohamed and Wierstra (2014, appendix F).
    """
    where, context = torch.from_numpy(filled), batch.context
    y = batch.y.masked_fill(where, 0)  # so that it does not matter what was filled in before
    for _ in range(_ROUNDS if filled.any() else 0):
        posterior = module.encode(batch.x, y, context)
        decoded = module.decode(module.transform_latent(posterior.qz_m), context)
        efficiency = module.protein_log_efficiency(context)
        log_background = (decoded.background_mean + efficiency).where(where, 0.0)
        background = plausible_background(log_background).exp()
        in_background = torch.sigmoid(decoded.background_logit)
        factor = in_background + (1 - in_background) * decoded.foreground_factor
        y = torch.where(where, background * factor, y)
    return y
