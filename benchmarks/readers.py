"""Time readers of sparse counts on disk: ours, annbatch's and scDataset's, on the same zarr store.

    python benchmarks/readers.py CELLS.zarr ours
    PEER/bin/python benchmarks/readers.py CELLS.zarr annbatch [--zarrs]     # Python 3.12, annbatch
    PEER/bin/python benchmarks/readers.py CELLS.zarr scdataset [--zarrs]    # scDataset

`totalvi convert` or `totalvi simulate -o CELLS.zarr` writes the store. Each reader reads the RNA
counts of all cells once, in minibatches of 256 that are mixed from blocks of 1,024 cells, with 64
blocks in memory. ``--zarrs`` uses the codecs of zarrs-python. Prints microseconds a cell, by wall
clock and by processor.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH, BLOCK, BLOCKS = 256, 1024, 64


def ours(path: Path) -> Iterator[int]:
    from totalvi.data.columns import Columns
    from totalvi.data.counts import read_ahead
    from totalvi.data.find import find_counts
    from totalvi.data.io.h5_zarr import open_on_disk
    from totalvi.fit.batches import shuffled_windows, sparse_rows

    rna = find_counts(open_on_disk(path), Columns(), on_disk=True).rna
    windows = shuffled_windows(
        np.arange(len(rna)), BATCH, np.random.default_rng(0), window=BLOCK * BLOCKS, block=BLOCK
    )
    rows = [np.sort(np.concatenate(window)) for window in windows]
    for window, held, counts in zip(windows, rows, read_ahead(rna.rows, rows), strict=True):
        for batch in window:
            yield sparse_rows(counts, np.searchsorted(held, batch)).shape[0]


def stored(path: Path) -> Any:
    import zarr
    from anndata.io import sparse_dataset

    return sparse_dataset(zarr.open_group(path, mode="r")["mod/rna/X"])


def annbatch(path: Path) -> Iterator[int]:
    from annbatch import Loader
    from anndata import AnnData

    loader = Loader(
        batch_size=BATCH, chunk_size=BLOCK, preload_nchunks=BLOCKS, shuffle=True, to="torch",
        preload_to_gpu=False,
    )  # fmt: skip
    for batch in loader.add_adatas([AnnData(stored(path))]):
        yield batch["X"].shape[0]


class Rows:
    """A sparse dataset that has a length."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def __getitem__(self, cells: Any) -> Any:
        return self.rows[cells]


def scdataset(path: Path) -> Iterator[int]:
    from scdataset import BlockShuffling, scDataset

    cells = scDataset(
        Rows(stored(path)), BlockShuffling(block_size=BLOCK), batch_size=BATCH,
        fetch_factor=BLOCK * BLOCKS // BATCH,
    )  # fmt: skip
    for batch in cells:
        yield batch.shape[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("reader", choices=("ours", "annbatch", "scdataset"))
    parser.add_argument("--zarrs", action="store_true")
    arguments = parser.parse_args()
    if arguments.zarrs:
        import zarr

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    read = {"ours": ours, "annbatch": annbatch, "scdataset": scdataset}[arguments.reader]
    started, cpu = time.perf_counter(), time.process_time()
    n_cells = sum(read(arguments.store))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"{1e6 * seconds / n_cells:.1f} us a cell, {1e6 * cpu / n_cells:.1f} of processors")


if __name__ == "__main__":
    main()
