"""Messages name options on the command line where Python's name arguments."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import typer
from anndata import AnnData

import totalvi
from totalvi.cli.main import app, execute
from totalvi.cli.options import OPTIONS
from totalvi.data.check_counts import protein_value_findings, rna_findings, tally_counts
from totalvi.data.columns import Columns, column, no_column
from totalvi.data.find import CountSource, find_counts
from totalvi.data.io.features import join_genomes, pick_genomes
from totalvi.errors import Finding, TotalviError, argument, naming_options, setting
from totalvi.run.folder import _forget, require_writable
from totalvi.run.record import incomplete_error
from totalvi.run.run import run

SRC = Path(totalvi.__file__).parent
# Functions whose first parameter is the name of an argument, which their message tells.
NAMING = {"argument", "setting", "allowed", "column", "no_column"}
COMMANDS = typer.main.get_command(app).commands


def with_a_fraction(*layers: str) -> CountSource:
    """Return counts with a fraction, beside which there are these layers."""
    values = np.tile(np.arange(6, dtype=np.float32), (20, 1))
    values[0, 1] = 0.5
    cells = AnnData(values, layers=dict.fromkeys(layers, values))
    cells.obsm["protein_counts"] = values[:, :2].copy()
    return find_counts(cells, Columns(protein_expression_obsm_key="protein_counts"))


def fractions(findings: Callable[..., Iterable[Finding]], source: CountSource) -> str:
    tally = tally_counts(source, np.zeros(20, dtype=np.intp), 1)
    return next(iter(findings(source, tally, allow_fractional=False))).message


def raised(function: Callable[..., object], *arguments: object, **named: object) -> str:
    with pytest.raises(TotalviError) as caught:
        function(*arguments, **named)
    return str(caught.value)


def a_genome_with_a_repeated_barcode() -> str:
    part = AnnData(np.ones((2, 3), dtype=np.float32))
    part.obs_names = ["cell", "cell"]
    return raised(join_genomes, {"hg19": part, "mm10": part}, Path("x.h5"))


def a_folder_in_use() -> str:
    return raised(require_writable, Path(totalvi.__file__).parent)


def a_checkpoint_in_use() -> str:
    return raised(_forget, Path(totalvi.__file__), overwrite=False)


def a_step_that_failed() -> str:
    return str(incomplete_error(Path("out"), {"figures": ValueError("no")}, repeatable=False))


@pytest.mark.parametrize(
    ("message", "python", "command"),
    [
        (
            lambda: fractions(rna_findings, with_a_fraction()),
            "accept fractions on purpose with allow_fractional=True.",
            "accept fractions on purpose with --allow-fractional.",
        ),
        (
            lambda: no_column("batch_key", "bacth", []),
            'batch_key: no column "bacth" in obs',
            '--batch: no column "bacth" in obs',
        ),
        (lambda: f"name it with {argument('panel_key')}.", "with panel_key.", "with --panel."),
        (
            lambda: fractions(rna_findings, with_a_fraction()),
            'as in rna_layer="counts"',
            "as in --rna-layer counts",
        ),
        (
            lambda: fractions(rna_findings, with_a_fraction("raw")),
            'likely with rna_layer="raw"',
            "likely with --rna-layer raw",
        ),
        (
            lambda: fractions(protein_value_findings, with_a_fraction()),
            "the raw counts with protein_expression_obsm_key",
            "the raw counts with --protein-obsm",
        ),
        (
            lambda: f"or {setting('cells_in', 'columns')}",
            'or cells_in="columns"',
            "or --cells-in columns",
        ),
        (
            a_genome_with_a_repeated_barcode,
            "read one of them with genome.",
            "read one of them with --genome.",
        ),
        (
            lambda: raised(pick_genomes, {"hg19": 1}, "hg38", Path("x.h5")),
            "give another as genome (",
            "give another as --genome (",
        ),
        (a_folder_in_use, "replace it with overwrite=True.", "replace it with --overwrite."),
        (a_checkpoint_in_use, "go on with resume=True, or", "go on with --resume, or"),
        (a_step_that_failed, "the same call with resume=True", "the same call with --resume"),
        (
            lambda: f"keep them with {setting('isotype_controls', ())}",
            "with isotype_controls=()",
            "with --keep-isotypes",
        ),
        (lambda: column("batch_key", "labels_key"), 'obs["labels_key"]', 'obs["labels_key"]'),
        (
            lambda: raised(totalvi.read, "/data/rna_layer/protein_path.h5"),
            "/data/rna_layer/protein_path.h5 does",
            "/data/rna_layer/protein_path.h5 does",
        ),
    ],
)
def test_a_message_reads_right_from_python_and_on_the_command_line(
    message: Callable[[], str], python: str, command: str
) -> None:
    assert python in message()
    with naming_options(OPTIONS):
        assert command in message()
    assert python in message()


def test_a_command_says_its_options_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cells.h5mu"
    totalvi.simulate(n_cells=30, n_genes=20, n_proteins=3, seed=1).write(path)
    assert execute(["check", str(path), "--batch", "bacth"]) == 2
    assert '--batch: no column "bacth" in obs; did you mean' in capsys.readouterr().out
    assert execute(["check", str(path), "--rna-modality", "gex"]) == 2
    assert "name the modality that holds the RNA with --rna-modality (" in capsys.readouterr().out
    with pytest.raises(TotalviError, match="the RNA with rna_modality "):
        find_counts(totalvi.read(path), Columns(rna_modality="gex"))


def test_the_options_exist() -> None:
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    known |= {
        parameter.metavar for parameter in parameters if parameter.param_type_name == "argument"
    }
    assert set(OPTIONS.values()) - known == set()


def test_no_argument_of_a_run_is_left_out() -> None:
    named = [name for name in inspect.signature(run).parameters if "_" in name]
    named.remove("drop_empty_cells")  # no message names it
    assert set(named) <= set(OPTIONS)


def public_arguments() -> set[str]:
    """Return the arguments of all public functions and methods of the package."""
    public = [getattr(totalvi, name) for name in totalvi.__all__]
    methods = [
        method
        for one in public
        if inspect.isclass(one)
        for name, method in inspect.getmembers(one, callable)
        if not name.startswith("_")
    ]
    found: set[str] = set()
    for function in [*public, *methods, run]:
        if callable(function) and function not in (type, object):
            try:
                found |= set(inspect.signature(function).parameters)
            except ValueError:  # of a built-in that has none
                continue
    return found


def test_messages_name_real_arguments_when_they_are_made() -> None:
    known = public_arguments() | set(OPTIONS)
    unknown, too_early, n_named = [], [], 0
    for path in SRC.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for statement in function.body
            for node in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in NAMING:
                continue
            place = f"{path.name}:{node.lineno}"
            if id(node) not in inside:
                too_early.append(place)
            first = node.args[0]
            if isinstance(first, ast.Constant):
                n_named += 1
                if first.value not in known:
                    unknown.append(f"{place}: {first.value}")
    assert unknown == []
    assert too_early == []
    assert n_named > 50


def test_no_message_names_an_option_in_code_that_python_calls() -> None:
    option = re.compile(r"(?<![\w-])--[a-z][\w-]+")
    found = []
    for path in SRC.rglob("*.py"):
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                text = "".join(
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                outside = re.sub(r"`[^`]*`", "", text)  # a command, whose options are its own
                found += [f"{path.name}:{node.lineno}: {name}" for name in option.findall(outside)]
    assert found == []
