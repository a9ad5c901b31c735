import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from totalvi.data.io import download as module
from totalvi.data.io.download import cache_folder, download
from totalvi.errors import DownloadError

CONTENT = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()


@dataclass
class Site:
    """What the local server serves, and what it was asked for."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    last_modified: str | None = None
    ranges: bool = True
    heeds_if_range: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent before the line is cut, in turn
    statuses: list[int] = field(default_factory=list)  # errors to answer first, in turn
    location: str | None = None
    encoding: str | None = None
    announced_length: int | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


def handler_for(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Stay quiet."""

        def answer(self, status: int, headers: dict[str, str | None], body: bytes = b"") -> None:
            length = site.announced_length or len(body)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(length)}.items():
                if value is not None:
                    self.send_header(key, value)
            self.end_headers()
            if body and site.cut_after:
                body = body[: site.cut_after.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def do_GET(self) -> None:
            site.asked.append(dict(self.headers))
            if site.statuses:
                return self.answer(site.statuses.pop(0), {})
            if site.location:
                return self.answer(302, {"Location": site.location})
            headers = {
                "ETag": site.etag,
                "Last-Modified": site.last_modified,
                "Content-Encoding": site.encoding,
            }
            size = len(site.content)
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            unchanged = self.headers.get("If-Range") in {site.etag, site.last_modified}
            if not site.ranges or (site.heeds_if_range and not unchanged):
                start = 0
            if start == 0:
                return self.answer(200, headers, site.content)
            if start >= size:
                return self.answer(416, {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            return self.answer(206, headers, site.content[start:])

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    served = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(served))
    served.url = f"http://127.0.0.1:{server.server_port}/counts.h5"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def starts_asked(site: Site) -> list[str | None]:
    return [request.get("Range") for request in site.asked]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_file_arrives_whole_with_its_checksum_and_nothing_else(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "new" / "counts.h5"
    assert download(site.url, target) == target
    assert target.read_bytes() == CONTENT
    assert names_in(target.parent) == {"counts.h5", "counts.h5.sha256"}
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "new/counts.h5.sha256").read_text() == f"{digest}  counts.h5\n"


def test_present_file_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    for _ in range(3):
        download(site.url, tmp_path / "counts.h5")
    assert len(site.asked) == 1


def test_real_file_is_resumed_within_one_call(site: Site, tmp_path: Path, shared: Path) -> None:
    site.content = (shared / "data/10x_pbmc_10k_protein_v3_subset/matrix.mtx.gz").read_bytes()
    site.cut_after = [10_000, 20_000]
    target = download(site.url, tmp_path / "matrix.mtx.gz")
    assert target.read_bytes() == site.content
    assert starts_asked(site) == [None, "bytes=10000-", "bytes=30000-"]


@pytest.mark.parametrize(
    "validators",
    [
        {"etag": '"v1"'},
        {"etag": None, "last_modified": "Mon, 19 Nov 2018 10:00:00 GMT"},
        {"etag": 'W/"v1"', "last_modified": "Mon, 19 Nov 2018 10:00:00 GMT"},
    ],
)
def test_interrupted_download_is_resumed_by_the_next_call(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validators: dict[str, str | None]
) -> None:
    vars(site).update(validators)
    site.cut_after = [70_000]
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="could not be fetched"):
        download(site.url, tmp_path / "counts.h5")
    assert not (tmp_path / "counts.h5").exists()
    assert (tmp_path / "counts.h5.part").read_bytes() == CONTENT[:70_000]
    download(site.url, tmp_path / "counts.h5")
    assert (tmp_path / "counts.h5").read_bytes() == CONTENT
    assert starts_asked(site) == [None, "bytes=70000-"]
    assert names_in(tmp_path) == {"counts.h5", "counts.h5.sha256"}


def leave_partial_file(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.cut_after = [70_000]
    with monkeypatch.context() as patch:
        patch.setattr(module, "ATTEMPTS", 1)
        with pytest.raises(DownloadError):
            download(site.url, target)


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_changed_remote_file_starts_anew(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeds_if_range: bool
) -> None:
    target = tmp_path / "counts.h5"
    leave_partial_file(site, target, monkeypatch)
    site.content, site.etag, site.heeds_if_range = CONTENT[::-1], '"v2"', heeds_if_range
    download(site.url, target)
    assert target.read_bytes() == CONTENT[::-1]


def test_server_without_ranges_starts_anew(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.ranges = False
    leave_partial_file(site, tmp_path / "counts.h5", monkeypatch)
    download(site.url, tmp_path / "counts.h5")
    assert (tmp_path / "counts.h5").read_bytes() == CONTENT
    assert starts_asked(site) == [None, "bytes=70000-"]


@pytest.mark.parametrize("unknown", [{"etag": None}, {"etag": 'W/"v1"'}])
def test_unidentified_partial_file_is_not_continued(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: dict[str, str | None]
) -> None:
    vars(site).update(unknown)
    leave_partial_file(site, tmp_path / "counts.h5", monkeypatch)
    download(site.url, tmp_path / "counts.h5")
    assert (tmp_path / "counts.h5").read_bytes() == CONTENT
    assert starts_asked(site) == [None, None]


def test_partial_file_of_another_address_is_not_continued(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_partial_file(site, tmp_path / "counts.h5", monkeypatch)
    download(site.url + "?other", tmp_path / "counts.h5")
    assert starts_asked(site) == [None, None]


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_range_beyond_the_end(site: Site, tmp_path: Path, extra: bytes) -> None:
    part = tmp_path / "counts.h5.part"
    part.write_bytes(CONTENT + extra)
    part.with_name("counts.h5.part.validator").write_text(f"{site.url}\n{site.etag}")
    download(site.url, tmp_path / "counts.h5")
    assert (tmp_path / "counts.h5").read_bytes() == CONTENT
    assert len(site.asked) == (2 if extra else 1)


def test_transient_errors_are_tried_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429, 500]
    download(site.url, tmp_path / "counts.h5")
    assert (tmp_path / "counts.h5").read_bytes() == CONTENT


def test_attempts_are_counted_from_the_last_progress(site: Site, tmp_path: Path) -> None:
    site.cut_after = [20_000] * 9
    download(site.url, tmp_path / "counts.h5")
    assert (tmp_path / "counts.h5").read_bytes() == CONTENT
    assert len(site.asked) == 10


def test_lasting_outage_is_reported(site: Site, tmp_path: Path) -> None:
    site.statuses = [503] * 100
    with pytest.raises(DownloadError, match="503 Service Unavailable"):
        download(site.url, tmp_path / "counts.h5")
    assert len(site.asked) == module.ATTEMPTS


@pytest.mark.parametrize("status", [403, 404, 410])
def test_refusal_is_reported_at_once(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(DownloadError) as caught:
        download(site.url, tmp_path / "counts.h5")
    assert f"the server answered {status}" in str(caught.value)
    assert f"put the file at {tmp_path / 'counts.h5'}" in str(caught.value)
    assert len(site.asked) == 1
    assert names_in(tmp_path) == set()


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DownloadError, match="could not be fetched"):
        download("http://127.0.0.1:9/counts.h5", tmp_path / "counts.h5")


@pytest.mark.parametrize("url", ["ftp://example.org/a", "no-address", "http://\0", "https://"])
def test_unusable_address(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    with pytest.raises(DownloadError, match="could not be fetched"):
        download(url, tmp_path / "a")


def test_redirect_is_followed_but_not_to_other_schemes(site: Site, tmp_path: Path) -> None:
    site.location = "ftp://127.0.0.1/counts.h5"
    with pytest.raises(DownloadError):
        download(site.url, tmp_path / "counts.h5")
    site.location = None
    relay = Site(location=site.url)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(relay))
    threading.Thread(target=server.handle_request).start()
    download(f"http://127.0.0.1:{server.server_port}/counts.h5", tmp_path / "counts.h5")
    server.server_close()
    assert (tmp_path / "counts.h5").read_bytes() == CONTENT


def test_https_is_not_redirected_to_http(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    def answer(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"Location": site.url}, request=request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", answer)
    with pytest.raises(DownloadError, match="not an https address"):
        download("https://example.org/counts.h5", tmp_path / "counts.h5")
    assert site.asked == []


def test_compressed_transfer_is_refused(site: Site, tmp_path: Path) -> None:
    site.encoding = "gzip"
    with pytest.raises(DownloadError, match="compressed form"):
        download(site.url, tmp_path / "counts.h5")


def test_wrong_known_checksum_discards_what_arrived(site: Site, tmp_path: Path) -> None:
    wrong, found = "0" * 64, hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DownloadError) as caught:
        download(site.url, tmp_path / "counts.h5", sha256=wrong)
    assert wrong in str(caught.value)
    assert found in str(caught.value)
    assert names_in(tmp_path) <= {"counts.h5.part.validator"}
    download(site.url, tmp_path / "counts.h5", sha256=found.upper())
    assert names_in(tmp_path) == {"counts.h5"}


def test_file_that_changed_since_the_first_download_is_refused(site: Site, tmp_path: Path) -> None:
    target = download(site.url, tmp_path / "counts.h5")
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError) as caught:
        download(site.url, target)
    for part in (
        str(target),
        hashlib.sha256(CONTENT).hexdigest(),
        hashlib.sha256(CONTENT[:-1]).hexdigest(),
        "delete the file",
    ):
        assert part in str(caught.value)
    target.unlink()
    assert download(site.url, target).read_bytes() == CONTENT


def test_record_outlives_the_file_until_deleted(site: Site, tmp_path: Path) -> None:
    target = download(site.url, tmp_path / "counts.h5")
    target.unlink()
    site.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match=r"delete .*counts\.h5\.sha256 to accept"):
        download(site.url, target)
    assert not target.exists()
    (tmp_path / "counts.h5.sha256").unlink()
    assert download(site.url, target).read_bytes() == CONTENT[::-1]


def test_file_put_there_by_hand_is_taken_and_recorded(site: Site, tmp_path: Path) -> None:
    (tmp_path / "counts.h5").write_bytes(b"by hand")
    download(site.url, tmp_path / "counts.h5")
    assert site.asked == []
    assert hashlib.sha256(b"by hand").hexdigest() in (tmp_path / "counts.h5.sha256").read_text()


def test_file_shorter_than_announced_is_never_accepted(site: Site, tmp_path: Path) -> None:
    site.announced_length, site.ranges = len(CONTENT) + 10, False
    site.cut_after = [len(CONTENT)] * 20
    with pytest.raises(DownloadError):
        download(site.url, tmp_path / "counts.h5")
    assert not (tmp_path / "counts.h5").exists()


def test_simultaneous_fetches_make_one_transfer(site: Site, tmp_path: Path) -> None:
    site.cut_after = [50_000, 50_000]
    with ThreadPoolExecutor(8) as pool:
        fetches = [pool.submit(download, site.url, tmp_path / "counts.h5") for _ in range(8)]
    assert {fetch.result().read_bytes() for fetch in fetches} == {CONTENT}
    assert len(site.asked) == 3


def test_full_disk_is_found_out_before_the_transfer(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(DownloadError, match="0 MB free"):
        download(site.url, tmp_path / "counts.h5")


def test_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="TOTALVI_CACHE"):
        download(site.url, tmp_path / "file" / "counts.h5")


def test_no_bar_off_a_terminal(
    site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    download(site.url, tmp_path / "counts.h5", progress=True)
    assert capfd.readouterr() == ("", "")


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOTALVI_CACHE", raising=False)
    assert "totalvi" in cache_folder().parts
    monkeypatch.setenv("TOTALVI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("~/counts") == Path.home() / "counts"


def test_simultaneous_records_of_a_file_that_is_there(tmp_path: Path) -> None:
    target = tmp_path / "counts.h5"
    target.write_bytes(CONTENT)
    record = tmp_path / "counts.h5.sha256"
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            record.unlink(missing_ok=True)
            fetches = [pool.submit(download, "https://unused.invalid", target) for _ in range(8)]
            assert {fetch.result() for fetch in fetches} == {target}
            assert record.read_text().split() == [hashlib.sha256(CONTENT).hexdigest(), target.name]
