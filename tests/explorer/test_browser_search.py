"""What the fields that search find, typed on the keyboard as people do."""

from collections.abc import Iterator

import mudata
import numpy as np
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from explorer.mouse import BETWEEN_CLICKS_MS, NAMED, NEEDS_BROWSER, VALUE, explored, type_in

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's client")
pytestmark = NEEDS_BROWSER
PROTEINS = (
    "CD45RA",
    "CD40",
    "CD279",
    "CD8b",
    "CD86",
    "CD8a",
    "CD27",
    "CD4",
    "CD3-2",
    "IgG1 control",
)
GENES = ("MS4A14", "MS4A1", "MS4A2", "CD4", "CD40LG")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rng = np.random.default_rng(0)
    protein = AnnData(rng.poisson(9, (80, len(PROTEINS))).astype(np.float32))
    protein.var_names = [f"{name}_TotalSeqB" for name in PROTEINS]
    rna = AnnData(sparse.csr_matrix(rng.poisson(1, (80, len(GENES))).astype(np.float32)))
    rna.var_names = list(GENES)
    path = tmp_path_factory.mktemp("searched") / "counts.h5mu"
    with mudata.set_options(pull_on_update=False):
        MuData({"rna": rna, "prot": protein}).write(path)
    with explored(path) as address:
        yield address


TYPED = {
    "CD4": "CD4",  # not CD45RA, which stands before it
    "cd27": "CD27",
    "MS4A1": "MS4A1 (gene)",
    "MS4A": "MS4A1 (gene)",  # the shortest that begins so
    "CD4 gene": "CD4 (gene)",
    "CD4_TotalSeqB": "CD4",
    "PD-1": "CD279",
    "pd1": "CD279",
    "PDCD1": "CD279",
    "CD8": "CD8a",
    "45RA": "CD45RA",
}


ANSWERED = {  # what the server shows of the value: a field is drawn again when its answer comes
    "x_1": f"{NAMED}('plot_1').below[0].axis_label.text === "
    "value.replace(' (gene)', ', gene') + ', raw counts'",
    "color": f"{NAMED}('legend').text === `Coloured by ${{value}}.`",
}


def test_enter_takes_the_nearest_name(page: "playwright.Page") -> None:
    found: dict[str, dict[str, str]] = {"x_1": {}, "color": {}}
    for field, values in found.items():
        for typed in TYPED:
            type_in(page, field, typed)
            values[typed] = page.evaluate(VALUE, field)
            page.wait_for_function(f"(value) => {ANSWERED[field]}", arg=values[typed])
            page.wait_for_timeout(BETWEEN_CLICKS_MS)
    assert found["x_1"] == TYPED
    assert found["color"] == {
        typed: label.replace("(gene)", "(gene, raw counts)")
        if "(gene)" in label
        else f"{label} (protein, raw counts)"
        for typed, label in TYPED.items()
    }


def test_what_is_marked_is_what_enter_takes(page: "playwright.Page") -> None:
    type_in(page, "x_1", "CD", keys=("ArrowDown", "ArrowDown", "4", "Enter"))
    assert page.evaluate(VALUE, "x_1") == "CD4"
    type_in(page, "x_1", "CD8", keys=("ArrowDown", "Enter"))
    assert page.evaluate(VALUE, "x_1") == "CD8b"  # after CD8a, as in the data


def test_a_name_that_is_nothing_changes_nothing(page: "playwright.Page") -> None:
    before = page.evaluate(VALUE, "y_1")
    type_in(page, "y_1", "CD999")
    page.wait_for_timeout(BETWEEN_CLICKS_MS)
    assert page.evaluate(VALUE, "y_1") == before
