"""Time the bare matrix products of a training step of the default network.

    python benchmarks/speed/floor.py --genes 4000

Their sum is the floor that the machine sets, without losses, random numbers, an optimiser or
allocation of memory. Each product has its own operands, and they run in the order of a step, so
that caches are as cold as in a step. In "bfloat16" only products as wide as the genes are in
bfloat16, as in a step. In "float32" the product with the RNA counts is dense or sparse, whichever
is faster.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from worker import clock

N_HIDDEN, N_LATENT, N_TRUNKS = 256, 20, 4
_WARM_UP = 3


def floor_seconds(
    n_cells: int,
    n_genes: int,
    n_proteins: int,
    density: float,
    precision: str,
    device: str = "cpu",
    n_rounds: int = 20,
) -> dict[str, float]:
    """Return the median seconds of each product of a step with ``n_cells`` cells."""
    wide = torch.bfloat16 if precision == "bfloat16" else torch.float32
    sizes = (n_cells, n_genes, n_proteins, wide, device)
    seconds = cycled(step_products(*sizes, density=None), n_rounds, device)
    if precision == "float32":
        sparse = cycled(step_products(*sizes, density=density), n_rounds, device)
        by_genes = [name for name in seconds if name.startswith("RNA counts")]
        if sum(sparse[name] for name in by_genes) < sum(seconds[name] for name in by_genes):
            seconds |= {name: sparse[name] for name in by_genes}
    return seconds


def step_products(
    n_cells: int,
    n_genes: int,
    n_proteins: int,
    wide: torch.dtype,
    device: str,
    density: float | None,
) -> dict[str, Callable[[], object]]:
    """Return the products of a step in their order: forward through the layers, and back.

    ``density`` is the share of RNA counts that are not zero, for a product without the zeros.
    """
    decoded = N_HIDDEN + N_LATENT
    layers = [
        ("RNA counts by first layer", n_genes, N_HIDDEN, wide),
        ("protein counts by first layer", n_proteins, N_HIDDEN, torch.float32),
        ("posterior mean", N_HIDDEN, N_LATENT, torch.float32),
        ("posterior variance", N_HIDDEN, N_LATENT, torch.float32),
        ("decoder's first layer", N_LATENT, N_TRUNKS * N_HIDDEN, torch.float32),
        ("gene head", decoded, n_genes, wide),
        ("background mean", decoded, n_proteins, torch.float32),
        ("background scale", decoded, n_proteins, torch.float32),
        ("foreground", decoded, n_proteins, torch.float32),
        ("mixing", decoded, n_proteins, torch.float32),
    ]
    forward: dict[str, Callable[[], object]] = {}
    backward: list[tuple[str, Callable[[], object]]] = []
    for name, n_in, n_out, dtype in layers:
        counts = "counts" in name
        sparse = density if name.startswith("RNA") else None
        x, weight, gradient = (
            torch.randn(shape, device=device, dtype=dtype)
            for shape in ((n_cells, n_in), (n_in, n_out), (n_cells, n_out))
        )
        transposed = x.t()
        if sparse is not None:
            x = torch.where(torch.rand_like(x) < sparse, x, 0.0)
            x, transposed = x.to_sparse_csr(), x.t().contiguous().to_sparse_csr()
        forward[f"{name}, forward"] = product(x, weight)
        backward.append((f"{name}, weight gradient", product(transposed, gradient)))
        if not counts:
            backward.append((f"{name}, input gradient", product(gradient, weight.t())))
    return forward | dict(reversed(backward))


def product(left: Tensor, right: Tensor) -> Callable[[], object]:
    """Return the product as something to call, its result's memory at hand."""
    out = torch.empty(left.shape[0], right.shape[1], device=right.device, dtype=right.dtype)
    if left.layout == torch.sparse_csr:
        return lambda: torch.addmm(out, left, right, beta=0, out=out)
    return lambda: torch.mm(left, right, out=out)


def cycled(
    products: dict[str, Callable[[], object]], n_rounds: int, device: str
) -> dict[str, float]:
    """Return the median seconds of each, all taken one after the other ``n_rounds`` times."""
    seconds: dict[str, list[float]] = {name: [] for name in products}
    for _ in range(_WARM_UP + n_rounds):
        before = clock(device)
        for name, take in products.items():
            take()
            now = clock(device)
            seconds[name].append(now - before)
            before = now
    return {name: statistics.median(times[_WARM_UP:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--genes", type=int, default=4000)
    parser.add_argument("--proteins", type=int, default=14)
    parser.add_argument("--density", type=float, default=0.09)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = (arguments.cells, arguments.genes, arguments.proteins, arguments.density)
    both = [floor_seconds(*shape, name, arguments.device) for name in ("float32", "bfloat16")]
    print(f"{'milliseconds':44}{'float32':>10}{'bfloat16':>10}")
    for name in both[0]:
        print(f"{name:44}" + "".join(f"{1e3 * seconds[name]:10.3f}" for seconds in both))
    print(f"{'floor':44}" + "".join(f"{1e3 * sum(seconds.values()):10.2f}" for seconds in both))


if __name__ == "__main__":
    main()
