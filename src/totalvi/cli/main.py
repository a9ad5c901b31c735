"""The `totalvi` command."""

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType, TracebackType
from typing import Annotated, NoReturn

import typer

from totalvi.cli.command_files import check, convert, datasets, info, simulate
from totalvi.cli.command_gate import gate
from totalvi.cli.command_join import join
from totalvi.cli.command_results import de, denoise, explore, impute, map_cells, report
from totalvi.cli.command_run import compare, demo, run, train
from totalvi.cli.extras import missing_extra, require_extras
from totalvi.cli.options import OPTIONS
from totalvi.errors import (
    IncompleteError,
    LostProcessError,
    ProcessError,
    TotalviError,
    naming_options,
)
from totalvi.processes import this_process

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
UNEXPECTED = 1

app = typer.Typer(
    name="totalvi",
    help=(
        "totalVI for CITE-seq: one joint model of RNA and surface proteins.\n\n"
        "\b\n"
        "Examples:\n"
        "  totalvi demo\n"
        "  totalvi check filtered_feature_bc_matrix.h5\n"
        "  totalvi run filtered_feature_bc_matrix.h5 -o results\n"
        "  totalvi explore results\n"
    ),
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(demo)
app.command()(explore)
app.command()(gate)
app.command()(compare)
app.command()(impute)
app.command()(check)
app.command()(join)
app.command()(convert)
app.command()(info)
app.command("map")(map_cells)
app.command()(train)
app.command()(denoise)
app.command()(de)
app.command()(report)
app.command()(simulate)
app.add_typer(datasets, name="datasets")


def main() -> NoReturn:
    """Run the command line of this process."""
    # Idle threads must sleep soon: on a busy machine, busy-waiting slows a fit many times.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    for part in ("distributed", "rank_zero"):  # it reports how processes find each other
        logging.getLogger(f"lightning_fabric.utilities.{part}").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook, sys.excepthook = _report_unraisable, _report_uncaught
    try:
        status = execute(sys.argv[1:])
    except Exception as error:  # under --debug
        traceback.print_exc()
        status = _interruption(error) or explain(error)[0]
    sys.stdout.flush()
    sys.stderr.flush()
    if status and "h5py" in sys.modules and this_process().n_processes == 1:
        os._exit(status)  # files that HDF5 cannot close on a full disk crash Python as it ends
    sys.exit(status)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)  # an exception, so that half-written files are removed


def _report_unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Report an error that nothing can catch, but for files that HDF5 cannot close on a full disk."""
    if "h5py" not in str(found.object):
        sys.__unraisablehook__(found)


def _report_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report an error that nothing caught, with the exception of the same."""
    if trace is None or "h5py" not in trace.tb_frame.f_code.co_filename:
        sys.__excepthook__(kind, error, trace)


def execute(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status.

    0: success; 1: an unexpected failure, a failed step after a fit, or another process of the fit
    ended; 2: the input, an option or the output cannot be used; 130: interrupted; 143: terminated.
    Failures print one line on standard error, unless ``--debug`` is given at any position.
    """
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    quiet = nullcontext() if debug else warnings.catch_warnings(action="ignore")
    try:
        require_extras(rest)
        with quiet, naming_options(OPTIONS):
            command = typer.main.get_command(app)  # calling ``app`` would set a hook for errors
            status = command(rest, prog_name="totalvi", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except SystemExit as leave:
        if leave.code != TERMINATED:
            raise
        status = TERMINATED
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has ended: prevent an error message at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    except Exception as error:
        if debug:
            raise
        status = _interruption(error)
        if not status:
            status, message = explain(error)
            rank = this_process().rank
            if rank > 1 and isinstance(error, ProcessError):
                return status  # one of those that are left says so
            which = f"process {rank}: " if rank else ""
            typer.echo(f"{which}error: {' '.join(message.split())}", err=True)
    if status == INTERRUPTED:  # the option parser silently turns Ctrl-C into this status
        typer.echo("interrupted", err=True)
    if status == TERMINATED:
        typer.echo("terminated", err=True)
    return status


def _interruption(error: BaseException | None) -> int:
    """Return the status of the signal that an error came of, or 0.

    A signal may come while a library imports, which raises another error from it, or while a file that
    is half written is removed, which may fail.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            return TERMINATED
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        seen.add(id(error))
        waiting += [error.__cause__, error.__context__]
    return 0


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit status and the sentence for an exception."""
    if isinstance(error, IncompleteError | LostProcessError):
        return UNEXPECTED, str(error)
    if isinstance(error, TotalviError):
        return BAD_INPUT, str(error)
    if isinstance(error, ModuleNotFoundError) and missing_extra(error.name):
        return BAD_INPUT, str(missing_extra(error.name))
    if isinstance(error, MemoryError):
        asked = " ".join(str(error).split()).rstrip(".") or "more than there is"
        return (
            BAD_INPUT,
            f"there is not enough memory ({asked}); ask for less, or use a larger machine.",
        )
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return BAD_INPUT, f"{place}{error.strerror or error}".rstrip(".") + "."
    if hasattr(error, "format_message"):  # of the option parser, which exports no base class
        return BAD_INPUT, f"{error.format_message().rstrip('.')} (see --help)."
    return UNEXPECTED, (
        f"unexpected {type(error).__name__}: {str(error).rstrip('.')} (run it again with --debug for "
        "the traceback)."
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"totalvi {version('totalvi')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and warnings of libraries.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
