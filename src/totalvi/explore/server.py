"""The explorer's server: on this machine only, for who has its address."""

import asyncio
import errno
import secrets
import socket
from collections.abc import Callable

from bokeh.application import Application as BokehApplication
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.settings import settings
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets

from totalvi.explore.guard import Guard

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
