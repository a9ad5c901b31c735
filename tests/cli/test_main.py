"""The command itself: help, version, exit statuses, and what is printed where."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from totalvi.cli import main
from totalvi.cli.main import execute
from totalvi.data.io import read as reading
from totalvi.data.simulate import simulate
from totalvi.errors import DataError, LostProcessError

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

COMMANDS = ("run", "demo", "check", "convert", "info", "simulate", "datasets")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from totalvi.cli.main import execute\n"
        f"for command in {('', *COMMANDS)!r}:\n"
        "    assert execute([*filter(None, [command]), '--help']) == 0\n"
        "heavy = {'torch', 'scanpy', 'anndata', 'pandas', 'numpy', 'matplotlib', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "totalvi demo" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["report.build", "explorer.app"])
def test_pages_do_not_wait_for_torch(module: str) -> None:
    code = f"import sys, totalvi.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = [command, "fetch"] if command == "datasets" else [command]
    assert execute([*name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Example" in printed
    assert f"totalvi {command}" in printed
    assert "\x1b" not in printed


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([]) == 0
    bare = capsys.readouterr().out
    assert execute(["--help"]) == 0
    assert bare == capsys.readouterr().out
    assert all(command in bare for command in COMMANDS)


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from totalvi import __version__

    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"totalvi {__version__}\n"


@pytest.mark.parametrize("arguments", [["--debug", "check", "x.h5"], ["check", "x.h5", "--debug"]])
def test_debug_anywhere_lets_errors_through(arguments: list[str]) -> None:
    with pytest.raises(DataError):
        execute(arguments)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("two\nlines"), 2, "error: two lines"),
        (PermissionError(13, "Permission denied", "a.h5"), 2, "error: a.h5: Permission denied"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (LostProcessError("Another process ended."), 1, "error: Another process ended."),
        (RuntimeError("boo"), 1, "error: unexpected RuntimeError: boo (run it again with --debug"),
    ],
)
def test_failures_are_one_line(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("totalvi.run.inputs.read", fail)
    assert execute(["check", "x.h5"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(line)


@pytest.mark.parametrize(
    ("signalled", "status", "line"),
    [(SystemExit(143), 143, "terminated\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
@pytest.mark.parametrize("is_cause", [True, False])
def test_an_error_that_came_of_a_signal_is_the_signal(
    signalled: BaseException,
    status: int,
    line: str,
    is_cause: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """As where it came while a library imported, or while half a folder was removed."""

    def fail(*_: object, **__: object) -> None:
        try:
            raise signalled
        except BaseException as error:
            if is_cause:
                raise RuntimeError("Error calling __set_name__") from error
            shutil.rmtree(tmp_path / "nothing")

    monkeypatch.setattr("totalvi.run.inputs.read", fail)
    assert execute(["check", "x.h5"]) == status
    assert capsys.readouterr().err == line


def test_warnings_of_libraries_are_shown_only_for_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import warnings

    simulate(n_cells=50, n_genes=20, n_proteins=4).write(tmp_path / "a.h5mu")
    real = reading.read

    def read(*given: object, **options: object) -> object:
        warnings.warn("old format", FutureWarning, stacklevel=1)
        return real(*given, **options)

    monkeypatch.setattr("totalvi.run.inputs.read", read)
    assert execute(["check", str(tmp_path / "a.h5mu")]) == 0
    assert capsys.readouterr().err == ""
    with pytest.warns(FutureWarning, match="old format"):
        execute(["check", str(tmp_path / "a.h5mu"), "--debug"])


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m totalvi datasets list | true", shell=True, capture_output=True
    )
    assert done.stderr == b""


def test_debug_shows_the_traceback_and_keeps_the_status() -> None:
    command = [sys.executable, "-m", "totalvi", "check", "nothing.h5", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == main.BAD_INPUT
    assert "Traceback" in done.stderr
    assert "nothing.h5" in done.stderr.splitlines()[-1]


def test_causes_in_a_circle_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__context__ = other, one
    assert main._interruption(one) == 0
    one.__context__ = KeyboardInterrupt()
    assert main._interruption(one) == main.INTERRUPTED


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_terminated_command_leaves_nothing(tmp_path: Path) -> None:
    command = ["simulate", "-o", str(tmp_path / "a.h5mu"), "--cells", "400000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "totalvi", *command], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (main.TERMINATED, "terminated\n")
    assert list(tmp_path.iterdir()) == []
