"""Errors speak one dialect: each message is a sentence with a period at its end."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import totalvi
from totalvi import errors
from totalvi.cli.main import explain
from totalvi.errors import allowed, argument, naming_options, setting

SRC = Path(totalvi.__file__).parent
OURS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
SHOWN = OURS | {"ValueError", "BadParameter"}
# A ValueError there is a reason, which the same file catches and puts into a sentence.
REASONS = {"model_folder.py", "variable_genes.py"}


def last_text(message: ast.expr) -> str | None:
    """Return the text that a message ends in; None when it ends in a value."""
    if isinstance(message, ast.Constant) and isinstance(message.value, str):
        return message.value
    if isinstance(message, ast.JoinedStr):
        return last_text(message.values[-1])
    if isinstance(message, ast.BinOp):
        return last_text(message.right)
    return None


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node.func.id if isinstance(node.func, ast.Name) else node.func.attr, node


def test_messages_are_sentences() -> None:
    without, n_seen = [], 0
    for path in sorted(SRC.rglob("*.py")):
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            if name not in SHOWN | {"Finding", "warn"} or not call.args:
                continue
            if name == "ValueError" and path.name in REASONS:
                continue
            text = last_text(call.args[2 if name == "Finding" else 0])
            n_seen += text is not None
            if text is not None and not text.endswith((".", "?")):
                without.append(f"{path.name}:{call.lineno}: {name}: {text}")
    assert without == []
    assert n_seen > 300


@pytest.mark.parametrize(
    "error",
    [
        errors.DataError("the counts are not whole; give raw counts."),
        errors.IncompleteError("figures failed; all else is there."),
        MemoryError(),
        MemoryError("Unable to allocate 3 TiB."),
        FileNotFoundError(2, "No such file or directory", "x.h5"),
        OSError("truncated."),
        ValueError("seed is -1; allowed are whole numbers from 0."),
        ValueError("no"),
    ],
)
def test_the_command_line_ends_each_with_one_period(error: Exception) -> None:
    sentence = explain(error)[1]
    assert sentence.endswith(".")
    assert ".." not in sentence
    assert ".)" not in sentence.replace("traceback).", "")


def test_options_are_named_only_while_they_should_be() -> None:
    with naming_options({"rna_layer": "--rna-layer"}):
        assert argument("rna_layer") == "--rna-layer"
        assert argument("adata") == "adata"
        with naming_options({}):
            assert argument("rna_layer") == "rna_layer"
        assert argument("rna_layer") == "--rna-layer"
    with pytest.raises(KeyError), naming_options({"rna_layer": "--rna-layer"}):
        raise KeyError
    assert argument("rna_layer") == "rna_layer"


@pytest.mark.parametrize(
    ("value", "python", "command"),
    [
        ("counts", 'x="counts"', "--x counts"),
        ("raw counts", 'x="raw counts"', "--x 'raw counts'"),
        (True, "x=True", "--x"),
        ((), "x=()", "--x"),
        (3, "x=3", "--x 3"),
        (0, "x=0", "--x 0"),
        (1, "x=1", "--x 1"),
    ],
)
def test_a_setting(value: object, python: str, command: str) -> None:
    assert setting("x", value) == python
    with naming_options({"x": "--x"}):
        assert setting("x", value) == command


def test_what_is_allowed_names_the_option() -> None:
    with naming_options({"n_genes": "--genes"}):
        assert allowed("n_genes", 0, "whole numbers from 1") == (
            "--genes is 0; allowed are whole numbers from 1."
        )
