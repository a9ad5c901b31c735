"""Only a browser on this machine that knows the token is let in."""

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from totalvi.explorer.server import is_allowed


class _Connection:
    """What a request needs to know of where it came from."""

    context = None

    def set_close_callback(self, _: object) -> None: ...


def request(path: str, *headers: tuple[str, str]) -> HTTPServerRequest:
    given = HTTPHeaders()
    for name, value in headers:
        given.add(name, value)
    line = RequestStartLine("GET", path, "HTTP/1.1")
    return HTTPServerRequest(connection=_Connection(), start_line=line, headers=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1:5006", "localhost:5006", "localhost", "[::1]:80"])
@pytest.mark.parametrize("path", ["/token/", "/token/ws", "/token/static/js/bokeh.min.js"])
def test_this_machine_is_let_in(host: str, path: str) -> None:
    assert is_allowed(request(path, ("Host", host)), "token")
    assert is_allowed(request(path, ("Host", host), ("Origin", f"http://{host}")), "token")


@pytest.mark.parametrize(
    "path", ["/", "/ws", "/toke", "/tokens/", "/other/ws", "//token/", "/TOKEN/", "/%74oken/"]
)
def test_a_wrong_or_missing_token_is_refused(path: str) -> None:
    assert not is_allowed(request(path, ("Host", "127.0.0.1:5006")), "token")


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["evil.example"],
        ["evil.example:5006"],
        ["127.0.0.1.evil.example"],
        ["localhost.evil.example:5006"],
        ["127.0.0.1:5006", "evil.example"],
        ["127.0.0.1@evil.example"],
        ["evil@127.0.0.1"],
        ["127.0.0.1/evil"],
        ["127.0.0.1:port"],
        [""],
    ],
)
def test_foreign_hosts_are_refused(hosts: list[str]) -> None:
    # HTTPServerRequest itself wants a Host, which the Guard must not take for granted
    asked = request("/token/", ("Host", "127.0.0.1"))
    asked.headers = HTTPHeaders()
    for host in hosts:
        asked.headers.add("Host", host)
    assert not is_allowed(asked, "token")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1:5006",
        "http://127.0.0.1:8888",
        "null",
        "",
        "file://",
    ],
)
def test_foreign_origins_are_refused(origin: str) -> None:
    asked = request("/token/ws", ("Host", "127.0.0.1:5006"), ("Origin", origin))
    assert not is_allowed(asked, "token")


def test_the_socket_is_on_loopback_and_a_busy_port_is_left() -> None:
    from totalvi.explorer.server import PORT, _listen

    first, second = _listen(None), _listen(None)
    try:
        ports = {sock.getsockname()[1] for sock in (*first, *second)}
        assert len(ports) == 2
        assert all(sock.getsockname()[0] == "127.0.0.1" for sock in (*first, *second))
        assert min(ports) >= PORT or 0 not in ports
        with pytest.raises(OSError, match="in use"):
            _listen(first[0].getsockname()[1])
    finally:
        for sock in (*first, *second):
            sock.close()
