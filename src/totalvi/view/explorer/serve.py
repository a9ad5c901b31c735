"""Serving a run's folder."""

from collections.abc import Iterator
from contextlib import contextmanager

from bokeh.document import Document

from totalvi.view.explorer.app import Explorer
from totalvi.view.explorer.server import ExplorerServer
from totalvi.view.explorer.workspace import Workspace


@contextmanager
def serving(workspace: Workspace, port: int | None = None) -> Iterator[ExplorerServer]:
    """Give a server of the explorer, whose `run` serves until it is interrupted."""
    server = ExplorerServer(lambda document: _fill(document, workspace), port)
    # What fails here fails at the first comparison again, which says so on the page.
    workspace.executor.submit(workspace.comparer.warm_up)
    try:
        yield server
    finally:
        workspace.executor.shutdown(wait=False, cancel_futures=True)


def _fill(document: Document, workspace: Workspace) -> None:
    Explorer(document, workspace)
