"""Tell what is in the place of counts: a pointer, a web page, a shortcut, an archive, a part."""

import gzip
import re
import zipfile
import zlib
from pathlib import Path

from totalvi.data.io.trust import reading
from totalvi.errors import ReadError, listed

N_BYTES = 4096  # of a file that are looked at
AGAIN = "download the file itself"
# What a text begins with, lower case; what it is; and what to do.
TEXTS = (
    (
        r"version https://git-lfs\.github\.com/spec",
        "a Git LFS pointer",
        'run "git lfs pull" in its repository, or ' + AGAIN,
    ),
    (
        r"(\.\./)*(\.git)?/annex/objects/",
        "a git-annex pointer",
        'run "git annex get" in its repository, or ' + AGAIN,
    ),
    (
        r"outs:\s+- (md5|etag|hash|size): ",
        "a DVC pointer",
        'run "dvc pull" in its repository, or ' + AGAIN,
    ),
    (
        r"(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*(<!doctype html|<html|<head|<body)",
        "a web page",
        AGAIN + ", signed in where its site asks for it, and with the link of the file",
    ),
    (
        r"(\[\{[0-9a-f-]+\}\].*)?\[internetshortcut\]",
        "a shortcut to a web page",
        "open it, and " + AGAIN,
    ),
    (
        r"<\?xml|<error>",
        "XML, as servers answer in place of a file",
        "check the link, and " + AGAIN,
    ),
    (r'[{]\s*"', "JSON, as servers answer in place of a file", "check the link, and " + AGAIN),
)
ORIGINAL = "give the path of the file that it leads to"
# The same of other files, by their first bytes.
SIGNATURES = (
    (b"L\0\0\0\x01\x14\x02\0", "a Windows shortcut", ORIGINAL),
    (b"book\0\0\0\0mark", "a macOS alias", ORIGINAL),
    (
        b"\0\x05\x16\x07",
        "what macOS keeps beside a file (attributes, no content)",
        'give the file without "._" before its name',
    ),
    (b"bplist00", "a property list of macOS, such as a saved link", "open it, and " + AGAIN),
)
PACKERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
}
ZIP = b"PK\x03\x04"
HDF5 = b"\x89HDF\r\n\x1a\n"
PLACES_OF_HDF5 = (0, 512, 1024, 2048)  # text of another use may be before its first block
# Where an HDF5 file has its length, by the version of its first block.
PLACE_OF_LENGTH = {0: 40, 1: 44, 2: 28, 3: 28}
PARTIAL = (".part", ".partial", ".crdownload", ".download", ".filepart", ".!ut", ".aria2")


def require_file_itself(path: Path, *, may_be_gzip: bool) -> None:
    """Refuse a file that stands for another, holds it, or is the first part of it.

    Parameters
    ----------
    may_be_gzip
        Whether the reader of this file unpacks it.

    Raises
    ------
    ReadError
        When it is such a file; the message says what it is and what to do.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "cells.h5ad")
    >>> _ = path.write_text("<!DOCTYPE html><title>Sign in</title>")
    >>> try:
    ...     require_file_itself(path, may_be_gzip=False)
    ... except ReadError as error:
    ...     print(str(error).partition(" is ")[2].partition(";")[0])
    a web page ("Sign in"), not counts
    """
    with reading(path, "a file of counts"), path.open("rb") as file:
        start = file.read(N_BYTES)
    if path.name.lower().endswith(PARTIAL):
        raise ReadError(f"{path} is an unfinished download; let it finish, or download it again.")
    for signature, what, fix in SIGNATURES:
        if start.startswith(signature):
            raise ReadError(f"{path} is {what}, not counts; {fix}.")
    for place in PLACES_OF_HDF5:
        if start[place:].startswith(HDF5):
            _require_length(path, start[place:])
    if start.startswith(ZIP):
        raise ReadError(f"{path} is {_in_zip(path)}.")
    packer = next((name for bytes_, name in PACKERS.items() if start.startswith(bytes_)), None)
    if packer == "gzip":
        _require_no_text_instead(path, _unpacked(path))
    if packer is not None and not (packer == "gzip" and may_be_gzip):
        raise ReadError(
            f"{path} is a packed file; unpack it (with {packer}) and give the path of what was in it."
        )
    _require_no_text_instead(path, start)


def _require_no_text_instead(path: Path, start: bytes) -> None:
    if b"\0" in start:
        return
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    for pattern, what, fix in TEXTS:
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            raise ReadError(f"{path} is {what}{_told(text)}, not counts; {fix}.")


def _told(text: str) -> str:
    """Return what the text says of itself: the title of a page, the size of a file, an error."""
    said = re.search(
        r"<title[^>]*>\s*(.*?)\s*</title>|<code>(.*?)</code>|^(size \d+)$"
        r'|"(?:message|error)"\s*:\s*"(.*?)"',
        text,
        re.IGNORECASE | re.DOTALL | re.MULTILINE,
    )
    if said is None:
        return ""
    found = " ".join(next(group for group in said.groups() if group is not None).split())
    size = re.fullmatch(r"size (\d+)", found)
    return (
        f" to a file of {int(size[1]):,} bytes" if size else f' ("{found[:80]}")' if found else ""
    )


def _unpacked(path: Path) -> bytes:
    """Return the first unpacked bytes; nothing of a stream that is broken there."""
    try:
        with gzip.open(path) as file:
            return file.read(N_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""  # whoever reads all of it says what is wrong


def _in_zip(path: Path) -> str:
    """Say what a zip archive is, by the names in it, and what to do."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    except (zipfile.BadZipFile, OSError):
        return "the first part of a zip archive, which was cut short; download it again"
    if "xl/workbook.xml" in names:
        return "an Excel workbook; write it as .csv, cells and features named"
    if {"zarr.json", ".zgroup", ".zattrs"} & {name.rpartition("/")[2] for name in names}:
        return (
            "a zip archive of a zarr store; unpack it to a folder whose name ends in .zarr, and give "
            "that"
        )
    files = [name for name in names if not name.endswith("/")]
    inside = f" of {listed(files)}" if files else ""
    return f"a zip archive{inside}; unpack it and give the path of what was in it"


def _require_length(path: Path, start: bytes) -> None:
    """Refuse an HDF5 file that is shorter than its first block says."""
    place = PLACE_OF_LENGTH.get(start[8] if len(start) > 8 else -1)
    if place is None:
        return
    length, size = int.from_bytes(start[place : place + 8], "little"), path.stat().st_size
    if size < length < 2**63:
        raise ReadError(
            f"{path} cannot be read as an HDF5 file, as it is only the first part of one ({size:,} of "
            f"{length:,} bytes), after an unfinished download; copy, download or write it again."
        )
