"""Compare the cells of gates in the explorer with those that FlowKit finds in its exported files.

    python benchmarks/exchange.py [FILE ...]

FILE is a folder of `totalvi run` or a file of counts; default: the real data beside the project. Gates
of every shape are put on pairs of lineage markers, on the asinh and the log scale, around the middle of
the cells. They are written with the cells as FCS and Gating-ML, and read by FlowKit and again by the
explorer. Writes `results/exchange.md`.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import flowkit
import numpy as np

from totalvi.explorer.axes import Axis, Kind, Scale, start_pairs
from totalvi.explorer.fcs import write_exchange
from totalvi.explorer.gate_files import read_gates
from totalvi.explorer.gate_shapes import box
from totalvi.explorer.gates import PARTS, Gate, Gating, Operand, members
from totalvi.explorer.gatingml import name_of
from totalvi.explorer.run_cells import Cells, open_cells

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
FILES = ("bmmc_134proteins.h5mu", "eccite_pbmc_49proteins.h5ad", "pbmc10k.h5mu")
N_PAIRS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=[DATA / name for name in FILES])
    lines = [compared(path) for path in parser.parse_args().files]
    head = (
        "# Exchange of gates\n\n`python benchmarks/exchange.py`. A membership is a cell in a gate.\n\n"
        "| data | cells | gates | memberships | FlowKit differs | read again differs |\n"
        "|---|---|---|---|---|---|\n"
    )
    (HERE / "results" / "exchange.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print(head + "\n".join(lines))


def compared(path: Path) -> str:
    """Return the row of the table for a file."""
    cells = open_cells(path)
    gating = Gating(tuple(gates_on(cells)))
    expected = members(gating, cells.inside, cells.n_cells)
    with tempfile.TemporaryDirectory() as folder:
        fcs, xml = write_exchange(cells, gating, Path(folder))
        strategy = flowkit.parse_gating_xml(str(xml))
        found = strategy.gate_sample(flowkit.Sample(str(fcs)))
        again = members(read_gates(xml), cells.inside, cells.n_cells)
    ways = {name_of(identifier): (identifier, way) for identifier, way in strategy.get_gate_ids()}
    there = {name: found.get_gate_membership(*ways[name]) for name in gating.names}
    differs = [
        sum(int((other[name] != expected[name]).sum()) for name in gating.names)
        for other in (there, again)
    ]
    total = sum(int(expected[name].sum()) for name in gating.names)
    return (
        f"| {path.name} | {cells.n_cells:,} | {len(gating.gates)} | {total:,} | {differs[0]} | "
        f"{differs[1]} |"
    )


def gates_on(cells: Cells) -> Iterator[Gate]:
    """Yield gates of every shape on pairs of markers."""
    kind: Kind = "protein_denoised" if "protein_denoised" in cells.kinds else "protein_raw"
    names = list(map(str, cells.protein_names))
    rng = np.random.default_rng(0)
    scales: tuple[Scale, ...] = ("asinh", "log")
    for first, second in start_pairs(names, np.zeros(len(names)))[:N_PAIRS]:
        for scale in scales:
            axes = (Axis(kind, first, scale), Axis(kind, second, scale))
            places = [cells.places(axis.kind, axis.name, axis.scale) for axis in axes]
            low, middle, high = (
                np.nanquantile(places, share, axis=1) + 1e-3 * rng.random(2)
                for share in (0.07, 0.5, 0.93)
            )
            wide = np.nanstd(places, axis=1) + 0.1
            end = f"{first} {second} {scale}".replace("/", "|")
            yield Gate(f"box {end}", axes, box(*map(float, (*low, *high))), None, "rectangle")
            ends = (middle, middle + wide * (1, 0.3), middle + wide * (-0.2, 1))
            points = tuple(tuple(map(float, point)) for point in ends)
            yield Gate(f"ellipse {end}", axes, points, None, "ellipse")
            angle = np.linspace(0, 6.2, 60)
            around = np.c_[(1 + 0.3 * np.sin(3 * angle)) * np.cos(angle), np.sin(angle)]
            corners = tuple(tuple(map(float, point)) for point in middle + wide * around)
            yield Gate(f"lasso {end}", axes, corners, f"box {end}", "lasso")
            centre = (tuple(map(float, middle)),)
            for part in PARTS:
                yield Gate(f"quadrant {part} {end}", axes, centre, None, "quadrant", part)
            yield Gate(
                f"range {end}", axes[:1], ((float(low[0]),), (float(middle[0]),)), None, "range"
            )
            operands = (Operand(f"lasso {end}", complement=True), Operand(f"quadrant ++ {end}"))
            yield Gate(f"both {end}", (), (), None, "boolean", operator="and", operands=operands)


if __name__ == "__main__":
    main()
