"""The page of all commands, made from what `totalvi COMMAND --help` says."""

import re
from textwrap import dedent
from typing import Any

import typer

from totalvi.cli.main import app


def commands_page() -> str:
    """Return the page in Markdown: for each command its text, examples, arguments and options."""
    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="totalvi")
    parts = [
        "# Commands",
        "`totalvi COMMAND --help` prints the same in a terminal. Every command ends with status 0 when "
        "it is done, 1 when it fails, and 2 when its input or options are wrong.",
    ]
    for name, command in group.commands.items():
        parts += _section(f"totalvi {name}", command, context)
    return "\n\n".join(parts) + "\n"


def _section(name: str, command: Any, parent: Any) -> list[str]:
    """Return the texts about a command, and about those below it."""
    context = command.context_class(command, info_name=name, parent=parent)
    said, *examples = re.split(r"^Examples?:$", _unindented(command), flags=re.MULTILINE)
    parts = [f"## {name}", said.strip()]
    parts += [f"```sh\n{dedent(lines).strip()}\n```" for lines in examples]
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in record[0]:
            name_of, meaning = (" ".join(text.split()) for text in record)
            meaning = meaning.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
            rows.append(f"| `{name_of}` | {meaning} |")
    rows.sort(key=lambda row: row.startswith("| `-"))  # arguments before options
    for below, other in getattr(command, "commands", {}).items():
        parts += _section(f"{name} {below}", other, context)
    return [*parts, "| option | meaning |\n|---|---|\n" + "\n".join(rows)] if rows else parts


def _unindented(command: Any) -> str:
    return dedent(command.help or "").replace("\b", "")
