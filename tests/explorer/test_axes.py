"""What people may choose for axes, tidy names, and the pairs to start with, also on real panels."""

import numpy as np
import pytest

from totalvi.errors import DataError
from totalvi.explorer.axes import KINDS, Axis, AxisChoices, start_pairs, tidy_names

TOTALSEQ = ["CD3_TotalSeqB", "CD19_TotalSeqB", "CD4_TotalSeqB", "CD8a_TotalSeqB",
            "CD14_TotalSeqB", "CD16_TotalSeqB", "CD56_TotalSeqB", "IgG1_control_TotalSeqB"]  # fmt: skip


def choices(kinds: tuple = KINDS) -> AxisChoices:
    return AxisChoices(TOTALSEQ, ["CD4", "MS4A1"], ["n_counts"], kinds, True)


def test_every_choice_is_an_axis_and_back() -> None:
    offered = choices()
    assert offered.labels[:4] == ["UMAP 1", "UMAP 2", "CD3", "CD19"]
    for label in offered.labels:
        for values in offered.values:
            axis = offered.axis(label, values, "asinh")
            assert offered.label(axis) == label
    assert offered.full_name("CD4") == "CD4_TotalSeqB"
    assert offered.full_name("CD4 (gene)") == ""
    assert offered.title(Axis("gene_raw", "CD4")) == "CD4, gene, raw counts"
    with pytest.raises(DataError, match="choose from the list"):
        offered.axis("CD99", "denoised", "asinh")


def test_controls_have_raw_counts_alone() -> None:
    names = ["IgG1", "IgG2a isotype control", "CD3 control"]
    offered = AxisChoices(["CD3 control"], [], [], KINDS, False, names)
    labels = ["IgG1 (isotype control)", "IgG2a isotype control", "CD3 control (isotype control)"]
    assert offered.labels[1:] == labels
    titles = []
    for label, name in zip(labels, names, strict=True):
        axis = offered.axis(label, "denoised", "asinh")
        assert axis == Axis("isotype_raw", name, "asinh")
        assert offered.label(axis) == label
        titles.append(offered.title(axis))
    assert titles[:2] == ["IgG1, isotype control, raw counts", "IgG2a isotype control, raw counts"]


def test_a_protein_is_found_under_all_its_names() -> None:
    found = AxisChoices(["PD-1_TotalSeqB", "CD8_TotalSeqB"], ["CD4"], [], KINDS, True).others
    assert set(found) == {"CD279", "CD8a"}
    assert {"PD-1_TotalSeqB", "PD-1", "PDCD1"} < set(found["CD279"])
    assert "CD8" in found["CD8a"]


def test_what_is_no_count_lies_on_a_linear_axis() -> None:
    offered = choices()
    assert offered.axis("CD4", "foreground", "asinh").scale == "linear"
    assert offered.axis("CD4", "CLR / log", "log").scale == "linear"
    assert offered.axis("UMAP 1", "denoised", "asinh").scale == "linear"
    assert offered.axis("n_counts (annotation)", "denoised", "asinh").scale == "linear"
    assert offered.axis("MS4A1 (gene)", "raw counts", "asinh").scale == "log"
    raw = choices(("protein_raw", "gene_raw"))
    assert raw.values == ["raw counts"]
    no_genes = choices(("protein_denoised", "protein_raw", "gene_raw"))
    assert no_genes.axis("CD4 (gene)", "denoised", "log").kind == "gene_raw"


def test_names_stay_apart() -> None:
    names = ["CD3-1", "CD3-2", "CD4", "CD4_TotalSeqB", "protein_1", "HLA-DR_TotalSeqB"]
    tidy = tidy_names(names)
    assert len(set(tidy.values())) == len(names)
    assert tidy["protein_1"] == "protein_1"
    assert tidy["CD4_TotalSeqB"] == "CD4_TotalSeqB"
    assert tidy["HLA-DR_TotalSeqB"] == "HLA-DR"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (TOTALSEQ, [("CD3", "CD19"), ("CD4", "CD8a"), ("CD14", "CD16"), ("CD56", "CD3")]),
        (["ADT_B220", "ADT_CD3e", "ADT_CD4", "ADT_CD8a", "ADT_Ly6G", "ADT_CD11b"],
         [("CD3e", "B220"), ("CD4", "CD8a"), ("CD11b", "Ly6G")]),
        (["IgG", "MUC1", "PD-L1", "EpCAM"], [("EpCAM", "MUC1")]),
    ],
)  # fmt: skip
def test_lineages_are_shown_first(names: list[str], expected: list[tuple[str, str]]) -> None:
    spread = np.array([0.1, 1.0, 0.5, 2.0, *np.zeros(20)])[: len(names)]
    found = start_pairs(names, spread)
    bare = [
        tuple(name.removesuffix("_TotalSeqB").removeprefix("ADT_") for name in pair)
        for pair in found
    ]
    assert bare == expected
