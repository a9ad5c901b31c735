"""The explorer's server, on this machine only, for users who have its address."""

import asyncio
import errno
import hmac
import os
import secrets
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bokeh.application import Application as BokehApplication
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.settings import settings
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.routing import Router
from tornado.web import Application, ErrorHandler, OutputTransform

from totalvi.explorer.app import Explorer
from totalvi.explorer.workspace import Workspace

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
    """Passes only allowed requests to an application, and refuses the others with status 403.

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
    """Return whether a request has the token, a host of this machine, and no foreign origin."""
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
    """Adds headers to every response that restrict the browser."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Return the answer's first part, with the headers."""
        for name, value in HEADERS.items():
            headers[name] = value
        return super().transform_first_chunk(status_code, headers, chunk, finishing)


ADDRESS = "127.0.0.1"
PORT = 5006  # the next free one where it is taken
_PORTS_TRIED = 20
_LARGEST_MESSAGE_BYTES = 25_000_000  # holds a file of gates


class ExplorerServer:
    """A server of one page, which runs until it is interrupted.

    Parameters
    ----------
    fill
        Puts the page's content into an empty document; called for every visit.
    port
        To listen on; None: 5006, or the next that is free. 0: any.

    Attributes
    ----------
    url
        Address of the page, with the token that is needed to see it.
    """

    def __init__(self, fill: Callable[[Document], None], port: int | None = None) -> None:
        # An environment variable could have the browser fetch Bokeh's files from elsewhere.
        settings.resources = "server"
        sockets = _listen(port)
        self._token = secrets.token_urlsafe(24)
        self.port: int = sockets[0].getsockname()[1]
        self.url = f"http://{ADDRESS}:{self.port}/{self._token}/"
        self.loop = IOLoop.current()
        application = BokehTornado(
            {"/": BokehApplication(FunctionHandler(fill, trap_exceptions=False))},
            prefix=f"/{self._token}",
            # Guard has seen to it that a page comes from the host that it asks, whose port may be
            # that of an SSH tunnel.
            extra_websocket_origins=["127.0.0.1:*", "localhost:*"],
            secret_key=secrets.token_bytes(32),
            sign_sessions=True,
            use_index=False,
            redirect_root=False,
            websocket_max_message_size_bytes=_LARGEST_MESSAGE_BYTES,
        )
        http = HTTPServer(Guard(application, self._token))
        http.add_sockets(sockets)
        self._server = BaseServer(self.loop, application, http)

    def run(self) -> None:
        """Answer until interrupted (Ctrl-C), and stop."""
        self._server.start()
        try:
            self.loop.start()
        except (KeyboardInterrupt, asyncio.CancelledError):
            pass
        finally:
            self._server.stop()

    def stop(self) -> None:
        """Make `run` return; may be called from any thread."""
        self.loop.add_callback(self.loop.stop)


def _listen(port: int | None) -> list[socket.socket]:
    """Listen on the port, or with None on the first that is free."""
    wanted = [port] if port is not None else [*range(PORT, PORT + _PORTS_TRIED), 0]
    for number in wanted:
        try:
            return bind_sockets(number, ADDRESS)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or number == wanted[-1]:
                raise
    raise AssertionError("the last port is tried or raises")


_PREFIX = ".explore."
_REDIRECT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>totalvi explorer</title>
</head>
<body><a href="{url}">Open the explorer</a></body>
</html>
"""


@contextmanager
def open_in_browser(url: str, folder: Path) -> Iterator[None]:
    """Open ``url`` in the browser while the block runs, without showing it to other users.

    All users of the machine can read the command line of a browser. The browser therefore gets the
    name of a file that redirects to
    ``url`` and that only the user can read. The file is in ``folder``, if that can be written to,
    because a browser in a sandbox may not see the system's temporary folder.
    """
    place = folder if os.access(folder, os.W_OK) else None
    handle, name = tempfile.mkstemp(".html", _PREFIX, place)  # with mode 0600
    file = Path(name).absolute()
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as page:
            page.write(_REDIRECT.format(url=url))
        webbrowser.open(file.as_uri())
        yield
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def serving(workspace: Workspace, port: int | None = None) -> Iterator[ExplorerServer]:
    """Give a server of the explorer, whose `run` serves until it is interrupted."""
    server = ExplorerServer(lambda document: _fill(document, workspace), port)
    # An error here occurs again at the first comparison, which shows it on the page.
    workspace.executor.submit(workspace.comparer.warm_up)
    try:
        yield server
    finally:
        workspace.executor.shutdown(wait=False, cancel_futures=True)


def _fill(document: Document, workspace: Workspace) -> None:
    Explorer(document, workspace)
