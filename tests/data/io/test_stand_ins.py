"""What is in the place of counts is named for what it is, wherever counts are read."""

import gzip
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import totalvi
from totalvi.cli.main import execute
from totalvi.data.io.read import read
from totalvi.errors import ReadError

pytestmark = pytest.mark.filterwarnings("ignore")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123456\n"
PAGES = {
    "404 Not Found": b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>",
    "Sign in": b"\xef\xbb\xbf\r\n<HTML lang='en'><HEAD>\n<TITLE>\n Sign in\n</TITLE>",
    "Quota exceeded": b'<?xml version="1.0"?>\n<!DOCTYPE html><title>Quota exceeded</title>',
    "Moved": b"<!-- proxy -->\n<html>\n<title>Moved</title></html>",
    "Access denied": b"<head>\n<meta charset=utf-8>\n<title>Access denied</title></head>",
}
SUFFIXES = [
    "cells.h5ad", "cells.h5", "cells.h5mu", "matrix.mtx.gz", "S1.mtx", "rna.csv", "rna.tsv.gz",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Sound files of both formats."""
    folder = tmp_path_factory.mktemp("whole")
    cells = totalvi.simulate(n_cells=40, n_genes=30, n_proteins=4, seed=3)
    cells.write(folder / "cells.h5mu")
    cells["rna"].write_h5ad(folder / "cells.h5ad")
    cells["rna"].to_df().astype(int).to_csv(folder / "rna.csv.gz")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def said_of(path: Path) -> str:
    with pytest.raises(ReadError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(str(path)), said
    assert "looks like text" not in said
    assert said.removeprefix(str(path)).count("; ") >= 1, said  # what it is; what to do
    return said


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, held in files.items():
            archive.writestr(name, held)
    return content.getvalue()


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path: Path, name: str, packed: bool) -> None:
    (tmp_path / name).write_bytes(gzip.compress(LFS) if packed else LFS)
    said = said_of(tmp_path / name)
    assert "a Git LFS pointer to a file of 123,456 bytes" in said
    assert '"git lfs pull"' in said


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("title", PAGES)
def test_a_web_page_is_called_so_by_its_title(tmp_path: Path, name: str, title: str) -> None:
    (tmp_path / name).write_bytes(PAGES[title])
    said = said_of(tmp_path / name)
    assert f'is a web page ("{title}"), not counts' in said
    assert "download the file itself" in said


@pytest.mark.parametrize("member", ["matrix.mtx", "features.tsv", "barcodes.tsv"])
@pytest.mark.parametrize("content", [LFS, PAGES["Sign in"]])
def test_a_member_of_a_matrix_folder_is_named(tmp_path: Path, member: str, content: bytes) -> None:
    """As after a clone without Git LFS, where the short lists may be whole."""
    (tmp_path / "barcodes.tsv").write_text("AAAC-1\nAAAG-1\n")
    (tmp_path / "features.tsv").write_text("G1\tG1\tGene Expression\nG2\tG2\tGene Expression\n")
    (tmp_path / "matrix.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n2 2 2\n1 1 3\n2 2 4\n"
    )
    assert read(tmp_path)["rna"].shape == (2, 2)
    (tmp_path / member).write_bytes(content)
    with pytest.raises(ReadError) as caught:
        read(tmp_path)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / member))
    assert "a Git LFS pointer" in said or "a web page" in said


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"),
    [
        ("x.h5ad.lnk", b"L\0\0\0\x01\x14\x02\0" + b"\0" * 60, "a Windows shortcut", "leads to"),
        ("x.h5ad", b"L\0\0\0\x01\x14\x02\0" + b"\0" * 60, "a Windows shortcut", "leads to"),
        ("x.h5", b"book\0\0\0\0mark\0\0\0\0", "a macOS alias", "leads to"),
        ("x.csv", b"[InternetShortcut]\r\nURL=https://x.org\r\n", "a shortcut to a web", "open it"),
        ("x.h5.webloc", b"bplist00\xd1\1\2", "a property list of macOS", "open it"),
        ("._x.h5ad", b"\0\x05\x16\x07\0\2\0\0Mac OS X", "beside a file", 'without "._"'),
        ("x.h5ad", b"../.git/annex/objects/a/b/MD5E-s1--c/x", "git-annex", "git annex get"),
        ("x.h5ad", b"outs:\n- md5: abc\n  size: 12\n", "a DVC pointer", "dvc pull"),
        ("x.h5", b'{"message": "Not Found"}', 'in place of a file ("Not Found")', "the link"),
        ("x.csv.gz", b"<Error><Code>NoSuchKey</Code></Error>", '("NoSuchKey")', "the link"),
        ("x.h5ad.crdownload", b"\x89HDF\r\n\x1a\n\0\0", "an unfinished download", "finish"),
        ("x.h5ad", b"BZh91AY&SY", "a packed file", "with bzip2"),
        ("x.h5", b"\x28\xb5\x2f\xfd\0\0", "a packed file", "with Zstandard"),
    ],
)
def test_other_files_that_stand_for_counts(
    tmp_path: Path, name: str, content: bytes, what: str, fix: str
) -> None:
    (tmp_path / name).write_bytes(content)
    said = said_of(tmp_path / name)
    assert what in said
    assert fix in said


@pytest.mark.parametrize("name", ["cells.zip", "cells.h5ad", "cells.h5mu", "cells.csv", "c.mtx.gz"])
def test_what_an_archive_holds_is_named_and_read_once_unpacked(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    holds = {"data/cells.h5mu": whole["cells.h5mu"], "__MACOSX/data/._cells.h5mu": b"\0"}
    (tmp_path / name).write_bytes(zipped(holds))
    said = said_of(tmp_path / name)
    assert 'is a zip archive of "data/cells.h5mu"; unpack it' in said
    with zipfile.ZipFile(tmp_path / name) as archive:
        archive.extractall(tmp_path)
    assert read(tmp_path / "data" / "cells.h5mu").n_obs == 40


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"xl/workbook.xml": b"<x/>"}, "Excel workbook; write it as .csv"),
        ({"cells.zarr/zarr.json": b"{}"}, "of a zarr store; unpack it to a folder"),
        ({"zarr.json": b"{}", "X/zarr.json": b"{}"}, "of a zarr store; unpack it to a folder"),
        ({}, "is not what its suffix"),
        ({f"{i}.csv": b"1" for i in range(9)}, "and 4 more; unpack it"),
    ],
)
def test_archives_of_other_content(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    (tmp_path / "x.h5ad").write_bytes(zipped(files))
    with pytest.raises(ReadError, match=re.escape(words)):
        read(tmp_path / "x.h5ad")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["cells.h5mu", "cells.h5ad"])
def test_how_much_of_an_hdf5_file_is_there(
    tmp_path: Path, whole: dict[str, bytes], name: str, share: float
) -> None:
    """A MuData has text before its first block."""
    n = int(share * len(whole[name]))
    (tmp_path / name).write_bytes(whole[name][:n])
    said = said_of(tmp_path / name)
    assert f"only the first part of one ({n:,} of {len(whole[name]):,} bytes)" in said


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_part_of_a_packed_table_or_archive_is_called_so(
    tmp_path: Path, whole: dict[str, bytes], share: float
) -> None:
    table, archive = whole["rna.csv.gz"], zipped({"cells.h5mu": whole["cells.h5mu"]})
    (tmp_path / "rna.csv.gz").write_bytes(table[: int(share * len(table))])
    assert "cut short, so copy, download" in said_of(tmp_path / "rna.csv.gz")
    (tmp_path / "cells.zip").write_bytes(archive[: int(share * len(archive))])
    assert "the first part of a zip archive" in said_of(tmp_path / "cells.zip")


@pytest.mark.parametrize("name", SUFFIXES)
def test_an_empty_file_is_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "is empty; copy, download or write it again" in said_of(tmp_path / name)


def test_a_link_to_what_is_not_there_says_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "cells.h5ad").symlink_to("../annex/cells")
    assert "a link to ../annex/cells, which does not exist; fetch" in said_of(
        tmp_path / "cells.h5ad"
    )


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.h5mu"])
def test_a_packed_file_of_sound_counts_is_read_once_unpacked(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(whole[name]))
    assert "is a packed file; unpack it (with gzip)" in said_of(tmp_path / name)
    (tmp_path / name).write_bytes(gzip.decompress((tmp_path / name).read_bytes()))
    assert read(tmp_path / name).n_obs == 40


def test_tables_of_unusual_names_are_no_pages(tmp_path: Path) -> None:
    """A cell or gene that is called like the start of a page, a pointer or an archive is one."""
    values = np.arange(1, 9).reshape(2, 4)
    genes = ["version", "<html>", "PK", "outs"]
    for first in ("version", "PK1", "BZ2", "outs", "L", "cell{1}"):
        table = pd.DataFrame(values, index=[first, "b"], columns=genes)
        table.to_csv(tmp_path / "rna.csv")
        table.rename_axis(first).to_csv(tmp_path / "named.csv")
        for name in ("rna.csv", "named.csv"):
            found = read(tmp_path / name, cells_in="rows")["rna"].to_df()
            np.testing.assert_array_equal(found.to_numpy(), values)


@pytest.mark.parametrize("command", ["check", "train", "convert", "run", "impute", "map"])
@pytest.mark.parametrize("option", ["INPUT", "--protein"])
def test_every_command_says_it(
    tmp_path: Path,
    whole: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    command: str,
    option: str,
) -> None:
    pointer, sound, out = tmp_path / "p.h5ad", tmp_path / "cells.h5ad", str(tmp_path / "out")
    pointer.write_bytes(LFS)
    sound.write_bytes(whole["cells.h5ad"])
    cells = [str(pointer)] if option == "INPUT" else [str(sound), option, str(pointer)]
    if command == "map":
        mdata = totalvi.simulate(n_cells=30, n_genes=20, n_proteins=3, seed=1)
        model = totalvi.Model(mdata, n_hidden=4, n_latent=2)
        model.train(max_epochs=1, progress=False)
        model.save(tmp_path / "m")
    arguments = {
        "check": [*cells],
        "train": [*cells, "-o", out],
        "convert": [*cells[:1], out + ".zarr", *cells[1:]],
        "run": [*cells, "-o", out],
        "impute": [*cells[:1], str(sound), "-o", out, *cells[1:]],
        "map": [str(tmp_path / "m"), *cells, "-o", out],
    }[command]
    assert execute([command, *arguments]) == 2
    printed = capsys.readouterr()
    assert "a Git LFS pointer to a file of 123,456 bytes" in printed.err + printed.out


def test_many_comments_take_no_time(tmp_path: Path) -> None:
    """A pattern that tries every way to part them would not end."""
    (tmp_path / "rna.csv").write_text("<!---->" * 500 + "cell,CD4\n")
    with pytest.raises(ReadError):
        read(tmp_path / "rna.csv")
