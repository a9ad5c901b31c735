"""Download one file over HTTP, so that a file at the target path is always complete and checked.

Bytes are collected in ``NAME.part`` beside the target, which is renamed in one step when it is
complete. An interrupted transfer continues where it stopped if the server confirms (by ``ETag`` or
``Last-Modified``) that the file has not changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from platformdirs import user_cache_path

from totalvi.errors import DownloadError

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress

TIMEOUT_S = 30.0
ATTEMPTS = 4  # attempts in a row without a new byte
FIRST_WAIT_S = 1.0  # doubles after every such attempt
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TryAgainError(Exception):
    """The transfer stopped for a temporary reason."""


def cache_folder(folder: str | Path | None = None) -> Path:
    """Return the folder for downloaded files.

    Parameters
    ----------
    folder
        The folder to use; by default the one named by the environment variable ``TOTALVI_CACHE``,
        else the user's cache folder.

    Examples
    --------
    >>> cache_folder("my-data").name
    'my-data'
    """
    chosen = folder or os.environ.get("TOTALVI_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("totalvi")


def download(
    url: str, target: str | Path, *, sha256: str | None = None, progress: bool = True
) -> Path:
    """Download `url` to `target`, or check the file if it exists already.

    Parameters
    ----------
    url
        An ``https`` address. ``http`` is used only if it is given, and ``https`` is never redirected to
        ``http``.
    target
        Path for the file. Its folder is created if necessary. Processes that download the same target
        wait for each other.
    sha256
        The known checksum, 64 hexadecimal digits. Without it, the checksum of the first download is
        written to ``TARGET.sha256`` (as ``sha256sum`` does), and later downloads are checked against
        it.
    progress
        Whether to show a bar with rate and remaining time; it is shown only on a terminal.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    DownloadError
        If the file cannot be downloaded or written completely, or its checksum is not the expected one.
    """
    target = Path(target)
    part = _beside(target, ".part")
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target):
                if not target.exists():  # no other process downloaded it while this one waited
                    _transfer(url, part, target, progress=progress)
                    _check_fetched(url, part, target, sha256)
                    part.replace(target)
                    _beside(part, ".validator").unlink(missing_ok=True)
        _check_present(target, sha256)
    except OSError as error:
        raise DownloadError(
            f"{target} cannot be written or read ({error.strerror or error}); "
            "free space there, or give another folder (or set TOTALVI_CACHE)."
        ) from error
    return target


def _lock(target: Path) -> FileLock:
    return FileLock(target.parent / f".{target.name}.lock")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _failure(url: str, target: Path, why: str) -> DownloadError:
    return DownloadError(
        f"{url} could not be fetched ({why}); try again later, or fetch it by other means and "
        f"put the file at {target}."
    )


# ---- checksums ----


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expected_sha256(target: Path, known: str | None) -> str | None:
    record = _beside(target, ".sha256")
    if known is not None:
        return known.lower()
    if record.exists():
        return record.read_text().partition(" ")[0].strip().lower()
    return None


def _check_fetched(url: str, part: Path, target: Path, known: str | None) -> None:
    expected, found = _expected_sha256(target, known), _sha256(part)
    if expected is None or found == expected:
        return
    part.unlink()
    remedy = "" if known else f", or delete {_beside(target, '.sha256')} to accept a changed file"
    raise DownloadError(
        f"{url} arrived with sha256 {found} in place of the expected {expected}, and was "
        f"discarded; fetch it again{remedy}."
    )


def _check_present(target: Path, known: str | None) -> None:
    """Compare with the known or recorded checksum; record it if there is none."""
    expected, found = _expected_sha256(target, known), _sha256(target)
    if expected is None:
        if os.access(target.parent, os.W_OK):  # a shared read-only folder stays unchanged
            with _lock(target):  # others may record the same file at the same time
                draft = _beside(target, ".sha256.part")
                draft.write_text(f"{found}  {target.name}\n")
                draft.replace(_beside(target, ".sha256"))
    elif found != expected:
        record = "" if known else f" (and {_beside(target, '.sha256').name}, if it is meant to be)"
        raise DownloadError(
            f"{target} has sha256 {found} in place of the expected {expected}; delete the file"
            f"{record} and fetch it again."
        )


# ---- transfer ----


def _transfer(url: str, part: Path, target: Path, *, progress: bool) -> None:
    """Fill `part` with the content of `url`, over as many connections as necessary."""
    import httpx

    allowed = {"https", "http"} if url.lower().startswith("http:") else {"https"}

    def refuse_downgrade(request: httpx.Request) -> None:  # also called for redirects
        if request.url.scheme not in allowed:
            raise _failure(url, target, f"{request.url} is not an https address")

    failures = 0
    with (
        httpx.Client(
            follow_redirects=True,
            timeout=TIMEOUT_S,
            headers={"User-Agent": "totalvi", "Accept-Encoding": "identity"},
            event_hooks={"request": [refuse_downgrade]},
        ) as client,
        _progress_bar(shown=progress) as bar,
    ):
        bar.add_task(target.name, total=None)
        while True:
            before = _size(part)
            try:
                _attempt(client, url, part, target, bar)
            except (httpx.TransportError, _TryAgainError) as error:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= ATTEMPTS:
                    raise _failure(url, target, str(error) or type(error).__name__) from error
                time.sleep(FIRST_WAIT_S * 2 ** (failures - 1))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _failure(url, target, str(error)) from error
            else:
                return


def _attempt(client: httpx.Client, url: str, part: Path, target: Path, bar: Progress) -> None:
    """Make one request, only for the bytes that `part` lacks if the server's file is unchanged."""
    validator_file = _beside(part, ".validator")
    validator = _stored_validator(validator_file, url) if part.exists() else None
    offset = _size(part) if validator else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": validator} if validator and offset else {}
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        start, total = _extent(response)
        current = _validator(response)
        if status == 416 and total == offset:
            return  # the connection broke after the last byte
        if status == 416 or (
            status == 206 and (start != offset or (current is not None and current != validator))
        ):
            part.unlink(missing_ok=True)
            raise _TryAgainError("the server's file changed during the transfer")
        if status in TRANSIENT_STATUS:
            raise _TryAgainError(f"the server answered {status} {response.reason_phrase}")
        if status not in {200, 206}:
            raise _failure(url, target, f"the server answered {status} {response.reason_phrase}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _failure(url, target, "the server sends it in compressed form only")
        _check_space(part, total, start)
        with part.open("ab" if start else "wb") as file:
            if start == 0:
                validator_file.write_text(f"{url}\n{current or ''}")
            bar.update(bar.task_ids[0], total=total, completed=start)
            try:
                for chunk in response.iter_raw():
                    file.write(chunk)
                    bar.advance(bar.task_ids[0], len(chunk))
            finally:
                file.flush()
                os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        found = _size(part)
        part.unlink()
        raise _TryAgainError(f"{found} bytes arrived of {total}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _stored_validator(path: Path, url: str) -> str | None:
    if not path.exists():
        return None
    stored_url, _, validator = path.read_text().partition("\n")
    return validator if validator and stored_url == url else None


def _validator(response: httpx.Response) -> str | None:
    """Return the identifier of this version of the file; a weak ETag is not allowed for ranges."""
    headers: Mapping[str, str] = response.headers
    etag = headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return headers.get("Last-Modified")


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """Return the position of the first byte sent and the size of the file, if the server tells."""
    told = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if told:
        return int(told[1] or 0), None if told[2] == "*" else int(told[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() and response.status_code == 200 else None


def _check_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free + (_size(part) if start == 0 else 0)
    if total is not None and total - start > free:
        raise DownloadError(
            f"{part.parent} has {free / 1e6:.0f} MB free and {(total - start) / 1e6:.0f} MB are "
            "needed; free space there, or give another folder (or set TOTALVI_CACHE)."
        )


def _progress_bar(*, shown: bool) -> Progress:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )
