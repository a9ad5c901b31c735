"""Files of unknown origin are read as data: nothing in them runs, and what they hold is checked."""

import builtins
import copy
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from totalvi.errors import FormatError
from totalvi.formats.safe_pickle import checked_tensors, load_inert, stored_values
from totalvi.persistence import load_scvi


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def touch(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "eval": lambda marker: Call(builtins.eval, touch(marker)),
    "exec": lambda marker: Call(builtins.exec, touch(marker)),
    "subprocess": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
    "import": lambda marker: Call(__import__, "os"),
    "getattr": lambda marker: Call(getattr, "", "join"),
    "open": lambda marker: Call(open, str(marker), "w"),
    "torch.hub": lambda marker: Call(torch.hub.load, "owner/name", "model"),
    "torch.load": lambda marker: Call(torch.load, str(marker), None),
    "torch.save": lambda marker: Call(torch.save, 1, str(marker)),
    "pandas": lambda marker: Call(pd.read_pickle, str(marker)),
    "numpy": lambda marker: Call(np.load, str(marker)),
    "class": lambda marker: Path(marker),
    "nested": lambda marker: [{"a": (Call(builtins.eval, touch(marker)),)}],
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda evil: evil,
    "weights": lambda evil: {"model_state_dict": {"px_r": evil}, "attr_dict": {}},
    "attributes": lambda evil: {"model_state_dict": {}, "attr_dict": {"registry_": evil}},
    "unread": lambda evil: {"model_state_dict": {}, "attr_dict": {}, "further": evil},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_a_hostile_file_runs(
    attack: str, place: str, zipped: bool, tmp_path: Path
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "model.pt"
    content = PLACES[place](ATTACKS[attack](marker))
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(FormatError, match=r"asks for .*was not run") as caught:
        load_scvi(file)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "model.pt"
    file.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol))
    with pytest.raises(FormatError):
        load_scvi(file)
    assert not marker.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(X\x04\x00\x00\x001+41tR.",
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"ctorch.hub\nload_state_dict_from_url\n(X\x01\x00\x00\x00xtR.",
        b"cnumpy.ndarray\n__class__\n.",
        b"cnumpy\nndarray.__init__.__globals__\n.",
        b"ctotalvi.formats.safe_pickle\nload_inert\n(X\x01\x00\x00\x00xtR.",
        b"(iposix\nsystem\n.",
        b"(X\x04\x00\x00\x00trueoposix\nsystem\n.",
        b"\x8c\x05posix\x8c\x06system\x93.",
        b"}}b.",
        b"R.",
        b".",
        b"",
    ],
    ids=range(14),
)
def test_a_hand_written_program_is_refused(program: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + program)
        archive.writestr("model/version", b"3\n")
        archive.writestr("model/byteorder", b"little")
    with pytest.raises(FormatError):
        load_scvi(file)


def test_what_the_process_allows_elsewhere_is_not_allowed_here(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": Call(os.path.basename, "/a/b")}, file)
    with torch.serialization.safe_globals([os.path.basename]):
        before = set(torch.serialization.get_safe_globals())
        assert torch.load(file) == {"a": "b"}  # really allowed
        with pytest.raises(FormatError, match="basename"):
            load_inert(file)
        assert set(torch.serialization.get_safe_globals()) == before


# ------------------------------------------------------------------------------------ hostile sizes


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    small, file = tmp_path / "small.pt", tmp_path / "model.pt"
    torch.save({"a": torch.zeros(2_000_000)}, small)
    with (
        zipfile.ZipFile(small) as stored,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert file.stat().st_size < 100_000
    with pytest.raises(FormatError, match="more than its own size"):
        load_inert(file)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1000)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for i in range(9):
            again = copy.copy(largest)
            again.filename = f"model/data/{i + 1}"
            archive.filelist.append(again)
        archive.writestr("model/end", b"")  # writes the directory again
    assert file.stat().st_size < 10_000
    with pytest.raises(FormatError, match="more than its own size"):
        load_inert(file)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**10),
        torch.zeros(1).expand(4),
        torch.zeros(8).as_strided((4, 4), (1, 1)),
        torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (10**12,)),
        torch.empty(10**12, device="meta"),
        torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
        [1.0],
    ],
    ids=["expanded", "repeated", "overlapping", "sparse", "meta", "quantized", "list"],
)
def test_only_plain_tensors_no_larger_than_the_file(tensor: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": tensor}, file)
    with pytest.raises(FormatError):
        checked_tensors(load_inert(file), file)


def test_views_of_larger_tensors_are_plain(tmp_path: Path) -> None:
    file, whole = tmp_path / "model.pt", torch.arange(24.0).reshape(4, 6)
    given = {
        "transposed": whole.T,
        "columns": whole[:, 1:3],
        "one": whole[:1, :1],
        "none": whole[:0],
    }
    torch.save(given, file)
    read = checked_tensors(load_inert(file), file)
    assert all(torch.equal(read[name], given[name]) for name in given)


# -------------------------------------------------------------------------------------- damage


def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3), "b": np.array(["x", "y"]), "c": pd.DataFrame({"a": [1]})}, file)
    whole = file.read_bytes()
    load_inert(file)
    rng = np.random.default_rng(0)
    n_refused = 0
    for i in range(120):
        changed = bytearray(whole)
        if i % 3:
            for position in rng.integers(0, len(whole), 1 + i % 5):
                changed[position] = rng.integers(256)
        else:
            del changed[rng.integers(len(whole)) :]
        file.write_bytes(changed)
        try:
            load_inert(file)
        except FormatError:
            n_refused += 1
    assert n_refused >= 40  # the truncated ones at least


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x03\x04" + b"\0" * 40, b"\x80\x02}.", b"hello"]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(content)
    with pytest.raises(FormatError):
        load_scvi(file)
    with pytest.raises(FormatError, match="not a file"):
        load_scvi(tmp_path / "nowhere.pt")


def test_a_scripted_module_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    with pytest.raises(FormatError):
        load_scvi(tmp_path / "model.pt")


# -------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "é", "long name"], dtype=object),
        np.array(["a", "é", "long name"]),
        np.array([0, -5, 2**40]),
        np.array([1, 2], dtype=np.uint8),
        np.array([1, 2], dtype=">i4"),
        np.array([0.5, np.inf], dtype=np.float32),
        np.array([True, False]),
        np.array([], dtype=np.int64),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_come_out_as_they_went_in(array: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": array, "b": list(array)}, file)
    held = load_inert(file)
    assert stored_values(held["a"], "a") == array.tolist()
    if array.dtype.kind in "iuf":
        assert stored_values(held["b"], "b") == array.tolist()  # NumPy's own numbers


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 2)),
        np.array([b"ab"]),
        np.array([1j]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([None, "a"], dtype=object),
        pd.DataFrame({"a": [1]}),
        pd.Series([1]),
        {"a": 1},
        [[1]],
        "text",
        None,
    ],
    ids=range(12),
)
def test_other_values_are_not_taken_for_lists(value: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": value}, file)
    with pytest.raises(FormatError):
        stored_values(load_inert(file)["a"], "a")
