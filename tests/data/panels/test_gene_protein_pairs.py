"""Antibodies find their genes under any common spelling, and only these."""

import re

import pytest

from totalvi.data.panels.antibody_names import GENES_OF_ANTIGEN, identify, matched_pairs

GENES = sorted({gene for genes in GENES_OF_ANTIGEN.values() for gene in genes})


@pytest.mark.parametrize(
    ("protein", "genes"),
    [
        ("CD4_TotalSeqB", ["CD4"]),
        ("CD8a_TotalSeqB", ["CD8A"]),
        ("CD3", ["CD3E", "CD3D", "CD3G"]),
        ("CD3 (UCHT1)", ["CD3E", "CD3D", "CD3G"]),
        ("CD3_UCHT1", ["CD3E", "CD3D", "CD3G"]),
        ("CD14_TotalSeqB", ["CD14", "LYZ"]),
        ("CD19_TotalSeqB", ["CD19", "CD79A"]),
        ("ADT_CD56", ["NCAM1"]),
        ("anti-human CD16", ["FCGR3A"]),
        ("PD-1_TotalSeqB", ["PDCD1"]),
        ("PD1 (CD279)", ["PDCD1"]),
        ("IL7Ralpha (CD127)", ["IL7R"]),
        ("CD223 (lag3)", ["LAG3"]),
        ("MHCII (HLA-DR)", ["HLA-DRA"]),
        ("HLA-DR", ["HLA-DRA"]),
        ("B7-H1 (PD-L1)", ["CD274"]),
        ("cd25", ["IL2RA"]),
        ("CD8", ["CD8A"]),  # its usual clones bind the alpha chain
        ("CD279:EH12.1|PDCD1|AHS0014|pAbO", ["PDCD1"]),
        ("CD3 (CD4)", []),  # two targets: which one is not ours to say
        ("CD45RA_TotalSeqB", []),
        ("CD45RO", []),
        ("CD15_TotalSeqB", []),
        ("IgG1_control_TotalSeqB", []),
        ("IgG2a", []),
        ("HLA-A,B,C", []),
        ("CD158e1", []),
        ("CD40L", []),
        ("", []),
    ],
)
def test_genes_of_an_antibody(protein: str, genes: list[str]) -> None:
    assert matched_pairs([protein], GENES) == [(protein, gene) for gene in genes]


def test_gene_names_keep_their_spelling() -> None:
    genes = ["hg19_CD4", "GRCh38_CD14", "Lyz", "Cd8a"]
    assert matched_pairs(["CD4", "CD14", "CD8a"], genes) == [
        ("CD4", "hg19_CD4"), ("CD14", "GRCh38_CD14"), ("CD14", "Lyz"), ("CD8a", "Cd8a"),
    ]  # fmt: skip


def test_genes_that_are_not_there_are_left_out() -> None:
    assert matched_pairs(["CD19", "CD4"], ["CD79A"]) == [("CD19", "CD79A")]
    assert matched_pairs([], GENES) == []


def test_antigens_are_called_what_antibody_names_are_read_as() -> None:
    assert [antigen for antigen in GENES_OF_ANTIGEN if identify(antigen).target != antigen] == []


def test_the_table_holds_symbols_once() -> None:
    assert all(re.fullmatch(r"[A-Z0-9]+(-[A-Z0-9]+)?", gene) for gene in GENES)
    assert all(len(set(genes)) == len(genes) for genes in GENES_OF_ANTIGEN.values())
