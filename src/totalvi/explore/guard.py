"""Who may talk to the explorer: a browser on this machine that knows the token.

Any page that a browser shows may send requests to this machine, and a name server may claim that its
name is 127.0.0.1 ("DNS rebinding"). So every request, the websocket's included, must have the token in
its path, name this machine as its host, and come from the same origin if it says from which.
"""

import hmac
from typing import Any
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router
from tornado.web import Application, ErrorHandler, OutputTransform

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    # Bokeh makes functions of texts, and its page has scripts and styles in it. Nothing may come from,
    # or go to, another server.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' ws://127.0.0.1:* ws://localhost:*; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard(Router):
    """Hands on to an application only what may come, and refuses the rest with status 403.

    Parameters
    ----------
    application
        All of its paths start with the token.
    token
        First part of the path.
    """

    def __init__(self, application: Application, token: str) -> None:
        self._application = application
        self._token = token
        self._refusing = Application(
            [(r".*", ErrorHandler, {"status_code": 403})], log_function=lambda _: None
        )
        for answering in (application, self._refusing):
            answering.add_transform(SafeHeaders)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:
        """Return who answers a request."""
        answering = self._application if is_allowed(request, self._token) else self._refusing
        return answering.find_handler(request, **kwargs)


def is_allowed(request: HTTPServerRequest, token: str) -> bool:
    """Say whether a request has the token, a host of this machine, and no foreign origin."""
    hosts = request.headers.get_list("Host")
    origins = request.headers.get_list("Origin")
    if len(hosts) != 1 or _name_of(hosts[0]) not in LOOPBACK_NAMES:
        return False
    if origins and [origin.lower() for origin in origins] != [f"http://{hosts[0].lower()}"]:
        return False
    given = request.path.split("/")[1] if request.path.startswith("/") else ""
    return hmac.compare_digest(given.encode(), token.encode())


def _name_of(host: str) -> str | None:
    """Return the host of "host:port"; None where it is anything else."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    plain = parts.username is None and not (parts.path or parts.query or parts.fragment)
    return parts.hostname if plain else None


class SafeHeaders(OutputTransform):
    """Adds to every answer what a browser must not do with it."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Return the answer's first part, with the headers."""
        for name, value in HEADERS.items():
            headers[name] = value
        return super().transform_first_chunk(status_code, headers, chunk, finishing)
