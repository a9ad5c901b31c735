"""What a run records of itself."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from totalvi.errors import ReadError
from totalvi.run.record import Options, asked, circumstances, sha256, write_record


@dataclass(frozen=True)
class Given(Options):
    INPUTS = ("data", "input")

    path: Path
    keys: tuple[str, ...]
    n: int
    none: None
    data: np.ndarray
    input: str


def test_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"counts")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"counts").hexdigest()


def test_hash_of_a_folder_tells_names_and_contents(tmp_path: Path) -> None:
    seen = set()
    for files in ({"a": "1", "b/c": "2"}, {"a": "1", "b/d": "2"}, {"a": "12", "b/c": ""}, {}):
        folder = tmp_path / str(len(seen))
        folder.mkdir()
        (folder / "zarr.json").touch()
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        seen.add(sha256(folder))
        assert sha256(folder) in seen
    assert len(seen) == 4


@pytest.mark.parametrize("place", ["", "outs/filtered_feature_bc_matrix", "GRCh38"])
def test_hash_is_of_what_is_read_and_not_of_what_lies_beside_it(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "sample" / place
    folder.mkdir(parents=True)
    names = ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz")
    for name in names:
        (folder / name).write_text(name)
    before = sha256(tmp_path / "sample")
    (tmp_path / "sample" / "possorted_genome_bam.bam").write_bytes(b"\0")
    (tmp_path / "sample" / "results").mkdir()
    (tmp_path / "sample" / "results" / "run.json").write_text("{}")
    assert sha256(tmp_path / "sample") == before
    for name in names:
        (folder / name).write_text("changed")
        assert sha256(tmp_path / "sample") != before
        (folder / name).write_text(name)


def test_hash_of_a_model_is_of_all_its_files(tmp_path: Path) -> None:
    seen = set()
    for weights, description in (("1", "{}"), ("2", "{}"), ("1", "{ }")):
        (tmp_path / "weights.safetensors").write_text(weights)
        (tmp_path / "model.json").write_text(description)
        seen.add(sha256(tmp_path))
    assert len(seen) == 3


def test_a_folder_of_nothing_that_is_read_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(ReadError, match=r"lacks matrix\.mtx\.gz"):
        sha256(tmp_path)


def test_record_is_json(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x")
    options = Given(tmp_path, ("a", "b"), 3, None, np.zeros(3), str(tmp_path / "in.csv"))
    write_record(circumstances() | asked(options), tmp_path / "run.json")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["arguments"] == {
        "path": str(tmp_path),
        "keys": ["a", "b"],
        "n": 3,
        "none": None,
        "data": "ndarray object",
        "input": str(tmp_path / "in.csv"),
    }
    assert record["input_sha256"] == {"input": hashlib.sha256(b"x").hexdigest()}
    assert {"python", "totalvi", "torch", "numpy", "scanpy", "anndata"} <= set(record["versions"])
