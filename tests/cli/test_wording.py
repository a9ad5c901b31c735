"""Messages name options where Python's name arguments."""

import inspect
import re

import pytest
import typer

from totalvi.cli.main import app
from totalvi.cli.options import OPTIONS, with_options
from totalvi.run.run import run


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("accept them with allow_fractional=True", "accept them with --allow-fractional"),
        ('batch_key: no column "bacth" in obs', '--batch: no column "bacth" in obs'),
        ("name it with panel_key.", "name it with --panel."),
        ('as in rna_layer="counts"', 'as in --rna-layer "counts"'),
        ('or cells_in="columns"', 'or --cells-in "columns"'),
        ("read one of them by genome=", "read one of them with --genome"),
        ("the genome of a gene, hashtags and controls", None),
        ('obs["batch_key"] in /data/rna_layer/protein_path.h5 has n_genes_by_counts', None),
    ],
)
def test_arguments_become_options(python: str, command: str | None) -> None:
    assert with_options(python) == (python if command is None else command)


def test_the_options_exist() -> None:
    known = {
        option
        for command in typer.main.get_command(app).commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    assert {re.search(r"--[\w-]+", text)[0] for text in OPTIONS.values()} <= known


def test_no_argument_of_a_run_is_left_out() -> None:
    named = [name for name in inspect.signature(run).parameters if "_" in name]
    named.remove("drop_empty_cells")  # no message names it
    named.remove("isotype_controls")  # messages say isotype_controls=()
    assert set(named) <= set(OPTIONS)
