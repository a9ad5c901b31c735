"""Choose the reference batch that explains each query batch best."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from totalvi.data.cells import CiteData, QueryMapping
from totalvi.data.finding import did_you_mean
from totalvi.fit.batches import minibatches
from totalvi.mapping.surgery import start_batch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise, naming_proteins
from totalvi.posterior.evidence import elbo_by_cell
from totalvi.posterior.filling import filled_proteins, with_expected

AVERAGE = "average"
_CELLS_TO_COMPARE = 500
_BATCH_SIZE = 512


def start_batches(
    module: TOTALVI,
    data: CiteData,
    mapping: QueryMapping,
    asked: str | Mapping[str, str] | None,
    noise: CellNoise,
) -> tuple[str, ...]:
    """Start each query batch at a reference batch, and return the names of those.

    Parameters
    ----------
    asked
        A reference batch, "average", or one of these for each batch of the query. None: the batch
        under which the evidence of (up to 500 of) the query batch's cells is highest.

    Raises
    ------
    ValueError
        When a name is not known.
    """
    known = data.schema.batch_names[: mapping.n_reference_batches]
    chosen = []
    for i, (own_name, _) in enumerate(mapping.batches):
        batch = mapping.n_reference_batches + i
        cells = np.flatnonzero(data.batch == batch)
        panels = np.unique(data.panel[cells])
        wanted = _wanted(asked, own_name, mapping, known)
        if wanted is None:
            wanted = _nearest(module, data, mapping, batch, cells, known, noise)
        for panel in panels:
            start_batch(module, mapping, batch, int(panel), _weights(wanted, known))
        chosen.append(wanted)
    return tuple(chosen)


def _wanted(asked: Any, own_name: str, mapping: QueryMapping, known: tuple[str, ...]) -> str | None:
    if isinstance(asked, Mapping):
        names = [own for own, _ in mapping.batches]
        for name in asked:
            if name not in names:
                raise ValueError(
                    f"reference_batch holds the query batch {name!r}; "
                    f"{did_you_mean(str(name), names)}."
                )
        asked = asked.get(own_name)
    if asked is None or asked == AVERAGE or asked in known:
        return asked
    raise ValueError(
        f"reference_batch is {asked!r}, which is no batch of the reference; "
        f"{did_you_mean(str(asked), (*known, AVERAGE))}."
    )


def _nearest(
    module: TOTALVI,
    data: CiteData,
    mapping: QueryMapping,
    batch: int,
    cells: np.ndarray,
    known: tuple[str, ...],
    noise: CellNoise,
) -> str:
    if len(known) == 1:
        return known[0]
    spread = np.linspace(0, len(cells) - 1, min(len(cells), _CELLS_TO_COMPARE)).round()
    some = cells[spread.astype(int)]
    evidence = []
    for name in known:
        for panel in np.unique(data.panel[cells]):
            start_batch(module, mapping, batch, int(panel), _weights(name, known))
        filled = filled_proteins(module, data, mapping, name)
        batches = (
            batch._replace(y=with_expected(module, batch, filled[batch.cells]))
            for batch in minibatches(data, module, some, _BATCH_SIZE)
        )
        with naming_proteins(data.schema.protein_names):
            evidence.append(float(elbo_by_cell(module, batches, noise).mean()))
    return known[int(np.argmax(evidence))]


def _weights(name: str, known: tuple[str, ...]) -> np.ndarray:
    if name in known:
        return (np.array(known) == name).astype(float)
    return np.full(len(known), 1 / len(known))
