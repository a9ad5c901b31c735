"""Scales on which cells are compared, against those of denoised expression."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from counts import N_GENES, N_PROTEINS, SMALL, denoised, described, question
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.differential.moments import ScaleQuery, batch_weights, scales
from totalvi.posterior.draws import ProteinScale

CELLS = np.arange(20)
ALL = np.ones((2, N_PROTEINS), dtype=bool)


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


@pytest.fixture(scope="module")
def network() -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    network = TOTALVI(N_GENES, N_PROTEINS, 2, generator=generator, library="observed", **SMALL)
    with torch.no_grad():  # denoised means take the background's expectation, scales its samples
        for parameter in network.decoder.background_scale_head.parameters():
            parameter.zero_()
        network.decoder.background_scale_head.bias.fill_(-60)
    return network.eval()


@pytest.mark.parametrize("codes", [(), (1,), (1, 0)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sum_to_one": True},
        {"include_background": True},
        {"sample_mixing": True},
        {"sum_to_one": True, "include_background": True},
    ],
)
@torch.no_grad()
def test_they_are_what_denoised_expression_averages(
    data: CiteData, network: TOTALVI, codes: tuple[int, ...], options: dict[str, Any]
) -> None:
    batch = minibatch(data, network, CELLS)
    scale = ProteinScale(**options)
    asked = question(data, network, CELLS, 2, n_samples=3, transform_batch=(None, *codes))
    samples = list(scales(asked, batch, ScaleQuery(scale, batch_weights(ALL, codes))))
    assert len(samples) == 3
    averaged = replace(asked, transform_batch=codes or (None,))
    rna, protein = denoised(averaged, scale=scale)
    np.testing.assert_allclose(sum(s.rna for s in samples) / 3, rna, rtol=1e-5)
    ours = sum(s.foreground + s.background for s in samples) / 3
    np.testing.assert_allclose(ours, protein, rtol=1e-5)
    for sample in samples:
        assert all(sample.own.context.batch == torch.from_numpy(data.batch[CELLS]))


@torch.no_grad()
def test_batches_that_did_not_measure_a_protein_are_left_out(
    data: CiteData, network: TOTALVI
) -> None:
    batch = minibatch(data, network, CELLS)
    measured = ALL.copy()
    measured[0, 3] = False
    measured[:, 4] = False

    def foreground(codes: tuple[int, ...], by_batch: np.ndarray = ALL) -> torch.Tensor:
        asked = question(data, network, CELLS, transform_batch=(None, *codes))
        query = ScaleQuery(ProteinScale(), batch_weights(by_batch, codes))
        (sample,) = scales(asked, batch, query)
        return sample.foreground

    both = foreground((0, 1), measured)
    torch.testing.assert_close(both[:, 3], foreground((1,))[:, 3])
    everywhere = foreground((0, 1))
    torch.testing.assert_close(both[:, [0, 1, 2, 4, 5]], everywhere[:, [0, 1, 2, 4, 5]])
