"""A classifier of antibody panels from the latent state, which the encoder learns to deceive.

Without it, cells of different panels may lie apart in the latent space for no other reason than that
the encoder sees zeros where a panel lacks a protein (Gayoso, Steier et al., 2021).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from totalvi.fit.checkpoint import optimizer_tensors, part, restore_optimizer, with_prefix
from totalvi.nn.coders import CellPosterior
from totalvi.nn.network import Network
from totalvi.nn.sync import Share

_N_HIDDEN, _LEARNING_RATE = 32, 1e-3


class Adversary:
    """The classifier, its optimiser, and what it reads from the network it is trained against.

    Its steps do not count in the schedules of the fit.

    Parameters
    ----------
    module
        The network that is trained against it; the classifier sees its means of q(u | cell).
    weight
        Weight of the deception in the objective, constant over the fit.
    generator
        Source of the initial weights.
    """

    def __init__(
        self, module: Network, weight: float, device: torch.device, generator: torch.Generator
    ) -> None:
        self.weight = weight
        self.classifier = nn.Sequential(
            nn.Linear(module.n_latent, _N_HIDDEN),
            nn.LeakyReLU(),
            nn.Linear(_N_HIDDEN, module.n_panels),
        ).to(device)
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                bound = 1 / parameter.shape[-1] ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
        self.optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=_LEARNING_RATE)
        self._latent: Tensor | None = None

    @contextmanager
    def watching(self, module: Network) -> Iterator[None]:
        """Read the module's encodings in training for a while."""
        watch = module.encoder.register_forward_hook(self._read)
        try:
            yield
        finally:
            watch.remove()
            self._latent = None

    def _read(self, encoder: nn.Module, _inputs: Any, posterior: CellPosterior) -> None:
        if encoder.training:
            self._latent = posterior.qz_m

    def deception(self, panel: Tensor) -> Tensor:
        """Return the weighted loss that is least where each cell seems to be of the other panels."""
        assert self._latent is not None
        log_probability = F.log_softmax(self.classifier(self._latent.float()), dim=1)
        n_panels = log_probability.shape[1]
        own = log_probability.gather(1, panel[:, None])[:, 0]
        others = (log_probability.sum(dim=1) - own) / (n_panels - 1)
        return -self.weight * others.mean()

    def step(self, panel: Tensor, share: Share | None = None) -> float:
        """Teach the classifier one minibatch; return its loss, in nats a cell.

        For a minibatch that several processes share, return what this process's cells add to the loss.
        """
        assert self._latent is not None
        latent, self._latent = self._latent.detach().float(), None
        self.optimizer.zero_grad()  # `deception` left gradients here, too
        loss = F.cross_entropy(self.classifier(latent), panel)
        if share is not None:
            loss = loss * (len(panel) / share.n_cells)
        torch.autograd.backward(loss)
        if share is not None:
            for parameter in self.classifier.parameters():
                torch.distributed.all_reduce(parameter.grad)
        self.optimizer.step()
        return loss.item()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of the adversary."""
        classifier = with_prefix("classifier.", self.classifier.state_dict())
        return classifier | with_prefix("optimizer.", optimizer_tensors(self.optimizer))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set back what `tensors` returned."""
        self.classifier.load_state_dict(part(tensors, "classifier."))
        restore_optimizer(self.optimizer, part(tensors, "optimizer."))
