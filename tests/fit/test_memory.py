"""What a fit needs of a GPU's memory, against the tensors that are alive while it steps."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import totalvi
from counts import SMALL, annotated
from totalvi.errors import TrainingError
from totalvi.fit.batches import minibatch
from totalvi.fit.device import Memory, explained, memory_use, plan_memory, require_room
from totalvi.fit.loop import Fit
from totalvi.nn.likelihoods import objective


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in the block and still there; notes the most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.alive.values()))
        return result


def peak_of_a_step(model: totalvi.Model, n_cells: int) -> int:
    module = model.module.train()
    batch = minibatch(model._training_data(), module, np.arange(n_cells))
    with LiveTensors() as live:
        terms = module.elbo(
            batch.x, batch.y, batch.context, batch.library_log_mean, batch.library_log_variance,
            torch.Generator(),
        )  # fmt: skip
        objective(terms).backward()
    module.zero_grad()
    return live.most


@pytest.mark.parametrize("options", [{}, {"gene_likelihood": "zinb"}, {"library": "latent"}])
def test_what_a_cell_takes_is_what_a_step_takes(options: dict[str, Any]) -> None:
    data = totalvi.simulate(n_cells=400, n_genes=800, n_proteins=12, seed=1)
    model = totalvi.Model(data, n_hidden=32, n_latent=4, fused=False, **options)
    weights = sum(parameter.numel() for parameter in model.module.parameters())
    small, large = peak_of_a_step(model, 100), peak_of_a_step(model, 400)
    use = memory_use(model.module, model._training_data(), free=10**12)
    measured = (large - small) / 300
    assert 0.8 * measured <= use.per_cell <= 1.6 * measured
    assert use.weights == 4 * weights * 6


def test_the_estimate_changes_nothing() -> None:
    model = totalvi.Model(annotated(), batch_key="batch", **SMALL)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    random = torch.get_rng_state()
    memory_use(model.module, model._training_data(), free=10**9)
    assert torch.equal(random, torch.get_rng_state())
    after = model.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.module.fused


def test_counts_are_held_where_there_is_room() -> None:
    use = Memory(weights=10**8, per_cell=10**6, counts=5 * 10**8, free=10**9)
    assert use.holds_counts(256)
    assert not use.holds_counts(400)
    assert not use._replace(counts=0).holds_counts(3)  # on disk
    assert use.largest_minibatch() == 800
    assert use.sentence(256) == (
        "memory on the GPU: about 0.86 of 1.0 GB (0.10 for weights, 0.26 for a minibatch of 256 cells, "
        "0.50 for the counts of all cells)"
    )
    assert use.sentence(512).endswith("counts come from the computer's memory)")


def test_too_little_memory_is_one_sentence() -> None:
    use = Memory(weights=10**8, per_cell=10**6, counts=0, free=10**9)
    require_room(use, 800)
    with pytest.raises(TrainingError, match=r"1.0 GB free.* give batch_size=800 or less"):
        require_room(use, 2000)
    said = r"minibatches of 512 cells; give batch_size=256 or"
    with pytest.raises(TrainingError, match=said), explained(use, 512):
        raise torch.OutOfMemoryError
    with pytest.raises(TrainingError, match="use the CPU, or fewer genes"):
        require_room(use._replace(free=10**8), 256)


def test_a_fit_that_runs_out_of_memory_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is a pretence: memory is asked for and planned as on one, steps run on the CPU."""
    model = totalvi.Model(annotated(), batch_key="batch", **SMALL)

    class WithPretendedGpu(Fit):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            planned = self.network, self.training[0], self.fabric.device, 64
            self.memory, self.held = plan_memory(*planned, show=True)
            assert self.held is not None

        def step(self, _batch: Any) -> Any:
            raise torch.OutOfMemoryError

    monkeypatch.setattr("totalvi.fit.device.free_memory", lambda _: 10**9)
    monkeypatch.setattr("totalvi.training.Fit", WithPretendedGpu)
    with pytest.raises(TrainingError, match=r"minibatches of 64 cells; give batch_size=32 or less"):
        model.train(max_epochs=1, batch_size=64, accelerator="cpu", progress=False)
