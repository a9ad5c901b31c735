"""A fit of totalvi and the processor seconds that it took, for `field.py`."""

import time
from pathlib import Path
from typing import Any

from mudata import MuData

import totalvi


def fitted(
    data: MuData, path: Path, epochs: int | None, **options: Any
) -> tuple[totalvi.Model, float]:
    """Return a model fitted with its defaults and its seconds, or those that ``path`` keeps."""
    seconds = path.with_suffix(".seconds")
    if seconds.exists():
        return totalvi.Model.load(path, data), float(seconds.read_text())
    started = time.process_time()
    model = totalvi.Model(data, **options)
    model.train(max_epochs=epochs, progress=False)
    taken = time.process_time() - started
    model.save(path, overwrite=True)
    seconds.write_text(f"{taken}")
    return model, taken
