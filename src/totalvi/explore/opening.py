"""Opening the page in a browser without telling its address to all who see the list of processes."""

import os
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Have the browser show ``url``, which only the user may read, until the block ends.

    A browser is told what to show on its command line, which everybody on the machine can read. So it
    gets the name of a file that only the user can, and that sends it on. The file is in ``folder``,
    where a browser in a sandbox is more likely to see it than in the system's temporary folder, if it
    can be written there.
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
