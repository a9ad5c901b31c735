"""In how many bits the products of a fit are taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

from totalvi.module.network import Network

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # weights stay in float32


def resolve_precision(asked: Precision, network: Network, device: torch.device) -> Precision:
    """Return the precision that a fit of ``network`` on ``device`` has.

    "auto" is "bf16-mixed" for fused networks on processors with instructions for bfloat16, where wide
    products are several times faster and fits measured as good; "32-true" elsewhere. Processors do
    not train in float16: "16-mixed" is "bf16-mixed" there.
    """
    on_cpu = device.type == "cpu"
    if asked == "auto":
        return "bf16-mixed" if on_cpu and network.fused and _has_bfloat16() else "32-true"
    return "bf16-mixed" if on_cpu and asked == "16-mixed" else asked


def autocast_precision(precision: Precision, network: Network, device: torch.device) -> Precision:
    """Return the precision that Lightning Fabric must see to.

    On the CPU, fused networks take their wide products in bfloat16 themselves, and all else in
    float32: see `wide_products`.
    """
    fused = precision == "bf16-mixed" and network.fused and device.type == "cpu"
    return "32-true" if fused else precision


@contextmanager
def wide_products(network: Network, precision: Precision) -> Iterator[None]:
    """Take the products as wide as the genes in this precision for a while."""
    before = network.bfloat16_products
    network.set_bfloat16_products(precision == "bf16-mixed")
    try:
        yield
    finally:
        network.set_bfloat16_products(before)


def _has_bfloat16() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
